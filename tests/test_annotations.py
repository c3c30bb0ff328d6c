"""Annotations in scripts: what looks them up in the module of a class or function finds the globals of its session."""

from __future__ import annotations

from typing import Any, Callable

import pytest

from helpers import Server, wait_until
from probes import in_script

FUTURE = "from __future__ import annotations\n"
# Each defines `check`, which gives the same text wherever and however often it is loaded.
CASES = {
    "dataclass": """
from dataclasses import dataclass, fields
@dataclass
class D:
    number: int
    nxt: 'D' = None
def check():
    return repr(D(1, D(2))), D(1) == D(1)
""",
    "dataclass with future annotations": FUTURE + """
import dataclasses, typing
from typing import ClassVar, Optional
@dataclasses.dataclass(order=True)
class D:
    number: int = 3
    names: ClassVar[list] = []
    nxt: Optional[D] = dataclasses.field(default=None, compare=False)
def check():
    return [f.name for f in dataclasses.fields(D)], sorted([D(2), D(1)])[0].number
""",
    "hints of a class": FUTURE + """
import typing
from typing import Optional
from decimal import Decimal
class Node:
    value: Decimal
    nxt: Optional[Node]
def check():
    hints = typing.get_type_hints(Node)
    return hints['value'].__name__, hints['nxt'] == Optional[Node]
""",
    "hints of a function": FUTURE + """
import typing
from fractions import Fraction
class Own: pass
def annotated(x: Fraction, y: typing.List[Own]) -> Own: pass
def check():
    hints = typing.get_type_hints(annotated)
    return hints['x'].__name__, hints['return'] is Own, hints['y'] == typing.List[Own]
""",
    "NamedTuple": FUTURE + """
import typing
class Point(typing.NamedTuple):
    x: int
    other: typing.Optional[Point] = None
def check():
    return repr(Point(1)), typing.get_type_hints(Point)['other'] == typing.Optional[Point]
""",
    "TypedDict": FUTURE + """
import typing
class Movie(typing.TypedDict, total=False):
    name: str
    sequel: Movie
def check():
    return Movie(name='a'), typing.get_type_hints(Movie)['sequel'] is Movie, sorted(Movie.__optional_keys__)
""",
    "Enum and ABC": FUTURE + """
import abc, enum, dataclasses, typing
class Colour(enum.Enum):
    RED = 1
class Base(abc.ABC):
    @abc.abstractmethod
    def name(self) -> str: ...
@dataclasses.dataclass
class Thing(Base):
    colour: Colour = Colour.RED
    def name(self): return self.colour.name
def check():
    return Thing().name(), typing.get_type_hints(Thing)['colour'] is Colour
""",
    "inherited dataclass with InitVar": FUTURE + """
from dataclasses import dataclass, InitVar, KW_ONLY, asdict
@dataclass
class Base:
    a: int
    scale: InitVar[int] = 2
    def __post_init__(self, scale): self.a *= scale
@dataclass(frozen=False)
class Child(Base):
    _: KW_ONLY = None
    b: list[Base] = None
def check():
    return asdict(Child(3, b=[Base(1)]))
""",
}


def register(server: Server, source: str) -> None:
    server.run(source + "GB('CommandReader').map(lambda _: repr(check())).register(trigger='check', mode='sync')\n")


def answer(server: Server) -> Any:
    return server.own.execute_command("RG.TRIGGER", "check")


@pytest.mark.parametrize("case", CASES)
def test_they_work_here_and_where_they_are_loaded(start_server: Callable[..., Server], case: str) -> None:
    server = start_server()
    server.run(CASES[case] + "execute('SET', 'here', repr(check()))")
    expected = [server.client().get("here")]
    register(server, CASES[case])
    assert answer(server) == expected
    server.client().execute_command("DEBUG", "RELOAD")
    assert answer(server) == expected
    # What was loaded can be stored again, and new classes can be made there.
    server.client().execute_command("DEBUG", "RELOAD")
    assert answer(server) == expected
    assert [r["RegistrationData"]["lastError"] for r in server.registrations()] == [None]


@pytest.mark.matrix
def test_they_work_on_a_replica_that_is_promoted(start_server: Callable[..., Server]) -> None:
    master, replica = start_server(), start_server()
    register(master, CASES["hints of a class"])
    replica.client().execute_command("REPLICAOF", master.host, master.port)
    wait_until(lambda: replica.registrations(), timeout=20)
    replica.client().execute_command("REPLICAOF", "NO", "ONE")
    assert answer(replica) == answer(master)


def test_they_work_on_other_shards(cluster: Any) -> None:
    script = CASES["hints of a function"] + "GB('ShardsIDReader').map(lambda _: check()).run()"
    results, errors = cluster[0].run(script)
    assert (results, errors) == (["('Fraction', True, True)"] * 3, [])


def test_each_session_has_names_of_its_own(server: Server) -> None:
    script = "class Own:\n    mark: 'Other'\nclass Other:\n    name = '{0}'\n"
    look = "import typing\nGB('CommandReader').map(lambda _: typing.get_type_hints(Own)['mark'].name).register(trigger='{0}')"
    for name in ("one", "two"):
        server.run(script.format(name) + look.format(name), "ID", name)
    for name in ("two", "one", "two"):
        assert server.client().execute_command("RG.TRIGGER", name) == [name]


def test_functions_are_still_found_by_nobody(server: Server) -> None:
    body = """
    import pickle, sys
    def inner(): pass
    inner.__qualname__ = 'inner'
    try:
        pickle.dumps(inner)
    except Exception as error:
        return hasattr(sys.modules['not_main'], 'execute'), type(error).__name__
    """
    assert in_script(server, body) in [(False, "PicklingError"), (False, "AttributeError")]
