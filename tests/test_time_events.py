"""Time events: when they run, what ends them, and what becomes of those with a key in files, on replicas and in RESTORE.

Contract: docs/contract/python-api.md 2.7 and 7.3.
"""

from __future__ import annotations

import pickle
import shutil
import time
from pathlib import Path
from typing import Callable

import pytest
import redis

from helpers import Server, wait_for_aof, wait_until
from probes import error_of
from test_replication import AOF, attach, caught_up, promote

pytestmark = pytest.mark.own_server

DATA = Path(__file__).parent / "data"
TICK = "def tick():\n    execute('INCR', 'ticks')\n"
KEYED = f"{TICK}registerTE(1, tick, 'event')"
# More than a period: the next call would have come.
PERIOD = 1.4


def ticks(server: Server) -> int:
    return int(server.own.get("ticks") or 0)


def assert_ticking(server: Server) -> None:
    before = ticks(server)
    wait_until(lambda: ticks(server) > before)


def assert_still(server: Server) -> None:
    before = ticks(server)
    time.sleep(PERIOD)
    assert ticks(server) == before


# --- calls ---


def test_a_coroutine_is_ignored_and_the_event_goes_on(server: Server) -> None:
    server.run("""
        async def tick():
            execute('INCR', 'awaited')

        def count():
            execute('INCR', 'ticks')
            return tick()

        registerTE(1, count)
        registerTE(1, tick)
    """)
    wait_until(lambda: ticks(server) >= 2)
    assert server.client().get("awaited") is None
    log = server.log()
    assert "TimeEvent_Callback" not in log and "never awaited" not in log


def test_an_error_ends_the_event_and_leaves_the_key(server: Server) -> None:
    server.run("def tick():\n    execute('INCR', 'ticks')\n    1 / 0\nregisterTE(1, tick, 'event')")
    wait_until(lambda: ticks(server) == 1)
    assert_still(server)
    assert server.client().type("event") == "rg_timeev"
    assert "Error occured on TimeEvent_Callback, error=" in server.log()


def test_what_may_not_be_done_in_one(server: Server) -> None:
    server.run("""
        def tick():
            execute('SET', 'asynchronous', str(isAsyncAllow()))
            try:
                gearsFuture()
            except Exception as error:
                execute('SET', 'future', str(error))
            execute('INCR', 'ticks')

        registerTE(1, tick)
    """)
    wait_until(lambda: ticks(server) >= 1)
    assert server.client().get("asynchronous") == "False"
    assert "can only be created inside certain execution steps" in str(server.client().get("future"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("1", "not enough arguments for time event"),
        ("1, tick, 'k', 'more'", "not enough arguments for time event"),
        ("1, 2", "callback must be a function"),
        ("'1', tick", "time argument must be a long"),
        ("1.5, tick", "time argument must be a long"),
    ],
)
def test_wrong_arguments(server: Server, arguments: str, text: str) -> None:
    assert text in error_of(server, f"{TICK}registerTE({arguments})")


def test_a_key_that_is_taken(server: Server) -> None:
    client = server.client()
    client.set("event", "v")
    server.run(f"{TICK}execute('SET', 'made', str(registerTE(1, tick, 'event')))")
    assert (client.get("made"), client.get("event")) == ("False", "v")
    assert_still(server)


# --- the key ---


@pytest.mark.matrix
def test_rename_and_expire(server: Server) -> None:
    client = server.client()
    server.run(KEYED)
    assert client.rename("event", "renamed")
    assert_ticking(server)
    client.execute_command("DEBUG", "RELOAD")
    assert client.type("renamed") == "rg_timeev"
    assert_ticking(server)
    assert client.pexpire("renamed", 1)
    wait_until(lambda: not client.exists("renamed"))
    assert_still(server)


@pytest.mark.parametrize("command", [["DEL", "event"], ["UNLINK", "event"], ["SET", "event", "v"], ["FLUSHALL"], ["FLUSHDB"]])
def test_what_ends_the_key_ends_the_event(server: Server, command: list[str]) -> None:
    server.run(KEYED)
    assert_ticking(server)
    server.client().execute_command(*command)
    assert_still(server)


def test_a_time_event_is_not_copied(server: Server) -> None:
    server.run(KEYED)
    with pytest.raises(redis.ResponseError):
        server.client().execute_command("COPY", "event", "copied")
    assert server.client().exists("copied") == 0
    assert_ticking(server)


# --- RESTORE ---


def crc64(data: bytes) -> bytes:
    """The checksum of a dumped value (Jones, reflected)."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x95AC9329AC4BC9B5 if crc & 1 else 0)
    return crc.to_bytes(8, "little")


class Evil:
    """Does something when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def string(data: bytes) -> bytes:
    """A string as values of modules have it."""
    size = bytes([len(data)]) if len(data) < 64 else (0x4000 | len(data)).to_bytes(2, "big")
    return b"\x05" + size + data


