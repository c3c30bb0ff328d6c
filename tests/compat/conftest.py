"""Fixtures of the suites that run other people's clients. They run by `make test-compat` only."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.compat)
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., str]:
    """Runs a program to its end and returns what it printed; an exit code that is not 0 fails the test."""

    def run(*line: Any, fails: bool = False) -> str:
        words = [str(word) for word in line]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert (done.returncode != 0) == fails, f"{words[:4]} gave {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return run


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a file into the folder that `call` works in."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write
