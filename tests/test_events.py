"""Which events start executions of a KeysReader registration, and what their records hold.

Contract: docs/contract/readers-and-events.md 1.5, 2.3 to 2.5, 9, 11.2 and 12.
"""

from __future__ import annotations

import ast
from typing import Any, Callable

import pytest
import redis

from helpers import Server, wait_until
from probes import error_of, triggered

MODES = ["sync", "async_local", "async"]


def record(server: Server, arguments: str = "", mode: str = "async_local", step: str = "") -> None:
    """Notes each record in the server's log, where no event can come from it."""
    script = f"GB('KeysReader'){step}.foreach(lambda r: log('record ' + repr(r))).register({arguments}mode='{mode}')"
    assert server.run(script) == "OK"


def records(server: Server, key: str = "", idle: bool = True) -> list[Any]:
    """The records noted so far, those of one key if it is given."""
    if idle:
        server.wait_idle()
    noted = [line.partition("GEARS: record ")[2] for line in server.log().splitlines() if "GEARS: record " in line]
    values = [ast.literal_eval(text.replace("bytearray(", "(")) for text in noted]
    return [value for value in values if not key or value["key"] == key]


def events(server: Server, key: str = "") -> list[str]:
    return [value["event"] for value in records(server, key)]


@pytest.mark.parametrize("mode", MODES)
def test_names_of_events(server: Server, mode: str) -> None:
    record(server, mode=mode)
    client = server.client()
    client.set("k", "v", ex=100)
    client.incr("n")
    client.rename("k", "renamed")
    client.copy("renamed", "copied")
    client.hset("h", "f", "v")
    client.hdel("h", "f")
    client.rpush("l", "a")
    client.xadd("s", {"f": "v"})
    client.delete("n", "no")
    client.persist("renamed")
    client.get("missing")
    client.set("missing", "x", xx=True)  # changes nothing
    # In the background the events of different keys run in parallel.
    found = events(server)
    expected = [
        "set", "expire", "incrby", "rename_from", "rename_to", "copy_to", "hset", "hdel", "del", "rpush", "xadd", "del",
        "persist", "keymiss",
    ]  # fmt: skip
    assert found == expected if mode == "sync" else sorted(found) == sorted(expected)


def test_flush_reports_nothing(server: Server) -> None:
    server.client().set("k", "v")
    record(server)
    server.client().flushdb()
    server.client().flushall()
    assert triggered(server) == [0]


def test_every_read_of_a_missing_key_is_a_miss(server: Server) -> None:
    record(server, "eventTypes=['keymiss'], ", "sync")  # in the background keys run in parallel
    client = server.client()
    for command in (["GET", "k"], ["HGET", "k", "f"], ["EXISTS", "k"], ["TTL", "k"], ["STRLEN", "k"], ["TYPE", "k"]):
        client.execute_command(*command)
    client.mget("a", "b")
    client.delete("k")
    assert events(server, "k") == ["keymiss"] * 6
    assert sorted(r["key"] for r in records(server) if r["key"] != "k") == ["a", "b"]
    assert records(server, "k")[0] == {"key": "k", "event": "keymiss", "type": "empty", "value": None}


def test_an_expired_key_is_reported_before_its_miss(server: Server) -> None:
    client = server.client()
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    client.set("k", "v", px=1)
    record(server)
    wait_until(lambda: client.execute_command("DEBUG", "OBJECT", "k") and client.info("server"))
    wait_until(lambda: client.get("k") is None)
    assert events(server, "k")[:2] == ["expired", "keymiss"]


@pytest.mark.parametrize(
    ("prefix", "fires", "silent"),
    [
        ("*", ["a", "user:"], []),
        ("user:*", ["user:", "user:7"], ["user", "xuser:7"]),
        ("user:1", ["user:1"], ["user:12", "user:"]),
        ("a**", ["a*b"], ["ab"]),
        ("[ab]*", ["[ab]c"], ["ac"]),
        ("a?", ["a?"], ["ab"]),
    ],
)
def test_the_prefix_rule(server: Server, prefix: str, fires: list[str], silent: list[str]) -> None:
    record(server, f"prefix='{prefix}', ", "sync")
    for key in fires + silent:
        server.client().set(key, "v")
    assert [r["key"] for r in records(server)] == fires


