"""Python in EVAL and FCALL runs as its caller: rights, read-only calls, memory, replicas, slots. Contract:
docs/contract/scripting-engine.md."""

from __future__ import annotations

from typing import Callable

import pytest
import redis

from clusters import make_cluster
from helpers import Server, wait_until
from scripting import error_of, evaluate, knows_scripts, load, needs_engine

pytestmark = pytest.mark.matrix


@pytest.fixture(autouse=True)
def engine(request: pytest.FixtureRequest) -> None:
    needs_engine(request.config)


WRITER = """
@register_function
def put(keys, args):
    return execute('SET', keys[0], args[0])

@register_function(flags=['no-writes'])
def look(keys, args):
    return execute('GET', keys[0])

@register_function(flags=['no-writes'])
def sneak(keys, args):
    return execute(*args)

@register_function(flags=['allow-oom'])
def anyway(keys, args):
    return execute('SET', keys[0], args[0])

@register_function
def both(keys, args):
    execute('DEL', keys[0])
    return execute('SET', keys[0], args[0])

@register_function(flags=['no-writes'])
def run(keys, args):
    return execute(*args)
"""
READ_ONLY = "Write commands are not allowed from read-only scripts. "


def test_a_user_s_rights_hold(server: Server) -> None:
    admin = server.client()
    load(admin, WRITER)
    admin.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["mine:*"], commands=["+fcall", "+eval", "+get", "+ping"])
    client = server.client(username="limited", password="pw")
    assert client.fcall("look", 1, "mine:a") is None
    denied = error_of(client.fcall, "put", 1, "mine:a", 1)
    assert denied.startswith("NoPermissionError") and "set" in denied and "put, line" in denied, denied
    denied = error_of(evaluate, client, "return execute('GET', 'yours:a')")
    assert denied.startswith("NoPermissionError") and "script, line 2" in denied, denied
    (entry, *_) = admin.acl_log()
    assert entry["username"] == "limited" and entry["object"] == "yours:a"
    assert error_of(client.fcall, "look", 1, "yours:a").startswith("NoPermissionError"), "by the server, before the script"
    admin.acl_setuser("limited", commands=["-fcall"])
    assert error_of(client.fcall, "look", 1, "mine:a").startswith("NoPermissionError")


def test_a_user_s_rights_hold_through_links_and_hooks(server: Server) -> None:
    """A command that is linked or hooked goes through a command of ours, which must not open what the user may not do."""
    admin = server.client()
    server.run("GB('KeysReader').foreach(lambda r: override_reply('x')).register(commands=['get'], eventTypes=['keymiss'], mode='async_local')")
    server.run("GB('CommandReader').map(lambda r: call_next(*r[1:])).register(hook='strlen', mode='sync')")
    admin.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["mine:*"],
                      commands=["+eval", "+rg.innerread", "+rg.innerwrite", "+ping"])
    client = server.client(username="limited", password="pw")
    for command in ("GET", "STRLEN"):
        assert "NoPermissionError" in error_of(evaluate, client, f"return execute('{command}', 'mine:a')", ("mine:a",))
    admin.acl_setuser("limited", commands=["+get", "+strlen"])
    assert evaluate(client, "return [execute('GET', 'mine:a'), execute('STRLEN', 'mine:a')]", ("mine:a",)) == [None, "0"]
    for command in ("GET", "STRLEN"):
        assert "NoPermissionError" in error_of(evaluate, client, f"return execute('{command}', 'yours:a')")


@pytest.mark.parametrize("command", ["SET x 1", "DEL x", "FLUSHALL", "PUBLISH c m", "PFCOUNT h", "EXPIRE x 1", "SORT l STORE m"])
def test_read_only_scripts_do_not_write(server: Server, command: str) -> None:
    client = server.client()
    load(client, WRITER)
    client.set("x", 0)
    words = command.split()
    assert READ_ONLY in error_of(client.fcall, "sneak", 0, *words)
    assert READ_ONLY in error_of(client.execute_command, "FCALL_RO", "sneak", 0, *words)
    assert READ_ONLY in error_of(evaluate, client, f"return execute(*{words})", command="EVAL_RO")
    assert client.get("x") == "0"


def test_read_only_calls_need_read_only_functions(server: Server) -> None:
    client = server.client()
    load(client, WRITER)
    assert "Can not execute a script with write flag" in error_of(client.execute_command, "FCALL_RO", "put", 1, "x", 1)
    assert client.execute_command("FCALL_RO", "look", 1, "x") is None


