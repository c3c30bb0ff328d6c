"""What is registered outlives the process: RDB, AOF with and without preamble, DEBUG RELOAD, FLUSHALL; damaged files.

Contract: docs/contract/commands.md 4.4 and 6; docs/contract/python-api.md 7.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path
from typing import Any, Callable

import pytest
import redis

from helpers import Server, ServerDied, as_dict, wait_for_aof, wait_until
from probes import AOF, error_of

ZEROS = "0" * 40
NO_PREAMBLE = [*AOF, "--aof-use-rdb-preamble", "no"]

# One registration of each kind, with every argument.
EVERYTHING = """
seen = []

def prepare():
    global connection
    connection = 'made here'
    execute('INCR', 'prepared')

def remember(record):
    seen.append(record['key'])
    return connection + ':' + str(len(seen))

GB('KeysReader', desc='keys').map(remember).foreach(lambda text: execute('RPUSH', 'log', text)).register(
    'k:*', mode='sync', eventTypes=['set'], keyTypes=['string', 'stream', 'empty'], readValue=False, onRegistered=prepare)
GB('KeysReader').foreach(lambda record: override_reply('from a function')).register(
    'm:*', mode='async_local', commands=['get'], eventTypes=['keymiss'], inorder=True)
GB('StreamReader').foreach(lambda record: execute('INCR', 'entries')).register(
    's:*', mode='async_local', batch=3, duration=50, onFailedPolicy='retry', onFailedRetryInterval=7, trimStream=False)
GB('CommandReader').map(lambda words: words[1]).register(trigger='echo', mode='sync', inorder=True)
GB('CommandReader').map(lambda words: 'hooked ' + call_next(*words[1:])).register(
    hook='ECHO', mode='sync')
GB('CommandReader').aggregate(0, lambda a, r: a + len(r), lambda a, r: a + r).register(trigger='sum', mode='sync')
"""


# A time event with a key.
TICK = """
ticks = 0
def tick():
    global ticks
    ticks += 1
    execute('SET', 'ticks', ticks)
