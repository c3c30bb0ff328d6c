"""What the suites of the command `pinion` share: a call of it in this process, and scripts to deploy."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Callable, NamedTuple

import pytest

from helpers import Server

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "package/src"))

from pinion_redis import cli  # noqa: E402
from pinion_redis.cli import output  # noqa: E402

KEYS = "GB('KeysReader', desc='counts').foreach(lambda r: execute('INCR', 'n')).register('x*', eventTypes=['set'], mode='async_local')\n"
UNSAVED = "write_behind('w*', lambda changes: 1 / 0)\n"
TRIGGER = "GB('CommandReader').map(lambda r: r[1].upper()).register(trigger='shout')\n"


class Done(NamedTuple):
    code: int
    out: str
    err: str


Pinion = Callable[..., Done]


@pytest.fixture
def pinion(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pinion:
    """Runs the command with these words."""

    def run(*words: object) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["pinion", *map(str, words)])
        # What pytest-xdist has in its place when the module is imported are 80.
        monkeypatch.setattr(output.out, "width", 160)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        seen = capsys.readouterr()
        return Done(int(ended.value.code or 0), seen.out, seen.err)

    return run


@pytest.fixture
def url(server: Server) -> str:
    return f"redis://{server.host}:{server.port}"


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file."""

    def write(text: str, name: str = "counts.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write
