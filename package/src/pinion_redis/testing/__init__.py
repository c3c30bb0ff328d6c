"""Functions of a script in plain Python, without a server: the stub mode.

    script = load("functions/users.py", answers={"GET": "1"})  # a file, or a text
    assert script.load_user("user:7") == ...       # any name of the script
    script.fire({"key": "order:1", "value": {...}})  # what its registrations do with a record
    assert script.execute.calls == [("HINCRBY", "orders", "tea", "2")]
    script.change("user:7", {"name": "Ann"})        # a client writes a key,
    assert script.save_changes() == [[{...}]]       # and `save` of write_behind gets that

`execute` notes its calls and gives the answers that it was told; `override_reply`, `log`, `call_next` and the others note theirs. What
needs a whole plan (groupby, aggregate, sort, ...) needs a server: the fixture `gears` of the pytest plugin. What the server refuses of
`read_through` and `write_behind` is refused in the same words.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

from .builder import Registration
from .changes import Saver
from .errors import GearsError, NeedsServer
from .execute import Answers, FakeExecute
from .names import names
from .script import StubScript

__all__ = ["FakeExecute", "GearsError", "Loader", "NeedsServer", "Registration", "Saver", "StubScript", "load"]


def load(
    source: Union[str, Path],
    *,
    answers: Optional[Answers] = None,
    execute: Optional[FakeExecute] = None,
    config: Optional[Mapping[str, str]] = None,
    replace: Optional[Mapping[str, Any]] = None,
) -> StubScript:
    """Runs a script in plain Python.

    `source`: a file, or the script's text. A `str` is a file's name if it ends in `.py`, or if there is such a file.
    `answers`: see `FakeExecute`; `config`: what `configGet` and `gearsConfigGet` find; `replace`: names of the script that get another
    value when it has run, before its `onRegistered` are called: these may be among them.
    # Raises what the script raises, `GearsError` for what the server refuses, `NeedsServer`, and `OSError` for a file that is not there.
    """
    path = _file(source)
    text, name = (str(source), "<string>") if path is None else (path.read_text(encoding="utf-8"), str(path))
    script = StubScript(execute or FakeExecute(answers))
    module = types.ModuleType("not_main")
    module.__dict__.update(names(script, dict(config or {})), __file__=name)
    exec(compile(text, name, "exec", dont_inherit=True), module.__dict__)
    script.globals = module.__dict__
    script.begin(dict(replace or {}))
    return script


def _file(source: Union[str, Path]) -> Optional[Path]:
    """The file that is meant, None for a text."""
    if isinstance(source, Path):
        return source
    if "\n" in source or "\0" in source:
        return None
    try:
        is_file = source.endswith(".py") or Path(source).is_file()
    except OSError:  # too long for a name
        return None
    return Path(source) if is_file else None


class Loader:
    """What the fixture `gears_stub` is: `load`, and the classes of this module."""

    FakeExecute = FakeExecute
    GearsError = GearsError
    NeedsServer = NeedsServer
    load = staticmethod(load)
