"""What Pinion needs of Python is its own: requirements neither break nor shadow it, whatever their modules are called.

Contract: docs/contract/commands.md 4.6; docs/contract/python-api.md 1.1, 7 and 10.1. No network is used: packages are made by hand.
"""

from __future__ import annotations

import ast
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any, Callable

import pytest

from clusters import Cluster, make_cluster
from helpers import Server, wait_until
from probes import AOF, error_of, in_script, in_step

# The folder of packages is in the environment that a server starts with.
pytestmark = [pytest.mark.own_server, pytest.mark.once]

# A closure, a class, an accumulator: each needs other functions of cloudpickle.
REGISTER = """
class Counter:
    def __init__(self, start): self.start = start
    def next(self, words): return [self.start + len(words)]
def maker(offset):
    counter = Counter(offset)
    return lambda words: counter.next(words)
GB('CommandReader').map(maker(10)).accumulate(lambda a, r: (a or 0) + r[0]).register(trigger='{0}', mode='sync')
"""
# Whose modules have names of Python's, of ours, of what we were made of.
NAMES = """asyncio enum typing dataclasses pickle io copyreg functools weakref threading zipfile site importlib contextvars
redisgears redisAI builder namespace loop serial packages profile interrupt not_main pinion_builder pinion_loop pinion_serial
pinion_portable pinion_cloudpickle pinion_shipped pip setuptools wheel venv json subprocess multiprocessing"""


