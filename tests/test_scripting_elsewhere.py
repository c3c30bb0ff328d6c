"""Servers that take no scripting engine of a module: one line in the log, and nothing else changes."""

from __future__ import annotations

import pytest
import redis

from helpers import Server


def test_nothing_changes(server: Server, request: pytest.FixtureRequest) -> None:
    client = server.client()
    if request.config.getoption("--server").startswith("valkey"):
        assert "no Python for EVAL and FCALL" not in server.log()
        return
    assert server.log().count("no Python for EVAL and FCALL: this server takes no scripting engines of modules") == 1
    with pytest.raises(redis.ResponseError, match="(?i)engine|shebang"):
        client.eval("#!python\nreturn 1", 0)
    assert client.eval("return 1", 0) == 1
