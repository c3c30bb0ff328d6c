"""How the subcommands speak: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape

# Lines that go into a file or a pipe are not folded at 80 columns.
_PIPED = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
out = Console(highlight=False, soft_wrap=True, width=_PIPED)
err = Console(stderr=True, highlight=False, soft_wrap=True)

__all__ = ["err", "escape", "fail", "note", "out", "print_json", "warn"]


def note(text: str) -> None:
    """A line about what is going on."""
    err.print(f"[dim]pinion:[/] {escape(text)}")


def warn(text: str) -> None:
    """A line about what may be wrong."""
    err.print(f"[yellow]pinion: warning:[/] {escape(text)}")


def fail(text: str, code: int) -> NoReturn:
    """A last line, and the exit code."""
    if text:
        err.print(f"[red]pinion:[/] {escape(text)}")
    else:
        # Nobody reads any more: nothing is to be written when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(code)


def print_json(value: Any) -> None:
    """One JSON document for programs."""
    sys.stdout.write(json.dumps(value, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return value.decode(errors="replace")
    return str(value)
