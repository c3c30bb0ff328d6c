"""Executions over all shards of a Redis Cluster: readers, operations, records that move, errors, states. Contract:
docs/contract/commands.md chapter 8, docs/contract/python-api.md chapter 9."""

from __future__ import annotations

import collections
import random
from typing import Any, Callable

import pytest
import redis

from clusters import Cluster, info_cluster, make_cluster, node_id
from helpers import Server, as_dict, wait_until

COUNT = 300


@pytest.fixture
def cluster(cluster: Cluster) -> Cluster:
    """Three shards with numbers."""
    cluster.fill({f"key:{number}": number for number in range(COUNT)})
    return cluster


def results(reply: Any) -> list[Any]:
    """The results of a run without errors."""
    found, errors = reply
    assert errors == []
    return found


@pytest.mark.matrix
def test_readers(cluster: Cluster) -> None:
    names = sorted(f"key:{number}" for number in range(COUNT))
    ids = sorted(map(node_id, cluster.masters))
    stream = "a stream"
    for number in range(5):
        cluster.shard_of(stream).client().xadd(stream, {"n": number})
    for server in cluster.masters:
        assert results(server.run("GB('KeysReader').count().run('key:*')")) == [str(COUNT)]
        local = int(results(server.run("GB('KeysReader').count().run('key:*', mode='async_local')"))[0])
        assert 0 < local < COUNT and local == server.client().dbsize() - (server is cluster.shard_of(stream))
        assert sorted(results(server.run("GB('KeysReader').map(lambda r: r['key']).run('key:*')"))) == names
        assert sorted(results(server.run("GB('KeysOnlyReader').run('key:*')"))) == names
        generator = "GB('KeysOnlyReader').run(patternGenerator=lambda: ('key:1' + hashtag()[:0] + '?', False))"
        assert sorted(results(server.run(generator))) == [f"key:1{digit}" for digit in range(10)]
        assert sorted(results(server.run("GB('ShardsIDReader').run()"))) == ids
        assert results(server.run("GB('ShardsIDReader').run(mode='async_local')")) == [node_id(server)]
        script = "def numbers():\n    yield 1\n    yield 2\nGB('PythonReader').run(numbers)"
        assert sorted(results(server.run(script))) == ["1", "1", "1", "2", "2", "2"]
        found = results(server.run(f"GB('StreamReader').map(lambda r: r['value']['n']).run('{stream}')"))
        assert found == ["0", "1", "2", "3", "4"]
        no_scan = results(server.run("GB('KeysReader').map(lambda r: (r['key'], r['value'])).run('key:7', noScan=True)"))
        assert sorted(no_scan) == ["('key:7', '7')", "('key:7', None)", "('key:7', None)"]


