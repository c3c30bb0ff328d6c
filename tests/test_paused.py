"""While clients are paused (CLIENT PAUSE, a failover) nothing that the module does writes or is handed on to replicas: the
server counts on that, and ends if a module does it. What would write waits, as a client's own write does.

Servers here have an AOF file: without one, and without replicas, nothing is handed on and a fault does not show.
"""

from __future__ import annotations

import contextlib
import random
import select
import time
from typing import Callable, Iterator

import pytest
import redis

from clusters import Cluster
from helpers import RawClient, Server, wait_until
from test_replication import attach, caught_up

pytestmark = pytest.mark.matrix

LONG_MS = 60000
SHORT_MS = 300
LOADED, NIL = b"$6\r\nloaded\r\n", b"$-1\r\n"
NONE = b"$4\r\nNone\r\n"  # what a function makes of nil

FUNCTIONS = """
def load(r):
    key = r['key']
    execute('SET', key, 'loaded')
    override_reply('loaded')
GB('KeysReader').foreach(load).register(prefix='linked:*', eventTypes=['keymiss'], commands=['get'], mode='{mode}', readValue=False)
def stand_in(words):
    execute('INCR', 'calls:' + words[1])
    return call_next(*words[1:])
GB('CommandReader').map(stand_in).register(hook='get', keyprefix='hooked:', mode='{mode}')
"""
UNLINKED = """
GB('KeysReader').foreach(lambda r: execute('SET', r['key'] + ':seen', '1')).register(
    prefix='miss:*', eventTypes=['keymiss'], mode='{mode}', readValue=False)
"""
# CLIENT UNPAUSE is among all commands.
PAUSES = [("WRITE", "by itself"), ("ALL", "by itself"), ("WRITE", "at once")]
MODES = ["sync", "async", "async_local"]


@pytest.fixture
def server(borrow_server: Callable[..., Server]) -> Server:
    return borrow_server(args=["--appendonly", "yes", "--appendfsync", "always"])


def pause(server: Server, what: str = "WRITE", duration_ms: int = LONG_MS) -> None:
    server.client().execute_command("CLIENT", "PAUSE", duration_ms, what)


def unpause(server: Server) -> None:
    server.client().execute_command("CLIENT", "UNPAUSE")


def waiting(server: Server) -> int:
    """How many clients wait; CLIENT and INFO go on while writes only are paused."""
    return int(server.own.info("clients")["blocked_clients"])


def is_answered(raw: RawClient) -> bool:
    return bool(select.select([raw.socket], [], [], 0)[0])


def sent_while_paused(server: Server, *words: str) -> RawClient:
    """A command that waits for the end of the pause."""
    raw, before = server.raw(), waiting(server)
    raw.send(*words)
    wait_until(lambda: waiting(server) > before, message=f"{words} waits")
    assert not is_answered(raw)
    return raw


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("key,written,reply", [("linked:a", "linked:a", LOADED), ("hooked:a", "calls:hooked:a", NONE)])
def test_a_read_whose_function_writes_waits(server: Server, mode: str, key: str, written: str, reply: bytes) -> None:
    server.run(FUNCTIONS.format(mode=mode))
    client = server.client()
    for number in range(3):
        pause(server)
        raw = sent_while_paused(server, "GET", f"{key}{number}")
        assert client.exists(f"{written}{number}") == 0
        unpause(server)
        assert raw.read() == reply
        assert client.exists(f"{written}{number}") == 1


@pytest.mark.parametrize("mode", ["sync", "async_local"])
@pytest.mark.parametrize("what,ends", PAUSES)
def test_however_long_the_pause_is(server: Server, mode: str, what: str, ends: str) -> None:
    server.run(FUNCTIONS.format(mode=mode) + UNLINKED.format(mode=mode))
    raws = [server.raw() for _ in range(4)]
    admin = server.raw()
    admin.call("CLIENT", "PAUSE", SHORT_MS if ends == "by itself" else LONG_MS, what)
    for raw, key in zip(raws, ["linked:a", "hooked:a", "linked:b", "miss:a"]):
        raw.send("GET", key)
    if ends == "at once":
        assert admin.call("CLIENT", "UNPAUSE") == b"+OK\r\n"
    assert [raw.read() for raw in raws] == [LOADED, NONE, LOADED, NIL]
    client = server.client()
    assert client.mget("linked:a", "calls:hooked:a", "linked:b") == ["loaded", "1", "loaded"]
    wait_until(lambda: client.get("miss:a:seen") == "1")


