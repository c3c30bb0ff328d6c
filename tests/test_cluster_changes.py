"""A cluster that changes: failovers there and back, shards that have just started or got another role, slots that nobody or
two shards have, data that are replaced. Every reply is right or an error that says why, and comes within a bound. Contract:
docs/contract/commands.md 8.3 to 8.5; faults C7 to C10."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any, Callable, Iterator

import pytest
import redis

from clusters import Cluster, fail_over, is_linked, make_cluster, move_slot, node_id
from helpers import Server, as_dict, wait_until
from proxy import Proxy

COUNT = 300
IDLE_MS = 5000
OPTIONS: dict[str, Any] = {"module_args": ["ExecutionMaxIdleTime", IDLE_MS]}
KEYS = "GB('KeysReader').count().run('key:*')"
SHARDS = "GB('ShardsIDReader').count().run()"
TOTAL = [[str(COUNT)], []]
TRIGGER = "GB('CommandReader').map(lambda r: hashtag()).register(trigger='t')"
UNKNOWN = "ERRCLUSTER"
REPLACED = "ERR the data were replaced while the execution ran (by a reload or a resynchronisation)"


def filled(cluster: Cluster) -> Cluster:
    cluster.fill({f"key:{number}": number for number in range(COUNT)})
    for master, replica in zip(cluster.masters, cluster.replicas):
        wait_until(lambda: replica.own.dbsize() == master.own.dbsize())
    return cluster


def outcome(server: Server, script: str, *words: str) -> Any:
    """What a script gives: its reply, or the text of the error."""
    try:
        return server.run(script, *words)
    except redis.ResponseError as error:
        return str(error)


def is_error(found: Any) -> bool:
    """True for a reply that says that something is wrong with the cluster."""
    if isinstance(found, str):
        # the second one is the server's own, for clients that wait
        return found.startswith((UNKNOWN, "The cluster is down", "UNBLOCKED"))
    return isinstance(found, list) and any(str(error).startswith((UNKNOWN, "-ERR shard", "ERR shard")) for error in found[-1])


@pytest.fixture
def proxies() -> Iterator[list[Proxy]]:
    proxies = [Proxy() for _ in range(2)]
    yield proxies
    for proxy in proxies:
        proxy.close()


# --- links begin anew (C7) ---


def all_work(servers: list[Server]) -> None:
    """Runs, triggers and registrations from each shard, the answers of all."""
    for server in servers:
        for _ in range(5):
            assert server.run(SHARDS) == [[str(len(servers))], []]
        script = "GB('CommandReader').map(lambda r: 1).register(trigger='x')"
        assert server.run(script, "ID", "x", "UPGRADE") == "OK"
        assert server.client().execute_command("RG.TRIGGER", "x") == ["1"] * len(servers)


@pytest.mark.matrix
def test_over_and_back(start_server: Callable[..., Server]) -> None:
    cluster = filled(make_cluster(start_server, replicas=1, **OPTIONS))
    for server in cluster.masters * 3:
        assert server.run(KEYS) == TOTAL
    master, replica = cluster[0], cluster.replicas[0]
    for new, others in [(replica, cluster.masters[1:]), (master, cluster.masters[1:]), (replica, cluster.masters[1:])]:
        fail_over(new)
        servers = [new, *others]
        for server in servers:
            wait_until(lambda: is_linked(server, 3), 20)
        for server in servers:
            # A shard that has not heard of the failover yet still asks the old master.
            wait_until(lambda: outcome(server, KEYS) == TOTAL, 20)
        all_work(servers)


def test_a_shard_loses_all_slots_and_gets_them_back(start_server: Callable[..., Server]) -> None:
    cluster = make_cluster(start_server, masters=2, args=["--cluster-allow-replica-migration", "no"], **OPTIONS)
    all_work(cluster.masters)
    # one slot is enough to be a shard
    for server in reversed(cluster.masters):
        server.client().execute_command("CLUSTER", "DELSLOTS", *range(8192, 16383))
    cluster[0].client().execute_command("CLUSTER", "ADDSLOTS", *range(8192, 16383))
    cluster.wait_linked()
    wait_until(lambda: outcome(cluster[1], SHARDS) == [["2"], []], 20)
    for _ in range(2):
        move_slot(cluster.masters, cluster[1], cluster[0], 16383)
        wait_until(lambda: not is_linked(cluster[0], 2))
        assert cluster[0].run(SHARDS) == [["1"], []]
        move_slot(cluster.masters, cluster[0], cluster[1], 16383)
        for server in cluster.masters:
            wait_until(lambda: is_linked(server, 2), 20)
        all_work(cluster.masters)


@pytest.mark.matrix
def test_a_refresh_and_then_a_lost_connection(start_server: Callable[..., Server], proxies: list[Proxy]) -> None:
    """A shard has another run id, but knows the links of the others from before."""
    cluster = make_cluster(start_server, masters=2, proxies=proxies, **OPTIONS)
    all_work(cluster.masters)
    for server in cluster.masters * 2:
        assert server.client().execute_command("RG.REFRESHCLUSTER") == "OK"
        cluster.wait_linked()
        all_work(cluster.masters)
        for proxy in proxies:
            proxy.drop()
        cluster.wait_linked()
        for server in cluster.masters:
            # what is under way when a shard shows its new run id ends
            wait_until(lambda: outcome(server, SHARDS) == [["2"], []], 20)
        all_work(cluster.masters)


# --- a shard that does not know the others (C8) ---


@pytest.mark.matrix
def test_just_promoted(start_server: Callable[..., Server]) -> None:
    cluster = filled(make_cluster(start_server, replicas=1, **OPTIONS))
    assert cluster[0].run(TRIGGER) == "OK"
    master, replica = cluster[0], cluster.replicas[0]
    wait_until(lambda: len(replica.registrations()) == 1)
    for number, (new, old) in enumerate([(replica, master), (master, replica)] * 3):
        raw, client = new.raw(timeout=60), new.client()
        fail_over(new)
        raw.send("RG.PYEXECUTE", KEYS)
        raw.send("RG.TRIGGER", "t")
        count = raw.read()
        assert count == b"*2\r\n*1\r\n$3\r\n300\r\n*0\r\n" or UNKNOWN.encode() in count or count.startswith(b"-UNBLOCKED"), count
        if count.startswith(b"-UNBLOCKED"):
            continue  # it was demoted again, and closes the connections of those who waited
        triggered = raw.read()
        assert triggered.startswith(b"*3\r\n") or is_error(triggered[1:].decode()), triggered
        script = f"GB('CommandReader').map(lambda r: {number}).register(trigger='n{number}', mode='sync')"
        servers = [new, *cluster.masters[1:]]
        if new.run(script) == "OK":
            for server in servers:
                assert server.client().execute_command("RG.TRIGGER", f"n{number}") == [str(number)]
        for server in servers:
            wait_until(lambda: is_linked(server, 3), 20)
        wait_until(lambda: old.own.info("replication").get("master_link_status") == "up", 30)
        wait_until(lambda: {entry["id"] for entry in old.registrations()} == {entry["id"] for entry in new.registrations()}, 20)
        client.close()


@pytest.mark.matrix
def test_just_restarted(start_server: Callable[..., Server]) -> None:
    cluster = filled(make_cluster(start_server, args=["--appendonly", "yes"], **OPTIONS))
    assert cluster[0].run(TRIGGER) == "OK"
    for server in cluster.masters:
        others = [other for other in cluster.masters if other is not server]
        for script, right in [(KEYS, TOTAL), (SHARDS, [["3"], []]), (TRIGGER.replace("'t'", "'u'"), "OK")]:
            server.restart(kill=True)
            found = outcome(server, script, *(["ID", "u", "UPGRADE"] if right == "OK" else []))
            assert found == right or is_error(found), found
            if found == "OK":
                for other in others:
                    assert "u" in [entry["RegistrationData"]["args"].get("trigger") for entry in other.registrations()]
        server.restart(kill=True)
        try:
            assert len(server.client().execute_command("RG.TRIGGER", "t")) == 3
        except redis.ResponseError as error:
            assert is_error(str(error)), error
        for command in (["RG.CLEARREGISTRATIONSSTATS"], ["RG.ABORTEXECUTION", f"{node_id(server)}-99999"]):
            server.restart(kill=True)
            # all shards are asked, or it is said that they are not known
            try:
                assert server.client().execute_command(*command) == "OK"
            except redis.ResponseError as error:
                assert str(error) == "execution does not exist" or is_error(str(error)), error
    cluster.wait_linked()
    for server in cluster.masters:
        assert server.run(KEYS) == TOTAL


def deleted(server: Server, slot: int) -> bool:
    """Whether a node takes a slot as nobody's; it forgets the owner, if it knows one."""
    client = server.client()
    known = any(first <= slot <= last for first, last, *_ in client.execute_command("CLUSTER", "SLOTS"))
    if known:
        client.execute_command("CLUSTER", "DELSLOTS", slot)
    return not known