@pytest.mark.matrix
def test_operations_against_plain_python(cluster: Cluster) -> None:
    numbers = list(range(COUNT))
    groups = collections.Counter(number % 7 for number in numbers)
    expected: dict[str, list[str]] = {
        "map(lambda r: int(r['value']) * 2)": [str(2 * number) for number in numbers],
        "filter(lambda r: int(r['value']) % 3 == 0).map(lambda r: r['value'])": [str(n) for n in numbers if n % 3 == 0],
        "flatmap(lambda r: [r['value'], 'x'])": [str(number) for number in numbers] + ["x"] * COUNT,
        "count()": [str(COUNT)],
        "countby(lambda r: int(r['value']) % 7)": [
            str({"key": str(key), "value": count}) for key, count in groups.items()
        ],
        "groupby(lambda r: int(r['value']) % 7, lambda k, a, r: (a or 0) + 1)": [
            str({"key": str(key), "value": count}) for key, count in groups.items()
        ],
        "batchgroupby(lambda r: int(r['value']) % 7, lambda k, r: len(r))": [
            str({"key": str(key), "value": count}) for key, count in groups.items()
        ],
        "aggregateby(lambda r: int(r['value']) % 7, 0, lambda k, a, r: a + int(r['value']), lambda k, a, r: a + r)": [
            str({"key": str(key), "value": sum(n for n in numbers if n % 7 == key)}) for key in groups
        ],
        "aggregate(0, lambda a, r: a + int(r['value']), lambda a, r: a + r)": [str(sum(numbers))],
        "map(lambda r: int(r['value'])).sort()": [str(number) for number in numbers],
        "map(lambda r: int(r['value'])).sort(reverse=False)": [str(number) for number in reversed(numbers)],
        "map(lambda r: int(r['value']) % 5).distinct()": ["0", "1", "2", "3", "4"],
        "avg(lambda r: int(r['value']))": [str(sum(numbers) / COUNT)],
        "repartition(lambda r: r['value']).map(lambda r: r['value'])": [str(number) for number in numbers],
        "collect().limit(5).count()": ["5"],
        "limit(5).count()": ["15"],
        "collect().limit(3, 2).map(lambda r: 1).accumulate(lambda a, x: (a or 0) + x)": ["3"],
        # records go out again after they were collected
        "collect().countby(lambda r: int(r['value']) % 7)": [
            str({"key": str(key), "value": count}) for key, count in groups.items()
        ],
        "count().groupby(lambda r: 'all', lambda k, a, r: (a or 0) + r).map(lambda r: r['value'])": [str(COUNT)],
        "countby(lambda r: int(r['value']) % 7).countby(lambda r: r['value'])": [
            str({"key": str(count), "value": times}) for count, times in collections.Counter(groups.values()).items()
        ],
    }
    for number, (steps, wanted) in enumerate(expected.items()):
        found = results(cluster[number % 3].run(f"GB('KeysReader').{steps}.run('key:*')"))
        in_order = "sort" in steps
        assert (found if in_order else sorted(found)) == (wanted if in_order else sorted(wanted)), steps


def test_random_pipelines_give_what_one_server_gives(cluster: Cluster, server: Server) -> None:
    """The same plan on the same data: three shards and one."""
    server.client().mset({f"key:{number}": number for number in range(COUNT)})
    seed = random.randrange(1 << 30)
    chosen = random.Random(seed)
    steps = [
        "map(lambda x: x + {n})",
        "map(lambda x: x * {n} % 17)",
        "filter(lambda x: x % {n} != 1)",
        "flatmap(lambda x: [x, x + {n}])",
        "repartition(lambda x: x % {n})",
        "countby(lambda x: x % {n}).map(lambda r: int(r['key']) * 100 + r['value'])",
        "groupby(lambda x: x % {n}, lambda k, a, x: max(a or 0, x)).map(lambda r: r['value'])",
        "batchgroupby(lambda x: x % {n}, lambda k, xs: sum(xs)).map(lambda r: r['value'])",
        "aggregateby(lambda x: x % {n}, 0, lambda k, a, x: a + x, lambda k, a, x: a + x).map(lambda r: r['value'])",
        "distinct()",
        "collect()",
    ]
    for _ in range(25):
        plan = ".".join(chosen.choice(steps).format(n=chosen.randint(2, 9)) for _ in range(chosen.randint(1, 5)))
        script = f"GB('KeysReader').map(lambda r: int(r['value'])).{plan}.run('key:*')"
        wanted = sorted(results(server.run(script)))
        assert sorted(results(chosen.choice(cluster.masters).run(script))) == wanted, (seed, script)


def test_keys_are_local_after_a_repartition(cluster: Cluster) -> None:
    script = """
    def store(record):
        execute('INCRBY', 'sum:' + record['key'], record['value'])
        return execute('GET', 'sum:' + record['key'])
    GB('KeysReader').countby(lambda r: int(r['value']) % 7).repartition(lambda r: 'sum:' + r['key']).map(store).run('key:*')
    """
    assert sorted(map(int, results(cluster[1].run(script)))) == sorted(
        collections.Counter(number % 7 for number in range(COUNT)).values()
    )
    assert all(cluster.client().get(f"sum:{key}") for key in range(7))


def test_a_key_of_another_shard_is_an_error(cluster: Cluster) -> None:
    other = next(f"key:{n}" for n in range(COUNT) if cluster.shard_of(f"key:{n}") is not cluster[0])
    script = f"GB('ShardsIDReader').map(lambda r: execute('GET', '{other}')).run(mode='async_local')"
    found, [error] = cluster[0].run(script)
    assert found == [] and "Operation not permitted" in error


