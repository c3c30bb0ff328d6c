"""`read_through`: one load for many clients, the client's own command as its reply, which commands wait, kinds of values.
Contract: docs/contract/read-through.md chapters 1 to 3.
"""

from __future__ import annotations

import pytest

from figures import figures
from helpers import Server, wait_until
from read_through import at_rest, register

pytestmark = pytest.mark.matrix

LOADER = """
@read_through('user:*', ttl=300)
def load(key):
    execute('INCR', 'calls')
    return None if 'none' in key else 'value of ' + key

assert load('user:7') == 'value of user:7', 'the decorator returns the function'
execute('DEL', 'calls')
"""


def test_a_missing_value_is_loaded_stored_and_answers(server: Server) -> None:
    server.run(LOADER)
    client = server.client()
    assert client.get("user:1") == "value of user:1"
    assert 290 < client.ttl("user:1") <= 300
    assert client.get("user:1") == "value of user:1"
    assert client.get("user:none") is None
    assert not client.exists("user:none")
    assert client.get("other") is None
    assert client.get("calls") == "2"
    at_rest(server)


def test_a_load_takes_the_server_out_of_its_sleep_once(server: Server) -> None:
    server.run("read_through('user:*', lambda key: key)")
    client, loads = server.client(), 400
    if "eventloop_cycles" not in client.info("stats"):
        pytest.skip("this server does not count the turns of its loop")
    before = client.info("stats")["eventloop_cycles"]
    for number in range(loads):
        assert client.get(f"user:{number}") == f"user:{number}"
    turns = client.info("stats")["eventloop_cycles"] - before
    # One for the command, one for its reply; a few more where the server was still awake when the load had ended.
    assert turns < 2.7 * loads
    at_rest(server)


def test_one_load_for_many_clients_that_send_different_commands(server: Server, source: Server) -> None:
    origin = register(server, source)
    raws = [server.raw() for _ in range(300)]
    for number, raw in enumerate(raws):
        raw.send(*(("GET", "user:1"), ("STRLEN", "user:1"), ("GETRANGE", "user:1", 0, 2))[number % 3])
    origin.wait_for_loads(1)
    wait_until(lambda: figures(server)["waiting"] == 300)
    origin.give("user:1", "four")
    replies = [raw.read() for raw in raws]
    assert replies == [b"$4\r\nfour\r\n", b":4\r\n", b"$3\r\nfou\r\n"] * 100
    assert origin.loads() == 1
    data = figures(server)
    assert (data["misses"], data["loads"], data["loadedKeys"], data["sharedLoads"]) == (300, 1, 1, 299)
    assert data["mode"] == "async_local" and data["numSuccess"] == 1
    at_rest(server)


def test_clients_do_not_wait_for_loads_of_others(server: Server, source: Server) -> None:
    origin = register(server, source)
    slow, client = server.raw(), server.client()
    slow.send("GET", "user:slow")
    origin.wait_for_loads(1)
    origin.give("user:fast", "f")
    assert client.get("user:fast") == "f"
    assert client.get("elsewhere") is None
    origin.give("user:slow", "s")
    assert slow.read() == b"$1\r\ns\r\n"
    at_rest(server)


KINDS = """
import datetime, decimal, uuid

VALUES = {
    'text': 'tëxt', 'empty': '', 'bytes': b'\\xff\\x00', 'array': bytearray(b'ba'), 'int': 42, 'big': 10 ** 30, 'float': 1.5,
    'decimal': decimal.Decimal('1.10'), 'uuid': uuid.UUID(int=1), 'date': datetime.date(2024, 2, 29),
    'time': datetime.datetime(2024, 2, 29, 1, 2, 3),
    'hash': {'name': 'Ann', 'age': 7, 'gone': None, b'\\xfe': b'\\xff'}, 'nohash': {}, 'nones': {'a': None},
    'list': ['a', 2, b'c'], 'tuple': ('x',), 'nolist': [], 'set': {'m'}, 'frozen': frozenset({1}), 'noset': set(),
    'sorted': Sorted({'a': 1, 'b': 2.5, 'c': float('-inf')}), 'nosorted': Sorted({}),
    'loaded': Loaded('kept', ttl=100), 'once': Loaded('once', ttl=0), 'ever': Loaded('ever'), 'loadednone': Loaded(None, 5),
    'loadedhash': Loaded({'f': 1}, 50),
    'bool': True, 'nested': {'a': [1]}, 'listofnone': [None], 'object': object(), 'surrogate': '\\ud800',
    'score': Sorted({'a': 'x'}), 'nan': Sorted({'a': float('nan')}), 'badttl': Loaded('x', ttl=-1), 'boolttl': Loaded('x', ttl=True),
}

@read_through('k:*', backoff=0)
def load(key):
    return VALUES[key[2:]]
"""


