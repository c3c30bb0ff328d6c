#!/usr/bin/env python3
"""Writes docs/python-api.md from the stubs, package/src/redisgears-stubs/__init__.pyi. `--check`: fails if it is not what the stubs say."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
STUBS = ROOT / "package/src/redisgears-stubs/__init__.pyi"
PAGE = ROOT / "docs/python-api.md"

ALIASES = {
    "executeCommand": "execute",
    "callNext": "call_next",
    "config_get": "configGet",
    "getMyHashTag": "hashtag",
    "flatError": "flat_error",
    "getCommand": "get_command",
    "overrideReply": "override_reply",
    "gearsFutureCtx": "gearsFuture",
    "registerTimeEvent": "registerTE",
    "readThrough": "read_through",
    "writeBehind": "write_behind",
    "PyFlatExecution": "GearsBuilder",
    "PyAtomic": "atomic",
}
"""The names that scripts see, where they are others than those of the module `redisgears`."""

NOTES = {
    "GearsError": "Whatever the API refuses, and errors of commands (`gears.error` in texts).",
    "GearsFlatError": "What `flat_error` raises.",
    "GearsForceStopped": "What a function gets that `RG.ABORTEXECUTION` or `SyncTimeout` stops.",
    "executeCommand": "Runs one command of the server and returns its reply. [More](functions.md#what-functions-can-call)",
    "callNext": "What stands behind a command hook. [More](triggers.md#functions-in-the-place-of-a-command)",
    "log": "Writes a line to the server's log.",
    "config_get": "A module argument or a value of `RG.CONFIGSET`, or `None`. [More](configuration.md#values-of-your-own)",
    "gearsConfigGet": "The same with a default.",
    "getMyHashTag": "A text whose hash slot this shard serves.",
    "isInAtomicBlock": "Whether this thread is inside `with atomic():`.",
    "flatError": "Fails with exactly this text.",
    "getCommand": "The linked client's command, its name first. [More](linked-clients.md)",
    "overrideReply": "What the linked client gets. [More](linked-clients.md#what-the-client-gets)",
    "isAsyncAllow": "Whether something to wait for may be returned here. [More](async.md)",
    "gearsFutureCtx": "A future that the callback returns and somebody else completes. [More](async.md)",
    "getGearsSession": "The session of the running code, for a thread of its own. [More](async.md)",
    "setGearsSession": "Makes this thread one of a session.",
    "registerGearsThread": "Not needed any more.",
    "registerTimeEvent": "Calls a function every so many seconds. [More](async.md#time-events)",
    "Change": "What `save` of `write_behind` gets a list of. For annotations only: there is no such name when a script runs. [More](write-behind.md#what-save-gets)",
    "Sorted": "What a loader returns for a sorted set: members with scores.",
    "Loaded": "What a loader returns for a value with a lifetime of its own.",
    "register_function": "Makes a function one that `FCALL` can call (Valkey), as a decorator with or without arguments, or as a call with the function behind the name; "
    "`from redisgears import register_function`. [More](scripting.md)",
    "readThrough": "Values that are loaded when a client misses them: a decorator, or a call with the loader behind the prefix. [More](read-through.md)",
    "writeBehind": "Saves changes of keys elsewhere: a decorator, or a call with the function behind the prefix. [More](write-behind.md)",
    "refresh": "Loads keys anew, and returns how many; in a coroutine, what is to be awaited for that. [More](read-through.md#changes-of-the-source-rgrefresh)",
    "PyExecutionSession": "A session, as `getGearsSession` gives it.",
    "PyFuture": "What `gearsFuture()` makes.",
    "PyAtomic": "Nobody else's command runs inside the block. [More](functions.md#what-functions-can-call)",
    "PyFlatExecution": "A function under construction: a [reader](readers.md), [operations](operations.md), then `run` or `register`. "
    "`GearsBuilder`, or `GB`, also has `avg(extractor=float)`, `sort(..., key=...)` and the arguments of "
    "[run and register](functions.md#run-and-register).",
}

HEAD = """# Python API

Written from the stubs, `package/src/redisgears-stubs/__init__.pyi`, which editors and type checkers read. Scripts have these names without import; packages import them
from `redisgears`, under the names in brackets. What each one does, step by step, is in [scripts and functions](functions.md).

"""


def signature(node: ast.FunctionDef, name: str) -> str:
    text = ast.unparse(ast.FunctionDef(**{**vars(node), "name": name, "body": [ast.Expr(ast.Constant(...))], "decorator_list": []}))
    return text.removeprefix("def ").removesuffix("\n    ...").removesuffix(":")


def wrapped(text: str) -> str:
    """A long signature with one argument in each line."""
    if len(text) <= 100:
        return text
    call = ast.parse(f"def {text}: ...").body[0]
    assert isinstance(call, ast.FunctionDef)
    inside, _, behind = text.partition("(")[2].rpartition(")")
    parts, depth, part = [], 0, ""
    for character in inside:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += character
    return f"{call.name}(\n" + "".join(f"    {part},\n" for part in [*parts, part.strip()]) + f"){behind}"


def section(node: ast.FunctionDef | ast.ClassDef) -> str:
    name = ALIASES.get(node.name, node.name)
    aka = f" (`{node.name}`)" if name != node.name else ""
    if isinstance(node, ast.FunctionDef):
        shown = [wrapped(signature(node, name))]
    else:
        methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
        shown = [f"class {name}({', '.join(map(ast.unparse, node.bases))})".replace("()", "")]
        shown += [f"    {ast.unparse(item)}" for item in node.body if isinstance(item, ast.AnnAssign)]
        for method in methods:
            shown.append("\n".join("    " + line for line in wrapped(signature(method, method.name)).splitlines()))
    return f"## {name}\n\n{NOTES[node.name]}{aka}\n\n```py\n" + "\n".join(shown) + "\n```\n"


def page() -> str:
    nodes = [node for node in ast.parse(STUBS.read_text()).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    missing = [node.name for node in nodes if node.name not in NOTES]
    assert not missing, f"scripts/docs/api.py has no line for {', '.join(missing)}"
    last = {node.name: node for node in nodes}  # of overloads the last one, the decorator
    return HEAD + "\n".join(map(section, last.values()))


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text() != page():
            sys.exit("pinion: docs/python-api.md is not what the stubs say: scripts/docs/api.py")
    else:
        PAGE.write_text(page())
