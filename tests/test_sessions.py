"""Sessions: RG.PYDUMPSESSIONS, replacing one (UPGRADE, REPLACE_WITH), PD in every state, the end of a session.

Contract: docs/contract/commands.md 1.2, 1.10, 1.14 and 4; an upgrade that registers nothing, TS, PD, refCount:
docs/contract/README.md.
"""

import ast

import pytest

from helpers import as_dict, wait_until
from probes import blocked_clients, error_of, executions, script_error, session, start

REPLACING = pytest.mark.parametrize(
    "options", [["ID", "s", "UPGRADE"], ["ID", "t", "REPLACE_WITH", "s"]], ids=["UPGRADE", "REPLACE_WITH"]
)
RUN = "GB('KeysReader').map(lambda record: record['key']).run('k', noScan=True)"
# A function that works until the key `go` exists.
WAIT = """
import time

def wait(record):
    while not execute('GET', 'go'):
        time.sleep(0.001)
    return record['key']
"""
BUSY = f"{WAIT}\nGB('KeysReader').foreach(wait).register('busy*', mode='async_local')\n"


def counting(counter, prefix="x*", more=""):
    """A script that counts the events of a prefix in the key `counter`."""
    count = f"foreach(lambda record: execute('INCR', '{counter}'))"
    return f"GB('KeysReader').{count}.register('{prefix}', mode='sync'{more})\n"


def dump(server, *words):
    """RG.PYDUMPSESSIONS with its entries as dicts."""
    reply = server.client().execute_command("RG.PYDUMPSESSIONS", *words)
    return [as_dict(entry) if isinstance(entry, list) else entry for entry in reply]


def ids(server, *words):
    return [entry["ID"] for entry in dump(server, *words)]


def registered(server):
    """The ids of all registrations."""
    return [entry["id"] for entry in server.registrations()]


def unregister_all(server):
    for identifier in registered(server):
        server.client().execute_command("RG.UNREGISTER", identifier)


def occupy(server, key="busy"):
    """Lets the registration of BUSY work on `key`, until the key `go` exists."""
    known = set(executions(server))
    server.client().set(key, 1)
    wait_until(lambda: [e for i, e in executions(server).items() if i not in known and e["status"] == "running"])


def events(server, *keys):
    """Causes an event for each key, one after the other, and waits until all is done."""
    for key in keys:
        server.client().set(key, 1)
        server.wait_idle()


# --- RG.PYDUMPSESSIONS ---


@pytest.mark.parametrize("words", [[], ["VERBOSE"], ["DEAD"], ["TS"], ["SESSIONS"], ["VERBOSE", "DEAD", "SESSIONS"]])
@pytest.mark.parametrize("protocol", [2, 3])
def test_no_sessions(server, protocol, words):
    raw = server.raw()
    raw.call("HELLO", protocol)
    assert raw.call("RG.PYDUMPSESSIONS", *words) == b"*0\r\n"


def test_a_whole_entry(server):
    server.run(counting("n"), "ID", "greeter", "DESCRIPTION", "demo")
    assert server.client().execute_command("RG.PYDUMPSESSIONS") == [
        [
            *("ID", "greeter", "sessionDescription", "demo", "refCount", 1, "linked", "primary", "dead", "false"),
            *("requirementInstallationNeeded", 0, "requirements", [], "registrations", registered(server)),
        ]
    ]


@pytest.mark.parametrize(("protocol", "nil"), [(2, b"$-1\r\n"), (3, b"_\r\n")])
def test_without_description(server, protocol, nil):
    server.run(counting("n"), "ID", "s")
    raw = server.raw()
    raw.call("HELLO", protocol)
    head = b"*1\r\n*16\r\n$2\r\nID\r\n$1\r\ns\r\n$18\r\nsessionDescription\r\n" + nil + b"$8\r\nrefCount\r\n:1\r\n"
    assert raw.call("RG.PYDUMPSESSIONS").startswith(head)


@pytest.mark.parametrize("word", ["VERBOSE", "verbose"])
def test_verbose_shows_registrations_without_pd(server, word):
    server.run(counting("n", more=", eventTypes=['set']") + counting("n", "y*"), "ID", "s")
    events(server, "x1")
    expected = []
    for entry in server.client().execute_command("RG.DUMPREGISTRATIONS"):
        place = entry.index("PD")
        expected.append(entry[:place] + entry[place + 2 :])
    [found] = dump(server, word)
    assert sorted(found["registrations"]) == sorted(expected)
    assert [len(entry) for entry in found["registrations"]] == [10, 10]
    assert found["requirements"] == []


