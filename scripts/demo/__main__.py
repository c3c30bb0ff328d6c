"""`make demo`: plays the key-miss tutorial, then a herd, an outage and a batch in pictures, against real servers, and checks every
reply. Exits with 1 as soon as one is wrong. Pictures move in a terminal; elsewhere only the last state of each is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path

try:
    from rich.console import Console
except ImportError:
    sys.exit("pinion: the demo draws with rich, which is not installed here: make demo installs it")

import outage
import races
import tutorial
from servers import ROOT, Failed, Server, free_port


def main() -> int:
    parser = argparse.ArgumentParser(description="Plays the key-miss tutorial and read-through against real servers.")
    parser.add_argument("--server", default="redis-server", help="server binary (redis-server)")
    parser.add_argument("--cli", default="redis-cli", help="client binary (redis-cli)")
    parser.add_argument("--module", type=Path, default=ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release/libpinion.so")
    parser.add_argument("--port", type=int, default=0, help="of the server with the module (a free one)")
    parser.add_argument("--source-port", type=int, default=0, help="of the plain server (a free one)")
    parser.add_argument("--svg", type=Path, help="write the pictures to this file, too (not in a terminal)")
    options = parser.parse_args()

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # what has no dots and bars gets question marks
    console = Console(record=options.svg is not None, width=100 if options.svg else None)
    directory = Path(tempfile.mkdtemp(prefix="pinion-demo."))
    servers: list[Server] = []
    try:
        module = ["--loadmodule", str(options.module.resolve())]
        # The source keeps its data when it is killed.
        keeping = ["--appendonly", "yes", "--appendfsync", "no"]
        for port, more in ((options.source_port, keeping), (options.port, module)):
            servers.append(Server(options.server, options.cli, port or free_port(), directory, *more))
        source, cache = servers

        def scene(title: str) -> None:
            """A title of the tutorial, which is not among the pictures."""
            print(f"--- {title}\n")

        tutorial.play(cache, source, scene)
        print("Everything as in the tutorial.\n")
        cache.unregister_all()
        for act in (races.herd, outage.play, races.batch):
            asyncio.run(act(console, cache, source))
            cache.unregister_all()
        console.print("Everything as promised.", style="bold green")
        return 0
    except Failed as error:
        console.file.flush()
        print(f"\npinion: demo failed: {error}", file=sys.stderr)
        return 1
    finally:
        if options.svg:
            options.svg.write_text(console.export_svg(title="make demo"))
        for server in servers:
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
