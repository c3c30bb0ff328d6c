"""Options: module arguments, RG.CONFIGGET, RG.CONFIGSET.

Contract: docs/contract/commands.md 1.19 and 5.
"""

import pytest

from helpers import ServerDied, wait_until
from probes import in_script, last_line, script_error

SAVED = b"+OK - value was saved in extra config dictionary\r\n"
OK = b"+OK\r\n"


def error(text):
    return f"-{text}\r\n".encode()


def elements(*items):
    return b"*%d\r\n%s" % (len(items), b"".join(items))


@pytest.fixture(params=[2, 3])
def raw(request, server):
    """A connection of either protocol: the replies are the same."""
    raw = server.raw()
    raw.call("HELLO", request.param)
    return raw


# --- RG.CONFIGGET ---


def test_defaults(server):
    defaults = {
        "MaxExecutions": 1000,
        "MaxExecutionsPerRegistration": 100,
        "ProfileExecutions": 0,
        "ExecutionThreads": 3,
        "ExecutionMaxIdleTime": 5000,
        "SendMsgRetries": 3,
        "CreateVenv": 0,
        "DownloadDeps": 0,
        "PythonAttemptTraceback": 1,
        "PythonInstallReqMaxIdleTime": 30000,
        "PythonInstallationDir": "/var/opt/redislabs/modules/rg",
        "Plugin": [],
    }
    assert server.client().execute_command("RG.CONFIGGET", *defaults) == list(defaults.values())


@pytest.mark.parametrize("command", ["RG.CONFIGGET", "RG.CONFIGSET"])
def test_without_keys(raw, command):
    assert raw.call(command) == b"*0\r\n"


def test_get_compares_the_letter_case(raw):
    unknown = error("(error) Unsupported config parameter: maxexecutions")
    assert raw.call("RG.CONFIGGET", "maxexecutions", "MaxExecutions") == elements(unknown, b":1000\r\n")


# --- RG.CONFIGSET ---


def test_each_pair_has_its_own_element(raw):
    fixed = error("(error) Config value ExecutionThreads not modifiable at runtime")
    words = ("MaxExecutions", 50, "region", "eu", "ExecutionThreads", 4, "MaxExecutionsPerRegistration", 7)
    assert raw.call("RG.CONFIGSET", *words) == elements(OK, SAVED, fixed, OK)
    keys = ("region", "MaxExecutions", "ExecutionThreads", "MaxExecutionsPerRegistration")
    assert raw.call("RG.CONFIGGET", *keys) == elements(b"$2\r\neu\r\n", b":50\r\n", b":3\r\n", b":7\r\n")


@pytest.mark.parametrize(
    ("words", "reply"),
    [
        (["maxEXECUTIONS", "5"], OK),
        (["MaxExecutions", "-1"], OK),
        (["MaxExecutions", "0"], OK),
        (["ProfileExecutions", "1"], OK),
        (["ExecutionMaxIdleTime", "100"], OK),
        (["SendMsgRetries", "0"], OK),
        (["PythonAttemptTraceback", "0"], SAVED),
        (["PythonInstallReqMaxIdleTime", "1"], SAVED),
        (["pythonattempttraceback", "anything"], SAVED),
        (["region", ""], SAVED),
        (["MaxExecutions"], error("(error) Failed setting config value MaxExecutions")),
        (["MaxExecutions", "many"], error("(error) Failed setting config value MaxExecutions")),
        (["maxexecutions", "1.5"], error("(error) Failed setting config value maxexecutions")),
        (["MaxExecutions", "9" * 30], error("(error) Failed setting config value MaxExecutions")),
        (["ExecutionMaxIdleTime", "0"], error("(error) Failed setting config value ExecutionMaxIdleTime")),
        (["SendMsgRetries", "-1"], error("(error) Failed setting config value SendMsgRetries")),
        (["executionthreads", "4"], error("(error) Config value executionthreads not modifiable at runtime")),
        (["Plugin", "x.so"], error("(error) Config value Plugin not modifiable at runtime")),
        (["region"], error("(error) Value was not given to region")),
        (["CreateVenv", "1"], error("(error) CreateVenv is not configurable at runtime")),
        (["PythonInstallationDir", "/"], error("(error) PythonInstallationDir is not configurable at runtime")),
        (
            ["PythonAttemptTraceback", "x"],
            error("Failed setting config value for key 'PythonAttemptTraceback' with value 'x'"),
        ),
        (
            ["PythonInstallReqMaxIdleTime", "0"],
            error("Failed setting config value for key 'PythonInstallReqMaxIdleTime' with value '0'"),
        ),
    ],
)
def test_set(raw, words, reply):
    assert raw.call("RG.CONFIGSET", *words) == elements(reply)


def test_a_refused_value_changes_nothing(server):
    client = server.client()
    client.execute_command("RG.CONFIGSET", "MaxExecutions", "x", "CreateVenv", 1, "PythonAttemptTraceback", "x")
    keys = ("MaxExecutions", "CreateVenv", "PythonAttemptTraceback")
    assert client.execute_command("RG.CONFIGGET", *keys) == [1000, 0, 1]


