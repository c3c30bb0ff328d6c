"""What the suites of `read_through` share: a source whose answers a test holds back, and figures."""

from __future__ import annotations

import textwrap
from typing import Any

from figures import figures
from helpers import Server, wait_until

SOURCE = """
def fetch(key):
    '''What the test gives for the key; waits for it. "!Type text" is raised, "-" is no value.'''
    import redis
    with redis.Redis(port={port}, decode_responses=True) as source:
        source.rpush('asked', key)
        source.incr('loads')
        answer = source.blpop('answer:' + key, 20)[1]
    if answer.startswith('!'):
        kind, _, text = answer[1:].partition(' ')
        raise {{'ValueError': ValueError, 'KeyError': KeyError}}[kind](text)
    return None if answer == '-' else answer
"""

LOAD = """
def load(key):
    return fetch(key)
"""


class Source:
    """The other side of a loader that fetches from a plain server: answers come when the test gives them."""

    def __init__(self, plain: Server) -> None:
        self.server = plain
        self.client = plain.client()

    def give(self, key: str, value: str) -> None:
        """The answer for one load of a key."""
        self.client.rpush("answer:" + key, value)

    def loads(self) -> int:
        """How many loads have begun."""
        return int(self.client.get("loads") or 0)

    def wait_for_loads(self, count: int) -> None:
        wait_until(lambda: self.loads() >= count, message=f"{count} loads have begun")


def register(server: Server, source: Server, arguments: str = "", loader: str = LOAD, prefix: str = "user:*", *more: Any) -> Source:
    """Registers `loader`, the function `load`, with these arguments of `read_through`."""
    script = SOURCE.format(port=source.port) + textwrap.dedent(loader)
    script += f"\nread_through({prefix!r}, load, {arguments})\n"
    assert server.client().execute_command("RG.PYEXECUTE", script, *more) == "OK"
    return Source(source)


def at_rest(server: Server) -> None:
    """Nobody waits, nothing loads; the server has no blocked client."""
    for registration in server.registrations():
        data = registration["RegistrationData"]
        if "waiting" in data:
            names = ("waiting", "loading", "queued")
            wait_until(
                lambda: all(
                    entry["RegistrationData"][name] == 0
                    for entry in server.registrations()
                    if entry["id"] == registration["id"]
                    for name in names
                ),
                message=f"no load is under way: {figures(server)}",
            )
    wait_until(lambda: server.own.info("clients")["blocked_clients"] == 0)
