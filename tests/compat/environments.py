"""The environments that clients of other people live in: one for each client, made once and kept below `.cache/compat`.

A folder is named after what is installed in it, so that a change of that makes a new one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Sequence

from servers import ROOT


def folder(name: str, contents: Sequence[str]) -> Path:
    """Where the environment belongs; the name tells its contents."""
    base = Path(os.environ.get("PINION_CACHE") or ROOT / ".cache") / "compat"
    digest = hashlib.sha256("\n".join([sys.version, *contents]).encode()).hexdigest()[:12]
    return base / f"{name}-{digest}"


def finished(path: Path) -> bool:
    """True if it was made to its end."""
    return (path / ".finished").exists()


def run(line: Sequence[object], cwd: Path | None = None) -> None:
    done = subprocess.run([str(part) for part in line], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(map(str, line))}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def python_environment(name: str, requirements: Sequence[str], override: Sequence[str] = ()) -> Path:
    """The interpreter of a virtual environment with these packages; `override`: what is put there against their wish."""
    path = folder(name, [*requirements, "", *override])
    python = path / "bin/python"
    if not finished(path):
        shutil.rmtree(path, ignore_errors=True)
        run([sys.executable, "-m", "venv", path])
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, *requirements])
        if override:
            run([*pip, "--no-deps", *override])
        (path / ".finished").touch()
    return python


def node_environment(name: str, packages: Sequence[str]) -> Path:
    """A folder whose `node_modules` has these packages."""
    path = folder(name, packages)
    if not finished(path):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        (path / "package.json").write_text('{"private": true}')
        run(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", *packages], cwd=path)
        (path / ".finished").touch()
    return path