def test_switches_are_stored_as_zero_or_one(server):
    client = server.client()
    client.execute_command("RG.CONFIGSET", "PythonAttemptTraceback", 5)
    assert client.execute_command("RG.CONFIGGET", "PythonAttemptTraceback") == [1]


def test_extra_values_are_binary_safe(raw):
    raw.call("RG.CONFIGSET", "region", b"\xff\0")
    assert raw.call("RG.CONFIGGET", "region") == b"*1\r\n$2\r\n\xff\0\r\n"


def test_tracebacks_can_be_switched_at_runtime(server):
    client = server.client()
    script = "def price():\n    raise ValueError('no price')\nprice()"
    assert last_line(script_error(server, script)) == "ValueError: no price"
    client.execute_command("RG.CONFIGSET", "PythonAttemptTraceback", 0)
    short = "Error type: <class 'ValueError'>, Value: no price"
    assert script_error(server, script) == short
    step = "GB('KeysReader').map(lambda record: price()).run('k', noScan=True)"
    assert server.run(script.replace("\nprice()", f"\n{step}")) == [[], [short]]
    client.execute_command("RG.CONFIGSET", "PythonAttemptTraceback", 1)
    assert last_line(script_error(server, script)) == "ValueError: no price"


# --- module arguments ---


def test_arguments(start_server):
    arguments = "maxexecutions 7 region eu PythonAttemptTraceback 0 Plugin a.so Plugin b.so"
    server = start_server(module_args=arguments.split())
    keys = ("MaxExecutions", "region", "PythonAttemptTraceback", "Plugin", "SendMsgRetries")
    assert server.client().execute_command("RG.CONFIGGET", *keys) == [7, "eu", 0, ["a.so", "b.so"], 3]
    assert in_script(server, "return [configGet('region'), configGet('PythonAttemptTraceback')]") == ["eu", "0"]
    assert script_error(server, "raise ValueError('x')") == "Error type: <class 'ValueError'>, Value: x"
    wait_until(lambda: "MaxExecutions:7" in server.log() and "ExecutionThreads:3" in server.log())


def test_values_of_scripts_are_not_in_the_log(start_server):
    """A password in an argument of the module stood in the log at each start."""
    server = start_server(module_args=["dsn", "postgresql://shop:topsecret@db/shop", "MaxExecutions", "7", "RunAs", "all"])
    assert server.client().execute_command("RG.CONFIGGET", "dsn") == ["postgresql://shop:topsecret@db/shop"]
    wait_until(lambda: "dsn:(not shown)" in server.log() and "MaxExecutions:7" in server.log() and "RunAs:all" in server.log())
    server.client().execute_command("RG.CONFIGSET", "token", "topsecret2", "MaxExecutions", "topsecret3")
    known = [["RG.STATS"], ["INFO", "everything"], ["RG.DUMPREGISTRATIONS", "VERBOSE"]]
    assert "topsecret" not in str([server.raw().call(*words) for words in known])
    assert "topsecret" not in server.log()


@pytest.mark.parametrize(("name", "value"), [("registrationpolicy", "deny"), ("RUNAS", "owner")])
def test_options_of_rights_are_known_in_any_letter_case(start_server, name, value):
    """They had no effect, and nobody was told."""
    canonical = {"registrationpolicy": "RegistrationPolicy", "RUNAS": "RunAs"}[name]
    server = start_server(module_args=[name, value])
    assert server.client().execute_command("RG.CONFIGGET", canonical) == [value]
    wait_until(lambda: f"{canonical}:{value}" in server.log())
    (refused,) = server.client().execute_command("RG.CONFIGSET", name, "all")
    assert str(refused).endswith(f"{name} is not configurable at runtime")


def test_python_keys_in_another_letter_case_are_extra_values(start_server):
    server = start_server(module_args=["pythonattempttraceback", "0"])
    keys = ("pythonattempttraceback", "PythonAttemptTraceback")
    assert server.client().execute_command("RG.CONFIGGET", *keys) == ["0", 1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["MaxExecutions", "many"], "Failed setting config value MaxExecutions"),
        (["executionthreads", "0"], "Failed setting config value executionthreads"),
        (["ExecutionMaxIdleTime", "-1"], "Failed setting config value ExecutionMaxIdleTime"),
        (["AsyncLoop", "foo"], "AsyncLoop: expected 'asyncio' or 'uvloop', got 'foo'"),
        (["region", "eu", "MaxExecutions"], "Value was not given to MaxExecutions"),
        (["region"], "Value was not given to region"),
        (["PythonAttemptTraceback", "x"], "Failed parsing PythonAttemptTraceback config, value must be a number."),
        (
            ["PythonInstallReqMaxIdleTime", "0"],
            "Failed parsing PythonInstallReqMaxIdleTime config, value must be greater then zero.",
        ),
    ],
)
def test_bad_arguments_are_refused_at_load(start_server, arguments, line):
    with pytest.raises(ServerDied) as died:
        start_server(module_args=arguments)
    assert line in str(died.value)
    assert "ended with status 1;" in str(died.value)  # it left by itself, no crash


def test_bad_core_values_name_the_initialisation(start_server):
    with pytest.raises(ServerDied, match="could not initialize gears config"):
        start_server(module_args=["MaxExecutions", "many"])
