"""What package/ offers for tests of functions: the stub mode, and the fixtures of the pytest plugin."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Callable

import pytest

from helpers import module_path
from servers import ROOT, binary

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

        def test_stub(gears_stub):
            assert gears_stub.FakeExecute()('PING') is None
        """))
    server = binary(request.config.getoption("--server"))
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "PINION_MODULE": str(module_path())}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    line = [sys.executable, "-m", "pytest", "-q", "-p", "pinion_redis.pytest_plugin", "-p", "no:cacheprovider"]
    line += [f"--gears-server={server}", "--gears-option=MaxExecutions=7", str(tmp_path)]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "6 passed" in done.stdout, done.stdout + done.stderr
