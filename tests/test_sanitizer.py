"""Under `make test-asan`: the sanitizer is there, and sees what goes wrong in the server. Else nothing."""

from __future__ import annotations

import os
from typing import Callable

import pytest
import redis

from helpers import Server, wait_until

pytestmark = pytest.mark.skipif("PINION_PRELOAD" not in os.environ, reason="no sanitizer: make test-asan")

FAULT = """
def f(r):
    import ctypes
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
    block = ctypes.c_void_p(libc.malloc(10))
    libc.memset(block, 1, 20)
GB('CommandReader').map(f).register(trigger='t', mode='async_local')
"""


def test_a_fault_is_seen(start_server: Callable[..., Server]) -> None:
    server = start_server()
    server.run(FAULT)
    server.expect_death()
    with pytest.raises(redis.ConnectionError):
        server.client().execute_command("RG.TRIGGER", "t")
    assert server.wait_exit() != 0
    wait_until(lambda: "heap-buffer-overflow" in server.sanitizer_report())
    server.mark_log()


def test_memory_of_the_module_and_of_python_is_the_systems(server: Server) -> None:
    """Only such blocks are known to the sanitizer."""
    assert all(figure == 0 for figure in server.client().execute_command("RG.PYSTATS")[1::2])
