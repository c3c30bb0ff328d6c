"""How servers are reached: URLs, TLS, users, unix sockets, Sentinel, and all shards of a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Optional, Union, cast
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from .errors import NoCommand, NoConnection, NotAllowed, NotFound, PinionError

DEFAULT_URL = "redis://127.0.0.1:6379"
Word = Union[str, bytes, int, float]


@dataclass(frozen=True)
class Address:
    """Where a server is, and as whom to log in.

    `url`: redis://, rediss:// (TLS), unix:///path, or redis+sentinel://[user:password@]host:port[,host:port]/service[/db]
    (rediss+sentinel:// with TLS). Any node of a cluster will do: the others are found.
    """

    url: str = DEFAULT_URL
    user: Optional[str] = None
    password: Optional[str] = field(default=None, repr=False)
    ca_file: Optional[str] = None
    cert_file: Optional[str] = None
    key_file: Optional[str] = None
    insecure: bool = False
    timeout: float = 10.0
    """Seconds to wait for a connection, and for a reply (0: for ever)."""

    def shown(self) -> str:
        """The URL without secrets."""
        parts = urlsplit(self.url)
        if "@" not in parts.netloc:
            return self.url
        return self.url.replace(parts.netloc, "***@" + parts.netloc.rsplit("@", 1)[1])

    def user_name(self) -> str:
        """As whom one logs in."""
        return self.user or unquote(urlsplit(self.url).username or "") or "default"

    def rights_for_stats(self) -> str:
        """What lets this user run all that `Server.stats` does."""
        return f"ACL SETUSER {self.user_name()} +info +rg.stats, in a cluster +cluster|myid +cluster|slots as well, on each shard"


class Server:
    """One server, and the shards of its cluster if it is part of one."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.client = _client(address)
        self._shards: Optional[list[redis.Redis]] = None

    def call(self, *words: Word, timeout: Optional[float] = None) -> Any:
        """A command on this server. `timeout`: seconds to wait for the reply instead of the address's.

        # Raises `NoConnection`, and `PinionError` with the server's own text.
        """
        with speaking(self.address):
            if timeout is None:
                return self.client.execute_command(*words)
            client = _client(replace(self.address, timeout=timeout))
            try:
                return client.execute_command(*words)
            finally:
                client.close()

    def shards(self) -> list[redis.Redis]:
        """A client for each master of the cluster; the server itself where there is none."""
        if self._shards is None:
            with speaking(self.address):
                self._shards = self._find_shards()
        return self._shards

    def stats(self) -> list[dict[str, Any]]:
        """What RG.STATS tells, of each shard."""
        found = []
        for client in self.shards():
            with speaking(self.address):
                found.append(cast("dict[str, Any]", json.loads(client.execute_command("RG.STATS"))))
        return found

    def on_each(self, *words: Word) -> list[Any]:
        """A command on each shard."""
        replies = []
        for client in self.shards():
            with speaking(self.address):
                replies.append(client.execute_command(*words))
        return replies

    def knows(self, command: str) -> bool:
        """True if the server has the command."""
        with speaking(self.address):
            return bool(plainly(self.client, "COMMAND", "INFO", command) != [None])

    def close(self) -> None:
        """Ends all connections."""
        for client in [self.client, *(self._shards or [])]:
            client.close()

    def _find_shards(self) -> list[redis.Redis]:
        if not self.client.info("cluster").get("cluster_enabled"):
            return [self.client]
        own = str(self.client.execute_command("CLUSTER", "MYID"))
        options = dict(self.client.connection_pool.connection_kwargs)
        options.pop("path", None)
        clients: dict[str, redis.Redis] = {}
        for entry in plainly(self.client, "CLUSTER", "SLOTS"):
            host, port, name = entry[2][:3]
            if name == own:
                clients[name] = self.client
            elif name not in clients:
                here = options.get("host", "127.0.0.1")
                clients[name] = redis.Redis(
                    connection_pool=redis.ConnectionPool(
                        connection_class=self.client.connection_pool.connection_class,
                        **{**options, "host": host or here, "port": port},
                    )
                )
        return [clients[name] for name in sorted(clients)] or [self.client]


def connect(address: Address) -> Server:
    """A server that has answered. # Raises `NoConnection`."""
    server = Server(address)
    with suppress(NotAllowed):  # that is an answer
        server.call("PING")
    return server


@contextmanager
def speaking(address: Address) -> Iterator[None]:
    """What the client library raises becomes an error for a person."""
    where = address.shown()
    try:
        yield
    except redis.AuthenticationError as error:
        raise NoConnection(f"{where} does not let this user in ({error}): give --user and --password, or PINION_PASSWORD") from None
    except MasterNotFoundError as error:
        raise NoConnection(f"no Sentinel at {where} knows this service: {error}") from None
    except redis.TimeoutError as error:
        raise NoConnection(f"{where} did not answer in time ({error}): is it busy? see --timeout") from None
    except redis.ConnectionError as error:
        raise NoConnection(f"{where} cannot be reached: {error}") from None
    except redis.exceptions.NoPermissionError as error:
        raise NotAllowed(f"this user may not do that: {error}") from None
    except redis.ResponseError as error:
        text = str(error)
        if text.lower().startswith("unknown command"):
            raise NoCommand(f"{where} does not have this command of Pinion ({text}): is the module loaded?") from None
        if "does not exist" in text or "is not registered" in text or "subcommand not found" in text:
            raise NotFound(text) from None
        raise PinionError(text) from None


def plainly(client: redis.Redis, *words: Word) -> Any:
    """The reply as the server sends it, where the client library would make something else of it, or fail."""
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command(*words)
        return connection.read_response()
    finally:
        client.connection_pool.release(connection)


def _client(address: Address) -> redis.Redis:
    parts = urlsplit(address.url)
    options: dict[str, Any] = {
        "decode_responses": True,
        "encoding_errors": "replace",
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": address.timeout or None,
        "socket_timeout": address.timeout or None,
    }
    user = address.user or (unquote(parts.username) if parts.username else None)
    password = address.password or (unquote(parts.password) if parts.password else None)
    if user:
        options["username"] = user
    if password is not None:
        options["password"] = password
    if parts.scheme in ("rediss", "rediss+sentinel"):
        options["ssl_ca_certs"] = address.ca_file
        options["ssl_certfile"] = address.cert_file
        options["ssl_keyfile"] = address.key_file
        if address.insecure:
            options["ssl_cert_reqs"] = "none"
            options["ssl_check_hostname"] = False
    if parts.scheme in ("redis+sentinel", "rediss+sentinel"):
        return _sentinel_client(address, options, tls=parts.scheme == "rediss+sentinel")
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise NoConnection(f"{address.shown()} is no URL of a server: redis://, rediss://, unix:// or redis+sentinel:// was expected")
    bare = address.url
    if "@" in parts.netloc:  # the client library prefers what the URL says
        bare = address.url.replace(parts.netloc, parts.netloc.rsplit("@", 1)[1])
    try:
        return redis.Redis.from_url(bare, **options)
    except ValueError as error:
        raise NoConnection(f"{address.shown()} is no URL of a server: {error}") from None


def client_at(address: Address, host: str, port: int) -> redis.Redis:
    """A client of another node, as the same user and with the same certificates."""
    parts = urlsplit(address.url)
    scheme = "rediss" if parts.scheme.startswith("rediss") else "redis"
    user = address.user or (unquote(parts.username) if parts.username else None)
    password = address.password or (unquote(parts.password) if parts.password else None)
    place = f"[{host}]" if ":" in host else host
    return _client(replace(address, url=f"{scheme}://{place}:{port}", user=user, password=password))


def _sentinel_client(address: Address, options: dict[str, Any], *, tls: bool) -> redis.Redis:
    parts = urlsplit(address.url)
    service, _, database = parts.path.strip("/").partition("/")
    hosts = parts.netloc.rsplit("@", 1)[-1]
    places = []
    for place in hosts.split(","):
        host, _, port = place.rpartition(":")
        if not host or not port.isdigit() or not service:
            raise NoConnection(
                f"{address.shown()} is no URL of a service: redis+sentinel://host:port[,host:port]/service[/db] was expected"
            )
        places.append((host.strip("[]"), int(port)))
    query = parse_qs(parts.query)
    own = {name: query[f"sentinel_{name}"][0] for name in ("username", "password") if f"sentinel_{name}" in query}
    limits = {name: options[name] for name in ("socket_connect_timeout", "socket_timeout")}
    secure = {name: value for name, value in options.items() if name.startswith("ssl_")}
    if tls:
        secure["ssl"] = True
    sentinel = Sentinel(places, sentinel_kwargs={**limits, **secure, **own})
    with speaking(address):
        return cast(redis.Redis, sentinel.master_for(service, db=int(database or 0), **options, **({"ssl": True} if tls else {})))
