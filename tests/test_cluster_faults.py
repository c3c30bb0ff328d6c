"""What happens to executions on several shards when shards, links or slots go: every client gets a result or a clear error
within the idle limit, and later executions work. Contract: docs/contract/commands.md 3.5, 8.4 and 8.5."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Generator

import pytest
import redis

from clusters import Cluster, info_cluster, is_linked, make_cluster, node_id
from helpers import Server, wait_until
from proxy import Proxy

IDLE_MS = 1500
COUNT = 300
SUM = """
GB('KeysReader').map(lambda r: int(r['value'])).repartition(lambda x: x).aggregate(0, lambda a, x: a + x, lambda a, x: a + x).run('key:*')
"""
TOTAL = [[str(sum(range(COUNT)))], []]
OPTIONS: dict[str, Any] = {
    "args": ["--cluster-require-full-coverage", "no"],
    "module_args": ["ExecutionMaxIdleTime", IDLE_MS],
}


def filled(cluster: Cluster) -> Cluster:
    cluster.fill({f"key:{number}": number for number in range(COUNT)})
    return cluster


@pytest.fixture
def proxies() -> Generator[list[Proxy], None, None]:
    proxies = [Proxy() for _ in range(3)]
    yield proxies
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def proxied(start_server: Callable[..., Server], proxies: list[Proxy]) -> Cluster:
    """Three shards whose links go through proxies: `proxies[n]` stands in front of shard `n`."""
    return filled(make_cluster(start_server, proxies=proxies, **OPTIONS))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.monotonic()
    try:
        return work(), time.monotonic() - started
    except redis.ResponseError as error:
        return error, time.monotonic() - started


def test_a_shard_is_killed_in_the_middle(start_server: Callable[..., Server]) -> None:
    cluster = filled(make_cluster(start_server, **OPTIONS))
    victim = cluster[2]
    script = """
    import time
    def slow(r):
        execute('SET', 'begun{%s}' % hashtag(), 1)
        time.sleep(0.1)
        return r
    GB('KeysReader').map(slow).count().run('key:*')
    """
    outcome: list[Any] = []
    client = cluster[0].client()
    thread = threading.Thread(target=lambda: outcome.append(timed(lambda: cluster[0].run(script, client=client))))
    thread.start()
    wait_until(lambda: victim.own.exists("begun{63n}"))
    victim.stop(kill=True)
    # the shards that are left go on computing; then the initiator waits for the one that is gone
    thread.join(60)
    [((_, errors), _seconds)] = outcome
    assert errors == ["Execution max idle reached"]
    # a new one says so within the limit, and those on one shard work
    reply, seconds = timed(lambda: cluster[1].run(SUM))
    assert reply == [[], ["Execution max idle reached"]] and seconds < IDLE_MS / 1000 + 2
    assert cluster[1].run("GB('ShardsIDReader').count().run(mode='async_local')") == [["1"], []]
    with pytest.raises(redis.ResponseError, match="Execution max idle reached"):
        cluster[1].client().execute_command("RG.ABORTEXECUTION", node_id(cluster[1]) + "-0")
    victim.start()
    cluster.wait_linked()
    filled(cluster)
    for server in cluster.masters:
        assert server.run(SUM) == TOTAL


@pytest.mark.matrix
def test_a_link_is_cut_and_healed(proxied: Cluster, proxies: list[Proxy]) -> None:
    assert proxied[0].run(SUM) == TOTAL
    for how in (Proxy.cut, Proxy.hold):
        how(proxies[2])
        reply, seconds = timed(lambda: proxied[0].run(SUM))
        assert reply[1] == ["Execution max idle reached"] and seconds < IDLE_MS / 1000 + 2
        proxies[2].heal()
        proxied.wait_linked()
        for server in proxied.masters:
            wait_until(lambda: server.run(SUM) == TOTAL, 20)


def test_dropped_connections_lose_and_repeat_nothing(proxied: Cluster, proxies: list[Proxy]) -> None:
    """Messages are sent again after a reconnect, and applied once."""
    script = "GB('CommandReader').foreach(lambda r: execute('INCR', 'calls{%s}' % hashtag())).register(trigger='t')"
    assert proxied[0].run(script) == "OK"
    for server in proxied.masters:
        server.client().execute_command("RG.CONFIGSET", "ExecutionMaxIdleTime", 20000, "SendMsgRetries", 0)
    stop = threading.Event()

    def drop() -> None:
        while not stop.wait(0.05):
            for proxy in proxies:
                proxy.drop()

    dropper = threading.Thread(target=drop)
    dropper.start()
    try:
        client = proxied[1].client(socket_timeout=60)
        for _ in range(30):
            assert len(client.execute_command("RG.TRIGGER", "t")) == 3
            assert proxied[0].run(SUM) == TOTAL
    finally:
        stop.set()
        dropper.join()
    for server, tag in zip(proxied.masters, ["06S", "8M", "63n"]):
        assert server.client().get(f"calls{{{tag}}}") == "30"


def test_messages_that_are_given_up_are_an_error(proxied: Cluster, proxies: list[Proxy]) -> None:
    """Records that were given up after `SendMsgRetries` were missing in the results, and nobody was told: what came behind them did."""
    script = """
    import time

    def generate():
        begun, end = ('%s{%s}' % (word, hashtag()) for word in ('begun', 'end'))
        while execute('GET', end) is None:
            # So many are one message.
            yield from [1] * 1000
            execute('SET', begun, 1)
            time.sleep(0.001)

    GB('PythonReader').collect().count().run(generate)
    """
    for server in proxied.masters:
        server.client().execute_command("RG.CONFIGSET", "ExecutionMaxIdleTime", 60000, "SendMsgRetries", 1)
    tags = {"06S": proxied[0], "8M": proxied[1], "63n": proxied[2]}
    sender, receiver = proxied[1], node_id(proxied[0])
    replies: list[Any] = []
    run = threading.Thread(target=lambda: replies.append(timed(lambda: proxied[0].run(script))[0]))
    run.start()
    for tag, server in tags.items():
        wait_until(lambda: server.own.get(f"begun{{{tag}}}") == "1")
    pending = lambda: info_cluster(sender)[receiver]["pendingMessages"]  # noqa: E731
    # The third shard sends too, and what it gives up ends the run as well: then nothing more is sent.
    lost = lambda: any("Gave up of message" in server.log() for server in proxied.masters[1:])  # noqa: E731
    for _ in range(50):
        # What is on its way is given up, unless it has arrived, and only the answer has not.
        proxies[0].hold()
        wait_until(lambda: lost() or pending() > 100)
        proxies[0].drop()
        proxies[0].heal()
        wait_until(lambda: lost() or pending() < 100)
        if lost():
            break
    assert lost()
    for tag, server in tags.items():
        server.own.set(f"end{{{tag}}}", 1)
    run.join()
    assert "ERRCLUSTER messages of shard " in str(replies[0]), replies


def test_a_slow_shard(proxied: Cluster) -> None:
    """A shard that is busy for less than the limit is waited for."""
    busy = threading.Thread(target=lambda: proxied[2].client().execute_command("DEBUG", "SLEEP", IDLE_MS / 1000 * 0.6))
    busy.start()
    assert proxied[0].run(SUM) == TOTAL
    busy.join()


def test_a_pile_of_messages_for_a_shard_that_is_gone(proxied: Cluster, proxies: list[Proxy]) -> None:
    script = "GB('CommandReader').map(lambda r: 1).register(trigger='t')"
    assert proxied[0].run(script) == "OK"
    proxies[2].cut()
    wait_until(lambda: not is_linked(proxied[0], 3))
    raws = [proxied[0].raw() for _ in range(20)]
    for raw in raws:
        raw.send("RG.TRIGGER", "t")
    assert {raw.read() for raw in raws} == {b"-Execution max idle reached\r\n"}
    pending = info_cluster(proxied[0])[node_id(proxied[2])]["pendingMessages"]
    assert pending >= 20
    proxies[2].heal()
    wait_until(lambda: info_cluster(proxied[0])[node_id(proxied[2])]["pendingMessages"] == 0, 20)
    assert sorted(proxied[0].client().execute_command("RG.TRIGGER", "t")) == ["1", "1", "1"]


def test_a_failover_under_load(start_server: Callable[..., Server]) -> None:
    cluster = filled(make_cluster(start_server, replicas=3, **OPTIONS))
    for master, replica in zip(cluster.masters, cluster.replicas):
        wait_until(lambda: replica.own.dbsize() == master.own.dbsize())
    stop, outcomes = threading.Event(), []

    def load() -> None:
        client = cluster[0].client()
        while not stop.is_set():
            outcomes.append(timed(lambda: cluster[0].run(SUM, client=client)))

    thread = threading.Thread(target=load)
    thread.start()
    wait_until(lambda: len(outcomes) > 3)
    cluster[2].stop(kill=True)
    new = cluster.replicas[2]
    wait_until(lambda: new.own.info("replication")["role"] == "master", 30)
    wait_until(lambda: node_id(new) in info_cluster(cluster[0]) and is_linked(cluster[0], 3), 20)
    count = len(outcomes)
    wait_until(lambda: [outcome for outcome, _ in outcomes[count + 1 :]][-3:] == [TOTAL] * 3, 30)
    stop.set()
    thread.join(30)
    for outcome, seconds in outcomes:
        assert seconds < IDLE_MS / 1000 + 2
        assert outcome == TOTAL or outcome[1] or isinstance(outcome, redis.ResponseError), outcome
    assert new.run(SUM) == TOTAL


def test_a_reshard_under_load(start_server: Callable[..., Server]) -> None:
    """Slots move while executions run: every one of them ends, and the last ones are right."""
    cluster = filled(make_cluster(start_server, **OPTIONS))
    stop, outcomes = threading.Event(), []

    def load() -> None:
        client = cluster[1].client()
        while not stop.is_set():
            outcomes.append(timed(lambda: cluster[1].run(SUM, client=client)))

    thread = threading.Thread(target=load)
    thread.start()
    source, target = cluster[0], cluster[1]
    origin, to = node_id(source), node_id(target)
    one, two, three = source.client(), target.client(), cluster[2].client()
    for slot in range(400):
        two.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", origin)
        one.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", to)
        for key in one.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            one.execute_command("MIGRATE", target.host, target.port, key, 0, 5000)
        for client in (two, one, three):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", to)
    wait_until(lambda: info_cluster(cluster[2])[origin]["minHslot"] == 400, 20)
    count = len(outcomes)
    wait_until(lambda: len(outcomes) > count + 3, 20)
    stop.set()
    thread.join(30)
    assert all(not isinstance(outcome, redis.ResponseError) for outcome, _ in outcomes)
    assert all(outcome == TOTAL or outcome[1] for outcome, _ in outcomes), "a wrong sum without an error"
    assert outcomes[-1][0] == TOTAL
    for server in cluster.masters:
        assert server.run(SUM) == TOTAL
