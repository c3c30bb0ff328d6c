"""gears-cli 1.2.0, unmodified: scripts, arguments, requirements, errors. What its documentation promises, on a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from environments import python_environment
from helpers import Server

Call = Callable[..., str]
Script = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def gears_cli() -> Path:
    return python_environment("gears-cli", ["gears-cli==1.2.0"]).parent / "gears-cli"


def at(server: Server) -> list[str]:
    return ["--host", server.host, "--port", str(server.port)]


def test_run_prints_results_and_errors(server: Server, gears_cli: Path, call: Call, script: Script) -> None:
    server.client().mset({"a": "1", "b": "x"})
    ok = script("ok.py", "GB().map(lambda r: r['key']).sort().run()")
    printed = call(gears_cli, "run", *at(server), ok)
    assert "Results" in printed and "1)" in printed and "a" in printed and "Errors" not in printed
    bad = script("bad.py", "GB().map(lambda r: int(r['value'])).run('b')")
    printed = call(gears_cli, "run", *at(server), bad, fails=True)
    assert "Errors" in printed and "invalid literal for int()" in printed
    broken = script("broken.py", "GB().nothing()")
    assert "failed running gear function" in call(gears_cli, "run", *at(server), broken, fails=True)


def test_run_registers_with_extra_arguments(server: Server, gears_cli: Path, call: Call, script: Script) -> None:
    path = script("registers.py", "GB('CommandReader').map(lambda r: r[1].upper()).register(trigger='shout')")
    assert call(gears_cli, "run", *at(server), path, "ID", "shouting").strip() == "OK"
    assert server.client().execute_command("RG.TRIGGER", "shout", "hi") == ["HI"]
    assert "already exists" in call(gears_cli, "run", *at(server), path, "ID", "shouting", fails=True)
    assert call(gears_cli, "run", *at(server), path, "ID", "shouting", "UPGRADE").strip() == "OK"


def test_passwords(start_server: Callable[..., Server], gears_cli: Path, call: Call, script: Script) -> None:
    server = start_server()
    server.client().execute_command("ACL", "SETUSER", "ann", "on", ">secret", "~*", "+@all")
    path = script("one.py", "GB('ShardsIDReader').run()")
    assert "1" in call(gears_cli, "run", *at(server), "--user", "ann", "--password", "secret", path)
    assert "Cannot connect" in call(gears_cli, "run", *at(server), "--user", "ann", "--password", "no", path, fails=True)


@pytest.mark.own_server
def test_requirements_travel(
    server: Server, start_server: Callable[..., Server], gears_cli: Path, call: Call, script: Script, tmp_path: Path
) -> None:
    """install-requirements, export-requirements and import-requirements, and a function that uses what came."""
    script("requirements.txt", "colorama==0.4.6\n")
    assert "Done" in call(gears_cli, "install-requirements", *at(server), "--requirements-file", "requirements.txt")
    path = script("uses.py", "GB('ShardsIDReader').map(lambda r: __import__('colorama').__version__).run()")
    assert "0.4.6" in call(gears_cli, "run", *at(server), path, "--requirements", "requirements.txt")
    call(gears_cli, "export-requirements", *at(server), "--all")
    [archive] = tmp_path.glob("redisgears-requirement-v*-colorama==0.4.6-*.zip")
    other = start_server()
    printed = call(gears_cli, "import-requirements", *at(other), "--requirements-path", tmp_path, archive.name)
    assert "imported successfully" in printed
    assert "0.4.6" in call(gears_cli, "run", *at(other), path, "REQUIREMENTS", "colorama==0.4.6")


def test_export_by_registration(server: Server, gears_cli: Path, call: Call, script: Script, tmp_path: Path) -> None:
    path = script("registers.py", "GB('CommandReader').map(lambda r: 1).register(trigger='one')")
    call(gears_cli, "run", *at(server), path, "REQUIREMENTS", "colorama==0.4.6")
    [registration] = server.registrations()
    call(gears_cli, "export-requirements", *at(server), "--registration-id", registration["id"], "--output-prefix", "mine")
    assert len(list(tmp_path.glob("mine-*.zip"))) == 1
