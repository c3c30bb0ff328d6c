"""`pinion run`: a server with the module, whose functions follow their files."""

from __future__ import annotations

import signal
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Optional

import typer
import watchfiles

from pinion_redis import scripts
from pinion_redis.cli.deploy import print_changes
from pinion_redis.cli.output import err, escape, note
from pinion_redis.connection import Address, Server, connect
from pinion_redis.deployment import deploy
from pinion_redis.errors import PinionError
from pinion_redis.local_server import LocalServer, find_server, port_is_free
from pinion_redis.scripts import Script


def command(
    functions: Annotated[
        Optional[Path], typer.Argument(help="A script or a folder of scripts; else the folder `functions` if there is one.")
    ] = None,
    port: Annotated[int, typer.Option("--port", "-p", help="Where the server listens.")] = 6379,
    program: Annotated[
        Optional[str], typer.Option("--server", envvar="PINION_SERVER", help="A redis-server or valkey-server.")
    ] = None,
    folder: Annotated[Optional[Path], typer.Option("--dir", help="Where the server keeps its files; else they are dropped.")] = None,
    option: Annotated[
        Optional[list[str]], typer.Option("--option", "-o", help="NAME=VALUE, an option of the module; may be repeated.")
    ] = None,
    watch: Annotated[bool, typer.Option(help="Deploy again when files change.")] = True,
    arguments: Annotated[Optional[list[str]], typer.Argument(help="After --: arguments of the server.")] = None,
) -> None:
    """Run a server with the module, deploy functions to it, and deploy them again when their files change."""
    if functions is None and Path("functions").is_dir():
        functions = Path("functions")
    if functions is not None:
        scripts.read(functions)  # says what is wrong before a server starts
    if not port_is_free(port):
        raise PinionError(f"port {port} is taken: end what listens there, or choose another, e.g. --port {port + 1000}")
    words = [word for pair in option or [] for word in _pair(pair)]
    with tempfile.TemporaryDirectory(prefix="pinion.") as scratch:
        more = list(arguments or [])
        if folder is None:
            more = ["--save", "", "--appendonly", "no", *more]
        else:
            folder.mkdir(parents=True, exist_ok=True)
        program_path = find_server(program)
        note(f"{program_path} on port {port}; Ctrl-C ends it")
        local = LocalServer(folder or Path(scratch), port=port, program=program_path, module_options=words, arguments=more)
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        try:
            local.start()
            _follow(local, functions, watch, ended)
        finally:
            local.stop()
    assert local.process is not None
    raise typer.Exit(0 if local.process.returncode == 0 else 1)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise PinionError(f"--option wants NAME=VALUE, e.g. ExecutionThreads=4, got {text!r}")
    return name, value


def _follow(local: LocalServer, functions: Optional[Path], watch: bool, ended: threading.Event) -> None:
    """Until the server ends, or somebody ends this."""
    assert local.process is not None
    server = connect(Address(local.url))
    try:
        if functions is not None:
            sent = _deploy(server, functions, None)
            if watch:
                threading.Thread(target=_watch, args=(local.url, functions, sent, ended), daemon=True).start()
        note(f"ready: {local.url}")
        while local.process.poll() is None and not ended.wait(0.1):
            pass
        ended.set()
    finally:
        server.close()


def _watch(url: str, functions: Path, sent: Optional[Script], ended: threading.Event) -> None:
    server = Server(Address(url))
    for _ in watchfiles.watch(functions, stop_event=ended, raise_interrupt=False):
        sent = _deploy(server, functions, sent)


def _deploy(server: Server, functions: Path, before: Optional[Script]) -> Optional[Script]:
    """Deploys what has changed. A script that fails leaves what was there; it is told, and the server goes on."""
    try:
        script = scripts.read(functions)
        if script != before:
            print_changes(deploy(server, script))
        return script
    except PinionError as error:
        err.print(f"[red]pinion:[/] not deployed: {escape(str(error))}")
        return before