registerTE(1, tick, 'timer')
"""


def register(server: Server, script: str = EVERYTHING, *options: str) -> None:
    assert server.run(script, *options) == "OK"


def state(server: Server) -> list[Any]:
    """All registrations without what is counted."""
    fixed = []
    for entry in server.registrations():
        data = entry["RegistrationData"]
        session = entry["PD"].split("'refCount'")[0]
        fixed.append([entry["id"], entry["reader"], entry["desc"], data["mode"], data["args"], session])
    return fixed


def check_all_work(server: Server, keys_before: int = 0) -> None:
    """Everything of EVERYTHING does what it should, with one state for all functions of the session."""
    client = server.client()
    client.delete("log", "entries", "m:1")
    client.set("k:1", 1)
    assert client.lrange("log", 0, -1) == [f"made here:{keys_before + 1}"]
    assert client.get("m:1") == "from a function"
    for number in range(3):
        client.xadd("s:1", {"n": number})
    wait_until(lambda: client.get("entries") == "3")
    assert client.execute_command("RG.TRIGGER", "echo", "hi") == ["hi"]
    assert client.execute_command("ECHO", "x") == "hooked x"
    assert client.execute_command("RG.TRIGGER", "sum") == ["1"]


def reload(server: Server) -> None:
    server.client().execute_command("DEBUG", "RELOAD")


def restart_after_save(server: Server) -> None:
    server.client().save()
    server.restart(kill=True)


def restart_killed(server: Server) -> None:
    server.restart(kill=True)


def rewrite(server: Server) -> None:
    """Rewrites the AOF file and waits for its end."""
    client = server.client()
    client.bgrewriteaof()
    wait_for_aof(client)
    assert client.info("persistence")["aof_last_bgrewrite_status"] == "ok"


def restart_after_rewrite(server: Server) -> None:
    rewrite(server)
    server.restart(kill=True)


WAYS = [
    pytest.param([], reload, id="debug-reload"),
    pytest.param([], restart_after_save, id="rdb"),
    pytest.param(AOF, restart_killed, id="aof"),
    pytest.param(AOF, restart_after_rewrite, id="aof-rewritten-with-preamble"),
    pytest.param(NO_PREAMBLE, restart_killed, id="aof-without-preamble"),
    pytest.param(NO_PREAMBLE, restart_after_rewrite, id="aof-rewritten-without-preamble"),
    pytest.param(AOF, reload, id="aof-debug-reload"),
]


@pytest.mark.matrix
@pytest.mark.parametrize(("args", "lose"), WAYS)
def test_everything_survives(start_server: Callable[..., Server], args: list[str], lose: Callable[[Server], None]) -> None:
    server = start_server(args=args)
    register(server, EVERYTHING, "ID", "all", "DESCRIPTION", "a session's text")
    before = state(server)
    check_all_work(server)
    lose(server)
    assert state(server) == before
    client = server.client()
    assert client.get("prepared") == "2", "onRegistered runs again"
    check_all_work(server)
    # A new registration gets a number of its own.
    register(server, "GB('KeysReader').register('z*')")
    ids = [entry["id"] for entry in server.registrations()]
    assert len(set(ids)) == len(before) + 1
    # And twice, from what was loaded itself.
    before = state(server)
    lose(server)
    assert state(server) == before


@pytest.mark.matrix
@pytest.mark.parametrize(("args", "lose"), WAYS)
def test_what_was_removed_stays_removed(
    start_server: Callable[..., Server], args: list[str], lose: Callable[[Server], None]
) -> None:
    server = start_server(args=args)
    register(server, "GB('KeysReader').register('a*')\nGB('KeysReader').register('b*')", "ID", "one")
    register(server, "GB('CommandReader').register(trigger='t')", "ID", "two")
    register(server, "GB('CommandReader').map(lambda _: 'new').register(trigger='t', mode='sync')", "ID", "two", "UPGRADE")
    client = server.client()
    client.execute_command("RG.UNREGISTER", server.registrations()[0]["id"])
    before = state(server)
    assert len(before) == 2
    lose(server)
    assert state(server) == before
    assert server.client().execute_command("RG.TRIGGER", "t") == ["new"]
    assert error_of(server, "1", "ID", "two") == "Session two already exists"


@pytest.mark.matrix
def test_registrations_survive_flushall(start_server: Callable[..., Server]) -> None:
    server = start_server(args=AOF)
    register(server)
    before = state(server)
    server.client().flushall()
    assert state(server) == before
    server.restart(kill=True)
    assert state(server) == before


@pytest.mark.matrix
def test_no_key_of_ours_is_ever_seen(start_server: Callable[..., Server]) -> None:
    server = start_server(args=NO_PREAMBLE)
    client = server.client()
    register(server, "GB('KeysReader').register('a*')")
    events = client.pubsub()
    client.config_set("notify-keyspace-events", "KEAm" if server.version < (7, 0) else "KEAnm")
    events.psubscribe("__key*__:*")
    for lose in (reload, restart_after_save):
        client.set("mine", 1)
        client.save()
        rewrite(server)
        lose(server)
        client = server.client()
        assert client.keys("*") == ["mine"]
        assert client.dbsize() == 1


@pytest.mark.matrix
def test_a_file_without_registrations_loads_without_the_module(start_server: Callable[..., Server]) -> None:
    server, plain = start_server(), start_server(module=False)
    client = server.client()
    register(server, "GB('KeysReader').register('a*')")
    client.execute_command("RG.UNREGISTER", server.registrations()[0]["id"])
    client.set("mine", 1)
    client.save()
    plain.stop()
    shutil.copy(server.dir / "dump.rdb", plain.dir / "dump.rdb")
    plain.start()
    assert plain.client().get("mine") == "1"


@pytest.mark.matrix
def test_nested_hooks_keep_their_order(start_server: Callable[..., Server]) -> None:
    server = start_server()
    for name in "abc":
        register(server, f"GB('CommandReader').map(lambda w: '{name}' + call_next(*w[1:])).register(hook='echo', mode='sync')")
    client = server.client()
    for _ in range(3):
        assert client.execute_command("ECHO", "x") == "cbax"
        reload(server)
    assert client.execute_command("ECHO", "x") == "cbax"


@pytest.mark.matrix
def test_streams_go_on_where_they_were(start_server: Callable[..., Server]) -> None:
    """Also where two registrations share a stream, and the first of them is gone."""
    server = start_server(args=AOF)
    count = "GB('StreamReader').foreach(lambda r: execute('RPUSH', '{}', r['value']['n'])).register('s', trimStream=False)"
    register(server, count.format("first"))
    register(server, count.format("second"))
    client = server.client()
    client.xadd("s", {"n": 1})
    wait_until(lambda: client.llen("first") == client.llen("second") == 1)
    client.execute_command("RG.UNREGISTER", server.registrations()[0]["id"])
    server.restart(kill=True)
    client = server.client()
    client.xadd("s", {"n": 2})
    wait_until(lambda: client.llen("second") == 2)
    server.wait_idle()
    assert client.lrange("second", 0, -1) == ["1", "2"]
    assert client.llen("first") == 1


def test_functions_come_back_as_they_were_registered(start_server: Callable[..., Server]) -> None:
    """The image is made once: what happens to globals afterwards is neither saved nor in the way
    (docs/contract/python-api.md 7.1)."""
    server = start_server()
    script = """