def test_live_sessions_are_sorted_by_the_bytes_of_their_ids(server):
    for identifier in ["b", "a_", "", "B", "a-", "9", "a", "10"]:
        server.run(counting("n"), "ID", identifier)
    assert ids(server) == ["", "10", "9", "B", "a", "a-", "a_", "b"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["b", "a"], ["b", "a"]),
        (["a", "a"], ["a", "a"]),
        ([], []),
        (["nobody", "a"], ["Session nobody does not exists", "a"]),
        (["A", ""], ["Session A does not exists", "Session  does not exists"]),
        (["VERBOSE", "b", "DEAD"], ["Session VERBOSE does not exists", "b", "Session DEAD does not exists"]),
    ],
)
@pytest.mark.parametrize("before", [[], ["DEAD"], ["VERBOSE"], ["ts", "verbose"]])
def test_named_sessions_come_in_the_order_asked(server, before, asked, expected):
    for identifier in ["a", "b"]:
        server.run(counting("n"), "ID", identifier)
    entries = dump(server, *before, "sessions", *asked)
    assert [entry["ID"] if isinstance(entry, dict) else entry for entry in entries] == expected


def test_an_unknown_session_is_a_bulk_string(server):
    expected = b"*1\r\n$30\r\nSession nobody does not exists\r\n"
    assert server.raw().call("RG.PYDUMPSESSIONS", "SESSIONS", "nobody") == expected


@pytest.mark.parametrize(
    ("words", "unknown"), [(["all"], "all"), (["VERBOSE", "x", "y"], "x"), (["x", "SESSIONS", "s"], "x"), ([""], "")]
)
def test_an_unknown_option(server, words, unknown):
    assert error_of(server, *words, command="RG.PYDUMPSESSIONS") == f"Unknown option {unknown}"


# --- what is listed, and what refCount counts ---


@pytest.mark.parametrize("script", ["x = 1", "kept = GB('KeysReader')", RUN, "GB('KeysReader').register('x')\nraise E"])
def test_what_is_not_listed(server, script):
    server.raw().call("RG.PYEXECUTE", script, "ID", "s")
    assert dump(server) == dump(server, "DEAD") == []


def test_a_run_does_not_list_its_session(server):
    server.run(f"{WAIT}\nGB('KeysReader').map(wait).run('k', noScan=True)", "ID", "s", "UNBLOCKING")
    wait_until(lambda: [entry["status"] for entry in executions(server).values()] == ["running"])
    assert dump(server) == []
    assert server.run(counting("n"), "ID", "s") == "OK"


@pytest.mark.parametrize("number", [1, 3])
def test_registrations_are_counted(server, number):
    server.run(f"kept = GB('KeysReader')\n{counting('n') * number}", "ID", "s")
    [found] = dump(server)
    assert (found["refCount"], len(found["registrations"])) == (number, number)
    assert [ast.literal_eval(entry["PD"])["refCount"] for entry in server.registrations()] == [number] * number


def test_executions_are_counted_while_they_exist(server):
    server.run(BUSY, "ID", "s")
    client = server.client()
    occupy(server)
    assert dump(server)[0]["refCount"] == session(server)["refCount"] == 2
    client.set("go", 1)
    server.wait_idle()
    assert dump(server)[0]["refCount"] == 2, "finished and kept"
    client.execute_command("RG.DROPEXECUTION", *executions(server))
    assert dump(server)[0]["refCount"] == session(server)["refCount"] == 1


def test_a_kept_execution_keeps_its_session_listed(server):
    server.run(counting("n") + RUN, "ID", "s")
    assert dump(server)[0]["refCount"] == 2
    unregister_all(server)
    [found] = dump(server)
    assert (found["refCount"], found["linked"], found["dead"], found["registrations"]) == (1, "primary", "false", [])
    assert error_of(server, "x = 1", "ID", "s") == "Session s already exists"
    server.wait_idle()
    server.client().execute_command("RG.DROPEXECUTION", *executions(server))
    assert dump(server) == []


