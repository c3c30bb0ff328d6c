"""`make demo`: it plays, every reply is checked, and a wrong one ends it with status 1."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import module_path
from servers import ROOT, binary


def command(demo: Path, request: pytest.FixtureRequest) -> list[str]:
    server = binary(request.config.getoption("--server"))
    return [sys.executable, str(demo), "--server", str(server), "--module", str(module_path())]


def test_the_demo_plays_and_can_be_read_without_a_terminal(request: pytest.FixtureRequest) -> None:
    done = subprocess.run(
        command(ROOT / "scripts" / "demo", request), capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything as in the tutorial." in done.stdout and "Everything as promised." in done.stdout
    assert "\x1b" not in done.stdout, "no control sequences where there is no terminal"
    assert done.stdout.count("✓") == 9 and "✗" not in done.stdout
    assert "300 replies" in done.stdout and "1 query" in done.stdout, "the last state of each picture is there"
    assert max(map(len, done.stdout.splitlines())) < 1000


def test_a_wrong_reply_ends_it_with_status_1(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """In a terminal, where the pictures move."""
    for folder in ("scripts/demo", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    races = tmp_path / "scripts" / "demo" / "races.py"
    text = races.read_text()
    assert text.count("return query([key])[0]\n") == 1
    races.write_text(text.replace("return query([key])[0]\n", "return 'another page'\n"))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(tmp_path / "scripts" / "demo", request), stdin=theirs, stdout=theirs, stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "50"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:
        pass  # the other side has closed the terminal
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    assert process.wait() == 1
    assert "demo failed: expected each client gets the page, saw 300 wrong replies" in errors
    text = shown.decode()
    assert "\x1b[?25l" in text and "Everything as in the tutorial." in text and "Everything as promised." not in text
