"""The examples of the documentation do what the documentation says.

In each page of docs/ and in the README, the blocks are taken in their order, on a fresh server with the module (6379 in
the text) and a plain one (6380): a `python` block is sent as a script and takes the place of the one before it; a `redis`
block is a play of commands and replies, one redis-cli session for each stretch with one port. 7001 to 7003 are the shards
of a cluster. A `python` block that is a library (`#!python name=...`) is loaded by FUNCTION LOAD. A page with the comment
`<!-- server: valkey -->` is about Valkey only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import pytest

from clusters import make_cluster
from helpers import Server, wait_until
from scripting import needs_engine
from servers import ROOT

PAGES = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if "contract" not in path.parts)
BLOCK = re.compile(r"^```(python|redis)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OF_VALKEY = "<!-- server: valkey -->"
PROMPT = re.compile(r"^(\d{4})(?:\(TX\))?> (.*)$")


class Exchange(NamedTuple):
    port: str
    command: str
    reply: list[str]


def exchanges(block: str) -> Iterator[Exchange]:
    """The commands of a `redis` block, each with the lines of its reply."""
    current = None
    for line in block.splitlines():
        prompt = PROMPT.match(line)
        if prompt:
            if current:
                yield current
            current = Exchange(prompt[1], prompt[2], [])
        else:
            assert current, f"a block begins with a reply: {line}"
            current.reply.append(line)
    if current:
        yield current


def transactions(block: str) -> Iterator[list[Exchange]]:
    """Exchanges that must share a connection: from MULTI to EXEC; all others stand alone."""
    group: list[Exchange] = []
    for exchange in exchanges(block):
        group.append(exchange)
        is_open = any(e.command.upper() == "MULTI" for e in group) and exchange.command.upper() != "EXEC"
        if not is_open:
            yield group
            group = []
    assert not group, "a transaction without EXEC"


def cli(server: Server, commands: list[str]) -> list[str]:
    """The output of one redis-cli session."""
    line = ["redis-cli", "-h", server.host, "-p", str(server.port), "--no-raw"]
    return subprocess.run(line, input="\n".join(commands), capture_output=True, text=True).stdout.splitlines()


def play(page: Path, start_server: Callable[..., Server]) -> None:
    """Does what a page says, and compares the replies."""
    source = start_server(module=False)
    cache = start_server(module_args=["sourcePort", source.port])
    servers = {"6379": cache, "6380": source}
    if "7001>" in page.read_text():
        servers |= zip(["7001", "7002", "7003"], make_cluster(start_server).masters)
    for kind, block in BLOCK.findall(page.read_text()):
        if kind == "python":
            for registration in cache.registrations():
                cache.client().execute_command("RG.UNREGISTER", registration["id"], "ABORTPENDING")
            if block.startswith("#!"):
                cache.client().execute_command("FUNCTION", "LOAD", "REPLACE", block)
                continue
            reply = cache.run(block)
            assert reply == "OK" or reply[1] == [], reply
            continue
        for group in transactions(block):
            commands = [exchange.command for exchange in group]
            expected = [line for exchange in group for line in exchange.reply]
            server = servers[group[0].port]
            if len(group) > 1:
                assert cli(server, commands) == expected
            else:  # what a function stores may come a moment later
                wait_until(lambda: cli(server, commands) == expected, message=f"{commands[0]} gives {expected}")


def pages(*, of_valkey: bool) -> Any:
    """The pages with something to play, by the servers that they are about."""
    chosen = [page for page in PAGES if BLOCK.search(page.read_text()) and (OF_VALKEY in page.read_text()) == of_valkey]
    return pytest.mark.parametrize("page", chosen, ids=lambda page: page.stem)


@pages(of_valkey=False)
def test_page(page: Path, start_server: Callable[..., Server]) -> None:
    play(page, start_server)


@pytest.mark.matrix
@pages(of_valkey=True)
def test_page_of_valkey(page: Path, start_server: Callable[..., Server], request: pytest.FixtureRequest) -> None:
    needs_engine(request.config)
    play(page, start_server)


def test_the_tests_that_pages_name_are_there() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert named and not {name for name in named if f"def {name}(" not in tests}


def test_the_page_of_the_python_api_is_what_the_stubs_say() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/docs/api.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_each_page_is_in_the_contents_of_the_site() -> None:
    contents = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f"{page.relative_to(ROOT / 'docs')}\n" in contents, f"mkdocs.yml does not name {page.name}"
