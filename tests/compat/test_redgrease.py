"""redgrease 0.3.30: the client, its runtime as a requirement in the server, its command line.

What it needs, here and in docs/clients.md: redis-py below 5 in both places, and examples/clients/redgrease_fields.py where it lists
registrations or requirements.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Iterator

import pytest

from environments import python_environment
from helpers import Server
from servers import ROOT

Call = Callable[..., str]
Script = Callable[[str, str], Path]
SHIM = ROOT / "examples/clients/redgrease_fields.py"

BEGIN = """
import sys
import redgrease
sys.path.insert(0, sys.argv[2])
connection = redgrease.RedisGears(host='127.0.0.1', port=int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    return python_environment("redgrease", ["redgrease[all]==0.3.30", "redis<5"])


@pytest.fixture(scope="module")
def prepared(shared_servers) -> Iterator[Server]:
    """A server that knows the requirement which the client asks for, with a redis-py that suits it."""
    server = shared_servers.lend(fresh=True)
    words = ["RG.PYEXECUTE", "log('redgrease')", "REQUIREMENTS", "redgrease[runtime]", "redis<5"]
    assert server.client(socket_timeout=380).execute_command(*words) == "OK"
    yield server


@pytest.fixture
def client(prepared: Server, python: Path, call: Call, script: Script) -> Iterator[Callable[[str], list[str]]]:
    """Runs lines as a client of the server; what it prints."""
    prepared.client().flushall()

    def run(lines: str) -> list[str]:
        return call(python, script("client.py", BEGIN + lines), prepared.port, SHIM.parent).splitlines()

    yield run
    for registration in prepared.registrations():
        prepared.client().execute_command("RG.UNREGISTER", registration["id"])


GENRES = """
for number, genres in enumerate(['drama,war', 'war', 'comedy', 'drama']):
    connection.hset(f'movie:{number}', 'genres', genres)
"""


def test_the_first_example_of_its_readme(client: Callable[[str], list[str]]) -> None:
    lines = """
results = (
    redgrease.KeysReader()
    .keys(type='hash')
    .map(lambda key: redgrease.cmd.hget(key, 'genres'))
    .flatmap(lambda genres: genres.split(','))
    .map(str.strip)
    .countby()
    .run(on=connection)
)
print(sorted((result['key'], result['value']) for result in results))
"""
    assert client(GENRES + lines) == ["[('comedy', 1), ('drama', 2), ('war', 2)]"]


def test_commands_in_registered_functions(prepared: Server, client: Callable[[str], list[str]]) -> None:
    lines = """
def note(record):
    with redgrease.atomic():
        redgrease.cmd.sadd('seen', record.key if hasattr(record, 'key') else record['key'])
        redgrease.execute('INCR', 'number')
    redgrease.log('noted')

print(redgrease.KeysReader().filter(lambda r: r['type'] == 'hash').foreach(note).register(
    'movie:*', eventTypes=['hset'], mode='sync', on=connection))
""" + GENRES + """
print(connection.get('number'), sorted(connection.smembers('seen')))
"""
    assert client(lines) == ["True", "b'4' [b'movie:0', b'movie:1', b'movie:2', b'movie:3']"]
    assert "GEARS: noted" in prepared.log()


def test_triggers(client: Callable[[str], list[str]]) -> None:
    lines = """
@redgrease.trigger(on=connection)
def greet(name):
    return f'hello {name}'

print(greet('Ann'), connection.gears.trigger('greet', 'Ben'))
"""
    assert client(lines) == ["hello Ann hello Ben"]


def test_the_commands_of_the_client(client: Callable[[str], list[str]]) -> None:
    lines = GENRES + """
gears = connection.gears
print(gears.pyexecute("GB().count().run()"))
print(sorted(gears.pyexecute(redgrease.GearsBuilder('KeysReader').map(lambda r: r['key']).run())))
execution = gears.pyexecute("GB().count().run()", unblocking=True).value
print(gears.getresultsblocking(execution), gears.getresults(execution))
[plan] = gears.getexecution(execution).values()
print(plan.status.name, plan.results, plan.errors)
print(len(gears.dumpexecutions()) > 0, gears.dropexecution(execution), gears.infocluster())
try:
    gears.pyexecute("GB().map(1)")
except Exception as error:
    print('map argument must be a function' in str(error))
print(gears.pystats().CurrAllocated > 0, gears.gears_version())
"""
    printed = client(lines)
    assert printed == [
        "b'4'",
        "['movie:0', 'movie:1', 'movie:2', 'movie:3']",
        "b'4' b'4'",
        "done 1 []",
        "True True None",
        "True",
        "True (1, 2, 13)",
    ]


def test_lists_need_the_shim(client: Callable[[str], list[str]]) -> None:
    lines = """
connection.gears.pyexecute("GB().register('x')")
for word in ('dumpregistrations', 'pydumpreqs'):
    try:
        getattr(connection.gears, word)()
    except TypeError as error:
        print(error)
import redgrease_fields
[registration] = connection.gears.dumpregistrations()
print(registration.reader, registration.RegistrationData.numTriggered)
print(sorted(requirement.Name for requirement in connection.gears.pydumpreqs()))
print(connection.gears.unregister(registration.id))
"""
    assert client(lines) == [
        "RegData.__init__() got an unexpected keyword argument 'lastRunDurationMS'",
        "PyRequirementInfo.__init__() got an unexpected keyword argument 'Path'",
        "KeysReader 0",
        "['redgrease[runtime]', 'redis<5']",
        "True",
    ]


def test_its_command_line_loads_a_folder(
    prepared: Server, client: Callable[[str], list[str]], python: Path, call: Call, tmp_path: Path
) -> None:
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "one.py").write_text("GB('CommandReader').map(lambda r: 'one').register(trigger='one')")
    (folder / "requirements.txt").write_text("colorama==0.4.6\n")
    line = [python, SHIM, "--server", prepared.host, "--port", prepared.port, folder]
    call(*line)
    assert prepared.client().execute_command("RG.TRIGGER", "one") == ["one"]
    (folder / "one.py").write_text("GB('CommandReader').map(lambda r: 'two').register(trigger='one')")
    call(*line)
    assert prepared.client().execute_command("RG.TRIGGER", "one") == ["two"]
