"""What package/ offers for tests of functions: the stub mode, and the fixtures of the pytest plugin."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Callable
from unittest.mock import MagicMock

import pytest

from helpers import Server, module_path, wait_until
from servers import ROOT, binary
from test_types import exported, names_of

PACKAGE = ROOT / "package/src"
sys.path.insert(0, str(PACKAGE))

from pinion_redis.testing import FakeExecute, NeedsServer, StubScript, load  # noqa: E402

Load = Callable[..., StubScript]


@pytest.fixture
def stub(tmp_path: Path) -> Load:
    def run(text: str, **options: Any) -> StubScript:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(text))
        return load(path, **options)

    return run


def test_a_record_goes_through_the_steps(stub: Load) -> None:
    script = stub("""
        GB('KeysReader', desc='d').filter(lambda r: r['key'] != 'no').flatmap(lambda r: [r['value']] * 2).map(int) \\
            .foreach(lambda n: execute('INCRBY', 'n', n)).register('x*', mode='sync')
        """)
    assert script.fire({"key": "x", "value": "7"}) == [7, 7]
    assert script.fire({"key": "no", "value": "7"}) == []
    assert script.execute.calls == [("INCRBY", "n", "7")] * 2
    [registration] = script.registrations
    assert (registration.reader, registration.description, registration.options) == ("KeysReader", "d", {"mode": "sync", "prefix": "x*"})


def test_answers_of_execute() -> None:
    execute = FakeExecute({"GET": "any", ("GET", "n"): lambda key: f"<{key}>", "DEL": ValueError("no")})
    assert [execute("get", "x"), execute("GET", "n"), execute("PING"), execute("SET", "x", 1.5)] == ["any", "<n>", None, None]
    with pytest.raises(ValueError, match="no"):
        execute("DEL", "x")
    assert execute.calls[-2:] == [("SET", "x", "1.5"), ("DEL", "x")]
    with pytest.raises(TypeError, match="the name of a command must be a text, got 7"):
        execute(7)  # type: ignore[arg-type]


def test_all_that_functions_call_is_noted(stub: Load) -> None:
    script = stub("""
        def f(record):
            with atomic():
                log('seen ' + configGet('place'))
            override_reply(call_next('a', gearsConfigGet('none', 'b')))

        GB('CommandReader').foreach(f).register(hook='get')
        """, config={"place": "here"}, answers={"CALL_NEXT": lambda *words: list(words)})
    script.fire(["get", "k"])
    assert (script.logs, script.replies, script.next_calls) == (["seen here"], [["a", "b"]], [("a", "b")])


def test_coroutines_run_to_their_end(stub: Load) -> None:
    script = stub("""
        import asyncio

        async def double(record):
            await asyncio.sleep(0)
            return record * 2

        GB('CommandReader').map(double).register(trigger='t')
        """)
    assert script.fire(4) == [8]


@pytest.mark.once
def test_on_registered_stays_with_the_builder(stub: Load) -> None:
    script = stub(
        """
        ready = []
        builder = GB('CommandReader').map(lambda r: r)
        builder.register('*', True, True, 'sync', lambda: ready.append(1), trigger='one')
        builder.register(trigger='two')
        """
    )
    assert script.ready == [1, 1]


def test_loaders_can_be_called(stub: Load) -> None:
    script = stub("""
        ready = []

        @read_through('user:*', ttl=60, onRegistered=lambda: ready.append(1))
        def load_user(key):
            return Loaded(key.upper(), ttl=5)
        """)
    value = script.load_user("user:a")
    assert (value.value, value.ttl) == ("USER:A", 5)
    assert script.loaders == {"user:*": script.load_user} and script.ready == [1]


@pytest.mark.parametrize(
    ("text", "fire"),
    [("GB().count().run('*')", False), ("GB().groupby(str, max).register('x')", True), ("gearsFuture()", False)],
)
def test_what_needs_a_server_says_so(stub: Load, text: str, fire: bool) -> None:
    with pytest.raises(NeedsServer, match="needs a server|reads the keys of a server"):
        script = stub(text)
        assert fire
        script.fire({"key": "x"})


def test_what_is_not_there_says_so(stub: Load) -> None:
    script = stub("x = 1")
    with pytest.raises(AttributeError, match="the script has no name 'y'"):
        script.y  # noqa: B018
    with pytest.raises(LookupError, match="registers nothing"):
        script.fire({})


def test_changes_are_saved(stub: Load) -> None:
    script = stub("""
        rows, calls = {}, []

        @read_through('user:*')
        def load_user(key):
            return rows.get(key)

        @write_behind('user:*', batch=2)
        def save(changes):
            calls.append([change['key'] for change in changes])
            for change in changes:
                if change['value'] == 'poison':
                    raise ValueError('bad row ' + change['key'])
                rows[change['key']] = change.pop('value')
        """)
    assert script.save_changes() == []
    assert [script.change("user:1", {"age": 7, b"n": b"\xff"}), script.change("other", "x"), script.change("user:1", event="expired")] == [1, 0, 0]
    [[change]] = script.save_changes()
    milliseconds, _, number = change.pop("id").partition("-")
    assert milliseconds.isdigit() and number.isdigit()
    assert change == {"key": "user:1", "db": 0, "event": "hset", "type": "hash", "value": {"age": "7", "n": b"\xff"}}
    assert script.rows == {"user:1": change["value"]} and script.load_user("user:1") == change["value"]
    for key, value in {"user:1": None, "user:2": "old", "user:3": "poison"}.items():
        script.change(key, value)
    script.change("user:2", "new", db=1)
    script.change("user:2", "new")  # takes the place of the older one
    with pytest.raises(ValueError, match="bad row user:3"):
        script.save_changes()
    assert script.calls[1:] == [["user:1", "user:2"], ["user:3", "user:2"]]
    assert [change["key"] for change in script.savers["user:*"].queue] == ["user:3", "user:2"], "what failed stays"
    script.change("user:3", "good")
    [[first, second]] = script.save_changes()
    assert (first["value"], second["db"]) == ("good", 1)
    assert script.rows == {"user:1": None, "user:2": "new", "user:3": "good"}


def test_the_script_with_both_halves_of_the_page(stub: Load) -> None:
    """As docs/command-line.md shows it."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/write-behind.md").read_text(), re.S)
    [both] = [block for block in blocks if "read_through(" in block and "write_behind(" in block]
    db = MagicMock()
    script = stub(both, replace={"database": lambda: db})
    script.change("user:7", {"name": "Ann"})
    [[change]] = script.save_changes()
    assert change["key"] == "user:7"
    rows = db.pipeline().__enter__()
    assert rows.eval.call_args.args[2:] == ("user:7", script.ordered(change["id"]), "name", "Ann")
    script.loaders["user:*"]("user:8")
    db.hgetall.assert_called_with("user:8")