def test_a_running_execution_keeps_its_session_listed(server):
    server.run(BUSY, "ID", "s")
    occupy(server)
    unregister_all(server)
    [found] = dump(server, "VERBOSE")
    assert (found["ID"], found["refCount"], found["registrations"]) == ("s", 1, [])
    server.client().set("go", 1)
    wait_until(lambda: dump(server) == [])
    assert dump(server, "DEAD") == []


def test_executions_of_another_session_do_not_count(server):
    server.run(counting("n"), "ID", "s")
    start(server, f"{WAIT}\nGB('KeysReader').map(wait).run('k', noScan=True)")
    assert dump(server)[0]["refCount"] == 1


def test_sync_executions_leave_no_trace(server):
    server.run(counting("n"), "ID", "s")
    events(server, "x1", "x2")
    assert server.client().get("n") == "2"
    kept = len(executions(server))
    assert dump(server)[0]["refCount"] == 1 + kept


# --- UPGRADE ---


@pytest.mark.parametrize("options", [["ID", "s", "UPGRADE"], ["upgrade", "id", "s"], ["UPGRADE", "ID", "a", "ID", "s"]])
def test_an_upgrade_of_an_unknown_id_creates(server, options):
    assert server.run(counting("n"), *options) == "OK"
    assert ids(server) == ["s"]
    assert dump(server, "DEAD") == []


def test_an_upgrade_without_id_creates(server):
    server.run(counting("old"), "UPGRADE")
    server.run(counting("new"), "UPGRADE")
    first, second = ids(server)
    assert (len(first), len(second)) == (40, 40)


def test_an_upgrade_replaces_triggers(server):
    server.run(counting("old", "old*") + counting("old", "both*"), "ID", "s", "DESCRIPTION", "first")
    server.run(counting("else"), "ID", "other")
    events(server, "both1")
    before = registered(server)
    assert server.run(counting("new", "new*") + counting("new", "both*"), "ID", "s", "UPGRADE") == "OK"
    events(server, "old1", "both2", "new1", "x")
    client = server.client()
    assert client.mget("old", "new", "else") == ["1", "2", "1"]
    found, other = sorted(dump(server), key=lambda entry: entry["ID"], reverse=True)
    assert (found["ID"], found["sessionDescription"], len(found["registrations"])) == ("s", None, 2)
    assert not set(found["registrations"]) & set(before)
    assert set(other["registrations"]) < set(before)
    assert dump(server, "DEAD") == []


def test_the_old_registrations_are_unknown_afterwards(server):
    server.run(counting("old"), "ID", "s")
    [old] = registered(server)
    server.run(counting("new"), "ID", "s", "UPGRADE")
    assert error_of(server, old, command="RG.UNREGISTER") == "execution is not registered"


def test_statistics_start_again(server):
    server.run(counting("n"), "ID", "s")
    events(server, "x1", "x2")
    server.run(counting("n"), "ID", "s", "UPGRADE")
    events(server, "x3")
    assert server.client().get("n") == "3"
    [entry] = server.registrations()
    assert entry["RegistrationData"]["numTriggered"] == 1


def test_the_old_session_is_in_force_while_the_script_runs(server):
    server.run(counting("old"), "ID", "s")
    server.run(counting("new") + "execute('SET', 'x1', 1)", "ID", "s", "UPGRADE")
    assert server.client().mget("old", "new") == ["1", None]


def test_on_registered_finds_the_old_session_gone(server):
    server.run(counting("old"), "ID", "s")
    ready = "def ready():\n    execute('SET', 'x1', 1)\n    execute('INCR', 'ready')\n"
    server.run(ready + counting("new", more=", onRegistered=ready"), "ID", "s", "UPGRADE")
    assert server.client().mget("old", "ready") == [None, "1"]


FAILURES = {
    "an exception": "raise ValueError('no')",
    "a syntax error": "oops(",
    "an unknown command": "GB('KeysReader').register('y*', commands=['nosuch'])",
    "a bad argument": "GB('KeysReader').register('y*', mode='later')",
    "an unserialisable function": "import socket\nlock = socket.socket()\n"
    "GB('KeysReader').map(lambda record: lock).register('y*')",
    "a second run": f"{RUN}\n{RUN}",
}


