"""What functions cost: RG.PYPROFILE, the durations of RG.GETEXECUTION, RG.PYSTATS.

Contract: docs/contract/commands.md 1.6, 1.15, 1.16 and 9.2, 9.21; docs/contract/python-api.md 8; nothing collected: an
empty text, our own.
"""

import re
from pathlib import Path

import pytest

from helpers import as_dict, wait_until
from probes import error_of, last_line, start

PROFILED = ["ProfileExecutions", "1"]
CALLS = """\
def inner():
    return 1

def outer(record):
    inner()
    return inner()

GB('KeysReader').map(outer).register('x*', mode='{mode}')
"""


@pytest.fixture
def profiled(borrow_server):
    """A server that profiles from the start."""
    return borrow_server(module_args=PROFILED)


def stats(server, *words):
    return server.own.execute_command("RG.PYPROFILE", "STATS", *words)


def calls(text, function):
    """How often a function was called, by the first table of a profile."""
    # ncalls tottime percall cumtime percall filename:lineno(function)
    match = re.search(rf"^ +(\d+)(?:/\d+)? +(?:[\d.]+ +){{4}}<string>:\d+\({function}\)$", text, re.MULTILINE)
    return int(match[1]) if match else 0


def fire(server, *keys):
    for key in keys:
        server.client().set(key, 1)
    server.wait_idle()


# --- RG.PYPROFILE: errors ---


@pytest.mark.parametrize(
    "words", [[], ["STATS"], ["stats"], ["RESET"], ["STATS", "s", "tottime", "x"], ["RESET", "s", "x"]]
)
def test_arity(server, words):
    server.run(CALLS.format(mode="sync"), "ID", "s")
    error = error_of(server, *words, command="RG.PYPROFILE")
    assert error == "ERR wrong number of arguments for 'rg.pyprofile' command"


@pytest.mark.parametrize("words", [["WHAT"], ["WHAT", "s"], ["", "s", "x", "y"], [b"\xff"]])
def test_wrong_subcommands(server, words):
    assert error_of(server, *words, command="RG.PYPROFILE") == "Wrong subcommand given to RG.PYPROFILE"


@pytest.mark.parametrize("words", [["STATS", "nobody"], ["RESET", "nobody"], ["STATS", "nobody", "nonsense"]])
def test_unknown_sessions(server, words):
    server.run(CALLS.format(mode="sync"), "ID", "s")
    assert error_of(server, *words, command="RG.PYPROFILE") == "session does not exists"


def test_a_session_that_only_ran_is_not_found(profiled):
    profiled.run("GB('KeysReader').run('k', noScan=True)", "ID", "s")
    assert error_of(profiled, "STATS", "s", command="RG.PYPROFILE") == "session does not exists"


def test_an_unknown_order_is_an_error_of_python(profiled):
    profiled.run(CALLS.format(mode="sync"), "ID", "s")
    fire(profiled, "x1")
    assert last_line(error_of(profiled, "STATS", "s", "nonsense", command="RG.PYPROFILE")) == "KeyError: 'nonsense'"
    profiled.client().execute_command("RG.CONFIGSET", "PythonAttemptTraceback", 0)
    error = error_of(profiled, "STATS", "s", "nonsense", command="RG.PYPROFILE")
    assert error == "Error type: <class 'KeyError'>, Value: 'nonsense'"


# --- RG.PYPROFILE: what it shows ---