def test_a_slot_that_nobody_has(start_server: Callable[..., Server]) -> None:
    cluster = filled(make_cluster(start_server, args=["--cluster-require-full-coverage", "no"], module_args=["ExecutionMaxIdleTime", 1000]))
    # its owner first, who would tell the others again
    for server in reversed(cluster.masters):
        wait_until(lambda: deleted(server, 16383), 20)
    for server in cluster.masters:
        wait_until(lambda: deleted(server, 16383) and "no shard has slot 16383" in str(outcome(server, KEYS)), 20)
        assert "no shard has slot 16383" in str(outcome(server, TRIGGER))
        assert server.registrations() == []
    cluster[2].client().execute_command("CLUSTER", "ADDSLOTS", 16383)
    for server in cluster.masters:
        wait_until(lambda: outcome(server, KEYS) == TOTAL, 20)


@pytest.mark.matrix
def test_a_cluster_that_is_down(start_server: Callable[..., Server]) -> None:
    cluster = filled(make_cluster(start_server, module_args=["ExecutionMaxIdleTime", 1000]))
    assert cluster[0].run(TRIGGER) == "OK"
    cluster[2].stop(kill=True)
    for server in cluster.masters[:2]:
        wait_until(lambda: server.own.execute_command("CLUSTER INFO")["cluster_state"] == "fail", 20)
        # the server may say so itself to those who wait
        wait_until(lambda: "cluster is down" in str(outcome(server, SHARDS)), 20)
        assert "cluster is down" in outcome(server, TRIGGER.replace("'t'", "'u'"))
        assert len(server.registrations()) == 1
        with pytest.raises(redis.ResponseError, match="cluster is down|max idle"):
            server.client().execute_command("RG.TRIGGER", "t")
    # what reaches the others later is said to those who are there
    [entry] = cluster[1].registrations()
    assert cluster[0].client().execute_command("RG.UNREGISTER", entry["id"]) == "OK"
    wait_until(lambda: cluster[1].registrations() == [])
    cluster[2].start()
    cluster.wait_linked()
    for server in cluster.masters:
        wait_until(lambda: outcome(server, SHARDS) == [["3"], []], 20)


