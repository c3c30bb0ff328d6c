"""Executions as clients see them: list, results, details, abort, drop, how long they are kept.

Contract: docs/contract/commands.md 0.3, 1.4 to 1.9, 2 and 3.
"""

import re

import pytest

from helpers import as_dict, wait_until
from probes import BUSY, blocked_clients, error_of, executions, in_step, last_line, refused, start, status

DONE = "GB('KeysReader').map(lambda record: record['key']).run('k', noScan=True)"
UNKNOWN = "0" * 40 + "-999"
NO_PLAN = "execution plan does not exist"

LOOP = "def loop(record):\n    while True:\n        {}\nimport time\nGB('KeysReader').map(loop).run('k', noScan=True)"


def done(server, script=DONE):
    """The id of a finished execution."""
    return start(server, script, "done")


def release(server, execution):
    """Ends a BUSY execution; returns its results."""
    server.client().set("go", 1)
    return server.own.execute_command("RG.GETRESULTSBLOCKING", execution)


# --- list and errors common to all ---


def test_dump_executions(server):
    assert server.raw().call("RG.DUMPEXECUTIONS") == b"*0\r\n"
    first, second = start(server, BUSY), done(server)
    assert executions(server) == {
        first: {"executionId": first, "status": "running", "registered": 0},
        second: {"executionId": second, "status": "done", "registered": 0},
    }


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("RG.GETRESULTS", NO_PLAN),
        ("RG.GETRESULTSBLOCKING", NO_PLAN),
        ("RG.GETEXECUTION", NO_PLAN),
        ("RG.DROPEXECUTION", NO_PLAN),
        ("RG.ABORTEXECUTION", "execution does not exist"),
    ],
)
def test_unknown_ids(server, command, error):
    known = done(server)
    texts = [UNKNOWN, known + "abc", known[:41], "1" + known[1:], known[:41] + "9" * 30, "x", "", "-" * 42, b"\xff\0"]
    assert {error_of(server, text, command=command) for text in texts} == {error}
    assert status(server, known) == "done"


@pytest.mark.parametrize(
    ("command", "counts"),
    [
        ("RG.GETRESULTS", [0]),
        ("RG.GETRESULTSBLOCKING", [0, 2]),
        ("RG.GETEXECUTION", [0, 4]),
        ("RG.DROPEXECUTION", [0, 2]),
        ("RG.ABORTEXECUTION", [0, 2]),
    ],
)
def test_arity(server, command, counts):
    for count in counts:
        error = error_of(server, *["x"] * count, command=command)
        assert error == f"ERR wrong number of arguments for '{command.lower()}' command"


# --- results ---


def test_results_of_a_running_execution(server):
    execution = start(server, BUSY)
    assert error_of(server, execution, command="RG.GETRESULTS") == "execution is still running"
    assert release(server, execution) == [["went"], []]


def test_several_clients_wait_for_one_execution(server):
    execution = start(server, BUSY)
    waiting = [server.raw() for _ in range(3)]
    for raw in waiting:
        raw.send("RG.GETRESULTSBLOCKING", execution)
    wait_until(lambda: blocked_clients(server) == 3)
    server.client().set("go", 1)
    assert [raw.read() for raw in waiting] == [b"*2\r\n*1\r\n$4\r\nwent\r\n*0\r\n"] * 3
    assert status(server, execution) == "done"


@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_waiting_client_may_go(server, end):
    execution = start(server, BUSY)
    raw = server.raw()
    identifier = int(raw.call("CLIENT", "ID")[1:])
    raw.send("RG.GETRESULTSBLOCKING", execution)
    wait_until(lambda: blocked_clients(server) == 1)
    raw.close() if end == "close" else server.client().execute_command("CLIENT", "KILL", "ID", identifier)
    wait_until(lambda: blocked_clients(server) == 0)
    assert status(server, execution) == "running"
    assert release(server, execution) == [["went"], []]


