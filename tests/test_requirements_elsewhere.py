"""REQUIREMENTS on other servers: archives, replicas, files, and what waits there until they are installed.

Contract: docs/contract/commands.md 1.17, 1.18 and 9.8, 9.14, 9.17.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Callable

import pytest

from helpers import Server, as_dict, wait_for_aof, wait_until
from probes import AOF, attach, blocked_clients, error_of
from requirements import NEEDY, VERSION, build_wheel, folders, held, identifiers, names, packages, requirements, rewrite, settle

__all__ = ["packages"]  # a fixture

# The folder of packages is in the environment that a server starts with.
pytestmark = pytest.mark.own_server


def test_export_and_import(start_server: Callable[..., Server]) -> None:
    giver, taker = start_server(), start_server(args=AOF)
    giver.run("1", "REQUIREMENTS", "pinion-user")
    raw = giver.client(decode_responses=False)
    entry, chunks = raw.execute_command("RG.PYEXPORTREQ", "pinion-user")
    assert entry[3] == b"pinion-user"
    archive = b"".join(chunks)
    client = taker.client()
    assert client.execute_command("RG.PYIMPORTREQ", archive[:100], archive[100:150], b"", archive[150:]) == "OK"
    assert taker.run(VERSION, "REQUIREMENTS", "pinion-user") == [["1.0"], []]
    [known] = requirements(taker)
    assert known["Name"] == "pinion-user" and len(known["Wheels"]) == 2
    # Once more: it keeps its files and installs them again.
    assert client.execute_command("RG.PYIMPORTREQ", archive) == "OK"
    taker.restart(kill=True)
    assert requirements(taker) == [{**known, "RefCount": 1}]
    assert error_of(giver, "nothing", command="RG.PYEXPORTREQ") == "requirement does not exists"
    assert "wrong number of arguments" in error_of(giver, command="RG.PYEXPORTREQ")


def test_damaged_archives_are_refused(server: Server) -> None:
    server.run("1", "REQUIREMENTS", "pinion-demo==1.0")
    [chunk] = server.client(decode_responses=False).execute_command("RG.PYEXPORTREQ", "pinion-demo==1.0")[1]
    begin = "Bad serialization format on reading "
    places = {b"": "requirement name", chunk[:20]: "requirement name", chunk[:-1]: "wheel file data"}
    for damaged, place in places.items():
        assert error_of(server, damaged, command="RG.PYIMPORTREQ") == begin + place
    assert error_of(server, command="RG.PYIMPORTREQ") == begin + "requirement name"
    newer = chunk[:6] + b"\x09" + chunk[7:]
    assert error_of(server, newer, command="RG.PYIMPORTREQ").startswith("Requirement version is not compatible")


@pytest.mark.matrix
@pytest.mark.parametrize("when", ["before", "after"])
def test_replicas_have_them(start_server: Callable[..., Server], when: str) -> None:
    master, replica = start_server(args=AOF), start_server(args=AOF)
    if when == "after":
        attach(replica, master)
    master.run(NEEDY, "ID", "s", "REQUIREMENTS", "pinion-demo==1.0")
    if when == "before":
        attach(replica, master)
    wait_until(lambda: names(replica) == ["pinion-demo==1.0"], timeout=30)
    wait_until(lambda: len(replica.registrations()) == 1)
    settle(replica)
    client = replica.client()
    client.execute_command("REPLICAOF", "NO", "ONE")
    assert client.execute_command("RG.TRIGGER", "version") == ["1.0"]
    replica.restart(kill=True)
    assert replica.client().execute_command("RG.TRIGGER", "version") == ["1.0"]


def test_a_replica_serves_while_it_installs(start_server: Callable[..., Server]) -> None:
    """What it installs for is there meanwhile, without running; whatever follows goes on."""
    master, replica = start_server(), start_server()
    attach(replica, master)
    master.run(NEEDY, "ID", "s", "REQUIREMENTS", "pinion-demo==1.0")
    master.run("GB('KeysReader').register('a*')\nGB('KeysReader').register('b*')", "ID", "t")
    master.client().execute_command("RG.UNREGISTER", master.registrations()[1]["id"])
    client = replica.client()
    longest = 0.0
    wait_until(lambda: identifiers(replica) == identifiers(master))
    assert held(replica) == identifiers(master)[:1]
    while held(replica):
        begin = time.monotonic()
        client.ping()
        longest = max(longest, time.monotonic() - begin)
        assert longest < 1
    assert identifiers(replica) == identifiers(master)
    assert names(replica) == ["pinion-demo==1.0"]


@pytest.mark.matrix
@pytest.mark.parametrize("args", [[], AOF, [*AOF, "--aof-use-rdb-preamble", "no"]], ids=["rdb", "aof", "no-preamble"])
def test_they_come_back_on_an_empty_disk(start_server: Callable[..., Server], args: list[str], packages: Path) -> None:
    server = start_server(args=args)
    server.run(NEEDY, "ID", "s", "REQUIREMENTS", "pinion-demo==1.0")
    known = requirements(server)
    client = server.client()
    if args:
        client.bgrewriteaof()
        wait_for_aof(client)
    else:
        client.save()
    server.stop(kill=True)
    shutil.rmtree(server.dir / "pinion-requirements")
    shutil.rmtree(packages)
    server.start(timeout=60)
    assert names(server) == [entry["Name"] for entry in known]
    settle(server)
    assert requirements(server) == known
    assert server.client().execute_command("RG.TRIGGER", "version") == ["1.0"]
    # With everything on the disk, the next start runs no pip.
    runs = server.log().count("Executing : ")
    server.restart(kill=True)
    assert server.log().count("Executing : ") == runs
    assert server.client().execute_command("RG.TRIGGER", "version") == ["1.0"]


TRIGGER = "GB('CommandReader').map(lambda _: '{0}').register(trigger='{0}', mode='sync')"


@pytest.mark.matrix
def test_a_replica_that_is_promoted_while_it_installs(start_server: Callable[..., Server]) -> None:
    """Neither what waits for the installation nor what is registered meanwhile is lost, here, in its file, on its replicas."""
    master, replica = start_server(args=AOF), start_server(args=AOF)
    attach(replica, master)
    master.run(NEEDY, "ID", "s", "REQUIREMENTS", "pinion-demo==1.0")
    master.run(TRIGGER.format("second"), "ID", "t")
    wait_until(lambda: identifiers(replica) == identifiers(master))
    client = replica.client()
    client.execute_command("REPLICAOF", "NO", "ONE")
    assert held(replica) == identifiers(master)[:1]
    assert replica.run(TRIGGER.format("new"), "ID", "n") == "OK"
    # Its names are taken.
    assert error_of(replica, TRIGGER.format("other"), "ID", "s") == "Session s already exists"
    assert "trigger already registered" in error_of(replica, TRIGGER.format("version"), "ID", "o")
    assert held(replica) == identifiers(master)[:1]
    settle(replica)
    expected = [*identifiers(master), identifiers(replica)[-1]]
    assert identifiers(replica) == expected and len(set(expected)) == 3
    assert replica.client().execute_command("RG.TRIGGER", "version") == ["1.0"]
    replica.restart(kill=True)
    rewrite(replica)
    replica.restart(kill=True)
    last = start_server()
    attach(last, replica)
    settle(last)
    last.client().execute_command("REPLICAOF", "NO", "ONE")
    for server in (replica, last):
        assert identifiers(server) == expected
        client = server.client()
        for trigger, reply in (("version", "1.0"), ("second", "second"), ("new", "new")):
            assert client.execute_command("RG.TRIGGER", trigger) == [reply]


def test_what_waits_can_be_replaced_and_removed(start_server: Callable[..., Server]) -> None:
    master, replica = start_server(), start_server(args=AOF)
    attach(replica, master)
    master.run(NEEDY, "ID", "s", "REQUIREMENTS", "pinion-demo==1.0")
    master.run("import pinion_demo\n" + TRIGGER.format("gone"), "ID", "gone", "REQUIREMENTS", "pinion-demo==1.0")
    wait_until(lambda: len(identifiers(replica)) == 2)
    replica.client().execute_command("REPLICAOF", "NO", "ONE")
    assert len(held(replica)) == 2
    assert replica.client().execute_command("RG.UNREGISTER", identifiers(replica)[1]) == "OK"
    assert replica.run(TRIGGER.format("version"), "ID", "s", "UPGRADE") == "OK"
    assert held(replica) == []
    for _ in range(2):
        settle(replica)
        assert len(identifiers(replica)) == 1
        assert replica.client().execute_command("RG.TRIGGER", "version") == ["version"]
        replica.restart(kill=True)


@pytest.mark.matrix
def test_a_full_synchronisation_does_not_wait_for_pip(start_server: Callable[..., Server]) -> None:
    """And what the replica has installed already is not installed again."""
    master, replica = start_server(), start_server()
    master.run(NEEDY, "ID", "s", "REQUIREMENTS", "pinion-demo==1.0")
    attach(replica, master)
    assert held(replica) == identifiers(master)
    settle(replica)
    runs = replica.log().count("Executing : ")
    client = replica.client()
    client.execute_command("REPLICAOF", "NO", "ONE")
    client.set("own", 1)
    attach(replica, master)
    assert held(replica) == [] and client.get("own") is None
    client.execute_command("REPLICAOF", "NO", "ONE")
    assert client.execute_command("RG.TRIGGER", "version") == ["1.0"]
    assert replica.log().count("Executing : ") == runs


def test_files_travel_once(start_server: Callable[..., Server], packages: Path) -> None:
    """An upgrade with a known requirement sends its name only: nobody is held up by reading, sending and comparing it."""
    build_wheel(packages, "pinion-big", "1.0", body=f"VERSION = '1.0'  # {'x' * 5_000_000}\n")
    script = NEEDY.replace("pinion_demo", "pinion_big")
    master, replica = start_server(), start_server()
    attach(replica, master)
    offset = lambda: master.client().info("replication")["master_repl_offset"]  # noqa: E731
    before = offset()
    master.run(script, "ID", "s", "REQUIREMENTS", "pinion-big")
    assert 5_000_000 < offset() - before < 6_000_000
    before = offset()
    for _ in range(3):
        assert master.run(script, "ID", "s", "UPGRADE", "REQUIREMENTS", "pinion-big") == "OK"
    assert offset() - before < 100_000
    wait_until(lambda: identifiers(replica) == identifiers(master))
    settle(replica)
    assert names(replica) == ["pinion-big"]
    assert replica.log().count("Successfully installed") == 1


def test_the_requirement_of_a_time_event(start_server: Callable[..., Server], packages: Path) -> None:
    """A script that registers nothing else: its requirement is in files and on replicas all the same."""
    script = """