def test_regex_is_the_old_name_and_takes_precedence(server: Server) -> None:
    record(server, "prefix='a*', regex='b*', ")
    assert "Using regex argument with register is deprecated and missleading, use prefix instead." in server.log()
    server.client().mset({"a1": "v", "b1": "v"})
    assert [r["key"] for r in records(server)] == ["b1"]


def test_event_types_in_any_letter_case(server: Server) -> None:
    record(server, "eventTypes=['SeT', 'nosuch'], ")
    server.client().set("k", "v", ex=10)
    assert events(server) == ["set"]


@pytest.mark.parametrize(
    ("expected", "commands"),
    [
        ("set append incrby setrange", "SET k v; APPEND k v; INCR n; SETRANGE k 0 w"),
        ("lpush rpush lset ltrim lrem lpop rpop", "LPUSH l a; RPUSH l b c; LSET l 0 x; LTRIM l 0 2; LREM l 0 b; LPOP l; RPOP l"),
        ("sadd srem spop sadd sunionstore", "SADD s a b; SREM s a; SPOP s; SADD s a; SUNIONSTORE t s"),
        ("hset hincrby hincrbyfloat hdel", "HSET h f 1; HINCRBY h f 1; HINCRBYFLOAT h f 0.5; HDEL h f"),
        ("zadd zincr zrem", "ZADD z 1 m; ZINCRBY z 1 m; ZREM z m"),
        ("xadd", "XADD x * f v"),
        ("expire persist rename_from del", "SET k v; EXPIRE k 9; PERSIST k; RENAME k m; DEL m"),
        ("expired", "SET k v PX 1"),
        ("evicted", "SET k v; CONFIG SET maxmemory-policy allkeys-random; CONFIG SET maxmemory 1"),
    ],
)
def test_each_class_of_events_by_itself(server: Server, expected: str, commands: str) -> None:
    """The server is asked for no other class. A later registration that wants all of them makes no event come twice."""
    names = sorted(set(expected.split()))
    record(server, f"eventTypes={names}, ", mode="sync")
    client = server.client()

    def happen() -> None:
        for command in commands.split("; "):
            client.execute_command(*command.split())
        if expected in ("expired", "evicted"):
            client.config_set("maxmemory", 0)
            wait_until(lambda: not client.exists("k"), message="the key is gone")

    happen()
    assert events(server) == expected.split()
    client.flushall()
    record(server, "eventTypes=['no such event'], ")
    happen()
    assert events(server) == expected.split() * 2
    assert triggered(server) == [2 * len(expected.split()), 0]


def test_key_types(server: Server) -> None:
    for kinds in (["hash", "list"], ["empty"], ["stream"], []):
        record(server, f"prefix='k*', keyTypes={kinds}, ")
    client = server.client()
    client.hset("k1", "f", "v")
    client.rpush("k2", "a")
    client.set("k3", "v")
    client.xadd("k4", {"f": "v"})
    client.delete("k1")
    client.get("k5")
    server.wait_idle()
    assert triggered(server) == [2, 2, 1, 0]
    shown = [entry["RegistrationData"]["args"]["keyTypes"] for entry in server.registrations()]
    assert shown == [["hash", "list"], ["empty"], ["stream"], []]