@pytest.mark.parametrize("failure", FAILURES)
@REPLACING
def test_a_failing_script_changes_nothing(server, options, failure):
    server.run(counting("old") + counting("other", "y*"), "ID", "s", "DESCRIPTION", "first")
    events(server, "x1", "y1")

    def state():
        return dump(server, "VERBOSE"), server.registrations()

    before = state()
    more = ", onRegistered=lambda: execute('SET', 'ready', 1)"
    assert error_of(server, counting("new", more=more) + FAILURES[failure], *options)
    assert state() == before
    assert dump(server, "DEAD") == []
    events(server, "x2")
    assert server.client().mget("old", "new", "ready") == ["2", None, None]


def test_a_failing_upgrade_tells_the_error_of_the_script(server):
    server.run(counting("n"), "ID", "s")
    assert script_error(server, "flat_error('not today')", "ID", "s", "UPGRADE") == "not today"


def test_a_session_is_not_upgraded_inside_a_transaction(server):
    server.run(counting("old"), "ID", "s")
    raw = server.raw()
    raw.call("MULTI")
    raw.call("RG.PYEXECUTE", counting("new"), "ID", "s", "UPGRADE")
    raw.call("EXEC")
    events(server, "x1")
    assert server.client().mget("old", "new") == ["1", None]


@REPLACING
@pytest.mark.parametrize(("script", "reply"), [("x = 1", "OK"), ("GB('KeysReader')", "OK"), (RUN, [["k"], []])])
def test_a_script_that_registers_nothing_removes_the_old_session(server, script, reply, options):
    server.run(counting("old"), "ID", "s")
    assert server.run(script, *options) == reply
    events(server, "x1")
    assert server.client().get("old") is None
    assert (registered(server), dump(server), dump(server, "DEAD")) == ([], [], [])


def test_an_upgrade_takes_over_linked_commands(server):
    linked = """
        GB('KeysReader').foreach(lambda r: override_reply('{}')).register(
            '*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
        """
    client = server.client()
    server.run(linked.format("first"), "ID", "s")
    assert client.get("k") == "first"
    server.run(linked.format("second"), "ID", "s", "UPGRADE")
    assert client.get("k") == "second"
    server.run(counting("n"), "ID", "s", "UPGRADE")
    assert client.get("k") is None


def test_an_upgrade_lets_queued_clients_go_and_the_running_function_end(start_server):
    server = start_server(module_args=["ExecutionThreads", "1"])
    linked = f"""{WAIT}
GB('KeysReader').map(wait).foreach(lambda key: override_reply('late ' + key)).register(
    'k*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
"""
    server.run(linked, "ID", "s")
    running, queued = server.raw(), server.raw()
    running.send("GET", "k1")
    wait_until(lambda: [entry["status"] for entry in executions(server).values()] == ["running"])
    queued.send("GET", "k2")
    wait_until(lambda: blocked_clients(server) == 2)
    server.run(counting("n"), "ID", "s", "UPGRADE")
    assert queued.read() == b"$-1\r\n"
    server.client().set("go", 1)
    assert running.read() == b"$7\r\nlate k1\r\n"


# --- registrations made inside functions ---


NESTED = """
def add(record):
    GB('KeysReader').foreach(lambda r: execute('INCR', 'inner')).register('inner*', mode='sync')

GB('KeysReader').foreach(add).register('add*', mode='{}')
"""


@pytest.mark.parametrize("mode", ["sync", "async", "async_local"])
def test_registrations_made_inside_functions_belong_to_the_session(server, mode):
    server.run(NESTED.format(mode), "ID", "s")
    events(server, "add1", "inner1")
    client = server.client()
    assert client.get("inner") == "1"
    [found] = dump(server)
    assert sorted(found["registrations"]) == sorted(registered(server))
    assert len(found["registrations"]) == 2
    for entry in server.registrations():
        data = ast.literal_eval(entry["PD"])
        assert (data["sessionName"], sorted(data["registrationsList"])) == ("s", sorted(registered(server)))
    server.run(counting("n"), "ID", "s", "UPGRADE")
    events(server, "add2", "inner2", "x")
    assert client.mget("inner", "n") == ["1", "1"]
    assert len(registered(server)) == 1


def test_a_session_lives_on_in_a_registration_made_inside_a_function(server):
    server.run(NESTED.format("sync"), "ID", "s")
    [outer] = registered(server)
    events(server, "add1")
    server.client().execute_command("RG.UNREGISTER", outer)
    assert ids(server) == ["s"]
    unregister_all(server)
    assert dump(server) == []


# --- DEAD ---


