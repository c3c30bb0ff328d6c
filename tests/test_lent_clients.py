"""What functions run once a client has waited twice for one command, for a load and then for the save: servers lend the calls of modules clients
of their own, and one that stood for the waiting client keeps its id. Contract: docs/contract/write-behind.md 2.10."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from helpers import Server

pytestmark = [pytest.mark.matrix, pytest.mark.own_server]

BOTH = """
read_through('both:*', lambda key: 'loaded')
read_through('read:*', lambda key: 'loaded')

@write_behind('both:*', wait=True)
def save(changes):
    pass

def link(record):
    override_reply('linked')

GB('KeysReader').foreach(link).register(prefix='linked:*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
GB('CommandReader').map(lambda record: 'hooked').register(hook='getset', keyprefix='hooked:*', mode='async_local', convertToStr=False)

def run(record):
    return str(execute(*record[1:]))

GB('CommandReader').map(run).register(trigger='sync', mode='sync')
GB('CommandReader').map(run).register(trigger='background', mode='async_local')
"""
COMMANDS: dict[str, tuple[list[Any], str]] = {
    "a load": (["GET", "read:1"], "None"),
    "several loads": (["MGET", "read:1", "both:2"], "[None, None]"),
    "a part of a row": (["APPEND", "both:2", "x"], "LOADFAILED"),
    "a link": (["GET", "linked:1"], "None"),
    "a change": (["SET", "both:3", "x"], "OK"),
    "a hook": (["GETSET", "hooked:1", "x"], ""),
    "another database": (["COPY", "read:1", "read:2", "DB", "1"], "0"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("mode", ["sync", "background"])
def test_functions_are_not_taken_for_the_client(server: Server, mode: str, command: str) -> None:
    assert server.run(BOTH) == "OK"
    words, expected = COMMANDS[command]
    client = server.client(socket_timeout=20)

    def found() -> str:
        """What the function gets; a function does not wait for what is loaded, linked or saved."""
        try:
            return str(client.execute_command("RG.TRIGGER", mode, *words))
        except redis.ResponseError as error:
            return str(error)

    before = found()
    assert expected in before
    client.flushall()
    for number in range(3):
        # It waits for the load, and then for the save.
        assert client.append(f"both:1{number}", "x") == len("loadedx")
    for _ in range(3):
        client.delete("read:1", "read:2", "both:2", "both:3", "linked:1", "hooked:1")
        assert found() == before
    assert client.get("read:1") == "loaded"