import threading
x = 5
def value(words):
    return x
GB('CommandReader').map(value).register(trigger='x', mode='sync')
x = threading.Lock()
"""
    register(server, script)
    reload(server)
    assert server.client().execute_command("RG.TRIGGER", "x") == ["5"]
    reload(server)
    assert server.client().execute_command("RG.TRIGGER", "x") == ["5"]


def test_a_scripts_own_names_win(start_server: Callable[..., Server]) -> None:
    """Names that every script has, redefined by the script (docs/contract/python-api.md 7.3)."""
    server = start_server()
    script = """
def log(text):
    return 'mine: ' + text
GB('CommandReader').map(lambda words: log(words[1]) + str(hashtag is not None)).register(trigger='log', mode='sync')
"""
    register(server, script)
    reload(server)
    assert server.client().execute_command("RG.TRIGGER", "log", "a") == ["mine: aTrue"]


def test_functions_of_a_session_share_their_globals(start_server: Callable[..., Server]) -> None:
    server = start_server()
    script = """
count = 10
def up(words):
    global count
    count += 1
    return count
def show(words):
    return count
GB('CommandReader').map(up).register(trigger='up', mode='sync')
GB('CommandReader').map(show).register(trigger='show', mode='sync')
"""
    register(server, script)
    reload(server)
    client = server.client()
    assert client.execute_command("RG.TRIGGER", "up") == ["11"]
    assert client.execute_command("RG.TRIGGER", "show") == ["11"]


def test_a_function_that_cannot_be_loaded_is_there_and_says_why(start_server: Callable[..., Server]) -> None:
    server = start_server(args=AOF)
    script = """
import sys, types
sys.modules['gone'] = gone = types.ModuleType('gone')
exec('def work(words): return 1', gone.__dict__)
gone.work.__module__ = 'gone'
GB('CommandReader', desc='lost').map(gone.work).register(trigger='lost', mode='sync')
GB('CommandReader').map(lambda words: 2).register(trigger='fine', mode='sync')
"""
    register(server, script, "ID", "s")
    for _ in range(2):
        server.restart(kill=True)
        client = server.client()
        lost, _fine = server.registrations()
        assert lost["desc"] == "lost"
        assert "No module named 'gone'" in lost["RegistrationData"]["lastError"]
        assert client.execute_command("RG.TRIGGER", "fine") == ["2"]
        assert "is there but does not run" in server.log()
        rewrite(server)
    # It can be replaced.
    register(server, "GB('CommandReader').map(lambda words: 3).register(trigger='lost', mode='sync')", "ID", "s", "UPGRADE")
    assert server.client().execute_command("RG.TRIGGER", "lost") == ["3"]


def test_an_on_registered_that_cannot_be_loaded_keeps_it_from_running(start_server: Callable[..., Server]) -> None:
    """Also a plan without any function, and when another registration ends: nothing was in its way but its own function."""
    server = start_server(args=AOF)
    script = """