@pytest.mark.parametrize("word", ["DEAD", "dead", "TS", "ts"])
def test_a_running_execution_keeps_a_dead_session(server, word):
    server.run(BUSY, "ID", "s", "DESCRIPTION", "first")
    occupy(server)
    server.run(counting("n"), "ID", "s", "UPGRADE")
    assert server.client().execute_command("RG.PYDUMPSESSIONS", word) == [
        [
            *("ID", "s", "sessionDescription", "first", "refCount", 1, "linked", "None", "dead", "true"),
            *("requirementInstallationNeeded", 0, "requirements", [], "registrations", []),
        ]
    ]
    [live] = dump(server)
    assert (live["ID"], live["refCount"], live["linked"], live["dead"]) == ("s", 1, "primary", "false")
    assert dump(server, word, "SESSIONS", "s") == [live]
    server.client().set("go", 1)
    wait_until(lambda: dump(server, word) == [])
    assert dump(server) == [live]


def test_dead_sessions_come_oldest_first(server):
    for description in ["one", "two"]:
        server.run(BUSY, "ID", "s", "UPGRADE", "DESCRIPTION", description)
        occupy(server, f"busy-{description}")
    server.run(counting("n"), "ID", "s", "UPGRADE")
    for words in (["DEAD"], ["VERBOSE", "DEAD"]):
        assert [entry["sessionDescription"] for entry in dump(server, *words)] == ["one", "two"]
    unregister_all(server)
    assert dump(server) == []
    assert server.run(counting("n"), "ID", "s") == "OK", "a dead session does not occupy its id"
    server.client().set("go", 1)
    wait_until(lambda: dump(server, "DEAD") == [])


def test_a_kept_run_keeps_a_dead_session_until_it_is_dropped(server):
    server.run(counting("old") + RUN, "ID", "s")
    server.wait_idle()
    server.run(counting("new"), "ID", "s", "UPGRADE")
    assert [(entry["ID"], entry["refCount"]) for entry in dump(server, "DEAD")] == [("s", 1)]
    server.client().execute_command("RG.DROPEXECUTION", *executions(server))
    assert dump(server, "DEAD") == []


def test_a_session_without_executions_dies_at_once(server):
    server.run(f"kept = GB('KeysReader')\n{counting('old')}", "ID", "s")
    events(server, "x1")
    server.run(counting("new"), "ID", "s", "UPGRADE")
    assert dump(server, "DEAD") == []


def test_a_function_of_a_dead_session_keeps_its_globals(server):
    script = f"{WAIT}\nname = 'kept'\nGB('KeysReader').map(wait).foreach(lambda r: execute('SET', 'end', name))"
    server.run(f"{script}.register('busy', mode='async_local')", "ID", "s")
    occupy(server)
    server.run(counting("n") + "import gc\ngc.collect()", "ID", "s", "UPGRADE")
    server.client().set("go", 1)
    assert wait_until(lambda: server.own.get("end")) == "kept"


# --- REPLACE_WITH ---


def test_replace_with_puts_a_new_session_in_the_place_of_another(server):
    server.run(counting("old"), "ID", "old", "DESCRIPTION", "first")
    server.run(counting("else", "y*"), "ID", "other")
    assert server.run(counting("new"), "ID", "new", "replace_with", "old") == "OK"
    events(server, "x1", "y1")
    assert server.client().mget("old", "new", "else") == [None, "1", "1"]
    assert ids(server) == ["new", "other"]
    assert server.run(counting("n"), "ID", "old") == "OK"


@pytest.mark.parametrize(
    "options", [["UPGRADE", "REPLACE_WITH", "old"], ["REPLACE_WITH", "nobody", "REPLACE_WITH", "old"]]
)
def test_replace_with_and_other_options(server, options):
    server.run(counting("old"), "ID", "old")
    assert server.run(counting("new"), *options) == "OK"
    [identifier] = ids(server)
    assert len(identifier) == 40


def test_replaced_sessions_with_running_executions_are_dead(server):
    server.run(BUSY, "ID", "old")
    occupy(server)
    server.run(counting("new"), "ID", "new", "REPLACE_WITH", "old")
    assert (ids(server), ids(server, "DEAD")) == (["new"], ["old"])
    server.client().set("go", 1)
    wait_until(lambda: dump(server, "DEAD") == [])


# --- checks and their order ---


