"""A cluster in which nearly everything happens that can happen, see chaos.py and history.py. `PINION_CHAOS_SEED` repeats a run's choices (not
its timing), `PINION_CHAOS_SECONDS` sets how long the long one lasts."""

from __future__ import annotations

import os
import random
from typing import Callable

import pytest

from helpers import Server
from history import History

SHORT_S = 60
LONG_S = float(os.environ.get("PINION_CHAOS_SECONDS", "3600"))


def chaos(start_server: Callable[..., Server], source: Server, seconds: float) -> None:
    seed = int(os.environ.get("PINION_CHAOS_SEED") or random.randrange(1 << 30))
    print(f"PINION_CHAOS_SEED={seed}")
    run = History(start_server, source, seed)
    try:
        try:
            run.run(seconds)
        finally:
            print(run.done, run.told)
        run.check()
    finally:
        run.close()
    assert run.told.right > seconds / 2


@pytest.mark.timeout(600)
def test_a_minute(start_server: Callable[..., Server], source: Server) -> None:
    chaos(start_server, source, SHORT_S)


@pytest.mark.soak
@pytest.mark.timeout(2 * LONG_S + 600)
def test_an_hour(start_server: Callable[..., Server], source: Server) -> None:
    chaos(start_server, source, LONG_S)
