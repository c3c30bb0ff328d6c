"""A TCP proxy whose connections a test can cut or hold up: stands between two servers."""

from __future__ import annotations

import select
import socket
import threading

from helpers import HOST


class Proxy:
    """Forwards connections to `target` (a port on this machine) until it is told otherwise.

    `port`: where it listens. Use as a context manager, or call `close`.
    """

    def __init__(self) -> None:
        self.target = 0
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._refusing = False
        self._flowing = threading.Event()
        self._flowing.set()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Closes all connections and takes no new ones."""
        self._refusing = True
        self._drop()

    def hold(self) -> None:
        """Connections stay, and new ones come about, but nothing gets through."""
        self._flowing.clear()

    def heal(self) -> None:
        """Everything works again."""
        self._refusing = False
        self._flowing.set()

    def drop(self) -> None:
        """Closes all connections once; new ones work."""
        self._drop()

    def close(self) -> None:
        """Ends it."""
        self._closed = True
        self._flowing.set()
        self._listener.close()
        self._drop()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                end.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                client.close()
                continue
            try:
                server = socket.create_connection((HOST, self.target))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._pairs.append((client, server))
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        try:
            while True:
                ready, _, _ = select.select([client, server], [], [], 1)
                self._flowing.wait()
                for end in ready:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    other[end].sendall(data)
        except (OSError, ValueError):
            return
        finally:
            client.close()
            server.close()