import sys, types
sys.modules['gone'] = gone = types.ModuleType('gone')
exec('def prepare(): pass', gone.__dict__)
gone.prepare.__module__ = 'gone'
GB('CommandReader', desc='lost').count().register(trigger='lost', onRegistered=gone.prepare)
"""
    register(server, script)
    register(server, "GB('CommandReader').register(trigger='other')", "ID", "other")
    server.restart(kill=True)
    for number in range(3):
        server.client().execute_command("RG.UNREGISTERSESSION", "other")
        register(server, f"GB('CommandReader').register(trigger='other{number}')", "ID", "other")
        lost = server.registrations()[0]
        assert lost["desc"] == "lost" and "No module named 'gone'" in lost["RegistrationData"]["lastError"]
        assert error_of(server, "lost", command="RG.TRIGGER") == "ERR subcommand not found"


def test_registrations_of_running_functions_are_saved(start_server: Callable[..., Server]) -> None:
    server = start_server(args=AOF)
    script = """
def more(words):
    GB('CommandReader').map(lambda w: 'second').register(trigger='second', mode='sync')
GB('CommandReader').foreach(more).register(trigger='first')
"""
    register(server, script, "ID", "s")
    client = server.client()
    client.execute_command("RG.TRIGGER", "first")
    before = state(server)
    server.restart(kill=True)
    assert state(server) == before
    assert server.client().execute_command("RG.TRIGGER", "second") == ["second"]


def test_internal_commands_are_for_files_and_masters_only(server: Server) -> None:
    register(server, "GB('KeysReader').register('a*')")
    for command in ("RG.INNERREGISTER", "RG.PYIMPORTRETINTERNAL"):
        assert "internal" in error_of(server, "x", command=command)
        assert "internal" in error_of(server, command=command)
    # This one is RG.UNREGISTER under another name.
    assert error_of(server, "x", command="RG.INNERUNREGISTER") == "execution is not registered"
    [identifier] = [entry["id"] for entry in server.registrations()]
    assert server.client().execute_command("RG.INNERUNREGISTER", identifier) == "OK"
    assert server.registrations() == []


# --- damaged and foreign files ---


def blob_of(server: Server) -> bytes:
    """The last step in the AOF file of a server."""
    files = sorted((server.dir / "appendonlydir").glob("*.incr.aof"))
    content = files[-1].read_bytes() if files else (server.dir / "appendonly.aof").read_bytes()
    begin = content.index(b"PINION")
    length = int(content[:begin].rsplit(b"$", 1)[1].strip())
    return content[begin : begin + length]


def write_aof(server: Server, commands: list[list[bytes]]) -> None:
    """Puts these commands into the place of the server's AOF file, which must have been started with one."""
    parts = [b"*%d\r\n%s" % (len(c), b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in c)) for c in commands]
    files = sorted((server.dir / "appendonlydir").glob("*.incr.aof"))
    path = files[-1] if files else server.dir / "appendonly.aof"
    path.write_bytes(b"".join(parts))


def test_ten_thousand_damaged_blobs(start_server: Callable[..., Server]) -> None:
    """None crashes the server, none registers anything, each is a line of the log; what is good still loads."""
    server = start_server(args=AOF)
    register(server, EVERYTHING, "ID", "all")
    good = blob_of(server)
    before = state(server)
    server.stop()
    chance = random.Random(20)
    damaged = []
    for _ in range(10_000):
        blob = bytearray(good)
        kind = chance.randrange(4)
        if kind == 0:
            for _ in range(chance.randrange(1, 20)):
                blob[chance.randrange(len(blob))] ^= chance.randrange(1, 256)
        elif kind == 1:
            del blob[chance.randrange(len(blob)) :]
        elif kind == 2:
            begin = chance.randrange(len(blob))
            del blob[begin : begin + chance.randrange(1, 30)]
        else:
            begin = chance.randrange(len(blob))
            blob[begin:begin] = chance.randbytes(chance.randrange(1, 30))
        damaged.append([b"RG.INNERREGISTER", bytes(blob)])
    write_aof(server, [[b"SELECT", b"0"], *damaged, [b"RG.INNERREGISTER", good]])
    server.start(timeout=60)
    assert state(server) == before
    assert server.log().count("Failed register session on replica, ") == len(damaged)


def seal(content: bytes) -> bytes:
    """A step with the digest that its content has."""
    return b"PINION\x01" + hashlib.sha256(content).digest() + content


