"""Commands that functions cannot run: they end or hang older servers when a module runs them. What is left works as inside
MULTI. Contract: docs/contract/python-api.md 2.1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable

import pytest

from helpers import Server, wait_until
from probes import error_of, in_script, in_step

pytestmark = pytest.mark.matrix

RUN = """
def run(words):
    try:
        return ['reply', repr(redisgears.executeCommand(*words))]
    except redisgears.GearsError as error:
        return ['error', str(error)]

"""


def by_script(server: Server, words: list[str]) -> list[str]:
    return in_script(server, f"{RUN}\nreturn run({words!r})")


def by_step(server: Server, words: list[str]) -> list[str]:
    return in_step(server, f"{RUN}\nreturn run({words!r})")


def by_trigger(server: Server, words: list[str]) -> list[str]:
    server.run(f"{RUN}GB('CommandReader').flatmap(lambda r: run(r[1:])).register(trigger='t', mode='sync')")
    return server.own.execute_command("RG.TRIGGER", "t", *words)


def by_key_event(server: Server, words: list[str]) -> list[str]:
    server.run(
        f"{RUN}\nimport json\n"
        "def event(r):\n    execute('RPUSH', 'out', *run(json.loads(r['value'])))\n"
        "GB('KeysReader').foreach(event).register('go', mode='sync', eventTypes=['set'])"
    )
    server.client().set("go", json.dumps(words))
    return server.own.lrange("out", 0, -1)


def by_trigger_of_lua(server: Server, words: list[str]) -> list[str]:
    server.run(f"{RUN}GB('CommandReader').flatmap(lambda r: run(r[1:])).register(trigger='t', mode='sync')")
    return server.own.eval("return redis.call('RG.TRIGGER', 't', unpack(ARGV))", 0, *words)


def by_key_event_of_lua(server: Server, words: list[str]) -> list[str]:
    server.run(
        f"{RUN}\nimport json\n"
        "def event(r):\n    execute('RPUSH', 'out', *run(json.loads(r['value'])))\n"
        "GB('KeysReader').foreach(event).register('go', mode='sync', eventTypes=['set'])"
    )
    server.client().eval("return redis.call('SET', 'go', ARGV[1])", 0, json.dumps(words))
    return server.own.lrange("out", 0, -1)


def by_hook_of_lua(server: Server, words: list[str]) -> list[str]:
    server.run(f"{RUN}GB('CommandReader').map(lambda r: run(r[2:])).register(hook='hset', keyprefix='go', mode='sync', convertToStr=False)")
    return server.own.eval("return redis.call('HSET', 'go', unpack(ARGV))", 0, *words)


IN_SCRIPTS = [by_trigger_of_lua, by_hook_of_lua]
# Events of a script's commands come when it has ended.
PLACES = [by_script, by_step, by_trigger, by_key_event, by_key_event_of_lua, *IN_SCRIPTS]


@pytest.fixture(params=PLACES, ids=[place.__name__ for place in PLACES])
def place(request: pytest.FixtureRequest, server: Server) -> Callable[[list[str]], list[str]]:
    return lambda words: request.param(server, words)


@pytest.fixture(autouse=True)
def goes_on(server: Server):
    """The server is sane afterwards."""
    yield
    raw = server.raw()
    assert raw.call("SET", "after", "v") == b"+OK\r\n"
    assert raw.call("EVAL", "return redis.call('GET', 'after')", 0) == b"$1\r\nv\r\n"
    assert server.client().info("clients")["blocked_clients"] == 0


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["SYNC"], "ERR SYNC cannot be run by a function"),
        (["psync", "?", "-1"], "ERR PSYNC cannot be run by a function"),
        (["REPLCONF", "listening-port", "1"], "ERR REPLCONF cannot be run by a function"),
        (["SHUTDOWN"], "ERR SHUTDOWN cannot be run by a function"),
        (["SHUTDOWN", "NOSAVE", "NOW"], "ERR SHUTDOWN cannot be run by a function"),
        (["DEBUG", "RELOAD"], "ERR DEBUG RELOAD cannot be run by a function"),
        (["debug", "loadaof"], "ERR DEBUG LOADAOF cannot be run by a function"),
        (["DEBUG", "SEGFAULT"], "ERR DEBUG SEGFAULT cannot be run by a function"),
        (["CLIENT", "REPLY", "OFF"], "ERR CLIENT REPLY cannot be run by a function: it has no client"),
    ],
)
def test_refused_everywhere(place: Callable[[list[str]], list[str]], words: list[str], error: str) -> None:
    assert place(words) == ["error", error]


@pytest.mark.parametrize("words", [["SCRIPT", "DEBUG", "YES"], ["script", "debug", "sync"]])
def test_scripts_of_others_are_not_debugged(place: Callable[[list[str]], list[str]], server: Server, words: list[str]) -> None:
    """The next script would end Valkey 9.1."""
    kind, text = place(words)
    assert kind == "error" and "ERR SCRIPT DEBUG cannot be run" in text
    assert server.client().eval("return 1", 0) == 1


@pytest.mark.parametrize("words", [["SUBSCRIBE", "a"], ["PSUBSCRIBE", "a"], ["MONITOR"]])
def test_refused_by_the_server(place: Callable[[list[str]], list[str]], words: list[str]) -> None:
    kind, text = place(words)
    assert kind == "error" and "isn't allowed" in text


@pytest.mark.parametrize("words", [["WAIT", "1", "0"], ["wait", "99", "100000"], ["WAIT", "0", "0"]])
def test_no_replica_is_waited_for(
    request: pytest.FixtureRequest, place: Callable[[list[str]], list[str]], server: Server, words: list[str]
) -> None:
    in_script = any(f"[{where.__name__}" in request.node.name for where in IN_SCRIPTS)
    if in_script and server.is_valkey and (8,) <= server.version < (9, 1):
        assert place(words) == ["error", "ERR WAIT cannot be run while a script runs: it was called from one"]
    else:
        assert place(words) == ["reply", "0"]


def test_no_file_is_waited_for(place: Callable[[list[str]], list[str]], server: Server) -> None:
    if not server.is_valkey and server.version < (7, 2):
        pytest.skip("no WAITAOF on this server")
    assert server.client().config_set("appendonly", "yes")
    kind, text = place(["WAITAOF", "1", "0", "0"])
    assert kind == "reply" or "WAITAOF cannot be run while a script runs" in text


@pytest.mark.parametrize(
    ("words", "reply"),
    [
        (["BLPOP", "missing", "0"], "None"),
        (["BRPOP", "missing", "0"], "None"),
        (["BLMOVE", "a", "b", "LEFT", "LEFT", "0"], "None"),
        (["BRPOPLPUSH", "a", "b", "0"], "None"),
        (["BZPOPMIN", "missing", "0"], "None"),
        (["XREAD", "BLOCK", "0", "STREAMS", "missing", "$"], "None"),
        (["MULTI"], "'OK'"),
        (["WATCH", "k"], "'OK'"),
    ],
)
def test_nothing_waits(place: Callable[[list[str]], list[str]], words: list[str], reply: str) -> None:
    assert place(words) == ["reply", reply]


@pytest.mark.parametrize("words", [["WAIT", "x", "0"], ["WAIT", "1", "x"], ["WAIT", "1"]])
def test_wrong_arguments_have_the_servers_text(place: Callable[[list[str]], list[str]], words: list[str]) -> None:
    kind, text = place(words)
    assert kind == "error" and ("integer" in text or "arguments" in text or "while a script runs" in text)


def test_wait_counts_replicas(server: Server, start_server: Callable[..., Server]) -> None:
    start_server(args=["--replicaof", server.host, server.port])
    assert server.client().wait(1, 10_000) == 1
    assert by_step(server, ["WAIT", "5", "0"]) == ["reply", "1"]


@pytest.mark.parametrize("words", [["CLIENT", "KILL", "TYPE", "normal"], ["CLIENT", "KILL", "1.2.3.4:5"]])
@pytest.mark.parametrize("where", [by_script, by_trigger, by_key_event])
def test_the_servers_thread_kills_no_client(server: Server, where, words: list[str]) -> None:
    """It may be in the middle of a command of that client."""
    kind, text = where(server, words)
    assert (kind, text[:29]) == ("error", "ERR CLIENT KILL cannot be run")


def test_a_background_function_may_kill_clients(server: Server) -> None:
    victim = server.raw()
    victim.call("CLIENT", "SETNAME", "victim")
    number = victim.call("CLIENT", "ID")[1:-2].decode()
    assert by_step(server, ["CLIENT", "KILL", "ID", number]) == ["reply", "1"]
    with pytest.raises(ConnectionError):
        victim.call("PING")


def test_renamed_commands_are_known(start_server: Callable[..., Server]) -> None:
    server = start_server(args=["--rename-command", "SYNC", "other", "--rename-command", "EVAL", "run",
                                "--rename-command", "WAIT", "tarry"])
    assert by_step(server, ["other"]) == ["error", "ERR OTHER cannot be run by a function"]
    assert by_step(server, ["tarry", "1", "0"]) == ["reply", "0"]
    server.run("GB('CommandReader').map(lambda r: execute('run', 'return 1', '0')).register(trigger='t', mode='sync')")
    assert error_of(server, "return redis.call('RG.TRIGGER', 't')", 0, command="run")


# --- scripts ---


SCRIPTS = [
    ["EVAL", "return 1", "0"],
    ["eval", "return 1", "0"],
    ["EVALSHA", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db", "0"],
    ["SCRIPT", "FLUSH"],
    ["SCRIPT", "LOAD", "return 1"],
]
FUNCTIONS = [
    ["FCALL", "f", "0"],
    ["EVAL_RO", "return 1", "0"],
    ["FUNCTION", "FLUSH"],
    ["FUNCTION", "LOAD", "#!lua name=other\nredis.register_function('g', function() return 1 end)"],
]


def has_functions(server: Server) -> bool:
    return server.is_valkey or server.version >= (7, 0)


def words_of(server: Server) -> list[list[str]]:
    return SCRIPTS + (FUNCTIONS if has_functions(server) else [])


def refused(reply: str) -> bool:
    return "cannot be run while a script runs" in reply


def test_a_trigger_that_a_script_calls_runs_no_script(server: Server) -> None:
    server.run(f"{RUN}GB('CommandReader').flatmap(lambda r: run(r[1:])).register(trigger='t', mode='sync')")
    client = server.client()
    for words in words_of(server):
        kind, text = client.eval("return redis.call('RG.TRIGGER', 't', unpack(ARGV))", 0, *words)
        assert kind == "error" and refused(text)
    assert client.execute_command("RG.TRIGGER", "t", "EVAL", "return 7", "0") == ["reply", "7"]


def test_the_same_in_a_function_of_the_server(server: Server) -> None:
    if not has_functions(server):
        pytest.skip("no functions on this server")
    server.run(f"{RUN}GB('CommandReader').flatmap(lambda r: run(r[1:])).register(trigger='t', mode='sync')")
    client = server.client()
    library = "redis.register_function('f', function(_, words) return redis.call('RG.TRIGGER', 't', unpack(words)) end)"
    client.function_load(f"#!lua name=lib\n{library}")
    for words in words_of(server):
        kind, text = client.fcall("f", 0, *words)
        assert kind == "error" and refused(text)
    assert client.execute_command("RG.TRIGGER", "t", "FCALL", "f", "0", "PING") == ["reply", "['reply', \"'PONG'\"]"]


def test_a_hook_and_a_key_event_in_a_script(server: Server) -> None:
    server.run(
        f"""{RUN}
