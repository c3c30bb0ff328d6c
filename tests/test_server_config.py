"""Options as configuration of the server: CONFIG GET, CONFIG SET, config file, CONFIG REWRITE.

For servers that let modules have configuration (Redis 7.0, Valkey). The values are those of test_config.py; a name is
the option's name in kebab case, switches are `yes` or `no`. Contract: docs/contract/commands.md 5; the names are our
own.
"""

import os
import sys

import pytest

from helpers import ServerDied, module_path, wait_until
from probes import BUSY, executions, in_script, last_line, refused, script_error, start, status

pytestmark = pytest.mark.matrix

# Name here, name in RG.CONFIGGET, default, another value.
CHANGEABLE = [
    ("rg.max-executions", "MaxExecutions", 1000, 7),
    ("rg.max-executions-per-registration", "MaxExecutionsPerRegistration", 100, 0),
    ("rg.profile-executions", "ProfileExecutions", 0, 1),
    ("rg.execution-max-idle-time", "ExecutionMaxIdleTime", 5000, 1),
    ("rg.send-msg-retries", "SendMsgRetries", 3, 0),
    ("rg.python-attempt-traceback", "PythonAttemptTraceback", 1, 0),
    ("rg.python-install-req-max-idle-time", "PythonInstallReqMaxIdleTime", 30000, 1),
]
FIXED = [
    ("rg.execution-threads", "ExecutionThreads", 3, 2),
    ("rg.override-python-allocators", "OverridePythonAllocators", 1, 0),
]
SWITCHES = {"rg.python-attempt-traceback", "rg.override-python-allocators"}
FAILING = "def price():\n    raise ValueError('no price')\nprice()"
RUN = "GB('KeysReader').run('k', noScan=True)"


@pytest.fixture
def server(start_server):
    return able(start_server())


@pytest.fixture
def start_with_file(start_server, tmp_path):
    """Factory for servers with a config file that loads the module; takes its lines and the module's arguments."""

    def start(*lines, arguments=""):
        server = able(start_server(module=False))
        server.stop()
        file = tmp_path / "server.conf"
        file.write_text("\n".join([f"loadmodule {module_path()} {arguments}", *lines]))
        binary, *words = server.command_line()
        server.command_line = lambda: [binary, str(file), *words]
        server.file = file
        return server.start()

    return start


def able(server):
    """Skips the test where modules have no configuration."""
    if not server.is_valkey and server.version < (7, 0):
        pytest.skip("modules have no configuration on this server")
    return server


def shown(name, number):
    """A number as CONFIG GET shows it."""
    return ("no", "yes")[number] if name in SWITCHES else str(number)


def named(server, pattern):
    """CONFIG GET."""
    return server.own.execute_command("CONFIG GET", pattern)


def change(server, *words):
    """CONFIG SET."""
    assert server.raw().call("CONFIG", "SET", *words) == b"+OK\r\n"


def plain(server, *keys):
    """RG.CONFIGGET."""
    return server.own.execute_command("RG.CONFIGGET", *keys)


def both(server, name, key):
    """CONFIG GET and RG.CONFIGGET of one option."""
    return [*named(server, name).values(), *plain(server, key)]


# --- CONFIG GET ---


def test_names_and_defaults(server):
    [environment] = plain(server, "PythonVenv")
    expected = {name: shown(name, default) for name, _, default, _ in CHANGEABLE + FIXED}
    assert {**expected, "rg.python-venv": environment}.items() <= named(server, "rg.*").items()
    assert os.path.samefile(environment, in_script(server, "import sys\nreturn sys.prefix"))


def test_names_in_any_letter_case(server):
    assert list(named(server, "RG.Max-Executions").values()) == ["1000"]


def test_module_arguments_win_over_defaults(start_server):
    server = able(start_server(module_args="maxexecutions 7 ExecutionThreads 2 PythonAttemptTraceback 0".split()))
    assert both(server, "rg.max-executions", "MaxExecutions") == ["7", 7]
    assert both(server, "rg.execution-threads", "ExecutionThreads") == ["2", 2]
    assert both(server, "rg.python-attempt-traceback", "PythonAttemptTraceback") == ["no", 0]
    assert both(server, "rg.send-msg-retries", "SendMsgRetries") == ["3", 3]


