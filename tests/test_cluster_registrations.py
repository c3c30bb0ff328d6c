"""Registrations on all shards of a Redis Cluster: all or none, upgrades, shards that were away or join later, replicas.
Contract: docs/contract/commands.md 1.2, 1.11, 4.3, 4.4 and 8.5."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import redis

from clusters import NODE_TIMEOUT_MS, Cluster, info_cluster, is_linked, make_cluster, node_id
from helpers import Server, as_dict, wait_until

TRIGGER = "GB('CommandReader').map(lambda r: 'v{version}').register(trigger='t', mode='sync')"


def call(server: Server, *words: str) -> Any:
    return server.own.execute_command("RG.TRIGGER", *(words or ("t",)))


def ids(server: Server) -> list[str]:
    return sorted(entry["id"] for entry in server.registrations())


def sessions(server: Server) -> list[str]:
    return [as_dict(session)["ID"] for session in server.own.execute_command("RG.PYDUMPSESSIONS")]


@pytest.mark.matrix
def test_all_shards_have_it_when_the_client_gets_its_reply(cluster: Cluster) -> None:
    for number, server in enumerate(cluster.masters):
        script = f"GB('CommandReader').map(lambda r: '{number}').register(trigger='t{number}', mode='sync')"
        assert server.run(script, "ID", f"s{number}", "DESCRIPTION", "text") == "OK"
        for other in cluster.masters:
            assert call(other, f"t{number}") == [str(number)]
    assert ids(cluster[0]) == ids(cluster[1]) == ids(cluster[2])
    prefixes = {identifier.split("-")[0] for identifier in ids(cluster[0])}
    assert prefixes == set(map(node_id, cluster.masters))
    for server in cluster.masters:
        assert sessions(server) == ["s0", "s1", "s2"]


def test_unregister_everywhere(cluster: Cluster) -> None:
    assert cluster[0].run(TRIGGER.format(version=1)) == "OK"
    [identifier] = ids(cluster[1])
    assert cluster[1].client().execute_command("RG.UNREGISTER", identifier) == "OK"
    for server in cluster.masters:
        wait_until(lambda: ids(server) == [])
        assert sessions(server) == []
    with pytest.raises(redis.ResponseError, match="execution is not registered"):
        cluster[0].client().execute_command("RG.UNREGISTER", identifier)


def test_names_are_taken_everywhere(cluster: Cluster) -> None:
    script = "GB('CommandReader').register(trigger='same', mode='sync')"
    assert cluster[0].run(script, "ID", "one") == "OK"
    with pytest.raises(redis.ResponseError, match="trigger already registered"):
        cluster[1].run(script, "ID", "two")
    with pytest.raises(redis.ResponseError, match="Session one already exists"):
        cluster[1].run(script.replace("same", "new"), "ID", "one")
    for server in cluster.masters:
        assert sessions(server) == ["one"]


def test_what_does_not_load_on_one_shard_is_registered_nowhere(cluster: Cluster, tmp_path: Any) -> None:
    (tmp_path / "only_there.py").write_text("def f(r):\n    return 1\n")
    script = f"""
    import sys
    sys.path.insert(0, {str(tmp_path)!r})
    import only_there
    GB('CommandReader').map(only_there.f).register(trigger='t')
    """
    failures = cluster[0].run(script)
    assert len(failures) == 2
    shards = {node_id(server) for server in cluster.masters[1:]}
    for failure in failures:
        text = str(failure)
        assert text.startswith("-ERR shard-") or text.startswith("ERR shard-"), text
        assert text.split("shard-")[1][:40] in shards
        assert "Failed deserializing flat execution, Error occured when deserialized a python callback" in text
    for server in cluster.masters:
        assert ids(server) == [] and sessions(server) == []
    # and nothing stays reserved
    assert cluster[1].run("GB('CommandReader').map(lambda r: 1).register(trigger='t', mode='sync')") == "OK"


def test_the_wire_form_of_a_failure(cluster: Cluster, tmp_path: Any) -> None:
    (tmp_path / "only_there.py").write_text("def f(r):\n    return 1\n")
    script = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport only_there\nGB('CommandReader').map(only_there.f).register(trigger='t')"
    reply = cluster[0].raw().call("RG.PYEXECUTE", script)
    assert reply.startswith(b"*2\r\n--ERR shard-")


def test_two_initiators_at_once(cluster: Cluster) -> None:
    """The same name from two shards at the same moment: one of them at most, and all shards agree."""
    raws = [server.raw() for server in cluster.masters]
    for round_number in range(10):
        script = f"GB('CommandReader').map(lambda r: 'x').register(trigger='race{round_number}', mode='sync')"
        for raw in raws:
            raw.send("RG.PYEXECUTE", script)
        replies = [raw.read() for raw in raws]
        assert sum(reply == b"+OK\r\n" for reply in replies) <= 1, replies
        wait_until(lambda: ids(cluster[0]) == ids(cluster[1]) == ids(cluster[2]))


@pytest.mark.matrix
def test_upgrades(cluster: Cluster) -> None:
    assert cluster[0].run(TRIGGER.format(version=1), "ID", "app") == "OK"
    first = ids(cluster[0])
    assert cluster[1].run(TRIGGER.format(version=2), "ID", "app", "UPGRADE") == "OK"
    for server in cluster.masters:
        assert call(server) == ["v2"] and len(ids(server)) == 1 and ids(server) != first
    assert cluster[2].run(TRIGGER.format(version=3), "ID", "app2", "REPLACE_WITH", "app") == "OK"
    for server in cluster.masters:
        assert call(server) == ["v3"] and sessions(server) == ["app2"]
    # a script that registers nothing ends the session
    assert cluster[0].run("1", "ID", "app2", "UPGRADE") == "OK"
    for server in cluster.masters:
        assert sessions(server) == [] and ids(server) == []


def test_a_run_beside_a_registration(cluster: Cluster) -> None:
    script = "GB('ShardsIDReader').count().run()\n" + TRIGGER.format(version=1)
    assert cluster[0].run(script) == "OK"
    [execution] = [as_dict(entry)["executionId"] for entry in cluster[0].client().execute_command("RG.DUMPEXECUTIONS")]
    results = lambda: cluster[0].client().execute_command("RG.GETRESULTSBLOCKING", execution)
    assert results() == [["3"], []]


def test_on_registered_runs_on_each_shard(cluster: Cluster) -> None:
    script = """
    def prepare():
        global name
        name = hashtag()
    GB('CommandReader').map(lambda r: name).register(trigger='t', mode='sync', onRegistered=prepare)
    """
    assert cluster[0].run(script) == "OK"
    assert [call(server) for server in cluster.masters] == [["06S"], ["8M"], ["63n"]]


def test_functions_of_a_session_share_globals_on_each_shard(cluster: Cluster) -> None:
    script = """
    calls = 0
    def count(r):
        global calls
        calls += 1
        return calls
    GB('CommandReader').map(count).register(trigger='a', mode='sync')
    GB('CommandReader').map(count).register(trigger='b', mode='sync')
    """
    assert cluster[0].run(script) == "OK"
    for server in cluster.masters:
        assert [call(server, name) for name in "aba"] == [["1"], ["2"], ["3"]]


def test_registered_inside_a_function(cluster: Cluster) -> None:
    script = """
    def make(record):
        return GB('CommandReader').map(lambda r: 'made').register(trigger=record[1], mode='sync')
    GB('CommandReader').map(make).register(trigger='make', mode='async_local')
    """
    assert cluster[0].run(script, "ID", "maker") == "OK"
    [identifier] = call(cluster[1], "make", "made")
    assert identifier.startswith(node_id(cluster[1]))
    for server in cluster.masters:
        wait_until(lambda: identifier in ids(server))
        assert call(server, "made") == ["made"]
    # an upgrade of the session ends it, too
    assert cluster[2].run("1", "ID", "maker", "UPGRADE") == "OK"
    for server in cluster.masters:
        assert ids(server) == []


def test_pause_and_statistics_everywhere(cluster: Cluster) -> None:
    script = "GB('StreamReader').foreach(lambda r: execute('INCR', 'n{%s}' % hashtag())).register('s*', mode='sync')"
    assert cluster[0].run(script) == "OK"
    assert cluster[0].run(TRIGGER.format(version=1)) == "OK"
    client = cluster[1].client()
    [stream] = [entry["id"] for entry in cluster[0].registrations() if entry["reader"] == "StreamReader"]
    [trigger] = [entry["id"] for entry in cluster[0].registrations() if entry["reader"] == "CommandReader"]
    status = lambda server: [entry["RegistrationData"]["status"] for entry in server.registrations() if entry["id"] == stream]
    assert client.execute_command("RG.PAUSEREGISTRATIONS", stream) == "OK"
    assert [status(server) for server in cluster.masters] == [["PAUSED"]] * 3
    assert client.execute_command("RG.UNPAUSEREGISTRATIONS", stream) == "OK"
    assert [status(server) for server in cluster.masters] == [["OK"]] * 3
    with pytest.raises(redis.ResponseError, match="Reader CommandReader does not support pause"):
        client.execute_command("RG.PAUSEREGISTRATIONS", stream, trigger)
    assert [status(server) for server in cluster.masters] == [["OK"]] * 3
    unknown = node_id(cluster[0]) + "-999999"
    with pytest.raises(redis.ResponseError, match=f"Execution {unknown} does not exists on shard {node_id(cluster[1])}"):
        client.execute_command("RG.PAUSEREGISTRATIONS", unknown)
    for server in cluster.masters:
        call(server)
    assert client.execute_command("RG.CLEARREGISTRATIONSSTATS") == "OK"
    for server in cluster.masters:
        [data] = [entry["RegistrationData"] for entry in server.registrations() if entry["id"] == trigger]
        assert (data["numTriggered"], data["numSuccess"]) == (0, 0)


# --- shards that were away, or come later ---


@pytest.mark.matrix
def test_a_shard_that_was_down_catches_up(start_server: Callable[..., Server]) -> None:
    options = ["--cluster-require-full-coverage", "no", "--appendonly", "yes", "--appendfsync", "always"]
    cluster = make_cluster(start_server, args=options, module_args=["PythonInstallReqMaxIdleTime", "1500"])
    assert cluster[0].run(TRIGGER.format(version=1), "ID", "app") == "OK"
    assert cluster[0].run(TRIGGER.format(version=1).replace("'t'", "'other'"), "ID", "other") == "OK"
    down = cluster[2]
    [other] = [entry["id"] for entry in down.registrations() if "other" in entry["RegistrationData"]["args"]["trigger"]]
    down.stop(kill=True)
    # registered nowhere: not all shards can have it
    failures = cluster[0].run(TRIGGER.format(version=2), "ID", "app", "UPGRADE")
    assert [str(failure) for failure in failures] == ["Execution max idle reached"]
    assert [call(server) for server in cluster.masters[:2]] == [["v1"], ["v1"]]
    assert cluster[0].client().execute_command("RG.UNREGISTER", other) == "OK"
    wait_until(lambda: other not in ids(cluster[1]))
    down.start()
    # what has ended meanwhile ends there, and does not come back
    wait_until(lambda: ids(down) == ids(cluster[0]), 20)
    assert other not in ids(cluster[0]) and other not in ids(cluster[1])
    assert call(down) == ["v1"]
    wait_until(lambda: is_linked(cluster[0], 3) and is_linked(down, 3), 20)
    assert cluster[0].run(TRIGGER.format(version=2), "ID", "app", "UPGRADE") == "OK"
    assert [call(server) for server in cluster.masters] == [["v2"]] * 3


def test_a_shard_that_lost_its_data_gets_everything(start_server: Callable[..., Server]) -> None:
    cluster = make_cluster(start_server, args=["--cluster-require-full-coverage", "no"])
    assert cluster[0].run(TRIGGER.format(version=1), "ID", "app", "DESCRIPTION", "text") == "OK"
    cluster[1].restart(kill=True)
    wait_until(lambda: ids(cluster[1]) == ids(cluster[0]), 20)
    assert call(cluster[1]) == ["v1"]
    [session] = map(as_dict, cluster[1].client().execute_command("RG.PYDUMPSESSIONS"))
    assert (session["ID"], session["sessionDescription"]) == ("app", "text")


def with_an_older_registration(start_server: Callable[..., Server], older: str) -> tuple[Cluster, list[str]]:
    """Two shards without registrations, and a backup of the second one in which session `older` has some, of which nobody knows.
    The ids of those."""
    cluster = make_cluster(start_server, masters=2, args=["--cluster-require-full-coverage", "no", "--save", ""])
    assert cluster[0].run(TRIGGER.format(version=1), "ID", older) == "OK"
    assert cluster[1].client().save()
    kept = ids(cluster[1])
    (cluster[1].dir / "dump.rdb").rename(cluster[1].dir / "backup.rdb")
    for server in cluster.masters:
        server.stop(kill=True)
    for server in cluster.masters:
        server.start()
    cluster.wait_linked()
    assert [ids(server) for server in cluster.masters] == [[], []]
    return cluster, kept


def bring_back(cluster: Cluster) -> None:
    """The second shard starts with its backup."""
    cluster[1].stop(kill=True)
    (cluster[1].dir / "backup.rdb").rename(cluster[1].dir / "dump.rdb")
    cluster[1].start()
    cluster.wait_linked()


def test_the_later_deployment_wins_wherever_two_meet(start_server: Callable[..., Server]) -> None:
    """No shard knows that the older one has ended: the seed 812150048 of chaos brought it back."""
    cluster, _ = with_an_older_registration(start_server, "app")
    assert cluster[1].run(TRIGGER.format(version=2), "ID", "app", "UPGRADE") == "OK"
    later = ids(cluster[1])
    bring_back(cluster)
    for server in cluster.masters:
        wait_until(lambda: ids(server) == later and call(server) == ["v2"], 20)
    # it has ended for good
    for server in cluster.masters:
        server.client().execute_command("DEBUG", "RELOAD")
        wait_until(lambda: ids(server) == later and call(server) == ["v2"], 20)
    cluster.wait_linked()
    assert cluster[0].run(TRIGGER.format(version=3), "ID", "app", "UPGRADE") == "OK"
    assert [call(server) for server in cluster.masters] == [["v3"]] * 2


def test_what_was_refused_begins_when_its_name_is_free(start_server: Callable[..., Server]) -> None:
    """Sessions with other ids take no place of each other: one of them waits, and says why."""
    cluster, older = with_an_older_registration(start_server, "older")
    assert cluster[1].run(TRIGGER.format(version=2), "ID", "later") == "OK"
    later = ids(cluster[1])
    bring_back(cluster)
    for server in cluster.masters:
        wait_until(lambda: sorted(ids(server)) == sorted(older + later), 20)
    assert [call(server) for server in cluster.masters] == [["v2"], ["v1"]]
    for registration in later:
        assert cluster[0].client().execute_command("RG.UNREGISTER", registration) == "OK"
    for server in cluster.masters:
        wait_until(lambda: ids(server) == older, 20)
        wait_until(lambda: server.registrations()[0]["RegistrationData"]["lastError"] in (None, ""), 20)
        assert call(server) == ["v1"]


def test_an_id_is_given_once(start_server: Callable[..., Server]) -> None:
    """Also by a shard that has lost its data: others know that its first registrations have ended."""
    cluster = make_cluster(start_server, masters=2, args=["--cluster-require-full-coverage", "no", "--save", ""])
    assert cluster[0].run(TRIGGER.format(version=1)) == "OK"
    [ended] = ids(cluster[0])
    assert cluster[0].client().execute_command("RG.UNREGISTER", ended) == "OK"
    wait_until(lambda: ids(cluster[1]) == [])
    cluster[0].restart(kill=True)
    cluster.wait_linked()
    # refused as long as it has not heard of it
    wait_until(lambda: cluster[0].run(TRIGGER.format(version=2)) == "OK", 20)
    [new] = ids(cluster[0])
    assert new != ended and ids(cluster[1]) == [new]
    cluster[1].restart(kill=True)
    wait_until(lambda: ids(cluster[1]) == [new], 20)
    assert [call(server) for server in cluster.masters] == [["v2"]] * 2


def test_a_shard_that_joins_later(start_server: Callable[..., Server]) -> None:
    cluster = make_cluster(start_server, masters=2)
    assert cluster[0].run(TRIGGER.format(version=1)) == "OK"
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS)]
    new = start_server(args=options)
    assert info_cluster(new) == {}
    new.client().execute_command("CLUSTER", "SET-CONFIG-EPOCH", 3)  # what it claims counts
    cluster[0].client().execute_command("CLUSTER", "MEET", new.host, new.port)
    for server in (new, *cluster.masters):
        wait_until(lambda: server.own.execute_command("CLUSTER INFO")["cluster_known_nodes"] == "3", 20)
        # while they shake hands, they know each other by other names
        wait_until(lambda: node_id(new).encode() in server.raw().call("CLUSTER", "NODES"), 20)
    for slot in range(100):
        for server in (new, *cluster.masters):
            server.client().execute_command("CLUSTER", "SETSLOT", slot, "NODE", node_id(new))
    for server in (*cluster.masters, new):
        wait_until(lambda: is_linked(server, 3), 20)
    wait_until(lambda: ids(new) == ids(cluster[0]), 20)
    assert call(new) == ["v1"]
    found, errors = cluster[1].run("GB('ShardsIDReader').run()")
    assert errors == [] and node_id(new) in found


def test_what_was_registered_before_there_was_a_cluster_stays_where_it_is(start_server: Callable[..., Server]) -> None:
    server = start_server(args=["--cluster-enabled", "yes"])
    assert server.run(TRIGGER.format(version=1)) == "OK"
    assert ids(server) == ["0" * 40 + "-1"]


# --- a run belongs to its session, whatever takes that one's place meanwhile ---

LONG = """
import asyncio
async def long(x):
    execute('INCR', 'begun{%s}' % hashtag())
    while not execute('EXISTS', 'end{%s}' % hashtag()):
        await asyncio.sleep(0.01)
    return x