import pinion_demo
def tick():
    execute('SET', 'version', pinion_demo.VERSION)
registerTE(1, tick, 'timer')
"""
    master, replica = start_server(args=AOF), start_server(args=AOF)
    attach(replica, master)
    assert master.run(script, "ID", "t", "REQUIREMENTS", "pinion-demo==1.0") == "OK"
    wait_until(lambda: names(replica) == ["pinion-demo==1.0"] and replica.own.exists("timer"))
    replica.client().execute_command("REPLICAOF", "NO", "ONE")
    replica.client().delete("version")
    wait_until(lambda: replica.own.get("version") == "1.0", timeout=60)
    master.stop(kill=True)
    shutil.rmtree(master.dir / "pinion-requirements")
    shutil.rmtree(packages)
    master.start()
    master.client().delete("version")
    wait_until(lambda: master.own.get("version") == "1.0", timeout=60)
    assert names(master) == ["pinion-demo==1.0"]


def test_info_lists_requirements(server: Server, packages: Path) -> None:
    def lines() -> list[str]:
        text = server.raw().call("INFO", "rg_python_requirements").decode()
        return [line for line in text.split("\r\n")[1:] if line.startswith("rg_")]

    assert lines() == []
    server.run(NEEDY, "ID", "s", "REQUIREMENTS", "pinion-demo==1.0")
    [entry] = requirements(server)
    assert lines() == [
        f"rg_pinion-demo==1.0:IsDownloaded=yes,IsInstalled=yes,CompiledOs={entry['CompiledOs']},"
        f"Wheels=['pinion_demo-1.0-py3-none-any.whl'],Path={entry['Path']},RefCount=2,IsInReqDictionary=yes"
    ]
    named = f"pinion-demo @ file://{packages}/pinion_demo-1.0-py3-none-any.whl"
    server.run("1", "REQUIREMENTS", named)
    assert lines()[1].split(":")[0] == "rg_" + named.split(":")[0] + "\\x3a" + named.split(":", 1)[1]


@pytest.mark.matrix
@pytest.mark.parametrize("args", [[], AOF], ids=["rdb", "aof"])
def test_a_file_is_left_for_a_server_without_the_module(start_server: Callable[..., Server], args: list[str]) -> None:
    """Registrations, sessions, a package and a queue of write_behind stay out of the file; they are there again with the option."""
    server, plain = start_server(args=args), start_server(args=args, module=False)
    client = server.client()
    assert server.run(NEEDY, "ID", "needy", "REQUIREMENTS", "pinion-demo") == "OK"
    assert server.run("def save(changes):\n    raise ConnectionError('away')\nwrite_behind('user:*', save)", "ID", "behind") == "OK"
    client.set("user:1", "not saved")
    client.set("mine", 1)
    assert client.execute_command("RG.CONFIGSET", "SaveRegistrations", "no") == ["OK"]
    if args:
        rewrite(server)
    else:
        client.save()
    plain.stop()
    for name in ("appendonlydir", "appendonly.aof", "dump.rdb"):
        source, target = server.dir / name, plain.dir / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
        elif source.exists():
            shutil.copy(source, target)
    plain.start()
    assert plain.client().mget("mine", "user:1") == ["1", "not saved"]
    assert client.execute_command("RG.CONFIGSET", "SaveRegistrations", "yes") == ["OK"]
    client.execute_command("DEBUG", "RELOAD")
    assert len(server.registrations()) == 2
    assert client.execute_command("RG.TRIGGER", "version") == ["2.0"]


@pytest.mark.parametrize("preamble", ["yes", "no"])
def test_what_cannot_be_stored_is_not_lost(start_server: Callable[..., Server], packages: Path, preamble: str) -> None:
    """One start with a folder that cannot be written to, and a new AOF file."""
    server = start_server(args=[*AOF, "--aof-use-rdb-preamble", preamble])
    server.run(NEEDY, "ID", "s", "REQUIREMENTS", "pinion-demo==1.0")
    server.stop(kill=True)
    shutil.rmtree(packages)
    shutil.rmtree(server.dir / "pinion-requirements")
    (server.dir / "pinion-requirements").write_text("in the way")
    server.start()
    wait_until(lambda: "was not installed" in server.log() and not held(server))
    [entry] = server.registrations()
    assert "No module named 'pinion_demo'" in entry["RegistrationData"]["lastError"]
    rewrite(server)
    (server.dir / "pinion-requirements").unlink()
    server.restart(kill=True)
    settle(server)
    assert names(server) == ["pinion-demo==1.0"]
    assert server.client().execute_command("RG.TRIGGER", "version") == ["1.0"]
    [session] = [as_dict(entry) for entry in server.client().execute_command("RG.PYDUMPSESSIONS")]
    assert session["requirements"] == ["pinion-demo==1.0"]


def test_a_master_that_is_demoted_while_pip_runs(start_server: Callable[..., Server]) -> None:
    old, new = start_server(), start_server()
    waiting = old.raw(timeout=60)
    waiting.send("RG.PYEXECUTE", VERSION, "REQUIREMENTS", "pinion-demo==1.0")
    wait_until(lambda: blocked_clients(old) == 1)
    old.client().execute_command("REPLICAOF", new.host, new.port)
    wait_until(lambda: old.log().count("Executing : ") >= 3 and "Successfully installed" in old.log(), timeout=30)
    wait_until(lambda: folders(old) == [])
    assert requirements(old) == []


def test_what_a_killed_process_left_is_deleted(start_server: Callable[..., Server], packages: Path) -> None:
    """Unless another server may need it."""
    server = start_server(args=AOF)
    server.run("1", "REQUIREMENTS", "pinion-demo==1.0")
    base = server.dir / "pinion-requirements"
    known = folders(server)

    def leave() -> None:
        for name in (".fetching_99999_pinion-user", ".storing_99999_pinion-user", "pinion-user_0123456789"):
            (base / name).mkdir()
            shutil.copy(packages / "pinion_user-1.0-py3-none-any.whl", base / name)

    leave()
    server.restart(kill=True)
    wait_until(lambda: folders(server) == known)
    leave()
    (base / ".servers" / "another").touch()
    old = base / ".fetching_99998_old"
    old.mkdir()
    os.utime(old, (0, 0))
    left = [name for name in folders(server) if name != old.name]
    server.restart(kill=True)
    wait_until(lambda: folders(server) == left)
    assert server.run(VERSION) == [["1.0"], []]