def test_hashtags_are_local(cluster: Cluster) -> None:
    tags = [results(server.run("GB('ShardsIDReader').map(lambda r: hashtag()).run(mode='async_local')")) for server in cluster.masters]
    assert tags == [["06S"], ["8M"], ["63n"]]
    script = "GB('ShardsIDReader').map(lambda r: execute('SET', 'x{%s}' % hashtag(), r)).run()"
    assert results(cluster[2].run(script)) == ["OK"] * 3


# --- records ---


@pytest.mark.matrix
def test_any_object_travels(cluster: Cluster) -> None:
    script = """
    import collections, datetime, decimal, enum

    class Point:
        def __init__(self, x):
            self.x = x
        def __repr__(self):
            return f'Point({self.x})'

    Pair = collections.namedtuple('Pair', 'a b')

    def objects(record):
        number = int(record['value'])
        return [None, True, 10 ** 30, 1.5, 2j, 'text', b'by', bytearray(b'ba'), (1, 2), {3}, {'a': [4]}, ...,
                decimal.Decimal('1.1'), datetime.date(2020, 1, 2), collections.Counter('aab'),
                Point(number), Pair(1, 2), lambda: 5]

    def shown(record):
        return record() if callable(record) else repr(record)

    GB('KeysReader').flatmap(objects).collect().map(shown).distinct().sort().run('key:1?')
    """
    points = [f"Point({number})" for number in range(10, 20)]
    others = ["None", "True", str(10**30), "1.5", "2j", "'text'", "b'by'", "bytearray(b'ba')", "(1, 2)", "{3}"]
    others += ["{'a': [4]}", "Ellipsis", "Decimal('1.1')", "datetime.date(2020, 1, 2)", "Counter({'a': 2, 'b': 1})"]
    others += ["Pair(a=1, b=2)"]
    script = script.replace("record() if callable(record)", "str(record()) if callable(record)")
    assert results(cluster[0].run(script)) == sorted([*points, *others, "5"])


def test_what_cannot_travel_is_an_error_where_it_crosses(cluster: Cluster) -> None:
    script = """
    import threading
    GB('ShardsIDReader').map(lambda r: threading.Lock()).run(convertToStr=False)
    """
    found, errors = cluster[0].run(script)
    assert found == ["PY RECORD"]
    assert len(errors) == 2 and all("cannot pickle '_thread.lock' object" in error for error in errors)


def test_binary_values(cluster: Cluster) -> None:
    blob = bytes(range(256))
    for number in range(30):
        cluster.client().set(f"blob:{number}", blob)
    script = "GB('KeysReader').map(lambda r: bytes(r['value'])).run('blob:*', convertToStr=False)"
    raw = cluster[0].client(decode_responses=False)
    assert raw.execute_command("RG.PYEXECUTE", script) == [[blob] * 30, []]
    native = "GB('KeysReader').collect().map(lambda r: bytes(r['value'])).run('blob:*', convertToStr=False)"
    assert raw.execute_command("RG.PYEXECUTE", native) == [[blob] * 30, []]


def test_many_records(cluster: Cluster) -> None:
    """More than one batch, and more than one message."""
    script = "GB('KeysReader').flatmap(lambda r: ['x' * 1000] * 100).run('key:*')"
    assert results(cluster[0].run(script)) == ["x" * 1000] * (100 * COUNT)


def test_large_objects_travel_in_more_than_one_message(cluster: Cluster) -> None:
    """As many as one batch has would be more than may wait for a shard: such a message was dropped, and the run ended without an error."""
    script = """
    import threading
    large = lambda number: {'number': number, 'lock': threading.Lock()} if number == 150 else {'number': number, 'bytes': bytes(1 << 20)}
    numbers = lambda: range(300) if hashtag() == '63n' else []
    GB('ShardsIDReader').flatmap(lambda r: [large(number) for number in numbers()]).collect().map(lambda x: len(x['bytes'])).countby().run()
    """
    found, errors = cluster[0].run(script)
    assert found == [str({"key": str(1 << 20), "value": 299})]
    assert len(errors) == 1 and "cannot pickle '_thread.lock' object" in errors[0]