NOBODY = "Can not replace with nobody, session does not exists."


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["ID", "s"], "Session s already exists"),
        (["UPGRADE", "REPLACE_WITH"], "REPLACE_WITH is missing"),
        (["ID", "s", "REPLACE_WITH", "other"], "Can not replace an existing session s with other"),
        (["ID", "s", "REPLACE_WITH", "s"], "Can not replace an existing session s with s"),
        (["ID", "s", "UPGRADE", "REPLACE_WITH", "nobody"], "Can not replace an existing session s with nobody"),
        (["ID", "new", "REPLACE_WITH", "nobody"], NOBODY),
        (["REPLACE_WITH", "nobody"], NOBODY),
        (["UPGRADE", "REPLACE_WITH", "nobody", "ID", "new"], NOBODY),
        (["REPLACE_WITH", "no body"], "Can not replace with no body, session does not exists."),
        (["REPLACE_WITH", ""], "Can not replace with , session does not exists."),
        (["ID", "s", "WHAT"], "Unknown arguments were given: WHAT"),
        (["ID", "s", "REPLACE_WITH", "nobody", "UPGRADED"], "Unknown arguments were given: UPGRADED"),
        (["REPLACE_WITH", "nobody", "ID"], "ID is missing"),
    ],
)
def test_refused_options(server, options, error):
    server.run(counting("n"), "ID", "s")
    server.run(counting("n"), "ID", "other")
    assert error_of(server, "execute('SET', 'ran', 1)", *options) == error
    assert server.client().get("ran") is None
    assert ids(server) == ["other", "s"]


def test_a_session_without_registrations_cannot_be_replaced(server):
    server.run(RUN, "ID", "s")
    error = "Can not replace with s, session does not exists."
    assert error_of(server, "x = 1", "ID", "new", "REPLACE_WITH", "s") == error


# --- PD ---


@pytest.mark.parametrize("description", [None, "it's, \"so\"", "a\r\nb\\c|d", "{}", "é"])
def test_pd_is_a_literal_in_every_state(server, description):
    words = ["DESCRIPTION", description] if description is not None else []
    expected = {"sessionDescription": description, "linkedTo": "primary", "dead": False, "isInstallationNeeded": 0}

    def check(ref_count):
        data = session(server)
        assert {key: data[key] for key in expected} == expected
        assert (data["refCount"], data["registrationsList"], data["depsList"]) == (ref_count, registered(server), [])

    server.run(BUSY + RUN, "ID", "s", *words)
    check(2)  # with a kept run
    server.wait_idle()
    occupy(server)
    check(3)
    server.run(BUSY, "ID", "s", "UPGRADE", *words)
    check(1)
    server.run(BUSY, "ID", "t", "REPLACE_WITH", "s", *words)
    check(1)
    server.client().set("go", 1)
    server.wait_idle()
    check(1)


# --- the end of a session ---


HELPERS = """
def helper(record):
    return record['key']

def step(record):
    return helper(record)
"""
# Counts in the key `freed` when the globals of its script are freed.
WATCHED = f"""{HELPERS}
class Watched:
    def __del__(self):
        execute('INCR', 'freed')

watched = Watched()
"""


def collect(server):
    server.run("import gc\ngc.collect()")


def wait_freed(server):
    """Waits until the globals of one script that began with WATCHED are freed."""

    def freed():
        collect(server)
        return server.own.get("freed")

    assert wait_until(freed, 5, "the globals of the script are freed", interval=0.05) == "1"


@pytest.mark.parametrize(
    "script",
    [
        "pass",
        "kept = GB('KeysReader').map(step)",
        "GB('KeysReader').map(step).run('k', noScan=True)",
        "kept = GB('KeysReader').map(step)\nkept.run('k', noScan=True)",
        "GB('KeysReader').map(step).register('x*')\nraise ValueError",
        "kept = GB('KeysReader').map(step)\nGB(1)",
        "def fail(record):\n    raise ValueError\nGB('KeysReader').map(fail).run('k', noScan=True)",
    ],
)
def test_the_globals_of_a_session_that_is_not_listed_are_freed(server, script):
    server.raw().call("RG.PYEXECUTE", WATCHED + script)
    wait_freed(server)