# --- CONFIG SET ---


@pytest.mark.parametrize(("name", "key", "default", "other"), CHANGEABLE)
def test_one_value_with_two_names(server, name, key, default, other):
    change(server, name, shown(name, other))
    assert both(server, name, key) == [shown(name, other), other]
    server.client().execute_command("RG.CONFIGSET", key, default)
    assert both(server, name, key) == [shown(name, default), default]


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("rg.max-executions", "MaxExecutions", "-1"),
        ("rg.max-executions", "MaxExecutions", "0"),
        ("rg.max-executions-per-registration", "MaxExecutionsPerRegistration", "-1"),
        ("rg.profile-executions", "ProfileExecutions", "2"),
        ("rg.max-executions", "MaxExecutions", str(2**63 - 1)),
    ],
)
def test_unusual_values(server, name, key, value):
    change(server, name, value)
    assert both(server, name, key) == [value, int(value)]


@pytest.mark.parametrize(
    ("name", "key", "value", "reason"),
    [
        ("rg.execution-max-idle-time", "ExecutionMaxIdleTime", "0", "argument must be between"),
        ("rg.python-install-req-max-idle-time", "PythonInstallReqMaxIdleTime", "0", "argument must be between"),
        ("rg.send-msg-retries", "SendMsgRetries", "-1", "argument must be between"),
        ("rg.max-executions", "MaxExecutions", "many", "argument couldn't be parsed into an integer"),
        ("rg.max-executions", "MaxExecutions", "1.5", "argument couldn't be parsed into an integer"),
        ("rg.max-executions", "MaxExecutions", "", "argument couldn't be parsed into an integer"),
        ("rg.max-executions", "MaxExecutions", "9" * 30, "argument couldn't be parsed into an integer"),
        ("rg.python-attempt-traceback", "PythonAttemptTraceback", "2", "argument must be 'yes' or 'no'"),
        ("rg.execution-threads", "ExecutionThreads", "4", "can't set immutable config"),
        ("rg.override-python-allocators", "OverridePythonAllocators", "no", "can't set immutable config"),
        ("rg.python-venv", "PythonVenv", "/", "can't set immutable config"),
    ],
)
def test_what_the_server_refuses(server, name, key, value, reason):
    before = both(server, name, key)
    assert reason in refused(server.client(), "CONFIG SET", name, value)
    assert both(server, name, key) == before


def test_several_at_once_are_all_or_none(server):
    before = named(server, "rg.*")
    words = ("rg.max-executions", 5, "rg.python-attempt-traceback", "no", "rg.execution-max-idle-time", 0)
    refused(server.client(), "CONFIG SET", *words)
    assert named(server, "rg.*") == before
    assert plain(server, "MaxExecutions", "PythonAttemptTraceback", "ExecutionMaxIdleTime") == [1000, 1, 5000]
    change(server, *words[:-1], 9)
    assert plain(server, "MaxExecutions", "PythonAttemptTraceback", "ExecutionMaxIdleTime") == [5, 0, 9]


def test_a_change_takes_effect(server):
    change(server, "rg.python-attempt-traceback", "no")
    assert script_error(server, FAILING) == "Error type: <class 'ValueError'>, Value: no price"
    change(server, "rg.python-attempt-traceback", "yes")
    assert last_line(script_error(server, FAILING)) == "ValueError: no price"
    change(server, "rg.max-executions", 2)
    for _ in range(5):
        start(server, RUN, "done")
    wait_until(lambda: len(executions(server)) == 2)


def test_a_function_may_change_it(server):
    assert in_script(server, "return execute('CONFIG', 'SET', 'rg.max-executions', 9)") == "OK"
    assert both(server, "rg.max-executions", "MaxExecutions") == ["9", 9]


# --- config file ---


def test_a_config_file(start_with_file):
    server = start_with_file("rg.max-executions 5", "rg.python-attempt-traceback no")
    assert both(server, "rg.max-executions", "MaxExecutions") == ["5", 5]
    assert both(server, "rg.python-attempt-traceback", "PythonAttemptTraceback") == ["no", 0]
    assert both(server, "rg.send-msg-retries", "SendMsgRetries") == ["3", 3]
    assert script_error(server, FAILING) == "Error type: <class 'ValueError'>, Value: no price"


