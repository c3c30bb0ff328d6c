"""Grouping, aggregation, sorting: meaning, arguments, errors, keys; what RG.GETEXECUTION shows of them.

Contract: docs/contract/python-api.md 3, docs/contract/commands.md 1.6; zero and the keys of groups:
docs/contract/README.md.
"""

from __future__ import annotations

import ast
from typing import Any

import pytest

from helpers import Server, as_dict
from probes import last_line, raised, start


def outcome(server: Server, steps: str, records: Any = (), setup: str = "") -> tuple[list[Any], list[str]]:
    """The results (as Python values) and the errors of steps over records."""
    results, errors = server.run(
        f"{setup}\ndef source():\n    yield from {list(records)!r}\n"
        f"GB('PythonReader'){steps}.map(lambda r: repr([r])).run(source)"
    )
    return [ast.literal_eval(result)[0] for result in results], errors


def groups(pairs: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value} for key, value in pairs.items()]


# --- meaning ---


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("steps", "records", "expected"),
    [
        (".groupby(lambda r: r % 2, lambda k, a, r: (a or 0) + r)", [1, 2, 3], groups({"1": 4, "0": 2})),
        (".localgroupby(lambda r: 'all', lambda k, a, r: (a or []) + [k, r])", [1, 2], groups({"all": ["all", 1, "all", 2]})),
        (".batchgroupby(lambda r: r[0], lambda k, rs: [k, rs])", ["ab", "c", "ad"], groups({"c": ["c", ["c"]], "a": ["a", ["ab", "ad"]]})),
        (".repartition(lambda r: r)", [3, 1, 2], [3, 1, 2]),
        (".aggregate(10, lambda a, r: a + r, lambda a, p: a + p)", [1, 2, 3], [26]),
        (".aggregate(5, lambda a, r: a - 5, lambda a, p: a + p)", [1, 1], [0]),  # 0 is a value like any other
        (".aggregate([], lambda a, r: a + [r], lambda a, p: a + p)", [1, None], [[1, None]]),
        (".aggregate(0, lambda a, r: None, lambda a, p: [a, p])", [1], [[0, None]]),
        (".aggregateby(lambda r: r % 2, 0, lambda k, a, r: a + r, lambda k, a, p: a + p)", [1, 2, 3], groups({"1": 4, "0": 2})),
        (".aggregateby(lambda r: 'k', 1, lambda k, a, r: a * r, lambda k, a, p: a + p)", [2, 3], groups({"k": 7})),
        (".countby(lambda r: r[0])", ["ab", "ac", "d"], groups({"a": 2, "d": 1})),
        (".countby()", [1, "1", None, (1, 2)], groups({"1": 2, "None": 1, "(1, 2)": 1})),
        (".sort()", [3, 1, 2], [1, 2, 3]),
        (".sort(True)", [3, 1, 2], [1, 2, 3]),
        (".sort(False)", [3, 1, 2], [3, 2, 1]),
        (".sort(reverse=False)", ["b", "c", "a"], ["c", "b", "a"]),
        (".distinct().sort()", [2, 1, 2, 1], [1, 2]),
        (".distinct().count()", ["a", "a", 1, 1.0, True, None], [3]),
        (".avg()", ["1", 2, 4.5], [2.5]),
        (".avg(lambda r: len(r))", ["a", "abc"], [2.0]),
        (".count()", [None, None], [2]),
        (".collect().limit(1).count()", [7, 8], [1]),
    ],
)
def test_meaning(server: Server, steps: str, records: list[Any], expected: list[Any]) -> None:
    assert outcome(server, steps, records) == (expected, [])


@pytest.mark.parametrize(
    "operation",
    [
        ".count()", ".avg()", ".sort()", ".distinct()", ".countby()", ".accumulate(lambda a, r: r)",
        ".aggregate(1, lambda a, r: a, lambda a, p: a)", ".groupby(lambda r: r, lambda k, a, r: r)",
        ".batchgroupby(lambda r: r, lambda k, r: r)",
    ],
)  # fmt: skip
def test_nothing_gives_no_record(server: Server, operation: str) -> None:
    assert outcome(server, operation) == ([], [])