@pytest.mark.parametrize("mode", ["sync", "async", "async_local"])
def test_statistics_callers_and_callees(profiled, mode):
    profiled.run(CALLS.format(mode=mode), "ID", "s")
    fire(profiled, "x1", "x2", "x3")
    text = stats(profiled, "s")
    assert re.search(r"\d+ function calls in \d+\.\d+ seconds", text)
    assert (calls(text, "outer"), calls(text, "inner")) == (3, 6)
    assert re.search(r"<string>:1\(inner\) +<- +6 .*<string>:4\(outer\)$", text, re.MULTILINE)
    assert re.search(r"<string>:4\(outer\) +-> +6 .*<string>:1\(inner\)$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("order", "heading"),
    [
        ([], "internal time"),
        (["tottime"], "internal time"),
        (["ncalls"], "call count"),
        (["cumulative"], "cumulative time"),
        (["cumtime"], "cumulative time"),
        (["name"], "function name"),
    ],
)
@pytest.mark.parametrize("word", ["STATS", "stats"])
def test_order(profiled, word, order, heading):
    profiled.run(CALLS.format(mode="sync"), "ID", "s")
    fire(profiled, "x1")
    text = profiled.client().execute_command("RG.PYPROFILE", word, "s", *order)
    assert f"Ordered by: {heading}\n" in text


def test_the_order_sorts(profiled):
    profiled.run(CALLS.format(mode="sync").replace("return 1", "sum(range(20000))"), "ID", "s")
    fire(profiled, "x1")
    by_name = stats(profiled, "s", "name")
    assert by_name.index("(inner)") < by_name.index("(outer)")
    by_cumulative = stats(profiled, "s", "cumulative")
    assert by_cumulative.index("(outer)") < by_cumulative.index("(inner)")


@pytest.mark.parametrize("order", [[], ["ncalls"]])
@pytest.mark.parametrize("is_on", [0, 1])
def test_nothing_collected_is_an_empty_text(server, is_on, order):
    server.client().execute_command("RG.CONFIGSET", "ProfileExecutions", is_on)
    server.run(CALLS.format(mode="sync"), "ID", "s")
    reply = server.raw().call("RG.PYPROFILE", "STATS", "s", *order)
    assert reply.startswith(b"$") and b"<string>" not in reply and b"Error" not in reply


def test_collects_only_while_switched_on(server):
    client = server.client()
    server.run(CALLS.format(mode="async_local"), "ID", "s")
    for is_on, expected in [(0, 0), (1, 2), (0, 2), (1, 4)]:
        client.execute_command("RG.CONFIGSET", "ProfileExecutions", is_on)
        fire(server, "x1", "x2")
        assert calls(stats(server, "s"), "outer") == expected


def test_reset(profiled):
    profiled.run(CALLS.format(mode="async_local"), "ID", "s")
    fire(profiled, "x1")
    assert profiled.raw().call("RG.PYPROFILE", "reset", "s") == b"+OK\r\n"
    assert "<string>" not in stats(profiled, "s")
    fire(profiled, "x2")
    assert calls(stats(profiled, "s"), "outer") == 1


def test_sessions_have_profiles_of_their_own(profiled):
    for name in ("a", "b"):
        profiled.run(CALLS.format(mode="sync").replace("outer", f"outer_{name}").replace("x*", f"{name}*"), "ID", name)
    fire(profiled, "a1", "b1", "b2")
    first, second = stats(profiled, "a"), stats(profiled, "b")
    assert (calls(first, "outer_a"), calls(first, "outer_b")) == (1, 0)
    assert (calls(second, "outer_a"), calls(second, "outer_b")) == (0, 2)
    profiled.client().execute_command("RG.PYPROFILE", "RESET", "a")
    assert stats(profiled, "b") == second


def test_an_upgraded_session_starts_with_an_empty_profile(profiled):
    profiled.run(CALLS.format(mode="sync"), "ID", "s")
    fire(profiled, "x1")
    profiled.run(CALLS.format(mode="sync"), "ID", "s", "UPGRADE")
    assert "<string>" not in stats(profiled, "s")


# --- what is measured ---


