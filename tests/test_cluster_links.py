"""The links between shards: who may send messages, passwords, TLS, RG.CLUSTERSET, and the commands about the topology.
Contract: docs/contract/commands.md 1.20 to 1.23, 8.4 and chapter 9."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest
import redis

from clusters import Cluster, info_cluster, is_linked, make_cluster, node_id
from helpers import Server, ServerDied, free_port, wait_until

COUNT = "GB('ShardsIDReader').count().run()"


# --- one server ---


def test_without_a_cluster(server: Server) -> None:
    raw = server.raw()
    assert raw.call("RG.INFOCLUSTER") == b"$15\r\nno cluster mode\r\n"
    assert raw.call("RG.INFOCLUSTER", "whatever") == b"$15\r\nno cluster mode\r\n"
    assert raw.call("RG.REFRESHCLUSTER") == b"+OK\r\n"
    assert raw.call("RG.NETWORKTEST") == b"+OK\r\n"
    assert raw.call("RG.HELLO") == b"-ERRCLUSTER NULL cluster state on hello msg\r\n"
    assert raw.call("RG.INNERMSGCOMMAND", "0" * 40, "r", "k", "p", "0") == b"-ERRCLUSTER NULL cluster state\r\n"
    assert raw.call("RG.INNERMSGCOMMAND", "x").startswith(b"-ERR wrong number of arguments")
    assert server.run(COUNT) == [["1"], []]


def test_one_shard_is_no_cluster(start_server: Callable[..., Server]) -> None:
    server = start_server(args=["--cluster-enabled", "yes"])
    server.client().execute_command("CLUSTER", "ADDSLOTS", *range(16384))
    wait_until(lambda: server.own.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
    assert server.client().execute_command("RG.REFRESHCLUSTER") == "OK"
    assert info_cluster(server) == {}
    assert server.run("GB('ShardsIDReader').run()") == [["1"], []]
    assert server.run("1") == "OK"


@pytest.mark.parametrize("command", ["RG.REFRESHCLUSTER", "RG.CLUSTERSET a b c", "RG.CLUSTERSETFROMSHARD a"])
def test_commands_that_wait_are_refused_where_nobody_can(server: Server, command: str) -> None:
    client = server.client()
    pipeline = client.pipeline(transaction=True)
    pipeline.execute_command(*command.split())
    [reply] = pipeline.execute(raise_on_error=False)
    assert str(reply) == "Blocking module command called from transaction"
    found, errors = server.run(f"GB('ShardsIDReader').map(lambda r: execute({', '.join(map(repr, command.split()))})).run()")
    assert found == [] and "Blocking module command called" in errors[0]


# --- RG.CLUSTERSET ---


PASSWORD = "pass@word"


def lock(server: Server) -> None:
    """Nobody gets in without the password from now on."""
    server.client().config_set("requirepass", PASSWORD)
    server.disconnect()
    server.credentials = {"password": PASSWORD}


def words(server: Server, servers: list[Server], password: str = "") -> list[Any]:
    """RG.CLUSTERSET for one of `servers`, whose ids are 1, 2, ..."""
    found: list[Any] = ["RG.CLUSTERSET", "_", "_", "_", "_", "_", servers.index(server) + 1, "_", len(servers)]
    size = 16384 // len(servers)
    for number, other in enumerate(servers):
        last = 16383 if number + 1 == len(servers) else (number + 1) * size - 1
        found += ["_", number + 1, "_", number * size, last, "_", f"{password}@{other.host}:{other.port}", "_"]
    return found[:-1]


@pytest.mark.matrix
def test_clusterset(start_server: Callable[..., Server]) -> None:
    """A cluster that is not Redis Cluster: servers that are told about each other, with a password."""
    servers = [start_server() for _ in range(3)]
    for server in servers:
        lock(server)
        assert server.client().execute_command(*words(server, servers, PASSWORD)) == "OK"
    for server in servers:
        wait_until(lambda: is_linked(server, 3))
    ids = [str(number).rjust(40, "0") for number in (1, 2, 3)]
    assert sorted(info_cluster(servers[0])) == ids
    for server in servers:
        found, errors = server.run("GB('ShardsIDReader').run()")
        assert (sorted(found), errors) == (ids, [])
    assert servers[1].run("GB('CommandReader').map(lambda r: 1).register(trigger='t', mode='sync')") == "OK"
    for server in servers:
        assert server.client().execute_command("RG.TRIGGER", "t") == ["1"]
    # a shard that restarts has lost its topology, and gets it from the others
    servers[2].credentials = {}
    servers[2].restart(kill=True)
    lock(servers[2])
    wait_until(lambda: all(is_linked(server, 3) for server in servers), 20)
    wait_until(lambda: len(servers[2].registrations()) == 1, 20)
    # fewer shards
    for server in servers[:2]:
        assert server.client().execute_command(*words(server, servers[:2], PASSWORD)) == "OK"
    for server in servers[:2]:
        wait_until(lambda: is_linked(server, 2))
    assert servers[0].run(COUNT) == [["2"], []]
    assert servers[0].client().execute_command(*words(servers[0], servers[:1])) == "OK"
    assert info_cluster(servers[0]) == {}
    assert servers[0].run(COUNT) == [["1"], []]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda found: found[:8], "Could not parse cluster set arguments"),
        (lambda found: found[:20], "Could not parse cluster set arguments"),
        (lambda found: [word if word != 16383 else 16384 for word in found], "bad slot"),
        (lambda found: [word if word != 16383 else "x" for word in found], "bad slot"),
        (lambda found: [str(word).replace("@", "") for word in found], "bad address"),
        (lambda found: [str(word).replace("@127.0.0.1:", "@") for word in found], "bad address"),
        (lambda found: [word if place != 6 else "z" for place, word in enumerate(found)], "bad id"),
        (lambda found: [word if place != 8 else "many" for place, word in enumerate(found)], "bad number of ranges"),
    ],
)
def test_clusterset_refuses_what_it_cannot_read(server: Server, change: Callable[..., Any], error: str) -> None:
    with pytest.raises(redis.ResponseError, match=error):
        server.client().execute_command(*change(words(server, [server, server])))
    assert info_cluster(server) == {}


# --- who may send messages ---


@pytest.mark.matrix
def test_clients_are_no_shards(cluster: Cluster) -> None:
    raw = cluster[0].raw()
    hello = raw.call("RG.HELLO")
    assert hello.startswith(b"$40\r\n")
    other = node_id(cluster[1])
    run = info_cluster(cluster[0])[other]["runid"]
    for secret in ("", "0" * 64, hello.split(b"\r\n")[1]):
        assert raw.call("RG.HELLO", other, run, secret, 0).startswith(b"-ERR this shard does not know")
    # a greeting without the number of a link proves nothing
    assert raw.call("RG.HELLO", other, run, "") == hello
    internal = b"-ERR this command is internal to the module and cannot be called\r\n"
    assert raw.call("RG.INNERMSGCOMMAND", other, run, "pinion1", "payload", "1000000") == internal
    assert raw.call("RG.INNERMSGCOMMAND", "x", run, "pinion1", "payload", "1000000") == internal
    assert raw.call("RG.INNERMSGCOMMAND", other, run, "pinion1", "payload", "x") == b"-bad msg id given\r\n"
    # the links are as good as before
    assert cluster[1].run(COUNT) == [["3"], []]


def test_the_network_test_reaches_all_shards(cluster: Cluster) -> None:
    assert cluster[0].client().execute_command("RG.NETWORKTEST") == "OK"
    line = f"got test message from shard {node_id(cluster[0])}: test"
    for server in cluster.masters[1:]:
        wait_until(lambda: line in server.log())


def test_damaged_messages_harm_nobody(server: Server) -> None:
    """A client that knows the secret, here because RG.CLUSTERSET made it of a known password."""
    here, there = "1".rjust(40, "0"), "2".rjust(40, "0")
    told = words(server, [server, server], PASSWORD)
    told[-2] = f"{PASSWORD}@127.0.0.1:{free_port()}"  # nobody listens there
    assert server.client().execute_command(*told) == "OK"
    raw = server.raw()
    secret = hashlib.sha256(f"pinion {here} {PASSWORD}".encode()).hexdigest()
    assert raw.call("RG.HELLO", there, "run", secret, "x").startswith(b"-ERR this shard does not know")
    assert raw.call("RG.HELLO", there, "run", secret, 0).startswith(b"*2\r\n$40")
    message = lambda number, payload, kind="pinion1": raw.call("RG.INNERMSGCOMMAND", there, "run", kind, payload, number)  # noqa: E731
    assert message(0, "payload", "nothing") == b"-can not find the callback requested\r\n"
    assert message(1, "test", "RG_NetworkTest") == b"+OK\r\n"
    assert message(1, "test", "RG_NetworkTest") == b"+duplicate message ignored\r\n"
    chosen = random.Random(1)
    for number in range(2, 2000):
        # an enum of MessagePack: a map of one variant, whose content is anything
        head = bytes([0x81, chosen.randrange(12), 0x90 + chosen.randrange(4)])
        assert message(number, head[: chosen.randrange(4)] + chosen.randbytes(chosen.randrange(60))) == b"+OK\r\n"
    # another connection has to prove itself anew
    other = server.raw()
    assert other.call("RG.INNERMSGCOMMAND", there, "run", "pinion1", "x", 5000).startswith(b"-ERR this command is internal")
    assert server.client().ping()


def test_refresh(cluster: Cluster) -> None:
    before = cluster[0].client().execute_command("RG.INFOCLUSTER")[3]
    assert cluster[0].client().execute_command("RG.REFRESHCLUSTER") == "OK"
    assert cluster[0].client().execute_command("RG.INFOCLUSTER")[3] != before
    cluster.wait_linked()
    for server in cluster.masters:
        wait_until(lambda: server.run(COUNT) == [["3"], []])
    assert "Got cluster refresh command" in cluster[0].log()


def test_a_refresh_answers_when_its_links_are_there(cluster: Cluster) -> None:
    connections = [server.raw() for server in cluster.masters]
    for _ in range(5):
        for raw in connections:
            raw.send("RG.REFRESHCLUSTER")
            raw.send("RG.REFRESHCLUSTER")
        for raw in connections * 2:
            assert raw.read() == b"+OK\r\n"
        assert all(is_linked(server, 3) for server in cluster.masters)
        assert cluster[0].run(COUNT) == [["3"], []]


def test_a_refresh_ends_no_run_that_has_lost_nothing(cluster: Cluster) -> None:
    script = """
        import time

        def work(record):
            execute('SET', 'begun{%s}' % hashtag(), 1)
            while not execute('EXISTS', 'go{%s}' % hashtag()):
                time.sleep(0.001)

        GB('ShardsIDReader').foreach(work).count().run()
    """
    execution = cluster[0].run(script, "UNBLOCKING")
    for server in cluster.masters:
        wait_until(lambda: server.own.keys("begun*"))
    for server in [*cluster.masters, cluster[0]]:
        assert server.client().execute_command("RG.REFRESHCLUSTER") == "OK"
    for server in cluster.masters:
        [begun] = server.own.keys("begun*")
        server.client().set(begun.replace("begun", "go"), 1)
    assert cluster[0].client().execute_command("RG.GETRESULTSBLOCKING", execution) == [["3"], []]


def test_figures(cluster: Cluster) -> None:
    figures = lambda: cluster[0].client().info("rg_cluster")
    before = figures()
    assert (before["rg_shards"], before["rg_links_connected"]) == (3, 2)
    assert cluster[0].run(COUNT) == [["3"], []]
    after = figures()
    assert after["rg_messages_sent"] > before["rg_messages_sent"]
    assert after["rg_messages_received"] > before["rg_messages_received"]
    assert after["rg_messages_sent_bytes"] > before["rg_messages_sent_bytes"]


# --- passwords, users, TLS ---


@pytest.mark.matrix
@pytest.mark.parametrize("rights", ["~* &* +@all", "+rg.hello +rg.innermsgcommand"])
def test_shards_log_in_as_replicas_do(start_server: Callable[..., Server], rights: str) -> None:
    """With masteruser and masterauth; a user needs two commands to be a shard."""
    cluster = make_cluster(start_server)
    for server in cluster.masters:
        client = server.client()
        client.execute_command("ACL", "SETUSER", "peer", "on", ">secret", *rights.split())
        client.config_set("masteruser", "peer")
        client.config_set("masterauth", "secret")
    for server in cluster.masters:
        server.client().execute_command("RG.REFRESHCLUSTER")
    cluster.wait_linked()
    assert cluster[0].run(COUNT) == [["3"], []]
    names = {client["user"] for client in cluster[0].client().client_list() if client["cmd"].lower() == "rg.innermsgcommand"}
    assert names == {"peer"}


def test_a_password_for_all(start_server: Callable[..., Server]) -> None:
    cluster = make_cluster(start_server)
    for server in cluster.masters:
        server.client().config_set("masterauth", PASSWORD)
        lock(server)
    for server in cluster.masters:
        server.client().execute_command("RG.REFRESHCLUSTER")
    cluster.wait_linked()
    assert cluster[0].run(COUNT) == [["3"], []]


def test_a_wrong_password_is_told(start_server: Callable[..., Server]) -> None:
    cluster = make_cluster(start_server)
    lock(cluster[1])
    cluster[0].client().execute_command("RG.REFRESHCLUSTER")
    wait_until(lambda: "will try to reconnect. (" in cluster[0].log() and "uthentication" in cluster[0].log())
    cluster[0].client().config_set("masterauth", PASSWORD)
    cluster.wait_linked()


def certificates(folder: Path) -> list[str]:
    """The options of a server for TLS, with a certificate of an authority of its own."""
    def run(*command: str) -> None:
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)

    run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=authority")
    run("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "node.key", "-out", "node.csr", "-subj", "/CN=some.other.name")
    (folder / "extensions").write_text("subjectAltName=DNS:some.other.name\n")
    run("x509", "-req", "-in", "node.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-out", "node.crt", "-days", "2", "-extfile", "extensions")
    files = {"tls-cert-file": "node.crt", "tls-key-file": "node.key", "tls-ca-cert-file": "ca.crt"}
    return [word for option, name in files.items() for word in (f"--{option}", str(folder / name))]


def test_a_cluster_over_tls(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """The certificate of the other shard is checked, not the name in it."""
    options = certificates(tmp_path)
    try:
        start_server(module=False, args=["--tls-port", str(free_port()), *options])
    except ServerDied as died:
        if re.search("TLS support|Bad directive", str(died)):
            pytest.skip("this server is built without TLS")
        raise
    cluster = make_cluster(start_server, args=["--tls-cluster", "yes", *options], tls=True)
    assert cluster[0].run(COUNT) == [["3"], []]
    script = "GB('CommandReader').map(lambda r: 1).register(trigger='t', mode='sync')"
    assert cluster[1].run(script) == "OK"
    assert cluster[2].client().execute_command("RG.TRIGGER", "t") == ["1"]
