"""Functions that crash the process, and processes that they fork and that crash: what comes of it. docs/security.md, docs/functions.md."""

from __future__ import annotations

import re
import signal
import textwrap
from typing import Any, Callable

import pytest
import redis

from helpers import Server

pytestmark = pytest.mark.matrix

StartServer = Callable[..., Server]

CRASHES = {
    "os.abort": ("import os\ndef f(r): os.abort()", signal.SIGABRT),
    "a read from nowhere": ("import ctypes\ndef f(r): ctypes.string_at(0)", signal.SIGSEGV),
    "Py_FatalError": ("import ctypes\ndef f(r): ctypes.pythonapi.Py_FatalError(b'broken')", signal.SIGABRT),
}


def register(server: Server, body: str, mode: str) -> None:
    """The trigger `t`."""
    server.run(f"import time\n{textwrap.dedent(body)}\nGB('CommandReader').map(f).register(trigger='t', mode={mode!r})")


def call(server: Server) -> Any:
    return server.client().execute_command("RG.TRIGGER", "t")


@pytest.mark.parametrize("mode", ["async_local", "sync"])
@pytest.mark.parametrize("how", CRASHES)
def test_a_crash_ends_the_server_and_what_was_written_is_there(start_server: StartServer, how: str, mode: str) -> None:
    """It ends by the signal, with its own report, and does not hang; the AOF file has data and registrations."""
    # Its test of the memory, at the end of the report, overwrites what threads use that still run.
    server = start_server(args=["--appendonly", "yes", "--appendfsync", "always", "--crash-memcheck-enabled", "no"])
    body, number = CRASHES[how]
    register(server, body, mode)
    server.client().set("k", "v")
    server.expect_death()
    with pytest.raises(redis.ConnectionError):
        call(server)
    assert server.wait_exit(60) == -number
    assert f"crashed by signal: {int(number)}" in server.log()
    server.start()
    assert server.client().get("k") == "v"
    assert [entry["reader"] for entry in server.registrations()] == ["CommandReader"]


CHILDREN = {
    "aborts": ("os.abort()", -signal.SIGABRT),
    "crashes": ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
    "is terminated": ("os.kill(os.getpid(), 15); time.sleep(20); os._exit(3)", -signal.SIGTERM),
    "is interrupted": ("os.kill(os.getpid(), 2); time.sleep(20); os._exit(3)", -signal.SIGINT),
    "holds Python": ("import ctypes; ctypes.PyDLL(None).usleep(2_500_000); os._exit(4)", 4),
    "computes": ("[0 for _ in iter(lambda until=time.monotonic() + 2.5: time.monotonic() < until, False)]; os._exit(5)", 5),
    "raises": ("raise ValueError('of the child')", 1),
}


@pytest.mark.own_server
@pytest.mark.parametrize("what", CHILDREN)
def test_a_forked_child_is_not_the_server(server: Server, what: str) -> None:
    """It ends as any process does, and neither the server's reports nor the module's watchdogs say anything."""
    does, code = CHILDREN[what]
    body = f"""
    import os
    def f(r):
        child = os.fork()
        if child == 0:
            {does}
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    """
    register(server, body, "async_local")
    before = said(server)
    assert call(server) == [str(int(code))]
    assert said(server) == before
    assert server.alive()


def said(server: Server) -> list[str]:
    """Lines that the server and the module have written, which begin with the id of a process, and those of a crash."""
    return re.findall(r"(?m)^\d+:\w .*|.*(?:crashed|BUG REPORT|Python has been held).*", server.log())


def test_a_process_of_multiprocessing_can_be_terminated(server: Server) -> None:
    body = """
    import multiprocessing
    def f(r):
        process = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
        process.start()
        process.terminate()
        process.join(30)
        return process.exitcode
    """
    register(server, body, "async_local")
    assert call(server) == [str(-signal.SIGTERM)]