def crafted(dumped: bytes, path: Path) -> bytes:
    """A value with the frame of `dumped` that writes a file when its function is loaded: version 1, without a digest."""
    version = dumped[-10:-8]
    head = dumped[:2] + (int.from_bytes(dumped[2:10], "big") & ~0x3FF | 1).to_bytes(8, "big")
    start = dumped.index(b"py3.")
    image = dumped[start : dumped.index(b"\n", start) + 1] + pickle.dumps(Evil(path))
    body = head + b"\x02\x03" + string(b"1000") + string(b"sid") + string(image) + b"\x00" + version
    return body + crc64(body)


@pytest.mark.matrix
@pytest.mark.parametrize("make", ["dumped", "crafted"])
def test_restore_is_refused(server: Server, tmp_path: Path, make: str) -> None:
    server.run(KEYED)
    client = server.client(decode_responses=False)
    dumped = client.dump("event")
    touched = tmp_path / "touched"
    value = dumped if make == "dumped" else crafted(dumped, touched)
    client.execute_command("ACL", "SETUSER", "user", "on", "nopass", "~*", "+restore")
    user = server.client(username="user", password="x")
    with pytest.raises(redis.ResponseError, match="Bad data format"):
        user.execute_command("RESTORE", "restored", "0", value)
    for caller in ("script", "function"):
        with pytest.raises(redis.ResponseError):
            if caller == "script":
                client.eval("return redis.call('RESTORE', 'restored', '0', ARGV[1])", 0, value)
            else:
                server.run(f"execute('RESTORE', 'restored', '0', {value!r})")
                errors = server.run(f"GB('ShardsIDReader').map(lambda r: execute('RESTORE', 'restored', '0', {value!r})).run()")[1]
                raise redis.ResponseError(errors[0])
    time.sleep(PERIOD)
    assert client.exists("restored") == 0 and not touched.exists()
    assert "such a key comes from files and masters only, not by RESTORE or MIGRATE" in server.log()
    assert_ticking(server)


def test_migrate_is_refused(start_server: Callable[..., Server]) -> None:
    source, target = start_server(), start_server()
    source.run(KEYED)
    with pytest.raises(redis.ResponseError, match="Bad data format"):
        source.client().execute_command("MIGRATE", target.host, target.port, "event", "0", "5000")
    assert source.client().type("event") == "rg_timeev" and target.client().exists("event") == 0
    assert_ticking(source)


# --- files and replicas ---


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["reload", "rdb", "aof", "aof rewritten", "aof rewritten without preamble"])
def test_time_events_survive(start_server: Callable[..., Server], how: str) -> None:
    args = [*AOF, "--aof-use-rdb-preamble", "no" if "without" in how else "yes"] if how.startswith("aof") else []
    server = start_server(args=args)
    server.run(KEYED)
    client = server.client()
    if how == "reload":
        client.execute_command("DEBUG", "RELOAD")
    elif how == "rdb":
        client.save()
        server.restart(kill=True)
    else:
        if "rewritten" in how:
            client.bgrewriteaof()
            wait_for_aof(client)
        server.restart(kill=True)
    assert server.client().type("event") == "rg_timeev"
    assert_ticking(server)
    server.client().delete("event")
    assert_still(server)


@pytest.mark.matrix
def test_time_events_of_replicas_run_after_a_promotion(start_server: Callable[..., Server]) -> None:
    master, replica, late = start_server(), start_server(), start_server()
    attach(replica, master)
    master.run(KEYED)
    attach(late, master)
    assert_ticking(master)
    master.stop(kill=True)
    before = ticks(replica)
    time.sleep(PERIOD)
    assert ticks(replica) == before
    for promoted in (replica, late):
        promote(promoted)
        assert promoted.client().type("event") == "rg_timeev"
        assert_ticking(promoted)


SHARED = """
n = 0

def write():
    global n
    n += 1

def read():
    execute('SET', 'seen', n)

registerTE(1, write, 'writer')
registerTE(1, read, 'reader')
GB('CommandReader').map(lambda words: n).register(trigger='n', mode='sync')
"""


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["none", "reload", "aof", "promotion"])
@pytest.mark.parametrize("registers", [True, False], ids=["with trigger", "events only"])
def test_events_of_one_session_share_its_globals(start_server: Callable[..., Server], how: str, registers: bool) -> None:
    server = start_server(args=AOF)
    replica = start_server()
    if how == "promotion":
        attach(replica, server)
    server.run(SHARED if registers else SHARED.rpartition("GB")[0], "ID", "shared")
    if how == "reload":
        server.client().execute_command("DEBUG", "RELOAD")
    elif how == "aof":
        server.restart(kill=True)
    elif how == "promotion":
        caught_up(server, replica)
        server.stop(kill=True)
        server = replica
        promote(server)
    client = server.client()
    client.delete("seen")
    wait_until(lambda: int(client.get("seen") or 0) >= 2)
    if registers:
        assert int(client.execute_command("RG.TRIGGER", "n")[0]) >= 2


