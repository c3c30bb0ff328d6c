"""Figures of all shards together, for `list`, `show`, `top`, `deploy` and `doctor`."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any, Optional

Stats = dict[str, Any]


@dataclass
class Registration:
    """One registration, with the figures of all shards: numbers are sums, percentiles the worst of all."""

    id: str
    reader: str
    session: str
    description: Optional[str]
    mode: str
    arguments: dict[str, Any]
    status: Optional[str] = None
    triggered: int = 0
    succeeded: int = 0
    failed: int = 0
    aborted: int = 0
    pending: int = 0
    run_us: dict[str, int] = field(default_factory=dict)
    wait_us: dict[str, int] = field(default_factory=dict)
    last_error: Optional[str] = None
    warnings: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def events(self) -> str:
        """What it waits for, on one line: `user:* get keymiss`."""
        shown = []
        for name in _EVENTS:
            value = self.arguments.get(name)
            if isinstance(value, list) and value:
                listed = ",".join(map(str, value))
                shown.append(listed if len(value) <= _MANY else f"{len(value)} {name}")
            elif value not in (None, [], ""):
                shown.append(str(value))
        return " ".join(shown)

    def short_id(self) -> str:
        """The id with as much of the shard's as tells it from others: `0000-7`. All commands take it."""
        return short(self.id)

    def is_named(self, name: str) -> bool:
        """True if that is its id, whole or short, or its session's."""
        shard, dash, number = self.id.rpartition("-")
        begin, _, end = name.rpartition("-")
        is_short = bool(begin) and len(begin) >= _SHORT and shard.startswith(begin) and number == end
        return name in (self.id, self.session) or is_short

    def key(self) -> tuple[str, str, str, Optional[str]]:
        """What makes it the same one after an upgrade."""
        return (self.reader, self.events(), self.mode, self.description)

    def backlog(self) -> int:
        """What waits: the changes that are not saved yet of `write_behind`, else executions that no worker has begun."""
        return int(self.figures["queued"]) if self.reader == "WriteBehind" else self.pending

    def finished(self) -> int:
        """Executions that have ended, on all shards."""
        return self.succeeded + self.failed + self.aborted


# The arguments of readers that tell when it fires, as they are shown.
_EVENTS = ("trigger", "regex", "prefix", "stream", "keyprefix", "hookCommands", "commands", "eventTypes", "keyTypes")
_MANY = 4
_SHORT = 4
_COUNTED = ("triggered", "succeeded", "failed", "aborted", "pending")


def registrations(shards: list[Stats]) -> list[Registration]:
    """All registrations in the order in which they were made."""
    found: dict[str, Registration] = {}
    for shard in shards:
        for entry in shard["registrations"]:
            registration = found.get(entry["id"])
            if registration is None:
                names = ("id", "reader", "session", "description", "mode", "arguments", "status", "warnings")
                registration = found[entry["id"]] = Registration(**{name: entry[name] for name in names})
            for name in _COUNTED:
                setattr(registration, name, getattr(registration, name) + entry[name])
            registration.last_error = registration.last_error or entry["last_error"]
            for name in ("run_us", "wait_us"):
                times: dict[str, int] = getattr(registration, name)
                for point, value in entry[name].items():
                    times[point] = max(times.get(point, 0), value)
            _add_figures(registration.figures, entry["figures"])
    return list(found.values())


def _add_figures(total: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        known = total.get(name)
        if isinstance(value, (int, float)) and isinstance(known, (int, float)):
            total[name] = max(known, value) if name.endswith(("US", "MS")) else known + value
        elif known is None or value not in (None, "closed", "OK"):
            total[name] = value


def short(name: str) -> str:
    """An id with the beginning of the shard's only."""
    shard, _, number = name.rpartition("-")
    return f"{shard[:_SHORT]}-{number}"


def last_line(error: Optional[str]) -> str:
    """The line of a traceback that tells what happened; `error` may be the list of its parts, as Python shows one."""
    text = (error or "").strip()
    if text.startswith(("[", "...")):
        try:
            parts = [str(part).strip() for part in ast.literal_eval(text)]
            # The last part is the exception with all lines of its text, of which the first has its type.
            return next((part.splitlines()[0] for part in reversed(parts) if part), "")
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            # It is no list, or the end of one: the server keeps the last 4 KB of a long error.
            text = "\n".join(part.strip("'\", ") for part in text.strip("[]").split("\\n"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def duration(us: float) -> str:
    """Microseconds for a person."""
    if us < 1000:
        return f"{us:.0f} µs"
    if us < 1_000_000:
        return f"{us / 1000:.1f} ms"
    return f"{us / 1_000_000:.1f} s"


def size(count: Optional[float]) -> str:
    """Bytes for a person."""
    if count is None:
        return "-"
    for unit in ("B", "KB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"