@pytest.mark.parametrize("argument", ["eventTypes=[]", "keyTypes=()"])
def test_lists_that_match_nothing(server: Server, argument: str) -> None:
    record(server, f"{argument}, ")
    server.client().set("k", "v")
    assert triggered(server) == [0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("prefix=1", "regex argument must be a string"),
        ("prefix=''", "prefix argument must not be empty"),
        ("regex=b'x'", "regex argument must be a string"),
        ("eventTypes=1", "given eventTypes is not iterable"),
        ("eventTypes=[1]", "given event type is not string"),
        ("keyTypes=1", "given keyTypes is not iterable"),
        ("keyTypes=[b'string']", "given key type is not string"),
        ("keyTypes=['String']", "unknown key type"),
        ("readValue=1", "readValue is not boolean"),
        ("readValue=None", "readValue is not boolean"),
        ("commands=1", "given commands is not iterable"),
        ("commands=[1]", "given command type is not string"),
        ("mode=None", "execution mode must be a string"),
        ("mode='later'", "unknown execution mode: expected sync, async_local or async, got later"),
        ("inorder=1", "inorder argument must be boolean"),
        # The first wrong one is named.
        ("commands=1, readValue=1, keyTypes=1, eventTypes=1, prefix=1", "regex argument must be a string"),
        ("commands=1, readValue=1, keyTypes=1, eventTypes=1", "given eventTypes is not iterable"),
        ("commands=1, readValue=1, keyTypes=['x']", "unknown key type"),
        ("commands=1, readValue=1", "readValue is not boolean"),
        ("onRegistered=1, prefix=1", "OnRegistered argument must be a function"),
        ("mode='x', onRegistered=1", "unknown execution mode: expected sync, async_local or async, got x"),
    ],
)
def test_wrong_arguments(server: Server, arguments: str, text: str) -> None:
    assert error_of(server, f"GB('KeysReader').register({arguments})").endswith(f"'gears.error: {text}\\n']")
    assert server.registrations() == []


def test_without_reading_the_value(server: Server) -> None:
    record(server, "readValue=False, ")
    server.client().set("k", "v")
    assert records(server) == [{"key": "k", "event": "set"}]


def test_sync_functions_see_the_moment_of_the_event(server: Server) -> None:
    record(server, "prefix='l', ", "sync")
    client = server.client()
    client.rpush("l", "a")
    client.rpop("l")
    assert [(r["event"], r["type"], r["value"]) for r in records(server)] == [
        ("rpush", "list", ["a"]),
        ("rpop", "list", []),
        ("del", "empty", None),
    ]


def test_values_of_all_types(server: Server) -> None:
    record(server, mode="sync")
    client = server.client()
    client.set("string", "7")
    client.rpush("list", "a", b"\xff")
    client.hset("hash", "f", "v")
    client.sadd("set", "a")
    client.zadd("zset", {"a": 1})
    client.xadd("stream", {"f": "v"})
    assert [(r["key"], r["type"], r["value"]) for r in records(server)] == [
        ("string", "string", "7"),
        ("list", "list", ["a", b"\xff"]),
        ("hash", "hash", {"f": "v"}),
        ("set", "set", None),
        ("zset", "zset", None),
        ("stream", "unknown", None),
    ]


def test_a_key_that_went_is_empty(server: Server) -> None:
    client = server.client()
    client.mset({"gone": "v", "evicted": "v"})
    record(server, mode="sync")
    client.rename("gone", "there")
    client.unlink("there")
    client.config_set("maxmemory-policy", "allkeys-random")
    client.config_set("maxmemory", "1")
    wait_until(lambda: client.dbsize() == 0)
    client.config_set("maxmemory", "0")
    assert [(r["key"], r["event"], r["type"]) for r in records(server)] == [
        ("gone", "rename_from", "empty"),
        ("there", "rename_to", "string"),
        ("there", "del", "empty"),
        ("evicted", "evicted", "empty"),
    ]


def test_background_functions_see_the_moment_they_run(server: Server) -> None:
    server.run("""
        import time

        def wait(record):
            while not execute('EXISTS', 'go'):
                time.sleep(0.001)
            log('record ' + repr(record))

        GB('KeysReader').foreach(wait).register(prefix='k', eventTypes=['set', 'del'], mode='async_local')
    """)
    client = server.client()
    for command in (["SET", "k", "a"], ["SET", "k", "b"], ["DEL", "k"], ["SET", "go", "1"]):
        client.execute_command(*command)
    found = records(server)
    assert [r["event"] for r in found] == ["set", "set", "del"]
    assert [r["value"] for r in found[1:]] == [None, None]