def test_a_run_is_dropped_also_when_its_client_has_gone(server):
    raw = server.raw()
    raw.send("RG.PYEXECUTE", BUSY)
    wait_until(lambda: blocked_clients(server) == 1)
    raw.close()
    wait_until(lambda: blocked_clients(server) == 0)
    assert len(executions(server)) == 1
    server.client().set("go", 1)
    wait_until(lambda: executions(server) == {})


# --- details ---


def details(server, execution, *words):
    [entry] = server.client().execute_command("RG.GETEXECUTION", execution, *words)
    assert entry[0::2] == ["shard_id", "execution_plan"]
    assert entry[1] == "0" * 40
    plan = as_dict(entry[3])
    order = "status shards_received shards_completed results errors total_duration read_duration steps"
    assert " ".join(plan) == order
    return plan


def test_details_of_a_finished_execution(server):
    execution = done(server, "def price(record):\n    return 1\nGB('KeysReader').map(price).run('k', noScan=True)")
    plan = details(server, execution)
    assert [plan[key] for key in ("status", "shards_received", "shards_completed")] == ["done", 0, 0]
    assert (plan["results"], plan["errors"]) == (1, [])
    assert plan["total_duration"] >= plan["read_duration"] >= 0
    steps = [as_dict(step) for step in plan["steps"]]
    assert all(list(step) == ["type", "duration", "name", "arg"] for step in steps)
    assert [step["type"] for step in steps] == ["collect", "map", "map", "map"]  # last first, the conversion included
    assert re.fullmatch("<function price at 0x[0-9a-f]+>", steps[2]["arg"])
    assert (steps[0]["name"], steps[0]["arg"], steps[3]["arg"]) == ("collect", "", "")
    assert {step["duration"] for step in steps} == {0}  # ProfileExecutions is off


def test_details_while_running_and_with_an_error(server):
    execution = start(server, BUSY)
    plan = details(server, execution, "shard")
    assert (plan["status"], plan["results"], plan["errors"]) == ("running", -1, [])
    execution = done(server, "GB('KeysReader').map(lambda r: flat_error('no')).run('k', noScan=True)")
    plan = details(server, execution, "SHARD")
    assert (plan["status"], plan["results"], plan["errors"]) == ("done", 0, ["no"])


@pytest.mark.parametrize("command", ["RG.DUMPEXECUTIONS", "RG.GETEXECUTION", "RG.GETRESULTS"])
def test_replies_are_the_same_in_both_protocols(server, command):
    execution = done(server)
    raw = server.raw()
    old = raw.call(command, execution)
    raw.call("HELLO", 3)
    assert raw.call(command, execution) == old


def test_details_of_a_cluster(server):
    execution = done(server)
    no_cluster = "no cluster detected - use `RG.GETEXECUTION <id> [SHARD]` instead"
    assert error_of(server, execution, "CLUSTER", command="RG.GETEXECUTION") == no_cluster
    assert error_of(server, execution, "what", command="RG.GETEXECUTION") == "unknown subcommand"


# --- abort ---


@pytest.mark.parametrize("body", ["pass", "time.sleep(0.01)", "execute('PING')"])
def test_abort_of_a_running_function(server, body):
    execution = start(server, LOOP.format(body))
    assert server.raw().call("RG.ABORTEXECUTION", execution) == b"+OK\r\n"
    assert status(server, execution) == "done"
    results, [error] = server.client().execute_command("RG.GETRESULTS", execution)
    assert results == []
    assert last_line(error).startswith("gears.forcestopped")


def test_abort_leaves_the_worker_usable(start_server):
    server = start_server(module_args=["ExecutionThreads", "1"])
    for _ in range(20):
        server.client().execute_command("RG.ABORTEXECUTION", start(server, LOOP.format("pass")))
        assert server.run(DONE) == [["k"], []]


def test_abort_before_the_start(start_server):
    server = start_server(module_args=["ExecutionThreads", "1"])
    busy = start(server, BUSY)
    queued = start(server, "GB().foreach(lambda r: execute('SET', 'ran', 1)).run('k', noScan=True)", "created")
    waiting = server.raw()
    waiting.send("RG.GETRESULTSBLOCKING", queued)
    wait_until(lambda: blocked_clients(server) == 1)
    assert server.client().execute_command("RG.ABORTEXECUTION", queued) == "OK"
    assert status(server, queued) == "aborted"
    assert waiting.read() == b"*2\r\n*0\r\n*0\r\n"
    assert release(server, busy) == [["went"], []]
    assert server.run(DONE) == [["k"], []]
    assert server.client().get("ran") is None