def test_zero_is_copied_each_time(server: Server) -> None:
    steps = ".aggregateby(lambda r: r % 2, [], lambda k, a, r: a.append(r) or a, lambda k, a, p: a + p)"
    assert outcome(server, steps, [1, 2, 3]) == (groups({"1": [1, 3], "0": [2]}), [])


def test_operations_take_keywords(server: Server) -> None:
    steps = ".groupby(extractor=lambda r: r, reducer=lambda k, a, r: r).repartition(extractor=lambda r: r)"
    assert outcome(server, steps, [1]) == (groups({"1": 1}), [])


def test_the_key_of_a_group_is_whole(server: Server) -> None:
    records = ["a\0b", "a\0c", "\ud800"]
    results, errors = server.run(
        f"def source():\n    yield from {records!r}\nGB('PythonReader').countby().map(lambda r: ascii(r['key'])).run(source)"
    )
    assert (sorted(ast.literal_eval(result) for result in results), errors) == (sorted(["a\0b", "a\0c", "\\ud800"]), [])


def test_sorting_keeps_the_order_of_1_2_for_equal_records(server: Server) -> None:
    # Equal records come in the reverse of their order, both ways.
    assert outcome(server, ".sort()", [1, True, 1.0])[0] == [1.0, True, 1]
    assert [type(value) for value in outcome(server, ".sort(False)", [1, True])[0]] == [bool, int]


# --- arguments ---


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        (".groupby()", "wrong number of args to groupby function"),
        (".groupby(len)", "wrong number of args to groupby function"),
        (".groupby(len, len, len)", "wrong number of args to groupby function"),
        (".groupby(1, len)", "groupby extractor argument must be a function"),
        (".groupby(len, 1)", "groupby reducer argument must be a function"),
        (".localgroupby()", "wrong number of args to groupby function"),
        (".localgroupby(1, len)", "groupby extractor argument must be a function"),
        (".batchgroupby(len)", "wrong number of args to batchgroupby function"),
        (".batchgroupby(1, len)", "batchgroupby extractor argument must be a function"),
        (".repartition()", "wrong number of args to repartition function"),
        (".repartition('x')", "repartition argument must be a function"),
        (".collect(1)", "wrong number of args to collect function"),
        (".avg(1)", "map argument must be a function"),
    ],
)
def test_bad_arguments(server: Server, steps: str, error: str) -> None:
    assert raised(server, f"GB('PythonReader'){steps}") == f"gears.error: {error}"


@pytest.mark.parametrize("steps", [".count(1)", ".aggregate(1)", ".aggregateby(len, 1)", ".sort(1, 2)", ".distinct(1)"])
def test_a_wrong_number_of_arguments_of_the_others_is_pythons_error(server: Server, steps: str) -> None:
    assert raised(server, f"GB('PythonReader'){steps}").startswith("TypeError: ")


# --- errors in callbacks ---


def test_an_accumulator_starts_again_after_an_error(server: Server) -> None:
    setup = "def add(a, r):\n    if r == 2: raise ValueError(r)\n    return (a or []) + [r]"
    steps = ".map(lambda r: [3, 2, 1, 0]).flatmap(lambda r: r).accumulate(add)"
    results, errors = outcome(server, steps, [0], setup)
    assert (results, [last_line(error) for error in errors]) == ([[1, 0]], ["ValueError: 2"])


@pytest.mark.parametrize("operation", ["groupby", "localgroupby"])
def test_only_the_group_of_a_failed_reducer_starts_again(server: Server, operation: str) -> None:
    setup = "def add(k, a, r):\n    if r == 2: raise ValueError(r)\n    return (a or []) + [r]"
    steps = f".flatmap(lambda r: [4, 5, 2, 6, 7]).{operation}(lambda r: r % 2, add)"
    results, errors = outcome(server, steps, [0], setup)
    assert (results, len(errors)) == (groups({"0": [6], "1": [5, 7]}), 1)


def test_a_failed_batch_loses_its_group(server: Server) -> None:
    steps = ".batchgroupby(lambda r: r % 2, lambda k, rs: [1 // (k != '0'), rs])"
    results, errors = outcome(server, steps, [1, 2, 3])
    assert (results, len(errors)) == (groups({"1": [1, [1, 3]]}), 1)
    assert last_line(errors[0]).startswith("ZeroDivisionError")