def test_commands_keep_their_order(server: Server) -> None:
    """The read comes first: its function must not write over what a client wrote later."""
    server.run(FUNCTIONS.format(mode="sync"))
    pause(server)
    raws = [sent_while_paused(server, *words.split()) for words in ("GET linked:a", "SET linked:a own", "GET linked:a")[:2]]
    unpause(server)
    assert [raw.read() for raw in raws] == [LOADED, b"+OK\r\n"]
    assert server.client().get("linked:a") == "own"


@pytest.mark.parametrize("mode", MODES)
def test_functions_of_other_events_come_when_the_pause_ends(server: Server, mode: str) -> None:
    server.run(UNLINKED.format(mode=mode))
    client = server.client()
    # Nobody sends anything that would tell the module of the end.
    pause(server, duration_ms=SHORT_MS)
    assert client.get("miss:first") is None
    wait_until(lambda: client.keys("*:seen"), interval=0.5)
    pause(server)
    for number in range(20):
        assert client.get(f"miss:{number}") is None
    assert client.keys("*:seen") == ["miss:first:seen"]
    unpause(server)
    wait_until(lambda: len(client.keys("*:seen")) == 21)


@pytest.mark.parametrize("queued", ["before the pause", "in it"])
def test_a_transaction_of_reads_waits(server: Server, queued: str) -> None:
    server.run(FUNCTIONS.format(mode="sync"))
    raw = server.raw()
    queue = lambda: [raw.call(*words) for words in (["MULTI"], ["GET", "linked:a"], ["GET", "hooked:a"])]
    if queued == "before the pause":
        queue()
    pause(server)
    if queued == "in it":
        for words in (["MULTI"], ["GET", "linked:a"]):
            raw.send(*words)
        unpause(server)
        raw.read(), raw.read()
        pause(server)
        raw.send("EXEC")
        unpause(server)
        assert raw.read() == b"*1\r\n" + LOADED
        return
    raw.send("EXEC")
    if server.native_hits:
        wait_until(lambda: waiting(server) == 1)
        unpause(server)
        assert raw.read() == b"*2\r\n" + LOADED + NONE
        assert server.client().mget("linked:a", "calls:hooked:a") == ["loaded", "1"]
    else:
        # The server does not tell the filter of transactions, and nothing in one can wait.
        reply = raw.read()
        assert reply.startswith(b"*2\r\n$-1\r\n-") and b"clients are paused" in reply
        unpause(server)
        wait_until(lambda: server.own.get("linked:a") == "loaded")


def test_a_transaction_that_pauses_clients(server: Server) -> None:
    server.run(FUNCTIONS.format(mode="sync") + UNLINKED.format(mode="sync"))
    raw, client = server.raw(), server.client()
    raw.call("MULTI")
    for words in (["SET", "a", "1"], ["CLIENT", "PAUSE", LONG_MS, "WRITE"], ["SET", "b", "1"], ["GET", "linked:a"], ["GET", "miss:a"]):
        assert raw.call(*words) == b"+QUEUED\r\n"
    assert raw.call("EXEC") == b"*5\r\n+OK\r\n+OK\r\n+OK\r\n$-1\r\n$-1\r\n"
    assert client.mget("a", "b", "linked:a", "miss:a:seen") == ["1", "1", None, None]
    unpause(server)
    wait_until(lambda: client.mget("miss:a:seen") == ["1"])
    wait_until(lambda: client.get("linked:a") == "loaded")


def test_scripts_that_only_read_go_on(server: Server) -> None:
    if server.version < (7, 0) and not server.is_valkey:
        pytest.skip("has no such scripts")
    server.run(FUNCTIONS.format(mode="sync"))
    client = server.client()
    get = lambda key: client.execute_command("EVAL_RO", "return redis.call('GET', KEYS[1])", 1, key)
    assert (get("linked:before"), client.get("linked:before")) == ("loaded", "loaded")
    pause(server)
    assert get("linked:a") is None
    with pytest.raises(redis.ResponseError, match="clients are paused: nothing can be written now"):
        get("hooked:a")
    assert client.execute_command("EVAL_RO", "return redis.call('KEYS', '*')", 0) == ["linked:before"]
    unpause(server)
    wait_until(lambda: client.get("linked:a") == "loaded")


