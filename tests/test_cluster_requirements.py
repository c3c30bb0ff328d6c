"""Packages that functions need, on all shards of a Redis Cluster. Contract: docs/contract/commands.md 4.6 and 8.2. pip
takes its packages from a folder that only the first shard can see: the others get the files over the links."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest
import redis

from clusters import Cluster, make_cluster, node_id
from helpers import Server, as_dict, wait_until
from requirements import NEEDY, VERSION, build_wheel, names, packages, requirements, settle

__all__ = ["packages"]  # a fixture

ON_ALL = VERSION.replace("lambda _: pinion_demo.VERSION", "lambda shard: shard + pinion_demo.VERSION")


@pytest.fixture
def cluster(start_server: Callable[..., Server], packages: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Only the first one finds packages."""
    count = 0

    def start(**options: object) -> Server:
        nonlocal count
        count += 1
        if count > 1:
            monkeypatch.setenv("PIP_FIND_LINKS", str(packages / "nowhere"))
        return start_server(**options)

    return make_cluster(start)


def test_a_run_has_them_on_all_shards(cluster: Cluster) -> None:
    expected = sorted(node_id(server) + "1.0" for server in cluster.masters)
    found, errors = cluster[0].run(ON_ALL, "REQUIREMENTS", "pinion-demo==1.0")
    assert (sorted(found), errors) == (expected, [])
    for server in cluster.masters:
        assert names(server) == ["pinion-demo==1.0"]
        assert requirements(server)[0]["IsInstalled"] == "yes"
        # known everywhere now, so any shard may ask for it
        found, errors = server.run(ON_ALL, "REQUIREMENTS", "pinion-demo==1.0")
        assert (sorted(found), errors) == (expected, [])


@pytest.mark.matrix
def test_a_registration_has_them_on_all_shards(cluster: Cluster) -> None:
    assert cluster[0].run(NEEDY, "ID", "needy", "REQUIREMENTS", "pinion-demo==1.0") == "OK"
    for server in cluster.masters:
        assert server.client().execute_command("RG.TRIGGER", "version") == ["1.0"]
    # a shard that loses its data gets it all from the others
    cluster[1].restart(kill=True)
    wait_until(lambda: len(cluster[1].registrations()) == 1, 20)
    settle(cluster[1])
    assert cluster[1].client().execute_command("RG.TRIGGER", "version") == ["1.0"]


def test_a_package_that_cannot_be_had(cluster: Cluster) -> None:
    with pytest.raises(redis.ResponseError, match="Could not satisfy requirements"):
        cluster[1].run(NEEDY, "REQUIREMENTS", "pinion-demo==1.0")
    for server in cluster.masters:
        assert names(server) == [] and server.registrations() == []


def test_a_reinstallation_reaches_all_shards(cluster: Cluster, packages: Path) -> None:
    assert cluster[0].run(ON_ALL, "REQUIREMENTS", "pinion-demo==1.0")[1] == []
    build_wheel(packages, "pinion-demo", "1.0", body="VERSION = 'new'\n")
    found, errors = cluster[0].run(ON_ALL, "FORCE_REINSTALL_REQUIREMENTS", "REQUIREMENTS", "pinion-demo==1.0")
    assert (sorted(found), errors) == (sorted(node_id(server) + "new" for server in cluster.masters), [])


def test_an_import_installs_on_all_shards(cluster: Cluster, start_server: Callable[..., Server]) -> None:
    cluster[0].run(VERSION, "REQUIREMENTS", "pinion-demo==1.0")
    export = cluster[0].client(decode_responses=False).execute_command("RG.PYEXPORTREQ", "pinion-demo==1.0")
    for server in cluster.masters:
        server.restart(kill=True)
    cluster.wait_linked()
    assert names(cluster[2]) == []
    assert cluster[2].client().execute_command("RG.PYIMPORTREQ", *export[1]) == "OK"
    for server in cluster.masters:
        assert names(server) == ["pinion-demo==1.0"]
        # The run waits until the others have installed it.
        server.client().execute_command("RG.CONFIGSET", "ExecutionMaxIdleTime", 60_000)
    assert cluster[1].run(ON_ALL, "REQUIREMENTS", "pinion-demo==1.0")[1] == []


