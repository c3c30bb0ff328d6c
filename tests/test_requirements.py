"""REQUIREMENTS: fetched and installed beside the server, known by name, exported, shipped to replicas and files.

Spec: commands.md 1.2, 1.17, 1.18, 4.6 and 9.8, 9.14, 9.17. pip takes its packages from a folder: no network is used.
"""

from __future__ import annotations

import ast
import os
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any, Callable

import pytest

from helpers import Server, as_dict, wait_until
from probes import blocked_clients, error_of

AOF = ["--appendonly", "yes", "--appendfsync", "always"]
VERSION = "import pinion_demo\nGB('ShardsIDReader').map(lambda _: pinion_demo.VERSION).run()"
# A function that needs the package, also where it is loaded.
NEEDY = """
import pinion_demo
GB('CommandReader').map(lambda words: pinion_demo.VERSION).register(trigger='version', mode='sync')
"""


def build_wheel(folder: Path, name: str, version: str, *, needs: str = "", body: str = "") -> Path:
    """Makes a wheel by hand: a module with VERSION."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{module}/__init__.py", body or f"VERSION = '{version}'\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip takes packages from."""
    folder = tmp_path / "packages"
    folder.mkdir()
    build_wheel(folder, "pinion-demo", "1.0")
    build_wheel(folder, "pinion-demo", "2.0")
    build_wheel(folder, "pinion-user", "1.0", needs="pinion-demo<2")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_RETRIES", "0")
    return folder


def requirements(server: Server) -> list[dict[str, Any]]:
    return [as_dict(entry) for entry in server.client().execute_command("RG.PYDUMPREQS")]


def names(server: Server) -> list[str]:
    return [entry["Name"] for entry in requirements(server)]


def folders(server: Server) -> list[str]:
    """What is left on the disk, without the environment."""
    base = server.dir / "pinion-requirements"
    return sorted(path.name for path in base.glob("*") if not path.name.startswith("python-")) if base.exists() else []


def attach(replica: Server, master: Server) -> None:
    replica.client().execute_command("REPLICAOF", master.host, master.port)
    wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up", timeout=20)
    info = lambda: replica.client().info("persistence")  # noqa: E731
    wait_until(lambda: not info()["aof_rewrite_in_progress"] and not info()["aof_rewrite_scheduled"], timeout=20)


@pytest.mark.matrix
def test_a_package_is_installed_and_known(server: Server) -> None:
    assert server.run(VERSION, "REQUIREMENTS", "pinion-demo==1.0") == [["1.0"], []]
    [entry] = requirements(server)
    path = entry.pop("Path")
    assert entry == {
        "GearReqVersion": 1,
        "Name": "pinion-demo==1.0",
        "IsDownloaded": "yes",
        "IsInstalled": "yes",
        "CompiledOs": entry["CompiledOs"],
        "Wheels": ["pinion_demo-1.0-py3-none-any.whl"],
        "RefCount": 1,
        "IsInReqDictionary": "yes",
    }
    assert Path(path).parent == server.dir / "pinion-requirements"
    assert Path(path).name.startswith("pinion-demo==1.0_")
    assert os.listdir(path) == entry["Wheels"]
    log = server.log()
    assert "Executing : " in log and "Successfully installed pinion-demo-1.0" in log
    # Known now: nothing is run again.
    assert server.run(VERSION, "REQUIREMENTS", "pinion-demo==1.0") == [["1.0"], []]
    assert server.log().count("Executing : ") == log.count("Executing : ")


def test_what_a_package_needs_comes_with_it(server: Server) -> None:
    assert server.run(VERSION, "REQUIREMENTS", "pinion-user") == [["1.0"], []]
    [entry] = requirements(server)
    assert entry["Wheels"] == ["pinion_demo-1.0-py3-none-any.whl", "pinion_user-1.0-py3-none-any.whl"]


