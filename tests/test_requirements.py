"""REQUIREMENTS: fetched and installed beside the server, known by name, gone with what needed them.

Contract: docs/contract/commands.md 1.2, 4.6.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from helpers import Server, as_dict, wait_until
from requirements import NEEDY, VERSION, build_wheel, folders, names, packages, requirements

__all__ = ["packages"]  # a fixture

# The folder of packages is in the environment that a server starts with.
pytestmark = pytest.mark.own_server


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
