"""What functions call: execute with its conversions and errors, atomic, log, hashtag, configGet; also in user threads.

Contract: docs/contract/python-api.md 2, 4.1 to 4.3, 5.4, 12; docs/contract/commands.md 6.4 and 6.5 (refused writes).
"""

import os
import re
import select
from typing import Callable

import pytest

from helpers import Server, wait_until
from probes import in_script, in_step, start

pytestmark = pytest.mark.matrix

CAUGHT = """
def caught(call, *args, **options):
    '''The exception of a call as "class: text".'''
    try:
        return f'no error: {call(*args, **options)!r}'
    except BaseException as error:
        return f'{type(error).__module__}.{type(error).__qualname__}: {error}'
"""


@pytest.fixture(params=[in_script, in_step], ids=["script", "step"])
def probe(request, server):
    """Runs the body of a function at script level, then in a worker."""
    return lambda body: request.param(server, body)


def caught(probe, call):
    """How the `call` fails."""
    return probe(f"{CAUGHT}\nreturn caught({call})")


# --- replies ---


@pytest.mark.parametrize(
    ("call", "value"),
    [
        ("", []),
        ("'PING'", "PONG"),
        ("'pInG', 'text'", "text"),
        ("'SET', 'k', 1", "OK"),
        ("'GET', 'missing'", None),
        ("'GET', 'text'", "a\0é"),
        ("'INCR', 'n'", 1),
        ("'LRANGE', 'list', 0, -1", ["a", "1"]),
        ("'LRANGE', 'missing', 0, -1", []),
        ("'HGETALL', 'hash'", ["f", "v"]),
        ("'ZSCORE', 'zset', 'm'", "1.5"),
        ("'MGET', 'missing', 'text'", [None, "a\0é"]),
        ("'BLPOP', 'missing', 0", None),
        ("'EVAL', 'return {1, {2, \"a\"}, false, true}', 0", [1, [2, "a"], None, 1]),
        ("'EVAL', 'return {redis.error_reply(\"MY error\"), 1}', 0", ["MY error", 1]),
        ("'EVAL', 'return {map={a=1}}', 0", ["a", 1]),
        ("'EVAL', 'return {double=1.5}', 0", "1.5"),
    ],
)
def test_replies(server, probe, call, value):
    client = server.client()
    client.set("text", "a\0é")
    client.rpush("list", "a", 1)
    client.hset("hash", "f", "v")
    client.zadd("zset", {"m": 1.5})
    result = probe(f"return execute({call})")
    assert (type(result), result) == (type(value), value)


def test_replies_that_are_not_utf8_are_bytearrays(server, probe):
    server.client().set("k", b"\xff\0")
    assert probe("return repr(execute('GET', 'k'))") == r"bytearray(b'\xff\x00')"


def test_calls_are_independent(probe):
    body = "return [execute(*words.split()) for words in ('SELECT 1', 'MULTI', 'SET k v', 'GET k')]"
    assert probe(body) == ["OK", "OK", "OK", "v"]
    assert "EXEC without MULTI" in caught(probe, "execute, 'EXEC'")


# --- arguments ---


def test_arguments_are_converted(server, probe):
    probe("execute('RPUSH', 'l', 1.5, True, None, [1, 'a'], b'\\xff\\0', bytearray(b'\\0'), 'é', -7, '')")
    stored = server.client(decode_responses=False).lrange("l", 0, -1)
    assert stored == [b"1.5", b"True", b"None", b"[1, 'a']", b"\xff\0", b"\0", "é".encode(), b"-7", b""]


# --- errors ---


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("execute, 'GET'", "gears.error: ERR wrong number of arguments for 'get' command"),
        ("execute, 'LPUSH', 'k', 1", "gears.error: WRONGTYPE Operation against a key holding the wrong kind of value"),
        ("execute, b'GET', 'k'", "gears.error: the given command must be a string"),
        ("execute, None", "gears.error: the given command must be a string"),
        ("atomic().__exit__", "gears.error: Not inside an atomic block"),
    ],
)
def test_errors(server, probe, call, error):
    server.client().set("k", "v")
    assert caught(probe, call) == error


