"""RG.STATS: one JSON document with all figures. Its schema: docs/commands.md."""

import json

import pytest

from helpers import wait_until

TOP = {
    *("schema", "pinion", "python", "shard", "role", "uptime_s", "memory", "executions", "commands", "registrations"),
    *("sessions", "cluster", "read_through", "write_behind"),
}


def stats(client):
    return json.loads(client.execute_command("RG.STATS"))


@pytest.mark.matrix
def test_a_server_without_functions(server):
    found = stats(server.client())
    assert set(found) == TOP
    assert (found["schema"], found["role"], found["shard"]) == (1, "master", "0" * 40)
    assert found["registrations"] == found["sessions"] == found["cluster"]["shards"] == []
    assert found["cluster"]["enabled"] is False
    assert found["python"].startswith("3.")
    assert found["memory"]["server_used"] > 500_000 and found["memory"]["server_max"] is None
    assert found["uptime_s"] >= 0
    # As INFO has them.
    assert set(found["commands"]) == {"linked", "hooked", "unlinked_for_acl", "refused_for_acl", "refused_for_memory"}
    assert {"clients_waiting_for_room", "clients_waiting_for_save"} <= set(found["write_behind"])


@pytest.mark.matrix
def test_a_registration_with_its_figures(server):
    server.run(
        "GB('KeysReader', desc='it\\'s \"one\"\\n').foreach(lambda r: 1 / int(r['value']))"
        ".register('x*', eventTypes=['set'], mode='async_local')",
        *("ID", "s", "DESCRIPTION", "a demo"),
    )
    client = server.client()
    for value in (1, 0, 1, 0):
        client.set("x", value)
        server.wait_idle()
    [entry] = stats(client)["registrations"]
    [session] = stats(client)["sessions"]
    assert [entry[name] for name in ("reader", "description", "session", "mode", "status")] == [
        *("KeysReader", 'it\'s "one"\n', "s", "async_local", None)
    ]
    assert [entry[name] for name in ("triggered", "succeeded", "failed", "aborted", "pending")] == [4, 2, 2, 0, 0]
    assert entry["arguments"]["eventTypes"] == ["set"] and entry["arguments"]["regex"] == "x*"
    assert 0 < entry["run_us"]["p50"] <= entry["run_us"]["p99"] <= entry["run_us"]["max"]
    assert "ZeroDivisionError" in entry["last_error"]
    assert session["registrations"] == [entry["id"]] and session["description"] == "a demo"
    assert sum(stats(client)["executions"]["by_status"].values()) == stats(client)["executions"]["kept"] == 4


def test_it_says_what_may_never_fire(server):
    server.run("GB('KeysReader').register('x*', eventTypes=['no-such-event'], mode='async_local')")
    [entry] = stats(server.client())["registrations"]
    assert "no-such-event" in entry["warnings"][0]


def test_the_backlog_shows_while_workers_are_busy(server):
    server.run("import time\nGB().foreach(lambda r: time.sleep(0.02)).register('x*', mode='async_local')")
    client = server.client()
    with client.pipeline(transaction=False) as pipe:
        for number in range(50):
            pipe.set(f"x{number}", 1)
        pipe.execute()
    found = stats(client)
    assert found["executions"]["queued"] > 0
    assert found["registrations"][0]["pending"] > 0
    server.wait_idle()
    found = stats(client)
    assert (found["executions"]["queued"], found["registrations"][0]["pending"]) == (0, 0)
    assert found["registrations"][0]["wait_us"]["max"] > 1000


def test_read_through_has_its_figures(server):
    server.run("@read_through('user:*', ttl=60)\ndef load(key):\n    return key.upper()")
    client = server.client()
    assert client.get("user:a") == "USER:A"
    assert client.get("user:a") == "USER:A"
    found = wait_until(lambda: (now := stats(client))["read_through"]["loads_total"] and now)
    assert found["read_through"]["registrations"] == found["read_through"]["misses_total"] == 1
    [entry] = found["registrations"]
    assert entry["figures"]["loads"] == 1 and entry["figures"]["breaker"] == "closed"


def test_write_behind_has_its_figures(server):
    """The sums of all registrations, those of INFO."""
    server.run("""
        def fails(changes):
            raise ValueError('no')
        write_behind('user:*', fails, backoff=0.01, max_backoff=0.01)
        write_behind('order:*', lambda changes: None)
    """)
    client = server.client()
    client.mset({"user:a": "x", "user:b": "y", "order:1": "z"})
    found = wait_until(lambda: (now := stats(client)["write_behind"])["saved_total"] and now["save_failures_total"] > 1 and now)
    assert (found["registrations"], found["queued"], found["saved_total"], found["captured_total"], found["dead_total"]) == (2, 2, 1, 3, 0)
    assert found["queued_bytes"] > 0 and found["retried_total"] >= 2 * found["save_failures_total"] - 1
    wait_until(lambda: stats(client)["write_behind"]["oldest_ms"] > 20)
    names = {name.removeprefix("rg_write_behind_") for name in client.info("rg_write_behind")}
    assert names == set(stats(client)["write_behind"])


def test_each_shard_tells_of_all(cluster):
    for node in cluster.nodes:
        found = wait_until(
            lambda node=node: (now := stats(node.client()))["cluster"]["links_connected"] == 2 and now
        )
        shards = found["cluster"]["shards"]
        assert [shard["connected"] for shard in shards] == [True] * 3
        assert [shard["port"] for shard in shards if shard["me"]] == [node.port]
        assert sum(last - first + 1 for shard in shards for first, last in shard["slots"]) == 16384
        assert found["shard"] == next(shard["id"] for shard in shards if shard["me"])


def test_who_may_ask_and_how(server):
    client = server.client()
    assert json.loads(client.eval("return redis.call('RG.STATS')", 0))["schema"] == 1
    assert json.loads(server.run("GB('ShardsIDReader').map(lambda r: execute('RG.STATS')).run()")[0][0])["schema"] == 1
    assert server.raw().call("RG.STATS", "x") == b"-ERR wrong number of arguments for 'rg.stats' command\r\n"
