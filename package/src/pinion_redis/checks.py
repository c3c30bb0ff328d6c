"""What `pinion doctor` looks at. Each check gives findings, and none stops the others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from . import __version__
from .connection import Address, Server
from .errors import NoConnection, NotAllowed, PinionError
from .figures import Registration, last_line, registrations
from .nodes import all_nodes, asking, differing, options

Level = Literal["ok", "warning", "problem"]
# A call of `save` that runs for longer may hang; a change that is older waits for something.
_SLOW_S = 5
_OLD_S = 60
# What `pinion deploy`, `list`, `top` and `rm` call.
_NEEDED = ("rg.pyexecute", "rg.stats", "rg.unregister", "rg.trigger", "rg.pyprofile")


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and what to do."""

    level: Level
    subject: str
    text: str
    advice: str = ""


def check(address: Address) -> list[Finding]:
    """All findings about a server. Without a connection the only one is a problem."""
    server = Server(address)
    try:
        answers = _as_allowed(address, _connection(server))
    except NoConnection as error:
        return [Finding("problem", "connection", str(error), "see whether the server runs, and that the URL and the password are right")]
    try:
        findings = [*answers, *_as_allowed(address, _server(server)), *_rights(server)]
        module = _as_allowed(address, _module(server))
        findings += module
        if any(finding.level == "problem" for finding in module):
            return findings
        try:
            shards = server.stats()
        except NotAllowed as error:
            return [*findings, Finding("problem", "figures", str(error), address.rights_for_stats())]
        except PinionError as error:
            advice = "see that each shard can be reached and has the module"
            return [*findings, Finding("problem", "figures", str(error), advice)]
        cluster = _as_allowed(address, _cluster(server, shards))
        nodes = [*_of_all_nodes(address, _default_user(server)), *_of_all_nodes(address, _nodes(server))]
        return [*findings, *_python(shards), *_options(server, shards), *nodes, *cluster, *_functions(shards)]
    finally:
        server.close()


def _as_allowed(address: Address, found: Iterable[Finding]) -> list[Finding]:
    """These findings; where the user may not look any further, that is the last one."""
    findings = []
    try:
        for finding in found:
            findings.append(finding)
    except NotAllowed as error:
        refused = re.search(r"run the '(.+?)' command", str(error))
        advice = f"ACL SETUSER {address.user_name()} +{refused[1]}" if refused else "let this user run it"
        findings.append(Finding("warning", "rights", str(error), advice))
    return findings


def _of_all_nodes(address: Address, found: Iterable[Finding]) -> list[Finding]:
    """The same of what is asked of all nodes; one that cannot be reached from here ends these findings only."""
    findings: list[Finding] = []
    try:
        findings += _as_allowed(address, found)
    except NoConnection as error:
        findings.append(Finding("warning", "nodes", str(error), "run it where all nodes can be reached, with a user that all of them know"))
    return findings


def _connection(server: Server) -> Iterator[Finding]:
    yield Finding("ok", "connection", server.address.shown())
    server.call("PING")


def _server(server: Server) -> Iterator[Finding]:
    info = server.call("INFO", "server")
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info["redis_version"])
    number = tuple(int(part) for part in version.split(".")[:2])
    if name == "Redis" and number < (6, 2):
        yield Finding("problem", "server", f"{name} {version}", "Redis 6.2 or newer is needed, 7.2 or newer is best")
    elif name == "Redis" and number < (7, 2):
        text = f"{name} {version} does not let a module see who sent a command: reads of linked keys do not run at full speed"
        yield Finding("warning", "server", text, "use Redis 7.2 or newer, or Valkey, if hits must be as fast as without the module")
    else:
        yield Finding("ok", "server", f"{name} {version}")


def _module(server: Server) -> Iterator[Finding]:
    if not server.knows("RG.PYEXECUTE"):
        advice = "start the server with --loadmodule $(pinion path), or write `loadmodule <path>` into its configuration"
        yield Finding("problem", "module", "Pinion is not loaded in this server", advice)
    elif not server.knows("RG.STATS"):
        yield Finding("problem", "module", "this is an older Pinion, or RedisGears: it has no RG.STATS", "load the module that `pinion path` shows")
    else:
        yield Finding("ok", "module", "Pinion is loaded")