def test_an_unhashable_record_is_an_error_of_its_own(server: Server) -> None:
    results, errors = outcome(server, ".flatmap(lambda r: [[1], 2, 2, [3]]).distinct()", [0])
    assert (results, len(errors)) == ([2], 2)
    assert all("unhashable type" in error for error in errors)


def test_records_that_cannot_be_compared_are_one_error(server: Server) -> None:
    results, errors = outcome(server, ".sort()", [1, "a"])
    assert (results, len(errors)) == ([], 1)
    assert "not supported between instances" in errors[0]


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        (".groupby(later, lambda k, a, r: r)", "coroutine are not allow on extractor"),
        (".localgroupby(later, lambda k, a, r: r)", "coroutine are not allow on extractor"),
        (".batchgroupby(later, lambda k, rs: rs)", "coroutine are not allow on extractor"),
        (".repartition(later)", "coroutine are not allow on extractor"),
        (".countby(later)", "coroutine are not allow on extractor"),
        (".batchgroupby(lambda r: r, later)", "coroutine are not allow on reduce"),
    ],
)
def test_coroutines_are_refused_where_keys_are_asked_for(server: Server, steps: str, error: str) -> None:
    results, errors = outcome(server, steps, [1], "async def later(*args):\n    return 1")
    assert (results, len(errors)) == ([], 1)
    assert error in errors[0]


# --- reuse, and what is shown ---


def test_each_run_uses_the_steps_of_its_moment(server: Server) -> None:
    server.run(
        """
        def count(record):
            builder = GB('KeysReader').map(lambda r: execute('RPUSH', 'calls', 'first'))
            builder.run('k', noScan=True)
            builder.foreach(lambda r: execute('RPUSH', 'calls', 'second'))
            builder.run('k', noScan=True)
        GB('CommandReader').foreach(count).register(trigger='count', mode='async_local')
        """
    )
    server.client().execute_command("RG.TRIGGER", "count")
    server.wait_idle()
    assert sorted(server.client().lrange("calls", 0, -1)) == ["first", "first", "second"]


@pytest.mark.parametrize(
    ("steps", "kinds"),
    [
        (".groupby(len, len)", ["map", "accumulatebykey", "repartition", "extractkey"]),
        (".localgroupby(len, len)", ["map", "accumulatebykey", "extractkey"]),
        (".batchgroupby(len, len)", ["map", "reduce", "group", "repartition", "extractkey"]),
        (".repartition(len)", ["map", "repartition", "extractkey"]),
        (".flatmap(len)", ["flatmap", "map"]),
        (".limit(1).filter(len)", ["filter", "limit"]),
    ],
)
def test_getexecution_shows_the_parts_of_an_operation(server: Server, steps: str, kinds: list[str]) -> None:
    execution = start(server, f"GB('KeysReader'){steps}.run('none:*')", awaited="done")
    ((_, _, _, plan),) = server.client().execute_command("RG.GETEXECUTION", execution)
    shown = [as_dict(step)["type"] for step in as_dict(plan)["steps"]]
    assert shown == ["collect", "map", *kinds, "map"]


# --- many steps ---


@pytest.mark.parametrize("mode", ["run", "sync"])
def test_a_builder_may_have_any_number_of_steps(server, mode):
    """Each step that takes records apart once took room on the stack."""
    build = "b = GB({reader})\nfor _ in range(20000):\n    b.flatmap(lambda r: [r])\n"
    if mode == "run":
        server.run(build.format(reader="'PythonReader'") + "b.run(lambda: (n for n in [1, 2]))")
        script = build.format(reader="'PythonReader'") + "b.run(lambda: (n for n in [1, 2]))"
        assert server.run(script) == [["1", "2"], []]
        return
    build = build.replace("20000", "2000")
    server.run(build.format(reader="'CommandReader'") + "b.map(len).register(trigger='t', mode='sync')")
    assert server.client().execute_command("RG.TRIGGER", "t", "a", "b") == ["3"]


def test_parts_of_parts_keep_their_order(server):
    steps = ".flatmap(lambda n: [n, n + 10])" * 3
    assert server.run(f"GB('PythonReader'){steps}.run(lambda: (n for n in [0, 100]))")[0] == [
        str(start + offset) for start in (0, 100) for offset in (0, 10, 10, 20, 10, 20, 20, 30)
    ]
