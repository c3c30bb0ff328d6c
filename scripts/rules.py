#!/usr/bin/env python3
"""Rules that keep the server alive and that no lint of Rust knows; `make lint` fails where one is broken.

Entries: what the server or Python calls (`extern "C" fn` with a body) catches panics, by itself or by the frame that it runs in:
a panic that crosses into C ends the server. Waiting: a mutex that `mutex::is_any_held` does not count is for those who wait on a
condition, which needs parking_lot's own (`crate::waits`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src"
ENTRY = re.compile(r'extern "C" fn ([\w$]+)\s*(?:<[^>]*>\s*)?\(')
# The last ones: frames that catch panics themselves, each by its room. `super::run` is that of commands.
FRAME = re.compile(
    r"\b(?:catch_unwind|caught|guarded)\b"
    r"|\b(?:filter|bus|info|load|super)::run\("
    r"|\bevents::run_(?:notification|server_event)\("
)
# Those that cannot panic: file, name.
HARMLESS = {
    ("server/after.rs", "on_wake"),
    ("server/waiting.rs", "on_wake"),
    ("server/persist.rs", "on_free"),
    ("server/script_engine.rs", "on_reset"),
    # Two counters, and sums of them.
    ("server/script_engine.rs", "on_memory"),
    # Python's memory: counters and the server's allocator.
    *(("python/memory.rs", name) for name in ("malloc", "calloc", "realloc", "free", "alloc_arena", "free_arena")),
}
UNCOUNTED = re.compile(r"\b(?:parking_lot|waits)::(\{[^}]*\bMutex\b[^}]*\}|Mutex)")


def body(text: str, start: int) -> str | None:
    """What stands in the braces of the function that begins at `start`; `None` of a type or a declaration."""
    opened, ended = text.find("{", start), text.find(";", start)
    if opened < 0 or 0 <= ended < opened:
        return None
    depth = 0
    for position in range(opened, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[opened + 1 : position]
    return None


def broken(file: str, text: str) -> Iterator[str]:
    """What is wrong with one source file."""
    for match in ENTRY.finditer(text):
        inside = body(text, match.end())
        if inside is None or (file, match[1]) in HARMLESS:
            continue
        if not FRAME.search(inside):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{file}:{line}: {match[1]} is called from C and catches no panic: see server/entry.rs"
    # Where shuttle chooses the order of threads, what notes it must not be part of it.
    uncounted = None if file.endswith("/model.rs") else UNCOUNTED.search(text)
    if uncounted and not re.search(r"\bCondvar\b", uncounted[1]):
        yield f"{file}: a mutex of parking_lot without a condition to wait on: use crate::mutex::Mutex"


def main() -> int:
    """Prints what is broken."""
    found = [
        problem
        for path in sorted(SOURCE.rglob("*.rs"))
        for problem in broken(path.relative_to(SOURCE).as_posix(), path.read_text())
    ]
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
