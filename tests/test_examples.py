"""Each file of examples/ does what it says, with the services that it names: PostgreSQL, an HTTP server, scikit-learn.

Those of the tutorial are played by test_tutorial.py, the others here.
"""

from __future__ import annotations

import math
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Iterator

import pytest
import redis

from clusters import Cluster, make_cluster
from databases import Postgres
from helpers import Server, wait_until
from servers import ROOT
from write_behind import drained

EXAMPLES = ROOT / "examples"


def send(server: Server, name: str, *words: str) -> Any:
    return server.run((EXAMPLES / f"{name}.py").read_text(), *words)


class Site(ThreadingHTTPServer):
    """A web site that counts what it is asked for, can be slow, and can be down."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.together = threading.Barrier(1)
        self.is_down = False


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:  # noqa: N802: the name that the library calls
        self.server.asked.append(self.path)
        self.server.together.wait(20)
        status = 503 if self.server.is_down else 404 if "none" in self.path else 200
        body = f"text of {self.path}".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(server: Server) -> Iterator[Site]:
    site = Site()
    threading.Thread(target=site.serve_forever, daemon=True).start()
    server.client().execute_command("RG.CONFIGSET", "site", f"http://127.0.0.1:{site.server_port}")
    yield site
    site.shutdown()
    site.server_close()


@pytest.fixture
def users(server: Server, postgres: Postgres) -> Postgres:
    postgres.execute("CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL, city text, active boolean NOT NULL DEFAULT true)")
    postgres.execute("INSERT INTO users VALUES (1, 'Ann', 'Bern', true), (2, 'Ben', NULL, false), (3, 'Zoë', 'Oslo', true)")
    server.client().execute_command("RG.CONFIGSET", "dsn", postgres.dsn())
    return postgres


def test_postgres_read_through(server: Server, users: Postgres) -> None:
    send(server, "postgres_read_through")
    client = server.client()
    assert client.hgetall("user:1") == {"name": "Ann", "city": "Bern", "active": "1"}
    assert client.hgetall("user:2") == {"name": "Ben", "active": "0"}
    assert client.hgetall("user:9") == {}
    assert 0 < client.ttl("user:1") <= 3900
    users.execute("UPDATE users SET name = 'Anna' WHERE id = 1")
    assert client.hget("user:1", "name") == "Ann"
    assert client.execute_command("RG.REFRESH", "user:1") == 1
    assert client.hget("user:1", "name") == "Anna"


def test_a_table_that_is_altered(server: Server, users: Postgres) -> None:
    """What psycopg would have prepared by then knows the table as it was."""
    send(server, "postgres_read_through")
    client = server.client()
    for _ in range(30):  # enough for each worker's connection
        client.execute_command("RG.REFRESH", "user:1")
    users.execute("ALTER TABLE users ALTER name TYPE varchar(20)")
    for _ in range(6):
        assert client.execute_command("RG.REFRESH", "user:1") == 1


def test_postgres_batches(server: Server, users: Postgres) -> None:
    send(server, "postgres_batches")
    client = server.client()
    assert client.mget("name:1", "name:9", "name:3") == ["Ann", None, "Zoë"]
    [data] = [registration["RegistrationData"] for registration in server.registrations()]
    assert (data["loads"], data["loadedKeys"]) == (1, 3)


def test_both_halves_postgresql(server: Server, postgres: Postgres) -> None:
    postgres.execute(
        "CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL, city text, age int, active boolean NOT NULL DEFAULT true,"
        " last_id text COLLATE \"C\" NOT NULL DEFAULT '', gone boolean NOT NULL DEFAULT false)"
    )
    postgres.execute("INSERT INTO users VALUES (1, 'Ann', 'Bern', 40, false), (2, 'Ben', NULL, NULL, true)")
    client = server.client()
    client.execute_command("RG.CONFIGSET", "dsn", postgres.dsn())
    send(server, "both_halves_postgresql")

    def rows() -> list[tuple[Any, ...]]:
        drained(server, [registration["reader"] for registration in server.registrations()].index("WriteBehind"))
        return postgres.execute("SELECT id, name, city, age, active FROM users WHERE NOT gone ORDER BY id")

    assert client.hgetall("user:1") == {"name": "Ann", "city": "Bern", "age": "40", "active": "0"}
    assert client.hgetall("user:9") == client.hgetall("user:none") == {}
    # A part of a row that is not in the cache, and a field that is gone.
    assert client.hset("user:2", "city", "Thun") == 1 and client.hdel("user:1", "city") == 1
    assert client.hincrby("user:1", "age") == 41
    client.hset("user:3", mapping={"name": "Zoë", "active": 0})
    assert rows() == [(1, "Ann", None, 41, False), (2, "Ben", "Thun", None, True), (3, "Zoë", None, None, False)]
    assert client.delete("user:3", "user:8") == 1
    assert [number for number, *_ in rows()] == [1, 2] and client.hgetall("user:3") == {}
    # What cannot be saved is put away, and saved when it can be.
    client.hset("user:4", mapping={"name": "Eve", "age": "very old"})
    wait_until(lambda: client.hset("user:1", "city", "Chur") == 0 and client.xlen("users:dead") == 1)
    assert client.execute_command("RG.TRIGGER", "users.again") == ["1"]
    postgres.execute("ALTER TABLE users ALTER age TYPE text")
    assert client.execute_command("RG.TRIGGER", "users.again") == ["0"] and client.xlen("users:dead") == 0
    assert rows()[-1] == (4, "Eve", None, "very old", True)
    # An outage: what is known goes on, and a whole row replaces whatever is there.
    client.hgetall("user:2")
    postgres.stop(kill=True)
    assert client.hset("user:2", "city", "Genf") == 0
    with pytest.raises(redis.ResponseError, match="LOADFAILED OperationalError"):
        client.hset("user:5", mapping={"name": "Ida", "city": "Sion"})
    with client.pipeline() as transaction:
        transaction.delete("user:6")
        transaction.hset("user:6", mapping={"name": "Leo"})
        assert transaction.execute() == [0, 1]
    postgres.start()
    assert [(number, city) for number, _, city, *_ in rows()] == [(1, "Chur"), (2, "Genf"), (4, None), (6, None)]


def test_http_read_through(server: Server, site: Site) -> None:
    send(server, "http_read_through")
    client = server.client()
    assert client.get("page:about us") == client.get("page:about us") == "text of /about%20us"
    assert client.get("page:none") is client.get("page:none") is None
    assert site.asked == ["/about%20us", "/none"]
    site.is_down = True
    with pytest.raises(redis.ResponseError, match="LOADFAILED HTTPError"):
        client.get("page:other")


def test_http_async(server: Server, site: Site) -> None:
    send(server, "http_async")
    # None of them is answered before all have come: they wait at the same time, more than there are workers.
    site.together = threading.Barrier(20)
    clients = [server.raw() for _ in range(20)]
    for number, client in enumerate(clients):
        client.send("GET", f"quote:{number}")
    replies = [client.read() for client in clients]
    assert sorted(replies) == sorted(f"${len(text)}\r\n{text}\r\n".encode() for text in (f"text of /{n}" for n in range(20)))


def test_expired_to_stream(server: Server) -> None:
    send(server, "expired_to_stream")
    client = server.client()
    client.set("session:7", "ann", px=1)
    client.set("other:7", "ann", px=1)
    [(_, entry)] = wait_until(lambda: not client.exists("session:7", "other:7") and client.xrange("expired"))
    assert entry == {"key": "session:7", "event": "expired"}


def test_rate_limiter(server: Server) -> None:
    send(server, "rate_limiter")
    client = server.client()

    def ask(key: str, seconds: float) -> int:
        [wait] = client.execute_command("RG.TRIGGERONKEY", "limit", key, 3, seconds)
        return int(wait)

    assert [ask("ann", 60) for _ in range(3)] == [0, 0, 0]
    assert 0 < ask("ann", 60) <= 60_000
    assert ask("ben", 60) == 0
    for _ in range(3):
        ask("cid", 0.05)
    wait_until(lambda: ask("cid", 0.05) == 0)


def test_audit_hook(server: Server) -> None:
    send(server, "audit_hook")
    client = server.client()
    client.mset({"account:1": 1, "account:2": 2, "other": 3})
    client.sadd("hold", "account:2")
    assert client.delete("account:1", "account:9") == 1
    with pytest.raises(redis.ResponseError, match="on hold: account:2"):
        client.delete("account:2")
    assert client.delete("other") == 1 and client.exists("account:2")
    commands = [entry["command"] for _, entry in client.xrange("audit")]
    assert [command.upper() for command in commands] == ["DEL ACCOUNT:1 ACCOUNT:9", "DEL ACCOUNT:2"]


def test_word_count(server: Server) -> None:
    client = server.client()
    client.mset({"text:1": "To be, or not to be", "text:2": "that is not the question", "other": "be be be"})
    client.rpush("text:list", "be")
    results, errors = send(server, "word_count")
    assert (results[:4], errors) == (["to 2", "not 2", "be 2", "the 1"], [])


def test_monte_carlo_pi(server: Server) -> None:
    [value], errors = send(server, "monte_carlo_pi")
    assert abs(float(value) - math.pi) < 0.05 and errors == []


def test_materialised_view(server: Server) -> None:
    send(server, "materialised_view")
    client = server.client()

    def totals() -> dict[str, float]:
        server.wait_idle()
        return dict(client.zrange("totals", 0, -1, withscores=True))

    client.hset("order:1", mapping={"customer": "ann", "amount": "30"})
    client.hset("order:2", mapping={"customer": "ben", "amount": "12.5"})
    client.hset("order:3", mapping={"customer": "ann", "amount": "4"})
    assert totals() == {"ann": 34, "ben": 12.5}
    client.hset("order:1", "amount", "10")
    client.hset("order:3", "customer", "ben")
    assert totals() == {"ann": 10, "ben": 16.5}
    client.delete("order:1")
    client.pexpire("order:2", 1)
    wait_until(lambda: not client.exists("order:2"))
    wait_until(lambda: totals() == {"ben": 4})


def test_session_store(server: Server) -> None:
    send(server, "session_store")
    client = server.client()
    [one] = client.execute_command("RG.TRIGGER", "session.open", "ann")
    [two] = client.execute_command("RG.TRIGGER", "session.open", "ann")
    client.expire(f"session:{one}", 10)
    assert client.execute_command("RG.TRIGGER", "session.user", one) == ["ann"]
    assert client.ttl(f"session:{one}") > 1000
    assert client.execute_command("RG.TRIGGER", "session.user", "nobody") == [None]
    client.pexpire(f"session:{two}", 1)
    wait_until(lambda: not client.exists(f"session:{two}") and client.smembers("sessions:ann") == {one})
    assert client.execute_command("RG.TRIGGER", "session.close", "ann") == [1]
    assert client.keys("*") == []


def test_feature_flags(server: Server) -> None:
    send(server, "feature_flags")
    client = server.client()
    client.hset("flag:search", mapping={"percent": 30, "users": "ann,ben"})
    client.hset("flag:dark", mapping={"percent": 0})

    def is_on(feature: str, user: str) -> int:
        [on] = client.execute_command("RG.TRIGGER", "flag", feature, user)
        return int(on)

    assert is_on("search", "ann") == 1 and is_on("dark", "ann") == 0 and is_on("nothing", "ann") == 0
    people = [f"user{number}" for number in range(300)]
    first = [is_on("search", user) for user in people]
    assert 60 < sum(first) < 120 and first == [is_on("search", user) for user in people]
    assert client.execute_command("RG.TRIGGER", "flags", "ben") == ["search"]
    client.delete("flag:search")
    assert client.execute_command("RG.TRIGGER", "flags", "ben") == []


@pytest.mark.compat  # a hundred megabytes of wheels
@pytest.mark.timeout(400)
@pytest.mark.own_server
def test_inference(server: Server) -> None:
    """The requirement is installed as a user would have it; one wheel of each package, which pip keeps."""
    client = server.client(socket_timeout=380)
    script = (EXAMPLES / "inference.py").read_text()
    assert client.execute_command("RG.PYEXECUTE", script, "ID", "inference", "REQUIREMENTS", "scikit-learn") == "OK"
    with pytest.raises(redis.ResponseError, match="there is no model yet"):
        client.execute_command("RG.TRIGGER", "predict", "1,1")
    for number in range(20):
        client.hset(f"example:{number}", mapping={"features": f"{number / 10},1", "label": "low"})
        client.hset(f"example:{number + 20}", mapping={"features": f"{number / 10 + 8},1", "label": "high"})
    assert client.execute_command("RG.TRIGGER", "train") == [40]
    low, high = client.execute_command("RG.TRIGGER", "predict", "0.5,1", "9,1")
    assert low.startswith("low ") and high.startswith("high ") and float(low.split()[1]) > 0.8


def test_scripts_that_register_and_run(server: Server) -> None:
    """Those whose replies are tested elsewhere are accepted as they stand."""
    for name in ("async_read_through", "hook_mask", "index_by_city", "read_through", "stream_totals"):
        assert send(server, name, "ID", name) == "OK"


def test_every_example_is_tested() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for path in EXAMPLES.rglob("*.py"):
        assert path.stem in tests, path.name


def test_over_shards(cluster: Cluster) -> None:
    cluster.fill({f"text:{number}": "to be" for number in range(30)})
    assert send(cluster[0], "word_count") == [["to 30", "be 30"], []]
    [value], errors = send(cluster[0], "monte_carlo_pi")
    assert abs(float(value) - math.pi) < 0.05 and errors == []


@pytest.mark.timeout(240)
def test_both_halves_postgresql_over_shards(start_server: Callable[..., Server], postgres: Postgres) -> None:
    """Each shard has its dead letters, and the trigger of the example takes them out there."""
    postgres.execute(
        "CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL, city text, age int, active boolean NOT NULL DEFAULT true,"
        " last_id text COLLATE \"C\" NOT NULL DEFAULT '', gone boolean NOT NULL DEFAULT false)"
    )
    postgres.execute("INSERT INTO users (id, name) SELECT number, 'user ' || number FROM generate_series(1, 40) number")
    shards = make_cluster(start_server, module_args=["dsn", postgres.dsn()])
    assert send(shards[0], "both_halves_postgresql", "ID", "users") == "OK"
    client = shards.client()
    assert client.hgetall("user:7") == {"name": "user 7", "active": "1"}
    for number in range(1, 31):
        client.hset(f"user:{number}", "age", "very old" if number % 3 == 0 else number)

    def dead() -> list[int]:
        """Others have to be saved, or none is given up."""
        for number in range(31, 41):
            client.hset(f"user:{number}", "age", 1)
        return [sum(shard.own.xlen(key) for key in shard.own.keys("users:dead*")) for shard in shards.masters]

    wait_until(lambda: sum(dead()) == 10, 60, "all that cannot be saved is put away")
    assert all(dead()), "on each shard"
    assert postgres.execute("SELECT count(*) FROM users WHERE age < 31 AND id <= 30") == [(20,)]

    def again() -> list[str]:
        """The command that the example names."""
        [line] = re.findall(r"redis-cli (--cluster call .*)", (EXAMPLES / "both_halves_postgresql.py").read_text())
        words = line.replace("127.0.0.1:7001", f"{shards[0].host}:{shards[0].port}").split()
        done = subprocess.run(["redis-cli", *words], capture_output=True, text=True, check=True)
        return sorted(re.findall(r"^\S+:\d+: (.*)$", done.stdout, re.MULTILINE))

    left = again()
    assert sum(map(int, left)) == 10 and len(left) == 3
    postgres.execute("ALTER TABLE users ALTER age TYPE text")
    assert again() == ["0", "0", "0"] and dead() == [0, 0, 0]
    assert postgres.execute("SELECT count(*) FROM users WHERE age = 'very old'") == [(10,)]