@pytest.mark.parametrize(
    ("value", "options", "seen"),
    [
        (None, {}, ("del", None, None)),
        (1.5, {}, ("set", "string", "1.5")),
        (["a", b"b"], {}, ("rpush", "list", ["a", "b"])),
        ({"a", "b"}, {}, ("sadd", "set", {"a", "b"})),
        ({"a": 1}, {"type": "zset"}, ("zadd", "zset", {"a": 1.0})),
        ("x", {"type": "stream"}, ("xadd", "stream", None)),
        (None, {"event": "rename_from"}, ("rename_from", None, None)),
    ],
)
def test_values_that_are_saved(stub: Load, value: Any, options: dict[str, Any], seen: tuple[Any, ...]) -> None:
    script = stub("write_behind('*', lambda changes: None, coalesce=False)")
    script.change(b"k", value, **options)
    script.change("k", value, **options)
    [[one, two]] = script.save_changes()
    assert (one["event"], one["type"], one["value"]) == seen and one["key"] == "k"
    assert [int(part) for part in one["id"].split("-")] < [int(part) for part in two["id"].split("-")]
    with pytest.raises(TypeError, match="expected what a key can hold"):
        script.change("k", True)


def test_changes_in_the_order_of_all(stub: Load) -> None:
    script = stub("write_behind('*', lambda changes: None, ordered='all', events=['set'])")
    for key, value in (("a", 1), ("b", 2), ("b", 3), ("a", 4)):
        script.change(key, value)
    script.change("a", None)
    [changes] = script.save_changes()
    assert [change["value"] for change in changes] == ["1", "3", "4"]
    with pytest.raises(LookupError, match="no write_behind"):
        stub("x = 1").change("k", 1)


