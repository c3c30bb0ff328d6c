"""What `make run` leaves in the foreground: a server with the module that was built, which ends with Ctrl-C and leaves nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Callable, Generator

import pytest
import redis

from helpers import ROOT, free_port, module_path, wait_until

# Which server it starts is its user's choice.
pytestmark = pytest.mark.once

Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Generator[Run, None, None]:
    """Starts it on a port, with further variables in its environment."""
    started: list[subprocess.Popen[str]] = []

    def start(port: int, **variables: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PORT": str(port), "TMPDIR": str(tmp_path), **variables}
        if "CARGO_TARGET_DIR" in variables:
            environment.pop("PINION_MODULE", None)
        process = subprocess.Popen(
            [ROOT / "scripts/run.sh"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def works(process: subprocess.Popen[str], port: int) -> None:
    """It answers with Python's words, and ends as it should."""
    client = redis.Redis(port=port, decode_responses=True, protocol=2)

    def answers() -> bool:
        assert process.poll() is None, process.communicate()[0]
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False

    wait_until(answers, timeout=20)
    assert client.execute_command("RG.PYEXECUTE", "GB('ShardsIDReader').map(lambda _: 'it runs').run()") == [["it runs"], []]
    client.close()
    # As a terminal does it: whoever is in the foreground gets the signal.
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 0, said
    assert f"Pinion runs on port {port}" in said and f"redis-cli -p {port} GET x" in said


def test_it_runs_until_ctrl_c(run: Run, tmp_path: Path) -> None:
    port = free_port()
    works(run(port, PINION_MODULE=str(module_path())), port)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("named", [True, False], ids=["whole", "relative"])
def test_a_build_elsewhere_is_found(run: Run, tmp_path: Path, named: bool) -> None:
    """Cargo puts what it builds where CARGO_TARGET_DIR says; there the module is looked for."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "release").symlink_to(module_path().parent)
    port = free_port()
    works(run(port, CARGO_TARGET_DIR=str(elsewhere) if named else os.path.relpath(elsewhere, ROOT)), port)


def test_a_port_that_is_taken_is_named(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = run(port, PINION_MODULE=str(module_path()))
        said, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said == f"pinion: port {port} is taken: stop what listens there, or choose another: make run PORT={port + 1000}\n"
