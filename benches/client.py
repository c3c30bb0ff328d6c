"""A bare connection to a server, for preparing it and for looking at its replies; the load itself is redis-benchmark's.

The standard library only: only the client that batch.py compares with comes from a package. harness.Server holds one
`Client`; whatever goes wrong here or there is a `Failure`, which run.py shows as a broken scenario.
"""

from __future__ import annotations

import socket
from typing import Any

HOST = "127.0.0.1"
TIMEOUT_S = 60  # also where a benchmark runs beside tests, to see whether it works


class Failure(Exception):
    """A scenario that does not work. The text is for a person; servers that were running add their logs to it."""


class CommandError(Failure):
    """The server answered with an error."""


class Client:
    """One connection, RESP2: replies as bytes, int, None and lists; an error reply raises `CommandError`."""

    def __init__(self, port: int, timeout_s: float = TIMEOUT_S) -> None:
        self._socket = socket.create_connection((HOST, port), timeout_s)
        self._file = self._socket.makefile("rb")

    def call(self, *words: str) -> Any:
        """Sends one command and reads its reply."""
        return self.pipeline([words])[0]

    def pipeline(self, commands: list[tuple[str, ...]]) -> list[Any]:
        """Sends all commands at once, then reads all replies."""
        try:
            self._socket.sendall(b"".join(encoded(command) for command in commands))
            return [self._read() for _ in commands]
        except OSError as error:
            raise Failure(f"{' '.join(commands[0])}: {error}") from None

    def _read(self) -> Any:
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise CommandError(rest.decode(errors="replace"))
        if kind == b"+":
            return rest
        size = int(rest)
        if kind == b":":
            return size
        if size < 0:
            return None
        return self._file.read(size + 2)[:-2] if kind == b"$" else [self._read() for _ in range(size)]

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def encoded(words: tuple[str, ...]) -> bytes:
    """One command as the server reads it."""
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def as_dict(pairs: list[Any]) -> dict[Any, Any]:
    """`[name, value, ...]` as a dict."""
    return dict(zip(pairs[::2], pairs[1::2]))