def test_keys_and_values_are_binary_safe(server: Server) -> None:
    record(server, "prefix='a\\0*', ", "sync")
    client = server.client()
    client.set(b"a\0b", b"x\0y")
    client.set(b"a\0\xff", b"\xfe")
    client.set("a", "no")
    assert [(r["key"], r["value"]) for r in records(server)] == [("a\0b", "x\0y"), (b"a\0\xff", b"\xfe")]


@pytest.mark.parametrize("mode", MODES)
def test_the_events_database_is_that_of_record_and_execute(server: Server, mode: str) -> None:
    server.run(f"""
        GB('KeysReader').foreach(lambda r: execute('SET', 'seen', r['value'])).register(
            prefix='k', eventTypes=['set'], mode='{mode}')
    """)
    zero, three = server.client(), server.client(db=3)
    zero.set("k", "zero")
    server.wait_idle()
    three.set("k", "three")
    server.wait_idle()
    assert (zero.get("seen"), three.get("seen")) == ("zero", "three")


def test_events_of_transactions_and_scripts(server: Server) -> None:
    record(server)
    client = server.client()
    pipe = client.pipeline(transaction=True)
    pipe.set("m", "1").get("missing").execute()
    client.eval("redis.call('SET', 'l', '1')", 0)
    assert sorted(r["key"] for r in records(server)) == ["l", "m", "missing"]


def test_what_a_sync_function_does_fires_nothing(server: Server) -> None:
    record(server, "prefix='w*', ")
    server.run("GB('KeysReader').foreach(lambda r: execute('SET', 'w', '1')).register(prefix='k', mode='sync')")
    server.client().set("k", "v")
    assert (server.client().get("w"), records(server)) == ("1", [])


def test_what_a_background_function_does_fires_also_itself(server: Server) -> None:
    server.run("""
        def count(record):
            if int(record['value']) < 5:
                execute('INCR', 'n')

        GB('KeysReader').foreach(count).register(prefix='n', eventTypes=['set', 'incrby'], mode='async_local')
    """)
    server.client().set("n", "0")
    wait_until(lambda: server.own.get("n") == "5")
    server.wait_idle()
    assert triggered(server) == [6]


def test_scripts_and_runs_fire(server: Server) -> None:
    record(server)
    server.run("execute('SET', 'script', '1')")
    server.run("GB('KeysReader').foreach(lambda r: execute('SET', 'run', '1')).run('script', noScan=True)")
    assert sorted(r["key"] for r in records(server)) == ["run", "script"]


ORDER = """
import time

def work(record):
    while record['key'] == 'k:slow' and not execute('EXISTS', 'go'):
        time.sleep(0.001)
    log('record ' + repr(record['key']))

GB('KeysReader').foreach(work).register(prefix='k:*', eventTypes=['keymiss'], mode='async_local'{more})
"""


def test_keys_in_parallel(server: Server) -> None:
    server.run(ORDER.format(more=""))
    for key in ("k:slow", "k:quick"):
        server.client().get(key)
    wait_until(lambda: records(server, idle=False) == ["k:quick"])
    server.client().set("go", "1")
    assert records(server) == ["k:quick", "k:slow"]


def test_inorder_is_the_order_of_all_events(server: Server) -> None:
    server.run(ORDER.format(more=", inorder=True"))
    for key in ("k:slow", "k:quick", "k:quicker"):
        server.client().get(key)
    server.client().set("go", "1")
    assert records(server) == ["k:slow", "k:quick", "k:quicker"]