def wheel(folder: Path, project: str, version: str, files: dict[str, str]) -> None:
    """Makes a wheel with these files."""
    name = project.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip takes packages from."""
    folder = tmp_path / "packages"
    folder.mkdir()
    # As foreign versions are: without the functions that today's pickles name.
    foreign = {"cloudpickle/__init__.py": "VERSION = '{0}'\nfrom .cloudpickle import *\n", "cloudpickle/cloudpickle.py": "def dumps(*_): raise ValueError('foreign')\n"}
    for version in ("1.6", "3.1"):
        wheel(folder, "cloudpickle", version, {path: text.replace("{0}", version) for path, text in foreign.items()})
    wheel(folder, "pinion-hostile", "1.0", {f"{name}.py": f"raise ImportError('{name} of a package')\n" for name in NAMES.split()})
    wheel(folder, "pinion-beside", "1.0", {"pinion_beside.py": "", "cloudpickle/extra.py": ""})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_RETRIES", "0")
    return folder


@pytest.fixture
def cluster(start_server: Callable[..., Server], packages: Path) -> Cluster:
    """Three shards that find the packages."""
    return make_cluster(start_server)


def answers(server: Server, *triggers: str) -> list[Any]:
    return [server.own.execute_command("RG.TRIGGER", trigger, "a", "b") for trigger in triggers]


def running(server: Server) -> bool:
    return all(entry["RegistrationData"]["lastError"] is None for entry in server.registrations())


@pytest.mark.parametrize("requirement", ["cloudpickle==1.6", "cloudpickle==3.1", "pinion-hostile"])
def test_requirements_break_nothing(start_server: Callable[..., Server], requirement: str) -> None:
    server, replica = start_server(args=AOF), start_server()
    server.run(REGISTER.format("before"))
    server.run("log('installed')", "REQUIREMENTS", requirement)
    server.run(REGISTER.format("after"), "REQUIREMENTS", requirement)
    server.run(REGISTER.format("beside"), "REQUIREMENTS", "pinion-beside")
    server.run("try:\n    import cloudpickle\nexcept ImportError: pass\n" + REGISTER.format("importing"))
    everything = ("before", "after", "beside", "importing")
    assert answers(server, *everything) == [["13"]] * 4
    server.client().execute_command("DEBUG", "RELOAD")
    wait_until(lambda: running(server), timeout=60)
    assert answers(server, *everything) == [["13"]] * 4
    server.restart()
    wait_until(lambda: running(server), timeout=60)
    assert answers(server, *everything) == [["13"]] * 4
    replica.client().execute_command("REPLICAOF", server.host, server.port)
    wait_until(lambda: len(replica.registrations()) == 4 and running(replica), timeout=60)
    replica.client().execute_command("REPLICAOF", "NO", "ONE")
    assert answers(replica, *everything) == [["13"]] * 4
    # Records travel, and new scripts run.
    assert in_step(replica, "class C: pass\nreturn type(loads(dumps(1))).__name__" if "hostile" in requirement else "return 'int'") == "int"


@pytest.mark.parametrize("requirement", ["cloudpickle==1.6", "pinion-hostile"])
def test_other_shards_are_not_broken_either(cluster: Cluster, requirement: str) -> None:
    cluster[0].run(REGISTER.format("one"), "REQUIREMENTS", requirement)
    run = "class C:\n    pass\ndef make(_):\n    c = C()\n    c.x = lambda: 5\n    return c\n"
    run += "GB('ShardsIDReader').map(make).collect().map(lambda c: c.x()).run()"
    assert cluster[1].run(run, "REQUIREMENTS", requirement) == [["5"] * 3, []]
    for server in cluster.masters:
        assert answers(server, "one") == [["13"]]


def test_the_standard_library_comes_before_requirements(server: Server) -> None:
    server.run("1", "REQUIREMENTS", "pinion-hostile")
    body = """
    import importlib, sys
    found = []
    for name in ('enum', 'typing', 'dataclasses', 'asyncio', 'venv', 'zipfile', 'redisgears', 'redisAI', 'not_main'):
        kept = {n: sys.modules.pop(n) for n in list(sys.modules) if n.split('.')[0] == name and name != 'not_main'}
        try:
            importlib.import_module(name)
            found.append(name)
        except ImportError as error:
            found.append(str(error))
        sys.modules.update(kept)
    return found
    """
    found = in_script(server, body)
    # redisAI is a module of ours in memory only; whoever throws it out of sys.modules gets what is installed.
    assert found == ["enum", "typing", "dataclasses", "asyncio", "venv", "zipfile", "redisgears", "redisAI of a package", "not_main"]


def test_scripts_get_the_installed_cloudpickle_or_ours(server: Server, start_server: Callable[..., Server], tmp_path: Path) -> None:
    look = "import cloudpickle\nreturn getattr(cloudpickle, 'VERSION', None) or cloudpickle.__version__"
    assert in_script(server, look).startswith("3.")
    server.run("1", "REQUIREMENTS", "cloudpickle==1.6")
    assert in_script(server, look) == "1.6"
    # An environment without it.
    bare = tmp_path / "bare"
    import venv

    venv.create(bare, symlinks=True)
    other = start_server(python_env=bare)
    body = """
    import cloudpickle, cloudpickle.cloudpickle_fast, pickle
    square = lambda x: x * x
    return [cloudpickle.__version__, pickle.loads(cloudpickle.dumps(square))(3), cloudpickle.cloudpickle.dumps is cloudpickle.dumps,
            b'cloudpickle.cloudpickle' in dumps(square), loads(dumps(square))(4)]
    """
    for where in (in_script, in_step):
        assert where(other, body) == ["3.1.3", 9, True, True, 16]
    other.run(REGISTER.format("bare"))
    other.client().execute_command("DEBUG", "RELOAD")
    assert answers(other, "bare") == [["13"]]


def test_pickles_that_name_another_version_load(server: Server) -> None:
    """As clients make them with cloudpickle 2 and 3, while an old one is installed here."""
    server.run("1", "REQUIREMENTS", "cloudpickle==1.6")
    import cloudpickle

    image = cloudpickle.dumps(lambda x: x + 1)
    if sys.version_info[:2] == tuple(in_script(server, "import sys\nreturn sys.version_info[:2]")):
        assert in_step(server, f"return loads({image!r})(1)") == 2
    image = pickle.dumps(ValueError("by name"))
    assert in_step(server, f"return str(loads({image!r}))") == "by name"


@pytest.mark.parametrize("file", ["enum.py", "pip.py", "token.py"])
def test_files_in_the_directory_of_the_server_are_not_imported(server: Server, file: str) -> None:
    (server.dir / file).write_text("raise ImportError('a file of the data')\n")
    server.run("import pinion_beside", "REQUIREMENTS", "pinion-beside")


# --- gearsclient ---

# What its builder sends for `map`, `filter`, `sort`, `limit` and `run`, written down from the wire with the functions by name.
PIPE = b"""\
cgearsclient.redisgears_builder\nGearsPipe\n)\x81}(Vreader\nV{reader}\nVdefaultArg\nV*\nVsteps\n(l{steps}sub."""


def pipe(reader: str, *steps: tuple[str, dict[str, Any]]) -> bytes:
    """The pickle of a client's pipe, without the client: protocol 2 or so, by hand."""
    body = b""
    for name, state in steps:
        attributes = pickle.dumps(state, 2)[2:-1] if state else b"}"
        body += b"cgearsclient.redisgears_builder\nGearsRemote" + name.encode() + b"Step\n)\x81" + attributes + b"ba"
    # Each pickle numbers its memo from 0: states hold nothing that refers back.
    head = b"\x80\x02cgearsclient.redisgears_builder\nGearsPipe\n)\x81}(X" + len("reader").to_bytes(4, "little") + b"readerX"
    head += len(reader).to_bytes(4, "little") + reader.encode() + b"X\x0a\x00\x00\x00defaultArgX\x01\x00\x00\x00*X\x05\x00\x00\x00steps]"
    return head + body + b"ub."


def test_what_gearsclient_sends_runs(server: Server) -> None:
    for number in range(5):
        server.client().set(f"k{number}", number)
    steps = [
        ("Map", {"callback": len}),
        ("Sort", {"reverse": False}),
        ("Limit", {"count": 2, "offset": 1}),
        ("Map", {"callback": bytes}),
        ("Run", {"arg": None, "convertToStr": False, "collect": True, "kargs": {}}),
    ]
    script = f"import cloudpickle\np = cloudpickle.loads({pipe('KeysReader', *steps)!r})\np.createAndRun(GB)\n"
    reference = "GB('KeysReader').map(len).sort(False).limit(2, 1).map(bytes).run(None, False, True)"
    client = server.client(decode_responses=False)
    assert server.run(script, client=client) == server.run(reference, client=client)
    every = """
    Accumulate accumulator; LocalGroupBy extractor reducer; Repartition extractor; Foreach callback; FlatMap callback; Filter callback
    CountBy callback; Avg callback; Count; Distinct; Aggregate zero seqOp combOp; AggregateBy extractor zero seqOp combOp
    """
    for line in every.replace("\n", ";").split(";"):
        if line.strip():
            name, *attributes = line.split()
            script = f"from gearsclient import redisgears_builder as m\ns = m.GearsRemote{name}Step()\nseen = []\n"
            script += f"for a in {attributes!r}: setattr(s, a, a)\nclass B:\n    def __getattr__(self, n): return lambda *a: seen.append((n, a))\n"
            script += f"s.AddToGB(B())\nexecute('SET', 'seen', repr(seen))"
            server.run(script)
            assert ast.literal_eval(server.client().get("seen")) == [(name.lower(), tuple(attributes))]


def test_the_functions_of_gearsclient(server: Server) -> None:
    body = """
    import gearsclient
    from gearsclient import execute, log, gearsConfigGet, hashtag, atomic
    log('said by the client', level='warning')
    with atomic():
        inside = isInAtomicBlock()
        execute('SET', 'x', '1')
    return execute('GET', 'x'), inside, isInAtomicBlock(), gearsConfigGet('no', 'default'), hashtag() == globals()['hashtag']()
    """
    assert in_step(server, body) == ("1", True, False, "default", True)
    assert "said by the client" in server.log()


def test_registering_by_gearsclient_with_its_default_requirement(server: Server) -> None:
    steps = [("Map", {"callback": str}), ("Register", {"prefix": "*", "convertToStr": True, "collect": True, "kargs": {"mode": "sync"}})]
    script = f"import cloudpickle\np = cloudpickle.loads({pipe('KeysReader', *steps)!r})\np.createAndRun(GB)\n"
    default = "git+https://github.com/RedisGears/redisgears-py.git"
    assert server.run(script, "REQUIREMENTS", default) == "OK"
    server.client().execute_command("DEBUG", "RELOAD")
    server.client().set("x", "1")
    [entry] = server.registrations()
    assert (entry["RegistrationData"]["numSuccess"], entry["RegistrationData"]["lastError"]) == (1, None)


def test_an_installed_gearsclient_comes_first(server: Server, packages: Path) -> None:
    wheel(packages, "gearsclient", "1.0.2", {"gearsclient/__init__.py": "mark = 'theirs'\n"})
    assert in_script(server, "import gearsclient\nreturn hasattr(gearsclient, 'mark')") is False
    server.run("1", "REQUIREMENTS", "gearsclient")
    server.restart()
    server.run("1", "REQUIREMENTS", "gearsclient")
    body = """
    import gearsclient
    try:
        import gearsclient.redisgears_builder
    except ImportError:
        return gearsclient.mark, 'no mixture'
    """
    assert in_script(server, body) == ("theirs", "no mixture")
    assert "ERR bad requirement" in error_of(server, "1", "REQUIREMENTS", "-r x")
