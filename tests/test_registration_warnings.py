"""Registrations that can never fire are accepted, as in 1.2, and say so: in the log and in RG.DUMPREGISTRATIONS VERBOSE."""

from __future__ import annotations

import pytest
import redis

from helpers import Server, as_dict

KEYS = "GB().foreach(lambda r: None).register({})"


def warnings(server: Server) -> list[str]:
    """What RG.DUMPREGISTRATIONS VERBOSE says of the only registration."""
    [entry] = server.client().execute_command("RG.DUMPREGISTRATIONS", "VERBOSE")
    return list(as_dict(entry)["warnings"])


@pytest.mark.parametrize(
    "script, words",
    [
        (KEYS.format("'*', eventTypes=['get']"), ["'get' never fires", "did you mean 'set'"]),
        (KEYS.format("'*', eventTypes=['keymis']"), ["'keymis' never fires", "did you mean 'keymiss'"]),
        (KEYS.format("'*', eventTypes=['set', 'no-such-event-at-all']"), ["'no-such-event-at-all' never fires"]),
        (KEYS.format("'*stream*'"), ["prefix '*stream*' is no pattern", "begin with '*stream'"]),
        (KEYS.format("'a*b'"), ["prefix 'a*b' is no pattern"]),
        (KEYS.format("'*', eventTypes=['expired'], keyTypes=['string']"), ["'expired' with keyTypes never fires"]),
        (KEYS.format("'*', eventTypes=['keymiss'], keyTypes=['hash', 'list']"), ["'keymiss' with keyTypes never fires"]),
        ("GB('StreamReader').foreach(lambda r: None).register('*events*')", ["prefix '*events*' is no pattern"]),
        (
            "GB('CommandReader').foreach(lambda r: None).register(hook='get', keyprefix='user:*', mode='sync')",
            ["keyprefix 'user:*' is no pattern"],
        ),
    ],
)
def test_what_never_fires_is_said_once(server: Server, script: str, words: list[str]) -> None:
    assert server.run(script, "ID", "doubtful") == "OK"
    [warning] = warnings(server)
    assert all(word in warning for word in words), warning
    assert server.log().count(f"session doubtful: {warning}") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        "'*'",
        "'user:*', eventTypes=['set', 'DEL', 'keymiss', 'new', 'zadd', 'hexpired']",
        "'user:1', eventTypes=['set'], keyTypes=['string', 'hash']",
        "'*', eventTypes=['del'], keyTypes=['empty']",
        "'*', commands=['get'], eventTypes=['keymiss']",
    ],
)
def test_what_can_fire_is_not_doubted(server: Server, arguments: str) -> None:
    assert server.run(KEYS.format(arguments)) == "OK"
    assert warnings(server) == []
    assert "never fires" not in server.log() and "is no pattern" not in server.log()


@pytest.mark.parametrize(
    "argument, example",
    [("commands='get'", "commands=['get']"), ("eventTypes='keymiss'", "eventTypes=['keymiss']"), ("keyTypes='string'", "keyTypes=['string']")],
)
def test_a_text_for_a_list_is_an_error(server: Server, argument: str, example: str) -> None:
    with pytest.raises(redis.ResponseError, match="must be a list of texts, not a text") as error:
        server.run(KEYS.format(f"'*', {argument}"))
    assert example in str(error.value)
    assert server.registrations() == []
