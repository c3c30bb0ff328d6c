"""A server whose clock of the day a test sets while it runs, as an administrator or a time service would. See clock.c."""

from __future__ import annotations

import functools
import mmap
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

MINUTE_S = 60.0


def compiler() -> str | None:
    """What compiles the helper, if there is one here."""
    return shutil.which("cc") or shutil.which("gcc")


@functools.cache
def library() -> Path:
    """The compiled helper, made once in a process. Skips the test where there is no C compiler."""
    command = compiler()
    if command is None:
        pytest.skip("no C compiler: clocks cannot be set")
    made = Path(tempfile.mkdtemp(prefix="pinion-clock-")) / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([command, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", made, source, "-ldl"], check=True)
    return made


class Clock:
    """The clock of the day of one server, or of several. `environment` is what the server is started with."""

    def __init__(self) -> None:
        path = Path(tempfile.mkdtemp(dir=library().parent)) / "off"
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 8)
        self.environment = {"LD_PRELOAD": str(library()), "PINION_CLOCK": str(path)}

    @property
    def off_s(self) -> float:
        """How far it is from the right one, in seconds."""
        return struct.unpack("=q", self._shared[:])[0] / 1e6  # type: ignore[no-any-return]

    def jump(self, seconds: float) -> None:
        """Sets it forwards, or backwards."""
        self._shared[:] = struct.pack("=q", round((self.off_s + seconds) * 1e6))


def shown_s(server: Any) -> float:
    """What a server takes for the time, in seconds since 1970."""
    seconds, microseconds = server.own.time()
    return float(seconds + microseconds / 1e6)
