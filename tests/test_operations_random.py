"""Chains of operations on random data against the same in plain Python. Contract:
docs/contract/python-api.md 3.3 and 3.5."""

from __future__ import annotations

import ast
import random
from functools import reduce
from typing import Any, Callable

import pytest

from helpers import Server

CASES = 120

Records = list[Any]


def _group(records: Records, key: Callable[[Any], Any]) -> dict[str, Records]:
    found: dict[str, Records] = {}
    for record in records:
        value = key(record)
        found.setdefault(value if isinstance(value, str) else repr(value), []).append(record)
    return found


def _groups(pairs: dict[str, Any]) -> Records:
    return [{"key": key, "value": value} for key, value in pairs.items()]


# The operation as a script writes it, and what it does to a list of records that may be anything.
ANYTHING: list[tuple[str, Callable[[Records], Records]]] = [
    (".map(lambda r: [r, r])", lambda rs: [[r, r] for r in rs]),
    (".map(repr)", lambda rs: [repr(r) for r in rs]),
    (".flatmap(lambda r: [r, repr(r)])", lambda rs: [part for r in rs for part in (r, repr(r))]),
    (".flatmap(lambda r: [] if repr(r) < 'a' else [r])", lambda rs: [r for r in rs if repr(r) >= "a"]),
    (".filter(lambda r: len(repr(r)) % 2)", lambda rs: [r for r in rs if len(repr(r)) % 2]),
    (".foreach(lambda r: None)", lambda rs: rs),
    (".repartition(lambda r: repr(r))", lambda rs: rs),
    (".collect()", lambda rs: rs),
    (".limit(3)", lambda rs: rs[:3]),
    (".limit(5, 2)", lambda rs: rs[2:7]),
    (".count()", lambda rs: [len(rs)] if rs else []),
    (".countby()", lambda rs: _groups({k: len(v) for k, v in _group(rs, lambda r: r).items()})),
    (".countby(lambda r: len(repr(r)))", lambda rs: _groups({k: len(v) for k, v in _group(rs, lambda r: len(repr(r))).items()})),
    (".accumulate(lambda a, r: (a or '') + repr(r))", lambda rs: [reduce(lambda a, r: a + repr(r), rs, "")] if rs else []),
    (".aggregate('z', lambda a, r: a + repr(r), lambda a, p: a + p)", lambda rs: ["zz" + "".join(map(repr, rs))] if rs else []),
    (
        ".groupby(lambda r: type(r).__name__, lambda k, a, r: (a or 0) + 1)",
        lambda rs: _groups({k: len(v) for k, v in _group(rs, lambda r: type(r).__name__).items()}),
    ),
    (
        ".batchgroupby(lambda r: type(r).__name__, lambda k, rs: [k, len(rs)])",
        lambda rs: list(reversed(_groups({k: [k, len(v)] for k, v in _group(rs, lambda r: type(r).__name__).items()}))),
    ),
    (
        ".aggregateby(lambda r: len(repr(r)), '', lambda k, a, r: a + repr(r), lambda k, a, p: a + p)",
        lambda rs: _groups({k: "".join(map(repr, v)) for k, v in _group(rs, lambda r: len(repr(r))).items()}),
    ),
    (".map(repr).distinct()", lambda rs: list(dict.fromkeys(map(repr, rs)))),
    (".map(repr).sort()", lambda rs: sorted(map(repr, rs))),
    (".map(repr).sort(False)", lambda rs: sorted(map(repr, rs), reverse=True)),
    (".avg(lambda r: len(repr(r)))", lambda rs: [sum(len(repr(r)) for r in rs) / len(rs)] if rs else []),
]  # fmt: skip


def _record(rng: random.Random) -> Any:
    return rng.choice([
        lambda: rng.randint(-5, 5), lambda: rng.randint(-(2**70), 2**70), lambda: rng.random(), lambda: None,
        lambda: rng.choice([True, False]), lambda: "".join(rng.choices("ab\u00e9\u4e2d\0 '", k=rng.randint(0, 4))),
        lambda: (rng.randint(0, 3), "x"), lambda: [rng.randint(0, 2)] * rng.randint(0, 2), lambda: {"k": rng.randint(0, 2)},
    ])()  # fmt: skip


def _case(rng: random.Random) -> tuple[Records, list[tuple[str, Callable[[Records], Records]]]]:
    return [_record(rng) for _ in range(rng.choice([0, 1, 2, 10, 40]))], rng.choices(ANYTHING, k=rng.randint(1, 5))


@pytest.mark.parametrize("seed", range(3))
def test_chains_do_what_plain_python_does(server: Server, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(CASES // 3):
        records, chain = _case(rng)
        steps = "".join(step for step, _ in chain)
        expected = reduce(lambda held, step: step[1](held), chain, records)
        results, errors = server.run(
            f"def source():\n    yield from {records!r}\n"
            f"GB('PythonReader'){steps}.map(lambda r: ascii([r])).run(source)"
        )
        got = [ast.literal_eval(result)[0] for result in results]
        context = f"seed {seed}, case {number}: {records!r} {steps}"
        assert errors == [], context
        # Everything keeps its order here: groups come as their keys first appeared.
        assert list(map(repr, got)) == list(map(repr, expected)), context
