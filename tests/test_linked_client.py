"""Linked clients: who waits, for what, and which reply comes. Contract: docs/contract/readers-and-events.md chapter 10.

What happens when something goes wrong meanwhile is in test_linked_client_failures.py, restrictions are in
test_limitations.py.
"""

from __future__ import annotations

from typing import Callable

import pytest

from helpers import Server, wait_until
from probes import blocked_clients

pytestmark = pytest.mark.matrix

LINK = "register(prefix='*', commands=['get'], eventTypes=['keymiss'], mode='{mode}')"


def link(server: Server, expression: str, mode: str = "async_local") -> None:
    """Each missed GET is answered with the value of `expression`."""
    script = f"GB('KeysReader').foreach(lambda r: override_reply({expression})).{LINK.format(mode=mode)}"
    assert server.run(script) == "OK"


def held(server: Server, prefix: str = "hold:*", commands: str = "['get']", body: str = "override_reply('late')") -> None:
    """Each missed GET of a `hold:` key waits in its function until the key `go` exists."""
    script = f"""
        import time

        def hold(record):
            while not execute('EXISTS', 'go'):
                time.sleep(0.001)
            {body}

        GB('KeysReader').foreach(hold).register(prefix='{prefix}', commands={commands}, eventTypes=['keymiss'],
                                                mode='async_local')
    """
    assert server.run(script) == "OK"


CONVERSIONS = [
    # expression, RESP2, RESP3 if it differs
    ("'text'", b"$4\r\ntext\r\n", None),
    ("''", b"$0\r\n\r\n", None),
    ("'+fine'", b"+fine\r\n", None),
    ("'-ERR no'", b"-ERR no\r\n", None),
    ("'+'", b"$1\r\n+\r\n", None),
    ("'-'", b"$1\r\n-\r\n", None),
    ("'+a\\r\\nb'", b"+a  b\r\n", None),
    ("'a\\0b'", b"$3\r\na\0b\r\n", None),
    ("b'\\xff-'", b"$2\r\n\xff-\r\n", None),
    ("bytearray(b'-x')", b"$2\r\n-x\r\n", None),
    ("7", b":7\r\n", None),
    ("-5", b":-5\r\n", None),
    ("b'+x'", b"$2\r\n+x\r\n", None),
    ("1e20", b"$28\r\n100000000000000000000.000000\r\n", None),
    ("['+a', '-ERR b', {'c': None}]", b"*3\r\n+a\r\n-ERR b\r\n*2\r\n$1\r\nc\r\n$-1\r\n",
     b"*3\r\n+a\r\n-ERR b\r\n%1\r\n$1\r\nc\r\n_\r\n"),
    ("True", b":1\r\n", None),
    ("2 ** 63", b"$19\r\n9223372036854775808\r\n", None),
    ("1.5", b"$8\r\n1.500000\r\n", None),
    ("float('nan')", b"$3\r\nnan\r\n", None),
    ("float('-inf')", b"$4\r\n-inf\r\n", None),
    ("None", b"$-1\r\n", b"_\r\n"),
    ("[]", b"*0\r\n", None),
    ("['a', [1, None]]", b"*2\r\n$1\r\na\r\n*2\r\n:1\r\n$-1\r\n", b"*2\r\n$1\r\na\r\n*2\r\n:1\r\n_\r\n"),
    ("('a', 2)", b"*2\r\n$1\r\na\r\n:2\r\n", None),
    ("{'a': 1}", b"*2\r\n$1\r\na\r\n:1\r\n", b"%1\r\n$1\r\na\r\n:1\r\n"),
    ("{1, 2}", b"$9\r\nPY RECORD\r\n", None),
    ("object()", b"$9\r\nPY RECORD\r\n", None),
]


@pytest.mark.parametrize("mode", ["async_local", "sync"])
def test_conversions(server: Server, mode: str) -> None:
    values = ", ".join(expression for expression, _, _ in CONVERSIONS)
    link(server, f"[{values}][int(r['key'])]", mode)
    old, new = server.raw(), server.raw()
    new.call("HELLO", 3)
    for number, (expression, resp2, resp3) in enumerate(CONVERSIONS):
        assert old.call("GET", number) == resp2, expression
        assert new.call("GET", number) == (resp3 or resp2), expression


@pytest.mark.parametrize("value", ["'\\ud800'", "(lambda a: a.append(a) or a)([])"])
def test_a_value_that_no_reply_can_carry_is_an_exception(server: Server, value: str) -> None:
    link(server, value)
    assert server.client().get("x") is None
    server.wait_idle()
    assert server.registrations()[0]["RegistrationData"]["numFailures"] == 1


