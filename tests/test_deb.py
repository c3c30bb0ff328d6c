"""The .deb and the pages about systemd, played in a root of their own: a Debian made by mmdebstrap, booted by systemd-nspawn, with
the units that Debian's servers have. Only by `make test-package`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest

from helpers import wait_until
from packages import ROOT, deb, wheel

pytestmark = [pytest.mark.package, pytest.mark.timeout(600)]

PACKAGES = "systemd,systemd-sysv,dbus,redis-server,redis-tools,python3,python3-pip,python3-venv,libpython3.11"
LOAD = "def load(key):\n    return 'value of ' + key\nread_through('user:*', load, ttl=60)"


class Machine:
    """A Debian that has booted in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root.parent / "boot.log"
        line = ["systemd-nspawn", "--quiet", "-D", str(root), "--machine", f"pinion-{os.getpid()}", "--register=no", "--keep-unit"]
        with self.log.open("wb") as log:
            # Without a network of the machine around it.
            self.process = subprocess.Popen([*line, "--private-network", "--boot"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._has_booted, 60, "the machine boots")

    def _has_booted(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return b"login:" in self.log.read_bytes()

    def _leader(self) -> str:
        return subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=True).stdout.split()[0]

    def shell(self, text: str) -> str:
        """What a shell in there prints; it must end well."""
        line = ["nsenter", "-t", self._leader(), "--all", "bash", "-ec", text]
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=300)
        if done.returncode:
            log = self.root / "var/log/redis/redis-server.log"
            raise AssertionError(f"{text}\n{done.stdout}{done.stderr}\n{log.read_text()[-5000:] if log.exists() else ''}")
        return done.stdout.strip()

    def redis(self, *words: str) -> str:
        """The reply to a command, from redis-cli; waits for the server to have loaded."""
        quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
        self.shell("for i in $(seq 200); do redis-cli PING | grep -q PONG && break; sleep 0.05; done")
        return self.shell(f"redis-cli -e {quoted}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with what Debian's servers need, and packages of Python in /wheels; pip looks nowhere else."""
    if os.geteuid() != 0:
        pytest.skip("a root of its own needs root")
    for program in ("mmdebstrap", "systemd-nspawn"):
        assert shutil.which(program), f"{program} is missing: make setup-package installs it"
    root = tmp_path_factory.mktemp("debian") / "root"
    # systemd-nspawn refuses folders of a temporary file system that forbids devices; mmdebstrap makes them itself.
    line = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={PACKAGES}", "bookworm", str(root)]
    subprocess.run(line, check=True, timeout=500)
    wheels = root / "wheels"
    wheels.mkdir()
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", wheels]
    subprocess.run([*pip, "--only-binary=:all:", "markupsafe", "setuptools", "wheel", wheel("cp311")], check=True)
    (root / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    shutil.copy(deb(), root)
    return root


@pytest.fixture
def machine(debian: Path) -> Iterator[Machine]:
    machine = Machine(debian)
    try:
        yield machine
    finally:
        machine.stop()


def works(machine: Machine) -> None:
    """Functions, a program, and a package with a library in C; kept over a restart."""
    assert machine.redis("RG.PYEXECUTE", LOAD) == "OK"
    assert machine.redis("GET", "user:1") == "value of user:1"
    program = "__import__('subprocess').check_output(['id', '-un'], text=True).strip()"
    assert machine.redis("RG.PYEXECUTE", f"GB('ShardsIDReader').map(lambda r: {program}).run()") == "redis"
    library = "__import__('markupsafe')._speedups.__name__"
    script = f"GB('ShardsIDReader').map(lambda r: {library}).run()"
    assert machine.redis("RG.PYEXECUTE", script, "REQUIREMENTS", "markupsafe") == "markupsafe._speedups"
    assert machine.redis("SAVE") == "OK"
    machine.shell("systemctl restart redis-server")
    assert machine.redis("GET", "user:1") == "value of user:1"
    assert machine.redis("GET", "user:2") == "value of user:2"
    assert machine.redis("RG.PYEXECUTE", script, "REQUIREMENTS", "markupsafe") == "markupsafe._speedups"


def removed(machine: Machine) -> None:
    """The commands of docs/deploying.md: nothing of ours is left in the file."""
    page = (ROOT / "docs/deploying.md").read_text().split("## Taking it away")[1]
    assert machine.shell("\n".join(re.findall(r"^    (redis-cli .*)$", page, re.MULTILINE)[:2])) == "OK\nOK"


def test_the_deb_from_installing_to_removing(machine: Machine) -> None:
    assert machine.shell("systemctl is-active redis-server") == "active"
    machine.redis("SET", "mine", "stays")
    machine.shell("apt-get install -y /pinion-redis_*.deb && systemctl restart redis-server")
    works(machine)
    machine.shell("sed -i 's/^PINION_OPTIONS=.*/PINION_OPTIONS=ExecutionThreads 7/' /etc/default/pinion && systemctl restart redis-server")
    assert machine.redis("RG.CONFIGGET", "ExecutionThreads") == "7"
    removed(machine)
    machine.shell("apt-get purge -y pinion-redis && systemctl restart redis-server")
    assert machine.redis("MODULE", "LIST") == ""
    assert machine.redis("GET", "mine") == "stays"
    assert machine.shell("ls /etc/default/pinion /lib/systemd/system/redis-server.service.d 2>/dev/null || true") == ""


def test_the_package_of_pip_as_the_page_says(machine: Machine) -> None:
    """docs/deploying.md, its commands and its drop-in word by word."""
    page = (ROOT / "docs/deploying.md").read_text()
    [commands] = re.findall(r"((?:    \S*/opt/pinion\S* .*\n|    python3 -m venv .*\n)+)", page)
    path = machine.shell(commands).splitlines()[-1]
    assert path.startswith("/opt/pinion/")
    [drop_in] = re.findall(r"^    \[Service\]\n(?:    .*\n)+", page, re.MULTILINE)
    folder = machine.root / "etc/systemd/system/redis-server.service.d"
    folder.mkdir(parents=True)
    (folder / "pinion.conf").write_text(re.sub(r"^    ", "", drop_in, flags=re.MULTILINE))
    with (machine.root / "etc/redis/redis.conf").open("a") as file:
        file.write(f"\nloadmodule {path} ExecutionThreads 4\n")
    machine.shell("systemctl daemon-reload && systemctl restart redis-server")
    works(machine)
    assert machine.redis("RG.PYEXECUTE", "GB('ShardsIDReader').map(lambda r: __import__('sys').prefix).run()") == "/opt/pinion"