STEPS = {
    "map": "map(measured)",
    "filter": "filter(measured)",
    "flatmap": "flatmap(measured)",
    "foreach": "foreach(measured)",
    "accumulate": "accumulate(measured)",
    "repartition": "repartition(measured)",
    "groupby extractor": "groupby(measured, lambda k, a, r: r)",
    "groupby reducer": "groupby(lambda r: 'k', measured)",
    "localgroupby reducer": "localgroupby(lambda r: 'k', measured)",
    "batchgroupby extractor": "batchgroupby(measured, lambda k, r: r)",
    "batchgroupby reducer": "batchgroupby(lambda r: 'k', measured)",
    "aggregate": "aggregate(0, measured, lambda a, r: r)",
    "aggregate combination": "aggregate(0, lambda a, r: r, measured)",
    "aggregateby": "aggregateby(lambda r: 'k', 0, measured, lambda k, a, r: r)",
    "aggregateby combination": "aggregateby(lambda r: 'k', 0, lambda k, a, r: r, measured)",
    "countby": "countby(measured)",
    "avg": "avg(measured)",
}


@pytest.mark.parametrize("mode", ["sync", "async_local"])
@pytest.mark.parametrize("step", STEPS)
def test_callbacks_of_steps_are_measured(profiled, step, mode):
    script = f"def measured(*words):\n    return 1\nGB('KeysReader').{STEPS[step]}.register('x*', mode='{mode}')"
    profiled.run(script, "ID", "s")
    fire(profiled, "x1", "x2")
    assert profiled.registrations()[0]["RegistrationData"]["lastError"] is None
    assert calls(stats(profiled, "s"), "measured") == 2


def test_on_registered_is_measured_and_the_script_is_not(profiled):
    script = """\
def body():
    execute('PING')
def ready():
    pass
body()
GB('KeysReader').map(lambda record: 1).register('x*', onRegistered=ready)
body()
"""
    profiled.run(script, "ID", "s")
    text = stats(profiled, "s")
    assert (calls(text, "ready"), calls(text, "body")) == (1, 0)
    assert "<module>" not in text


def test_a_run_beside_registrations_is_measured(profiled):
    profiled.run(CALLS.format(mode="sync") + "GB('KeysReader').map(outer).run('k', noScan=True)", "ID", "s")
    profiled.wait_idle()
    assert calls(stats(profiled, "s"), "outer") == 1


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_functions_that_raise_are_measured_and_fail_as_ever(server, mode):
    server.run(f"def fail(r):\n    raise ValueError('no')\nGB().map(fail).register('x*', mode='{mode}')", "ID", "s")
    errors = []
    for is_on in (0, 1, 1):
        server.client().execute_command("RG.CONFIGSET", "ProfileExecutions", is_on)
        fire(server, "x1")
        errors.append(server.registrations()[0]["RegistrationData"]["lastError"])
    assert errors == errors[:1] * 3
    assert last_line(errors[0]) == "ValueError: no"
    assert calls(stats(server, "s"), "fail") == 2


def test_functions_may_profile_themselves_after_an_error(server):
    # CPython 3.11 repeats the start of a traced function for ever while a stop that was taken back seems to wait.
    server.run(
        """
        import cProfile
        def work(record):
            if record['key'] == 'x1':
                raise ValueError
            cProfile.Profile().runcall(lambda: None)
        GB('KeysReader').foreach(work).register('x*', mode='async_local', inorder=True)
        """
    )
    fire(server, "x1", "x2", "x3")
    data = server.registrations()[0]["RegistrationData"]
    assert (data["numFailures"], data["numSuccess"], data["lastError"]) == (1, 2, None)


def test_a_function_that_causes_a_function(profiled):
    script = """\
def first(record):
    execute('SET', 'y' + record['key'], 1)
def second(record):
    execute('RPUSH', 'out', record['key'])
GB('KeysReader').foreach(first).register('x*', mode='async_local')
GB('KeysReader').foreach(second).register('y*', mode='sync')
"""
    profiled.run(script, "ID", "s")
    fire(profiled, "x1", "x2")
    assert (calls(stats(profiled, "s"), "first"), calls(stats(profiled, "s"), "second")) == (2, 2)
    # Several workers run the first function, so that either key may come first.
    assert sorted(profiled.client().lrange("out", 0, -1)) == ["yx1", "yx2"]