def test_a_database_can_be_replaced(stub: Load) -> None:
    text = """
        connection = None

        def connect():
            global connection
            connection = database()

        def database():
            raise ConnectionError('a real one')

        @read_through('user:*', onRegistered=connect)
        def load_user(key):
            return database().get(key) or connection.get(key)
        """
    with pytest.raises(ConnectionError):
        stub(text)
    script = stub(text, replace={"connect": lambda: None, "connection": {"user:1": "kept"}, "database": dict})
    assert script.load_user("user:1") == "kept"
    script.database = lambda: {"user:1": "mine"}
    assert script.loaders["user:*"]("user:1") == "mine"
    script = stub(text, replace={"database": lambda: {"user:1": "of connect"}})
    assert script.connection == {"user:1": "of connect"}


def test_what_the_stub_gives_can_be_replaced(stub: Load) -> None:
    script = stub("""
        def f(record):
            override_reply(execute('PING'))

        GB('CommandReader').foreach(f).register(trigger='t')
        """)
    script.execute = FakeExecute({"PING": "PONG"})
    script.replies = []
    script.fire(["t"])
    assert script.replies == ["PONG"]


def test_coroutines_can_be_called(stub: Load) -> None:
    script = stub("""
        saved = []

        @read_through('user:*')
        async def load_user(key):
            await asyncio.sleep(0)
            return key.upper()

        @write_behind('user:*')
        async def save(changes):
            await asyncio.sleep(0)
            saved.extend(change['value'] for change in changes)
        """)
    assert script.load_user("a") == script.loaders["user:*"]("a") == "A"
    assert script.loaders == {"user:*": script.load_user}
    script.change("user:1", "x")
    script.save_changes()
    assert script.saved == ["x"]

    async def test() -> Any:
        return await script.load_user("b")

    assert asyncio.run(test()) == "B", "where coroutines run it is one"


def test_fire_tells_what_there_is_instead(stub: Load) -> None:
    script = stub("read_through('user:*', lambda key: key)\nwrite_behind('user:*', lambda changes: None)")
    with pytest.raises(LookupError, match=r"script\.loaders\['user:\*'\]\(key\), or script\.change\(key, value\)"):
        script.fire({"key": "user:1"})


def test_fire_takes_the_registration_that_is_meant(stub: Load) -> None:
    script = stub("""
        for name in ('one', 'two'):
            GB('CommandReader').map(lambda words, name=name: name + words[1]).register(trigger=name)
        GB('KeysReader', desc='orders').map(lambda r: 'order').register('order:*')
        GB('KeysReader').map(lambda r: 'all').register('*')
        """)
    assert [script.fire(["two", "!"]), script.fire(["one", "!"])] == [["two!"], ["one!"]]
    assert script.fire({"key": "user:1"}) == ["all"]
    with pytest.raises(LookupError, match=r"2 registrations fit this record: give fire one of them, registration=... \(0: one, 1: two, 2: order:\* orders, 3: \*\)"):
        script.fire({"key": "order:1"})
    assert script.fire({"key": "order:1"}, registration="orders") == script.fire({"key": "order:1"}, registration="order:*") == ["order"]
    assert script.fire({"key": "order:1"}, registration=3) == ["all"]
    with pytest.raises(LookupError, match="0 registrations are named 'three'"):
        script.fire(["three"], registration="three")


def test_a_script_is_a_file_or_a_text(tmp_path: Path) -> None:
    text = "seen = gearsConfigGet('dsn', 'none')\n" * 300
    path = tmp_path / "users.py"
    path.write_text(text)
    config = {"dsn": "postgresql://here"}
    for source in (text, path, str(path), "seen = gearsConfigGet('dsn')", "seen = 'postgresql://here'" + " " * 5000):
        assert load(source, config=config).seen == "postgresql://here"
    with pytest.raises(FileNotFoundError, match="missing.py"):
        load(str(tmp_path / "missing.py"))


def test_the_names_are_those_of_the_server(stub: Load) -> None:
    script = stub("import redisgears\nfrom redisgears import executeCommand\nimage = loads(__import__('pickle').dumps(7))")
    missing = exported() - set(script.globals) - {"Change", "Reply"}  # types, which scripts do not see when they run
    assert missing == set()
    assert script.executeCommand is script.execute and script.image == 7
    types_only = {"Reply", "Self", "Any", "Literal", "TracebackType", "Callable", "Iterable", "Future"}
    types_only |= {"Change", "TypedDict", "TypeVar", "overload", "_Function", "_Loader", "_Save"}
    assert names_of(PACKAGE / "redisgears-stubs/__init__.pyi") - types_only - set(vars(script.redisgears)) == set()
    with pytest.raises(NeedsServer, match=r"loop\.create_task needs a server"):
        script.loop.create_task


