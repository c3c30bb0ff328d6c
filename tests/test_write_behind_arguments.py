"""The arguments of `write_behind`: a wrong one is an error of the script that names it. Contract: docs/contract/write-behind.md chapter 1."""

from __future__ import annotations

import pytest

from figures import SECONDS, WHOLE, errors, figures
from helpers import Server, as_dict


@pytest.mark.parametrize(
    "call, said",
    [
        ("write_behind('', f)", "prefix: expected a str that is not empty, got ''"),
        ("write_behind(b'k', f)", "prefix: expected a str that is not empty, got b'k'"),
        ("write_behind('k', 'f')", "save: expected a function, got 'f'"),
        ("write_behind('k', batch=5)(7)", "save: expected a function, got 7"),
        ("write_behind(f)", "prefix: expected a str that is not empty, got <function"),
        ("write_behind('k', lambda: None)", "save: expected a function of one argument (changes), got <function"),
        ("write_behind('k', lambda changes, more: None)", "save: expected a function of one argument (changes), got <function"),
        ("def save(changes):\n    yield 1\nwrite_behind('k')(save)", "save: expected a function without yield, got <function save"),
        ("async def save(changes):\n    yield 1\nwrite_behind('k', save)", "save: expected a function without yield, got <function save"),
        ("write_behind('k', f, onRegistered=f)", "onRegistered: expected a function without arguments, got <function"),
        ("write_behind('k', f, bach=5)", "bach: expected one of events, batch,"),
        ("write_behind('k', f, events='set')", "events: expected a list of names of events (str), at least one, got 'set'"),
        ("write_behind('k', f, events=[])", "events: expected"),
        ("write_behind('k', f, events=[1])", "events: expected"),
        ("write_behind('k', f, batch=0)", f"batch: expected {WHOLE}, got 0"),
        ("write_behind('k', f, batch=1.5)", "batch: expected"),
        ("write_behind('k', f, interval=-1)", f"interval: expected {SECONDS}, got -1"),
        ("write_behind('k', f, coalesce=1)", "coalesce: expected True or False, got 1"),
        ("write_behind('k', f, backoff='1')", f"backoff: expected {SECONDS}, got '1'"),
        ("write_behind('k', f, max_backoff=float('nan'))", "max_backoff: expected"),
        ("write_behind('k', f, max_tries=0)", f"max_tries: expected {WHOLE}, got 0"),
        ("write_behind('k', f, max_tries=2**40)", "max_tries: expected"),
        ("write_behind('k', f, dead_letter='', max_tries=1)", "dead_letter: expected the name of a stream"),
        ("write_behind('k', f, dead_letter='d')", "dead_letter: expected max_tries beside it, got none"),
        ("write_behind('k', f, max_queue=0)", f"max_queue: expected {WHOLE}, got 0"),
        ("write_behind('k', f, max_queue_bytes='1mb')", f"max_queue_bytes: expected {WHOLE}, got '1mb'"),
        ("write_behind('k', f, on_full='drop')", "on_full: expected 'wait' or 'error', got 'drop'"),
        ("write_behind('k', f, wait='yes')", "wait: expected True or False, got 'yes'"),
        ("write_behind('k', f, timeout=0)", "timeout: expected a number of seconds above 0, got 0"),
        ("write_behind('k', f, full_timeout=0)", "full_timeout: expected a number of seconds above 0, got 0"),
        ("write_behind('k', f, max_save_time=0)", "max_save_time: expected a number of seconds above 0, got 0"),
        ("write_behind('k', f, max_concurrent=2)", "max_concurrent: expected one of events, batch,"),
        ("write_behind('k', f, ordered='none')", "ordered: expected 'key' or 'all', got 'none'"),
        ("write_behind('k', f, desc=5)", "desc: expected a str, got 5"),
        ("write_behind('k', f, onRegistered=5)", "onRegistered: expected a function, got 5"),
        ("write_behind('k', f); write_behind('k', f)", "prefix: expected one whose changes are not saved yet"),
    ],
)
def test_wrong_arguments(server: Server, call: str, said: str) -> None:
    assert f"write_behind: {said}" in errors(server, f"f = lambda changes: None\n{call}")
    assert server.registrations() == []


def test_all_of_them_are_shown(server: Server) -> None:
    server.run("""
        write_behind('k:*', lambda changes: None, events=['SET', 'del'], batch=7, interval=1.5, coalesce=False, backoff=0, max_backoff=2,
                     max_tries=3, dead_letter='dead', max_queue=10, max_queue_bytes=1000, on_full='error', full_timeout=2.5, wait=True, timeout=1,
                     ordered='all', max_save_time=3, desc='all of them')
        redisgears.writeBehind('l:*', lambda changes: None)
    """)
    shown = {
        "prefix": "k:*", "events": ["set", "del"], "batch": 7, "interval": "1.5", "coalesce": 0, "backoff": "0", "max_backoff": "2",
        "max_tries": 3, "dead_letter": "dead", "max_queue": 10, "max_queue_bytes": 1000, "on_full": "error", "full_timeout": "2.5", "wait": 1, "timeout": "1",
        "ordered": "all", "max_save_time": "3",
    }  # fmt: skip
    data = figures(server)
    assert data["args"] == shown
    assert server.registrations()[0]["desc"] == "all of them" and server.registrations()[0]["reader"] == "WriteBehind"
    args = figures(server, 1)["args"]
    assert (args["events"], args["batch"], args["max_queue"], args["max_queue_bytes"]) == (None, 100, 1_000_000, 256 * 1024 * 1024)
    assert args["max_save_time"] is None, "as the option says"
    assert (args["coalesce"], args["wait"], args["timeout"], args["ordered"], args["on_full"]) == (1, 0, "5", "key", "wait")


def test_a_prefix_has_one_saver(server: Server) -> None:
    server.run("write_behind('k:*', lambda changes: None)")
    assert "a registration saves 'k:*' already" in errors(server, "write_behind('k:*', lambda changes: None)")
    server.run("write_behind('k:1', lambda changes: None)")
    assert len(server.registrations()) == 2


def test_old_servers_refuse(server: Server) -> None:
    if server.version >= (7, 0):
        pytest.skip("this one tells when a command has ended")
    assert "write_behind: expected a server of version 7.0 or later" in errors(server, "write_behind('k:*', lambda changes: None)")


def test_a_decorator_without_a_function(server: Server) -> None:
    """The session that the script was to replace stays."""
    server.run("write_behind('k:*', lambda changes: None)", "ID", "cache")
    said = errors(server, "write_behind('k:*', batch=3)", "ID", "cache", "UPGRADE")
    assert said == "write_behind('k:*', ...) was given no function: put it in front of one as a decorator, or give the function as the second argument"
    assert len(server.registrations()) == 1
    server.run("decorate = write_behind('l:*')\ndecorate(lambda changes: None)")


def test_doubtful_words_are_warnings(server: Server) -> None:
    server.run("write_behind('w:[ab]*', lambda changes: None, events=['set', 'expierd'])")
    [entry] = server.client().execute_command("RG.DUMPREGISTRATIONS", "VERBOSE")
    prefix, event = as_dict(entry)["warnings"]
    assert prefix.startswith("prefix 'w:[ab]*' is no pattern:") and prefix.endswith("brackets and all")
    assert event.startswith("events 'expierd' never fires") and event.endswith("did you mean 'expired'?")
    assert event in server.log()