@pytest.mark.parametrize("leaves", [False, True])
def test_a_script_whose_client_was_told_that_it_failed(start_server: Callable[..., Server], leaves: bool) -> None:
    """The server itself answers those who wait while the cluster is down, and a client may leave. The script does not run when
    the cluster is up again: what the client has deployed elsewhere meanwhile would be replaced by it (seed 812150048 of chaos)."""
    cluster = make_cluster(start_server, module_args=["ExecutionMaxIdleTime", 60_000])
    server, down = cluster[0], cluster[2]
    if server.is_valkey and not leaves:
        pytest.skip("Valkey leaves clients that wait for a module alone")
    down.process.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: server.own.execute_command("CLUSTER INFO")["cluster_state"] == "fail", 20)
        others = server.own.info("clients")["connected_clients"]
        raw = server.raw(timeout=30)
        assert raw.call("PING") == b"+PONG\r\n"
        raw.send("RG.PYEXECUTE", "GB('CommandReader').map(lambda r: 'late').register(trigger='t', mode='sync')", "ID", "app", "UPGRADE")
        if leaves:
            # At once: the server lets it wait for less than a tenth of a second. That it has gone is seen behind its command.
            raw.close()
            wait_until(lambda: server.own.info("clients")["connected_clients"] <= others)
        else:
            assert b"The cluster is down" in raw.read()
    finally:
        down.process.send_signal(signal.SIGCONT)
    cluster.wait_linked()
    # who waited longer has had its turn before
    assert server.run(TRIGGER.replace("'t'", "'u'")) == "OK"
    assert [entry["RegistrationData"]["args"]["trigger"] for entry in server.registrations()] == ["u"]


