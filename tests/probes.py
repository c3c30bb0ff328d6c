"""Short ways to ask a server what Python sees in it. Used by the suites about scripts, steps and executions.

`in_script` and `in_step` run the body of a function: at script level (main thread) and in a step (worker thread).
"""

from __future__ import annotations

import ast
import textwrap
from typing import Any

import pytest
import redis

from helpers import Arg, Server, as_dict, wait_for_aof, wait_until

# A server that loses nothing when it is killed.
AOF = ["--appendonly", "yes", "--appendfsync", "always"]

# Occupies a worker until the key `go` exists.
BUSY = """
import time

def wait(record):
    while not execute('get', 'go'):
        time.sleep(0.001)
    return 'went'

GB('KeysReader').map(wait).run('k', noScan=True)
"""


def in_script(server: Server, body: str) -> Any:
    """What `body` returns at script level; a Python literal."""
    server.run(f"{_function(body)}\nexecute('SET', 'probe', repr(probe(None)))")
    client = server.client()
    value = ast.literal_eval(client.get("probe"))
    client.delete("probe")
    return value


def in_step(server: Server, body: str) -> Any:
    """What `body` returns in a step of a background execution; a Python literal."""
    # In a list: a text that begins with + or - has a meaning as a result.
    steps = "GB('KeysReader').map(probe).map(lambda value: repr([value])).run('k', noScan=True)"
    results, errors = server.run(f"{_function(body)}\n{steps}")
    assert (len(results), errors) == (1, [])
    return ast.literal_eval(results[0])[0]


def _function(body: str) -> str:
    return "def probe(record):\n" + textwrap.indent(textwrap.dedent(body), "    ")


def error_of(server: Server, *words: Arg, command: str = "RG.PYEXECUTE") -> str:
    """The error reply of a command, whole."""
    reply = server.raw().call(command, *words)
    assert reply.startswith(b"-"), reply
    return reply[1:-2].decode()


def script_error(server: Server, script: str, *args: Arg) -> str:
    """The error of a script, whole."""
    return error_of(server, textwrap.dedent(script), *args)


def raised(server: Server, script: str) -> str:
    """The last line of the traceback of a script, as `gears.error: text`."""
    return last_line(script_error(server, script))


def last_line(error: str) -> str:
    """The last line of a traceback in the form of an error string."""
    lines = ast.literal_eval(error)
    assert isinstance(lines, list), error
    return lines[-1].rstrip("\n")


def executions(server: Server) -> dict[str, dict[str, Any]]:
    """`RG.DUMPEXECUTIONS` by id."""
    entries = [as_dict(entry) for entry in server.client().execute_command("RG.DUMPEXECUTIONS")]
    return {entry["executionId"]: entry for entry in entries}


def status(server: Server, execution: str) -> str:
    """The status of an execution, `gone` if it is not listed."""
    return executions(server).get(execution, {"status": "gone"})["status"]


def start(server: Server, script: str, awaited: str = "running") -> str:
    """Starts a `run` without waiting for its end; returns its id when it has the awaited status."""
    execution = server.run(script, "UNBLOCKING")
    wait_until(lambda: status(server, execution) == awaited, message=f"{execution} is {awaited}")
    return execution


def blocked_clients(server: Server) -> int:
    """How many clients wait for a reply."""
    return server.own.info("clients")["blocked_clients"]


def refused(client: redis.Redis, *words: Arg) -> str:
    """The error of a command as redis-py shows it: without the code ERR."""
    with pytest.raises(redis.ResponseError) as caught:
        client.execute_command(*words)
    return str(caught.value)


def data(server: Server) -> dict[str, Any]:
    """RegistrationData of the first registration."""
    return server.registrations()[0]["RegistrationData"]


def session(server: Server) -> dict[str, Any]:
    """PD of the only registration."""
    [entry] = server.registrations()
    return ast.literal_eval(entry["PD"])


def triggered(server: Server) -> list[int]:
    """`numTriggered` of all registrations."""
    return [entry["RegistrationData"]["numTriggered"] for entry in server.registrations()]


def begun(server: Server, *words: str) -> None:
    """Waits until exactly these calls have begun, in this order: functions that hold note them in the list `begun`."""
    wait_until(lambda: server.own.lrange("begun", 0, -1) == list(words), message=f"{words} have begun")


def go(server: Server) -> None:
    """Lets functions end that hold until the key `go` exists."""
    server.client().set("go", "1")


def attach(replica: Server, master: Server) -> None:
    """Makes a server the replica of another one, and waits until it has its data, also in its AOF file."""
    replica.client().execute_command("REPLICAOF", master.host, master.port)
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up", timeout=20)
    # Until its AOF file is rewritten, a replica with new data keeps nothing.
    wait_for_aof(replica.client())