@pytest.mark.parametrize("command", ["nosuch", " get", "get k"])
def test_an_unknown_command_has_the_servers_text(probe, command):
    error = caught(probe, f"execute, {command!r}, 'a'")
    assert error.startswith("gears.error: ERR unknown command") and "\r" not in error


def test_keywords_are_refused(probe):
    error = caught(probe, "execute, 'PING', message='x'")
    assert error.startswith("builtins.TypeError: ") and "takes no keyword arguments" in error


@pytest.mark.parametrize("argument", ["Silent()", "'\\ud800'"])
def test_an_argument_without_text_raises_and_nothing_is_run(server, probe, argument):
    silent = "class Silent:\n    def __str__(self):\n        raise ValueError('no text')\n"
    error = caught(lambda body: probe(silent + body), f"execute, 'SET', 'written', {argument}")
    assert not error.startswith("no error")
    assert server.client().get("written") is None
    if "Silent" in argument:
        assert error == "builtins.ValueError: no text"


# --- refused writes ---


def test_a_read_only_replica_refuses_writes(server, start_server):
    replica = start_server(args=["--replicaof", server.host, server.port])
    client = replica.client()
    wait_until(lambda: client.info("replication")["master_link_status"] == "up")
    assert b"READONLY" in replica.raw().call("RG.PYEXECUTE", "execute('SET', 'k', 1)")
    assert client.get("k") is None


def test_writes_above_the_memory_limit_are_refused(server):
    client = server.client()
    client.set("k", "v")
    client.config_set("maxmemory", 1)
    read = start(server, "GB('KeysReader').run('k', noScan=True)", "done")  # no write: goes on
    error = server.raw().call("RG.PYEXECUTE", "execute('SET', 'k', 'w')")
    client.config_set("maxmemory", 0)
    assert b"OOM command not allowed" in error
    assert len(client.execute_command("RG.GETRESULTS", read)[0]) == 1
    assert client.get("k") == "v"


# --- atomic ---


def test_is_in_atomic_block(probe):
    body = """
        states = [isInAtomicBlock()]
        block = atomic()
        states.append(block.__enter__() is block)
        states.append(isInAtomicBlock())
        block.__exit__()
        states.append(isInAtomicBlock())
        with atomic(1, 2):
            states.append(isInAtomicBlock())
        return states
        """
    assert probe(body) == [False, True, True, False, True]


def test_blocks_do_not_nest(probe):
    body = f"""{CAUGHT}
with atomic():
    text = caught(atomic().__enter__)
    return [text, isInAtomicBlock(), execute('PING')]
"""
    assert probe(body) == ["gears.error: Already inside an atomic block", True, "PONG"]


def test_an_exception_leaves_the_block(server, probe):
    body = """
        try:
            with atomic():
                execute('SET', 'k', 1)
                raise ValueError
        except ValueError:
            return isInAtomicBlock()
        """
    assert probe(body) is False
    assert server.client().get("k") == "1"  # not rolled back


def test_other_clients_are_held_meanwhile(server, tmp_path):
    inside, go = tmp_path / "inside", tmp_path / "go"
    script = f"""
        import os, time
        def hold(record):
            with atomic():
                execute('SET', 'k', 'inside')
                open({os.fspath(inside)!r}, 'w').close()
                deadline = time.monotonic() + 20
                while not os.path.exists({os.fspath(go)!r}) and time.monotonic() < deadline:
                    time.sleep(0.001)
                execute('SET', 'k', 'end')
        GB('KeysReader').foreach(hold).run('k', noScan=True)
        """
    server.run(script, "UNBLOCKING")
    wait_until(inside.exists)
    other = server.raw()
    other.send("GET", "k")
    assert select.select([other.socket], [], [], 0.3)[0] == []
    go.touch()
    assert other.read() == b"$3\r\nend\r\n"