def test_kinds_of_values(server: Server) -> None:
    server.run(KINDS.replace("VALUES[", "make()[").replace("VALUES = {", "def make():\n  return {"))
    client = server.client(decode_responses=False)
    strings = {
        "text": "tëxt".encode(), "empty": b"", "bytes": b"\xff\x00", "array": b"ba", "int": b"42", "big": b"1" + b"0" * 30,
        "float": b"1.5", "decimal": b"1.10", "uuid": b"00000000-0000-0000-0000-000000000001", "date": b"2024-02-29",
        "time": b"2024-02-29 01:02:03", "loaded": b"kept", "ever": b"ever",
    }  # fmt: skip
    for name, value in strings.items():
        assert client.get("k:" + name) == value, name
    assert client.hgetall("k:hash") == {b"name": b"Ann", b"age": b"7", b"\xfe": b"\xff"}
    assert client.hget("k:loadedhash", "f") == b"1"
    assert client.lrange("k:list", 0, -1) == [b"a", b"2", b"c"]
    assert client.lindex("k:tuple", 0) == b"x"
    assert client.smembers("k:set") == {b"m"}
    assert client.sismember("k:frozen", "1")
    assert client.zrange("k:sorted", 0, -1, withscores=True) == [(b"c", float("-inf")), (b"a", 1.0), (b"b", 2.5)]
    for name in ("nohash", "nones", "nolist", "noset", "nosorted", "loadednone"):
        assert client.get("k:" + name) is None, name
        assert not client.exists("k:" + name)
    assert client.get("k:once") == b"once"
    assert not client.exists("k:once")
    assert 90 < client.ttl("k:loaded") <= 100 and 40 < client.ttl("k:loadedhash") <= 50
    assert client.ttl("k:ever") == -1
    at_rest(server)


@pytest.mark.parametrize(
    "name, kind, said",
    [
        ("bool", "TypeError", "bool"),
        ("nested", "TypeError", "a hash's value, got list"),
        ("listofnone", "TypeError", "a list's item, got NoneType"),
        ("object", "TypeError", "object"),
        ("surrogate", "UnicodeEncodeError", "surrogates not allowed"),
        ("score", "TypeError", "score of Sorted, got str"),
        ("nan", "TypeError", "score of Sorted"),
        ("badttl", "TypeError", "Loaded's ttl, got -1"),
        ("boolttl", "TypeError", "Loaded's ttl, got True"),
        ("missing", "KeyError", "KeyError: 'missing'"),
    ],
)
def test_what_is_no_value_fails_the_load(server: Server, name: str, kind: str, said: str) -> None:
    server.run(KINDS.replace("VALUES[", "make()[").replace("VALUES = {", "def make():\n  return {"))
    assert server.raw().call("GET", "k:" + name) == f"-LOADFAILED {kind}\r\n".encode()
    data = figures(server)
    assert said in data["lastError"].replace("\\'", "'"), data["lastError"]
    assert (data["numFailures"], data["loadFailures"]) == (1, 1)
    assert not server.client().exists("k:" + name)
    at_rest(server)


DERIVED = """
import itertools

def stop(*args):
    raise KeyboardInterrupt

def derived(base, **methods):
    names = ('__iter__', '__len__', '__contains__', '__getitem__', '__next__', '__length_hint__', '__eq__', '__bool__', 'keys', 'items', 'copy')
    return type('Derived', (base,), {**{name: stop for name in names}, '__hash__': None, **methods})

class Score:
    __float__ = stop

def make():
    return {
        'set': derived(set)('a'), 'frozen': derived(frozenset, __hash__=stop)('a'), 'endless': derived(set, __iter__=lambda self: itertools.repeat('a'))('a'),
        'none': derived(set, __iter__=lambda self: None)('a'), 'list': derived(list)('a'), 'tuple': derived(tuple)('a'), 'hash': derived(dict)(a=1),
        'score': Sorted({'a': Score()}), 'number': Sorted({'a': type('I', (int,), {'__float__': stop})(1)}),
    }

def one(key):
    if key == 'k:raises':
        stop()
    return make()[key[2:]]

read_through('k:*', one, backoff={backoff})
read_through('b:*', lambda keys: [one(key.replace('b:', 'k:')) for key in keys], batch=9, batch_wait=0.05, backoff={backoff})
"""


