"""What a `sync` KeysReader function writes: master, replica and AOF file agree, whoever caused the event, and callers see it.

Contract: docs/contract/readers-and-events.md 1.4, 2.5, 9, 10.6 and 12 (what replicas see, and when).
"""

from __future__ import annotations

from typing import Any, Callable

import pytest

from helpers import Server, wait_until
from test_replication import AOF, attach, caught_up

pytestmark = pytest.mark.matrix

# What the function does to the key of the event; {} is the key.
ACTIONS = {
    "append": "execute('APPEND', key, '!') if execute('TYPE', key) in ('string', 'none') else execute('RPUSH', key, '!')",
    "del": "execute('DEL', key)",
    "set": "execute('SET', key, 'by function')",
    "expire": "execute('EXPIRE', key, '1000')",
    "rename": "execute('EXISTS', key) and execute('RENAME', key, 'moved:' + key)",
}
# Event: what is there before, and the command that causes it. Each caller has a key of its own.
EVENTS = {
    "set": ([], ["SET", "{key}", "v"]),
    "append": ([["SET", "{key}", "v"]], ["APPEND", "{key}", "w"]),
    "expire": ([["SET", "{key}", "v"]], ["EXPIRE", "{key}", "500"]),
    "del": ([["SET", "{key}", "v"]], ["DEL", "other:{key}", "{key}"]),
    "rename_from": ([["SET", "{key}", "v"]], ["RENAME", "{key}", "to:{key}"]),
    "rename_to": ([["SET", "from:{key}", "v"]], ["RENAME", "from:{key}", "{key}"]),
    "rpush": ([], ["RPUSH", "{key}", "a", "b"]),
    "lpop": ([["RPUSH", "{key}", "a"]], ["LPOP", "{key}"]),
    "copy_to": ([["SET", "from:{key}", "v"]], ["COPY", "from:{key}", "{key}"]),
    # The value that the command writes was computed without what the function stores.
    "keymiss": ([["SADD", "b:{key}", "m"]], ["SUNIONSTORE", "dst:{key}", "{key}", "b:{key}"]),
}
CALLERS = ["plain", "transaction", "script", "function", "background", "hook"]

CALLER_FUNCTIONS = """
GB('CommandReader').map(lambda words: execute(*words[1:])).register(trigger='run', mode='sync')
GB('CommandReader').map(lambda words: execute(*words[1:])).register(trigger='background', mode='async_local')
GB('CommandReader').map(lambda words: execute(*words[1].split('|'))).register(hook='echo', mode='sync')
"""


def pair(start_server: Callable[..., Server]) -> tuple[Server, Server]:
    master, replica = start_server(args=AOF), start_server()
    attach(replica, master)
    return master, replica


def values(server: Server) -> dict[str, Any]:
    """All keys, with what is in them and whether they have a time to live."""
    client = server.client()
    found: dict[str, Any] = {}
    for key in sorted(client.keys("*")):
        kind = client.type(key)
        if kind == "string":
            value: Any = client.get(key)
        elif kind == "list":
            value = client.lrange(key, 0, -1)
        elif kind == "hash":
            value = client.hgetall(key)
        elif kind == "set":
            value = sorted(client.smembers(key))
        else:
            value = kind
        found[key] = (value, client.ttl(key) > 0)
    return found


def assert_agreement(master: Server, replica: Server) -> dict[str, Any]:
    """Master, replica and a server that reads the AOF file have the same data."""
    master.wait_idle()
    caught_up(master, replica)
    there = values(master)
    assert values(replica) == there, "the replica differs"
    digest = master.client().execute_command("DEBUG", "DIGEST")
    assert replica.client().execute_command("DEBUG", "DIGEST") == digest
    master.restart(kill=True)
    assert values(master) == there, "the AOF file differs"
    return there


