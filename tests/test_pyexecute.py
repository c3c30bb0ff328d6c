"""RG.PYEXECUTE: options, replies, the errors of scripts, and what a script finds around it.

Contract: docs/contract/commands.md 0.5, 1.2 and 4; docs/contract/python-api.md 1.
"""

import ast
import re

import pytest

from helpers import wait_until
from probes import error_of, executions, in_script, raised, script_error

pytestmark = pytest.mark.matrix

RUN = "GB('KeysReader').map(lambda record: record['key']).run('k', noScan=True)"
REGISTER = "GB('KeysReader').register('watched:*')"
NOT_HERE = "Can not run gears inside a multi exec, lua, or when blocking is not allowed"
BAD_ID = "ID must be compose of: ['A'-'Z' | 'a'-'z' | '0' - '9' | '-' | '_']"


# --- replies ---


@pytest.mark.parametrize("script", ["", "# nothing", "x = 1", "GB('KeysReader').map(lambda record: 1)", REGISTER])
def test_ok_when_nothing_runs(server, script):
    assert server.raw().call("RG.PYEXECUTE", script) == b"+OK\r\n"


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_run_replies_results_and_errors(server, protocol):
    raw = server.raw()
    raw.call("HELLO", protocol)
    assert raw.call("RG.PYEXECUTE", RUN) == b"*2\r\n*1\r\n$1\r\nk\r\n*0\r\n"
    assert raw.call("RG.PYEXECUTE", "GB('KeysReader').run('none*')") == b"*2\r\n*0\r\n*0\r\n"


def test_a_blocking_run_is_dropped(server):
    server.run(RUN)
    assert executions(server) == {}


@pytest.mark.parametrize("word", ["UNBLOCKING", "unblocking"])
def test_unblocking_replies_the_id_and_keeps_the_execution(server, word):
    execution = server.run(RUN, word)
    assert re.fullmatch(r"0{40}-\d+", execution)
    assert server.client().execute_command("RG.GETRESULTSBLOCKING", execution) == [["k"], []]
    assert server.client().execute_command("RG.GETRESULTS", execution) == [["k"], []]


def test_unblocking_is_ignored_when_the_script_registers(server):
    assert server.run(REGISTER, "UNBLOCKING") == "OK"


def test_a_script_that_registers_and_runs_replies_ok_and_keeps_the_execution(server):
    assert server.run(f"{REGISTER}\n{RUN}") == "OK"
    [(execution, entry)] = executions(server).items()
    assert entry["registered"] == 0
    assert server.client().execute_command("RG.GETRESULTSBLOCKING", execution) == [["k"], []]


def test_a_second_run_is_refused(server):
    expected = "gears.error: Can not run more then 1 executions in a single script"
    assert raised(server, f"{RUN}\n{RUN}") == expected
    assert executions(server) == {}


# --- options ---


def test_without_script(server):
    assert error_of(server) == "ERR wrong number of arguments for 'rg.pyexecute' command"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["ID"], "ID is missing"),
        (["UNBLOCKING", "id"], "ID is missing"),
        (["DESCRIPTION"], "DESCRIPTION is missing"),
        (["REPLACE_WITH"], "REPLACE_WITH is missing"),
        (["ID", "a b"], BAD_ID),
        (["ID", "a.b"], BAD_ID),
        (["ID", "é"], BAD_ID),
        (["WHAT"], "Unknown arguments were given: WHAT"),
        (["ID", "fine", "what", "else"], "Unknown arguments were given: what"),
        (["ID", "a b", "WHAT"], BAD_ID),
        (["WHAT", "ID", "a b"], "Unknown arguments were given: WHAT"),
        (["DESCRIPTION", "text", "ID"], "ID is missing"),
    ],
)
def test_bad_options_are_refused_from_left_to_right(server, options, error):
    assert error_of(server, "execute('SET', 'ran', 1)", *options) == error
    assert server.client().get("ran") is None


@pytest.mark.parametrize("identifier", ["greeter", "A-z_09", ""])
def test_accepted_ids(server, identifier):
    assert server.run(REGISTER, "ID", identifier) == "OK"
    assert ast.literal_eval(server.registrations()[0]["PD"])["sessionName"] == identifier


def test_options_come_in_any_order_and_the_last_value_wins(server):
    assert server.run(REGISTER, "ID", "a", "description", "x", "UNBLOCKING", "id", "b", "DESCRIPTION", "y") == "OK"
    session = ast.literal_eval(server.registrations()[0]["PD"])
    assert (session["sessionName"], session["sessionDescription"]) == ("b", "y")


def test_the_id_of_a_session_with_registrations_is_taken(server):
    server.run(REGISTER, "ID", "s")
    assert script_error(server, "execute('SET', 'ran', 1)", "ID", "s") == "Session s already exists"
    assert server.client().get("ran") is None


@pytest.mark.parametrize("script", [RUN, "x = 1", f"{REGISTER}\nraise ValueError"])
def test_the_id_of_a_session_without_registrations_is_free_at_once(server, script):
    server.raw().call("RG.PYEXECUTE", script, "ID", "s")
    assert server.run(REGISTER, "ID", "s") == "OK"


# --- errors of scripts ---


def test_a_syntax_error_has_no_traceback(server):
    expected = "Error type: <class 'SyntaxError'>, Value: invalid syntax (<string>, line 1)"
    assert script_error(server, "a = = 1") == expected


@pytest.mark.parametrize("script", [b"x = '\0'", b"x = '\xff'"])
def test_scripts_that_are_no_text_are_errors(server, script):
    assert error_of(server, script)


