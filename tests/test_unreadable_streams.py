"""Streams of a cluster that is down for a while: what is in them is read when that is over, without a new entry. A master that has
started again is such a case: its cluster is down for two seconds. Contract: docs/contract/readers-and-events.md 6.5.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clusters import make_cluster
from helpers import Server, wait_until
from probes import AOF

FLAGGED = """
import os
def process(entry):
    if not os.path.exists({flag!r}):
        raise ValueError('not yet')
    execute('RPUSH', '{{s}}done', entry['value']['n'])
GB('StreamReader').foreach(process).register('s', batch=2, mode={mode!r}, onFailedPolicy='retry', onFailedRetryInterval=1)
"""


def waiting_for_retry(server: Server, flag: Path, mode: str) -> None:
    """Three entries are in a stream whose function has failed; it fails until there is the flag."""
    assert server.run(FLAGGED.format(flag=str(flag), mode=mode)) == "OK"
    for number in range(3):
        server.client().xadd("s", {"n": number})
    wait_until(lambda: server.registrations()[0]["RegistrationData"]["status"] == "WAITING_FOR_RETRY_ON_FAILURE")


def processed(server: Server) -> list[str]:
    return server.client().lrange("{s}done", 0, -1)


def all_are_processed(server: Server) -> None:
    """Without another entry; also the last one, which is no full batch, as it was there before anybody looked."""
    wait_until(lambda: server.client().execute_command("CLUSTER INFO")["cluster_state"] == "ok", 20)
    wait_until(lambda: processed(server) == ["0", "1", "2"], 20)
    assert server.log().count("could not read the stream s") <= 1, "it is said once"
    for number in (3, 4):
        server.client().xadd("s", {"n": number})
    wait_until(lambda: processed(server)[3:] == ["3", "4"])


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["async_local", "async"])
def test_a_slot_that_nobody_has_for_a_while(start_server: Callable[..., Server], tmp_path: Path, mode: str) -> None:
    server, other = make_cluster(start_server, masters=2).masters
    client = server.client()
    waiting_for_retry(server, tmp_path / "flag", mode)
    client.execute_command("CLUSTER", "DELSLOTS", 0)
    wait_until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "fail")
    (tmp_path / "flag").touch()
    wait_until(lambda: "could not read the stream s" in server.log(), 20)
    client.execute_command("CLUSTER", "ADDSLOTS", 0)
    all_are_processed(server)


@pytest.mark.matrix
def test_a_master_that_has_started_again(start_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_cluster(start_server, masters=2, args=[*AOF, "--appendfsync", "always"]).masters[0]
    waiting_for_retry(server, tmp_path / "flag", "async_local")
    (tmp_path / "flag").touch()
    server.stop(kill=True)
    server.start()
    all_are_processed(server)