GB('CommandReader').map(lambda r: run(['EVAL', 'return 1', '0'])).register(hook='get', keyprefix='h', mode='sync')
GB('KeysReader').foreach(lambda r: execute('RPUSH', 'out', *run(['SCRIPT', 'FLUSH']))).register('x', mode='sync',
    eventTypes=['set'])
"""
    )
    client = server.client()
    assert refused(client.eval("return redis.call('GET', 'h')", 0))
    # The function runs before the next command of the script.
    client.eval("redis.call('SET', 'x', 1) return redis.call('LLEN', 'out')", 0)
    assert refused(client.lindex("out", 1))
    assert client.get("h") == "['reply', '1']"


def test_a_script_that_a_function_runs_calls_a_function_that_runs_one(server: Server) -> None:
    server.run(f"{RUN}GB('CommandReader').flatmap(lambda r: run(r[1:])).register(trigger='t', mode='sync')")
    inner = "return redis.call('RG.TRIGGER', 't', 'EVAL', 'return 1', '0')"
    for where in (by_step, by_script):
        kind, text = where(server, ["EVAL", inner, "0"])
        assert kind == "reply" and refused(text)


def test_background_functions_run_scripts_meanwhile(server: Server) -> None:
    """They wait for the server, so no script runs then."""
    server.run("""
        def step(record):
            while not execute('EXISTS', 'stop'):
                execute('EVAL', "return redis.call('INCR', 'n')", '0')
        GB('KeysReader').foreach(step).run('k', noScan=True)
        """, "UNBLOCKING")
    client = server.client()
    for _ in range(300):
        client.eval("for i = 1, 100 do redis.call('INCR', 'm') end", 0)
    client.set("stop", 1)
    server.wait_idle()
    assert int(client.get("m")) == 30_000


@pytest.mark.parametrize("command", ["client", "script", "debug", "function", "shutdown", "sync", "replconf", "eval"])
def test_no_function_stands_in_their_place(server: Server, command: str) -> None:
    """The original would be run for the client, by the module."""
    if command == "function" and not has_functions(server):
        pytest.skip("no functions on this server")
    for register in (f"GB('CommandReader').register(hook='{command}')", f"GB().register(commands=['{command}'])"):
        assert "not allowed inside a script" in error_of(server, register)


@pytest.mark.parametrize("words", [["ACL", "DELUSER", "me"], ["acl", "load"]])
@pytest.mark.parametrize("trigger", ["event", "hook", "command"])
def test_a_script_keeps_its_user(start_server: Callable[..., Server], words: list[str], trigger: str, tmp_path: Path) -> None:
    """The server has looked his rights up when a function comes between."""
    file = tmp_path / "users.acl"
    file.write_text("user default on nopass ~* &* +@all\nuser me on nopass ~* &* +@all\n")
    server = start_server(args=["--aclfile", file])
    register = {
        "event": "GB('KeysReader').foreach(run).register(prefix='es:*', mode='sync', eventTypes=['set'])",
        "hook": "GB('CommandReader').map(run).register(hook='set', keyprefix='es:', mode='sync')",
        "command": "GB('CommandReader').map(run).register(trigger='run', mode='sync')",
    }
    server.run(f"""
        def run(record):
            try:
                execute(*{words!r})
            except redisgears.GearsError as error:
                log('said: ' + str(error))
                return 'refused'
            # Others get the memory.
            for number in range(40):
                execute('ACL', 'SETUSER', f'other{{number}}', 'on', '~a*', '-@all')
            return 'done'
        {register[trigger]}
        """)
    client = server.client(username="me", password="x")
    first = "redis.call('RG.TRIGGER', 'run')" if trigger == "command" else "redis.call('SET', 'es:1', 'x')"
    later = "for i = 1, 20 do redis.call('SET', 'other' .. i, 'x') end return redis.call('GET', 'other20')"
    assert client.eval(f"{first} {later}", 0) == "x"
    name = " ".join(words[:2]).upper()
    wait_until(lambda: f"said: ERR {name} cannot be run while a script runs" in server.log() or "other1" in server.own.acl_users(), 10)
    assert trigger == "event" or "other1" not in server.own.acl_users()


def test_users_go_where_no_script_runs(server: Server) -> None:
    server.client().execute_command("ACL", "SETUSER", "gone", "on")
    assert by_step(server, ["ACL", "DELUSER", "gone"]) == ["reply", "1"]
