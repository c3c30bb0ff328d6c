"""`make bench-profile`: how many instructions a command takes, and in whose code, by callgrind.

    python benches/instructions.py --server redis-8.2

Instructions are no time, but they do not depend on what else runs on the machine: a change of one in a hundred shows. Those of
the kernel are not counted. The files in target/bench/profile are for callgrind_annotate or KCachegrind.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import servers  # noqa: E402  the binaries are those of the tests
from client import Client  # noqa: E402
from events import CONSTANT, CONSTANT_SHA, HOOK, TRIGGER  # noqa: E402
from harness import Failure, free_port, wait_until  # noqa: E402
from helpers import module_path  # noqa: E402
from read_through_rows import CONSTANT as COLD, HIT, TUTORIAL  # noqa: E402
from report import as_markdown  # noqa: E402
from savers import FIELDS, SAVE, VALUE  # noqa: E402
from scenarios import KEYMISS, OTHER_KEYS  # noqa: E402

OUT = ROOT / "target" / "bench" / "profile"
WARM, COMMANDS, PIPELINE = 2_000, 20_000, 16
COLUMNS = ("the server", "the module", "Python", "the C library")
# Whose code an object file is; the first one that its name contains.
OWNERS = {
    **{"pinion-cp": "the module", "libpinion": "the loader", "libpython": "Python"},
    **{"-server": "the server", "redis-check": "the server"},
}


class Way(NamedTuple):
    """What is profiled; `#` stands for a number below 1,000, `@` for one that does not come again."""

    name: str
    command: tuple[str, ...]
    script: str
    plain: tuple[str, ...]  # what a server without the module is asked instead
    logged: bool = False  # both servers write an AOF file


STREAM = "GB('StreamReader').foreach(lambda record: None).register(prefix='stream:*', mode='sync')"
ADD = ("XADD", "stream:#", "*", "field", "value")
GET, MISS = ("GET", "key:#"), ("GET", "missing:#")
WAYS = (
    Way("hit", GET, KEYMISS.format(mode="async_local"), GET),
    Way("read-through-hit", GET, HIT, GET),
    Way("read-through-cold", ("GET", "user:@"), COLD, GET),
    Way("tutorial-cold", ("GET", "user:@"), TUTORIAL, GET),
    Way("miss", MISS, KEYMISS.format(mode="async_local"), GET),
    Way("sync", MISS, KEYMISS.format(mode="sync"), GET),
    Way("trigger-pipelined", ("RG.TRIGGER", "one"), TRIGGER.format(mode="sync"), ("EVALSHA", CONSTANT_SHA, "0")),
    Way("set-other-keys", ("SET", "key:#", "value"), OTHER_KEYS, ("SET", "key:#", "value")),
    Way("set-saved", ("SET", "key:#", VALUE), SAVE.format(prefix="key"), ("SET", "key:#", VALUE)),
    Way("hset-saved", ("HSET", "hash:#", *FIELDS), SAVE.format(prefix="hash"), ("HSET", "hash:#", *FIELDS)),
    Way("set-saved-logged", ("SET", "key:#", VALUE), SAVE.format(prefix="key"), ("SET", "key:#", VALUE), logged=True),
    Way("hset-saved-logged", ("HSET", "hash:#", *FIELDS), SAVE.format(prefix="hash"), ("HSET", "hash:#", *FIELDS), logged=True),
    Way("stream-sync", ADD, STREAM, ADD),
    Way("hook-other-keys", ("HSET", "hash:#", "field", "value"), HOOK, ("HSET", "hash:#", "field", "value")),
)


def profile(server: str, way: Way, module: bool, commands: int = COMMANDS) -> Counter[str]:
    """Instructions per command, by whose code it is.

    # Raises `Failure`.
    """
    side = "module" if module else "plain"
    OUT.mkdir(parents=True, exist_ok=True)
    kept = OUT / f"{way.name}-{Path(server).name}-{side}.callgrind"
    directory = Path(tempfile.mkdtemp(prefix="pinion-profile-"))
    port = free_port()
    line = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={kept}", str(servers.binary(server))]
    # The server's own housekeeping does not depend on commands, but on how long they take: it is rare, and what it costs is left out.
    line[-1:-1] = ["--toggle-collect=serverCron", "--collect-atstart=yes"]
    line += ["--port", str(port), "--dir", str(directory), "--save", "", "--hz", "1", "--dynamic-hz", "no"]
    if way.logged:
        line += ["--appendonly", "yes", "--auto-aof-rewrite-percentage", "0"]
    if module:
        line += ["--loadmodule", str(module_path())]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = connect(process, port)
        client.pipeline([("SET", f"key:{number:04}", "value") for number in range(1000)])
        client.call("SCRIPT", "LOAD", CONSTANT)
        if module:
            client.call("RG.PYEXECUTE", way.script)
        command = way.command if module else way.plain
        ask(client, command, 0, WARM)
        count(process, "on")
        ask(client, command, WARM, commands)
        count(process, "off")
        client.close()
        process.terminate()
        process.wait(120)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)
    return owners(kept, commands)


def count(process: subprocess.Popen[bytes], state: str) -> None:
    """Lets callgrind count, or not."""
    subprocess.run(["callgrind_control", "-i", state, str(process.pid)], check=True, capture_output=True, timeout=60)


def connect(process: subprocess.Popen[bytes], port: int) -> Client:
    """Waits until the server answers, which takes it some seconds."""
    found: list[Client] = []

    def answers() -> bool:
        if process.poll() is not None:
            raise Failure("the server did not start under valgrind")
        try:
            client = Client(port)
            found.append(client)
            return client.call("PING") == b"PONG"
        except (OSError, Failure):
            return False

    wait_until(answers, 120, lambda: "the server answers")
    return found[-1]


def ask(client: Client, command: tuple[str, ...], first: int, number: int) -> None:
    """Sends the command, 16 at a time."""
    for begin in range(first, first + number, PIPELINE):
        client.pipeline(
            [tuple(word.replace("#", f"{at % 1000:04}").replace("@", f"{at:08}") for word in command) for at in range(begin, begin + PIPELINE)]
        )


def owners(kept: Path, commands: int) -> Counter[str]:
    """Adds up what callgrind has written, without what functions that are called have cost."""
    names: dict[str, str] = {}
    found: Counter[str] = Counter()
    owner, of_call = "the C library", False
    for line in kept.read_text(errors="replace").splitlines():
        if found_object := re.match(r"(c?)ob=(\(\d+\))(?: (.*))?", line):
            called, number, name = found_object.groups()
            if name:
                names[number] = name
            if not called:
                file = Path(names[number]).name
                owner = next((owner for part, owner in OWNERS.items() if part in file), "the C library")
        elif line.startswith("calls="):
            of_call = True
        elif line[:1] in set("0123456789+-*"):
            if not of_call:
                found[owner] += int(line.split()[1])
            of_call = False
    return Counter({owner: round(total / commands) for owner, total in found.items()})


def main() -> int:
    """Prints one table."""
    parser = argparse.ArgumentParser(description="Count the instructions of commands, by whose code they are in.")
    parser.add_argument("--server", default="redis-8.2", help=f"{', '.join(servers.SERVERS)}, or a path (redis-8.2)")
    parser.add_argument("--scenario", action="append", choices=[way.name for way in WAYS], metavar="NAME", help="(repeatable)")
    arguments = parser.parse_args()
    rows = []
    if shutil.which("callgrind_control") is None:
        print("pinion: valgrind is not installed: apt install valgrind", file=sys.stderr)
        return 1
    for way in WAYS:
        if arguments.scenario and way.name not in arguments.scenario:
            continue
        try:
            plain, ours = profile(arguments.server, way, module=False), profile(arguments.server, way, module=True)
        except (Failure, subprocess.SubprocessError) as failure:
            print(f"pinion: {way.name} does not work: {failure}", file=sys.stderr)
            return 1
        figures = [sum(plain.values()), sum(ours.values()), *(ours[column] for column in COLUMNS)]
        rows.append([f"`{way.name}`", arguments.server, *(f"{figure:,}" for figure in figures)])
    head = ["scenario", "server", "without", "with the module", *(f"in {column}" for column in COLUMNS)]
    print("\n".join(as_markdown(head, rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