def test_events_of_one_key_keep_their_order(server: Server) -> None:
    server.run("""
        GB('KeysReader').foreach(lambda r: execute('RPUSH', 'seen', r['value'])).register(
            prefix='k', eventTypes=['append'], mode='async_local')
    """)
    client = server.client()
    pipe = client.pipeline(transaction=False)
    for _ in range(300):
        pipe.append("k", "x")
    pipe.execute()
    server.wait_idle()
    lengths = [len(value) for value in client.lrange("seen", 0, -1)]
    assert len(lengths) == 300 and lengths == sorted(lengths)


def test_not_on_replicas_and_not_while_loading(start_server: Callable[..., Server]) -> None:
    master, replica = start_server(), start_server()
    record(master)
    client = replica.client()
    client.execute_command("REPLICAOF", master.host, master.port)
    wait_until(lambda: client.info("replication")["master_link_status"] == "up")
    master.client().set("k", "v")
    wait_until(lambda: client.get("k") == "v")
    client.get("missing")
    assert triggered(replica) == [0]
    client.execute_command("REPLICAOF", "NO", "ONE")
    client.execute_command("DEBUG", "RELOAD")
    assert triggered(replica) == [0]
    client.get("missing")
    assert events(replica) == ["keymiss"]


def test_counters(server: Server) -> None:
    server.run("""
        def work(record):
            if record['key'] == 'bad':
                raise ValueError('bad')

        GB('KeysReader').foreach(work).register(eventTypes=['set'], mode='async_local')
    """)
    client = server.client()
    counts = lambda: {k: v for k, v in server.registrations()[0]["RegistrationData"].items() if k.startswith("num")}
    client.set("bad", "v")
    server.wait_idle()
    assert "ValueError: bad" in server.registrations()[0]["RegistrationData"]["lastError"]
    client.set("good", "v")
    server.wait_idle()
    assert server.registrations()[0]["RegistrationData"]["lastError"] is None
    assert counts() == {"numTriggered": 2, "numSuccess": 1, "numFailures": 1, "numAborted": 0}


def test_several_registrations_fire_in_their_order(server: Server) -> None:
    for number in range(3):
        server.run(f"GB('KeysReader').foreach(lambda r: log('record {number}')).register(prefix='k', mode='sync')")
    server.client().set("k", "v")
    assert records(server) == [0, 1, 2]


def test_a_sync_function_that_unregisters_itself(server: Server) -> None:
    server.run("""
        def once(record):
            execute('RG.UNREGISTER', execute('RG.DUMPREGISTRATIONS')[0][1])

        GB('KeysReader').foreach(once).register(mode='sync')
    """)
    server.client().set("k", "v")
    assert server.registrations() == []


@pytest.mark.parametrize("mode", MODES)
def test_a_coroutine_is_awaited(server: Server, mode: str) -> None:
    server.run(f"""
        import asyncio

        async def later(record):
            await asyncio.sleep(0.01)
            execute('SET', 'seen', record['key'])

        GB('KeysReader').map(later).register(prefix='k', mode='{mode}')
    """)
    server.client().set("k", "v")
    server.wait_idle()
    assert server.client().get("seen") == "k"
    assert server.registrations()[0]["RegistrationData"]["numSuccess"] == 1


def test_a_function_registered_inside_a_function(server: Server) -> None:
    server.run("""
        def register(record):
            GB('KeysReader').foreach(lambda r: log('record ' + repr(r['key']))).register(prefix='new', mode='sync')

        GB('KeysReader').foreach(register).register(prefix='k', mode='async_local')
    """)
    server.client().set("k", "v")
    server.wait_idle()
    assert len(server.registrations()) == 2
    server.client().set("new", "v")
    assert records(server) == ["new"]


def test_a_server_in_the_middle_of_events_stops_well(server: Server) -> None:
    server.run("GB('KeysReader').foreach(lambda r: sum(range(100000))).register(mode='async_local')")
    client = server.client()
    pipe = client.pipeline(transaction=False)
    for number in range(500):
        pipe.set(f"k{number}", "v")
    pipe.execute()
    with pytest.raises(redis.ConnectionError):
        client.shutdown(nosave=True)
        client.ping()
    assert server.wait_exit(20) == 0
