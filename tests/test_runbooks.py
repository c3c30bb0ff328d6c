"""The commands of docs/runbooks.md and docs/troubleshooting.md, word by word: names of nodes become ports, and what a block waits for is waited for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, Callable

import pytest
import redis
from redis.crc import key_slot

from clusters import make_cluster, move_slot
from helpers import Server, wait_until
from requirements import build_wheel
from servers import ROOT

PAGE = (ROOT / "docs/runbooks.md").read_text()
SCRIPT = """
import redis

connection = None

def database():
    global connection
    if connection is None:
        connection = redis.Redis.from_url(gearsConfigGet('dsn'), decode_responses=True)
    return connection

@read_through('user:*', ttl=300, backoff=0.01, max_backoff=0.02)
def load(key):
    return database().hgetall(key)

@write_behind('user:*', backoff=0.01, max_backoff=0.05)
def save(changes):
    for change in changes:
        database().delete(change['key'])
        if change['type'] is not None:
            database().hset(change['key'], mapping=change['value'])

GB('CommandReader').foreach(lambda words: execute('SET', 'written', 'by a function')).register(trigger='write', mode='sync')
"""
NOWHERE = "redis://127.0.0.1:1"


def blocks(title: str, page: str = PAGE) -> list[str]:
    """The blocks of commands of a section, in their order."""
    [section] = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for _, block in re.findall(r"^( *)```sh\n(.*?)^\1```$", section, re.MULTILINE | re.DOTALL)]


def run(block: str, folder: Path, nodes: dict[str, Server], **variables: str) -> str:
    """Runs a block as it stands, with `redis-cli` finding the nodes by their names; returns what it has printed."""
    ports = "\n".join(f'        {name}) words+=(-h {node.host} -p {node.port});;' for name, node in nodes.items())
    addresses = "; ".join(f'word="${{word//{name}:6379/{node.host}:{node.port}}}"' for name, node in nodes.items())
    head = f"""
