"""What `pinion doctor` sees of all nodes: options that differ, a user `default` who cannot load the AOF file; and what `deploy` says of a taken prefix."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Callable

import pytest

from command_line import Pinion, pinion, script, url  # noqa: F401: fixtures
from helpers import Server, free_port, wait_until
from servers import ROOT

PAGE = (ROOT / "docs/deploying.md").read_text()


def of(server: Server) -> str:
    return f"redis://{server.host}:{server.port}"


def has_arguments(server: Server) -> bool:
    return server.is_valkey or server.version >= (7, 0)


HANGS = """
import time
def hang(changes):
    while execute('EXISTS', 'well') == 0:
        time.sleep(0.01)
    if execute('GET', 'well') == 'no':
        time.sleep(10000)
write_behind('hangs:*', hang, max_save_time=%s)
write_behind('fails:*', lambda changes: 1 / 0, backoff=600, max_backoff=600)
write_behind('well:*', lambda changes: None)
"""


def test_queues_that_do_not_move(server: Server, pinion: Pinion, url: str) -> None:
    if not has_arguments(server):
        pytest.skip("this server has no write_behind")
    server.run(HANGS % 600, "ID", "shop")
    client = server.own
    client.mset({"hangs:1": "x", "fails:1": "x", "well:1": "x"})
    wait_until(lambda: "save has failed 1 times in a row: 1 changes are not saved" in " ".join(pinion("doctor", "-u", url).out.split()))
    # It may hang when it has run for five seconds.
    wait_until(lambda: "warn shop: WriteBehind hangs:*: a call of save has run for" in " ".join(pinion("doctor", "-u", url).out.split()), 30)
    assert "well:*" not in pinion("doctor", "-u", url).out
    assert "saving for" in pinion("key", "hangs:1", "-u", url).out or "saving" in pinion("key", "hangs:1", "-u", url).out
    client.set("well", "yes")
    wait_until(lambda: "hangs:*" not in pinion("doctor", "-u", url).out)


def test_workers_that_hang(start_server: Callable[..., Server], pinion: Pinion) -> None:
    server = start_server()
    if not has_arguments(server):
        pytest.skip("this server has no write_behind")
    assert "workers hang" not in pinion("doctor", "-u", of(server)).out
    server.run(HANGS % 0.3, "ID", "shop")
    server.own.mset({"well": "no", "hangs:1": "x"})
    wait_until(lambda: re.search(r"warn workers: \d+ workers hang in calls that were given up", " ".join(pinion("doctor", "-u", of(server)).out.split())))


def test_options_of_replicas_are_compared(start_server: Callable[..., Server], pinion: Pinion) -> None:
    options = ["dsn", "old-secret", "maxexecutions", 500, "SaveRegistrations", "yes", "Plugin", "one.so", "RunAs", "all"]
    master = start_server(module_args=options)
    if not has_arguments(master):
        pytest.skip("this server does not show the arguments of modules")
    replica = start_server(module_args=options, args=["--replicaof", master.host, master.port])
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up")
    wait_until(lambda: master.own.info("replication")["connected_slaves"] == 1)
    done = pinion("doctor", "-u", of(master))
    assert "ok   cluster: a master with 1 replica, no cluster" in done.out and "warn options" not in done.out, done.out
    # The password was changed on the master only.
    master.client().execute_command("RG.CONFIGSET", "dsn", "new-secret")
    told = pinion("doctor", "-u", of(master)).out
    assert re.search(rf"warn options: dsn not the same on 127.0.0.1:{master.port}, 127.0.0.1:{replica.port}\n", told), told
    assert re.search(rf"warn options: dsn on 127.0.0.1:{master.port} not as in its loadmodule line", told), told
    assert "secret" not in told
    replica.client().execute_command("RG.CONFIGSET", "dsn", "new-secret")
    told = pinion("doctor", "-u", of(master)).out
    assert "not the same" not in told and told.count("not as in its loadmodule line") == 2
    # A replica that cannot be asked is told of, and stops no other check.
    replica.client().config_set("requirepass", "other")
    replica.disconnect()
    done = pinion("doctor", "-u", of(master))
    assert done.code == 0 and f"warn nodes: the node 127.0.0.1:{replica.port}" in done.out and "ok   functions" in done.out, done.out
    assert "a replica, no cluster" in pinion("doctor", "-u", of(replica), "--password", "other").out


def test_doctor_tells_of_saving_that_is_off(server: Server, pinion: Pinion, url: str) -> None:
    assert "save nothing" not in pinion("doctor", "-u", url).out
    server.own.execute_command("RG.CONFIGSET", "WriteBehindSaving", "no")
    try:
        done = pinion("doctor", "-u", url)
        assert done.code == 0 and "warn write_behind: 1 of 1 shards save nothing" in done.out, done.out
    finally:
        server.own.execute_command("RG.CONFIGSET", "WriteBehindSaving", "yes")


def test_options_of_replicas_behind_a_sentinel(start_server: Callable[..., Server], pinion: Pinion, tmp_path: Path) -> None:
    master = start_server(module_args=["dsn", "one"])
    if not has_arguments(master):
        pytest.skip("this server does not show the arguments of modules")
    replica = start_server(module_args=["dsn", "two"], args=["--replicaof", master.host, master.port])
    for node in (master, replica):
        node.client().execute_command("ACL", "SETUSER", "ann", "on", ">secret@word", "~*", "&*", "+@all")
    wait_until(lambda: master.own.info("replication")["connected_slaves"] == 1)
    port = free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(f"port {port}\ndir {tmp_path}\nsentinel monitor cache 127.0.0.1 {master.port} 1\n")
    program = shutil.which("redis-server") or str(master.binary)
    with subprocess.Popen([program, config, "--sentinel"], stdout=subprocess.DEVNULL) as sentinel:
        try:
            there = f"redis+sentinel://ann:secret%40word@127.0.0.1:{port}/cache"
            wait_until(lambda: pinion("list", "-u", there, "--json").out == "[]\n", message="the sentinel knows the master")
            told = pinion("doctor", "-u", there).out
            assert f"warn options: dsn not the same on the master, 127.0.0.1:{replica.port}" in told, told
        finally:
            sentinel.terminate()


def test_doctor_warns_of_a_default_user_who_cannot_load_the_file(start_server: Callable[..., Server], pinion: Pinion) -> None:
    server = start_server(args=["--appendonly", "yes"])
    admin = ("--user", "admin", "--password", "a")
    server.client().execute_command("ACL", "SETUSER", "admin", "on", ">a", "~*", "&*", "+@all")
    assert "warn AOF" not in pinion("doctor", "-u", of(server), *admin).out
    server.client().execute_command("ACL", "SETUSER", "default", "reset")
    told = pinion("doctor", "-u", of(server), *admin).out
    is_right = server.is_valkey and server.version >= (9, 1)
    assert ("warn AOF: the user default lacks rights" in told) == (not is_right), told
    client = server.client(username="admin", password="a")
    client.config_set("appendonly", "no")
    assert "warn AOF" not in pinion("doctor", "-u", of(server), *admin).out
    client.config_set("appendonly", "yes")
    [rules] = re.findall(r"^    user default (.*)$", PAGE, re.MULTILINE)
    client.execute_command("ACL", "SETUSER", "default", *rules.split())
    assert "warn AOF" not in pinion("doctor", "-u", of(server), *admin).out


@pytest.mark.matrix
def test_deletions_stay_with_the_rules_of_the_page(start_server: Callable[..., Server]) -> None:
    [rules] = re.findall(r"^    user default (.*)$", PAGE, re.MULTILINE)
    users = ["--user", "admin", "on", ">a", "~*", "&*", "+@all", "--user", "default", *rules.split()]
    server = start_server(args=["--appendonly", "yes"])
    server.run("write_behind('p:*', lambda changes: 1 / 0, max_backoff=0.1)")
    server.stop()
    # From here on nobody logs in as `default`.
    server.args += users
    server.credentials = {"username": "admin", "password": "a"}
    server.start()
    client = server.client()
    client.mset({"p:1": "one", "p:2": "two"})
    assert client.delete("p:1") == 1
    server.restart()  # in order: everysec may hold back what a killed server had answered
    client = server.client()
    assert client.keys() == ["p:2"] and client.info("rg_write_behind")["rg_write_behind_queued"] >= 2


@pytest.mark.parametrize(("half", "verb"), [("read_through('product:*', str)", "loads"), ("write_behind('product:*', print)", "saves")])
def test_a_script_that_was_renamed(server: Server, pinion: Pinion, url: str, script: Callable[..., Path], half: str, verb: str) -> None:
    if verb == "saves" and not has_arguments(server):
        pytest.skip("this server has no write_behind")
    assert pinion("deploy", script(half, "shop.py"), "-u", url).code == 0
    done = pinion("deploy", script(half, "catalogue.py"), "-u", url)
    assert done.code == 1, done
    said = " ".join(done.err.split())
    assert f"session 'shop' {verb} 'product:*' already: deploy with --id shop to replace it, or remove it before, `pinion rm shop`" in said
    assert pinion("deploy", script(half, "catalogue.py"), "-u", url, "--id", "shop").code == 0
    [entry] = json.loads(pinion("list", "-u", url, "--json").out)
    assert entry["session"] == "shop"
