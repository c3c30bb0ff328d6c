#!/usr/bin/env python3
"""Which room of src/ knows which: prints the picture, and fails where knowledge does not flow one way.

A room is a file or a folder directly below src/. It knows another one if it names it by `crate::room`, in a `use` or in a
path. Tests count, too: what a test of a room needs from above belongs above. `lib.rs` is the table that ties the rooms
together and is left out.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src"
TABLE = "lib"
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
NAMED = re.compile(r"\bcrate\s*::\s*(\{|\w+)")


def rooms() -> dict[str, list[Path]]:
    """Every room with its files."""
    found: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(SOURCE.rglob("*.rs")):
        found[file.relative_to(SOURCE).parts[0].removesuffix(".rs")].append(file)
    found.pop(TABLE, None)
    return dict(found)


def named(text: str) -> set[str]:
    """The first words behind `crate::` in a file, also those of a group in braces."""
    text = COMMENT.sub("", text)
    names: set[str] = set()
    for match in NAMED.finditer(text):
        if match[1] != "{":
            names.add(match[1])
            continue
        depth, start, position = 1, match.end(), match.end()
        while depth and position < len(text):
            letter = text[position]
            depth += {"{": 1, "}": -1}.get(letter, 0)
            if depth == 0 or (letter == "," and depth == 1):
                if word := re.match(r"\s*(\w+)", text[start:position]):
                    names.add(word[1])
                start = position + 1
            position += 1
    return names


def knowledge() -> tuple[dict[str, set[str]], dict[tuple[str, str], list[Path]]]:
    """Which room knows which, and the files that say so."""
    every = rooms()
    knows: dict[str, set[str]] = {room: set() for room in every}
    files: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for room, paths in every.items():
        for path in paths:
            for other in named(path.read_text()) & every.keys() - {room}:
                knows[room].add(other)
                files[room, other].append(path.relative_to(SOURCE))
    return knows, files


def circles(knows: dict[str, set[str]]) -> list[list[str]]:
    """The groups of rooms that reach each other (strongly connected components of two or more)."""

    def reach(room: str) -> set[str]:
        seen: set[str] = set()
        ahead = [room]
        while ahead:
            for other in knows[ahead.pop()] - seen:
                seen.add(other)
                ahead.append(other)
        return seen

    reached = {room: reach(room) for room in knows}
    groups: list[list[str]] = []
    for room in sorted(knows):
        group = sorted(other for other in knows if other in reached[room] and room in reached[other])
        if len(group) > 1 and group not in groups:
            groups.append(group)
    return groups


def floors(knows: dict[str, set[str]]) -> list[list[str]]:
    """The rooms from the ground up: each one stands above all that it knows."""
    level: dict[str, int] = {}

    def of(room: str) -> int:
        if room not in level:
            level[room] = 1 + max((of(other) for other in knows[room]), default=0)
        return level[room]

    for room in knows:
        of(room)
    return [sorted(room for room in knows if level[room] == floor) for floor in range(1, max(level.values()) + 1)]


def main() -> int:
    """Prints the rooms, floor by floor from the top, or the circles and the files that make them."""
    knows, files = knowledge()
    if found := circles(knows):
        print("Knowledge must flow one way between the rooms of src/; these know each other both ways:", file=sys.stderr)
        for group in found:
            print(f"  {', '.join(group)}", file=sys.stderr)
            for room in group:
                for other in sorted(knows[room] & set(group)):
                    where = ", ".join(str(path) for path in files[room, other])
                    print(f"    {room} -> {other}: {where}", file=sys.stderr)
        return 1
    for number, floor in reversed(list(enumerate(floors(knows), start=1))):
        for room in floor:
            print(f"{number:2}  {room:<12} {' '.join(sorted(knows[room])) or '-'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