@pytest.mark.parametrize("place", ["script", "step"])
def test_writes_of_a_block_are_one_transaction(start_server, place):
    server = start_server(args=["--appendonly", "yes", "--appendfsync", "always"])
    block = "with atomic():\n    execute('SET', 'a', 1)\n    execute('INCR', 'b')\n    execute('GET', 'a')"
    {"script": in_script, "step": in_step}[place](server, block)

    def transactions():
        data = b"".join(path.read_bytes() for path in server.dir.rglob("*.aof") if ".base." not in path.name)
        words = [word.decode().lower() for word in re.findall(rb"\$\d+\r\n([^\r]*)\r\n", data)]
        found = re.findall(r"(?<=\bmulti ).*?(?= exec\b)", " ".join(words))
        return [text.replace("select 0 ", "") for text in found]

    wait_until(lambda: any("set a 1 incr b" in text for text in transactions()))


@pytest.mark.parametrize("place", ["script", "step", "thread"])
def test_a_leaked_block_does_not_hold_the_server(server, place):
    leak = "atomic().__enter__()\nexecute('SET', 'leaked', 1)"
    if place == "thread":
        indented = leak.replace("\n", "\n    ")
        server.run(f"import threading\ndef leak():\n    {indented}\nthreading.Thread(target=leak).start()")
    else:
        {"script": in_script, "step": in_step}[place](server, leak)
    wait_until(lambda: server.own.get("leaked") == "1")
    assert server.raw().call("SET", "k", "v") == b"+OK\r\n"
    assert in_step(server, "with atomic():\n    return execute('GET', 'k')") == "v"
    assert in_script(server, "return [isInAtomicBlock(), execute('GET', 'k')]") == [False, "v"]


# --- threads of the user ---


def test_threads_need_no_registration(server):
    server.run(
        """
        from threading import Thread
        def work():
            execute('SET', 'plain', execute('PING'))
            with atomic():
                execute('SET', 'inside', str(isInAtomicBlock()))
            log('from a thread')
            execute('SET', 'tag', hashtag() + str(isInAtomicBlock()) + str(configGet('nothing')))
            try:
                execute('GET')
            except redisgears.GearsError as error:
                execute('SET', 'error', str(error))
        Thread(target=work).start()
        """
    )
    client = server.client()
    assert wait_until(lambda: client.get("error")) == "ERR wrong number of arguments for 'get' command"
    assert client.mget("plain", "inside", "tag") == ["PONG", "True", "06SFalseNone"]
    wait_until(lambda: "GEARS: from a thread" in server.log())


def test_threads_do_not_deadlock_the_server(server):
    server.run(
        """
        from threading import Thread
        def work(name):
            while not execute('GET', 'stop'):
                execute('INCR', name)
                with atomic():
                    execute('INCR', 'all')
            execute('INCR', 'ended')
        for index in range(4):
            Thread(target=work, args=(f'thread{index}',)).start()
        GB('KeysReader').foreach(lambda record: execute('INCR', 'events')).register('event*', mode='sync')
        """
    )
    client = server.client()
    for index in range(100):
        assert in_script(server, "return execute('PING')") == "PONG"
        assert in_step(server, "return execute('PING')") == "PONG"
        client.set(f"event{index}", 1)
    wait_until(lambda: all(int(client.get(f"thread{index}") or 0) > 20 for index in range(4)))
    client.set("stop", 1)
    wait_until(lambda: client.get("ended") == "4")
    assert client.get("events") == "100"


# --- log, hashtag, configuration ---


def test_log_levels(start_server):
    server = start_server(args=["--loglevel", "debug"])
    levels = {"debug": r"\.", "verbose": "-", "notice": r"\*", "warning": "#"}
    for level in levels:
        in_step(server, f"log('line of {level} %s%n', level='{level}')")
    in_script(server, "log('line of default')")
    for level, mark in [*levels.items(), ("default", levels["notice"])]:
        wait_until(lambda: re.search(rf" {mark} .*GEARS: line of {level}", server.log()), message=level)
    assert "GEARS: line of notice %s%n" in server.log()


def test_the_old_form_of_log(server, probe):
    probe("log('warning', 'the text')")
    wait_until(lambda: re.search(" # .*GEARS: the text", server.log()))
    assert "Specify log level as the first argument to log function is depricated" in server.log()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("log", "log function must get a log message as input"),
        ("log, 'a', 'b', 'c'", "log function must get a log message as input"),
        ("log, 1", "Log message must be a string"),
        ("log, 'x', level=1", "Log level must be a sting (debug/verbose/notice/warning)"),
        ("configGet", "get_config function must get a single key input"),
        ("configGet, 1", "get_config key must be a string"),
    ],
)
def test_errors_of_log_and_config_get(probe, call, error):
    assert caught(probe, call) == f"gears.error: {error}"