def test_policies_are_each_shard_s_own(start_server: Callable[..., Server], packages: Path) -> None:
    count = 0

    def start(**options: object) -> Server:
        nonlocal count
        count += 1
        arguments = ["RequirementsPolicy", "deny"] if count == 3 else []
        return start_server(**{**options, "module_args": arguments})

    cluster = make_cluster(start)
    with pytest.raises(redis.ResponseError, match="Failed installing requirements on shard"):
        cluster[0].run(NEEDY, "REQUIREMENTS", "pinion-demo==1.0")
    for server in cluster.masters:
        assert server.registrations() == []
    assert names(cluster[2]) == []


def installed(server: Server) -> list[int]:
    sessions = server.client().execute_command("RG.PYDUMPSESSIONS")
    return [as_dict(session)["requirementInstallationNeeded"] for session in sessions]


@pytest.mark.matrix
def test_all_shards_tell_whether_there_was_an_installation(cluster: Cluster) -> None:
    assert cluster[0].run(NEEDY, "ID", "first", "REQUIREMENTS", "pinion-demo==1.0") == "OK"
    assert [installed(server) for server in cluster.masters] == [[1]] * 3
    # nothing was left to install for this one
    assert cluster[1].run(NEEDY, "ID", "first", "UPGRADE", "REQUIREMENTS", "pinion-demo==1.0") == "OK"
    assert [installed(server) for server in cluster.masters] == [[0]] * 3
    assert cluster[0].run(NEEDY, "ID", "first", "UPGRADE", "FORCE_REINSTALL_REQUIREMENTS", "REQUIREMENTS", "pinion-demo==1.0") == "OK"
    assert [installed(server) for server in cluster.masters] == [[1]] * 3
    # a shard that gets it later
    cluster[2].restart(kill=True)
    wait_until(lambda: len(cluster[2].registrations()) == 1, 20)
    assert installed(cluster[2]) == [1]
    assert "'isInstallationNeeded':1" in cluster[2].client().execute_command("RG.DUMPREGISTRATIONS")[0][9]


# --- nodes with one working directory ---


@pytest.fixture
def housemates(start_server: Callable[..., Server], packages: Path, tmp_path: Path) -> Cluster:
    """Three shards in one folder."""
    folder = tmp_path / "shared"
    folder.mkdir()
    count = 0

    def start(*, args: list[str], **options: object) -> Server:
        nonlocal count
        count += 1
        names = ["--cluster-config-file", f"nodes-{count}.conf", "--dbfilename", f"dump-{count}.rdb"]
        return start_server(args=[*args, "--dir", str(folder), *names], **options)

    # Three pips at a time, on whatever the machine has left.
    return make_cluster(start, module_args=["PythonInstallReqMaxIdleTime", 120000])


def test_nodes_in_one_folder_have_environments_of_their_own(housemates: Cluster, tmp_path: Path) -> None:
    for name in ("pinion-demo==1.0", "pinion-user"):
        found, errors = housemates[0].run(ON_ALL, "REQUIREMENTS", name)
        assert (len(found), errors) == (3, [])
    export = housemates[0].client(decode_responses=False).execute_command("RG.PYEXPORTREQ", "pinion-demo==1.0")
    raws = [server.raw(timeout=120) for server in housemates.masters]
    for raw in raws:
        raw.send("RG.PYIMPORTREQ", *export[1])
    assert [raw.read() for raw in raws] == [b"$2\r\nOK\r\n"] * 3
    environments = sorted(path.name for path in (tmp_path / "shared" / "pinion-requirements").glob("python-*"))
    assert sorted(name.rsplit("-", 1)[1] for name in environments) == sorted(str(server.port) for server in housemates.masters)


def test_a_node_finds_its_environment_again(housemates: Cluster, tmp_path: Path) -> None:
    """Each node has the version that it was asked for, although all are in one folder."""
    local = VERSION.replace("run()", "run(mode='async_local')")
    for server in housemates.masters:
        assert server.run(local, "REQUIREMENTS", "pinion-demo==1.0") == [["1.0"], []]
    for server in housemates.masters:
        server.restart(kill=True)
    housemates.wait_linked()
    for server in housemates.masters:
        assert server.run(local) == [["1.0"], []]
