"""Servers for many tests: they are emptied between them, and replaced where that does not make them as they were."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, NamedTuple, Sequence

import redis

from helpers import Arg, Server, as_dict, wait_until

# What changes by itself, or by looking at it.
VOLATILE = {"maxmemory-clients"}
# The module's options that can change while it runs.
MODULE_OPTIONS = ["MaxExecutions", "MaxExecutionsPerRegistration", "ProfileExecutions", "SyncTimeout", "ExecutionMaxIdleTime",
                  "MaxPendingPerRegistration", "PythonInstallReqMaxIdleTime", "SendMsgRetries"]


class Lender:
    """Keeps servers that are ready for a test, by what they were started with."""

    def __init__(self, start: Callable[..., Server]) -> None:
        self._start = start
        self._ready: dict[Any, list[Server]] = {}
        self._fresh: dict[int, tuple[Any, Fingerprint]] = {}
        """What each server was started with, and what it was like then, by port."""

    def lend(self, *, fresh: bool = False, module_args: Sequence[Arg] = (), args: Sequence[Arg] = ()) -> Server:
        """A server with these arguments that is as a fresh one; with `fresh`, one that was never used."""
        started_with = (tuple(map(str, module_args)), tuple(map(str, args)))
        ready = self._ready.setdefault(started_with, [])
        while ready:
            server = ready.pop()
            if not fresh and server.alive():
                server.mark_log()
                return server
            server.cleanup()
        server = self._start(module_args=module_args, args=args)
        self._fresh[server.port] = (started_with, fingerprint(server))
        return server

    def take_back(self, server: Server) -> None:
        """Ends whatever a test has left there. The server is kept if that makes it what it was."""
        if not server.alive() or server.was_restarted:
            return
        server.credentials = {}
        server.disconnect()
        started_with, fresh = self._fresh[server.port]
        try:
            empty(server)
            now = fingerprint(server)
            if now != fresh:
                restore(server, now, fresh)
                now = fingerprint(server)
        except (redis.RedisError, AssertionError, OSError):
            now = None
        server.disconnect()
        if now == fresh:
            self._ready[started_with].append(server)
        else:
            server.cleanup()


def empty(server: Server) -> None:
    """Removes data, registrations, executions, sessions and users' scripts, and ends what is under way."""
    client = server.client(socket_timeout=30)
    # What is not known to this server, or has nothing to do, is an error that nobody needs.
    together(client, ["CLIENT UNPAUSE"], ["SCRIPT FLUSH"], ["FUNCTION FLUSH"], ["SLOWLOG RESET"], ["ACL LOG", "RESET"])
    registrations, executions = together(client, ["RG.DUMPREGISTRATIONS"], ["RG.DUMPEXECUTIONS"])
    for registration in registrations:
        client.execute_command("RG.UNREGISTER", as_dict(registration)["id"], "ABORTPENDING")
    ids = [as_dict(execution)["executionId"] for execution in executions]
    together(client, *([command, id] for id in ids for command in ("RG.ABORTEXECUTION", "RG.DROPEXECUTION")))
    client.flushall()
    client.config_resetstat()
    wait_until(lambda: client.info("clients")["blocked_clients"] == 0, 2, "nobody is blocked")


def together(client: redis.Redis, *commands: Sequence[str]) -> list[Any]:
    """The replies of commands that are sent as one piece; errors are among them."""
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return pipeline.execute(raise_on_error=False)


class Fingerprint(NamedTuple):
    """All that a test could have changed and that others would see."""

    options: dict[str, str]
    module_options: dict[str, Any]
    users: list[str]
    dumps: list[Any]
    role: tuple[str, int]
    keys: int


def fingerprint(server: Server) -> Fingerprint:
    client = server.client(socket_timeout=30)
    words = (["RG.DUMPREGISTRATIONS"], ["RG.DUMPEXECUTIONS"], ["RG.PYDUMPREQS"], ["RG.PYDUMPSESSIONS"], ["RG.PYDUMPSESSIONS", "DEAD"])
    options, module_options, users, keys, role, *dumps = together(
        client, ["CONFIG GET", "*"], ["RG.CONFIGGET", *MODULE_OPTIONS], ["ACL LIST"], ["DBSIZE"], ["INFO", "replication"], *words
    )
    return Fingerprint(
        options={name: value for name, value in options.items() if name not in VOLATILE},
        module_options=dict(zip(MODULE_OPTIONS, module_options)),
        users=users,
        dumps=dumps,
        role=(role["role"], role["connected_slaves"]),
        keys=keys,
    )


def restore(server: Server, now: Fingerprint, fresh: Fingerprint) -> None:
    """Takes back options, and users that were not there. What cannot be taken back shows in the next fingerprint."""
    client = server.client(socket_timeout=30)
    for name, value in fresh.options.items():
        if now.options.get(name) != value:
            with contextlib.suppress(redis.ResponseError):
                client.config_set(name, value)
    for name, value in fresh.module_options.items():
        if now.module_options[name] != value:
            client.execute_command("RG.CONFIGSET", name, value)
    names = lambda users: {user.split()[1] for user in users}  # noqa: E731
    if strangers := names(now.users) - names(fresh.users):
        client.execute_command("ACL", "DELUSER", *strangers)