def test_every_text_is_a_requirement_of_its_own(server: Server, packages: Path) -> None:
    for text, version in (("pinion-demo", "2.0"), ("pinion-demo==1.0", "1.0"), ("pinion-demo>1", "2.0")):
        assert server.run(VERSION, "REQUIREMENTS", text) == [[version], []], text
    path = str(packages / "pinion_demo-1.0-py3-none-any.whl")
    assert server.run(VERSION, "REQUIREMENTS", path) == [["1.0"], []]
    assert names(server) == ["pinion-demo", "pinion-demo==1.0", "pinion-demo>1", path]


def test_if_one_is_new_all_are_installed_anew(server: Server) -> None:
    server.run("1", "REQUIREMENTS", "pinion-demo==1.0")
    server.run("1", "REQUIREMENTS", "pinion-demo==2.0")
    assert server.run(VERSION, "REQUIREMENTS", "pinion-demo==1.0") == [["2.0"], []], "the last installed one wins"
    assert server.run(VERSION, "REQUIREMENTS", "pinion-user", "pinion-demo==1.0") == [["1.0"], []]


def test_force_installs_what_is_known(server: Server, packages: Path) -> None:
    server.run(NEEDY, "ID", "old", "REQUIREMENTS", "pinion-demo==1.0")
    [before] = requirements(server)
    build_wheel(packages, "pinion-demo", "1.0", body="VERSION = 'another 1.0'\n")
    assert server.run(VERSION, "REQUIREMENTS", "pinion-demo==1.0") == [["1.0"], []]
    assert server.run(VERSION, "FORCE_REINSTALL_REQUIREMENTS", "REQUIREMENTS", "pinion-demo==1.0") == [["another 1.0"], []]
    [after] = requirements(server)
    assert after["Path"] != before["Path"]
    # The session that imported the old one has it still, and keeps its files.
    client = server.client()
    assert client.execute_command("RG.TRIGGER", "version") == ["1.0"]
    assert len(folders(server)) == 2
    client.execute_command("RG.UNREGISTER", server.registrations()[0]["id"])
    wait_until(lambda: len(folders(server)) == 1)


def test_a_session_tells_what_it_needs(server: Server) -> None:
    server.run(NEEDY, "ID", "s", "REQUIREMENTS", "pinion-demo==1.0")
    client = server.client()
    [short] = [as_dict(entry) for entry in client.execute_command("RG.PYDUMPSESSIONS")]
    assert short["requirements"] == ["pinion-demo==1.0"]
    assert short["requirementInstallationNeeded"] == 1
    [verbose] = [as_dict(entry) for entry in client.execute_command("RG.PYDUMPSESSIONS", "VERBOSE")]
    [entry] = [as_dict(entry) for entry in verbose["requirements"]]
    assert entry == requirements(server)[0]
    assert entry["RefCount"] == 2
    pd = ast.literal_eval(server.registrations()[0]["PD"])
    assert pd["depsList"] == [{"name": "pinion-demo==1.0", "basePath": entry["Path"], "wheels": entry["Wheels"]}]
    assert pd["isInstallationNeeded"] == 1
    server.run("GB('KeysReader').register('a*')", "ID", "t", "REQUIREMENTS", "pinion-demo==1.0")
    assert requirements(server)[0]["RefCount"] == 3


def test_what_only_a_replaced_session_used_goes(server: Server) -> None:
    server.run(NEEDY, "ID", "s", "REQUIREMENTS", "pinion-demo==1.0")
    server.run(NEEDY, "ID", "s", "UPGRADE", "REQUIREMENTS", "pinion-demo==2.0")
    assert names(server) == ["pinion-demo==2.0"]
    wait_until(lambda: len(folders(server)) == 1)
    assert server.client().execute_command("RG.TRIGGER", "version") == ["2.0"]
    # After an ordinary end it stays known.
    server.client().execute_command("RG.UNREGISTER", server.registrations()[0]["id"])
    assert names(server) == ["pinion-demo==2.0"]
    assert requirements(server)[0]["RefCount"] == 1