def test_several_workers_at_once(profiled):
    script = """\
import time
def work(record):
    time.sleep(0.001)
    return len([inner() for _ in range(10)])
def inner():
    return 1
GB('KeysReader').map(work).register('x*', mode='async_local')
"""
    profiled.run(script, "ID", "s")
    client = profiled.client()
    for number in range(200):
        client.set(f"x{number}", 1)
        if number % 20 == 0:
            stats(profiled, "s")
    profiled.wait_idle(30)
    data = profiled.registrations()[0]["RegistrationData"]
    assert (data["numSuccess"], data["numFailures"], data["lastError"]) == (200, 0, None)
    # From Python 3.12 on only one profiler can be at work at a time.
    text = stats(profiled, "s")
    assert 1 <= calls(text, "work") <= 200
    assert calls(text, "inner") == 10 * calls(text, "work")


def test_reset_while_functions_run(profiled):
    profiled.run(CALLS.format(mode="async_local"), "ID", "s")
    client = profiled.client()
    for number in range(200):
        client.set(f"x{number}", 1)
        client.execute_command("RG.PYPROFILE", "RESET", "s")
    profiled.wait_idle()
    data = profiled.registrations()[0]["RegistrationData"]
    assert (data["numSuccess"], data["numFailures"]) == (200, 0)
    assert calls(stats(profiled, "s"), "outer") <= 200


# --- RG.GETEXECUTION: durations ---


SLOW = """
import time
def slow(record):
    time.sleep(0.02)
    return record
GB('KeysReader').map(lambda record: 1).map(slow).map(lambda record: 2).run('k', noScan=True)
"""


@pytest.mark.parametrize("is_on", [0, 1])
def test_durations_of_steps(borrow_server, is_on):
    server = borrow_server(module_args=["ProfileExecutions", is_on])
    execution = start(server, SLOW, "done")
    [entry] = server.client().execute_command("RG.GETEXECUTION", execution)
    plan = as_dict(entry[3])
    steps = [as_dict(step) for step in plan["steps"]]
    [slow] = [step["duration"] for step in steps if step["arg"].startswith("<function slow")]
    durations = [step["duration"] for step in steps]
    assert plan["total_duration"] >= 20
    if is_on:
        assert 20 <= slow <= plan["total_duration"]
        assert sum(durations) <= plan["total_duration"]
    else:
        assert set(durations) == {0}


def test_durations_of_several_records_add_up(profiled):
    profiled.client().mset({f"key:{number}": 1 for number in range(5)})
    execution = start(profiled, SLOW.replace("run('k', noScan=True)", "run('key:*')"), "done")
    [entry] = profiled.client().execute_command("RG.GETEXECUTION", execution)
    steps = [as_dict(step) for step in as_dict(entry[3])["steps"]]
    assert 100 <= max(step["duration"] for step in steps) <= as_dict(entry[3])["total_duration"]


def test_the_reader_is_always_measured(server):
    script = "import time\ndef read():\n    time.sleep(0.02)\n    yield 1\nGB('PythonReader').run(read)"
    execution = start(server, script, "done")
    [entry] = server.client().execute_command("RG.GETEXECUTION", execution)
    plan = as_dict(entry[3])
    assert 20 <= plan["read_duration"] <= plan["total_duration"]


# --- RG.PYSTATS ---


MEGABYTES = 1_000_000
HOLD = "held = bytearray(50_000_000)\nGB('KeysReader').map(lambda record: 1).register('x*')"


def memory(server):
    """The figures of RG.PYSTATS, checked."""
    reply = as_dict(server.client().execute_command("RG.PYSTATS"))
    assert list(reply) == ["TotalAllocated", "PeakAllocated", "CurrAllocated"]
    total, peak, current = reply.values()
    assert total >= peak >= current
    return total, peak, current


@pytest.fixture
def counted(server):
    """A server whose allocator a module may use although it can fail (Redis 7.0)."""
    if not server.is_valkey and server.version < (7, 0):
        pytest.skip("Python's memory is not taken from this server")
    return server