@pytest.mark.parametrize("holds", ["sync", "atomic"])
@pytest.mark.parametrize("words", ["'CLIENT', 'PAUSE', '1000', 'WRITE'", "'client', 'pause', '1000'", "'FAILOVER'"])
def test_a_function_that_holds_the_server_cannot_pause_clients(server: Server, holds: str, words: str) -> None:
    """What it wrote before would be handed on in the pause."""
    script = f"""
    def work(r):
        with atomic():
            execute('SET', 'a', '1')
            try:
                execute({words})
            finally:
                execute('SET', 'b', '1')
    GB('CommandReader').map(work).register(trigger='work', mode='{"sync" if holds == "sync" else "async_local"}')
    """
    server.run(script)
    raw = server.raw()
    reply = raw.call("RG.TRIGGER", "work")
    assert b"cannot be run by a function that holds the server" in reply
    assert server.client().mget("a", "b") == ["1", "1"]


def test_a_background_function_can(server: Server) -> None:
    script = f"""
    def work(r):
        execute('SET', 'a', '1')
        execute('CLIENT', 'PAUSE', '{SHORT_MS}', 'WRITE')
        execute('SET', 'b', '1')
        return 'done'
    GB('CommandReader').map(work).register(trigger='work', mode='async_local')
    """
    server.run(script)
    assert server.client().execute_command("RG.TRIGGER", "work") == ["done"]
    assert server.client().mget("a", "b") == ["1", "1"]


@pytest.mark.parametrize(
    "command",
    ["PFCOUNT hooked", "PUBLISH hooked m", "EVAL return(redis.call('SET','x','1')) 0"],
)
def test_commands_that_may_replicate_without_being_writes(server: Server, command: str) -> None:
    """From the function of a hook in a script that only reads, which cannot wait."""
    if server.version < (7, 0) and not server.is_valkey:
        pytest.skip("has no such scripts")
    client = server.client()
    client.execute_command("PFADD", "hooked", *range(100))
    words = command.split()
    server.run(f"GB('CommandReader').map(lambda w: execute(*{words!r})).register(hook='echo', mode='sync')")
    pause(server)
    with pytest.raises(redis.ResponseError, match="clients are paused|while a script runs"):
        client.execute_command("EVAL_RO", "return redis.call('ECHO', 'x')", 0)
    unpause(server)


@pytest.mark.parametrize("words", [["PFCOUNT", "p"], ["PUBLISH", "p", "m"]])
def test_hooked_commands_that_may_replicate(server: Server, words: list[str]) -> None:
    client = server.client()
    client.execute_command("PFADD", "p", *range(100))
    server.run(f"GB('CommandReader').map(lambda w: call_next(*w[1:])).register(hook='{words[0].lower()}', mode='sync')")
    pause(server)
    raw = sent_while_paused(server, *words)
    unpause(server)
    assert raw.read() in (b"$3\r\n100\r\n", b"$1\r\n0\r\n")


def test_time_events_wait(server: Server) -> None:
    server.run("registerTE(1, lambda: execute('INCR', 'ticks'))\nregisterTE(1, lambda: execute('INCR', 'ticks'), 'key')")
    client = server.client()
    for _ in range(3):
        wait_until(lambda: int(client.get("ticks") or 0) > 0, message="it ticks")
        pause(server)
        during = client.get("ticks")
        assert {client.get("ticks") for _ in range(200)} == {during}
        unpause(server)
        wait_until(lambda: client.get("ticks") != during)


@pytest.mark.parametrize("mode", MODES)
def test_streams_are_read_acknowledged_and_trimmed_when_the_pause_ends(server: Server, mode: str) -> None:
    script = f"""
    import time
    def work(r):
        if not execute('EXISTS', 'free'):
            execute('SET', 'begun', '1')
        execute('RPUSH', 'seen', r['value']['n'])
    GB('StreamReader').foreach(work).register(prefix='s', batch=1, mode='{mode}', trimStream=True)
    """
    server.run(script)
    client = server.client()
    adders = [server.raw() for _ in range(20)]
    for number, raw in enumerate(adders):
        raw.send("XADD", "s", "*", "n", number)
    pause(server)
    length = client.llen("seen")
    assert {client.llen("seen") for _ in range(100)} == {length}
    unpause(server)
    for raw in adders:
        assert raw.read().startswith(b"$")
    wait_until(lambda: client.llen("seen") == 20)
    wait_until(lambda: client.xlen("s") == 0)
    assert sorted(map(int, client.lrange("seen", 0, -1))) == list(range(20))


