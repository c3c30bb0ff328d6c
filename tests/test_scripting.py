"""Python for EVAL, FUNCTION LOAD and FCALL: what a script gets, gives and may do. Contract:
docs/contract/scripting-engine.md."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import redis

from helpers import Server, wait_until
from scripting import error_of, evaluate, knows_scripts, library, load, needs_engine

pytestmark = pytest.mark.matrix


@pytest.fixture(autouse=True)
def engine(request: pytest.FixtureRequest) -> None:
    needs_engine(request.config)


SHOP = '''
@register_function(flags=['no-writes'])
def total(keys, args):
    return sum(int(execute('GET', key) or 0) for key in keys)

@register_function('add', description='adds a number')
def anything(keys, args):
    return execute('INCRBY', keys[0], args[0])

def plain(keys, args):
    return [keys, args]
register_function(plain)
register_function('other', plain, flags=('allow-oom', 'allow-stale'))
'''


def test_a_library(server: Server) -> None:
    client = server.client()
    load(client, SHOP, "shop")
    client.mset({"a": 1, "b": 20})
    assert client.fcall("total", 2, "a", "b") == 21
    assert client.fcall("add", 1, "a", 5) == 6
    assert client.execute_command("FCALL_RO", "total", 1, "a") == 6
    assert client.fcall("plain", 1, "k", "x", "y") == [["k"], ["x", "y"]]
    (listed,) = client.function_list()
    described = {entry[1]: (entry[3], set(entry[5])) for entry in listed[5]}
    assert described == {
        "total": (None, {"no-writes"}), "add": ("adds a number", set()), "plain": (None, set()), "other": (None, {"allow-oom", "allow-stale"})
    }


def test_a_library_is_replaced_and_deleted(server: Server) -> None:
    client = server.client()
    load(client, "register_function('f', lambda keys, args: 1)")
    assert error_of(client.function_load, library("register_function('f', lambda keys, args: 2)")) == "Library 'lib' already exists"
    load(client, "register_function('f', lambda keys, args: 2)")
    assert client.fcall("f", 0) == 2
    assert client.function_delete("lib")
    assert error_of(client.fcall, "f", 0) == "Function not found"


def test_libraries_do_not_share_globals(server: Server) -> None:
    client = server.client()
    count = "count = 0\ndef f(keys, args):\n    global count\n    count += 1\n    return count\nregister_function({!r}, f)"
    load(client, count.format("f"), "one")
    load(client, count.format("g"), "two")
    assert [client.fcall(name, 0) for name in "ffg"] == [1, 2, 1]


VALUES: list[tuple[str, Any]] = [
    ("1", 1), ("True", 1), ("None", None), ("'text'", "text"), ("b'raw'", "raw"), ("1.5", "1.500000"), ("2**70", str(2**70)),
    ("'+fine'", "fine"), ("[1, [2, None]]", [1, [2, None]]), ("(1, 'x')", [1, "x"]), ("{'a': 1}", ["a", 1]), ("{1, 2}", "PY RECORD"),
    ("object()", "PY RECORD"), ("bytearray(b'x')", "x"), ("[]", []),
]


@pytest.mark.parametrize(("value", "reply"), VALUES, ids=[value for value, _ in VALUES])
def test_values_become_replies(server: Server, value: str, reply: Any) -> None:
    assert evaluate(server.client(protocol=2), f"return {value}") == reply


def test_dicts_are_maps_in_resp3(server: Server) -> None:
    assert evaluate(server.client(protocol=3), "return {'a': {'b': 1}}") == {"a": {"b": 1}}


def test_a_text_with_a_dash_is_an_error(server: Server) -> None:
    assert error_of(evaluate, server.client(), "return '-MYCODE no'") == "MYCODE no"


def test_arguments_are_texts_or_bytes(server: Server) -> None:
    client = server.client()
    assert evaluate(client, "return [repr(KEYS), repr(ARGV)]", ("a", b"\xff"), ("é", b"\x00\xfe")) == [
        repr(["a", b"\xff"]), repr(["é", b"\x00\xfe"])
    ]


def test_bodies_are_bodies_of_functions(server: Server) -> None:
    client = server.client()
    assert evaluate(client, "") is None
    assert evaluate(client, "x = '''a\n  b'''\nreturn x") == "a\n  b", "texts of several lines keep their indentation"
    assert evaluate(client, "from __future__ import annotations\nx: int | None = 1\nreturn x") == 1
    assert evaluate(client, "if KEYS:\n    return 'k'\nreturn 'none'") == "none"
    assert evaluate(client, "import json\nreturn json.dumps([1])") == "[1]"
    # A name is known to one script only.
    evaluate(client, "global seen\nseen = 1")
    assert error_of(evaluate, client, "return seen").startswith("NameError: name 'seen' is not defined (script, line 2)")


def test_scripts_by_their_digests(server: Server) -> None:
    client = server.client()
    script = client.register_script("#!python\nreturn execute('INCR', KEYS[0])")
    assert [script(keys=["n"]) for _ in range(3)] == [1, 2, 3]
    assert client.script_exists(script.sha) == [True]
    client.script_flush()
    assert client.script_exists(script.sha) == [False]
    assert script(keys=["n"]) == 4
    client.script_flush("ASYNC")
    assert error_of(client.evalsha, script.sha, 1, "n").startswith("NoScriptError")


BROKEN: dict[str, tuple[str, str]] = {
    "syntax": ("def f(:", "SyntaxError: invalid syntax (line 3)"),
    "raises": ("1 / 0", "ZeroDivisionError: division by zero (line 3)"),
    "nothing": ("x = 1", "No functions registered: the library calls register_function for none"),
    "flag": ("register_function('f', print, flags=['no-write'])",
             "flags: unknown flag 'no-write'; known are no-writes, allow-oom, allow-stale, no-cluster, allow-cross-slot-keys (line 3)"),
    "a text of flags": ("register_function('f', print, flags='no-writes')", "flags: a list of texts was expected, such as "),
    "name": ("register_function('f-g', print)", "name: only letters, digits and underscores are allowed, not 'f-g' (line 3)"),
    "type of name": ("register_function(1, print)", "name: a str was expected, not int (line 3)"),
    "description": ("register_function('f', print, description=3)", "description: a str was expected, not int (line 3)"),
    "twice": ("register_function('f', print)\nregister_function('f', print)", "name: the library has registered f already (line 4)"),
    "coroutine": ("@register_function\nasync def f(keys, args): pass", "function: FCALL answers at once, so a function for it cannot be async"),
    "no function": ("register_function('f', 3)", "function: a function was expected, not int (line 3)"),
    "runs": ("GB().run()", "scripts of EVAL and FUNCTION LOAD neither run nor register: use RG.PYEXECUTE (line 3)"),
    "registers": ("GB().register()", "scripts of EVAL and FUNCTION LOAD neither run nor register: use RG.PYEXECUTE (line 3)"),
    "reads through": ("read_through('a*', print)", "scripts of EVAL and FUNCTION LOAD neither run nor register: use RG.PYEXECUTE (line 3)"),
    "commands": ("execute('SET', 'x', 1)", "a library runs no commands while FUNCTION LOAD loads it: only its functions do (line 3)"),
    "time event": ("registerTE(1, lambda: 1)", "time events belong to sessions: use RG.PYEXECUTE (line 3)"),
    "exits": ("import sys\nsys.exit(3)", "SystemExit: 3 (line 4)"),
    "recursion": ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_library_says_why(server: Server, case: str) -> None:
    code, text = BROKEN[case]
    client = server.client()
    got = error_of(client.function_load, library(code))
    assert got.startswith(text), got
    assert client.function_list() == [] and client.dbsize() == 0


def test_code_that_is_no_text(server: Server) -> None:
    client = server.client(decode_responses=False)
    assert "SyntaxError" in error_of(client.execute_command, "FUNCTION", "LOAD", b"#!python name=a\n\xff\xfe = 1")
    assert "null bytes" in error_of(client.execute_command, "FUNCTION", "LOAD", b"#!python name=a\nx = 1\x00")


FAILING: dict[str, tuple[str, str]] = {
    "exception": ("raise ValueError('bad thing')", "ValueError: bad thing (script, line 2)"),
    "in a function of its own": ("def g():\n    return {}['k']\nreturn g()", "KeyError: 'k' (script, line 3)"),
    "in the library": ("import json\n\njson.loads('{')", "JSONDecodeError: Expecting property name"),
    "without text": ("raise ValueError", "ValueError (script, line 2)"),
    "an address": ("raise ValueError(object())", "ValueError: <object object> (script, line 2)"),
    "lines": ("raise ValueError('a\\r\\nb')", "ValueError: a  b (script, line 2)"),
    "a command": ("execute('LPUSH', KEYS[0], 1)\nexecute('GET', KEYS[0])",
                  "WRONGTYPE Operation against a key holding the wrong kind of value (script, line 3)"),
    "unknown command": ("execute('NOSUCH')", "unknown command 'NOSUCH'"),
    "flat": ("flat_error('MYCODE as it is')", "MYCODE as it is"),
    "flat without a code": ("flat_error('as it is')", "as it is"),
    "text that cannot be made": ("class E(Exception):\n    def __str__(self): raise KeyError('x')\nraise E()",
                                 "E: <unprintable E> (script, line 4)"),
    "exit": ("raise SystemExit(2)", "SystemExit: 2 (script, line 2)"),
    "recursion": ("def f(): return sorted([1], key=lambda x: f())\nf()", "RecursionError: "),
    "a surrogate": ("return '\\ud800'", "UnicodeEncodeError: "),
    "a list in itself": ("x = []\nx.append(x)\nreturn x", "the value is nested too deeply for a reply"),
    "a coroutine": ("async def f(): pass\nreturn f()", "a script answers at once: it cannot return a coroutine (script)"),
    "a future": ("return gearsFuture()", "Future object can only be created inside certain execution steps (script, line 2)"),
    "generator": ("yield 1", "the code of EVAL cannot be a generator or a coroutine: it answers at once"),
    "await": ("await x", "SyntaxError: 'await' outside async function (line 2)"),
    "register_function": ("from redisgears import register_function\nregister_function('f', print)",
                          "register_function is for libraries that FUNCTION LOAD loads; elsewhere, use register of a builder (script, line 3)"),
    "run": ("GB().run()", "scripts of EVAL and FUNCTION LOAD neither run nor register: use RG.PYEXECUTE (script, line 2)"),
    "a script": ("execute('EVAL', 'return 1', 0)", "EVAL cannot be run while a script runs: it was called from one (script, line 2)"),
    "RG.PYEXECUTE": ("execute('RG.PYEXECUTE', 'GB().run()')", "command 'rg.pyexecute' is not allowed on script mode (script, line 2)"),
    "blocking": ("return execute('BLPOP', 'nothing', 0)", None),
    "no command": ("get_command()", "Can not get command ctx (script, line 2)"),
    "call_next": ("call_next()", "Can not get CommandHook ctx (script, line 2)"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_failing_script_says_why(server: Server, case: str) -> None:
    body, text = FAILING[case]
    client = server.client()
    if text is None:
        assert evaluate(client, body, ("k",)) is None
        return
    got = error_of(evaluate, client, body, ("k",))
    assert got.startswith(text), got
    assert "0x" not in got
    assert client.ping()


def test_the_line_of_a_function_is_that_of_the_file(server: Server) -> None:
    load(server, "\n\n@register_function\ndef f(keys, args):\n    raise ValueError('x')")
    assert error_of(server.client().fcall, "f", 0) == "ValueError: x (f, line 7)"


def test_commands_run_in_the_caller_s_database(server: Server) -> None:
    client = server.client(db=3)
    evaluate(client, "execute('SET', 'k', 'three')")
    assert client.get("k") == "three" and server.client().get("k") is None
    # A script's SELECT lasts as long as the script.
    evaluate(client, "execute('SELECT', 5)\nexecute('SET', 'k', 'five')")
    assert client.get("k") == "three" and server.client(db=5).get("k") == "five"


def test_events_and_hooks_see_what_scripts_do(server: Server) -> None:
    client = server.client()
    server.run("GB('KeysReader').foreach(lambda r: execute('LPUSH', 'seen', r['event'])).register(prefix='k', eventTypes=['set'], mode='sync')")
    server.run("GB('CommandReader').map(lambda r: 'hooked ' + call_next(*r[1:])).register(hook='get', keyprefix='h', mode='sync')")
    load(client, "@register_function\ndef f(keys, args):\n    execute('SET', 'k', 1)\n    return execute('LRANGE', 'seen', 0, -1)")
    assert client.fcall("f", 1, "k") == ["set"], "a sync function runs before the script goes on"
    client.set("h1", "x")
    assert evaluate(client, "return execute('GET', 'h1')", ("h1",)) == "hooked x"


def test_a_transaction(server: Server) -> None:
    load(server, SHOP, "shop")
    with server.client().pipeline(transaction=True) as pipe:
        pipe.set("a", 5)
        pipe.execute_command("FCALL", "add", 1, "a", 2)
        pipe.execute_command("FCALL", "total", 1, "a")
        assert pipe.execute() == [True, 7, 7]


def test_functions_of_pinion_call_scripts(server: Server) -> None:
    load(server, SHOP, "shop")
    server.client().set("a", 5)
    assert server.run("GB('ShardsIDReader').map(lambda x: execute('FCALL', 'add', 1, 'a', 2)).run()")[0] == ["7"]
    server.run("GB('CommandReader').map(lambda x: execute('FCALL', 'add', 1, 'a', 2)).register(trigger='go', mode='sync')")
    assert server.client().execute_command("RG.TRIGGER", "go") == ["9"]


def test_memory_is_told(server: Server) -> None:
    client = server.client()
    before = client.info("memory")["used_memory_vm_functions"]
    load(client, SHOP, "shop")
    evaluate(client, "return 1")
    info = client.info("memory")
    assert info["used_memory_vm_functions"] > before and info["number_of_functions"] == 4
    assert info["used_memory_vm_eval"] > 0 and info["number_of_cached_scripts"] == 1
    client.function_flush("SYNC")
    client.script_flush("SYNC")
    stats = client.function_stats()
    assert "python" in stats[3] and client.info("memory")["number_of_functions"] == 0
    assert client.info("memory")["used_memory_vm_functions"] == before


@pytest.mark.parametrize("mode", ["SYNC", "ASYNC"])
def test_what_is_flushed_ends(server: Server, mode: str) -> None:
    """Objects of a library die with it, whichever thread of the server frees it."""
    client = server.client()
    for number in range(20):
        load(client, "class Big: pass\nkept = [Big() for _ in range(1000)]\nregister_function('f', lambda keys, args: len(kept))", f"lib{number}") \
            if number == 0 else load(client, f"kept = list(range(1000))\nregister_function('f{number}', lambda keys, args: len(kept))", f"lib{number}")
    assert client.fcall("f", 0) == 1000
    client.function_flush(mode)
    assert client.function_list() == []
    count = "import gc\nreturn sum(1 for o in gc.get_objects() if type(o).__name__ == 'Big')"

    def gone() -> bool:
        return evaluate(client, "import gc\ngc.collect()\n" + count) == 0

    wait_until(gone, 5, "the objects have died")


def test_switched_off(start_server: Callable[..., Server]) -> None:
    server = start_server()
    client = server.client()
    load(client, "register_function('f', lambda keys, args: 1)")
    client.save()
    server.stop()
    server.module_args = ("ScriptingEngine", "no")
    client = server.start().client()
    off = "Python scripts are switched off on this server (option ScriptingEngine)"
    assert client.function_list()[0][1] == "lib", "what the file has is there, and not lost"
    assert error_of(client.fcall, "f", 0) == off
    assert error_of(client.function_load, library("register_function('g', print)", "other")) == off
    assert error_of(evaluate, client, "return 1") == off
    assert client.eval("return 1", 0) == 1, "other engines go on"
    client.config_set("rg.scripting-engine", "yes")
    assert client.fcall("f", 0) == 1


def test_the_documented_server_is_told_apart(server: Server, request: pytest.FixtureRequest) -> None:
    """A shebang's flag for EVAL: enforced where the server knows of scripts in a module's calls."""
    client = server.client()
    script = "#!python flags=no-writes\nreturn execute('SET', KEYS[0], 1)"
    if knows_scripts(request.config):
        assert error_of(client.eval, script, 1, "k").startswith("Write commands are not allowed from read-only scripts.")
    else:
        assert client.eval(script, 1, "k") == "OK"