def cause(server: Server, caller: str, command: list[str]) -> None:
    client = server.client()
    if caller == "plain":
        client.execute_command(*command)
    elif caller == "transaction":
        pipe = client.pipeline(transaction=True)
        pipe.execute_command("SET", "first", "1").execute_command(*command)
        pipe.execute_command("SET", "last", "1").execute()
    elif caller == "script":
        body = "redis.call('SET', 'first', '1') redis.call(unpack(ARGV)) redis.call('SET', 'last', '1')"
        client.eval(body, 0, *command)
    elif caller == "function":
        client.execute_command("RG.TRIGGER", "run", *command)
    elif caller == "background":
        client.execute_command("RG.TRIGGER", "background", *command)
    else:
        client.execute_command("ECHO", "|".join(command))


@pytest.mark.parametrize("action", ACTIONS)
def test_master_replica_and_aof_file_agree(start_server: Callable[..., Server], action: str) -> None:
    master, replica = pair(start_server)
    master.run(CALLER_FUNCTIONS)
    for event, (before, _) in EVENTS.items():
        for caller in CALLERS:
            for words in before:
                key = f"{event}:{caller}"
                master.client().execute_command(*[word.format(key=key) for word in words])
    for event in EVENTS:
        master.run(f"""
            def act(record):
                key = record['key']
                {ACTIONS[action]}

            GB('KeysReader').foreach(act).register('{event}:*', mode='sync', eventTypes=['{event}'])
        """)
    for event, (_, words) in EVENTS.items():
        for caller in CALLERS:
            cause(master, caller, [word.format(key=f"{event}:{caller}") for word in words])
    counts = [entry["RegistrationData"] for entry in master.registrations()][3:]
    assert [(count["numTriggered"], count["numFailures"]) for count in counts] == [(len(CALLERS), 0)] * len(EVENTS)
    there = assert_agreement(master, replica)
    set_by = {
        "append": ("v!", False),
        "del": None,
        "set": ("by function", False),
        "expire": ("v", True),
        "rename": None,
    }
    for caller in CALLERS:
        assert there.get(f"set:{caller}") == set_by[action]
    if action == "rename":
        assert there["moved:set:plain"] == ("v", False)


@pytest.mark.parametrize("action", ["set", "del", "append"])
@pytest.mark.parametrize("active", [True, False], ids=["active", "lazy"])
def test_expired_keys(start_server: Callable[..., Server], action: str, active: bool) -> None:
    master, replica = pair(start_server)
    client = master.client()
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", int(active))
    master.run(f"""
        def act(record):
            key = record['key']
            {ACTIONS[action]}
            execute('INCR', 'runs')

        GB('KeysReader').foreach(act).register('e:*', mode='sync', eventTypes=['expired'])
    """)
    for number in range(20):
        client.set(f"e:{number}", "old", px=1)
    if not active:
        wait_until(lambda: all(client.exists(f"e:{number}") == (action != "del") for number in range(20)))
    wait_until(lambda: client.get("runs") == "20")
    there = assert_agreement(master, replica)
    new = {"set": ("by function", False), "append": ("!", False), "del": None}[action]
    assert [there.get(f"e:{number}") for number in range(20)] == [new] * 20


def test_evicted_keys(start_server: Callable[..., Server]) -> None:
    master, replica = pair(start_server)
    client = master.client()
    master.run("""
        def act(record):
            execute('SET', 'again:' + record['key'], '1')

        GB('KeysReader').foreach(act).register('v:*', mode='sync', eventTypes=['evicted'])
    """)
    for number in range(20):
        client.set(f"v:{number}", "x" * 1000, ex=1000)
    client.config_set("maxmemory-policy", "volatile-ttl")
    # So little that all that may be evicted is.
    client.config_set("maxmemory", "1")
    wait_until(lambda: not client.keys("v:*"))
    client.config_set("maxmemory", "0")
    client.set("end", "1")
    assert_agreement(master, replica)