def test_the_fixtures(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A project's own tests, with servers that are started for them and emptied in between."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_mine.py").write_text(textwrap.dedent("""
        import pytest

        COUNT = "GB().foreach(lambda r: execute('INCR', 'n:{%s}' % hashtag())).register('x*', mode='async_local')"

        @pytest.mark.parametrize('time', [1, 2])
        def test_each_test_finds_it_empty(gears, time):
            assert gears.registrations() == [] and gears.client.dbsize() == 0
            gears.deploy(COUNT)
            gears.client.set('x', 1)
            gears.wait_idle()
            assert gears.client.dbsize() == 2 and gears.errors() == {}
            assert gears.command('RG.CONFIGGET', 'MaxExecutions') == [7]

        @pytest.mark.parametrize('time', [1, 2])
        def test_three_shards(gears_cluster, time):
            gears_cluster.deploy(COUNT)
            for number in range(30):
                gears_cluster.client.set(f'x{number}', 1)
            gears_cluster.wait_idle()
            [registration] = gears_cluster.registrations()
            assert registration.succeeded == 30

        def test_errors(gears):
            with pytest.raises(Exception, match='division by zero'):
                gears.deploy('1 / 0')
            gears.deploy("GB().foreach(lambda r: 1 / 0).register('x*', mode='async_local')")
            gears.client.set('x', 1)
            gears.wait_idle()
            assert 'ZeroDivisionError' in gears.errors()['test']

        @pytest.fixture
        def saving(gears):
            if int(gears.client.info('server')['redis_version'].split('.')[0]) < 7:
                pytest.skip('this server has no write_behind')
            return gears

        def test_changes_are_saved_when_it_is_idle(saving):
            saving.deploy("write_behind('w*', lambda changes: execute('INCRBY', 'saved', len(changes)), interval=0.5)")
            saving.client.mset({'w1': 1, 'w2': 2})
            saving.wait_idle()
            assert saving.client.get('saved') == '2'

        def test_changes_that_cannot_be_saved(saving):
            saving.deploy("write_behind('w*', lambda changes: {}['row'])")
            saving.client.set('w1', 1)
            with pytest.raises(AssertionError) as told:
                saving.wait_idle(timeout=0.3)
            said = str(told.value)
            assert "WriteBehind w* of session test (0000-" in said and said.endswith("changes that are not saved: 1, its last error: KeyError: 'row'")

        def test_stub(gears_stub):
            assert gears_stub.FakeExecute()('PING') is None
        """))
    server = binary(request.config.getoption("--server"))
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "PINION_MODULE": str(module_path())}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    line = [sys.executable, "-m", "pytest", "-q", "-p", "pinion_redis.pytest_plugin", "-p", "no:cacheprovider"]
    line += [f"--gears-server={server}", "--gears-option=MaxExecutions=7", str(tmp_path)]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and re.search("8 passed|6 passed, 2 skipped", done.stdout), done.stdout + done.stderr


def test_changes_are_those_of_the_server(server: Server, stub: Load) -> None:
    if server.version < (7, 0):
        pytest.skip("this server has no write_behind")
    server.run("write_behind('k:*', lambda changes: [execute('RPUSH', 'seen', repr(change)) for change in changes])")
    script, client = stub("write_behind('k:*', lambda changes: None)"), server.client()
    values: dict[str, tuple[list[Any], Any, dict[str, Any]]] = {
        "k:s": (["SET", 7], 7, {}),
        "k:b": (["SET", b"\xff"], b"\xff", {}),
        "k:h": (["HSET", "age", 7], {"age": 7}, {}),
        "k:l": (["RPUSH", "a", "b"], ["a", "b"], {}),
        "k:m": (["SADD", "a"], {"a"}, {}),
        "k:z": (["ZADD", 1, "a"], {"a": 1}, {"type": "zset"}),
        "k:x": (["XADD", "*", "a", "b"], None, {"type": "stream"}),
        "k:none": (["DEL"], None, {}),
    }
    for key, ((name, *words), value, options) in values.items():
        client.execute_command(name, key, *words)
        script.change(key, value, **options)
    wait_until(lambda: client.llen("seen") == len(values))
    [changes] = script.save_changes()
    of_server = [ast.literal_eval(text) for text in client.lrange("seen", 0, -1)]
    for change in [*changes, *of_server]:
        assert re.fullmatch(r"\d+-\d+", change.pop("id"))
    by_key = {change["key"]: change for change in of_server}
    assert {change["key"]: change for change in changes} == by_key
