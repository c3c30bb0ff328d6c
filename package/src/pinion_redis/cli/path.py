"""`pinion path`: the module's file."""

from __future__ import annotations

from pinion_redis import module_path


def command() -> None:
    """Print the module's file, for `loadmodule` of any server."""
    print(module_path())