# --- errors ---


@pytest.mark.matrix
def test_errors_of_all_shards_are_merged(cluster: Cluster) -> None:
    script = """
    def check(record):
        if record['key'].endswith('7'):
            raise ValueError(record['key'])
        return record['key']
    GB('ShardsIDReader').flatmap(lambda r: [dict(key=f'{n}') for n in range(20)]).map(check).run()
    """
    found, errors = cluster[0].run(script)
    assert len(found) == 3 * 18
    wrong = [error.rsplit("ValueError: ", 1)[1][:-4] for error in errors]
    assert sorted(wrong) == ["17"] * 3 + ["7"] * 3


def test_a_failing_shard_does_not_stop_the_others(cluster: Cluster) -> None:
    bad = node_id(cluster[1])
    script = f"""
    def check(record):
        if record == '{bad}':
            flat_error('bad shard')
        return record
    GB('ShardsIDReader').map(check).run()
    """
    for server in cluster.masters:
        found, errors = server.run(script)
        assert sorted(found) == sorted(node_id(good) for good in cluster.masters if good is not cluster[1])
        assert errors == ["bad shard"]


def test_what_cannot_be_pickled_is_refused_at_run(cluster: Cluster) -> None:
    script = "import sys\nlock = sys._getframe()\nGB().map(lambda r: lock).run()"
    with pytest.raises(redis.ResponseError, match="Error occured when serialized a python callback, callback=<lambda>"):
        cluster[0].run(script)
    generator = "import sys\nlock = sys._getframe()\ndef g():\n    yield str(lock)\nGB('PythonReader').run(g)"
    with pytest.raises(redis.ResponseError, match="Error occured when serialized a python callback, callback=g"):
        cluster[0].run(generator)
    assert results(cluster[0].run("import sys\nlock = sys._getframe()\nGB('ShardsIDReader').map(lambda r: lock and 1).run(mode='async_local')")) == ["1"]


def test_what_does_not_load_elsewhere_is_told(cluster: Cluster, tmp_path: Any) -> None:
    """A module that only one shard has."""
    (tmp_path / "only_here.py").write_text("def f(r):\n    return 1\n")
    script = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport only_here\nGB('ShardsIDReader').map(only_here.f).run()"
    found, errors = cluster[0].run(script)
    assert found == []
    assert "Failed deserializing flat execution, Error occured when deserialized a python callback" in errors[0]
    assert "No module named 'only_here'" in errors[0]
    assert results(cluster[0].run("GB('ShardsIDReader').count().run()")) == ["3"]


# --- states and life ---


def test_ids_begin_with_the_shard(cluster: Cluster) -> None:
    for server in cluster.masters:
        execution = server.run("GB('ShardsIDReader').run()", "UNBLOCKING")
        assert execution.startswith(node_id(server) + "-")
        client = server.client()
        wait_until(lambda: as_dict(as_dict(client.execute_command("RG.GETEXECUTION", execution, "SHARD")[0])["execution_plan"])["status"] == "done")
        found, errors = client.execute_command("RG.GETRESULTS", execution)
        assert (len(found), errors) == (3, [])
        for other in cluster.masters:
            # Kept everywhere; the results are with the initiator.
            wait_until(lambda: execution in executions(other))
            if other is not server:
                wait_until(lambda: executions(other)[execution] == "done")
                assert other.client().execute_command("RG.GETRESULTS", execution) == [[], []]
        assert client.execute_command("RG.DROPEXECUTION", execution) == "OK"
        for other in cluster.masters:
            wait_until(lambda: execution not in executions(other))


def executions(server: Server) -> dict[str, str]:
    entries = map(as_dict, server.client().execute_command("RG.DUMPEXECUTIONS"))
    return {entry["executionId"]: entry["status"] for entry in entries}


