"""What the suites of Python in EVAL and FCALL share."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
import redis

from helpers import Arg, Server


def needs_engine(config: pytest.Config) -> None:
    """Skips on servers that take no scripting engine of a module."""
    if not config.getoption("--server").startswith("valkey"):
        pytest.skip("scripting engines of modules exist on Valkey 8.1 and later only")


def knows_scripts(config: pytest.Config) -> bool:
    """True where the server enforces a script's limits in a module's calls: from Valkey 9.1 on."""
    return not config.getoption("--server").startswith("valkey-8")


def library(code: str, name: str = "lib") -> str:
    """A library with this code."""
    return f"#!python name={name}\nfrom redisgears import register_function\n{textwrap.dedent(code)}"


def load(server: Server | redis.Redis, code: str, name: str = "lib") -> None:
    """FUNCTION LOAD REPLACE."""
    client = server.client() if isinstance(server, Server) else server
    assert client.execute_command("FUNCTION", "LOAD", "REPLACE", library(code, name)) in (name, name.encode())


def evaluate(client: redis.Redis, body: str, keys: tuple[Arg, ...] = (), args: tuple[Arg, ...] = (), command: str = "EVAL") -> Any:
    """EVAL of a function's body. EVAL_RO, and EVAL on replicas, take only scripts that say that they do not write."""
    flags = " flags=no-writes" if command == "EVAL_RO" else ""
    return client.execute_command(command, f"#!python{flags}\n{textwrap.dedent(body)}", len(keys), *keys, *args)


def error_of(call: Any, *args: Any, **kwargs: Any) -> str:
    """The text of the error that a command ends with."""
    with pytest.raises(redis.ResponseError) as raised:
        call(*args, **kwargs)
    kind = type(raised.value).__name__
    return str(raised.value) if kind == "ResponseError" else f"{kind}: {raised.value}"