def test_a_traceback_is_a_literal_list_without_engine_frames(server):
    error = script_error(server, "def price():\n    raise ValueError('no price')\n\nprice()\n")
    assert ast.literal_eval(error) == [
        "Traceback (most recent call last):\n",
        '  File "<string>", line 4, in <module>\n',
        '  File "<string>", line 2, in price\n',
        "ValueError: no price\n",
    ]


def test_chained_exceptions_are_shown(server):
    error = script_error(server, "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e\n")
    assert "\nThe above exception was the direct cause of the following exception:\n\n" in ast.literal_eval(error)


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("class E(Exception):\n    pass\nraise E('a', 'b')", "not_main.E: ('a', 'b')"),
        ("GB(1)", "gears.error: reader argument must be a string"),
        ("raise redisgears.GearsError('mine')", "gears.error: mine"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import sys\nsys.exit()", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("input()", "EOFError: EOF when reading a line"),
        ("raise ValueError('[quo\\'te\"d]')", "ValueError: [quo'te\"d]"),
    ],
)
def test_the_last_line_names_the_exception(server, script, line):
    assert raised(server, script) == line


def test_flat_error_is_the_whole_text(server):
    assert script_error(server, "flat_error('no luck today')") == "no luck today"


def test_newlines_of_an_error_reply_are_blanks(server):
    assert server.raw().call("RG.PYEXECUTE", "flat_error('a\\r\\nb')") == b"-a  b\r\n"


def test_flat_error_can_be_caught(server):
    body = """
        import redisgears
        try:
            flat_error('no luck')
        except redisgears.GearsFlatError as error:
            return str(error)
        """
    assert in_script(server, body) == "no luck"


@pytest.mark.parametrize("call", ["flat_error()", "flat_error(1, 2)"])
def test_flat_error_takes_one_argument(server, call):
    assert raised(server, call) == "gears.error: not enough arguments for time flat error"


def test_a_failing_script_leaves_nothing(server):
    script_error(server, f"{REGISTER}\n{RUN}\nexecute('SET', 'written', 1)\nraise ValueError")
    assert (server.registrations(), executions(server)) == ([], {})
    assert server.client().get("written") == "1"


# --- where it may not be called ---


def test_refused_in_a_transaction(server):
    raw = server.raw()
    raw.call("MULTI")
    raw.call("RG.PYEXECUTE", "execute('SET', 'ran', 1)")
    assert raw.call("EXEC") == f"*1\r\n-{NOT_HERE}\r\n".encode()
    assert server.client().get("ran") is None


def test_refused_in_a_lua_script(server):
    client = server.client()
    error = client.eval("return redis.pcall('RG.PYEXECUTE', \"execute('SET', 'ran', 1)\").err", 0)
    # The second text is the server's own, for commands flagged noscript.
    assert error == NOT_HERE or "not allowed from script" in error
    assert client.get("ran") is None


@pytest.mark.parametrize("template", ["{}", "GB('KeysReader').map(lambda record: {}).run('k', noScan=True)"])
def test_refused_inside_functions(server, template):
    reply = server.raw().call("RG.PYEXECUTE", template.format("execute('RG.PYEXECUTE', 'x = 1')"))
    assert f"gears.error: {NOT_HERE}\\n']".encode() in reply


# --- the environment ---


def test_sessions_have_their_own_globals(server):
    server.run("x = 5\ndel execute")
    assert raised(server, "x") == "NameError: name 'x' is not defined"
    assert in_script(server, "return execute('PING')") == "PONG"


def test_functions_of_a_session_share_globals(server):
    server.run(
        """
        seen = []
        GB('KeysReader').foreach(lambda record: seen.append(record['key'])).register('a*', mode='sync')
        GB('KeysReader').foreach(lambda record: execute('SET', 'out', str(seen))).register('b*', mode='sync')
        """
    )
    client = server.client()
    client.set("a1", 1)
    client.set("b1", 1)
    assert client.get("out") == "['a1']"


def test_name_and_arguments(server):
    body = "import sys\nclass C: pass\nreturn [__name__, probe.__module__, C.__module__, sys.argv]"
    assert in_script(server, body) == ["not_main", "not_main", "not_main", ["Embeded"]]


def test_names_without_import(server):
    names = """GearsBuilder GB execute atomic log configGet gearsConfigGet hashtag isInAtomicBlock flat_error
        get_command override_reply redisgears rg""".split()
    assert in_script(server, f"return [name for name in {names} if name not in globals()]") == []
    assert in_script(server, "return GB is GearsBuilder and redisgears is rg") is True


def test_names_of_main(server):
    server.run("from __main__ import GB, GearsBuilder, configGet, gearsConfigGet")
    server.run("import __main__\n__main__.shared = 7")
    assert in_script(server, "return shared") == 7


def test_names_of_the_module(server):
    names = """executeCommand atomicCtx log config_get getMyHashTag isInAtomicBlock flatError getCommand overrideReply
        GearsError GearsFlatError GearsForceStopped""".split()
    assert in_script(server, f"import redisgears\nreturn [n for n in {names} if not hasattr(redisgears, n)]") == []


def test_texts_of_the_modules_classes(server):
    assert in_script(server, "return str(gearsCtx())") == "PyFlatExecution"
    assert "cannot create 'redisgears.Future' instances" in raised(server, "import redisgears\nredisgears.PyFuture()")


def test_print_goes_to_the_servers_output(server):
    server.run("print('hello', 'there', flush=True)")
    wait_until(lambda: "hello there" in server.log())
