"""A text with lone surrogates, which UTF-8 does not have, as any argument that takes text: the error names the argument, and what was expected.
Contract: docs/contract/python-api.md 4.5."""

from __future__ import annotations

import pytest

from figures import errors
from helpers import Server
from test_odd_arguments import READ_THROUGH, WRITE_BEHIND

pytestmark = pytest.mark.matrix

LONE = r"'\ud800'"
UTF8 = f"of characters that UTF-8 has, got {LONE}"
CALLS = {
    "read_through({lone}, f)": f"read_through: prefix: expected a str that is not empty, {UTF8}",
    "write_behind({lone}, f)": f"write_behind: prefix: expected a str that is not empty, {UTF8}",
    "read_through({lone}, ttl=5)": f"read_through: prefix: expected a str that is not empty, {UTF8}",
    "read_through('k', f, commands=['get', {lone}])": "read_through: commands: expected a list of names of commands (str), at least one, " + UTF8,
    "write_behind('k', f, events=['set', {lone}])": "write_behind: events: expected a list of names of events (str), at least one, " + UTF8,
    "read_through('k', f, **{{{lone}: 1}})": ": expected one of commands, ttl,",
    "GB({lone})": "reader argument must be a string: expected a str " + UTF8,
    "GB('KeysReader', desc={lone})": "desc argument must be a string: expected a str " + UTF8,
    "GB(**{{{lone}: 1}})": "got an unexpected keyword argument",
    "GB().foreach(f).run({lone})": ": expected a str " + UTF8,
    "GB().foreach(f).run(mode={lone})": "execution mode must be a string: expected a str " + UTF8,
    "GB('StreamReader').foreach(f).run('s', fromId={lone})": "fromId argument must be a string: expected a str " + UTF8,
    "GB('KeysOnlyReader').foreach(f).run({lone})": "pattern argument: expected a str " + UTF8,
    "GB('KeysOnlyReader').foreach(f).run(**{{{lone}: 1}})": "got an unexpected keyword argument",
    "GB().foreach(f).register({lone})": ": expected a str " + UTF8,
    "GB().foreach(f).register(mode={lone})": "execution mode must be a string: expected a str " + UTF8,
    "GB().foreach(f).register(user={lone})": ": expected a str " + UTF8,
    "GB().foreach(f).register(eventTypes=[{lone}])": "given event type is not string: expected a str " + UTF8,
    "GB().foreach(f).register(keyTypes=[{lone}])": "given key type is not string: expected a str " + UTF8,
    "GB().foreach(f).register(commands=[{lone}])": "given command type is not string: expected a str " + UTF8,
    "GB('CommandReader').foreach(f).register(trigger={lone})": "trigger argument is not string: expected a str " + UTF8,
    "GB('CommandReader').foreach(f).register(hook={lone})": "hook argument is not string: expected a str " + UTF8,
    "GB('CommandReader').foreach(f).register(hook='get', keyprefix={lone})": "keyprefix argument is not string: expected a str " + UTF8,
    "GB('StreamReader').foreach(f).register('s', onFailedPolicy={lone})": "(Continue/Abort/Retry): expected a str " + UTF8,
    "execute({lone})": "execute: argument 1: expected a str " + UTF8,
    "execute('SET', 'k', {lone})": "execute: argument 3: expected a str " + UTF8,
    "execute('SET', 'k', Odd())": "execute: argument 3: expected a str of characters that UTF-8 has, got odd",
    "gearsConfigGet({lone})": "get_config key must be a string: expected a str " + UTF8,
    "redisgears.registerTimeEvent(1, f, {lone})": "key argument: expected a str " + UTF8,
}
SCRIPT = """
import redisgears

class Odd:
    def __str__(self): return {lone}
    def __repr__(self): return 'odd'

def f(x): pass
try:
    {call}
except BaseException as error:
    raise ValueError(f'{{type(error).__module__}}.{{type(error).__name__}} {{error}} .')
"""


def told(server: Server, call: str) -> str:
    """What the script is told, as it stands there."""
    said = errors(server, SCRIPT.format(call=call.format(lone=LONE), lone=LONE))
    return said.replace("\\\\", "\\").replace("\\'", "'")


def test_the_error_names_the_argument(server: Server) -> None:
    wrong = {}
    for call, expected in CALLS.items():
        said = told(server, call)
        if expected not in said or "gears.error" not in said and "TypeError" not in said:
            wrong[call] = said
    assert wrong == {}
    assert server.registrations() == []


@pytest.mark.parametrize("call", ["read_through", "write_behind"])
def test_each_argument_of_the_halves(server: Server, call: str) -> None:
    wrong = {}
    for name in READ_THROUGH if call == "read_through" else WRITE_BEHIND:
        said = told(server, f"{call}('k', f, {name}={{lone}})")
        if f"{call}: {name}: expected " not in said:
            wrong[name] = said
    assert wrong == {}


def test_the_description_of_a_function_of_the_server(server: Server) -> None:
    library = f"#!python name=lib\nfrom redisgears import register_function\nregister_function('f', lambda keys, args: 1, description={LONE})"
    reply = server.raw().call("FUNCTION", "LOAD", library)
    if b"Engine" in reply or b"engine" in reply:
        pytest.skip("the server has no engines of modules")
    assert reply.startswith(b"-") and b"description: a str of characters that UTF-8 has was expected" in reply, reply