def test_nothing_is_left_of_a_run_that_was_waited_for(cluster: Cluster) -> None:
    for _ in range(20):
        results(cluster[0].run("GB('KeysReader').countby(lambda r: r['value']).run('key:*')"))
    for server in cluster.masters:
        wait_until(lambda: executions(server) == {})
        assert server.client().execute_command("RG.PYDUMPSESSIONS") == []


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["one pipeline", "many clients", "an aborted one", "a slow shard"])
def test_a_dropped_execution_is_gone_on_all_shards(cluster: Cluster, how: str) -> None:
    """The others may be told before they have finished it."""
    client = cluster[0].client()
    if how == "a slow shard":
        script = "import time\nGB('ShardsIDReader').foreach(lambda r: time.sleep(0.3)).run()"
    else:
        script = "GB().map(lambda x: x).run('nothing*')"
    for _ in range(5 if how == "a slow shard" else 60):
        identifier = cluster[0].run(script, "UNBLOCKING", client=client)
        if how == "an aborted one":
            client.execute_command("RG.ABORTEXECUTION", identifier)
            client.execute_command("RG.DROPEXECUTION", identifier)
        elif how == "many clients":
            cluster[0].client().execute_command("RG.GETRESULTSBLOCKING", identifier)
            assert cluster[0].client().execute_command("RG.DROPEXECUTION", identifier) == "OK"
        else:
            pipeline = client.pipeline(transaction=False)
            pipeline.execute_command("RG.GETRESULTSBLOCKING", identifier)
            pipeline.execute_command("RG.DROPEXECUTION", identifier)
            pipeline.execute()
    for server in cluster.masters:
        wait_until(lambda: executions(server) == {}, message=f"{server.port}")


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["RG.UNREGISTER", "another shard", "UPGRADE", "while it runs"])
def test_executions_of_a_registration_go_with_it_on_all_shards(cluster: Cluster, how: str) -> None:
    sleep = "time.sleep(0.3) or " if how == "while it runs" else ""
    script = f"""
    import time
    GB().repartition(lambda x: {sleep}'c').foreach(lambda x: {sleep}None).register(prefix='s2*')
    """
    assert cluster[1].run(script, "ID", "s") == "OK"
    for number in range(5):
        cluster.fill({f"s2{number}": 1})
    if how != "while it runs":
        for server in cluster.masters:
            wait_until(lambda: len(executions(server)) == 5 and set(executions(server).values()) == {"done"})
    [entry] = cluster[0].registrations()
    if how == "UPGRADE":
        assert cluster[2].run("GB('CommandReader').register(trigger='t')", "ID", "s", "UPGRADE") == "OK"
    else:
        server = cluster[2] if how == "another shard" else cluster[1]
        assert server.client().execute_command("RG.UNREGISTER", entry["id"]) == "OK"
    for server in cluster.masters:
        wait_until(lambda: executions(server) == {}, message=f"{server.port}")
        sessions = [as_dict(session)["ID"] for session in server.client().execute_command("RG.PYDUMPSESSIONS")]
        assert sessions == (["s"] if how == "UPGRADE" else [])
        assert server.client().execute_command("RG.PYDUMPSESSIONS", "DEAD") == []


def test_executions_of_other_shards_do_not_count_for_the_limit(cluster: Cluster) -> None:
    for server in cluster.masters:
        server.client().execute_command("RG.CONFIGSET", "MaxExecutionsPerRegistration", 2)
    try:
        assert cluster[0].run("GB().repartition(lambda x: 'c').register(prefix='s2*')") == "OK"
        for number in range(30):
            cluster.fill({f"s2{number}": 1})
        for server in cluster.masters:
            server.wait_idle()
        for server in cluster.masters:
            own = [name for name in executions(server) if name.startswith(node_id(server))]
            assert len(own) == 2
            for name in own:
                for other in cluster.masters:
                    assert name in executions(other)
    finally:
        for server in cluster.masters:
            server.client().execute_command("RG.CONFIGSET", "MaxExecutionsPerRegistration", 100)


def test_results_that_are_not_collected_stay_where_they_are(cluster: Cluster) -> None:
    execution = cluster[0].run("GB('ShardsIDReader').run(collect=False)", "UNBLOCKING")
    for server in cluster.masters:
        wait_until(lambda: executions(server).get(execution) == "done")
        assert server.client().execute_command("RG.GETRESULTS", execution) == [[node_id(server)], []]


