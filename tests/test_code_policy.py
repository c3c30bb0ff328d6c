"""Who may bring code, call it, and look: the ACL categories of the commands, and RegistrationPolicy. docs/security.md."""

from __future__ import annotations

import re
from typing import Callable

import pytest
import redis

from helpers import Server, wait_until
from servers import ROOT

pytestmark = pytest.mark.matrix

StartServer = Callable[..., Server]
SCRIPT = "GB('CommandReader').map(lambda r: 'called').register(trigger='t', mode='sync')"
DENIED = r"clients may not bring code to this server \(RegistrationPolicy is 'deny'\)"
REGISTER = {"pyexecute", "pyimportreq", "unregister", "unregistersession", "pauseregistrations", "unpauseregistrations"}
CALL = {"trigger", "triggeronkey", "refresh"}


def commands_in(client: redis.Redis, category: str) -> set[str]:
    return {name.lower() for name in client.execute_command("ACL", "CAT", category)}


def test_three_rights(server: Server) -> None:
    client = server.client()
    if not any(category.startswith("gears") for category in client.execute_command("ACL", "CAT")):
        assert server.version < (7, 4) and not server.is_valkey, "such servers have no categories of modules"
        return
    assert commands_in(client, "gears-register") == {f"rg.{name}" for name in REGISTER}
    assert commands_in(client, "gears-call") == {f"rg.{name}" for name in CALL}
    looking = commands_in(client, "gears-look")
    assert {"rg.dumpregistrations", "rg.stats"} <= looking and "rg.configget" not in looking
    every = commands_in(client, "gears")
    assert looking | {f"rg.{name}" for name in REGISTER | CALL} < every
    assert not [name for name in every if name.startswith(("rg.innerread", "rg.innerwrite"))]
    for name, allowed in (("register", "PYEXECUTE"), ("call", "TRIGGER"), ("look", "DUMPREGISTRATIONS")):
        client.execute_command("ACL", "SETUSER", "one", "reset", "on", ">pw", "~*", f"+@gears-{name}")
        one = server.client(username="one", password="pw")
        words = {"PYEXECUTE": [SCRIPT, "ID", "s", "UPGRADE"], "TRIGGER": ["t"], "DUMPREGISTRATIONS": []}
        for command, arguments in words.items():
            if command == allowed:
                one.execute_command(f"RG.{command}", *arguments)
            else:
                with pytest.raises(redis.exceptions.NoPermissionError):
                    one.execute_command(f"RG.{command}", *arguments)
    client.execute_command("ACL", "DELUSER", "one")


def test_the_users_of_the_page(server: Server) -> None:
    """Those of docs/security.md can do what they are for."""
    client = server.client()
    if "gears" not in client.execute_command("ACL", "CAT"):
        return
    rules = re.findall(r"^    ACL SETUSER (deployer|monitor) (.*)$", (ROOT / "docs/security.md").read_text(), re.MULTILINE)
    assert [name for name, _ in rules] == ["deployer", "monitor"]
    for name, words in rules:
        client.execute_command("ACL", "SETUSER", name, "reset", *words.split())
    deployer, monitor = (server.client(username=name, password="secret") for name, _ in rules)
    server.run(SCRIPT, client=deployer)
    for one in (deployer, monitor):
        assert one.ping() and one.info("rg")["rg_nregistrations"] == 1
        assert len(one.execute_command("RG.DUMPREGISTRATIONS")) == 1
    with pytest.raises(redis.exceptions.NoPermissionError):
        monitor.execute_command("RG.CONFIGGET", "dsn")
    client.execute_command("ACL", "DELUSER", "deployer", "monitor")


def test_all_but_ours(server: Server) -> None:
    client = server.client()
    if "gears" not in client.execute_command("ACL", "CAT"):
        assert server.version < (7, 4) and not server.is_valkey
        return
    client.execute_command("ACL", "SETUSER", "one", "reset", "on", ">pw", "~*", "+@all", "-@gears", "+@gears-call")
    one = server.client(username="one", password="pw")
    server.run(SCRIPT)
    assert one.execute_command("RG.TRIGGER", "t") == ["called"]
    with pytest.raises(redis.exceptions.NoPermissionError):
        server.run(SCRIPT, client=one)
    client.execute_command("ACL", "DELUSER", "one")


def test_no_code_comes_in_by_a_client(start_server: StartServer) -> None:
    server = start_server(module_args=["RegistrationPolicy", "deny"])
    for words in (["RG.PYEXECUTE", SCRIPT], ["RG.PYEXECUTE", "1", "REQUIREMENTS", "redis"], ["RG.PYIMPORTREQ", "x"]):
        with pytest.raises(redis.ResponseError, match=DENIED):
            server.client().execute_command(*words)
    assert server.registrations() == []
    [reply] = server.client().execute_command("RG.CONFIGSET", "RegistrationPolicy", "allow")
    assert "not configurable at runtime" in str(reply)


def test_files_still_bring_it(start_server: StartServer) -> None:
    server = start_server(args=["--appendonly", "yes"])
    server.run(SCRIPT)
    server.module_args = ["RegistrationPolicy", "deny"]
    server.restart()
    client = server.client()
    assert client.execute_command("RG.TRIGGER", "t") == ["called"]
    [registration] = server.registrations()
    assert client.execute_command("RG.UNREGISTER", registration["id"]) == "OK"


def test_a_master_still_brings_it(start_server: StartServer) -> None:
    master = start_server()
    replica = start_server(module_args=["RegistrationPolicy", "deny"], args=["--replicaof", "127.0.0.1", master.port])
    wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up")
    master.run(SCRIPT)
    wait_until(lambda: len(replica.registrations()) == 1)


def test_python_in_scripts_of_the_server(start_server: StartServer) -> None:
    server = start_server(module_args=["RegistrationPolicy", "deny"])
    if not server.is_valkey or server.version < (8, 1):
        pytest.skip("this server has no Python for EVAL")
    library = "#!python name=lib\nfrom redisgears import register_function\nregister_function('f', lambda keys, args: 1)\n"
    for words in (["EVAL", "#!python\n1", 0], ["FUNCTION", "LOAD", library]):
        with pytest.raises(redis.ResponseError, match=DENIED):
            server.client().execute_command(*words)
    assert server.client().eval("return 1", 0) == 1, "Lua is not ours"
    assert server.client().execute_command("FUNCTION", "LIST") == []


def test_libraries_of_the_server_come_from_files(start_server: StartServer) -> None:
    server = start_server(args=["--appendonly", "yes"])
    if not server.is_valkey or server.version < (8, 1):
        pytest.skip("this server has no Python for EVAL")
    library = "#!python name=lib\nfrom redisgears import register_function\nregister_function('f', lambda keys, args: 1)\n"
    server.client().execute_command("FUNCTION", "LOAD", library)
    server.module_args = ["RegistrationPolicy", "deny"]
    server.restart()
    assert server.client().execute_command("FCALL", "f", 0) == 1