def test_two_masters_claim_a_slot(start_server: Callable[..., Server]) -> None:
    """One of them is told otherwise by the others, and insists."""
    cluster = filled(make_cluster(start_server, masters=2, module_args=["ExecutionMaxIdleTime", 1000]))
    one, two = cluster.masters
    stop = threading.Event()

    def insist() -> None:
        client, name = one.client(), node_id(one)
        while not stop.wait(0.001):
            client.execute_command("CLUSTER", "SETSLOT", 16000, "NODE", name)

    thread = threading.Thread(target=insist)
    thread.start()
    try:
        found = [outcome(server, KEYS) for _ in range(10) for server in cluster.masters]
    finally:
        stop.set()
        thread.join(20)
    assert any(map(is_error, found)), found
    assert all(reply == TOTAL or is_error(reply) for reply in found), found
    for server in cluster.masters:
        wait_until(lambda: outcome(server, KEYS) == TOTAL, 20)


@pytest.mark.matrix
def test_a_slot_on_its_way(start_server: Callable[..., Server]) -> None:
    """A key that moves while it is counted would be counted twice, or not at all."""
    cluster = filled(make_cluster(start_server, **OPTIONS))
    one, two = cluster[0], cluster[1]
    two.client().execute_command("CLUSTER", "SETSLOT", 7, "IMPORTING", node_id(one))
    one.client().execute_command("CLUSTER", "SETSLOT", 7, "MIGRATING", node_id(two))
    moved = "ERRCLUSTER slots moved while the execution read the keys"
    for server in cluster.masters:
        for script in (KEYS, "GB('KeysOnlyReader').count().run()", "GB('StreamReader').count().run('s')"):
            _, errors = server.run(script)
            assert moved in " ".join(errors)
        # what reads no keys does not mind
        assert server.run(SHARDS) == [["3"], []]
        assert server.run(KEYS.replace("'key:*'", "'key:*', mode='async_local'"))[1] == []
    for server in (one, two):
        server.client().execute_command("CLUSTER", "SETSLOT", 7, "STABLE")
    for server in cluster.masters:
        assert server.run(KEYS) == TOTAL


def test_a_slot_moves_in_the_middle(start_server: Callable[..., Server]) -> None:
    cluster = filled(make_cluster(start_server, **OPTIONS))
    script = """
    import time
    def slow(r):
        execute('INCR', 'begun{%s}' % hashtag())
        time.sleep(0.02)
        return r
    GB('KeysReader').map(slow).count().run('key:*')
    """
    found: list[Any] = []
    client = cluster[2].client(socket_timeout=60)
    thread = threading.Thread(target=lambda: found.append(cluster[2].run(script, client=client)))
    thread.start()
    wait_until(lambda: cluster[0].own.exists("begun{06S}"))
    move_slot(cluster.masters, cluster[0], cluster[1], 3)
    thread.join(60)
    [[_, errors]] = found
    assert "slots moved" in " ".join(errors)
    for server in cluster.masters:
        wait_until(lambda: outcome(server, KEYS) == TOTAL, 20)