def test_a_function_that_catches_its_abort_has_its_result(server):
    server.run(
        """
        import redisgears

        def work(record):
            execute('SET', 'begun', 1)
            try:
                while True:
                    pass
            except redisgears.GearsForceStopped:
                return 'caught'

        GB('KeysReader').map(work).register('x*', mode='async_local')
        """
    )
    server.client().set("x1", 1)
    wait_until(lambda: server.own.get("begun"))
    [execution] = executions(server)
    assert server.client().execute_command("RG.ABORTEXECUTION", execution) == "OK"
    wait_until(lambda: status(server, execution) not in ("created", "running"))
    assert (status(server, execution), server.client().execute_command("RG.GETRESULTS", execution)) == ("done", [["caught"], []])
    data = server.registrations()[0]["RegistrationData"]
    assert [int(data[name]) for name in ("numTriggered", "numSuccess", "numFailures", "numAborted")] == [1, 1, 0, 0]


def test_abort_of_a_finished_execution_is_ok(server):
    execution = done(server)
    assert server.client().execute_command("RG.ABORTEXECUTION", execution) == "OK"
    assert server.client().execute_command("RG.GETRESULTS", execution) == [["k"], []]


# --- drop and retention ---


def test_drop(server):
    execution = start(server, BUSY)
    error = "can not drop a not yet finished execution, abort it first."
    assert error_of(server, execution, command="RG.DROPEXECUTION") == error
    release(server, execution)
    assert server.client().execute_command("RG.DROPEXECUTION", execution) == "OK"
    assert error_of(server, execution, command="RG.DROPEXECUTION") == NO_PLAN
    assert executions(server) == {}


@pytest.mark.parametrize("at_load", [True, False])
def test_max_executions(start_server, at_load):
    server = start_server(module_args=["MaxExecutions", "3"] if at_load else [])
    server.client().execute_command("RG.CONFIGSET", "MaxExecutions", 3)
    made = [done(server) for _ in range(6)]
    assert sorted(executions(server)) == sorted(made[-3:])


def test_max_executions_per_registration(start_server):
    server = start_server(module_args=["MaxExecutionsPerRegistration", "2"])
    server.run("GB('KeysReader').map(lambda r: r['key']).register('x*', mode='async_local')")
    for index in range(5):
        server.client().set(f"x{index}", 1)
        server.wait_idle()
    kept = [execution for execution, entry in executions(server).items() if entry["registered"] == 1]
    results = [server.client().execute_command("RG.GETRESULTS", execution) for execution in kept]
    assert sorted(results) == [[["x3"], []], [["x4"], []]]


# --- transactions, scripts, functions ---


def test_blocking_commands_are_refused_in_a_transaction_before_they_act(server):
    execution = start(server, BUSY)
    raw = server.raw()
    raw.call("MULTI")
    raw.call("RG.ABORTEXECUTION", execution)
    raw.call("RG.GETRESULTSBLOCKING", execution)
    assert raw.call("EXEC") == b"*2\r\n" + b"-ERR Blocking module command called from transaction\r\n" * 2
    assert release(server, execution) == [["went"], []]


def test_blocking_commands_are_refused_in_lua_before_they_act(server):
    execution = start(server, BUSY)
    for command in ("RG.ABORTEXECUTION", "RG.GETRESULTSBLOCKING"):
        error = refused(server.client(), "EVAL", f"return redis.call('{command}', ARGV[1])", 0, execution)
        # The second text is the server's own, for commands flagged noscript.
        assert "Blocking module command called from Lua script" in error or "not allowed from script" in error
    assert release(server, execution) == [["went"], []]


