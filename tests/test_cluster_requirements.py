"""Packages that functions need, on all shards of a Redis Cluster. Contract: docs/contract/commands.md 4.6 and 8.2. pip
takes its packages from a folder that only the first shard can see: the others get the files over the links."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest
import redis

from clusters import Cluster, make_cluster, node_id
from helpers import Server, wait_until
from test_requirements import NEEDY, VERSION, build_wheel, names, packages, requirements, settle

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