# --- runs that begin around a failover (C9) ---


class Load:
    """Runs a script again and again on each of `servers`, and notes what came and how long it took."""

    def __init__(self, servers: list[Server], script: str) -> None:
        self.outcomes: list[tuple[Any, float]] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(server, script)) for server in servers]
        for thread in self._threads:
            thread.start()

    def _run(self, server: Server, script: str) -> None:
        client = server.client(socket_timeout=60)
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                found = server.run(script, client=client)
            except redis.ResponseError as error:
                found = str(error)
            self.outcomes.append((found, time.monotonic() - started))
            # Some moments are without a run; the machine has other tests.
            self._stop.wait(0.01)

    def __enter__(self) -> Load:
        wait_until(lambda: len(self.outcomes) > 5)
        return self

    def __exit__(self, *_: object) -> None:
        count = len(self.outcomes)
        wait_until(lambda: len(self.outcomes) > count + 5, 30)
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


@pytest.mark.matrix
def test_runs_of_others_around_a_failover(start_server: Callable[..., Server]) -> None:
    """They go to the new master, or end with an error at once; none waits for the old one until the idle limit."""
    cluster = filled(make_cluster(start_server, replicas=1, module_args=["ExecutionMaxIdleTime", 20000]))
    master, replica = cluster[0], cluster.replicas[0]
    with Load(cluster.masters[1:], KEYS) as load:
        for new, old in [(replica, master), (master, replica)] * 2:
            fail_over(new)
            wait_until(lambda: all(is_linked(server, 3) for server in (new, *cluster.masters[1:])), 60)
            wait_until(lambda: old.own.info("replication").get("master_link_status") == "up", 30)
    for found, seconds in load.outcomes:
        assert found == TOTAL or is_error(found), found
        assert seconds < 15, (found, seconds)
    assert sum(found == TOTAL for found, _ in load.outcomes) > len(load.outcomes) // 2


def test_a_run_is_sent_again_when_its_shard_has_a_successor(start_server: Callable[..., Server]) -> None:
    options = ["--cluster-require-full-coverage", "no"]
    cluster = filled(make_cluster(start_server, replicas=1, args=options, module_args=["ExecutionMaxIdleTime", 30000]))
    assert cluster[1].run(TRIGGER) == "OK"
    replica = cluster.replicas[0]
    wait_until(lambda: len(replica.registrations()) == 1)
    cluster[0].stop(kill=True)
    # nobody knows yet that it is gone
    raw = cluster[1].raw(timeout=60)
    raw.send("RG.TRIGGER", "t")
    assert cluster[2].run(KEYS, client=cluster[2].client(socket_timeout=60)) == TOTAL
    assert raw.read().startswith(b"*3\r\n")
    assert replica.client().info("replication")["role"] == "master"


def test_a_run_that_has_begun_ends_when_its_shard_is_replaced(start_server: Callable[..., Server]) -> None:
    cluster = filled(make_cluster(start_server, replicas=1, module_args=["ExecutionMaxIdleTime", 60000]))
    script = """
    import time
    def slow(r):
        execute('SET', 'begun{%s}' % hashtag(), 1)
        time.sleep(0.5)
        return r
    GB('KeysReader').map(slow).count().run('key:*')
    """
    found: list[Any] = []
    client = cluster[2].client(socket_timeout=60)
    started = time.monotonic()
    thread = threading.Thread(target=lambda: found.append(cluster[2].run(script, client=client)))
    thread.start()
    wait_until(lambda: cluster[0].own.exists("begun{06S}"))
    fail_over(cluster.replicas[0])
    thread.join(60)
    [[_, errors]] = found
    assert UNKNOWN in errors[0] or "shard-" in errors[0], errors
    assert time.monotonic() - started < 45