def _rights(server: Server) -> Iterator[Finding]:
    try:
        user = str(server.call("ACL", "WHOAMI"))
    except PinionError:
        return  # a user who may not ask may still work
    refused = []
    for command in _NEEDED:
        try:
            words = {"rg.trigger": ["t"], "rg.pyexecute": ["1"], "rg.unregister": ["x"], "rg.pyprofile": ["STATS", "x"]}
            reply = server.call("ACL", "DRYRUN", user, command, *words.get(command, []))
            if reply not in (True, "OK", b"OK"):
                refused.append(command)
        except PinionError:
            return  # before Redis 7.0, or this user may not ask
    if refused:
        rules = " ".join(f"+{command}" for command in refused)
        yield Finding("warning", "rights", f"the user {user} may not call {', '.join(refused)}", f"ACL SETUSER {user} {rules}")
    else:
        yield Finding("ok", "rights", f"the user {user} may deploy and watch")


def _python(shards: list[dict[str, Any]]) -> Iterator[Finding]:
    for name, here in (("python", ""), ("pinion", __version__)):
        versions = {shard[name] for shard in shards}
        if len(versions) > 1:
            text = f"shards have different versions: {', '.join(sorted(versions))}"
            advice = "functions travel as Python's own bytecode: give all shards the same minor version" if name == "python" else "upgrade all"
            yield Finding("problem", name, text, advice)
        elif here and versions != {here} and not here.startswith("0+"):
            text = f"the server has {versions.pop()}, this command is of {here}"
            yield Finding("warning", name, text, "upgrade the older one: pip install -U pinion-redis, and restart the server")
        else:
            yield Finding("ok", name, versions.pop())


def _options(server: Server, shards: list[dict[str, Any]]) -> Iterator[Finding]:
    try:
        sync_timeout, threads, policy = server.call("RG.CONFIGGET", "SyncTimeout", "ExecutionThreads", "RequirementsPolicy")
    except PinionError as error:
        yield Finding("warning", "options", str(error), "let this user call RG.CONFIGGET")
        return
    if int(sync_timeout) == 0:
        text = "SyncTimeout is 0: a function of mode sync that never ends stops the server for ever"
        yield Finding("warning", "options", text, "RG.CONFIGSET SyncTimeout 5000")
    else:
        yield Finding("ok", "options", f"SyncTimeout {sync_timeout} ms, {threads} workers, RequirementsPolicy {policy}")
    refused = sum(shard["commands"]["refused_for_memory"] for shard in shards)
    if refused:
        text = f"{refused} commands of functions were refused because memory was at maxmemory"
        yield Finding("warning", "memory", text, "raise maxmemory, or set a maxmemory-policy that makes room")
    off = [shard["shard"] for shard in shards if shard.get("write_behind", {}).get("saving") == 0]
    if off:
        text = f"{len(off)} of {len(shards)} shards save nothing: their option WriteBehindSaving is off"
        yield Finding("warning", "write_behind", text, "RG.CONFIGSET WriteBehindSaving yes, if that is not on purpose")
    unlinked = sum(shard["commands"]["unlinked_for_acl"] for shard in shards)
    if unlinked:
        text = f"{unlinked} commands went past their functions, because the client's user may not run them"
        yield Finding("warning", "rights", text, "let those users run RG.INNERREAD and RG.INNERWRITE: +@read +@write has them")


def _default_user(server: Server) -> Iterator[Finding]:
    """The server loads its AOF file as the user `default`, and drops what he may not do."""
    info = server.call("INFO", "server")
    if tuple(int(part) for part in str(info.get("valkey_version", "0")).split(".")[:2]) >= (9, 1):
        return  # it loads the file with all rights
    with all_nodes(server) as nodes:
        for name, client in nodes:
            with asking(server, name):
                if dict(client.config_get("appendonly")).get("appendonly") != "yes":
                    continue
                rules = next((str(line) for line in client.acl_list() if str(line).startswith("user default ")), "")
            words = set(rules.split())
            if words & {"~*", "allkeys"} and words & {"+@all", "allcommands"} and not any(word.startswith("-") for word in words):
                continue
            text = f"the user default lacks rights on {name}, and the server loads its AOF file as him: what he may not do is lost at a restart"
            yield Finding("warning", "AOF", text, "ACL SETUSER default ~* &* +@all (he may be off), also in the server's file")