def used_memory(server):
    return server.own.info("memory")["used_memory"]


def release(server):
    for entry in server.registrations():
        server.client().execute_command("RG.UNREGISTER", entry["id"])
    server.run("import gc\ngc.collect()")


def test_shape(server):
    names = ["TotalAllocated", "PeakAllocated", "CurrAllocated"]
    pattern = r"\*6\r\n" + "".join(rf"\${len(name)}\r\n{name}\r\n:\d+\r\n" for name in names)
    assert re.fullmatch(pattern.encode(), server.raw().call("RG.PYSTATS", "ignored"))
    memory(server)


def test_figures_follow_what_scripts_hold(counted):
    total, peak, current = memory(counted)
    counted.run(HOLD)
    held_total, held_peak, held_current = memory(counted)
    for before, after in ((total, held_total), (current, held_current)):
        assert 50 * MEGABYTES <= after - before < 60 * MEGABYTES
    assert held_peak >= held_current
    release(counted)
    wait_until(lambda: memory(counted)[2] < current + 5 * MEGABYTES)
    last_total, last_peak, _ = memory(counted)
    assert last_total >= held_total
    assert last_peak >= held_peak >= peak


def test_the_peak_is_not_what_was_allocated_altogether(counted):
    before = memory(counted)
    for _ in range(5):
        counted.run("held = bytearray(50_000_000)\ndel held")
    after = memory(counted)
    assert after[0] - before[0] >= 250 * MEGABYTES
    assert after[1] < before[1] + 100 * MEGABYTES


def test_background_threads_are_counted(counted):
    _, _, current = memory(counted)
    counted.run("held = []\nGB('KeysReader').foreach(lambda r: held.append(bytearray(50_000_000))).register('x*')")
    fire(counted, "x1")
    assert memory(counted)[2] - current >= 50 * MEGABYTES
    release(counted)
    wait_until(lambda: memory(counted)[2] < current + 5 * MEGABYTES)


@pytest.mark.matrix
def test_used_memory_of_the_server_includes_it(counted):
    before = used_memory(counted)
    counted.run(HOLD)
    assert 50 * MEGABYTES <= used_memory(counted) - before < 70 * MEGABYTES
    release(counted)
    wait_until(lambda: used_memory(counted) < before + 10 * MEGABYTES)


@pytest.mark.matrix
def test_without_overridden_allocators_all_is_zero(borrow_server):
    server = borrow_server(module_args=["OverridePythonAllocators", "0"])
    before = used_memory(server)
    server.run(HOLD)
    assert memory(server) == (0, 0, 0)
    assert used_memory(server) - before < 10 * MEGABYTES


@pytest.fixture
def limited(counted):
    """The same on a machine that does not promise more memory than it can have."""
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "1":
        pytest.skip("this machine promises any amount of memory")
    return counted


TOO_MUCH = ["bytes(1 << 45)", "bytearray(1 << 45)", "bytearray(b'x') * (1 << 45)", "[0] * (1 << 42)", "'x' * (1 << 45)"]


@pytest.mark.matrix
@pytest.mark.parametrize("where", ["script", "step"])
def test_an_allocation_that_cannot_be_had_is_an_error_of_the_function(limited, where):
    before = memory(limited)
    for expression in TOO_MUCH:
        if where == "script":
            error = error_of(limited, expression)
        else:
            results, [error] = limited.run(f"GB('KeysReader').map(lambda r: {expression}).run('k', noScan=True)")
            assert results == []
        assert last_line(error) == "MemoryError"
    assert limited.run("GB('KeysReader').count().run('k', noScan=True)") == [["1"], []]
    assert memory(limited)[1] < before[1] + 100 * MEGABYTES


@pytest.mark.matrix
def test_growing_beyond_all_memory_keeps_what_there_was(limited):
    script = """
        held = bytearray(b'kept')
        try:
            held *= 1 << 44
        except MemoryError:
            execute('SET', 'out', held)
        """
    limited.run(script)
    assert limited.client().get("out") == "kept"