# --- data that are replaced (C10) ---


SLOW = """
import time
def slow(r):
    try:
        execute('SET', 'begun{%s}' % hashtag(), 1)
    except Exception:
        pass
    time.sleep(1)
    return r
GB('KeysReader').map(slow).collect().run('key:1*')
"""


def under_way(server: Server, script: str, *, begun: Callable[[], Any], then: Callable[[], Any]) -> Any:
    """The reply of a script during which `then` happens, as soon as `begun` is true."""
    found: list[Any] = []
    client = server.client(socket_timeout=60)
    thread = threading.Thread(target=lambda: found.append(server.run(script, client=client)))
    thread.start()
    wait_until(begun)
    then()
    thread.join(60)
    [reply] = found
    return reply


def reload(server: Server) -> Callable[[], Any]:
    return lambda: server.own.execute_command("DEBUG", "RELOAD")


@pytest.mark.matrix
def test_a_reload_under_a_run(server: Server) -> None:
    client = server.client()
    for number in range(3):
        client.set(f"key:1{number}", number)
    begun = lambda: client.exists("begun{06S}")
    _, errors = under_way(server, SLOW, begun=begun, then=reload(server))
    assert errors == [REPLACED]
    client.delete("begun{06S}")
    # queued ones never saw any data
    workers = int(client.execute_command("RG.CONFIGGET", "ExecutionThreads")[0])
    hold = "import time\nGB('ShardsIDReader').foreach(lambda r: time.sleep(5)).run()"
    in_reserve = 8
    for _ in range(workers + in_reserve):
        server.run(hold, "UNBLOCKING")
    states = lambda: [as_dict(entry)["status"] for entry in client.execute_command("RG.DUMPEXECUTIONS")]
    raws = [server.raw(timeout=30) for _ in range(3)]
    for raw in raws:
        raw.send("RG.PYEXECUTE", KEYS)
    wait_until(lambda: states().count("created") >= 1)
    client.execute_command("DEBUG", "RELOAD")
    replies = [raw.read() for raw in raws]
    # a worker may have had its turn before
    assert all(REPLACED.encode() in reply or b"$1\r\n3\r\n" in reply for reply in replies), replies


@pytest.mark.matrix
@pytest.mark.parametrize("victim", [0, 1])
def test_a_reload_under_a_run_of_all_shards(cluster: Cluster, victim: int) -> None:
    filled(cluster)
    tags = ["06S", "8M", "63n"]
    begun = lambda: cluster[victim].client().exists("begun{%s}" % tags[victim])
    script = SLOW.replace("key:1*", "key:10*")
    _, errors = under_way(cluster[0], script, begun=begun, then=reload(cluster[victim]))
    assert any(REPLACED in error for error in errors), errors
    for server in cluster.masters:
        assert server.run(KEYS) == TOTAL


def test_a_resynchronisation_under_a_run(start_server: Callable[..., Server]) -> None:
    master, replica = start_server(), start_server()
    client = replica.client()
    for number in range(3):
        client.set(f"key:1{number}", number)
    master.client().set("other", 1)
    begun = lambda: client.exists("begun{06S}")
    resynchronise = lambda: client.execute_command("REPLICAOF", master.host, master.port)
    # the server itself lets clients go that wait while it becomes a replica
    identifier = replica.run(SLOW, "UNBLOCKING")
    wait_until(begun)
    resynchronise()
    results = lambda: client.execute_command("RG.GETRESULTS", identifier)
    wait_until(lambda: "done" in str(client.execute_command("RG.DUMPEXECUTIONS")), 20)
    assert REPLACED in results()[1]
