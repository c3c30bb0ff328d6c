"""What a server tells about our commands: COMMAND INFO, COMMAND DOCS, ACL. And the commands that say one thing only.

Contract: docs/contract/commands.md 0.2, 1.23 and 9.12; flags and categories: docs/contract/README.md.
"""

import re

import pytest
import redis

from helpers import as_dict

pytestmark = pytest.mark.matrix

# Those that execute, register or change.
ACTING = {"rg.pyexecute", "rg.unregister", "rg.abortexecution", "rg.dropexecution", "rg.configset"}
INSPECTING = {
    *("rg.getresults", "rg.getresultsblocking", "rg.getexecution", "rg.dumpexecutions", "rg.dumpregistrations"),
    *("rg.configget", "rg.pydumpsessions", "rg.pystats", "rg.dumpplugins", "rg.stats", "rg.keyinfo"),
}
PUBLIC = ACTING | INSPECTING | {"rg.pyprofile", "rg.pyexecuteremote", "rg.pyfreeinterpreter"}
WITHOUT_ARGUMENTS = {
    *("rg.dumpexecutions", "rg.pystats", "rg.stats", "rg.dumpplugins", "rg.pyexecuteremote", "rg.pyfreeinterpreter"),
}


@pytest.fixture
def client(server):
    """A client of a server that lists and documents the commands of modules."""
    if not server.is_valkey and server.version < (7, 0):
        pytest.skip("this server has no COMMAND LIST")
    return server.client()


def listed(client):
    return client.execute_command("COMMAND LIST", "FILTERBY", "MODULE", "rg")


def infos(client):
    """COMMAND INFO of all our commands, by name."""
    return {entry[0]: entry for entry in client.execute_command("COMMAND INFO", *listed(client))}


def docs(client):
    """COMMAND DOCS of all our commands, by name."""
    pairs = as_dict(client.execute_command("COMMAND DOCS", *listed(client)))
    return {name: as_dict(entry) for name, entry in pairs.items()}


# --- COMMAND LIST, COMMAND INFO ---


def test_the_public_commands_are_there(client):
    names = set(listed(client))
    assert PUBLIC <= names
    assert all(name.startswith("rg.") or name == name.upper() for name in names), "internal ones in upper case"


def test_arity_and_keys(client):
    for name, entry in infos(client).items():
        assert entry[1] == -1, name
        assert entry[3:6] == {"rg.triggeronkey": [2, 2, 1], "rg.refresh": [1, -1, 1], "rg.keyinfo": [1, 1, 1]}.get(name, [0, 0, 0]), name


def test_flags(client):
    flags = {name: {str(flag) for flag in entry[2]} for name, entry in infos(client).items()}
    for name, found in flags.items():
        assert "module" in found, name
        assert len(found & {"readonly", "write"}) == 1, name
    assert {name for name in INSPECTING if "write" in flags[name]} == set()
    assert "write" in flags["rg.pyexecute"] & flags["rg.unregister"]


@pytest.mark.parametrize("name", ["rg.pyexecute", "rg.abortexecution"])
def test_what_cannot_work_in_scripts_says_so(client, name):
    assert "noscript" in infos(client)[name][2]


def test_public_commands_have_no_keys(client):
    with pytest.raises(redis.ResponseError, match="The command has no key arguments"):
        client.execute_command("COMMAND GETKEYS", "RG.PYEXECUTE", "x = 1")


# --- ACL ---


@pytest.fixture
def categorised(server, client):
    """As `client`, where commands of modules can be put into categories."""
    if not server.native_hits:
        pytest.skip("commands of modules have no categories on this server")
    return client


def test_categories(categorised):
    categories = {name: {str(category) for category in entry[6]} for name, entry in infos(categorised).items()}
    dangerous = {name for name, found in categories.items() if "@dangerous" in found}
    assert ACTING <= dangerous
    assert not INSPECTING & dangerous
    assert {name for name in ACTING if "@admin" not in categories[name]} == set()
    assert {name for name in INSPECTING if "@read" not in categories[name]} == set()
    assert {name for name in PUBLIC if not categories[name]} == set()


