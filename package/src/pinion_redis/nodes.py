"""All nodes, replicas too: what each keeps for itself and should be the same on all. For `pinion doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Optional

import redis

from .connection import Server, client_at, plainly, speaking
from .errors import NoConnection, PinionError

# What each node has for itself by its nature, and what is a list.
_OF_ITS_OWN = ("pythonvenv", "pythonrequirementsdir", "plugin")
_WORDS = {"yes": "1", "no": "0"}  # RG.CONFIGGET shows numbers for them


@dataclass(frozen=True)
class Options:
    """The module's options on one node. Values stay in here: passwords are among them."""

    node: str
    now: dict[str, Any]
    """Name in lower case to what RG.CONFIGGET says."""
    at_start: dict[str, str]
    """The arguments of `loadmodule`, which the node has again when it starts anew."""

    def lost_at_restart(self) -> list[str]:
        """Options that have another value than the arguments give them."""
        return [name for name, value in self.at_start.items() if self.now.get(name) is not None and _text(self.now[name]) != _text(value)]


def differing(nodes: list[Options]) -> list[str]:
    """Names of options that do not have one value on all nodes."""
    names = dict.fromkeys(name for node in nodes for name in node.now)
    return [name for name in names if len({_text(node.now.get(name)) for node in nodes}) > 1]


def options(server: Server) -> Iterator[Options]:
    """Of each master and of its replicas the options that an argument of `loadmodule` names on any of them.

    Values that only RG.CONFIGSET has brought have no name that could be asked for.
    # Raises `NoConnection` where a node cannot be asked.
    """
    found: list[tuple[str, redis.Redis, dict[str, str]]] = []
    with all_nodes(server) as nodes:
        for name, client in nodes:
            with asking(server, name):
                found.append((name, client, _arguments(client)))
        asked = list(dict.fromkeys(option for _, _, arguments in found for option in arguments))
        for name, client, arguments in found:
            with asking(server, name):
                answers = [(option.lower(), _one(client, option)) for option in asked]
            now = {option: value for option, value in answers if value is not None}  # names must be spelled exactly
            yield Options(name, now, {option.lower(): value for option, value in arguments.items()})


@contextmanager
def all_nodes(server: Server) -> Iterator[list[tuple[str, redis.Redis]]]:
    """A client for each master and each replica that a master knows, with its address; those of replicas are closed at the end."""
    opened: list[redis.Redis] = []
    nodes: list[tuple[str, redis.Redis]] = []
    try:
        for client in server.shards():
            kwargs = client.connection_pool.connection_kwargs
            with speaking(server.address):
                told = client.info("replication")
            # A socket's file, or what a Sentinel names, has no address here.
            nodes.append((f"{kwargs['host']}:{kwargs['port']}" if {"host", "port"} <= set(kwargs) else "the master", client))
            for place in (value for name, value in told.items() if name.startswith("slave") and isinstance(value, dict)):
                opened.append(client_at(server.address, str(place["ip"]), int(place["port"])))
                nodes.append((f"{place['ip']}:{place['port']}", opened[-1]))
        yield nodes
    finally:
        for client in opened:
            client.close()


@contextmanager
def asking(server: Server, node: str) -> Iterator[None]:
    """As `speaking`, and says which node it was that did not answer, or let this user in."""
    with speaking(server.address):
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise NoConnection(f"the node {node} cannot be asked from here: {error}") from None


def _arguments(client: redis.Redis) -> dict[str, str]:
    """The arguments that the module got. Servers before 7.0 do not show them."""
    for entry in plainly(client, "MODULE", "LIST"):
        told = dict(zip(entry[::2], entry[1::2]))
        if told.get("name") == "rg":
            words = [str(word) for word in told.get("args") or []]
            return {name: value for name, value in zip(words[::2], words[1::2]) if name.lower() not in _OF_ITS_OWN}
    raise PinionError("a node has not loaded the module")


def _one(client: redis.Redis, option: str) -> Optional[Any]:
    reply = plainly(client, "RG.CONFIGGET", option)
    value = reply[0] if isinstance(reply, list) and reply else reply
    return None if isinstance(value, redis.ResponseError) else value


def _text(value: Any) -> Optional[str]:
    return None if value is None else _WORDS.get(str(value).lower(), str(value))
