"""A client stays in the database that it has selected, whatever notifications its commands cause.

Valkey 8.1 selects the database of an event for the client whose command runs, and leaves it selected.
"""

from __future__ import annotations

from typing import Any, Callable

import pytest
import redis

from helpers import Server, wait_until

REGISTRATIONS = ["", "eventTypes=['expired'], ", "eventTypes=['move_to', 'copy_to'], ", "prefix='other', "]
AWAY = [("MOVE", "a", "2"), ("COPY", "a", "b", "DB", "2"), ("COPY", "a", "b", "replace", "db", "2")]


def register(server: Server, arguments: str = "", mode: str = "sync") -> None:
    assert server.run(f"GB().foreach(lambda r: None).register({arguments}mode='{mode}')") == "OK"


def selected(client: redis.Redis) -> int:
    return client.client_info()["db"]


@pytest.mark.parametrize("arguments", REGISTRATIONS)
def test_moved_and_copied_keys(server: Server, arguments: str) -> None:
    register(server, arguments)
    for home in (0, 5):
        client = server.client(db=home, single_connection_client=True)
        for command in AWAY:
            client.set("a", home)
            assert client.execute_command(*command), command
            assert selected(client) == home, command
            away = server.client(db=2)
            assert away.get("a" if command[0] == "MOVE" else "b") == str(home)
            away.flushdb()
        # Those that fail, and those that stay.
        for command in (("MOVE", "no", "2"), ("COPY", "no", "b", "DB", "2"), ("COPY", "a", "c"), ("RENAME", "c", "d")):
            client.execute_command(*command)
            assert selected(client) == home, command
        client.flushdb()


LOADS = "read_through('*', lambda key: None, ttl=60)"
SAVES = "write_behind('*', lambda changes: None{more})"
HALVES = {
    "loads": [LOADS],
    "saves": [SAVES.format(more="")],
    "both": [LOADS, SAVES.format(more="")],
    "both, waiting": [LOADS, SAVES.format(more=", wait=True")],
    "waiting": [SAVES.format(more=", wait=True")],
    "both, and events": [LOADS, SAVES.format(more=""), "GB().foreach(lambda r: None).register(mode='sync')"],
    "events, and both": ["GB().foreach(lambda r: None).register(mode='sync')", LOADS, SAVES.format(more="")],
}


@pytest.mark.parametrize("halves", HALVES)
def test_of_both_halves(start_server: Callable[..., Server], halves: str) -> None:
    """Each of them asks for notifications of its own. Replicas and files hear the same."""
    server = start_server(args=["--appendonly", "yes"])
    replica = start_server(args=["--replicaof", server.host, server.port])
    for script in HALVES[halves]:
        server.run(script)
    wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up", 30)
    home = server.client(db=1, single_connection_client=True)
    for number, command in enumerate(AWAY):
        home.set("a", number)
        assert home.execute_command(*command), command
        assert selected(home) == 1, command
        home.set(f"behind:{number}", number)
        assert server.client(db=2).get("a" if command[0] == "MOVE" else "b") == str(number)
        server.client(db=2).flushdb()
    home.copy("a", "kept", destination_db=3)
    home.set("gone", 1)
    home.move("gone", 4)

    def databases(of: Server) -> list[dict[str, str]]:
        clients = [of.client(db=db) for db in range(5)]
        return [{key: client.get(key) for key in sorted(client.keys("*"))} for client in clients]

    behind = {f"behind:{number}": str(number) for number in range(len(AWAY))}
    wanted = [{}, {"a": "2", **behind}, {}, {"kept": "2"}, {"gone": "1"}]
    assert databases(server) == wanted
    wait_until(lambda: databases(replica) == wanted, 30, "the replica has the same")
    assert "CRITICAL" not in replica.log()
    server.own.execute_command("DEBUG", "LOADAOF")
    assert databases(server) == wanted, "the file has the same"


@pytest.mark.parametrize("command", AWAY)
def test_a_key_that_has_expired_over_there(server: Server, command: tuple[str, ...]) -> None:
    """That is an event of the other database, too."""
    register(server)
    server.client().execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    target = "a" if command[0] == "MOVE" else "b"
    server.client(db=2).set(target, "old", px=1)
    client = server.client(db=1, single_connection_client=True)
    client.set("a", "new")
    wait_until(lambda: server.client(db=2).execute_command("PTTL", target) == -2)
    assert client.execute_command(*command)
    assert selected(client) == 1


def test_in_transactions(server: Server) -> None:
    register(server)
    client = server.raw()
    commands = """SELECT 1; SET a 1; MULTI; COPY a b DB 2; SET x 1; SELECT 3; SET a 3; COPY a b DB 4; MOVE a 5; SET y 3; EXEC;
        SET z 3"""
    for command in commands.split(";"):
        assert not client.call(*command.split()).startswith(b"-"), command
    found = {db: {key: server.client(db=db).get(key) for key in server.client(db=db).keys("*")} for db in range(6)}
    assert found == {0: {}, 1: {"a": "1", "x": "1"}, 2: {"b": "1"}, 3: {"y": "3", "z": "3"}, 4: {"b": "3"}, 5: {"a": "3"}}