def test_results_of_a_finished_execution_are_had_in_a_transaction(server):
    execution = done(server)
    raw = server.raw()
    raw.call("MULTI")
    raw.call("RG.GETRESULTSBLOCKING", execution)
    assert raw.call("EXEC") == b"*1\r\n*2\r\n*1\r\n$1\r\nk\r\n*0\r\n"


def test_functions_inspect_executions(server):
    execution = done(server)
    body = f"return [execute('RG.GETRESULTS', '{execution}'), len(execute('RG.DUMPEXECUTIONS'))]"
    assert in_step(server, body) == [[["k"], []], 2]


@pytest.mark.parametrize("command", ["RG.ABORTEXECUTION", "RG.GETRESULTSBLOCKING"])
def test_functions_cannot_call_blocking_commands(server, command):
    execution = start(server, BUSY)
    body = f"""
        try:
            execute('{command}', '{execution}')
        except redisgears.GearsError as error:
            return 'refused'
        """
    assert in_step(server, body) == "refused"
    assert release(server, execution) == [["went"], []]


def test_executions_beyond_max_executions_go_when_they_end(start_server) -> None:
    """Those that run or wait are not given up; the oldest ones are forgotten as soon as they have ended."""
    server = start_server(module_args=["MaxExecutions", "2", "ExecutionThreads", "1"])
    identifiers = [start(server, BUSY)] + [server.run(BUSY, "UNBLOCKING") for _ in range(5)]
    assert list(executions(server)) == identifiers
    server.client().set("go", 1)
    wait_until(lambda: [entry["status"] for entry in executions(server).values()] == ["done", "done"])
    assert list(executions(server)) == identifiers[-2:]
    assert server.client().execute_command("RG.GETRESULTS", identifiers[-1]) == [["went"], []]
    later = [server.run("GB('KeysReader').run('k', noScan=True)", "UNBLOCKING") for _ in range(2)]
    server.wait_idle()
    assert list(executions(server)) == later


# --- runs that are over before anybody else can see them ---


def test_a_sync_function_sees_its_own_execution(server) -> None:
    server.run("""
def look(record):
    (own,) = execute('RG.DUMPEXECUTIONS')
    execute('RPUSH', 'log', own[1], own[3])
GB('KeysReader').foreach(look).register('x*', mode='sync')
""")
    server.client().set("x1", 1)
    (execution,) = executions(server)
    assert server.client().lrange("log", 0, -1) == [execution, "running"]
    assert executions(server)[execution] == {"executionId": execution, "status": "done", "registered": 1}


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_kept_results_are_what_they_were_at_the_end(server, mode: str) -> None:
    """Their text is made when somebody asks for it, unless a function can still change what it is made of."""
    server.run(f"""
kept = []
def keep(record):
    while kept:
        kept.pop()(record)
    if record['key'] == 'x1':
        kept.append(lambda other: record.update(value='other'))
    if record['key'] == 'x2':
        items = record['value']
        kept.append(lambda other: items.append('other'))
GB('KeysReader').foreach(keep).register('x*', mode='{mode}')
""")
    client = server.client()
    client.set("x1", "one")
    server.wait_idle()
    client.rpush("x2", "two")
    server.wait_idle()
    client.hset("x3", "name", "th\u00f6ree")
    server.wait_idle()
    expected = [
        "{'key': 'x1', 'event': 'set', 'type': 'string', 'value': 'one'}",
        "{'key': 'x2', 'event': 'rpush', 'type': 'list', 'value': ['two']}",
        "{'key': 'x3', 'event': 'hset', 'type': 'hash', 'value': {'name': 'th\u00f6ree'}}",
    ]
    for _ in range(2):
        found = [client.execute_command("RG.GETRESULTS", execution) for execution in executions(server)]
        assert found == [[[text], []] for text in expected]
    for execution in executions(server):
        ((_, _, _, plan, *_),) = client.execute_command("RG.GETEXECUTION", execution)
        assert as_dict(plan)["results"] == 1


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_a_run_knows_nothing_of_the_one_before(server, mode: str) -> None:
    """A run that nobody has looked at leaves its execution to the next one: neither its command, nor its error, nor its result goes with it."""
    server.run(f"""
def answer(record):
    if record['key'] == 'x:fails':
        raise ValueError('no')
    try:
        override_reply('got ' + record['key'])
        return ' '.join(get_command())
    except redisgears.GearsError as error:
        return 'alone'
import redisgears
GB('KeysReader').map(answer).register('x:*', eventTypes=['keymiss'], commands=['get'], mode='{mode}')
""")
    client = server.client()

    def in_transaction(key: str) -> str | None:
        with client.pipeline(transaction=True) as commands:
            (reply,) = commands.get(key).execute()
        server.wait_idle()
        return reply

    assert [client.get(f"x:{name}") for name in ("1", "2", "fails", "3")] == ["got x:1", "got x:2", None, "got x:3"]
    # There only functions of mode sync are linked.
    linked = mode == "sync"
    assert in_transaction("x:4") == ("got x:4" if linked else None)
    assert client.get("x:5") == "got x:5"
    server.wait_idle()
    found = [client.execute_command("RG.GETRESULTS", execution) for execution in executions(server)]
    fourth = "GET x:4" if linked else "alone"
    results = [["GET x:1"], ["GET x:2"], [], ["GET x:3"], [fourth], ["GET x:5"]]
    assert [result for result, _ in found] == results
    assert [len(errors) for _, errors in found] == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("looks", ["before", "while it runs", "behind"])
