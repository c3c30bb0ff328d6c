"""Linked clients when something goes wrong meanwhile: each gets exactly one reply, and nothing leaks.

Contract: docs/contract/readers-and-events.md 10.3, 10.4, 10.6, 10.8 and 13.
"""

from __future__ import annotations

from typing import Any, Callable

import pytest
import redis

from helpers import RawClient, Server, as_dict, wait_until
from probes import blocked_clients, data, go

HOLD = """
import time

def hold(record):
    execute('INCR', 'begun')
    while not execute('EXISTS', 'go'):
        time.sleep(0.001)
    {body}

GB('KeysReader').foreach(hold).register(prefix='hold:*', commands=['get'], eventTypes=['keymiss'],
                                        mode='async_local', inorder={inorder})
"""
NIL = b"$-1\r\n"
LATE = b"$4\r\nlate\r\n"


def hold(server: Server, body: str = "override_reply('late')", inorder: bool = False) -> None:
    assert server.run(HOLD.format(body=body, inorder=inorder)) == "OK"


def ask(server: Server, key: str = "hold:1") -> RawClient:
    """A client that waits for its reply, its execution begun or queued."""
    before = blocked_clients(server)
    raw = server.raw()
    raw.send("GET", key)
    wait_until(lambda: blocked_clients(server) == before + 1)
    return raw


def begun(server: Server, count: int = 1) -> None:
    wait_until(lambda: server.own.get("begun") == str(count))


def unfinished(server: Server) -> list[str]:
    """The executions that are not finished, oldest first."""
    entries = [as_dict(entry) for entry in server.client().execute_command("RG.DUMPEXECUTIONS")]
    return [entry["executionId"] for entry in entries if entry["status"] in ("created", "running")]


def test_a_function_that_fails_gives_the_commands_reply(server: Server) -> None:
    server.run("""
        def fail(record):
            if record['key'] == 'after':
                override_reply('kept')
            raise ValueError('no')

        GB('KeysReader').foreach(fail).register(prefix='*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
    """)
    client = server.client()
    assert client.get("before") is None
    assert client.get("after") == "kept"
    server.wait_idle()
    assert data(server)["numFailures"] == 2


def test_a_source_that_times_out(server: Server) -> None:
    server.run("""
        import socket

        def fetch(record):
            silent = socket.socket()
            silent.bind(('127.0.0.1', 0))
            silent.listen()
            source = socket.create_connection(silent.getsockname(), timeout=0.05)
            override_reply(source.recv(1))

        GB('KeysReader').foreach(fetch).register(prefix='*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
    """)
    assert server.client().get("x") is None
    server.wait_idle()
    assert "timed out" in data(server)["lastError"]


def test_abort_of_a_running_one_lets_the_client_go_at_once(server: Server) -> None:
    hold(server)
    raw = ask(server)
    begun(server)
    [execution] = unfinished(server)
    assert server.client().execute_command("RG.ABORTEXECUTION", execution) == "OK"
    assert raw.read() == NIL
    server.wait_idle()
    assert "gears.forcestopped" in data(server)["lastError"]


def test_abort_of_a_queued_one(server: Server) -> None:
    hold(server, inorder=True)
    first = ask(server, "hold:1")
    begun(server)
    second = ask(server, "hold:2")
    server.client().execute_command("RG.ABORTEXECUTION", unfinished(server)[1])
    assert second.read() == NIL
    go(server)
    assert first.read() == LATE
    server.wait_idle()
    assert (data(server)["numSuccess"], data(server)["numAborted"]) == (1, 1)


def test_unregister_lets_executions_go_on(server: Server) -> None:
    hold(server, inorder=True)
    clients = [ask(server, "hold:1"), ask(server, "hold:2")]
    begun(server)
    client = server.client()
    assert client.execute_command("RG.UNREGISTER", server.registrations()[0]["id"]) == "OK"
    assert client.get("hold:3") is None  # not linked any more
    go(server)
    assert [raw.read() for raw in clients] == [LATE, LATE]
    wait_until(lambda: client.execute_command("RG.DUMPEXECUTIONS") == [])


