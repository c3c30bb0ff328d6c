"""What the server refuses of `read_through` and `write_behind` is refused by the stub mode in the same words: the tables of the server's suites."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest

import test_read_through_arguments
import test_write_behind_arguments
from figures import errors
from helpers import Server
from servers import ROOT

PACKAGE = ROOT / "package/src"
sys.path.insert(0, str(PACKAGE))

from pinion_redis.testing import GearsError, load  # noqa: E402

# These need the server's own table of commands.
OF_COMMANDS = ("got '", "Can not hook", "none positive first key", "on_error: expected 'error' where writing")


def table(test: Any) -> list[Any]:
    """Calls of a suite's parametrized test, and what is said of each."""
    [mark] = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    return [row for row in mark.args[1] if not row[1].startswith(OF_COMMANDS)]


CALLS = table(test_read_through_arguments.test_a_wrong_argument_is_named) + table(test_write_behind_arguments.test_wrong_arguments)


def refusal(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises((GearsError, TypeError)) as refused:
        load(path)
    return str(refused.value)


@pytest.mark.once
@pytest.mark.parametrize(("call", "said"), CALLS)
def test_a_wrong_argument_is_named(tmp_path: Path, call: str, said: str) -> None:
    assert said in refusal(tmp_path / "script.py", f"f = lambda key: None\n{call}")


# The whole texts, which the tables have in part.
@pytest.mark.parametrize(
    "call",
    [
        "read_through('k', f, ttl='x')",
        "read_through('k', f, tll=3)",
        "read_through('k', f, batch=0)",
        "read_through('k', f, stale=3)",
        "read_through('k', f, commands=iter(['a', 1]))",
        "read_through('k', f); read_through('k', f)",
        "write_behind('k', f, bach=0)",
        "write_behind('k', f, events=['a'] * 1001)",
        "write_behind('k', f); write_behind('k', f)",
        "GB('NoReader')",
        "GB().map(7)",
        "GB().foreach(f).register('k', mode='now')",
        "GB('CommandReader').map(f).register()",
    ],
)
def test_the_words_are_those_of_the_server(server: Server, tmp_path: Path, call: str) -> None:
    if "write_behind" in call and server.version < (7, 0):
        pytest.skip("this server has no write_behind")
    script = f"def f(key): pass\n{call}"
    told = ast.literal_eval(errors(server, script))[-1]
    words = told.removeprefix("gears.error: ").rstrip("\n")
    if " at 0x" in words:
        words = words.partition(" at 0x")[0]
    assert refusal(tmp_path / "script.py", script).startswith(words)


@pytest.mark.once
@pytest.mark.parametrize("name", ["read_through", "write_behind"])
def test_a_decorator_without_brackets(tmp_path: Path, name: str) -> None:
    said = refusal(tmp_path / "script.py", f"@{name}\ndef f(key): pass")
    assert said.startswith(f"{name}: prefix: expected a str that is not empty, got <function f at 0x")


@pytest.mark.once
def test_a_step_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("GB().mapp(str).register('k')")
    with pytest.raises(AttributeError, match="'GearsBuilder' object has no attribute 'mapp'"):
        load(tmp_path / "script.py")