def test_memory_at_its_limit(server: Server, request: pytest.FixtureRequest) -> None:
    client = server.client()
    load(client, WRITER)
    client.set("x", "old")
    script = client.script_load("#!python\nreturn execute('SET', KEYS[0], 1)")
    before = client.config_get("maxmemory")
    client.config_set("maxmemory", 1)
    try:
        assert error_of(client.fcall, "put", 1, "x", "new").startswith("OutOfMemoryError")
        assert client.fcall("anyway", 1, "x", "new") == "OK"
        assert client.fcall("look", 1, "x") == "new"
        assert error_of(client.evalsha, script, 1, "x").startswith("OutOfMemoryError")
    finally:
        client.config_set("maxmemory", before["maxmemory"])
    assert client.get("x") == "new"


def test_the_limit_cannot_change_in_the_middle_of_a_script(server: Server) -> None:
    client = server.client()
    load(client, "register_function('f', lambda keys, args: execute('CONFIG', 'SET', 'maxmemory', '1'), flags=['allow-oom'])")
    assert "not allowed" in error_of(client.fcall, "f", 1, "x")
    assert client.config_get("maxmemory")["maxmemory"] == "0"


@pytest.mark.parametrize("command", ["CONFIG GET maxmemory", "SUBSCRIBE c", "MULTI", "SHUTDOWN", "ACL LIST", "MONITOR",
                                     "RG.PYEXECUTE 1", "FUNCTION FLUSH", "SCRIPT FLUSH", "FCALL f 0"])
def test_commands_that_no_script_may_run(server: Server, command: str) -> None:
    client = server.client()
    load(client, WRITER)
    client.set("x", 1)
    with pytest.raises(redis.ResponseError):
        client.fcall("run", 0, *command.split())
    assert client.get("x") == "1" and client.ping() and len(client.function_list()) == 1


def test_replicas(start_server: Callable[..., Server]) -> None:
    master, replica = start_server(), start_server()
    slave = replica.client()
    slave.replicaof("127.0.0.1", master.port)
    wait_until(lambda: slave.info("replication")["master_link_status"] == "up", 20)
    client = master.client()
    load(client, WRITER)
    client.fcall("put", 1, "x", "value")
    assert client.wait(1, 5000) == 1
    assert slave.fcall("look", 1, "x") == "value"
    assert slave.execute_command("FCALL_RO", "look", 1, "x") == "value"
    assert evaluate(slave, "return execute('GET', KEYS[0])", ("x",), command="EVAL_RO") == "value"
    assert error_of(slave.fcall, "put", 1, "x", 2).startswith("ReadOnlyError")
    assert error_of(evaluate, slave, "return execute('SET', 'x', 2)").startswith("ReadOnlyError")
    # What a script does arrives in one piece, and nothing else of it does.
    slave.config_resetstat()
    assert client.fcall("both", 1, "x", "new") == "OK"
    assert client.wait(1, 5000) == 1
    stats = slave.info("commandstats")
    assert slave.get("x") == "new" and "cmdstat_fcall" not in stats and {"cmdstat_multi", "cmdstat_exec"} <= stats.keys()
    # The library goes on where the old master was.
    slave.replicaof("NO", "ONE")
    assert slave.fcall("put", 1, "x", "mine") == "OK"


def test_a_cluster(start_server: Callable[..., Server], request: pytest.FixtureRequest) -> None:
    cluster = make_cluster(start_server)
    for shard in cluster.masters:
        load(shard, WRITER)
    shard = cluster.shard_of("{a}1")
    client = shard.client()
    assert client.fcall("put", 1, "{a}1", "value") == "OK"
    foreign = next(f"k{n}" for n in range(1000) if cluster.shard_of(f"k{n}") is not shard)
    assert error_of(client.fcall, "put", 1, foreign, 1).startswith("MovedError")
    said = error_of(evaluate, client, f"return execute('GET', '{foreign}')", ("{a}1",))
    assert "Attempted to access a non local key in a cluster node" in said, said
    # A key of this shard, in another slot than those that were declared.
    other = next(f"k{n}" for n in range(1000) if cluster.shard_of(f"k{n}") is shard)
    body = f"return execute('GET', '{other}')"
    if knows_scripts(request.config):
        said = error_of(evaluate, client, body, ("{a}1",))
        assert "do not hash to the same slot" in said, said
    else:
        assert evaluate(client, body, ("{a}1",)) is None
    assert client.ping() and client.fcall("look", 1, "{a}1") == "value"


def test_writes_wait_while_clients_are_paused(server: Server) -> None:
    client, other = server.client(), server.client()
    load(client, WRITER)
    client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    assert other.fcall("look", 1, "x") is None, "one that only reads does not wait"
    waiting = server.raw()
    waiting.send("FCALL", "put", "1", "x", "late")
    wait_until(lambda: client.info("clients")["blocked_clients"] == 1, 5)
    assert client.get("x") is None
    client.client_unpause()
    assert waiting.read() == b"$2\r\nOK\r\n" and client.get("x") == "late"