@pytest.mark.parametrize("prefix", ["k:", "b:"])
def test_containers_with_code_of_their_own_are_what_they_hold(server: Server, prefix: str) -> None:
    """Nobody asks their methods, which may raise or never end."""
    server.run(DERIVED.replace("{backoff}", "0"))
    client = server.client()
    for name in ("set", "frozen", "endless", "none"):
        assert client.smembers(prefix + name) == {"a"}, name
    for name in ("list", "tuple"):
        assert client.lrange(prefix + name, 0, -1) == ["a"], name
    assert client.hgetall(prefix + "hash") == {"a": "1"}
    assert "panicked" not in server.log()
    at_rest(server)


def test_what_stops_a_loader_is_the_failure(server: Server) -> None:
    """Whatever Python looks at when it is raised; counted as others."""
    server.run(DERIVED.replace("{backoff}", "60"))
    for count, name in enumerate(("raises", "score", "number"), 1):
        assert server.raw().call("GET", "k:" + name) == b"-LOADFAILED KeyboardInterrupt\r\n", name
        assert server.raw().call("GET", "k:" + name).startswith(b"-LOADFAILED "), "it backs off"
        data = figures(server)
        assert (data["loads"], data["loadFailures"]) == (count, count)
    assert "KeyboardInterrupt" in figures(server)["lastError"]
    at_rest(server)


HASHES = """
read_through('h:*', lambda key: {'n': '5', 'name': key})
read_through('s:*', lambda key: {'a', 'b'})
read_through('z:*', lambda key: Sorted({'a': 1, 'b': 2}))
read_through('l:*', lambda key: ['a', 'b'])
"""