def test_categories_of_commands_that_make_clients_wait(categorised):
    found = {name for name, entry in infos(categorised).items() if "@blocking" in map(str, entry[6])}
    assert {"rg.getresultsblocking", "rg.abortexecution"} <= found


def test_a_user_without_dangerous_commands_may_look_and_not_act(server, categorised):
    server.run("GB('KeysReader').register('x*')")
    categorised.execute_command("ACL", "SETUSER", "guest", "on", "nopass", "~*", "+@all", "-@dangerous")
    guest = server.client(username="guest", password="")
    assert len(guest.execute_command("RG.DUMPREGISTRATIONS")) == 1
    assert guest.execute_command("RG.CONFIGGET", "MaxExecutions") == [1000]
    [registration] = server.registrations()
    for words in (
        ["RG.PYEXECUTE", "execute('SET', 'ran', 1)"],
        ["RG.UNREGISTER", registration["id"]],
        ["RG.CONFIGSET", "MaxExecutions", 5],
        ["RG.ABORTEXECUTION", "x"],
        ["RG.DROPEXECUTION", "x"],
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            guest.execute_command(*words)
    assert len(server.registrations()) == 1
    assert categorised.get("ran") is None


# --- COMMAND DOCS ---


def test_documentation(client):
    for name, entry in docs(client).items():
        assert len(entry["summary"]) > 10 and entry["summary"][0].isupper(), name
        assert re.fullmatch(r"\d+\.\d+\.\d+", entry["since"]), name
        assert (entry["group"], entry["module"]) == ("module", "rg"), name


def test_arguments(client):
    found = docs(client)
    names = PUBLIC - {"rg.dumpregistrations"}  # 1.2 ignores what is given there
    assert {name for name in names if not found[name].get("arguments")} == WITHOUT_ARGUMENTS


def test_arguments_of_pyexecute(client):
    arguments = [as_dict(argument) for argument in docs(client)["rg.pyexecute"]["arguments"]]
    assert "token" not in arguments[0] and "flags" not in arguments[0]
    options = {argument["token"]: argument["type"] for argument in arguments[1:]}
    expected = {"UNBLOCKING": "pure-token", "ID": "string", "DESCRIPTION": "string", "UPGRADE": "pure-token"}
    assert {**expected, "REPLACE_WITH": "string"}.items() <= options.items()
    assert all("optional" in argument["flags"] for argument in arguments[1:])


def test_arguments_with_alternatives(client):
    found = {name: str(entry.get("arguments")) for name, entry in docs(client).items()}
    for name, tokens in {
        "rg.getexecution": ["SHARD", "CLUSTER"],
        "rg.unregister": ["ABORTPENDING"],
        "rg.pydumpsessions": ["VERBOSE", "DEAD", "SESSIONS"],
        "rg.pyprofile": ["STATS", "RESET"],
    }.items():
        assert [token for token in tokens if token not in found[name]] == [], name


# --- commands that say one thing ---


@pytest.mark.parametrize("words", [[], ["ignored", "too"]])
@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("RG.DUMPPLUGINS", b"*1\r\n*2\r\n$17\r\nGearsPythonPlugin\r\n:10000\r\n"),
        ("RG.PYEXECUTEREMOTE", b"$38\r\nExecute remote is not longer supported\r\n"),
        ("RG.PYFREEINTERPRETER", b"$40\r\nFree interpreter is not longer supported\r\n"),
    ],
)
def test_fixed_replies(server, command, reply, words):
    assert server.raw().call(command, *words) == reply


def test_no_command_to_shut_down(server):
    assert server.raw().call("RG.FORCESHUTDOWN").startswith(b"-ERR unknown command")