@pytest.mark.parametrize("mode", MODES)
def test_registrations_and_aborts_wait(server: Server, mode: str) -> None:
    server.run(FUNCTIONS.format(mode=mode) + UNLINKED.format(mode=mode))
    stream = "GB('StreamReader').foreach(lambda r: execute('INCR', 'read')).register(prefix='s', mode='%s')" % mode
    server.run(stream)
    client = server.client()
    identifier = next(entry["id"] for entry in server.registrations() if entry["reader"] == "StreamReader")
    assert client.execute_command("RG.PAUSEREGISTRATIONS", identifier) == "OK"
    client.xadd("s", {"n": "1"})
    pause(server)
    raws = [
        sent_while_paused(server, "RG.UNPAUSEREGISTRATIONS", identifier),
        sent_while_paused(server, "RG.PYEXECUTE", "GB('CommandReader').register(trigger='t', mode='sync')", "ID", "late"),
        sent_while_paused(server, "RG.ABORTEXECUTION", "0000000000000000000000000000000000000000-7"),
    ]
    assert len(server.registrations()) == 4
    unpause(server)
    assert [raw.read()[:1] for raw in raws] == [b"+", b"+", b"-"]
    wait_until(lambda: client.get("read") == "1")
    assert len(server.registrations()) == 5


def test_functions_that_prepare_a_load_wait(server: Server) -> None:
    script = "GB('CommandReader').register(trigger='t', mode='sync', onRegistered=lambda: execute('INCR', 'prepared'))"
    server.run(script)
    client = server.client()
    assert client.get("prepared") == "1"
    pause(server)
    client.execute_command("DEBUG", "RELOAD")
    assert client.get("prepared") == "1"
    unpause(server)
    wait_until(lambda: client.get("prepared") == "2")


def test_expired_keys_that_are_looked_at(server: Server) -> None:
    """Looks delete them on older servers."""
    server.run(FUNCTIONS.format(mode="sync"))
    client = server.client()
    for number in range(50):
        client.set(f"linked:{number}", "old", px=1)
        client.set(f"key:{number}", "old", px=1)
    wait_until(lambda: client.get("key:49") is None)
    pause(server)
    runner = server.raw()
    runner.send("RG.PYEXECUTE", "GB('KeysReader').count().run('key:*')")
    raws = [sent_while_paused(server, "GET", f"linked:{number}") for number in range(5)]
    unpause(server)
    assert runner.read().startswith(b"*")
    assert {raw.read() for raw in raws} == {LOADED}


@pytest.mark.parametrize("mode", MODES)
def test_a_failover_while_functions_run(start_server: Callable[..., Server], mode: str) -> None:
    master, replica = start_server(), start_server()
    master.run(FUNCTIONS.format(mode=mode) + UNLINKED.format(mode=mode))
    attach(replica, master)
    for _ in range(2):
        raws = [master.raw() for _ in range(20)]
        for round_ in range(5):
            for number, raw in enumerate(raws):
                # The former master closes the connections of those that it lets go.
                with contextlib.suppress(BrokenPipeError):
                    raw.send("GET", f"{('linked', 'hooked', 'miss')[number % 3]}:{round_}:{number}")
            if round_ == 2:
                # The server needs the replica to be at the same place; it says so itself once it is online.
                wait_until(lambda: started_failover(master), message="the failover begins")
        for raw in raws:
            for _ in range(5):
                # The former master lets clients go that wait for a module; writes come too late there.
                try:
                    reply = raw.read()
                except ConnectionResetError:  # it was still sent something behind its last reply
                    break
                assert reply[:1] == b"$" or b"READONLY" in reply or b"UNBLOCKED" in reply, reply
                if b"UNBLOCKED" in reply:
                    break
        wait_until(lambda: replica.own.info("replication")["role"] == "master")
        wait_until(lambda: master.own.info("replication").get("master_link_status") == "up", timeout=20)
        caught_up(replica, master)
        client = replica.client()
        assert client.get("linked:new") == "loaded"
        client.delete("linked:new")
        keys = sorted(client.keys("*"))
        caught_up(replica, master)
        wait_until(lambda: sorted(master.own.keys("*")) == sorted(client.keys("*")), message=f"of {len(keys)} keys")
        master, replica = replica, master


def started_failover(server: Server) -> bool:
    try:
        return bool(server.own.execute_command("FAILOVER"))
    except redis.ResponseError:
        return False