def test_lines_before_loadmodule_and_on_the_command_line(start_server, tmp_path):
    file = tmp_path / "more.conf"
    file.write_text("rg.max-executions 5\n")
    able(start_server(module=False))
    server = start_server(args=["--include", file, "--rg.send-msg-retries", 9])
    assert plain(server, "MaxExecutions", "SendMsgRetries") == [5, 9]


def test_config_get_of_scripts_tells_what_the_server_has_set(start_server):
    server = able(start_server(module_args=["PythonAttemptTraceback", "1"]))
    server.client().config_set("rg.python-attempt-traceback", "no")
    server.client().config_set("rg.python-install-req-max-idle-time", "7000")
    assert in_script(server, "return [configGet('PythonAttemptTraceback'), configGet('PythonInstallReqMaxIdleTime')]") == ["0", "7000"]


def test_the_number_of_threads_in_a_config_file(start_with_file):
    server = start_with_file("rg.execution-threads 1")
    assert both(server, "rg.execution-threads", "ExecutionThreads") == ["1", 1]
    busy = start(server, BUSY)
    queued = start(server, RUN, "created")
    server.client().set("go", 1)
    server.wait_idle()
    assert (status(server, busy), status(server, queued)) == ("done", "done")


def test_the_environment_in_a_config_file(start_with_file, tmp_path):
    link = tmp_path / "environment"
    link.symlink_to(sys.prefix)
    server = start_with_file(f"rg.python-venv {link}")
    assert both(server, "rg.python-venv", "PythonVenv") == [str(link), str(link)]
    assert in_script(server, "import sys, cloudpickle\nreturn sys.prefix") == str(link)


def test_the_allocators_in_a_config_file(start_with_file):
    server = start_with_file("rg.override-python-allocators no")
    assert both(server, "rg.override-python-allocators", "OverridePythonAllocators") == ["no", 0]
    assert server.client().execute_command("RG.PYSTATS")[1::2] == [0, 0, 0]


@pytest.mark.parametrize(
    "line",
    [
        "rg.max-executions many",
        "rg.execution-threads 0",
        "rg.send-msg-retries -1",
        "rg.python-attempt-traceback maybe",
        "rg.python-venv /nowhere",
        "rg.no-such-option 1",
    ],
)
def test_a_bad_config_file_ends_the_start(start_with_file, line):
    with pytest.raises(ServerDied) as died:
        start_with_file(line)
    assert "ended with status 1;" in str(died.value)  # it left by itself, no crash


# --- CONFIG REWRITE ---


@pytest.mark.parametrize("command", ["CONFIG SET", "RG.CONFIGSET"])
def test_a_rewritten_file_keeps_changes(start_with_file, command):
    server = start_with_file("rg.send-msg-retries 9")
    changes = [(name, key, other) for name, key, _, other in CHANGEABLE if name != "rg.send-msg-retries"]
    for name, key, other in changes:
        words = (name, shown(name, other)) if command == "CONFIG SET" else (key, other)
        server.client().execute_command(command, *words)
    assert server.client().config_rewrite()
    lines = server.file.read_text().splitlines()
    assert {f"{name} {shown(name, other)}" for name, _, other in changes} | {"rg.send-msg-retries 9"} <= set(lines)
    server.restart()
    for name, key, other in changes:
        assert both(server, name, key) == [shown(name, other), other]
    assert plain(server, "SendMsgRetries") == [9]


def test_a_rewritten_file_wins_over_the_modules_arguments(start_with_file):
    server = start_with_file(arguments="MaxExecutions 7 ExecutionThreads 2 PythonAttemptTraceback 0")
    change(server, "rg.max-executions", 1000)
    server.client().config_rewrite()
    server.restart()
    keys = ("MaxExecutions", "ExecutionThreads", "PythonAttemptTraceback")
    assert plain(server, *keys) == [1000, 2, 0]


def test_a_rewritten_file_without_changes_still_loads(start_with_file):
    server = start_with_file()
    before = named(server, "rg.*")
    server.client().config_rewrite()
    server.restart()
    assert named(server, "rg.*") == before