# --- failures ---


def test_a_package_that_does_not_exist(server: Server) -> None:
    begin = time.monotonic()
    error = error_of(server, VERSION, "REQUIREMENTS", "pinion-demo==1.0", "pinion-nowhere")
    assert error == "Could not satisfy requirements (look at redis log file for more information)"
    assert time.monotonic() - begin > 2, "three attempts with a second in between"
    assert server.log().count("No matching distribution found for pinion-nowhere") == 3
    assert requirements(server) == []
    assert [name for name in folders(server) if name.startswith(".")] == []


def test_a_package_that_cannot_be_installed(server: Server, packages: Path) -> None:
    """The earlier one of the same name is in its place again."""
    server.run("1", "REQUIREMENTS", "pinion-demo")
    known = requirements(server)
    wheel = packages / "pinion_demo-3.0-py3-none-any.whl"
    build_wheel(packages, "pinion-demo", "3.0")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("../../outside.py", "")
    error = error_of(server, VERSION, "FORCE_REINSTALL_REQUIREMENTS", "REQUIREMENTS", "pinion-demo")
    assert error == "Failed installing requirements on shard, please check shard log for more details."
    assert requirements(server) == known
    assert len(folders(server)) == 1
    assert server.run(VERSION, "REQUIREMENTS", "pinion-demo") == [["2.0"], []]


def test_a_folder_that_cannot_be_made(server: Server) -> None:
    (server.dir / "pinion-requirements").write_text("in the way")
    error = error_of(server, VERSION, "REQUIREMENTS", "pinion-demo")
    assert error == "Could not satisfy requirements, look at the log file for more information."
    assert server.client().ping()


def test_a_full_disk(start_server: Callable[..., Server], packages: Path) -> None:
    """An error, nothing left behind, and the next one works."""
    disk = Path("/dev/shm") / f"pinion-{os.getpid()}"
    disk.mkdir()
    mounted = os.system(f"mount -t tmpfs -o size=300k tmpfs {disk} 2>/dev/null") == 0
    try:
        if not mounted:
            pytest.skip("no right to mount a small disk")
        build_wheel(packages, "pinion-big", "1.0", body=f"DATA = '{'x' * 1_000_000}'\n")
        server = start_server(module_args=["PythonRequirementsDir", disk])
        error = error_of(server, "1", "REQUIREMENTS", "pinion-big")
        assert error == "Could not satisfy requirements (look at redis log file for more information)"
        assert "No space left on device" in server.log()
        assert [name for name in os.listdir(disk) if not name.startswith("python-")] == []
        assert requirements(server) == []
        assert server.run("GB('ShardsIDReader').run()") == [["1"], []]
    finally:
        os.system(f"umount {disk} 2>/dev/null")
        shutil.rmtree(disk, ignore_errors=True)


@pytest.mark.parametrize(
    "text",
    ["", "-r requirements.txt", "--index-url=http://x", "demo'; touch hacked", "demo\nother", "$(touch hacked)", "demo two"],
)
def test_what_is_no_requirement_is_refused(server: Server, text: str) -> None:
    """commands.md 9.14: no shell ever sees it."""
    error = error_of(server, "1", "REQUIREMENTS", text)
    assert error.startswith("ERR bad requirement")
    assert "Executing" not in server.log()
    assert not (server.dir / "hacked").exists()


