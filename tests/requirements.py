"""Packages made by hand, and what a server says of its requirements, for the tests of them. pip takes its packages from a
folder: no network is used.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from helpers import Server, as_dict, wait_for_aof, wait_until

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
    wait_for_aof(client)


def archive_of(name: str, *wheels: Path | tuple[str, bytes]) -> bytes:
    """What RG.PYEXPORTREQ gives, made by hand."""
    number = lambda n: n.to_bytes(8, "little")  # noqa: E731
    part = lambda text: number(len(text)) + text  # noqa: E731
    files = [wheel if isinstance(wheel, tuple) else (wheel.name, wheel.read_bytes()) for wheel in wheels]
    content = b"PINREQ" + number(1) + part(name.encode()) + part(b"linux-x86_64") + number(len(files))
    content += b"".join(part(file.encode()) + part(data) for file, data in files)
    return content + hashlib.sha256(content).digest()