GB('CommandReader').register(trigger='t')
GB('ShardsIDReader').map(long).run()
"""
TAGS = ["06S", "8M", "63n"]


def dead(server: Server) -> list[dict[str, Any]]:
    return [as_dict(session) for session in server.own.execute_command("RG.PYDUMPSESSIONS", "DEAD")]


@pytest.mark.matrix
@pytest.mark.parametrize("upgrade", ["ID t UPGRADE", "ID new REPLACE_WITH t"])
@pytest.mark.parametrize("where", [0, 1])
def test_a_run_of_a_session_that_is_replaced_at_once(cluster: Cluster, upgrade: str, where: int) -> None:
    for server in cluster.masters:
        server.client().flushall()
    first, second = cluster[0].client(), cluster[where].client()
    assert cluster[0].run(LONG, "ID", "t", "DESCRIPTION", "old", "UNBLOCKING", client=first) == "OK"
    assert cluster[where].run(TRIGGER.format(version=2), *upgrade.split(), client=second) == "OK"
    for server, tag in zip(cluster.masters, TAGS):
        wait_until(lambda: server.own.get(f"begun{{{tag}}}") == "1")
        [session] = dead(server)
        assert (session["ID"], session["sessionDescription"], session["refCount"]) == ("t", "old", 1)
        assert sessions(server) == [upgrade.split()[1]]
        [live] = map(as_dict, server.client().execute_command("RG.PYDUMPSESSIONS"))
        assert live["refCount"] == 1
    for server, tag in zip(cluster.masters, TAGS):
        server.client().set(f"end{{{tag}}}", 1)
    executions = lambda: [as_dict(entry) for entry in cluster[0].client().execute_command("RG.DUMPEXECUTIONS")]
    wait_until(lambda: {entry["status"] for entry in executions()} == {"done"})
    for entry in executions():
        results, errors = cluster[0].client().execute_command("RG.GETRESULTS", entry["executionId"])
        assert (len(results), errors) == (3, [])
        assert cluster[0].client().execute_command("RG.DROPEXECUTION", entry["executionId"]) == "OK"
    for server in cluster.masters:
        wait_until(lambda: dead(server) == [])


def test_a_run_of_a_session_whose_registration_has_ended(cluster: Cluster) -> None:
    """It is listed on all shards as long as it has a run."""
    for server in cluster.masters:
        server.client().flushall()
    assert cluster[0].run(LONG, "ID", "t", "UNBLOCKING") == "OK"
    [identifier] = ids(cluster[0])
    assert cluster[0].client().execute_command("RG.UNREGISTER", identifier) == "OK"
    for server, tag in zip(cluster.masters, TAGS):
        wait_until(lambda: server.own.get(f"begun{{{tag}}}") == "1")
        wait_until(lambda: ids(server) == [])
        assert sessions(server) == ["t"] and dead(server) == []
    for server, tag in zip(cluster.masters, TAGS):
        server.client().set(f"end{{{tag}}}", 1)


# --- replicas ---


@pytest.mark.matrix
def test_a_promoted_replica_takes_over(start_server: Callable[..., Server]) -> None:
    cluster = make_cluster(start_server, replicas=1)
    assert cluster[1].run(TRIGGER.format(version=1)) == "OK"
    replica = cluster.replicas[0]
    wait_until(lambda: ids(replica) == ids(cluster[0]))
    # It may still see itself as a master's place of before.
    wait_until(lambda: sorted(info_cluster(replica)) == sorted(map(node_id, cluster.masters)), 20)
    cluster[0].stop(kill=True)
    wait_until(lambda: replica.own.info("replication")["role"] == "master", 30)
    for server in (replica, *cluster.masters[1:]):
        wait_until(lambda: node_id(replica) in info_cluster(server), 20)
        wait_until(lambda: is_linked(server, 3), 20)
    for server in (replica, *cluster.masters[1:]):
        found, errors = server.run("GB('ShardsIDReader').run()")
        assert errors == [] and sorted(found) == sorted(map(node_id, (replica, *cluster.masters[1:])))
        assert call(server) == ["v1"]
    assert replica.run(TRIGGER.format(version=2).replace("'t'", "'new'")) == "OK"
    assert [call(server, "new") for server in cluster.masters[1:]] == [["v2"]] * 2