def test_an_unknown_log_level(probe):
    expected = "gears.error: Log level should be one of the following : debug,verbose,notice,warning"
    assert " ".join(caught(probe, "log, 'x', level='loud'").split()) == expected


def test_hashtag(probe):
    assert probe("return hashtag(), hashtag(1, 2)") == ("06S", "06S")


@pytest.mark.parametrize("where", [in_script, in_step])
def test_config_get(start_server, where):
    server = start_server(module_args=["region", "eu", "PythonAttemptTraceback", "1"])
    server.client().execute_command("RG.CONFIGSET", "zone", "7")
    body = "return [configGet(key) for key in ('region', 'PythonAttemptTraceback', 'zone', 'Region', 'nothing')]"
    assert where(server, body) == ["eu", "1", "7", None, None]
    body = "return [gearsConfigGet('region', 'x'), gearsConfigGet('nothing', 5), gearsConfigGet('nothing')]"
    assert where(server, body) == ["eu", 5, None]

@pytest.mark.parametrize("what", ["execute('SET', 'x', i)", "block(i)"])
def test_functions_wait_while_clients_are_paused(start_server: Callable[..., Server], what: str) -> None:
    """As in a failover: the server counts on nothing being written then."""
    server = start_server(args=["--appendonly", "yes", "--appendfsync", "always"])
    script = f"""
    import time
    def block(i):
        with atomic():
            execute('SET', 'x', i)
            execute('INCR', 'y')
    def write(words):
        i = 0
        while not execute('EXISTS', 'stop'):
            i += 1
            {what}
            time.sleep(0.001)
    GB('CommandReader').map(write).register(trigger='write', mode='async_local')
    """
    assert server.run(script) == "OK"
    raw, client = server.raw(), server.client()
    raw.send("RG.TRIGGER", "write")
    wait_until(lambda: client.get("x"))
    for _ in range(5):
        client.execute_command("CLIENT", "PAUSE", 10000, "WRITE")
        during = client.get("x")
        assert {client.get("x") for _ in range(100)} == {during}
        client.execute_command("CLIENT", "UNPAUSE")
        wait_until(lambda: client.get("x") != during)
    client.set("stop", 1)
    assert raw.read().startswith(b"*1")
    last = client.get("x")
    server.restart(kill=True)
    assert server.client().get("x") == last


@pytest.mark.parametrize("words", [["GETDEL"], ["GETSET", "x"]], ids=" ".join)
def test_another_type_is_told_while_the_keyspace_is_watched(server: Server, words: list[str]) -> None:
    """Valkey 8.1 to 9.1 gives modules an empty reply here: a client whose command is linked waited for ever."""
    server.run("""
        GB('KeysReader').register(prefix='watched*', commands=['getdel', 'getset'])
        GB('CommandReader').map(lambda command: execute(*command[1:])).register(trigger='run', mode='sync')
        write_behind('saved:*', lambda changes: None, wait=True)
    """ if server.version >= (7, 0) else """
        GB('KeysReader').register(prefix='watched*', commands=['getdel', 'getset'])
        GB('CommandReader').map(lambda command: execute(*command[1:])).register(trigger='run', mode='sync')
    """)
    client = server.client()
    name, *rest = words
    for key in ("watched", "saved:1", "other"):
        client.rpush(key, "v")
        raw = server.raw(timeout=10)
        assert raw.call(name, key, *rest).startswith(b"-WRONGTYPE ")
        assert raw.call("LRANGE", key, "0", "-1") == b"*1\r\n$1\r\nv\r\n", "the next reply is its own"
        assert raw.call("RG.TRIGGER", "run", name, key, *rest).startswith(b"-"), key
        assert raw.call("RG.TRIGGER", "run", "LLEN", key) == b"*1\r\n$1\r\n1\r\n"
