"""One server for many tests: it is emptied between them, and replaced where that does not make it as it was."""

from __future__ import annotations

import contextlib
from typing import Any, Callable

import redis

from helpers import Server, as_dict, wait_until

# What changes by itself, or by looking at it.
VOLATILE = {"maxmemory-clients"}


class Lender:
    """Has at most one server that is ready for a test."""

    def __init__(self, start: Callable[..., Server]) -> None:
        self._start = start
        self._ready: Server | None = None
        self._fresh: dict[int, Any] = {}
        """What each server was like at its start, by port."""

    def lend(self, *, fresh: bool) -> Server:
        """A server that is as a fresh one; with `fresh`, one that was never used."""
        server, self._ready = self._ready, None
        if server is not None and (fresh or not server.alive()):
            server.cleanup()
            server = None
        if server is None:
            server = self._start()
            self._fresh[server.port] = fingerprint(server)
        else:
            server.mark_log()
        return server

    def take_back(self, server: Server) -> None:
        """Ends whatever a test has left there. The server is kept if that makes it what it was."""
        if not server.alive() or server.was_restarted:
            return
        server.credentials = {}
        server.disconnect()
        try:
            empty(server)
            clean = fingerprint(server) == self._fresh[server.port]
        except (redis.RedisError, AssertionError, OSError):
            clean = False
        server.disconnect()
        if clean:
            self._ready = server
        else:
            server.cleanup()


def empty(server: Server) -> None:
    """Removes data, registrations, executions, sessions and users' scripts, and ends what is under way."""
    client = server.client(socket_timeout=5)
    for words in (("CLIENT", "UNPAUSE"), ("SCRIPT", "FLUSH"), ("FUNCTION", "FLUSH"), ("SLOWLOG", "RESET"), ("ACL", "LOG", "RESET")):
        with contextlib.suppress(redis.ResponseError):  # not known to this server, or nothing to do
            client.execute_command(*words)
    for registration in client.execute_command("RG.DUMPREGISTRATIONS"):
        client.execute_command("RG.UNREGISTER", as_dict(registration)["id"], "ABORTPENDING")
    for execution in map(as_dict, client.execute_command("RG.DUMPEXECUTIONS")):
        for command in ("RG.ABORTEXECUTION", "RG.DROPEXECUTION"):
            with contextlib.suppress(redis.ResponseError):  # it has ended meanwhile
                client.execute_command(command, execution["executionId"])
    client.flushall()
    client.config_resetstat()
    wait_until(lambda: client.info("clients")["blocked_clients"] == 0, 2, "nobody is blocked")


def fingerprint(server: Server) -> Any:
    """All that a test could have changed and that others would see."""
    client = server.client(socket_timeout=5)
    options = {name: value for name, value in client.config_get("*").items() if name not in VOLATILE}
    role = client.info("replication")
    lists = [client.execute_command(word) for word in ("RG.DUMPREGISTRATIONS", "RG.DUMPEXECUTIONS", "RG.PYDUMPREQS")]
    sessions = [client.execute_command("RG.PYDUMPSESSIONS"), client.execute_command("RG.PYDUMPSESSIONS", "DEAD")]
    module = client.execute_command("RG.CONFIGGET", *module_options(client))
    return options, module, lists, sessions, client.acl_list(), (role["role"], role["connected_slaves"]), client.dbsize()


def module_options(client: redis.Redis) -> list[str]:
    """The names of the module's options that can change while it runs."""
    return ["MaxExecutions", "MaxExecutionsPerRegistration", "ProfileExecutions", "SyncTimeout", "ExecutionMaxIdleTime",
            "MaxPendingPerRegistration", "PythonInstallReqMaxIdleTime", "SendMsgRetries"]