WAITING = """
import asyncio
async def wait(record):
    while not execute('EXISTS', 'go{%s}' % hashtag()):
        await asyncio.sleep(0.01)
    return record
GB('ShardsIDReader').map(wait).run()
"""


def test_states_while_it_runs(start_server: Callable[..., Server]) -> None:
    cluster = make_cluster(start_server, module_args=["ExecutionMaxIdleTime", "20000"])
    execution = cluster[0].run(WAITING, "UNBLOCKING")
    tags = ["06S", "8M", "63n"]
    for server in cluster.masters:
        wait_until(lambda: executions(server).get(execution) == "running")
    cluster[0].client().set("go{06S}", 1)
    wait_until(lambda: described(cluster[0], execution)["status"] == "running")
    cluster[1].client().set("go{8M}", 1)
    wait_until(lambda: described(cluster[1], execution)["status"] == "pending_termination")
    wait_until(lambda: described(cluster[0], execution)["shards_completed"] == 1)
    assert described(cluster[0], execution)["shards_received"] == 2
    entries = cluster[0].client().execute_command("RG.GETEXECUTION", execution)
    states = {as_dict(entry)["shard_id"]: as_dict(as_dict(entry)["execution_plan"])["status"] for entry in entries}
    assert states == {
        node_id(cluster[0]): "running",
        node_id(cluster[1]): "pending_termination",
        node_id(cluster[2]): "running",
    }
    assert len(cluster[0].client().execute_command("RG.GETEXECUTION", execution, "SHARD")) == 1
    cluster[2].client().set("go{63n}", 1)
    for server in cluster.masters:
        wait_until(lambda: executions(server).get(execution) == "done")
    assert len(cluster[0].client().execute_command("RG.GETRESULTS", execution)[0]) == len(tags)


def described(server: Server, execution: str) -> dict[str, Any]:
    [entry] = server.client().execute_command("RG.GETEXECUTION", execution, "SHARD")
    return as_dict(as_dict(entry)["execution_plan"])


@pytest.mark.matrix
@pytest.mark.parametrize("code", ["time.sleep(0.01)", "pass"])
def test_an_abort_ends_it_on_all_shards(cluster: Cluster, code: str) -> None:
    script = f"import time\ndef spin(r):\n    while True:\n        {code}\nGB('ShardsIDReader').map(spin).run()"
    execution = cluster[0].run(script, "UNBLOCKING")
    for server in cluster.masters:
        wait_until(lambda: executions(server).get(execution) == "running")
    # any shard may be asked
    assert cluster[1].client().execute_command("RG.ABORTEXECUTION", execution) == "OK"
    for server in cluster.masters:
        wait_until(lambda: executions(server).get(execution) in ("done", "aborted"))
        assert results(server.run("GB('ShardsIDReader').count().run()")) == ["3"]
    with pytest.raises(redis.ResponseError, match="execution does not exist"):
        cluster[0].client().execute_command("RG.ABORTEXECUTION", node_id(cluster[0]) + "-99999")


def test_an_abort_of_a_local_execution(cluster: Cluster) -> None:
    script = "def spin(r):\n    while True:\n        pass\nGB('ShardsIDReader').map(spin).run(mode='async_local')"
    execution = cluster[0].run(script, "UNBLOCKING")
    wait_until(lambda: executions(cluster[0]).get(execution) == "running")
    assert cluster[2].client().execute_command("RG.ABORTEXECUTION", execution) == "OK"
    assert cluster[0].client().execute_command("RG.ABORTEXECUTION", execution) == "OK"
    wait_until(lambda: executions(cluster[0])[execution] == "done")


def test_the_idle_limit(start_server: Callable[..., Server]) -> None:
    cluster = make_cluster(start_server, module_args=["ExecutionMaxIdleTime", "500"])
    slow = node_id(cluster[1])
    script = f"""
    import asyncio
    async def wait(record):
        if record == '{slow}':
            await asyncio.sleep(2)
        return record
    GB('ShardsIDReader').map(wait).run()
    """
    found, errors = cluster[0].run(script)
    assert slow not in found and errors == ["Execution max idle reached"]
    assert "Execution max idle reached, ep_id=" in cluster[0].log()
    assert sorted(results(cluster[2].run("GB('ShardsIDReader').run()"))) == sorted(map(node_id, cluster.masters))