def structure(content: bytes) -> list[int]:
    """The places of a step that do not belong to the image of a function: what is in there is code."""
    places = set(range(len(content)))
    begin = content.find(b"py3.")
    while begin >= 0:
        if content[begin - 3] == 0xC5:
            length = int.from_bytes(content[begin - 2 : begin], "big")
        else:
            length = content[begin - 1]
        places -= set(range(begin, begin + length))
        begin = content.find(b"py3.", begin + length)
    return sorted(places)


def use_everything(server: Server) -> None:
    """Whatever is registered and however: the server answers."""
    client = server.client()
    for command in ("RG.DUMPREGISTRATIONS", "RG.PYDUMPSESSIONS VERBOSE", "RG.PYDUMPREQS", "INFO EVERYTHING"):
        client.execute_command(*command.split())
    for command in ("SET k:1 1", "GET m:1", "XADD s:1 * n 1", "ECHO x", "RG.TRIGGER echo x", "RG.TRIGGER sum"):
        try:
            client.execute_command(*command.split())
        except redis.ResponseError:
            pass
    assert client.ping()


def test_damage_behind_the_digest(start_server: Callable[..., Server]) -> None:
    """Steps that were made wrong, not damaged on the way: each is an error, or registers something that harms nobody."""
    server = start_server(args=AOF)
    register(server, EVERYTHING, "ID", "all")
    good = blob_of(server)
    content = good[39:]
    assert seal(content) == good
    places = structure(content)
    assert 500 < len(places) < len(content) - 1000
    server.stop()
    chance = random.Random(21)
    ends = [[b"RG.INNERUNREGISTER", f"{ZEROS}-{number}".encode()] for number in (1, 3, 5, 7, 9, 11)]
    for _ in range(5):
        commands = [[b"SELECT", b"0"]]
        for _ in range(300):
            damaged = bytearray(content)
            for _ in range(chance.randrange(1, 4)):
                damaged[chance.choice(places)] ^= chance.randrange(1, 256)
            commands += [*ends, [b"RG.INNERREGISTER", seal(bytes(damaged))]]
        write_aof(server, commands)
        server.start(timeout=60)
        use_everything(server)
        server.stop(kill=True)
    write_aof(server, [[b"SELECT", b"0"], [b"RG.INNERREGISTER", good]])
    server.start()
    check_all_work(server)


def test_damage_behind_the_digest_of_archives(start_server: Callable[..., Server]) -> None:
    server = start_server(args=AOF)
    server.stop()
    # Nothing can be stored, so that pip has nothing to do with them.
    (server.dir / "pinion-requirements").write_text("in the way")
    content = (DATA / "requirement-v1.bin").read_bytes()[:-32]
    chance = random.Random(22)
    archives = []
    for _ in range(500):
        damaged = bytearray(content)
        for _ in range(chance.randrange(1, 3)):
            # Names and lengths stand in front.
            damaged[chance.randrange(130)] ^= chance.randrange(1, 256)
        archives.append(bytes(damaged) + hashlib.sha256(damaged).digest())
    write_aof(server, [[b"SELECT", b"0"], *([b"RG.PYIMPORTRETINTERNAL", archive] for archive in archives)])
    server.start(timeout=60)
    dump = [as_dict(entry) for entry in server.client().execute_command("RG.PYDUMPREQS")]
    assert dump and all(entry["IsInstalled"] == "no" for entry in dump)
    assert all("/" not in wheel for entry in dump for wheel in entry["Wheels"])
    for archive in archives:
        assert error_of(server, archive, command="RG.PYIMPORTREQ")
    use_everything(server)
    assert list(server.dir.rglob("*.whl")) == []