def test_errors_of_override(server: Server) -> None:
    server.run("""
        def answer(record):
            errors = []
            for values in [(), (1, 2), ('first',), ('second',)]:
                try:
                    override_reply(*values)
                except redisgears.GearsError as error:
                    errors.append(str(error))
            execute('SET', 'errors', repr(errors))

        GB('KeysReader').foreach(answer).register(prefix='x', commands=['get'], eventTypes=['keymiss'],
                                                  mode='async_local')
    """)
    client = server.client()
    assert client.get("x") == "first"
    argument = "Override reply must get a single argument"
    assert eval(client.get("errors")) == [argument, argument, "Can only override reply once"]


def test_the_commands_own_reply_in_the_clients_protocol(server: Server) -> None:
    server.run("""
        GB('KeysReader').foreach(lambda r: execute('SET', 'seen', r['key'])).register(
            prefix='k*', commands=['get', 'hgetall', 'mget', 'zscore'], eventTypes=['keymiss'], mode='async_local')
    """)
    old, new = server.raw(), server.raw()
    new.call("HELLO", 3)
    assert (old.call("GET", "k"), new.call("GET", "k")) == (b"$-1\r\n", b"_\r\n")
    assert (old.call("HGETALL", "k"), new.call("HGETALL", "k")) == (b"*0\r\n", b"%0\r\n")
    assert new.call("MGET", "k", "k2") == b"*2\r\n_\r\n_\r\n"
    server.client().zadd("k3", {"m": 1.5})
    assert new.call("ZSCORE", "k3", "m") == b",1.5\r\n"
    assert new.call("ZSCORE", "k4", "m") == b"_\r\n"


def test_an_error_of_the_command_is_its_reply(server: Server) -> None:
    server.run("""
        GB('KeysReader').foreach(lambda r: None).register(
            prefix='k*', commands=['get', 'xpending', 'incr'], mode='async_local')
    """)
    raw = server.raw()
    assert raw.call("XPENDING", "k", "group").startswith(b"-NOGROUP")
    assert raw.call("SADD", "kset", "a") == b":1\r\n"
    assert raw.call("GET", "kset").startswith(b"-WRONGTYPE")
    assert raw.call("INCR", "kset").startswith(b"-WRONGTYPE")
    assert raw.call("GET").startswith(b"-ERR wrong number of arguments for 'get' command")
    assert raw.call("GET", "k", "k2").startswith(b"-ERR wrong number of arguments")


def test_others_are_served_while_one_waits_and_the_pipeline_keeps_its_order(server: Server) -> None:
    held(server)
    raw = server.raw()
    raw.send("GET", "hold:1")
    raw.send("SET", "after", "1")
    raw.send("GET", "after")
    wait_until(lambda: blocked_clients(server) == 1)
    other = server.client()
    assert other.get("after") is None
    assert other.get("hold:x".replace("hold", "free")) is None
    other.set("go", "1")
    assert [raw.read() for _ in range(3)] == [b"$4\r\nlate\r\n", b"+OK\r\n", b"$1\r\n1\r\n"]
    assert blocked_clients(server) == 0


def test_the_prefix_chooses_the_keys(server: Server) -> None:
    server.run("""
        GB('KeysReader').foreach(lambda r: override_reply(r['key'])).register(
            prefix='price:*', commands=['get', 'mget'], eventTypes=['keymiss'], mode='async_local')
    """)
    client = server.client()
    assert client.get("price:1") == "price:1"
    assert client.get("price") is None
    assert client.get("xprice:1") is None
    assert client.execute_command("MGET", "a", "price:2") == "price:2"


def test_each_missing_key_of_one_command_fires(server: Server) -> None:
    server.run("""
        def note(record):
            execute('RPUSH', 'missed', record['key'])

        GB('KeysReader').foreach(note).register(prefix='price:*', commands=['mget'], eventTypes=['keymiss'],
                                                mode='async_local')
    """)
    client = server.client()
    client.set("price:2", "b")
    assert client.mget("a", "price:1", "price:2", "price:3") == [None, None, "b", None]
    assert sorted(client.lrange("missed", 0, -1)) == ["price:1", "price:3"]
    assert server.registrations()[0]["RegistrationData"]["numTriggered"] == 2


def test_one_client_waits_for_a_thousand_executions(server: Server) -> None:
    server.run("""
        GB('KeysReader').foreach(lambda r: execute('INCR', 'done')).register(
            prefix='k:*', commands=['mget'], eventTypes=['keymiss'], mode='async_local')
    """)
    client = server.client()
    assert client.mget([f"k:{number % 900}" for number in range(1000)]) == [None] * 1000
    assert client.get("done") == "1000"