def test_policy(start_server: Callable[..., Server], tmp_path: Path) -> None:
    denying = start_server(module_args=["RequirementsPolicy", "deny"])
    assert "not allowed on this server (RequirementsPolicy)" in error_of(denying, "1", "REQUIREMENTS", "pinion-demo")
    assert denying.run("1", "REQUIREMENTS") == "OK"
    listed = tmp_path / "allowed.txt"
    listed.write_text("# what we use\nPinion_Demo\n")
    picky = start_server(module_args=["RequirementsPolicy", listed])
    assert picky.run(VERSION, "REQUIREMENTS", "pinion-demo==1.0") == [["1.0"], []]
    assert "not allowed" in error_of(picky, "1", "REQUIREMENTS", "pinion-user")
    listed.unlink()
    assert "cannot be read" in error_of(picky, "1", "REQUIREMENTS", "pinion-user")


def test_the_script_of_a_waiting_client(server: Server) -> None:
    """What it does and what goes wrong with it is as without an installation."""
    assert server.run("1", "REQUIREMENTS", "pinion-demo==1.0") == "OK"
    assert "ZeroDivisionError" in error_of(server, "1/0", "FORCE_REINSTALL_REQUIREMENTS", "REQUIREMENTS", "pinion-demo==1.0")
    execution = server.run(VERSION, "UNBLOCKING", "FORCE_REINSTALL_REQUIREMENTS", "REQUIREMENTS", "pinion-demo==1.0")
    assert execution.startswith("0" * 40)
    assert server.run("execute('SET', 'k', 1)", "REQUIREMENTS", "pinion-demo==2.0") == "OK"
    assert server.client().get("k") == "1"


def test_nobody_is_held_up_while_pip_runs(server: Server) -> None:
    """commands.md 9.17: the original stood still for seconds."""
    waiting = server.raw(timeout=60)
    waiting.send("RG.PYEXECUTE", VERSION, "REQUIREMENTS", "pinion-demo==1.0")
    wait_until(lambda: blocked_clients(server) == 1)
    client = server.client()
    longest = 0.0
    while blocked_clients(server):
        begin = time.monotonic()
        client.ping()
        longest = max(longest, time.monotonic() - begin)
    assert b"1.0" in waiting.read()
    # Well below what pip takes, and far above what a busy machine adds.
    assert longest < 1, longest


# --- elsewhere ---


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
    assert names(taker) == ["pinion-user"]
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
    client = replica.client()
    client.execute_command("REPLICAOF", "NO", "ONE")
    assert client.execute_command("RG.TRIGGER", "version") == ["1.0"]
    replica.restart(kill=True)
    assert replica.client().execute_command("RG.TRIGGER", "version") == ["1.0"]


def test_a_replica_serves_while_it_installs(start_server: Callable[..., Server]) -> None:
    """And changes that follow wait for their turn."""
    master, replica = start_server(), start_server()
    attach(replica, master)
    master.run(NEEDY, "ID", "s", "REQUIREMENTS", "pinion-demo==1.0")
    master.run("GB('KeysReader').register('a*')\nGB('KeysReader').register('b*')", "ID", "t")
    master.client().execute_command("RG.UNREGISTER", master.registrations()[1]["id"])
    client = replica.client()
    longest = 0.0
    while len(replica.registrations()) != 2:
        begin = time.monotonic()
        client.ping()
        longest = max(longest, time.monotonic() - begin)
        assert longest < 1
    assert [e["id"] for e in replica.registrations()] == [e["id"] for e in master.registrations()]
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
        info = lambda: client.info("persistence")  # noqa: E731
        wait_until(lambda: not info()["aof_rewrite_in_progress"] and not info()["aof_rewrite_scheduled"], timeout=20)
    else:
        client.save()
    server.stop(kill=True)
    shutil.rmtree(server.dir / "pinion-requirements")
    shutil.rmtree(packages)
    server.start(timeout=60)
    assert requirements(server) == known
    assert server.client().execute_command("RG.TRIGGER", "version") == ["1.0"]
    # With everything on the disk, the next start runs no pip.
    runs = server.log().count("Executing : ")
    server.restart(kill=True)
    assert server.log().count("Executing : ") == runs
    assert server.client().execute_command("RG.TRIGGER", "version") == ["1.0"]


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