def _nodes(server: Server) -> Iterator[Finding]:
    found = list(options(server))
    if other := differing(found):
        text = f"{', '.join(other)} not the same on {', '.join(node.node for node in found)}"
        yield Finding("warning", "options", text, "options are not replicated: RG.CONFIGSET on each node, and the loadmodule line in each file")
    for node in found:
        if lost := node.lost_at_restart():
            text = f"{', '.join(lost)} on {node.node} not as in its loadmodule line, which counts again after a restart"
            yield Finding("warning", "options", text, "write the value into the loadmodule line of its file")


def _cluster(server: Server, shards: list[dict[str, Any]]) -> Iterator[Finding]:
    if not shards[0]["cluster"]["enabled"]:
        if shards[0]["role"] == "replica":
            yield Finding("warning", "cluster", "a replica, no cluster", "deploy to its master")
            return
        replicas = int(server.call("INFO", "replication").get("connected_slaves", 0))
        beside = f"with {replicas} replica{'' if replicas == 1 else 's'}" if replicas else "without replicas"
        yield Finding("ok", "cluster", f"a master {beside}, no cluster")
        return
    state = server.call("CLUSTER", "INFO")
    told = dict(line.split(":", 1) for line in state.split() if ":" in line) if isinstance(state, str) else state
    if told.get("cluster_state") != "ok":
        yield Finding("problem", "cluster", f"cluster_state is {told.get('cluster_state')}", "see CLUSTER INFO: all slots need a master that is up")
    away = {
        f"{shard['shard'][:8]} -> {other['host']}:{other['port']}"
        for shard in shards
        for other in shard["cluster"]["shards"]
        if not other["connected"]
    }
    if away:
        text = f"{len(away)} links between shards are down: {', '.join(sorted(away))}"
        yield Finding("problem", "links", text, "see that shards reach each other's ports; the log of each says why")
    else:
        yield Finding("ok", "links", f"{len(shards)} shards, all linked")
    sets = {frozenset(entry["id"] for entry in shard["registrations"]) for shard in shards}
    if len(sets) > 1:
        yield Finding("warning", "registrations", "shards have different registrations", "wait some seconds, they compare; then see their logs")


def _functions(shards: list[dict[str, Any]]) -> Iterator[Finding]:
    found = registrations(shards)
    for entry in found:
        subject = f"{entry.session}: {entry.reader} {entry.events()}"
        for text in entry.warnings:
            yield Finding("warning", subject, f"may never fire: {text}", "correct the script and deploy it again")
        if entry.last_error:
            text = f"the last execution failed: {last_line(entry.last_error)}"
            yield Finding("warning", subject, text, f"pinion show {entry.id}")
        if entry.reader == "WriteBehind":
            yield from _queue(entry, subject)
        if entry.status not in (None, "OK"):
            yield Finding("warning", subject, f"its status is {entry.status}", f"RG.UNPAUSEREGISTRATIONS {entry.id}")
    lost = sum(shard["executions"].get("lost_workers", 0) for shard in shards)
    if lost:
        text = f"{lost} workers hang in calls that were given up and do not return"
        yield Finding("warning", "workers", text, "give connections timeouts of their own; the log names the functions")
    queued = sum(shard["executions"]["queued"] for shard in shards)
    if queued > 1000:
        text = f"{queued} executions wait for a worker"
        yield Finding("warning", "backlog", text, "see `pinion top` for the slow ones; more workers: ExecutionThreads")
    yield Finding("ok", "functions", f"{len(found)} registrations")


def _queue(entry: Registration, subject: str) -> Iterator[Finding]:
    """Whether the queue of a `write_behind` moves."""
    queued, oldest_s = entry.figures.get("queued", 0), entry.figures.get("oldestMS", 0) / 1000
    if not queued:
        return
    failed, saving_s = entry.figures.get("failuresInRow", 0), entry.figures.get("savingMS", 0) / 1000
    queue = f"{queued} changes are not saved, the oldest for {oldest_s:.0f} s"
    if failed:
        yield Finding("warning", subject, f"save has failed {failed} times in a row: {queue}", "`pinion key` with one of the keys says why, and so does the log")
    elif saving_s > _SLOW_S:
        yield Finding("warning", subject, f"a call of save has run for {saving_s:.0f} s: {queue}", "give its connection a timeout; max_save_time")
    elif oldest_s > max(_OLD_S, 2 * float(entry.arguments.get("interval") or 0)):
        yield Finding("warning", subject, f"the queue does not keep up: {queue}", "see `pinion top`; a larger batch, a faster save")