@pytest.fixture
def logged(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster whose nodes have AOF files."""
    for node in cluster.nodes:
        node.client().config_set("appendonly", "yes")
    yield cluster
    for node in cluster.nodes:
        unpause(node)
        node.client().config_set("appendonly", "no")
    cluster.wait_linked()


STEPS = {
    "register": ["RG.PYEXECUTE", "GB('CommandReader').map(lambda r: 'new').register(trigger='new', mode='sync')", "ID", "new"],
    "upgrade": ["RG.PYEXECUTE", "GB('CommandReader').map(lambda r: 'v2').register(trigger='t', mode='sync')", "ID", "old", "UPGRADE"],
    "unregister": ["RG.UNREGISTER", "{id}"],
}


@pytest.mark.parametrize("what,ends", PAUSES)
@pytest.mark.parametrize("step", STEPS)
def test_steps_of_other_shards_wait(logged: Cluster, step: str, what: str, ends: str) -> None:
    first, second, third = logged.masters
    script = "GB('CommandReader').map(lambda r: 'v1').register(trigger='t', mode='sync')"
    first.run(script, "ID", "old")
    [entry] = second.registrations()
    admin = second.raw()
    admin.call("CLIENT", "PAUSE", SHORT_MS if ends == "by itself" else LONG_MS, what)
    raw = first.raw(timeout=30)
    raw.send(*(word.format(id=entry["id"]) if "{id}" in word else word for word in STEPS[step]))
    if ends == "at once":
        before = second.registrations()
        assert [second.registrations() for _ in range(20)] == [before] * 20
        admin.call("CLIENT", "UNPAUSE")
    assert raw.read() == b"+OK\r\n"
    count = {"register": 2, "upgrade": 1, "unregister": 0}[step]
    for server in (first, second, third):
        wait_until(lambda: len(server.registrations()) == count)
    if step == "upgrade":
        assert second.client().execute_command("RG.TRIGGER", "t") == ["v2"]


def test_runs_of_other_shards_wait(logged: Cluster) -> None:
    logged.fill({f"k:{number}": number for number in range(100)})
    first, second, _ = logged.masters
    pause(second)
    raw = first.raw(timeout=30)
    raw.send("RG.PYEXECUTE", "GB('KeysReader').map(lambda r: execute('APPEND', r['key'], '!')).count().run('k:*')")
    keys = second.client().keys("k:*")
    values = [second.client().get(key) for key in keys]
    assert not any(value.endswith("!") for value in values)
    unpause(second)
    assert b"100" in raw.read()
    assert all(second.client().get(key).endswith("!") for key in keys)


WAITING = {
    "for a load": "import time\ndef load(key):\n    time.sleep(0.002)\n    return 'x'\nread_through('k:*', load, commands=['append'])",
    "for room": "import time\ndef save(changes):\n    time.sleep(0.002)\nwrite_behind('k:*', save, batch=1, max_queue=2, interval=0)",
}


@pytest.mark.parametrize("what", WAITING)
def test_a_pause_between_a_command_that_is_let_go_and_its_run(server: Server, what: str) -> None:
    """The server runs what waited one turn after it was let go, whatever came in between: it ended for what was written then."""
    server.run(WAITING[what])
    appenders, pauser = [server.raw() for _ in range(20)], server.raw()
    chooser, refused = random.Random(1), 0
    # Before 7.2 nothing comes in between.
    end = time.monotonic() + (60 if server.version >= (7, 2) else 3)
    while refused < 5:
        if time.monotonic() > end:
            assert server.version < (7, 2), "no pause came in between: nothing was tested"
            break
        server.client().execute_command("DEL", *(f"k:{number}" for number in range(20)))
        appended = [0] * 20
        for _ in range(20):
            for number, raw in enumerate(appenders):
                raw.send("APPEND", f"k:{number}", "y")
            sockets = [raw.socket for raw in appenders]
            while len(select.select(sockets, [], [], 0)[0]) < 20:
                # Short ones, which end by themselves, with time in between.
                pauser.call("CLIENT", "PAUSE", 1, "WRITE")
                for _ in range(chooser.randrange(60)):
                    pauser.call("PING")
            for number, raw in enumerate(appenders):
                reply = raw.read()
                if reply.startswith(b"-TRYAGAIN clients were paused"):
                    refused += 1
                else:
                    assert reply.startswith(b":"), reply
                    appended[number] += 1
        unpause(server)
        values = server.client().mget(*(f"k:{number}" for number in range(20)))
        assert [(value or "").count("y") for value in values] == appended