def test_several_keys_and_databases(start_server: Callable[..., Server]) -> None:
    master, replica = pair(start_server)
    master.run("""
        GB('KeysReader').foreach(lambda r: execute('SET', 'k:2', 'by function')).register('k:1', mode='sync', eventTypes=['set'])
        GB('KeysReader').foreach(lambda r: execute('HSET', 'all', r['key'], r['value'])).register('k:*', mode='sync',
            eventTypes=['set'])
    """)
    client, third = master.client(), master.client(db=3)
    client.mset({"k:1": "1", "k:2": "by client", "k:3": "3"})
    third.mset({"k:1": "one", "k:2": "two"})
    pipe = third.pipeline(transaction=True)
    pipe.set("k:5", "5").set("k:5", "6").delete("k:5").execute()
    # Each record has the value of its own event.
    assert third.hgetall("all") == {"k:1": "one", "k:2": "two", "k:5": "6"}
    there = assert_agreement(master, replica)
    assert (there["k:2"], there["all"][0]["k:2"]) == (("by function", False), "by client")
    assert replica.client(db=3).hgetall("all") == third.hgetall("all") == master.client(db=3).hgetall("all")


def test_clients_that_waited_for_a_key(start_server: Callable[..., Server]) -> None:
    master, replica = pair(start_server)
    master.run("""
        GB('KeysReader').foreach(lambda r: execute('RPUSH', r['key'], r['event'])).register('q', mode='sync',
            eventTypes=['lpop'])
    """)
    waiting = master.raw()
    waiting.send("BLPOP", "q", "0")
    wait_until(lambda: master.own.info("clients")["blocked_clients"] == 1)
    master.client().rpush("q", "a")
    assert waiting.read() == b"*2\r\n$1\r\nq\r\n$1\r\na\r\n"
    assert assert_agreement(master, replica) == {"q": (["lpop"], False)}


def test_the_next_command_sees_what_the_function_did(server: Server) -> None:
    server.run(CALLER_FUNCTIONS)
    server.run("""
        GB('KeysReader').foreach(lambda r: execute('APPEND', r['key'], '!')).register('a:*', mode='sync', eventTypes=['set'])

        def both(words):
            execute('SET', 'a:function', 'v')
            return execute('GET', 'a:function')

        GB('CommandReader').map(both).register(trigger='both', mode='sync')
        GB('CommandReader').map(both).register(trigger='both-background', mode='async_local')
    """)
    client = server.client()
    pipe = client.pipeline(transaction=False)
    for number in range(100):
        pipe.set(f"a:{number}", "v").get(f"a:{number}")
    assert pipe.execute() == [True, "v!"] * 100
    assert client.execute_command("RG.TRIGGER", "both") == ["v!"]
    assert client.execute_command("RG.TRIGGER", "both-background") == ["v!"]
    assert client.eval("redis.call('SET', 'a:s', 'v') return redis.call('GET', 'a:s')", 0) == "v!"
    pipe = client.pipeline(transaction=True)
    pipe.set("a:t", "v").execute()
    assert client.get("a:t") == "v!"


def test_a_linked_write_has_its_reply_replaced(start_server: Callable[..., Server]) -> None:
    master, replica = pair(start_server)
    master.run("""
        def act(record):
            execute('APPEND', record['key'], '!')
            override_reply('stored ' + ' '.join(get_command()))

        GB('KeysReader').foreach(act).register('l:*', mode='sync', eventTypes=['set'], commands=['set'])
        GB('CommandReader').map(lambda words: execute('SET', words[1], 'v')).register(trigger='set', mode='sync')
    """)
    client = master.client()
    raw = master.raw()
    assert raw.call("SET", "l:plain", "v") == b"$20\r\nstored SET l:plain v\r\n"
    assert [raw.call("MULTI"), raw.call("SET", "l:multi", "v")] == [b"+OK\r\n", b"+QUEUED\r\n"]
    assert raw.call("EXEC") == b"*1\r\n$20\r\nstored SET l:multi v\r\n"
    assert client.eval("return redis.call('SET', 'l:script', 'v')", 0) == "stored SET l:script v"
    assert client.execute_command("RG.TRIGGER", "set", "l:function") == ["stored SET l:function v"]
    there = assert_agreement(master, replica)
    assert there == {f"l:{caller}": ("v!", False) for caller in ("plain", "multi", "script", "function")}