def test_an_execution_is_the_same_whenever_somebody_looks(server, looks: str) -> None:
    server.run("""
import time
def wait(record):
    while not execute('EXISTS', 'go' + record['key']):
        time.sleep(0.001)
    return record['key']
GB('KeysReader').map(wait).register('x*', eventTypes=['set'], mode='async_local')
""")
    client = server.client()
    for number in range(3):
        client.set(f"x{number}", 1)
        if looks == "before":
            assert len(executions(server)) == number + 1
        if looks == "while it runs":
            wait_until(lambda: "running" in [entry["status"] for entry in executions(server).values()])
        client.set(f"gox{number}", 1)
        if looks == "while it runs":
            assert client.execute_command("RG.GETRESULTSBLOCKING", list(executions(server))[-1]) == [[f"x{number}"], []]
        server.wait_idle()
    listed = executions(server)
    assert [(entry["status"], entry["registered"]) for entry in listed.values()] == [("done", 1)] * 3
    for number, execution in enumerate(listed):
        assert client.execute_command("RG.GETRESULTS", execution) == [[f"x{number}"], []]
        ((_, _, _, plan, _, read),) = client.execute_command("RG.GETEXECUTION", execution, "VERBOSE")
        plan = as_dict(plan)
        assert (plan["status"], plan["results"], plan["errors"], read) == ("done", 1, [], 1)
    first, *others = listed
    assert client.execute_command("RG.DROPEXECUTION", first) == "OK"
    assert client.execute_command("RG.ABORTEXECUTION", others[0]) == "OK"
    assert list(executions(server)) == others


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_runs_of_two_registrations_are_kept_apart(start_server, mode: str) -> None:
    """Each has its own limit, all together have one, and those of a registration go with it."""
    server = start_server(module_args=["MaxExecutionsPerRegistration", "3", "MaxExecutions", "5"])
    for name in "xy":
        server.run(f"GB('KeysReader').map(lambda r: r['key']).register('{name}*', eventTypes=['set'], mode='{mode}')", "ID", name)

    def kept() -> list[str]:
        found = [server.client().execute_command("RG.GETRESULTS", execution) for execution in executions(server)]
        return [result for (result,), _ in found]

    for key in ("x1", "y1", "x2", "y2", "x3", "x4", "y3"):
        server.client().set(key, 1)
        server.wait_idle()
    assert kept() == ["x2", "y2", "x3", "x4", "y3"]
    registrations = server.client().execute_command("RG.DUMPREGISTRATIONS")
    server.client().execute_command("RG.UNREGISTER", as_dict(registrations[0])["id"])
    assert kept() == ["y2", "y3"]
