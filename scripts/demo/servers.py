"""The servers that the demo plays against, each with its redis-cli sessions."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parent.parent.parent
HOST = "127.0.0.1"


class Failed(Exception):
    """An output differs from what was promised, or a server does not do its part."""


class Server:
    """A server process in a directory of its own."""

    def __init__(self, binary: str, cli: str, port: int, directory: Path, *more: str) -> None:
        self.cli = [cli, "-h", HOST, "-p", str(port), "--no-raw"]
        self.port = port
        directory = directory / str(port)
        directory.mkdir()
        self.log = directory / "log"
        self._line = [binary, "--port", str(port), "--bind", HOST, "--dir", str(directory), "--save", "", *more]
        self.start()

    def start(self) -> None:
        """Starts it, again if it was stopped, and waits until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._line, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        self.wait(lambda: self.ask("ping") == "PONG", "answers PING")

    def ask(self, *command: str, stdin: str = "") -> str:
        """Runs one command; prints nothing."""
        return subprocess.run([*self.cli, *command], input=stdin, capture_output=True, text=True).stdout.rstrip("\n")

    def wait(self, condition: Callable[[], bool], what: str, timeout: float = 20) -> None:
        """Polls a condition on this server."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])
                raise Failed(f"not seen within {timeout:g} s: the server on port {self.port} {what}; its log:\n{tail}")
            time.sleep(0.01)

    def session(self, *exchanges: tuple[str, str]) -> None:
        """One redis-cli session: (command, expected reply of one line). Prints it, and checks each reply."""
        print(f"> redis-cli -p {self.port}")
        replies = self.ask(stdin="".join(f"{command}\n" for command, _ in exchanges)).splitlines()
        transaction = ""
        for number, (command, expected) in enumerate(exchanges):
            reply = replies[number] if number < len(replies) else "(no reply)"
            print(f"{HOST}:{self.port}{transaction}> {command}\n{reply}")
            if reply != expected:
                raise Failed(f"{command}: expected {expected}")
            transaction = {"multi": "(TX)", "exec": ""}.get(command, transaction)
        print(f"{HOST}:{self.port}> exit\n")

    def unregister_all(self) -> None:
        """Removes every registration."""
        for registration in re.findall(r'"id"\n\s*2\) "(.+)"', self.ask("RG.DUMPREGISTRATIONS")):
            if self.ask("RG.UNREGISTER", registration) != "OK":
                raise Failed(f"could not unregister {registration}")

    def register(self, script: str) -> None:
        """Registers the function of one example, alone, and shows that."""
        self.unregister_all()
        path = ROOT / "examples" / script
        reply = self.ask("-x", "RG.PYEXECUTE", stdin=path.read_text())
        print(f"> redis-cli -p {self.port} -x RG.PYEXECUTE < {path.relative_to(ROOT)}\n{reply}\n")
        if reply != "OK":
            raise Failed(f"{script} was not registered: expected OK")

    def run(self, script: str) -> None:
        """Runs a script, which registers something; shows nothing."""
        reply = self.ask("-x", "RG.PYEXECUTE", stdin=script)
        if reply != "OK":
            raise Failed(f"a script was refused: {reply}")

    def stop(self) -> None:
        """Kills it."""
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