def test_in_scripts(server: Server) -> None:
    register(server)
    script = """
        redis.call('SET', 'a', 1)
        redis.call('COPY', 'a', 'b', 'DB', 2)
        redis.call('MOVE', 'a', 3)
        redis.call('SET', 'x', 'in 1')
        redis.call('SELECT', 4)
        redis.call('SET', 'a', 2)
        redis.call('COPY', 'a', 'b', 'DB', 5)
        redis.call('SET', 'y', 'in 4')
    """
    client = server.client(db=1, single_connection_client=True)
    client.eval(script, 0)
    assert selected(client) == 1
    assert server.client(db=1).get("x") == "in 1" and server.client(db=4).get("y") == "in 4"


def test_in_functions(server: Server) -> None:
    """Background, `sync`, hooks: what they execute is in the database of their event, each time."""
    register(server, "prefix='other', ")
    server.run(
        """
        def f(record):
            execute('SET', 'f', record['value'])
            execute('COPY', 'f', 'g', 'DB', '2')
            execute('MOVE', 'f', '3')
            execute('SET', 'h', record['value'])
        GB().foreach(f).register('k', mode='sync', eventTypes=['set'])
        GB('CommandReader').map(lambda r: call_next(*r[1:])).register(hook='copy', mode='sync', convertToStr=False)
        """
    )
    client = server.client(db=1, single_connection_client=True)
    client.set("k", "v")
    assert server.client(db=1).get("h") == "v" and server.client(db=2).get("g") == "v"
    assert client.execute_command("COPY", "k", "l", "DB", 4) and selected(client) == 1
    assert server.client(db=4).get("l") == "v"


def test_users_who_may_run_no_inner_command(server: Server) -> None:
    register(server)
    server.client().execute_command("ACL", "SETUSER", "narrow", "on", ">pw", "~*", "+copy", "+move", "+set", "+client", "+select")
    client = server.client(username="narrow", password="pw", db=1, single_connection_client=True)
    client.set("a", 1)
    for command in AWAY[::-1]:
        server.client(db=2).flushdb()
        assert client.execute_command(*command)
        assert selected(client) == 1


def test_replicas_keep_to_their_masters_databases(start_server: Callable[..., Server]) -> None:
    """The link to the master is a client as others are, and a database that it loses is lost data."""
    server, replica = start_server(), start_server()
    replica.client().replicaof(server.host, server.port)
    wait_until(lambda: replica.own.info("replication").get("master_link_status") == "up")
    register(server)
    wait_until(lambda: len(replica.registrations()) == 1)
    # One that became a replica has asked for notifications before; this one does so when it is a master.
    replica.client().replicaof("NO", "ONE")
    register(replica)
    replica.client().replicaof(server.host, server.port)
    wait_until(lambda: replica.own.info("replication").get("master_link_status") == "up")
    client = server.client(db=1, single_connection_client=True)

    def data(where: Server) -> dict[int, Any]:
        found = {}
        for db in range(6):
            other = where.client(db=db)
            found[db] = {key: other.get(key) for key in other.keys("*")}
        return found

    for command in AWAY:
        client.set("a", 1)
        client.execute_command(*command)
        client.set("after " + " ".join(command), 1)
    with client.pipeline(transaction=True) as pipe:
        pipe.set("a", 2)
        pipe.execute_command("COPY", "a", "c", "DB", 3)
        pipe.set("x", 1)
        pipe.execute()
    client.eval("redis.call('COPY', 'a', 'd', 'DB', 4) redis.call('SET', 'v', 1)", 0)
    server.run("GB().foreach(lambda r: execute('COPY', 'w', 'e', 'DB', '5')).register('w', mode='async_local')")
    server.run("GB().foreach(lambda r: None).register('*', commands=['copy'], mode='sync')")
    client.set("w", 1)
    server.wait_idle()
    client.execute_command("COPY", "w", "linked", "DB", 5)
    client.set("y", 1)
    wait_until(lambda: replica.client(db=1).get("y") == "1" or data(replica) == data(server), message="the replica follows")
    assert data(replica) == data(server)


def test_files_load_into_the_right_databases(start_server: Callable[..., Server]) -> None:
    server = start_server(args=["--appendonly", "yes", "--aof-use-rdb-preamble", "yes"])
    register(server)
    client = server.client(db=1, single_connection_client=True)
    for command in AWAY:
        client.set("a", 1)
        client.execute_command(*command)
        client.set("after " + " ".join(command), 1)
    keys = {db: sorted(server.client(db=db).keys("*")) for db in range(3)}
    server.stop()
    server.start()
    assert {db: sorted(server.client(db=db).keys("*")) for db in range(3)} == keys
    assert len(server.registrations()) == 1


def test_a_replica_refuses_nothing_of_its_master(start_server: Callable[..., Server]) -> None:
    """A COPY in a transaction is put behind a proxy command there, too; what the replica has not got is no reason to refuse it."""
    server = start_server()
    replica = start_server(args=["--replicaof", server.host, server.port, "--replica-read-only", "no"])
    server.run(f"{LOADS}\n{SAVES.format(more='')}")
    wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up" and replica.registrations(), 30)
    client = server.client()
    client.set("a", 1)
    wait_until(lambda: replica.client().get("a") == "1")
    replica.client().delete("a")
    with client.pipeline() as transaction:
        transaction.copy("a", "b", destination_db=2).set("end", 1)
        assert transaction.execute() == [True, True]
    wait_until(lambda: replica.client().get("end") == "1")
    assert "CRITICAL" not in replica.log()
