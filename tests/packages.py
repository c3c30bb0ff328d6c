"""Where `make dist` has put what is shipped, for the tests of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DIST = Path(os.environ.get("PINION_DIST", ROOT / "dist"))
TAG = os.environ.get("PINION_TAG", "cp%d%d" % sys.version_info[:2])


def wheel(tag: str = TAG) -> Path:
    """The wheel for a Python."""
    [found] = DIST.glob(f"pinion_redis-*-{tag}-*.whl")
    return found


def deb() -> Path:
    """The package for Debian; skips where none was asked for."""
    found = list(DIST.glob("pinion-redis_*.deb"))
    if not found:
        pytest.skip("there is no .deb: make dist was not asked for the system's Python")
    return found[0]
