"""The arguments of `read_through`: a wrong one is an error of the script that names it.

Contract: docs/contract/read-through.md chapter 1.
"""

from __future__ import annotations

from typing import Any

import pytest

from figures import POSITIVE, SECONDS, WHOLE, errors, figures
from helpers import Server, as_dict

SHARE = "a number from 0 to 1"


@pytest.mark.parametrize(
    "call, said",
    [
        ("read_through('', f)", "prefix: expected a str that is not empty, got ''"),
        ("read_through(b'k', f)", "prefix: expected a str that is not empty, got b'k'"),
        ("read_through(None, f)", "prefix: expected a str that is not empty, got None"),
        ("read_through('k', 'f')", "loader: expected a function, got 'f'"),
        ("read_through('k', ttl=5)(7)", "loader: expected a function, got 7"),
        ("read_through(f)", "prefix: expected a str that is not empty, got <function"),
        ("read_through('k', lambda: 1)", "loader: expected a function of one argument (key), got <function"),
        ("read_through('k', lambda: 1, batch=5)", "loader: expected a function of one argument (keys), got <function"),
        ("class A:\n    @read_through('k')\n    def load(self, key): pass", "loader: expected a function of one argument (key), got <function A.load"),
        ("def load(key):\n    yield 1\nread_through('k', load)", "loader: expected a function without yield, got <function load"),
        ("read_through('k', f, ttl=lambda key: 3)", "ttl: expected a function of 2 arguments (key, value), got <function"),
        ("read_through('k', f, onRegistered=f)", "onRegistered: expected a function without arguments, got <function"),
        ("read_through('k', f, commands=['gett'])", "got 'gett': it is no command of this server"),
        ("read_through('k', f, commands=['get', 'PING'])", "got 'ping': "),
        ("read_through('k', f, commands=['EVAL'])", "got 'eval': "),
        ("read_through('k', f, tll=5)", "tll: expected one of commands, ttl,"),
        ("read_through('k', f, ttl=0)", f"ttl: expected {POSITIVE} or a function, got 0"),
        ("read_through('k', f, ttl=-1)", "ttl: expected"),
        ("read_through('k', f, ttl='5')", "ttl: expected"),
        ("read_through('k', f, ttl=True)", "ttl: expected"),
        ("read_through('k', f, ttl=float('nan'))", "ttl: expected"),
        ("read_through('k', f, ttl=float('inf'))", "ttl: expected"),
        ("read_through('k', f, ttl=10**400)", "ttl: expected"),
        ("read_through('k', f, ttl=5, jitter=1.1)", f"jitter: expected {SHARE}, got 1.1"),
        ("read_through('k', f, jitter=0.1)", "jitter: expected ttl beside it, got none"),
        ("read_through('k', f, stale=1)", "stale: expected ttl beside it, got none"),
        ("read_through('k', f, refresh_ahead=0.1)", "refresh_ahead: expected ttl beside it, got none"),
        ("read_through('k', f, negative_ttl=-1)", f"negative_ttl: expected {SECONDS}, got -1"),
        ("read_through('k', f, ttl=5, stale='1')", f"stale: expected {SECONDS}, got '1'"),
        ("read_through('k', f, ttl=5, refresh_ahead=2)", f"refresh_ahead: expected {SHARE} or 'xfetch', got 2"),
        ("read_through('k', f, ttl=5, refresh_ahead='x')", "refresh_ahead: expected"),
        ("read_through('k', f, timeout=0)", f"timeout: expected {POSITIVE}, got 0"),
        ("read_through('k', f, on_error='raise')", "on_error: expected 'error' or 'miss', got 'raise'"),
        ("read_through('k', f, on_error=1)", "on_error: expected"),
        ("read_through('k', f, max_waiting=0)", f"max_waiting: expected {WHOLE}, got 0"),
        ("read_through('k', f, max_waiting=1.5)", "max_waiting: expected"),
        ("read_through('k', f, max_concurrent=2)", "max_concurrent: expected one of commands, ttl,"),
        ("read_through('k', f, max_loads=True)", f"max_loads: expected {WHOLE}, got True"),
        ("read_through('k', f, max_loads=2**70)", "max_loads: expected"),
        ("read_through('k', f, max_load_time=-5)", f"max_load_time: expected {POSITIVE}, got -5"),
        ("read_through('k', f, backoff=[])", f"backoff: expected {SECONDS}, got []"),
        ("read_through('k', f, max_backoff=-1)", f"max_backoff: expected {SECONDS}, got -1"),
        ("read_through('k', f, breaker=5)", "breaker: expected a pair of failures (a whole number from 1 on) and seconds above 0, got 5"),
        ("read_through('k', f, breaker=(0, 1))", "breaker: expected"),
        ("read_through('k', f, breaker=(1, 0))", "breaker: expected"),
        ("read_through('k', f, breaker=(1, 1, 1))", "breaker: expected"),
        ("read_through('k', f, batch=0)", f"batch: expected {WHOLE}, got 0"),
        ("read_through('k', f, batch_wait=-1)", f"batch_wait: expected {SECONDS}, got -1"),
        ("read_through('k', f, commands='get')", "commands: expected a list of names of commands (str), at least one, got 'get'"),
        ("read_through('k', f, commands=[])", "commands: expected"),
        ("read_through('k', f, commands=[1])", "commands: expected"),
        ("read_through('k', f, commands=5)", "commands: expected"),
        ("read_through('k', f, commands=['nosuch'])", "got 'nosuch': it is no command of this server"),
        ("read_through('k', f, commands=['subscribe'])", "Can not hook a command"),
        ("read_through('k', f, commands=['ping'])", "none positive first key"),
        ("read_through('*', f, commands=['ping'])", "none positive first key"),
        ("read_through('k', f, commands=['incr', 'get'], on_error='miss')", "on_error: expected 'error' where writing commands wait, got 'miss' with 'incr'"),
        ("read_through('k', f, desc=5)", "desc: expected a str, got 5"),
        ("read_through('k', f, onRegistered='f')", "onRegistered: expected a function, got 'f'"),
        ("read_through('k*', f); read_through('k*', f)", "prefix: expected one that has no loader yet, but a registration loads 'k*' already"),
        ("read_through()", "missing 1 required positional argument: 'prefix'"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(server: Server, call: str, said: str) -> None:
    error = errors(server, f"f = lambda key: None\nread_through('other', f)\n{call}")
    assert said in error.replace("\\'", "'"), error
    assert server.registrations() == [], "the script registers nothing"


def test_an_equal_prefix_of_another_script_is_an_error_unless_it_is_replaced(server: Server) -> None:
    server.run("read_through('k*', lambda key: 'one')", "ID", "first")
    assert "a registration loads 'k*' already" in errors(server, "read_through('k*', lambda key: 'two')").replace("\\'", "'")
    assert server.client().get("k1") == "one"
    server.run("read_through('k*', lambda key: 'two')", "ID", "first", "UPGRADE")
    assert server.client().get("k2") == "two"
    server.run("read_through('k', lambda key: 'exactly')")
    assert server.client().get("k") == "exactly"


def test_all_options_are_shown(server: Server) -> None:
    server.run("""
        read_through('k:*', lambda key: None, ttl=5, jitter=0.5, negative_ttl=1.5, stale=60, refresh_ahead='xfetch', timeout=2,
                     on_error='miss', max_waiting=7, max_loads=3, max_load_time=9, backoff=0.25, max_backoff=4, breaker=(5, 30),
                     batch=100, batch_wait=0.01, commands=['GET', 'hget'], desc='what it does')
        read_through('plain:*', lambda key: None)
        readThrough = __import__('redisgears').readThrough
        readThrough('f:*', lambda key: None, ttl=lambda key, value: 5)
    """)
    registration = server.registrations()[0]
    assert (registration["reader"], registration["desc"]) == ("ReadThrough", "what it does")
    expected: dict[str, Any] = {
        "prefix": "k:*", "commands": ["get", "hget"], "ttl": "5", "jitter": "0.5", "negative_ttl": "1.5", "stale": "60",
        "refresh_ahead": "xfetch", "timeout": "2", "on_error": "miss", "max_waiting": 7, "max_loads": 3, "max_load_time": "9",
        "backoff": "0.25", "max_backoff": "4", "breaker": [5, "30"], "batch": 100, "batch_wait": "0.01",
    }  # fmt: skip
    assert figures(server)["args"] == expected
    plain = figures(server, 1)["args"]
    assert "zrange" in plain["commands"] and "exists" not in plain["commands"] and "scan" not in plain["commands"]
    assert (plain["ttl"], plain["timeout"], plain["max_loads"], plain["breaker"]) == (None, None, None, None)
    assert figures(server, 2)["args"]["ttl"] == "function"


def test_nothing_is_registered_unless_the_script_ends_well(server: Server) -> None:
    assert "ZeroDivisionError" in errors(server, "read_through('k:*', lambda key: 'v')\n1 / 0")
    assert server.registrations() == []
    assert server.client().get("k:1") is None


def test_a_loader_must_be_able_to_travel(server: Server) -> None:
    error = errors(server, "values = (value for value in [1])\nread_through('k:*', lambda key: next(values))")
    assert "cannot pickle" in error


def test_on_registered_is_called_when_it_is_in_force(server: Server) -> None:
    server.run("""
        def connect():
            global table
            table = {'k:1': 'one'}
        read_through('k:*', lambda key: table.get(key), onRegistered=connect)
    """)
    assert server.client().mget("k:1", "k:2") == ["one", None]


def test_what_fits_is_taken(server: Server) -> None:
    """Functions that have more arguments than they need, and things that only look like functions."""
    server.run("""
        import functools
        class Loader:
            def __call__(self, key): return key
            def load(self, key, more=1): return key
        for number, f in enumerate([Loader(), Loader().load, functools.partial(lambda a, key: key, 1), str, len, lambda *keys: 1, lambda key, **rest: 1]):
            read_through(f'k:{number}', f)
    """)
    assert len(server.registrations()) == 7
    assert [server.client().get(f"k:{number}") for number in (0, 1, 2, 3)] == ["k:0", "k:1", "k:2", "k:3"]


def test_a_decorator_without_a_function(server: Server) -> None:
    """The session that the script was to replace stays."""
    server.run("read_through('k:*', lambda key: 'v')", "ID", "cache")
    said = errors(server, "@read_through('k:*')\ndef load(key): return 1\nread_through('l:*', ttl=3)", "ID", "cache", "UPGRADE")
    assert said.startswith("read_through('l:*', ...) was given no function:")
    assert server.client().get("k:1") == "v"


def test_doubtful_prefixes_are_warnings(server: Server) -> None:
    server.run("read_through('w:?', lambda key: 1)")
    [entry] = server.client().execute_command("RG.DUMPREGISTRATIONS", "VERBOSE")
    [warning] = as_dict(entry)["warnings"]
    assert warning.startswith("prefix 'w:?' is no pattern:") and warning.endswith("the key 'w:?', question mark and all")


def test_a_script_that_is_stopped_while_its_function_is_looked_at(server: Server) -> None:
    """Code of users runs where a signature is asked for: what ends the script there is not taken for an answer."""
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", "200")
    said = errors(server, """
        class Endless:
            def __call__(self, key): return key
            @property
            def __signature__(self):
                while True: pass
        read_through('k:*', Endless())
    """)
    assert "SyncTimeout" in said or "forcestopped" in said, said
    assert server.registrations() == []
