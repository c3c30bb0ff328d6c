"""`read_through` against a model: random interleavings of reads, loads, writes, deletions, expiry, flushes, upgrades and
disconnects. Contract: docs/contract/read-through.md chapter 3.

The source is the model's: a version that only grows. What a load brings is the version that the source had when the test let the
loader read it, so a reply that is too old shows. The rules: a client never gets a version older than the one that the source had at the
last invalidation before its command; what lies in the cache is never older than that either; each client gets one reply.
"""

from __future__ import annotations

import os
from typing import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from figures import figures
from helpers import RawClient, Server, wait_until
from read_through import at_rest

pytestmark = pytest.mark.matrix

KEYS = ["k:1", "k:2", "k:3"]
keys = st.sampled_from(KEYS)

SCRIPT = """
@read_through('k:*', {options})
def load(key):
    import redis
    with redis.Redis(port={port}, decode_responses=True) as source:
        version = source.get('version')
        source.rpush('began', key)
        source.blpop('go', 20)
        return version
"""


class Reads(RuleBasedStateMachine):
    """Clients that read; the test decides when loads go on."""

    server: Server
    source: Server
    options = "backoff=0, max_waiting=100"
    examples = 0

    @initialize()
    def begin(self) -> None:
        self.client, self.origin = self.server.client(), self.source.client()
        for registration in self.server.registrations():
            self.client.execute_command("RG.UNREGISTER", registration["id"])
        self.client.flushall()
        self.origin.flushall()
        # Loads of the example before may still be under way, and keep its session.
        Reads.examples += 1
        self.session = f"model-{Reads.examples}"
        self.version = 1
        self.origin.set("version", self.version)
        self.oldest = dict.fromkeys(KEYS, 0)
        """The version that a reader of the key must get at least, if he asks now."""
        self.readers: list[tuple[RawClient, str, int]] = []
        self.upgrades = 0
        self.register()

    def register(self, *more: str) -> None:
        script = SCRIPT.format(port=self.source.port, options=self.options)
        assert self.client.execute_command("RG.PYEXECUTE", script, "ID", self.session, *more) == "OK"

    @rule(key=keys, command=st.sampled_from(["GET", "STRLEN", "MGET", "GETRANGE"]))
    @precondition(lambda self: len(self.readers) < 12)
    def read(self, key: str, command: str) -> None:
        raw = self.server.raw()
        more = {"GETRANGE": (0, -1), "MGET": (key,)}.get(command, ())
        raw.send(command, key, *more)
        self.readers.append((raw, key, self.oldest[key]))

    @rule()
    def change_the_source(self) -> None:
        self.version += 1
        self.origin.set("version", self.version)

    @rule(key=keys, how=st.sampled_from(["DEL", "UNLINK", "MULTI", "EVAL"]))
    def invalidate(self, key: str, how: str) -> None:
        if how == "MULTI":
            self.client.pipeline(transaction=True).delete(key).execute()
        elif how == "EVAL":
            self.client.eval("redis.call('DEL', KEYS[1])", 1, key)
        else:
            self.client.execute_command(how, key)
        self.oldest[key] = self.version

    @rule(how=st.sampled_from(["FLUSHALL", "FLUSHDB", "SWAPDB 0 1"]))
    def invalidate_all(self, how: str) -> None:
        self.client.execute_command(*how.split())
        self.client.execute_command("FLUSHALL")
        self.oldest = dict.fromkeys(KEYS, self.version)

    @rule(key=keys)
    def write(self, key: str) -> None:
        """A writer brings source and cache to the same new version."""
        self.version += 1
        self.origin.set("version", self.version)
        self.client.set(key, self.version)
        self.oldest[key] = self.version

    @rule(key=keys)
    def expire(self, key: str) -> None:
        self.client.pexpire(key, 1)

    @rule(count=st.integers(1, 3))
    def let_loads_go_on(self, count: int) -> None:
        self.origin.rpush("go", *["x"] * count)

    @rule(key=keys)
    def refresh(self, key: str) -> None:
        raw = self.server.raw()
        raw.send("RG.REFRESH", key)
        self.readers.append((raw, "", 0))

    @rule(place=st.integers(0, 11))
    @precondition(lambda self: self.readers)
    def go_away(self, place: int) -> None:
        raw, *_ = self.readers.pop(place % len(self.readers))
        raw.close()

    @rule()
    @precondition(lambda self: self.upgrades < 3)
    def upgrade(self) -> None:
        self.upgrades += 1
        self.register("UPGRADE")

    def teardown(self) -> None:
        if not hasattr(self, "upgrades"):
            return
        # Every load that is to come goes on at once.
        self.origin.rpush("go", *["x"] * 200)
        for raw, key, oldest in self.readers:
            reply = raw.read()
            if not key:
                assert reply.startswith(b":")
                continue
            version = version_of(reply)
            assert version is None or version >= oldest, f"{key}: {reply!r} is older than version {oldest}"
        at_rest(self.server)
        for key, value in zip(KEYS, self.client.execute_command("MGET", *[f"{key}" for key in KEYS])):
            assert int(value) >= self.oldest[key], f"{key}: the cache holds version {value}, older than {self.oldest[key]}"
        for raw, *_ in self.readers:
            raw.close()


def version_of(reply: bytes) -> int | None:
    """The version in a reply to GET, MGET or GETRANGE; STRLEN tells none."""
    if reply.startswith(b":"):
        return None
    assert not reply.startswith(b"-"), reply
    return int(reply.rstrip().rsplit(b"\r\n", 1)[-1])


class ReadsOfStaleValues(Reads):
    """The same with background loads."""

    options = "backoff=0, ttl=0.7, stale=60, refresh_ahead=0.5"


@pytest.mark.parametrize("machine", [Reads, ReadsOfStaleValues], ids=["plain", "stale"])
def test_replies_and_cache_are_never_older_than_an_invalidation(
    machine: type[Reads], source: Server, start_server: Callable[..., Server]
) -> None:
    # More threads than loads that the test holds back.
    many = start_server(module_args=["ExecutionThreads", 12])
    machine.server, machine.source = many, source
    options = settings(
        max_examples=int(os.environ.get("PINION_EXAMPLES", "25")),
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(machine, settings=options)
    assert many.client().info("clients")["blocked_clients"] == 0
    wait_until(lambda: figures(many)["waiting"] == 0)