def test_the_reply_waits_for_all_registrations_and_the_first_override_wins(server: Server) -> None:
    held(server, body="execute('SET', 'held', '1')")
    server.run("""
        GB('KeysReader').foreach(lambda r: override_reply('quick')).register(
            prefix='hold:*', commands=['GET'], eventTypes=['keymiss'], mode='async_local')
    """)
    server.run("""
        GB('KeysReader').foreach(lambda r: override_reply('sync')).register(
            prefix='hold:*', commands=['gEt'], eventTypes=['KEYMISS'], mode='sync')
    """)
    raw = server.raw()
    raw.send("GeT", "hold:1")
    wait_until(lambda: blocked_clients(server) == 1)
    failures = lambda: [entry["RegistrationData"]["numFailures"] for entry in server.registrations()]
    wait_until(lambda: failures() == [0, 1, 0])
    client = server.client()
    assert not client.exists("held")
    client.set("go", "1")
    assert raw.read() == b"$4\r\nsync\r\n"
    assert client.exists("held")


def test_a_registration_without_commands_does_not_hold_the_client(server: Server) -> None:
    held(server, commands="None")
    link(server, "'linked'")
    assert server.client().get("hold:1") == "linked"
    server.client().set("go", "1")
    server.wait_idle()
    counted = server.registrations()[0]["RegistrationData"]
    assert "Can not get command ctx" in counted["lastError"]


def test_get_command_is_as_typed(server: Server) -> None:
    server.run("""
        GB('KeysReader').foreach(lambda r: override_reply(repr(get_command()))).register(
            prefix='*', commands=['mget'], eventTypes=['keymiss'], mode='async_local')
    """)
    raw = server.raw()
    raw.send("mGeT", b"\xff", "a\0b")
    first = raw.read()
    # Two executions, one override; both see the same command.
    assert b"['mGeT', bytearray(b'\\xff'), 'a\\x00b']" in first


def test_a_linked_write(server: Server) -> None:
    server.run("""
        def stamp(record):
            execute('APPEND', 'log', record['event'] + ' ')
            override_reply('+' + record['value'])

        GB('KeysReader').foreach(stamp).register(prefix='k*', commands=['set'], eventTypes=['set'], mode='async_local')
    """)
    raw = server.raw()
    assert raw.call("SET", "k", "v") == b"+v\r\n"
    assert raw.call("SET", "other", "v") == b"+OK\r\n"
    assert raw.call("GET", "k") == b"$1\r\nv\r\n"
    assert raw.call("GET", "log") == b"$4\r\nset \r\n"


@pytest.mark.parametrize("mode", ["async_local", "sync"])
def test_every_event_of_the_command_on_a_matching_key_is_linked(server: Server, mode: str) -> None:
    server.run(f"""
        GB('KeysReader').foreach(lambda r: execute('RPUSH', 'seen', r['event'])).register(
            prefix='k*', commands=['set', 'rename'], mode='{mode}')
    """)
    client = server.client()
    assert client.set("k", "v", ex=100) is True
    assert client.lrange("seen", 0, -1) == ["set", "expire"]
    client.set("other", "v")
    assert client.rename("other", "k2") is True
    assert client.rename("k2", "other") is True
    assert client.lrange("seen", 2, -1) == ["rename_to", "rename_from"]


def test_any_step_may_override_and_a_filter_may_end_it(server: Server) -> None:
    server.run("""
        GB('KeysReader').map(lambda r: r['key']).filter(lambda key: key != 'no').foreach(override_reply).count().register(
            prefix='*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
    """)
    assert server.client().get("yes") == "yes"
    assert server.client().get("no") is None


@pytest.mark.parametrize("mode", ["async_local", "sync"])
def test_what_is_replicated_are_plain_commands(start_server: Callable[..., Server], mode: str) -> None:
    server, replica = start_server(), start_server()
    server.run(f"""
        def fetch(record):
            execute('SET', record['key'] + ':seen', record['event'])

        GB('KeysReader').foreach(fetch).register(prefix='k', commands=['get', 'set'], mode='{mode}')
    """)
    replica.client().execute_command("REPLICAOF", server.host, server.port)
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up")
    client = server.client()
    client.get("k")
    client.set("k", "one")
    client.pipeline(transaction=True).set("k", "two").set("k", "three").execute()
    client.eval("redis.call('SET', KEYS[1], 'four')", 1, "k")
    server.wait_idle()
    client.set("last", "1")
    wait_until(lambda: replica.own.get("last"))
    assert replica.client().mget("k", "k:seen") == client.mget("k", "k:seen") == ["four", "set"]
    assert replica.client().info("replication")["master_link_status"] == "up"
    assert "CRITICAL" not in replica.log()
    assert not [name for name in replica.client().info("commandstats") if "rg.inner" in name.lower()]


