"""gearsclient 1.0.2: its remote builder. The library is unmodified; its environment has cloudpickle 3 in the place of 1.6, which
cannot pickle functions of Python 3.8 and later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from environments import python_environment
from helpers import Server

Call = Callable[..., str]
Script = Callable[[str, str], Path]

BEGIN = """
import sys, redis
from gearsclient import GearsRemoteBuilder as GRB, execute, log, gearsConfigGet, hashtag, atomic
r = redis.Redis(port=int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    return python_environment("gearsclient", ["gearsclient==1.0.2"], override=["cloudpickle>=3.1"])


@pytest.fixture
def remote(python: Path, server: Server, call: Call, script: Script) -> Callable[[str], list[str]]:
    """Runs lines as a client of the server; what it prints."""

    def run(lines: str) -> list[str]:
        return call(python, script("client.py", BEGIN + lines), server.port).splitlines()

    return run


OPERATIONS = {
    "map": (".map(lambda x: x['value'])", "['a', 'b', 'b']"),
    "flatmap": (".flatmap(lambda x: [x['key'], x['value']])", "['b', 'a', 'b', 'k1', 'k2', 'k3']"),
    "filter": (".filter(lambda x: x['value'] == 'a').map(lambda x: x['key'])", "['k1']"),
    "foreach": (".foreach(lambda x: execute('INCR', 'n')).map(lambda x: x['key'])", "['k1', 'k2', 'k3']"),
    "countby": (".map(lambda x: x['value']).countby().map(lambda g: (g['key'], g['value']))", "[('a', 1), ('b', 2)]"),
    "avg": (".map(lambda x: int(x['key'][1:])).avg()", "[2.0]"),
    "count": (".count()", "[3]"),
    "distinct": (".map(lambda x: x['value']).distinct()", "['a', 'b']"),
    "aggregate": (".aggregate(0, lambda a, r: a + 1, lambda a, r: a + r)", "[3]"),
    "aggregateby": (
        ".aggregateby(lambda r: r['value'], 0, lambda k, a, r: a + 1, lambda k, a, r: a + r).map(lambda g: (g['key'], g['value']))",
        "[('a', 1), ('b', 2)]",
    ),
    "accumulate": (".accumulate(lambda a, r: (a or 0) + 1)", "[3]"),
    "localgroupby": (".localgroupby(lambda r: r['value'], lambda k, a, r: (a or 0) + 1).map(lambda g: g['value'])", "[1, 2]"),
    "repartition": (".repartition(lambda r: r['value']).map(lambda r: r['key'])", "['k1', 'k2', 'k3']"),
    "sort": (".map(lambda x: x['key']).sort(False)", "['k3', 'k2', 'k1']"),
    "limit": (".map(lambda x: x['key']).sort().limit(1, 1)", "['k2']"),
}


def test_operations(server: Server, remote: Callable[[str], list[str]]) -> None:
    server.client().mset({"k1": "a", "k2": "b", "k3": "b"})
    lines = ["def show(name, got):", "    got, errors = got", "    assert errors == [], errors", "    print(name, got)"]
    for name, (steps, _) in OPERATIONS.items():
        order = "" if name in ("sort", "limit") else ".sort()"
        sort = f"lambda got: (sorted(got[0], key=str), got[1])" if order else "lambda got: got"
        lines.append(f"show({name!r}, ({sort})(GRB('KeysReader', r=r, addClientToRequirements=False){steps}.run('k*')))")
    printed = dict(line.split(" ", 1) for line in remote("\n".join(lines)))
    assert {name: sorted_text(text) for name, text in printed.items()} == {
        name: sorted_text(expected) for name, (_, expected) in OPERATIONS.items()
    }


def sorted_text(text: str) -> list[str]:
    """Elements in any order but for `sort` and `limit`, which have been compared as they came."""
    found = eval(text)  # noqa: S307: written by this file
    return found if found == ["k3", "k2", "k1"] else sorted(map(str, found))


def test_the_default_requirement_is_not_fetched(server: Server, remote: Callable[[str], list[str]]) -> None:
    """By default it asks for a git address whose package needs an old Python; Pinion brings what its pickles name."""
    server.client().set("k", "v")
    assert remote("print(GRB(r=r).map(lambda x: x['value']).run('k'))") == ["(['v'], [])"]
    assert server.client().execute_command("RG.PYDUMPREQS") == []


def test_register_and_the_functions_of_the_library(server: Server, remote: Callable[[str], list[str]]) -> None:
    lines = """
def step(x):
    with atomic():
        execute('INCR', 'n{%s}' % hashtag())
        execute('SET', 'seen', x[1])
    log('by gearsclient')
    return gearsConfigGet('nothing', 'default')

print(GRB('CommandReader', r=r, addClientToRequirements=False).map(step).register(trigger='go'))
"""
    assert remote(lines) == ["b'OK'"]
    client = server.client()
    assert client.execute_command("RG.TRIGGER", "go", "x") == ["default"]
    assert client.get("seen") == "x"
    assert "GEARS: by gearsclient" in server.log()


def test_errors_come_back(server: Server, remote: Callable[[str], list[str]]) -> None:
    server.client().set("k", "v")
    lines = "res, errors = GRB(r=r, addClientToRequirements=False).map(lambda x: 1 / 0).run('k')\nprint(res, errors[0])"
    [printed] = remote(lines)
    assert printed.startswith("[] ") and "division by zero" in printed
