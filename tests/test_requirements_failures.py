"""REQUIREMENTS that cannot be had, a pip that is missing or killed, disks that are full, and policies: nothing half done stays.

Contract: docs/contract/commands.md 1.2 and 9.8, 9.14, 9.17.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Callable

import pytest
import redis

from helpers import Server, wait_until
from probes import AOF, blocked_clients, error_of
from requirements import VERSION, archive_of, build_wheel, folders, packages, requirements

__all__ = ["packages"]  # a fixture

# The folder of packages is in the environment that a server starts with.
pytestmark = [pytest.mark.own_server, pytest.mark.once]


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