redis-cli() {{
    local words=() word
    while [ $# -gt 0 ]; do
        if [ "$1" = -h ]; then case "$2" in
{ports}
        *) echo "no node $2" >&2; return 1;;
        esac; shift 2; else word="$1"; {addresses}; words+=("$word"); shift; fi
    done
    command redis-cli "${{words[@]}}"
}}
export -f redis-cli
pinion() {{ local word="$4"; {addresses}; PYTHONPATH={ROOT}/package/src {sys.executable} -m pinion_redis "$1" "$2" "$3" "$word"; }}
xargs() {{ command xargs -r bash -c 'redis-cli "$@"' _ "${{@:5}}"; }}
"""
    done = subprocess.run(["bash", "-c", head + block], cwd=folder, capture_output=True, text=True, timeout=90, env={**os.environ, **variables})
    assert done.returncode == 0 and not done.stderr, done.stderr + done.stdout
    return done.stdout


def url(server: Server) -> str:
    return f"redis://{server.host}:{server.port}"


def unsaved(server: Server) -> int:
    return int(server.own.info("rg_write_behind")["rg_write_behind_queued"])


def drained(server: Server) -> None:
    wait_until(lambda: unsaved(server) == 0, message="nothing is queued")


def in_step(master: Server, replica: Server) -> None:
    """Waits until a replica has all that its master has written."""
    def offsets() -> bool:
        told = replica.own.info("replication")
        return told["master_link_status"] == "up" and told["slave_repl_offset"] == master.own.info("replication")["master_repl_offset"]

    wait_until(offsets, 30, "the replica is in step")


def replica_of(master: Server, start_server: Callable[..., Server], *, dsn: str = NOWHERE, args: tuple[str, ...] = (), module: bool = True) -> Server:
    options = {"module_args": ["dsn", dsn]} if module else {"module": False}
    replica = start_server(args=["--replicaof", master.host, master.port, *args], **options)
    in_step(master, replica)
    return replica


def test_drain(start_server: Callable[..., Server], tmp_path: Path) -> None:
    plain = start_server(module=False)
    cache = start_server(module_args=["dsn", url(plain)])
    cache.run(SCRIPT, "ID", "users")
    client = cache.client()
    plain.stop(kill=True)
    with client.pipeline() as transaction:
        transaction.delete("user:1").hset("user:1", "name", "Ann")
        transaction.execute()
    stop, wait, go_on, rights = blocks("Drain")
    assert run(stop, tmp_path, {"cache1": cache}).split() == ["min-replicas-to-write", "0", "OK"]
    for words in (["SET", "user:2", "x"], ["DEL", "user:1"], ["EVAL", "return redis.call('set', 'x', 1)", "0"], ["RG.TRIGGER", "write"]):
        with pytest.raises(redis.ResponseError, match="(?i)noreplicas|good replicas|not enough"):
            cache.client().execute_command(*words)
    assert unsaved(cache) == 1
    plain.start()
    plain.client().hset("user:7", "name", "Eve")
    run(wait, tmp_path, {"cache1": cache})
    assert plain.client().hgetall("user:1") == {"name": "Ann"}
    assert cache.client().hgetall("user:7") == {"name": "Eve"}, "loads go on"
    run(go_on, tmp_path, {"cache1": cache})
    assert cache.client().hset("user:1", "name", "Eve") == 0
    # The other way, by a right.
    cache.client().execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all")
    app = cache.client(username="app", password="secret")
    assert app.hset("user:3", "name", "Ida") == 1
    assert run(rights, tmp_path, {"cache1": cache}) == "OK\n"
    for words in (["HSET", "user:3", "name", "Leo"], ["RG.TRIGGER", "write"], ["EVAL", "return redis.call('set', 'x', 1)", "0"]):
        with pytest.raises(redis.ResponseError, match="(?i)noperm|permission|can't run this command"):
            app.execute_command(*words)
    drained(cache)
    assert plain.client().hgetall("user:3") == {"name": "Ida"} and app.hgetall("user:3") == {"name": "Ida"}


def test_another_password(start_server: Callable[..., Server], tmp_path: Path) -> None:
    plain = start_server(module=False)
    for user in ("old", "new"):
        plain.client().execute_command("ACL", "SETUSER", user, "on", f">{user}", "~*", "+@all")
    old, new = (f"redis://{user}:{user}@{plain.host}:{plain.port}" for user in ("old", "new"))
    master = start_server(module_args=["dsn", old])
    replica = replica_of(master, start_server, dsn=old)
    (tmp_path / "users.py").write_text(SCRIPT)
    master.run(SCRIPT, "ID", "users")
    master.client().hset("user:1", "name", "Ann")
    drained(master)
    tell, send = blocks("Another password of the database")
    nodes = {"cache1": master, "cache2": replica}
    assert run(tell, tmp_path, nodes, NEW=new).count(new) == 2
    assert run(send, tmp_path, nodes) == "OK\n"
    in_step(master, replica)
    # The old user is gone, with his connections.
    plain.client().execute_command("ACL", "DELUSER", "old")
    master.client().hset("user:1", "name", "Eve")
    drained(master)
    in_step(master, replica)
    master.stop(kill=True)
    replica.client().execute_command("REPLICAOF", "NO", "ONE")
    replica.client().hset("user:2", "name", "Ben")
    drained(replica)
    assert (plain.client().hgetall("user:1"), plain.client().hgetall("user:2")) == ({"name": "Eve"}, {"name": "Ben"})


@pytest.mark.parametrize("aof", ["no", "yes"])
def test_a_backup(start_server: Callable[..., Server], tmp_path: Path, aof: str) -> None:
    plain = start_server(module=False)
    cache = start_server(module_args=["dsn", NOWHERE], args=["--appendonly", aof])
    cache.run(SCRIPT, "ID", "users")
    with cache.client().pipeline() as transaction:
        transaction.delete("user:1").hset("user:1", "price", "1")
        transaction.execute()
    if aof == "no":
        cache.client().execute_command("SAVE")
    wait_until(lambda: cache.own.info("rg_write_behind")["rg_write_behind_save_failures_total"] > 0)
    cache.stop()
    plain.client().hset("user:1", "price", "2")  # somebody has written it since

    copy = {"copy": cache}
    start, look = blocks("Look into a backup")
    words = start.split()
    assert words[:2] == ["redis-server", "backup.conf"]
    cache.args, cache.module_args = ["--appendonly", aof, *words[2:]], ["dsn", url(plain)]
    cache.start()
    told = run(look, tmp_path, copy)
    assert "rg_write_behind_queued:1" in told and "rg_write_behind_saving:0" in told and told.split()[-2:] == ["price", "1"]
    assert "no: WriteBehindSaving is off" in told and "saving is off" in cache.log()
    # It has had the time to save: its functions are loaded, and a worker has run what came later.
    wait_until(lambda: all(entry["RegistrationData"]["lastError"] is None for entry in cache.registrations()))
    for _ in range(3):
        assert cache.run("GB('ShardsIDReader').count().run()")[0] == ["1"]
    figures = cache.own.info("rg_write_behind")
    assert (figures["rg_write_behind_batches_total"], figures["rg_write_behind_save_failures_total"]) == (0, 0)
    assert unsaved(cache) == 1 and plain.client().hgetall("user:1") == {"price": "2"}

    save, give_up, empty = blocks("Go on with a backup")
    assert run(give_up, tmp_path, copy).split() == ["3", "OK"]
    assert run(empty, tmp_path, copy) == "OK\n"
    cache.run(SCRIPT, "ID", "users")
    assert cache.client().hgetall("user:1") == {"price": "2"}
    cache.client().hset("user:1", "price", "3")
    drained(cache)
    assert plain.client().hgetall("user:1") == {"price": "3"}
    # The other way: its queue is empty.
    cache.client().execute_command("SAVE")
    cache.stop()  # in order: everysec may hold back what a killed server had answered
    plain.client().hset("user:1", "price", "4")
    cache.start()
    assert run(save + empty, tmp_path, copy) == "OK\nOK\n"
    assert cache.client().hgetall("user:1") == {"price": "4"}
    cache.client().hset("user:1", "price", "5")
    drained(cache)
    assert plain.client().hgetall("user:1") == {"price": "5"}


def test_from_one_server_to_a_cluster(start_server: Callable[..., Server], tmp_path: Path) -> None:
    plain = start_server(module=False)
    old = start_server(module_args=["dsn", url(plain)])
    old.run(SCRIPT, "ID", "users")
    old.client().hset("user:1", "price", "1")
    old.client().hset("user:2", "price", "1")
    old.client().set("mine", "stays")
    run("".join(blocks("Drain")[:2]), tmp_path, {"cache1": old})
    plain.client().hset("user:1", "price", "2")
    cluster = make_cluster(start_server, module_args=["dsn", url(plain)])
    rights, move = blocks("From one server to a cluster")
    run(rights + move, tmp_path, {"cache1": old, "shard1": cluster[0]})
    cluster[0].run(SCRIPT, "ID", "users")
    client = cluster.client()
    assert client.get("mine") == "stays" and old.client().keys() == ["mine"]
    assert [client.hget(key, "price") for key in ("user:1", "user:2")] == ["2", "1"]
    assert client.hset("user:2", "price", "3") == 0
    for shard in cluster.masters:
        drained(shard)
    assert [plain.client().hget(key, "price") for key in ("user:1", "user:2")] == ["2", "3"]


def test_move_slots(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """The queue of a shard is not empty; when the block has ended, it is, and the slot can move."""
    plain = start_server(module=False)
    cluster = make_cluster(start_server, module_args=["dsn", url(plain)])
    cluster[0].run(SCRIPT, "ID", "users")
    wait_until(lambda: all(len(shard.registrations()) == 3 for shard in cluster.masters))
    key = next(f"user:{number}" for number in range(1000) if cluster.shard_of(f"user:{number}") is cluster[0])
    cluster[0].own.execute_command("RG.CONFIGSET", "WriteBehindSaving", "no")
    cluster[0].own.hset(key, "price", "1")
    assert unsaved(cluster[0]) == 1
    again = threading.Timer(0.5, cluster[0].client().execute_command, ["RG.CONFIGSET", "WriteBehindSaving", "yes"])
    again.start()
    empty, once_more = blocks("Move slots of a cluster")
    run(empty, tmp_path, {f"shard{number + 1}": shard for number, shard in enumerate(cluster.masters)})
    again.join()
    assert unsaved(cluster[0]) == 0 and plain.client().hgetall(key) == {"price": "1"}
    assert empty == once_more
    move_slot(cluster.masters, cluster[0], cluster[1], key_slot(key.encode()))
    cluster[1].own.hincrby(key, "price", 1)
    drained(cluster[1])
    assert plain.client().hgetall(key) == {"price": "2"}


@pytest.mark.matrix
def test_take_pinion_away(start_server: Callable[..., Server], tmp_path: Path) -> None:
    plain = start_server(module=False)
    files = ["--appendonly", "yes"]
    master = start_server(module_args=["dsn", url(plain)], args=files)
    replica = replica_of(master, start_server, dsn=url(plain), args=("--appendonly", "yes"))
    master.run(SCRIPT, "ID", "users")
    client = master.client()
    client.hset("user:1", "name", "Ann")
    client.delete("user:2")
    plain.client().hset("user:3", "name", "Eve")
    assert client.hgetall("user:3") == {"name": "Eve"}
    run("".join(blocks("Drain")[:2]), tmp_path, {"cache1": master})
    assert plain.client().hgetall("user:1") == {"name": "Ann"}
    rights, unregister, files_of_each = blocks("Take Pinion away")
    nodes = {"cache1": master, "cache2": replica}
    run(rights, tmp_path, nodes)
    assert run(unregister, tmp_path, nodes).split() == ["3"]
    run(files_of_each, tmp_path, nodes)

    # Somebody writes all the time.
    def write(server: Server, number: int) -> None:
        server.client().hset("user:1", "number", number)
        server.client().set(f"new:{number}", number)
        server.client().delete(f"new:{number - 1}")

    write(master, 1)
    replica.stop()
    replica.module = False
    write(master, 2)
    replica.start()
    in_step(master, replica)
    write(master, 3)
    in_step(master, replica)
    assert sorted(replica.client().keys()) == ["new:3", "user:1", "user:3"]
    master.stop()
    replica.client().execute_command("REPLICAOF", "NO", "ONE")
    write(replica, 4)
    master.module = False
    master.args = [*master.args, "--replicaof", replica.host, str(replica.port)]
    master.start()
    in_step(replica, master)
    for server in (master, replica):
        assert sorted(server.client().keys()) == ["new:4", "user:1", "user:3"]
        assert server.client().hgetall("user:1") == {"name": "Ann", "number": "4"}
    replica.restart()
    assert replica.client().get("new:4") == "4"


@pytest.mark.timeout(300)
def test_back_to_older_packages(start_server: Callable[..., Server], tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for version in ("1.0", "2.0"):
        build_wheel(wheels, "pinion-demo", version)
    [line] = re.findall(r"^    Environment=(PIP_.*)$", PAGE, re.MULTILINE)
    environment = dict(pair.split("=") for pair in line.replace("/srv/wheels", str(wheels)).split())
    server = start_server(environment=environment)
    script = "import pinion_demo\nGB('CommandReader').map(lambda _: pinion_demo.VERSION).register(trigger='version', mode='sync')"
    told: list[Any] = []
    for version in ("1.0", "2.0", "1.0"):
        server.run(script, "ID", "app", "UPGRADE", "REQUIREMENTS", f"pinion-demo=={version}", client=server.client(socket_timeout=120))
        told += server.client().execute_command("RG.TRIGGER", "version")
    assert told == ["1.0", "2.0", "1.0"]


def test_questions_to_a_server_in_trouble(start_server: Callable[..., Server], tmp_path: Path) -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    cache = start_server(module_args=["rate", "1.07", "dsn", NOWHERE])
    cache.run("@read_through('rate:*', ttl=300, stale=3600)\ndef load(key):\n    return configGet('rate')", "ID", "rates")
    cache.run(SCRIPT, "ID", "users")
    client = cache.client()
    assert client.get("rate:usd") == "1.07"
    client.execute_command("RG.CONFIGSET", "rate", "1.09")
    nodes = {"cache1": cache}
    [stale] = blocks("Why is this key stale?", page)
    told = run(stale, tmp_path, nodes)
    assert re.search(r"registered\nread_through\n", told) and re.search(r"\nstate\nfresh\nfreshMS\n\d+\n", told), told
    assert re.search(r"state +fresh *\n *fresh +\d+\.\d s *\n", told), "the same by pinion"
    assert client.get("rate:usd") == "1.07", "nothing was loaded"
    client.execute_command("RG.REFRESH", "rate:usd")
    assert client.get("rate:usd") == "1.09"
    with client.pipeline() as transaction:
        transaction.delete("user:1").hset("user:1", "name", "Ann")
        transaction.execute()
    wait_until(lambda: cache.own.info("rg_write_behind")["rg_write_behind_save_failures_total"] > 0)
    [unsaved_block] = blocks("Why is this not saved?", page)
    told = run(unsaved_block, tmp_path, nodes)
    assert re.search(r"saves\nyes\nstate\n(failed|saving)\nqueued\n1\n", told) and "ConnectionError" in told
    assert re.search(r"oldestMS +\d", told) and re.search(r"saveFailures +[1-9]", told) and re.search(r"captured +1", told)


@pytest.mark.parametrize("way", [0, 1], ids=["flush", "refresh"])
def test_after_a_crash(start_server: Callable[..., Server], tmp_path: Path, way: int) -> None:
    """The server has a file that is older than the database."""
    plain = start_server(module=False)
    cache = start_server(module_args=["dsn", url(plain)])
    cache.run(SCRIPT, "ID", "users")
    cache.client().hset("user:1", mapping={"name": "Ann", "city": "Rome"})
    drained(cache)
    cache.client().execute_command("SAVE")
    cache.client().hset("user:1", mapping={"name": "Eve", "city": "Bern"})
    drained(cache)
    cache.stop(kill=True)
    cache.start()
    assert cache.client().hgetall("user:1") == {"name": "Ann", "city": "Rome"}, "older than the row"
    run(blocks("After a crash or a failover")[way], tmp_path, {"new": cache})
    assert cache.client().hset("user:1", "city", "Oslo") == 0
    drained(cache)
    assert plain.client().hgetall("user:1") == cache.client().hgetall("user:1") == {"name": "Eve", "city": "Oslo"}


def test_after_a_crash_what_is_not_saved_answers(start_server: Callable[..., Server], tmp_path: Path) -> None:
    plain = start_server(module=False)
    cache = start_server(module_args=["dsn", url(plain)])
    cache.run(SCRIPT, "ID", "users")
    plain.stop(kill=True)
    with cache.client().pipeline() as transaction:
        transaction.delete("user:1").hset("user:1", "name", "Ann")
        transaction.execute()
    cache.client().execute_command("SAVE")
    cache.stop(kill=True)
    cache.start()
    for block in reversed(blocks("After a crash or a failover")):
        run(block, tmp_path, {"new": cache})
    assert cache.client().hgetall("user:1") == {"name": "Ann"} and unsaved(cache) == 1
    plain.start()
    drained(cache)
    assert plain.client().hgetall("user:1") == {"name": "Ann"}
