"""`make demo`: plays the key-miss tutorial against two real servers and checks every reply.

Each exchange is a real redis-cli session, printed as a person would see it. Exits with 1 as soon as an output is not the
tutorial's. Uses the standard library only; the functions it registers are the files in examples/.
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"


class Failed(Exception):
    """An output differs from the tutorial, or a server does not do its part."""


class Server:
    """A server process with its redis-cli sessions."""

    def __init__(self, binary: str, cli: str, port: int, directory: Path, *more: str) -> None:
        self.cli = [cli, "-h", HOST, "-p", str(port), "--no-raw"]
        self.port = port
        self.log = directory / f"{port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [binary, "--port", str(port), "--bind", HOST, "--dir", directory, "--save", "", *more],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
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

    def register(self, script: str) -> None:
        """Registers the function of one example, alone."""
        for registration in re.findall(r'"id"\n\s*2\) "(.+)"', self.ask("RG.DUMPREGISTRATIONS")):
            if self.ask("RG.UNREGISTER", registration) != "OK":
                raise Failed(f"could not unregister {registration}")
        path = ROOT / "examples" / script
        reply = self.ask("-x", "RG.PYEXECUTE", stdin=path.read_text())
        print(f"> redis-cli -p {self.port} -x RG.PYEXECUTE < {path.relative_to(ROOT)}\n{reply}\n")
        if reply != "OK":
            raise Failed(f"{script} was not registered: expected OK")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def title(text: str) -> None:
    print(f"--- {text}\n")


def play(cache: Server, source: Server) -> None:
    """The tutorial, chapter by chapter."""
    title("The cache fetches from the other server")
    source.session(("set x 1", "OK"))
    reply = cache.ask("RG.CONFIGSET", "sourcePort", str(source.port))
    print(f"> redis-cli -p {cache.port} RG.CONFIGSET sourcePort {source.port}\n{reply}\n")
    if "OK" not in reply:
        raise Failed("RG.CONFIGSET sourcePort was refused")

    title("Register to the keymiss event: a line in the log")
    cache.register("miss_log.py")
    cache.session(("get x", "(nil)"))
    cache.wait(lambda: "missed: x" in cache.log.read_text(errors="replace"), "logs 'missed: x'")
    print("in the log: " + next(line for line in cache.log.read_text().splitlines() if "missed: x" in line) + "\n")

    title("Fetch the data on keymiss: the second read has it")
    cache.register("miss_fetch.py")
    cache.session(("get x", "(nil)"))
    cache.wait(lambda: cache.ask("exists", "x") == "(integer) 1", "has x (stored by the function)")
    cache.session(("get x", '"1"'))

    title("The argument commands: the first read has it")
    cache.register("miss_read_through.py")
    cache.ask("flushall")
    cache.session(("keys *", "(empty array)"), ("get x", '"1"'))

    title("In MULTI nobody can wait: nil, and an error in the registration")
    cache.register("miss_read_through.py")
    cache.ask("flushall")
    cache.session(("keys *", "(empty array)"), ("multi", "OK"), ("get x", "QUEUED"), ("exec", "1) (nil)"))
    failure = field("numFailures", "(integer) 1")
    cache.wait(lambda: re.search(failure, cache.ask("RG.DUMPREGISTRATIONS")) is not None, "counts the failure")
    dump = cache.ask("RG.DUMPREGISTRATIONS")
    print(f"> redis-cli -p {cache.port} RG.DUMPREGISTRATIONS\n{dump}\n")
    for expected in (
        field("reader", '"KeysReader"'),
        field("mode", '"async_local"'),
        field("numTriggered", "(integer) 1"),
        field("numSuccess", "(integer) 0"),
        failure,
        field("numAborted", "(integer) 0"),
        field("regex", '"*"'),
        r'"lastError"\n\s*\d+\) "\[\'Traceback \(most recent call last\):\\\\n\', .*'
        r"File \\\"<string>\\\", line \d+, in fetch_data.*'gears\.error: Can not get command ctx\\\\n'\]\"",
        r'"eventTypes"\n\s*\d+\) 1\) "keymiss"',
        r'"hookCommands"\n\s*\d+\) 1\) "get"',
        field("ExecutionThreadPool", '"DefaultPool"'),
    ):
        if not re.search(expected, dump):
            raise Failed(f"RG.DUMPREGISTRATIONS: nothing matches {expected}")


def field(name: str, value: str) -> str:
    """A pattern for one name/value pair as redis-cli shows it."""
    return rf'"{name}"\n\s*\d+\) {re.escape(value)}'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description="Plays the key-miss tutorial against two real servers.")
    parser.add_argument("--server", default="redis-server", help="server binary (redis-server)")
    parser.add_argument("--cli", default="redis-cli", help="client binary (redis-cli)")
    parser.add_argument("--module", type=Path, default=ROOT / "target/release/libpinion.so")
    parser.add_argument("--port", type=int, default=0, help="of the server with the module (a free one)")
    parser.add_argument("--source-port", type=int, default=0, help="of the plain server (a free one)")
    options = parser.parse_args()

    directory = Path(tempfile.mkdtemp(prefix="pinion-demo."))
    servers: list[Server] = []
    try:
        module = ["--loadmodule", str(options.module.resolve())]
        for port, more in ((options.source_port, []), (options.port, module)):
            servers.append(Server(options.server, options.cli, port or free_port(), directory, *more))
        source, cache = servers
        play(cache, source)
        print("Everything as in the tutorial.")
        return 0
    except Failed as error:
        print(f"\npinion: demo failed: {error}", file=sys.stderr)
        return 1
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