def test_unregister_with_abortpending_answers_the_queued_ones(server: Server) -> None:
    hold(server, inorder=True)
    first, second = ask(server, "hold:1"), ask(server, "hold:2")
    begun(server)
    server.client().execute_command("RG.UNREGISTER", server.registrations()[0]["id"], "abortpending")
    assert second.read() == NIL
    go(server)
    assert first.read() == LATE


@pytest.mark.parametrize("how", ["close", "kill"])
def test_the_client_goes_meanwhile(server: Server, how: str) -> None:
    hold(server)
    raw = server.raw()
    number = int(raw.call("CLIENT", "ID")[1:])
    raw.send("GET", "hold:1")
    wait_until(lambda: blocked_clients(server) == 1)
    if how == "close":
        raw.close()
    else:
        assert server.client().execute_command("CLIENT", "KILL", "ID", number) == 1
    wait_until(lambda: blocked_clients(server) == 0)
    go(server)
    server.wait_idle()
    assert data(server)["numSuccess"] == 1
    assert server.client().ping()


def test_client_unblock_has_no_effect(server: Server) -> None:
    hold(server)
    raw = server.raw()
    number = int(raw.call("CLIENT", "ID")[1:])
    raw.send("GET", "hold:1")
    wait_until(lambda: blocked_clients(server) == 1)
    assert server.client().execute_command("CLIENT", "UNBLOCK", number) == 0
    assert server.client().execute_command("CLIENT", "UNBLOCK", number, "ERROR") == 0
    go(server)
    assert raw.read() == LATE


def test_a_client_that_wants_no_replies(server: Server) -> None:
    hold(server)
    raw = server.raw()
    raw.send("CLIENT", "REPLY", "SKIP")
    raw.send("GET", "hold:1")
    raw.send("PING")
    wait_until(lambda: blocked_clients(server) == 1)
    go(server)
    assert raw.read() == b"+PONG\r\n"


def test_flushall_meanwhile(server: Server) -> None:
    hold(server)
    raw = ask(server)
    begun(server)
    server.client().flushall()
    go(server)
    assert raw.read() == LATE


def test_a_reload_meanwhile_gives_the_commands_reply(server: Server) -> None:
    hold(server, inorder=True)
    clients = [ask(server, "hold:1"), ask(server, "hold:2")]
    begun(server)
    client = server.client()
    client.execute_command("DEBUG", "RELOAD")
    assert [raw.read() for raw in clients] == [NIL, NIL]
    go(server)
    server.wait_idle()
    assert blocked_clients(server) == 0
    raw = server.raw()
    assert raw.call("GET", "hold:3") == LATE  # the registration is in force


def test_demotion_meanwhile(server: Server, source: Server) -> None:
    hold(server)
    raw = ask(server)
    begun(server)
    client = server.client()
    client.execute_command("REPLICAOF", source.host, source.port)
    assert raw.read().startswith(b"-UNBLOCKED")
    wait_until(lambda: client.info("replication")["master_link_status"] == "up")  # all data were loaded anew
    client.execute_command("REPLICAOF", "NO", "ONE")
    go(server)
    server.wait_idle()
    assert server.client().ping()


def test_a_replica_links_nobody_and_a_promoted_one_does(start_server: Callable[..., Server]) -> None:
    master, server = start_server(), start_server()
    hold(master, body="override_reply('late')")
    client = server.client()
    client.execute_command("REPLICAOF", master.host, master.port)
    wait_until(lambda: client.info("replication")["master_link_status"] == "up")
    assert client.get("hold:1") is None
    assert data(server)["numTriggered"] == 0
    client.execute_command("REPLICAOF", "NO", "ONE")
    go(server)
    assert client.get("hold:1") == "late"