# --- in functions ---


def test_a_function_awaits_a_run_over_all_shards(cluster: Cluster) -> None:
    script = """
    async def total(record):
        results, errors = await GB('KeysReader').map(lambda r: int(r['value'])).aggregate(0, lambda a, x: a + x, lambda a, x: a + x).run('key:*', convertToStr=False)
        return results[0]
    GB('CommandReader').map(total).register(trigger='total', mode='async_local')
    """
    assert cluster[0].run(script) == "OK"
    for server in cluster.masters:
        assert server.client().execute_command("RG.TRIGGER", "total") == [str(sum(range(COUNT)))]


def test_thousands_of_coroutines_on_three_shards(cluster: Cluster) -> None:
    script = """
    import asyncio
    async def later(record):
        await asyncio.sleep(0.001)
        return int(record['value'])
    GB('KeysReader').map(later).repartition(lambda x: x).map(later2).aggregate(0, lambda a, x: a + x, lambda a, x: a + x).run('key:*')
    """.replace("later2", "lambda x: x")
    assert results(cluster[0].run(script)) == [str(sum(range(COUNT)))]


# --- a trigger on all shards ---


@pytest.mark.matrix
def test_a_trigger_runs_on_all_shards(cluster: Cluster) -> None:
    script = """
    GB('CommandReader').map(lambda r: r[1] + hashtag()).register(trigger='everywhere')
    GB('CommandReader').map(lambda r: r[1] + hashtag()).register(trigger='here', mode='async_local')
    GB('CommandReader').map(lambda r: r[1] + hashtag()).register(trigger='now', mode='sync')
    """
    assert cluster[0].run(script) == "OK"
    for server, tag in zip(cluster.masters, ["06S", "8M", "63n"]):
        client = server.client()
        assert sorted(client.execute_command("RG.TRIGGER", "everywhere", "x")) == ["x06S", "x63n", "x8M"]
        assert client.execute_command("RG.TRIGGER", "here", "x") == ["x" + tag]
        assert client.execute_command("RG.TRIGGER", "now", "x") == ["x" + tag]


@pytest.mark.matrix
def test_key_events_run_where_they_happen_and_go_where_their_key_is(cluster: Cluster) -> None:
    script = """
    GB('KeysReader').map(lambda r: 'count:' + str(len(r['value']))).repartition(lambda k: k).foreach(
        lambda k: execute('INCR', k)).register('e:*', eventTypes=['set'])
    """
    assert cluster[0].run(script) == "OK"
    client = cluster.client()
    for number in range(60):
        client.set(f"e:{number}", "x" * (number % 3))
    for length in range(3):
        wait_until(lambda: client.get(f"count:{length}") == "20")
    triggered = [server.registrations()[0]["RegistrationData"] for server in cluster.masters]
    assert sum(data["numTriggered"] for data in triggered) == 60
    wait_until(lambda: sum(s.registrations()[0]["RegistrationData"]["numSuccess"] for s in cluster.masters) == 60)
    assert all(data["numTriggered"] > 0 for data in triggered)


def test_info_cluster(cluster: Cluster) -> None:
    ids = sorted(map(node_id, cluster.masters))
    for server in cluster.masters:
        reply = server.client().execute_command("RG.INFOCLUSTER")
        assert reply[:2] == ["MyId", node_id(server)] and reply[2] == "MyRunId" and len(reply[3]) == 40
        shards = info_cluster(server)
        assert sorted(shards) == ids
        assert sorted(shard["port"] for shard in shards.values()) == sorted(other.port for other in cluster.masters)
        own = shards[node_id(server)]
        assert own["runid"] == reply[3] and own["unixSocket"] == "None" and own["pendingMessages"] == 0
        ranges = sorted((shard["minHslot"], shard["maxHslot"]) for shard in shards.values())
        assert ranges == [(0, 5460), (5461, 10922), (10923, 16383)]
