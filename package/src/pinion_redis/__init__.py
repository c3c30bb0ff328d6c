"""Pinion: Python functions inside Redis and Valkey.

The module itself is a file of this package (`module_path`); `pinion_redis.testing` and the pytest plugin test functions, the
command `pinion` runs and watches them.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["ModuleMissing", "__version__", "module_path"]

try:
    __version__ = version("pinion-redis")
except PackageNotFoundError:  # the sources, not installed
    __version__ = "0+unknown"


class ModuleMissing(Exception):
    """This installation carries no module; the text is one line for a person."""


def module_path() -> Path:
    """The file that a server loads: `redis-server --loadmodule <path>`.

    $PINION_MODULE names another one, e.g. of one's own build. # Raises `ModuleMissing`.
    """
    import os

    given = os.environ.get("PINION_MODULE")
    path = Path(given).absolute() if given else Path(__file__).resolve().parent / "libpinion.so"
    if not path.is_file():
        reason = (
            "$PINION_MODULE names no file"
            if given
            else "this package was installed without the module for this machine; "
            "if you have a libpinion.so, e.g. of your own build, set PINION_MODULE to its path"
        )
        raise ModuleMissing(f"{path} does not exist: {reason}")
    return path