REGISTERING = {
    "function": "GB('KeysReader').map(step).register('x*', mode='{}')",
    "lambda": "GB('KeysReader').map(lambda r: step(r)).register('x*', mode='{}')",
    "builder": "kept = GB('KeysReader').map(step)\nkept.register('x*', mode='{}')",
    "unused builder": "kept = GB('KeysReader').map(step)\nGB('KeysReader').map(step).register('x*', mode='{}')",
    "onRegistered": "GB('KeysReader').register('x*', mode='{}', onRegistered=lambda: step({{'key': 'k'}}))",
    "groups": "GB('KeysReader').groupby(step, lambda k, a, r: r).register('x*', mode='{}')",
    "two": "for prefix in ('x*', 'y*'):\n    GB('KeysReader').map(step).register(prefix, mode='{}')",
}


@pytest.mark.parametrize("mode", ["sync", "async_local"])
@pytest.mark.parametrize("script", REGISTERING)
def test_the_globals_of_a_session_are_freed_after_its_last_registration(server, script, mode):
    server.run(WATCHED + REGISTERING[script].format(mode), "ID", "s")
    collect(server)
    events(server, "x1")
    assert server.client().get("freed") is None
    unregister_all(server)
    assert dump(server) == dump(server, "DEAD") == []
    assert server.run("x = 1", "ID", "s") == "OK"
    wait_freed(server)


def test_a_session_owns_its_globals_also_when_no_function_uses_them(server):
    server.run(f"{WATCHED}\nGB('KeysReader').register('x*')", "ID", "s")
    collect(server)
    assert server.client().get("freed") is None
    unregister_all(server)
    wait_freed(server)


@pytest.mark.parametrize("script", ["function", "builder"])
@REPLACING
def test_the_globals_of_a_replaced_session_are_freed(server, script, options):
    server.run(WATCHED + REGISTERING[script].format("async_local"), "ID", "s")
    events(server, "x1", "x2")
    server.run(counting("n"), *options)
    wait_freed(server)
    assert len(ids(server)) == 1


def test_the_globals_of_a_session_are_freed_after_its_last_execution(server):
    server.run(f"{WATCHED}\n{BUSY}", "ID", "s")
    occupy(server)
    unregister_all(server)
    collect(server)
    assert server.client().get("freed") is None
    server.client().set("go", 1)
    wait_until(lambda: dump(server) == [])
    wait_freed(server)


def test_the_globals_of_a_failed_execution_are_freed(server):
    script = "GB('KeysReader').map(lambda r: step(None)).register('x*', mode='async_local')"
    server.run(WATCHED + script, "ID", "s")
    events(server, "x1")
    assert "TypeError" in server.registrations()[0]["RegistrationData"]["lastError"]
    unregister_all(server)
    wait_freed(server)


@pytest.mark.parametrize("mode", ["sync", "async_local"])
@pytest.mark.parametrize(
    "function",
    [
        "step",
        "lambda r: step(r)",
        "(lambda seen: lambda r: seen.append(r['key']) or seen[-1])([])",
        "Counter().count",
        "partial(lambda word, r: r['key'], 'word')",
    ],
)
def test_registered_functions_survive_a_collection(server, function, mode):
    counter = "class Counter:\n    def count(self, record):\n        return helper(record)\n"
    steps = f"kept = GB('KeysReader').map({function}).foreach(lambda key: execute('RPUSH', 'out', key))"
    setup = f"{HELPERS}\nfrom functools import partial\n{counter}{steps}\n"
    server.run(setup + f"kept.register('x*', mode='{mode}')\ndel kept")
    for key in ("x1", "x2"):
        collect(server)
        events(server, key)
    assert server.client().lrange("out", 0, -1) == ["x1", "x2"]
    [entry] = server.registrations()
    assert entry["RegistrationData"]["numSuccess"] == 2


def test_a_description_keeps_its_bytes(server):
    raw = server.raw()
    assert raw.call("RG.PYEXECUTE", counting("n"), "ID", "s", "DESCRIPTION", b"a\xff\x00\xc3(") == b"+OK\r\n"
    for _ in range(2):
        assert b"sessionDescription\r\n$5\r\na\xff\x00\xc3(\r\n" in raw.call("RG.PYDUMPSESSIONS")
        [entry] = server.registrations()
        description = ast.literal_eval(entry["PD"])["sessionDescription"]
        assert description.encode("utf-8", "surrogateescape") == b"a\xff\x00\xc3("
        server.client().execute_command("DEBUG", "RELOAD")
