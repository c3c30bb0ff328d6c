"""A default user without rights: most servers drop transactions of an AOF file then when they load it. The log says so in time."""

from __future__ import annotations

from typing import Callable

import pytest

from helpers import Server, wait_until

pytestmark = pytest.mark.matrix

LESS = ["--user", "default", "on", "nopass", "~*", "&*", "+@all", "-debug"]
WARNING = "at its next start this server drops transactions of the AOF file"


def drops_transactions(server: Server) -> bool:
    """Valkey has mended it."""
    return not (server.is_valkey and server.version >= (9, 1, 2))


def test_it_is_told_at_the_start(start_server: Callable[..., Server]) -> None:
    server = start_server(args=["--appendonly", "yes", *LESS])
    if not drops_transactions(server):
        pytest.skip("this server loads them")
    wait_until(lambda: WARNING in server.log())
    assert "'user default off ~* &* +@all'" in server.log()


@pytest.mark.parametrize("args", [LESS, []])
def test_it_is_told_when_the_file_begins(start_server: Callable[..., Server], args: list[str]) -> None:
    server = start_server(args=args)
    assert WARNING not in server.log()
    server.client().config_set("appendonly", "yes")
    assert (WARNING in server.log()) == (bool(args) and drops_transactions(server))
    server.client().config_set("appendonly", "no")
    assert server.log().count(WARNING) <= 1
