"""REQUIREMENTS: fetched and installed beside the server, known by name, exported, shipped to replicas and files.

Contract: docs/contract/commands.md 1.2, 1.17, 1.18, 4.6 and 9.8, 9.14, 9.17. pip takes its packages from a folder: no
network is used.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, Callable

import pytest
import redis

from helpers import Server, as_dict, wait_until
from probes import AOF, attach, blocked_clients, error_of

# The folder of packages is in the environment that a server starts with.
pytestmark = pytest.mark.own_server

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
    return [as_dict(entry) for entry in server.own.execute_command("RG.PYDUMPREQS")]


def names(server: Server) -> list[str]:
    return [entry["Name"] for entry in requirements(server)]


def folders(server: Server) -> list[str]:
    """What is left on the disk, without the environment."""
    base = server.dir / "pinion-requirements"
    ours = ("python-", ".servers")
    return sorted(path.name for path in base.glob("*") if not path.name.startswith(ours)) if base.exists() else []


def held(server: Server) -> list[str]:
    """The registrations that wait for an installation."""
    waiting = "its requirements are being installed"
    return [e["id"] for e in server.registrations() if e["RegistrationData"]["lastError"] == waiting]


def settle(server: Server) -> None:
    """Waits until everything is installed that has come by file or from a master, and runs."""
    wait_until(lambda: all(entry["IsInstalled"] == "yes" for entry in requirements(server)), timeout=60)
    wait_until(lambda: not held(server), timeout=60)


def identifiers(server: Server) -> list[str]:
    return [entry["id"] for entry in server.registrations()]


def rewrite(server: Server) -> None:
    client = server.client()
    client.bgrewriteaof()
    info = lambda: client.info("persistence")  # noqa: E731
    wait_until(lambda: not info()["aof_rewrite_in_progress"] and not info()["aof_rewrite_scheduled"], timeout=20)


def archive_of(name: str, *wheels: Path | tuple[str, bytes]) -> bytes:
    """What RG.PYEXPORTREQ gives, made by hand."""
    number = lambda n: n.to_bytes(8, "little")  # noqa: E731
    part = lambda text: number(len(text)) + text  # noqa: E731
    files = [wheel if isinstance(wheel, tuple) else (wheel.name, wheel.read_bytes()) for wheel in wheels]
    content = b"PINREQ" + number(1) + part(name.encode()) + part(b"linux-x86_64") + number(len(files))
    content += b"".join(part(file.encode()) + part(data) for file, data in files)
    return content + hashlib.sha256(content).digest()


@pytest.mark.matrix
def test_a_package_is_installed_and_known(server: Server) -> None:
    assert server.run(VERSION, "REQUIREMENTS", "pinion-demo==1.0") == [["1.0"], []]
    [entry] = requirements(server)
    path = entry.pop("Path")
    assert entry == {
        "GearReqVersion": 2,
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
    expected = "Could not satisfy requirements (look at redis log file for more information): pinion-nowhere: no version found"
    assert error.startswith(expected)
    assert time.monotonic() - begin > 2, "three attempts with a second in between"
    assert server.log().count("No matching distribution found for pinion-nowhere") == 3
    assert requirements(server) == []
    # The first one was fetched, and is not needed.
    assert folders(server) == []


def test_a_package_that_cannot_be_installed(server: Server, packages: Path) -> None:
    """The earlier one of the same name is in its place again."""
    server.run("1", "REQUIREMENTS", "pinion-demo")
    known = requirements(server)
    wheel = packages / "pinion_demo-3.0-py3-none-any.whl"
    build_wheel(packages, "pinion-demo", "3.0")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("../../outside.py", "")
    error = error_of(server, VERSION, "FORCE_REINSTALL_REQUIREMENTS", "REQUIREMENTS", "pinion-demo")
    expected = "Failed installing requirements on shard, please check shard log for more details. pinion-demo: "
    assert error.startswith(expected) and len(error) > len(expected)
    assert requirements(server) == known
    assert len(folders(server)) == 1
    assert server.run(VERSION, "REQUIREMENTS", "pinion-demo") == [["2.0"], []]


def test_a_folder_that_cannot_be_made(server: Server) -> None:
    (server.dir / "pinion-requirements").write_text("in the way")
    error = error_of(server, VERSION, "REQUIREMENTS", "pinion-demo")
    assert error == "Could not satisfy requirements, look at the log file for more information."
    assert server.client().ping()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("300k", "Could not satisfy requirements (look at redis log file for more information)"),
        ("1600k", "Failed installing requirements on shard, please check shard log for more details."),
    ],
    ids=["fetching", "installing"],
)
def test_a_full_disk(start_server: Callable[..., Server], packages: Path, size: str, expected: str) -> None:
    """An error, nothing left behind, and the next one works."""
    disk = Path("/dev/shm") / f"pinion-{os.getpid()}-{size}"
    disk.mkdir()
    server = None
    mounted = os.system(f"mount -t tmpfs -o size={size} tmpfs {disk} 2>/dev/null") == 0
    try:
        if not mounted:
            pytest.skip("no right to mount a small disk")
        build_wheel(packages, "pinion-big", "1.0", body=f"DATA = '{'x' * 1_000_000}'\n")
        server = start_server(module_args=["PythonRequirementsDir", disk])
        error = error_of(server, "1", "REQUIREMENTS", "pinion-big")
        assert error.startswith(expected)
        assert "No space left on device" in server.log()
        assert [name for name in os.listdir(disk) if not name.startswith(("python-", ".servers"))] == []
        assert requirements(server) == []
        assert server.run("GB('ShardsIDReader').run()") == [["1"], []]
    finally:
        if server:
            server.stop()
        os.system(f"umount {disk} 2>/dev/null")
        shutil.rmtree(disk, ignore_errors=True)


@pytest.mark.parametrize(
    "text",
    ["", "-r requirements.txt", "--index-url=http://x", "demo'; touch hacked", "demo\nother", "$(touch hacked)", "demo two"],
)
def test_what_is_no_requirement_is_refused(server: Server, text: str) -> None:
    """docs/contract/commands.md 9.14: no shell ever sees it."""
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
    """docs/contract/commands.md 9.17: the original stood still for seconds."""
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


def test_an_interrupted_environment_is_made_anew(start_server: Callable[..., Server]) -> None:
    """Killed after all of it was there but the marks, or in the middle of it."""
    version = f"python-{sys.version_info[0]}.{sys.version_info[1]}"
    for broken in (False, True):
        server = start_server()
        path = server.dir / "pinion-requirements" / f"{version}-{server.port}"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
        if broken:
            (path / "bin/python").unlink()
            (path / "bin/python").symlink_to("/bin/false")
        assert server.run(VERSION, "REQUIREMENTS", "pinion-demo==1.0") == [["1.0"], []]
        server.restart()
        assert server.run(VERSION, "REQUIREMENTS", "pinion-demo==2.0") == [["2.0"], []]


def test_an_environment_whose_interpreter_is_gone(server: Server) -> None:
    """Its packages stay."""
    server.run("1", "REQUIREMENTS", "pinion-demo==1.0")
    [python] = (server.dir / "pinion-requirements").glob("python-*/bin/python")
    python.unlink()
    python.symlink_to("/nowhere/python")
    assert server.run("1", "REQUIREMENTS", "pinion-user") == "OK"
    assert server.run(VERSION) == [["1.0"], []]


def test_a_pip_that_knows_no_other_environment(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """Before version 22.3 it had neither the option `--python` nor what runs it there: Ubuntu 22.04 has such a pip."""
    venv = tmp_path / "old"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    [packages] = venv.glob("lib/python*/site-packages")
    [pip] = importlib.util.find_spec("pip").submodule_search_locations  # type: ignore[union-attr]
    shutil.copytree(pip, packages / "pip", ignore=shutil.ignore_patterns("__pip-runner__.py", "__pycache__"))
    server = start_server(python_env=venv)
    assert server.run(VERSION, "REQUIREMENTS", "pinion-user") == [["1.0"], []]
    # What it is installed with is no part of what it is installed into.
    script = "import importlib.util\nGB('ShardsIDReader').map(lambda _: importlib.util.find_spec('pip').origin).run()"
    assert server.run(script)[0][0].startswith(str(packages))


def test_the_environment_sees_nothing_of_pip_s(server: Server) -> None:
    """What is installed beside pip does not count as installed here."""
    [[version], []] = server.run(VERSION, "REQUIREMENTS", "pinion-demo==2.0")
    [python] = (server.dir / "pinion-requirements").glob("python-*/bin/python")
    program = "import importlib.util as i; print([n for n in ('pip', 'pytest', 'pinion_demo') if i.find_spec(n)])"
    said = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=True).stdout
    assert (version, said) == ("2.0", "['pinion_demo']\n")


def test_a_python_without_pip(start_server: Callable[..., Server], packages: Path, tmp_path: Path) -> None:
    """Told so, also where nothing has to be fetched any more."""
    venv = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    server = start_server(python_env=venv)
    expected = "the server's Python has no pip: install it (Debian: python3-pip)"
    assert expected in error_of(server, VERSION, "REQUIREMENTS", "pinion-demo==1.0")
    with pytest.raises(redis.ResponseError, match="check shard log"):
        archive = archive_of("pinion-demo==1.0", packages / "pinion_demo-1.0-py3-none-any.whl")
        server.client().execute_command("RG.PYIMPORTREQ", archive)
    assert f"was not installed: pinion-demo==1.0: {expected}" in server.log()


def test_what_is_not_installed_is_not_known(start_server: Callable[..., Server]) -> None:
    server = start_server(args=AOF)
    server.run("1", "REQUIREMENTS", "pinion-demo==1.0")
    server.stop(kill=True)
    shutil.rmtree(server.dir / "pinion-requirements")
    (server.dir / "pinion-requirements").write_text("in the way")
    server.start()
    wait_until(lambda: "was not installed" in server.log())
    assert [entry["IsInstalled"] for entry in requirements(server)] == ["no"]
    (server.dir / "pinion-requirements").unlink()
    assert server.run(VERSION, "REQUIREMENTS", "pinion-demo==1.0") == [["1.0"], []]
    assert [entry["IsInstalled"] for entry in requirements(server)] == ["yes"]


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


def test_imports_that_fail_leave_nothing(server: Server, packages: Path) -> None:
    bad = build_wheel(packages, "pinion-bad", "1.0")
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr("../../outside.py", "")
    for archive in (archive_of("pinion-bad", bad), archive_of("pinion-x", ("x.whl", b"zzz"))):
        error = error_of(server, archive, command="RG.PYIMPORTREQ")
        assert error == "Failed install requirement on shard, check shard log for more info."
        assert folders(server) == [] and requirements(server) == []
    none = error_of(server, archive_of("pinion-none"), command="RG.PYIMPORTREQ")
    assert none == "Bad serialization format on reading requirement wheels amount"
    outside = error_of(server, archive_of("pinion-x", ("../x.whl", b"")), command="RG.PYIMPORTREQ")
    assert outside == "Bad serialization format on reading wheel file name"
    # The environment cannot be made.
    good = archive_of("pinion-demo", packages / "pinion_demo-1.0-py3-none-any.whl")
    for environment in (server.dir / "pinion-requirements").glob("python-*"):
        shutil.rmtree(environment)
        environment.write_text("in the way")
    assert "Failed install" in error_of(server, good, command="RG.PYIMPORTREQ")
    assert folders(server) == []
    environment.unlink()
    assert server.client().execute_command("RG.PYIMPORTREQ", good) == "OK"
    assert server.run(VERSION) == [["1.0"], []]


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


def test_the_policy_is_for_imports_too(start_server: Callable[..., Server], packages: Path, tmp_path: Path) -> None:
    listed = tmp_path / "allowed.txt"
    listed.write_text("pinion-demo\n")
    server = start_server(module_args=["RequirementsPolicy", listed])
    evil = build_wheel(packages, "pinion-evil", "6.6")
    demo = packages / "pinion_demo-1.0-py3-none-any.whl"
    for wheels in ([evil], [demo, evil]):
        error = error_of(server, archive_of("pinion-demo", *wheels), command="RG.PYIMPORTREQ")
        assert error == "ERR the requirement 'pinion_evil==6.6' is not allowed on this server (RequirementsPolicy)"
    assert error_of(server, archive_of("pinion-demo", ("x.whl", b"")), command="RG.PYIMPORTREQ").startswith("ERR 'x.whl' is not")
    assert folders(server) == []
    assert server.client().execute_command("RG.PYIMPORTREQ", archive_of("pinion-demo", demo)) == "OK"
    listed.write_text("pinion-demo\nPinion.Evil == 6.6\n")
    assert server.client().execute_command("RG.PYIMPORTREQ", archive_of("pinion-demo", demo, evil)) == "OK"


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
        info = lambda: client.info("persistence")  # noqa: E731
        wait_until(lambda: not info()["aof_rewrite_in_progress"] and not info()["aof_rewrite_scheduled"], timeout=20)
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