@pytest.mark.parametrize(
    "command, reply",
    [
        ("HGET h:1 name", b"$3\r\nh:1\r\n"),
        ("HMGET h:1 n x", b"*2\r\n$1\r\n5\r\n$-1\r\n"),
        ("HEXISTS h:1 n", b":1\r\n"),
        ("HLEN h:1", b":2\r\n"),
        ("HSTRLEN h:1 name", b":3\r\n"),
        ("LRANGE l:1 0 -1", b"*2\r\n$1\r\na\r\n$1\r\nb\r\n"),
        ("LINDEX l:1 1", b"$1\r\nb\r\n"),
        ("LLEN l:1", b":2\r\n"),
        ("LPOS l:1 b", b":1\r\n"),
        ("SCARD s:1", b":2\r\n"),
        ("SISMEMBER s:1 a", b":1\r\n"),
        ("SMISMEMBER s:1 a x", b"*2\r\n:1\r\n:0\r\n"),
        ("ZSCORE z:1 b", b"$1\r\n2\r\n"),
        ("ZCARD z:1", b":2\r\n"),
        ("GEODIST z:1 a a", b"$6\r\n0.0000\r\n"),
        ("GEOSEARCH z:1 FROMMEMBER a BYRADIUS 1 m ASC COUNT 1", b"*1\r\n$1\r\na\r\n"),
        ("GEORADIUSBYMEMBER_RO z:1 a 1 m COUNT 1 ASC", b"*1\r\n$1\r\na\r\n"),
        ("ZRANGE z:1 0 -1", b"*2\r\n$1\r\na\r\n$1\r\nb\r\n"),
        ("ZRANGEBYSCORE z:1 2 9", b"*1\r\n$1\r\nb\r\n"),
        ("GET h:1", b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"),
        ("HGET h:1", b"-ERR wrong number of arguments for 'hget' command\r\n"),
        ("EXISTS h:1", b":0\r\n"),
        ("TYPE h:1", b"+none\r\n"),
        ("TTL h:1", b":-2\r\n"),
        ("HSET h:1 f v", b":1\r\n"),
    ],
)
def test_commands_by_default(server: Server, command: str, reply: bytes) -> None:
    server.run(HASHES)
    raw = server.raw()
    given = raw.call(*command.split())
    if b"wrong number" in reply:
        assert given.startswith(b"-") and b"wrong number of arguments" in given.lower()
    else:
        assert given == reply
    at_rest(server)


def test_commands_that_are_named_may_write(server: Server) -> None:
    server.run("""
        @read_through('n:*', commands=['HINCRBY', 'append', 'getdel', 'hset'], ttl=100)
        def load(key):
            return {'n': 5} if 'hash' in key else 'text'
    """)
    client = server.client()
    assert client.hincrby("n:hash", "n", 2) == 7
    assert client.hgetall("n:hash") == {"n": "7"}
    assert 90 < client.ttl("n:hash") <= 100
    assert client.append("n:a", "!") == 5
    assert client.get("n:a") == "text!"
    assert client.execute_command("GETDEL", "n:b") == "text"
    assert not client.exists("n:b")
    assert client.hset("n:hash2", "m", 1) == 1
    assert client.hgetall("n:hash2") == {"n": "5", "m": "1"}
    assert client.get("n:x") is None, "not one of them"


def test_a_command_with_several_keys_waits_for_all(server: Server, source: Server) -> None:
    origin = register(server, source, prefix="a:*")
    server.run("read_through('b:*', lambda key: 'b of ' + key)")
    client, raw = server.client(), server.raw()
    client.set("a:there", "t")
    raw.send("MGET", "a:1", "b:1", "a:there", "a:1", "c:1", "a:2")
    origin.wait_for_loads(2)
    origin.give("a:2", "2")
    origin.give("a:1", "1")
    assert raw.read() == b"*6\r\n$1\r\n1\r\n$8\r\nb of b:1\r\n$1\r\nt\r\n$1\r\n1\r\n$-1\r\n$1\r\n2\r\n"
    assert origin.loads() == 2
    at_rest(server)


def test_the_nearest_prefix_loads(server: Server) -> None:
    server.run("""
        read_through('*', lambda key: 'all')
        read_through('user:*', lambda key: 'user')
        read_through('user:1', lambda key: 'one')
        read_through('user:1*', lambda key: 'begins with one')
    """)
    client = server.client()
    assert client.mget("x", "user:2", "user:1", "user:11") == ["all", "user", "one", "begins with one"]


def test_keys_are_text_or_bytes(server: Server) -> None:
    server.run("read_through('k:*', lambda key: repr(key))")
    client = server.client(decode_responses=False)
    assert client.get("k:ä") == "'k:ä'".encode()
    assert client.get(b"k:\xff") == b"b'k:\\xff'"


def test_loads_act_in_the_database_of_the_client(server: Server, source: Server) -> None:
    server.run("read_through('k:*', lambda key: execute('GET', 'where'))")
    clients = [server.client(db=db) for db in (0, 3)]
    for db, client in enumerate(clients):
        client.set("where", db)
    assert [client.get("k:1") for client in clients] == ["0", "1"]
    assert [client.exists("k:1") for client in clients] == [1, 1]


def test_replies_have_the_protocol_of_the_client(server: Server) -> None:
    if server.version < (7, 0):
        pytest.skip("calls of modules have RESP2 replies on this server")
    server.run(HASHES)
    raw = server.raw()
    raw.call("HELLO", "3")
    assert raw.call("HGETALL", "h:1") == b"%2\r\n$1\r\nn\r\n$1\r\n5\r\n$4\r\nname\r\n$3\r\nh:1\r\n"
    assert raw.call("ZSCORE", "z:1", "a") == b",1\r\n"
    assert raw.call("GET", "h:nothing")[:10] == b"-WRONGTYPE"


def test_who_cannot_wait_gets_the_plain_reply(server: Server) -> None:
    server.run("""
        read_through('k:*', lambda key: 'loaded')
        GB('CommandReader').map(lambda words: str(execute('GET', 'k:1'))).register(trigger='ask', mode='sync')
    """)
    raw, client = server.raw(), server.client()
    raw.call("MULTI")
    raw.call("GET", "k:1")
    assert raw.call("EXEC") == b"*1\r\n$-1\r\n"
    assert client.eval("return redis.call('GET', KEYS[1])", 1, "k:1") is None
    assert client.execute_command("RG.TRIGGER", "ask") == ["None"]
    assert figures(server)["plainMisses"] == 3
    assert client.get("k:1") == "loaded"
    assert client.execute_command("RG.TRIGGER", "ask") == ["loaded"]


def test_coroutines_load(server: Server) -> None:
    server.run("""
        import asyncio

        @read_through('k:*', ttl=9)
        async def load(key):
            await asyncio.sleep(0.01)
            if key == 'k:bad':
                raise LookupError('nobody')
            return {'key': key}
    """)
    raws = [server.raw() for _ in range(50)]
    for number, raw in enumerate(raws):
        raw.send("HGET", f"k:{number}", "key")
    assert [raw.read() for raw in raws] == [b"$%d\r\nk:%d\r\n" % (len(f"k:{number}"), number) for number in range(50)]
    assert server.raw().call("GET", "k:bad") == b"-LOADFAILED LookupError\r\n"
    at_rest(server)


def test_counts_of_the_server(server: Server) -> None:
    """What the server itself counts is what the command finds in the end."""
    server.run("read_through('k:*', lambda key: 'v' if '1' in key else None)")
    client = server.client()
    client.config_resetstat()
    client.get("k:1")
    client.get("k:1")
    client.get("k:2")
    stats = client.info("stats")
    assert (stats["keyspace_hits"], stats["keyspace_misses"]) == (2, 1)
    data = figures(server)
    assert (data["hits"], data["misses"]) == (1, 2)
