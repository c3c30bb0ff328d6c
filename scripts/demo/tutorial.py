"""Plays the key-miss tutorial: each exchange is a real redis-cli session, printed as a person would see it, and each reply must be
the tutorial's. The functions that it registers are the files in examples/.
"""

from __future__ import annotations

import re
from typing import Callable

from servers import Failed, Server


def play(cache: Server, source: Server, scene: Callable[[str], None]) -> None:
    """The tutorial, chapter by chapter; `scene` shows the title of each."""
    scene("The cache fetches from the other server")
    source.session(("set x 1", "OK"))
    reply = cache.ask("RG.CONFIGSET", "sourcePort", str(source.port))
    print(f"> redis-cli -p {cache.port} RG.CONFIGSET sourcePort {source.port}\n{reply}\n")
    if "OK" not in reply:
        raise Failed("RG.CONFIGSET sourcePort was refused")

    scene("Register to the keymiss event: a line in the log")
    cache.register("miss_log.py")
    cache.session(("get x", "(nil)"))
    cache.wait(lambda: "missed: x" in cache.log.read_text(errors="replace"), "logs 'missed: x'")
    print("in the log: " + next(line for line in cache.log.read_text().splitlines() if "missed: x" in line) + "\n")

    scene("Fetch the data on keymiss: the second read has it")
    cache.register("miss_fetch.py")
    cache.session(("get x", "(nil)"))
    cache.wait(lambda: cache.ask("exists", "x") == "(integer) 1", "has x (stored by the function)")
    cache.session(("get x", '"1"'))

    scene("The argument commands: the first read has it")
    cache.register("miss_read_through.py")
    cache.ask("flushall")
    cache.session(("keys *", "(empty array)"), ("get x", '"1"'))

    scene("In MULTI nobody can wait: nil, and an error in the registration")
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