def test_a_linked_miss_is_answered_by_its_function(start_server: Callable[..., Server]) -> None:
    master, replica = pair(start_server)
    master.run("""
        def load(record):
            execute('SET', record['key'], 'loaded')
            override_reply('loaded')

        GB('KeysReader').foreach(load).register('m:*', mode='sync', eventTypes=['keymiss'], commands=['get', 'mget'])
    """)
    client = master.client()
    assert [client.get("m:1"), client.get("m:1")] == ["loaded", "loaded"]
    pipe = client.pipeline(transaction=True)
    assert pipe.get("m:2").get("m:2").execute() == ["loaded", "loaded"]
    assert client.eval("return {redis.call('GET', 'm:3'), redis.call('GET', 'm:3')}", 0) == ["loaded", "loaded"]
    there = assert_agreement(master, replica)
    assert there == {f"m:{number}": ("loaded", False) for number in (1, 2, 3)}


def test_readers_that_cause_each_other(start_server: Callable[..., Server]) -> None:
    """A KeysReader function fires no KeysReader, but a StreamReader, which does."""
    master, replica = pair(start_server)
    master.run("""
        def changed(record):
            execute('XADD', 's:1', '*', 'key', record['key'])
            execute('SET', 'k:not', 'seen')

        GB('KeysReader').foreach(changed).register('k:*', mode='sync', eventTypes=['set'])

        def entry(record):
            if execute('INCR', 'entries') < 5:
                execute('SET', 'k:2', '1')

        GB('StreamReader').foreach(entry).register('s:*', mode='sync')
    """)
    client = master.client()
    client.set("k:1", "1")
    wait_until(lambda: client.get("entries") == "5")
    counts = [entry["RegistrationData"]["numTriggered"] for entry in master.registrations()]
    assert counts[0] == 5
    master.client().set("end", "1")
    assert_agreement(master, replica)


def test_readers_that_cause_each_other_for_ever_do_not_stop_the_server(server: Server) -> None:
    server.run("""
        def changed(record):
            if not execute('EXISTS', 'stop'):
                execute('XADD', 's:1', '*', 'key', record['key'])

        GB('KeysReader').foreach(changed).register('k:*', mode='sync', eventTypes=['set'])
        GB('StreamReader').foreach(lambda r: execute('SET', 'k:1', '1')).register('s:*', mode='sync')
    """)
    server.client().set("k:1", "1")
    server.client().set("stop", "1")
    server.wait_idle()


def test_what_a_master_loses_when_it_becomes_a_replica(start_server: Callable[..., Server]) -> None:
    """The event of a transaction that ends the master's time runs nothing: the data are another's now."""
    first, second = start_server(), start_server()
    first.run("GB('KeysReader').foreach(lambda r: execute('SET', 'mine', '1')).register('k', mode='sync')")
    raw = first.raw()
    for words in (["MULTI"], ["SET", "k", "1"], ["REPLICAOF", second.host, str(second.port)]):
        raw.call(*words)
    assert raw.call("EXEC") == b"*2\r\n+OK\r\n+OK\r\n"
    assert first.registrations()[0]["RegistrationData"]["numFailures"] == 0


def test_paused_clients(start_server: Callable[..., Server]) -> None:
    """What is left to do when clients are paused is done then, or when they go on."""
    master, replica = pair(start_server)
    master.run("GB('KeysReader').foreach(lambda r: execute('APPEND', r['key'], '!')).register('k', mode='sync', eventTypes=['set'])")
    raw = master.raw()
    for words in (["MULTI"], ["SET", "k", "v"], ["CLIENT", "PAUSE", "300", "WRITE"]):
        raw.call(*words)
    assert raw.call("EXEC") == b"*2\r\n+OK\r\n+OK\r\n"
    client = master.client()
    wait_until(lambda: client.get("k") == "v!")
    client.set("end", "1")
    assert assert_agreement(master, replica)["k"] == ("v!", False)


def test_the_internal_command_is_refused(server: Server) -> None:
    text = b"-ERR this command is internal to the module and cannot be called\r\n"
    assert server.raw().call("RG.INNERAFTER") == text
