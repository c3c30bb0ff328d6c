"""What the suites of `read_through` and `write_behind` share: figures of registrations, and what a script is told of its arguments."""

from __future__ import annotations

from typing import Any

import redis

from helpers import Server, wait_until

SECONDS = "a number of seconds that is not negative"
POSITIVE = "a number of seconds above 0"
WHOLE = "a whole number from 1 on"


def figures(server: Server, place: int = 0) -> dict[str, Any]:
    """What RG.DUMPREGISTRATIONS shows of a registration."""
    return server.registrations()[place]["RegistrationData"]


def wait_for(server: Server, place: int = 0, **expected: Any) -> None:
    """Waits until figures have these values."""
    wait_until(
        lambda: {name: figures(server, place)[name] for name in expected} == expected,
        message=f"{expected}, it is {figures(server, place)}",
    )


def errors(server: Server, script: str, *words: str) -> str:
    """What a script is told that is sent with these further words."""
    try:
        return str(server.run(script, *words))
    except redis.ResponseError as error:
        return str(error)