def test_sessions_with_other_ids_share_nothing(server: Server) -> None:
    server.run(SHARED.partition("GB")[0].replace("registerTE(1, read, 'reader')", ""), "ID", "one")
    server.run(SHARED.partition("GB")[0].replace("registerTE(1, write, 'writer')", ""), "ID", "two")
    client = server.client()
    client.execute_command("DEBUG", "RELOAD")
    client.delete("seen")
    wait_until(lambda: client.get("seen"))
    time.sleep(PERIOD)
    assert client.get("seen") == "0"


def test_a_function_that_does_not_load_yet(server: Server) -> None:
    """What it imports may be installed later: the log says so once, and it runs then."""
    server.run(f"""
        import sys, types
        later = types.ModuleType('later')
        later.__file__ = 'later.py'
        exec("def tick():\\n    import redisgears\\n    redisgears.executeCommand('INCR', 'ticks')", later.__dict__)
        later.tick.__module__ = 'later'
        sys.modules['later'] = later
        registerTE(1, later.tick, 'event')
        del sys.modules['later']
    """)
    server.client().execute_command("DEBUG", "RELOAD")
    server.client().delete("ticks")
    wait_until(lambda: "a time event cannot run, its function does not load" in server.log())
    assert_still(server)
    assert server.log().count("its function does not load") == 1
    server.run("""
        import sys, types
        later = types.ModuleType('later')
        exec("def tick():\\n    import redisgears\\n    redisgears.executeCommand('INCR', 'ticks')", later.__dict__)
        sys.modules['later'] = later
    """)
    assert_ticking(server)


@pytest.mark.matrix
@pytest.mark.parametrize("sample", sorted(DATA.glob("time-event-*.rdb")), ids=lambda path: path.stem)
def test_frozen_values_still_load(start_server: Callable[..., Server], sample: Path) -> None:
    server = start_server()
    server.stop()
    shutil.copy(sample, server.dir / "dump.rdb")
    server.start()
    client = server.client()
    assert client.type("old") == "rg_timeev"
    python = server.run("GB('ShardsIDReader').map(lambda _: '%d.%d' % __import__('sys').version_info[:2]).run()")[0][0]
    if sample.stem.endswith(python):
        wait_until(lambda: client.get("ticks"))
    else:
        wait_until(lambda: "its function does not load" in server.log())


@pytest.mark.parametrize("place", ["image", "digest", "session"])
def test_damaged_values_are_refused(start_server: Callable[..., Server], place: str) -> None:
    server = start_server(args=["--rdbchecksum", "no"])
    server.run(KEYED, "ID", "thesession")
    server.client().save()
    server.stop(kill=True)
    path = server.dir / "dump.rdb"
    data = bytearray(path.read_bytes())
    if place == "digest":
        spot = data.rindex(b"\x05\x20") + 10
    else:
        spot = data.index({"image": b"py3.", "session": b"thesession"}[place]) + 2
    data[spot] ^= 0x01
    path.write_bytes(data)
    with pytest.raises(AssertionError):
        server.start()
    server.expect_death()
    assert "a time event cannot be loaded: its bytes are damaged" in server.log()
    assert server.wait_exit() >= 0, "it refuses, and does not crash"


def test_damaged_steps_are_refused(start_server: Callable[..., Server]) -> None:
    server = start_server(args=AOF)
    server.run(f"{TICK}registerTE(1, tick, 'before')")
    server.stop()
    files = sorted(server.dir.glob("appendonlydir/*.incr.aof")) or [server.dir / "appendonly.aof"]
    name = b"RG.INNERTIMEEVENT"

    def command(*words: bytes) -> bytes:
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)

    with files[-1].open("ab") as file:
        file.write(command(name, b"a", b"x", b"sid", b"py3.11\n"))
        file.write(command(name, b"b", b"0", b"sid", b"py3.11\n"))
        file.write(command(name, b"c", b"1000", b"\xff", b"py3.11\n"))
        file.write(command(name, b"d", b"1000"))
        file.write(command(name, b"e", b"1000", b"sid", b"nonsense"))
    server.start()
    client = server.client()
    # What is well-formed is kept, whatever its image is.
    assert sorted(client.keys("?")) == ["e"] and client.type("before") == "rg_timeev"
    assert_ticking(server)
    assert server.alive()


def test_clients_cannot_send_the_internal_command(server: Server) -> None:
    with pytest.raises(redis.ResponseError, match="this command is internal"):
        server.client().execute_command("RG.INNERTIMEEVENT", "k", "1000", "sid", "py3.11\n")


def test_one_that_has_ended_keeps_nothing(server: Server) -> None:
    """However long its period is."""
    server.run("""
        class Kept:
            pass
        kept = Kept()
        registerTE(3600, lambda: kept, 'te')
        """)
    count = "import gc\ngc.collect()\nexecute('SET', 'count', sum(type(o).__name__ == 'Kept' for o in gc.get_objects()))"
    server.run(count)
    assert server.own.get("count") == "1"
    server.own.delete("te")
    wait_until(lambda: server.run(count) and server.own.get("count") == "0", 10, "its function and its session are gone")