def crc64(data: bytes) -> int:
    """As at the end of RDB files (Jones)."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x95AC9329AC4BC9B5 if byte & 1 else 0)
        table.append(byte)
    crc = 0
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


@pytest.mark.matrix
def test_damage_behind_the_digest_of_rdb_files(start_server: Callable[..., Server]) -> None:
    """The section, or the key, with the right digest and the right checksum of the file: loaded or refused, never a crash."""
    server = start_server(args=["--rdbcompression", "no"])
    register(server, EVERYTHING, "ID", "all")
    server.client().save()
    server.stop(kill=True)
    path = server.dir / "dump.rdb"
    good = path.read_bytes()
    assert crc64(good[:-8]) == int.from_bytes(good[-8:], "little")
    # A length in two bytes stands in front of each step.
    steps = []
    begin = good.find(b"PINION")
    while begin >= 0:
        length = int.from_bytes(good[begin - 2 : begin], "big") & 0x3FFF
        steps.append((begin, begin + length))
        begin = good.find(b"PINION", begin + length)
    assert len(steps) == 6
    chance = random.Random(23)
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(30):
        begin, end = chance.choice(steps)
        content = bytearray(good[begin + 39 : end])
        content[chance.choice(structure(bytes(content)))] ^= chance.randrange(1, 256)
        damaged = good[:begin] + seal(bytes(content)) + good[end:-8]
        path.write_bytes(damaged + crc64(damaged).to_bytes(8, "little"))
        try:
            server.start()
        except ServerDied:
            server.expect_death()
            assert server.wait_exit() >= 0, server.log_tail()
            assert "registrations of this file are refused" in server.log()
            outcomes["refused"] += 1
        else:
            use_everything(server)
            server.stop(kill=True)
            outcomes["loaded"] += 1
    assert min(outcomes.values()) > 0, outcomes


def test_damaged_and_newer_steps_are_named(start_server: Callable[..., Server]) -> None:
    server = start_server(args=AOF)
    register(server, "GB('KeysReader').register('a*')")
    good = blob_of(server)
    server.stop()
    cases = {
        b"": "no registrations of Pinion",
        b"PINION": "cut off",
        good[:-1]: "damaged",
        good[:6] + b"\x63" + good[7:]: "higher RedisGears version",
    }
    write_aof(server, [[b"RG.INNERREGISTER", blob] for blob in cases])
    server.start()
    for text in cases.values():
        assert text in server.log()
    assert server.registrations() == []


@pytest.mark.matrix
@pytest.mark.parametrize("place", ["section", "version"])
def test_a_file_that_cannot_be_read_is_refused(start_server: Callable[..., Server], place: str) -> None:
    """Damaged inside our section, or written by RedisGears: the server says so and does not start."""
    server = start_server(args=["--rdbcompression", "no", "--rdbchecksum", "no"])
    register(server, "GB('KeysReader').register('a*')")
    server.client().save()
    server.stop()
    path = server.dir / "dump.rdb"
    content = bytearray(path.read_bytes())
    begin = content.index(b"PINION")
    if place == "section":
        content[begin + 60] ^= 0xFF
        expected = "damaged"
    else:
        # The version stands in the low ten bits of the type's number, eight bytes written with the most significant first.
        number = type_number("GEARS_DT0")
        at = content.index(number.to_bytes(8, "big"))
        content[at : at + 8] = (number & ~0x3FF | 4).to_bytes(8, "big")
        expected = "written by RedisGears"
    path.write_bytes(content)
    server.expect_death()
    with pytest.raises(ServerDied):
        server.start()
    assert expected in server.log()


def type_number(name: str, version: int = 5) -> int:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    number = 0
    for character in name:
        number = number << 6 | alphabet.index(character)
    return number << 10 | version


DATA = Path(__file__).parent / "data"


def samples(pattern: str) -> list[Any]:
    """Files that earlier versions wrote (data/make.py)."""
    return [pytest.param(path, id=path.stem) for path in sorted(DATA.glob(pattern))]


@pytest.mark.parametrize(
    ("pattern", "number"), [("step-*.bin", 1), ("requirement-*.bin", 1), ("dump-*.rdb", 2), ("timer-*.rdb", 2)]
)
def test_no_sample_is_missing(pattern: str, number: int) -> None:
    """A test without any sample would pass unnoticed."""
    assert len(samples(pattern)) >= number


def own_python(server: Server, sample: Path) -> bool:
    """True if the server runs the Python that wrote the sample: its functions load there only."""
    python = server.run("GB('ShardsIDReader').map(lambda _: '%d.%d' % __import__('sys').version_info[:2]).run()")[0][0]
    return sample.stem.endswith(python)


def check_frozen(server: Server, sample: Path) -> None:
    """Functions run on the Python that saved them, and are told of elsewhere."""
    entries = server.registrations()
    assert [entry["id"] for entry in entries] == [f"{ZEROS}-{n}" for n in (1, 3, 5, 7, 9, 11)]
    assert entries[0]["desc"] == "keys"
    if own_python(server, sample):
        check_all_work(server)
    else:
        assert all("saved by Python" in entry["RegistrationData"]["lastError"] for entry in entries)


def start_with(start_server: Callable[..., Server], sample: Path) -> Server:
    """A server that loads an RDB file."""
    server = start_server()
    rdb_version = int(sample.read_bytes()[5:9])
    if server.version < (7, 2) and rdb_version > 10:
        pytest.skip("the file is too new for this server")
    server.stop()
    shutil.copy(sample, server.dir / "dump.rdb")
    return server.start()


@pytest.mark.parametrize("sample", samples("step-*.bin"))
def test_frozen_steps_still_load(start_server: Callable[..., Server], sample: Path) -> None:
    """Steps of AOF files that earlier versions wrote."""
    server = start_server(args=AOF)
    server.stop()
    write_aof(server, [[b"SELECT", b"0"], [b"RG.INNERREGISTER", sample.read_bytes()]])
    server.start()
    check_frozen(server, sample)


@pytest.mark.matrix
@pytest.mark.parametrize("sample", samples("dump-*.rdb"))
def test_frozen_files_still_load(start_server: Callable[..., Server], sample: Path) -> None:
    """RDB files that earlier versions wrote: on a server without sections that can be left out, and on one that has them."""
    server = start_with(start_server, sample)
    check_frozen(server, sample)
    assert server.client().keys("*pinion*") == []


@pytest.mark.matrix
@pytest.mark.parametrize("sample", samples("timer-*.rdb"))
def test_frozen_time_events_still_run(start_server: Callable[..., Server], sample: Path) -> None:
    server = start_with(start_server, sample)
    client = server.client()
    assert client.keys("*") == ["timer"] or client.exists("ticks")
    if own_python(server, sample):
        wait_until(lambda: int(client.get("ticks") or 0) >= 1)


@pytest.mark.parametrize("sample", samples("requirement-*.bin"))
def test_frozen_requirements_still_install(start_server: Callable[..., Server], sample: Path) -> None:
    """Requirements of AOF files that earlier versions wrote, and what RG.PYEXPORTREQ gave."""
    server = start_server(args=AOF)
    server.stop()
    write_aof(server, [[b"SELECT", b"0"], [b"RG.PYIMPORTRETINTERNAL", sample.read_bytes()]])
    server.start()
    dump = lambda: [as_dict(entry) for entry in server.client().execute_command("RG.PYDUMPREQS")]  # noqa: E731
    wait_until(lambda: [(r["Name"], r["IsInstalled"]) for r in dump()] == [("pinion-demo==1.0", "yes")], timeout=60)
    importing = "import pinion_demo\nGB('ShardsIDReader').map(lambda _: pinion_demo.VERSION).run()"
    assert server.run(importing) == [["1.0"], []]
    assert server.client().execute_command("RG.PYIMPORTREQ", sample.read_bytes()) == "OK"


@pytest.mark.matrix
def test_databases_are_swapped_behind_a_rewrite(start_server: Callable[..., Server]) -> None:
    """An AOF file goes on behind the key that carries registrations: it may be in another database when the file is loaded.
    Left there, the next file had two of them, and no server loaded it (seed 199214644 of the fuzzer)."""
    server = start_server(args=["--appendonly", "yes"])
    server.run("GB('CommandReader').register(trigger='t', mode='sync')")
    before = [entry["id"] for entry in server.registrations()]
    for _ in range(3):
        rewrite(server)
        server.own.execute_command("SWAPDB", 0, 1)
        server.restart()
        assert [entry["id"] for entry in server.registrations()] == before
        assert server.own.info("keyspace") == {}


def test_a_file_with_two_carriers_is_loaded(start_server: Callable[..., Server]) -> None:
    """A server of before has written it."""
    server = start_server()
    shutil.copy(DATA / "carrier-twice-v5.rdb", server.dir / "dump.rdb")
    server.restart()
    assert [entry["RegistrationData"]["args"]["trigger"] for entry in server.registrations()] == ["t"]
    assert server.own.info("keyspace") == {}