def test_writes_are_refused_where_the_plain_command_is(server: Server, source: Server) -> None:
    server.run("GB('KeysReader').register(prefix='*', commands=['set', 'del'], mode='async_local')")
    raw = server.raw()
    raw.call("CONFIG", "SET", "maxmemory", 1)
    assert raw.call("SET", "k", "v").startswith(b"-OOM command not allowed when used memory > 'maxmemory'")
    assert raw.call("DEL", "k") == b":0\r\n"
    raw.call("CONFIG", "SET", "maxmemory", 0)
    assert raw.call("EVAL_RO", "return redis.call('SET', KEYS[1], '1')", 1, "k").startswith(b"-ERR Write commands are")
    assert raw.call("EXISTS", "k") == b":0\r\n"
    raw.call("REPLICAOF", source.host, source.port)
    assert raw.call("SET", "k", "v").startswith(b"-READONLY You can't write against a read only replica.")


MULTI_BLOCKS = [
    [("SET", "p:1", "a"), ("SET", "p:2", "b")],
    [("SET", "p:1", "a"), ("SET", "other", "b")],
    [("GET", "p:1"), ("GET", "other"), ("SET", "p:1", "a")],
]


@pytest.mark.parametrize("block", MULTI_BLOCKS)
@pytest.mark.parametrize("mode", ["async_local", "sync"])
def test_a_transaction_with_linked_commands_here_and_on_a_replica(
    start_server: Callable[..., Server], block: list[tuple[str, ...]], mode: str
) -> None:
    script = f"GB('KeysReader').register(prefix='p:*', commands=['get', 'set'], mode='{mode}')"
    master, replica = start_server(), start_server()
    for server in (master, replica):
        assert server.run(script) == "OK"
    replica.client().execute_command("REPLICAOF", master.host, master.port)
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up")
    raw = master.raw()
    raw.call("MULTI")
    for command in block:
        assert raw.call(*command) == b"+QUEUED\r\n"
    assert raw.call("EXEC").startswith(b"*%d\r\n" % len(block))
    calls = "".join(f"redis.call({', '.join(map(repr, command))}) " for command in block)
    assert raw.call("EVAL", calls + "return 1", 0) == b":1\r\n"
    master.wait_idle()
    wait_until(lambda: replica.own.get("p:1") == "a")
    assert data(replica)["numTriggered"] == 0


def test_more_clients_than_workers(server: Server) -> None:
    hold(server)
    clients = [ask(server, f"hold:{number}") for number in range(10)]
    begun(server, 3)
    go(server)
    assert [raw.read() for raw in clients] == [LATE] * 10


def test_many_clients_killed_in_flight(server: Server) -> None:
    hold(server)
    for _ in range(3):
        raws = [server.raw() for _ in range(30)]
        for number, raw in enumerate(raws):
            raw.send("GET", f"hold:{number}")
        wait_until(lambda: blocked_clients(server) == 30)
        for raw in raws[::2]:
            raw.close()
        wait_until(lambda: blocked_clients(server) == 15)
        go(server)
        assert [raw.read() for raw in raws[1::2]] == [LATE] * 15
        server.wait_idle()
        server.client().delete("go")
    assert blocked_clients(server) == 0
    wait_until(lambda: server.own.info("rg")["rg_queued_executions"] == 0)


def test_the_server_stops_while_clients_wait(server: Server) -> None:
    hold(server)
    raw = server.raw()
    raw.send("GET", "hold:1")
    wait_until(lambda: blocked_clients(server) == 1)
    server.process.terminate()
    assert server.wait_exit(20) == 0


def test_a_linked_execution_unregisters_itself(server: Server) -> None:
    for mode in ("sync", "async_local"):
        server.run(f"""
            def once(record):
                execute('RG.UNREGISTER', execute('RG.DUMPREGISTRATIONS')[0][1])
                override_reply('once')

            GB('KeysReader').foreach(once).register(prefix='*', commands=['get'], eventTypes=['keymiss'], mode='{mode}')
        """)
        client = server.client()
        assert client.get("x") == "once"
        assert client.get("x") is None
        assert server.registrations() == []


def test_a_reply_that_redis_py_can_raise(server: Server) -> None:
    server.run("""
        GB('KeysReader').foreach(lambda r: override_reply('-ERR not today')).register(
            prefix='*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
    """)
    with pytest.raises(redis.ResponseError, match="not today"):
        server.client().get("x")