@pytest.mark.parametrize("mode", ["async_local", "async", "sync"])
def test_the_command_and_the_function_act_in_the_clients_database(server: Server, mode: str) -> None:
    server.run(f"""
        def fetch(record):
            execute('SET', record['key'], 'five')
            override_reply(record['type'])

        GB('KeysReader').foreach(fetch).register(prefix='*', commands=['get', 'set'], eventTypes=['keymiss'],
                                                 mode='{mode}')
    """)
    zero, five = server.client(), server.client(db=5)
    zero.set("k", "zero")
    assert five.get("k") == "empty"
    assert five.get("k") == "five"
    assert zero.get("k") == "zero"
    assert five.set("w", "1") and five.get("w") == "1" and zero.exists("w") == 0


def test_a_change_of_database_between_commands(server: Server) -> None:
    link(server, "'missed'")
    raw = server.raw()
    raw.call("SET", "k", "zero")
    assert raw.call("GET", "k") == b"$4\r\nzero\r\n"
    raw.call("SELECT", 3)
    assert raw.call("GET", "k") == b"$6\r\nmissed\r\n"
    raw.call("RESET")
    assert raw.call("GET", "k") == b"$4\r\nzero\r\n"
    raw.call("MULTI")
    raw.call("SELECT", 3)
    raw.call("EXEC")
    assert raw.call("GET", "k") == b"$6\r\nmissed\r\n"
    raw.call("SELECT", 0)
    for end in ("DISCARD", "EXEC", "RESET"):
        raw.call("WATCH", "k")
        raw.call("MULTI")
        raw.call("SELECT", 3)
        raw.call("GET", "k")
        server.client().set("k", "zero")  # EXEC does nothing
        raw.call(end)
        assert raw.call("GET", "k") == b"$4\r\nzero\r\n"
        assert raw.call("EVAL", "redis.call('SELECT', 3) return redis.call('GET', 'k')", 0) == b"$-1\r\n"
        assert raw.call("GET", "k") == b"$4\r\nzero\r\n"
    server.client().swapdb(0, 3)
    assert raw.call("GET", "k") == b"$6\r\nmissed\r\n"


def test_execute_of_a_linked_command_in_a_function(server: Server) -> None:
    link(server, "'background'")
    assert server.run("GB('KeysReader').map(lambda r: execute('GET', 'missing')).run('k', noScan=True)") == [["None"], []]
    server.wait_idle()
    link(server, "'sync'", "sync")
    assert server.run("GB('KeysReader').map(lambda r: execute('GET', 'missing')).run('k', noScan=True)") == [["sync"], []]


def test_nested_commands_of_a_sync_function_fire_nothing(server: Server) -> None:
    link(server, "execute('GET', 'other')", "sync")
    assert server.client().get("x") is None
    assert server.registrations()[0]["RegistrationData"]["numTriggered"] == 1


def test_misses_of_different_keys_run_in_parallel_and_of_one_key_in_order(server: Server) -> None:
    server.run("""
        import time

        def fetch(record):
            if record['key'] == 'slow':
                while not execute('EXISTS', 'go'):
                    time.sleep(0.001)
            order = execute('INCR', 'order:' + record['key'])
            override_reply('%s %s' % (record['type'], order))

        GB('KeysReader').foreach(fetch).register(prefix='*', commands=['get'], eventTypes=['keymiss'],
                                                 mode='async_local')
    """)
    slow = [server.raw() for _ in range(5)]
    for number, client in enumerate(slow):
        client.send("GET", "slow")
        wait_until(lambda: blocked_clients(server) == number + 1)
    assert server.client().get("quick") == "empty 1"
    server.client().set("go", "1")
    assert [client.read() for client in slow] == [b"$7\r\nempty %d\r\n" % number for number in range(1, 6)]


def test_a_queued_execution_sees_what_the_one_before_stored(server: Server) -> None:
    server.run("""
        import time

        def fetch(record):
            if record['value'] is None:
                while not execute('EXISTS', 'go'):
                    time.sleep(0.001)
                execute('SET', record['key'], 'fetched')
                override_reply('fetched')
            else:
                override_reply('found ' + record['value'])

        GB('KeysReader').foreach(fetch).register(prefix='k', commands=['get'], eventTypes=['keymiss'],
                                                 mode='async_local')
    """)
    clients = [server.raw() for _ in range(3)]
    for number, client in enumerate(clients):
        client.send("GET", "k")
        wait_until(lambda: blocked_clients(server) == number + 1)
    server.client().set("go", "1")
    found = b"$13\r\nfound fetched\r\n"
    assert [client.read() for client in clients] == [b"$7\r\nfetched\r\n", found, found]
