"""`pinion new`: a project to begin with."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from pinion_redis.cli.output import escape, note, out
from pinion_redis.errors import PinionError

# Names in the package, and in the project. Templates are no Python files: nobody is to run or check them here.
_FILES = {
    "functions/users.py.txt": "functions/users.py",
    "functions/functions.txt": "functions/functions.txt",
    "tests/test_users.py.txt": "tests/test_users.py",
    "README.md.txt": "README.md",
    "pyproject.toml.txt": "pyproject.toml",
    "builtins.pyi.txt": "__builtins__.pyi",
}


def command(
    folder: Annotated[Path, typer.Argument(help="The folder to make; its name is the project's.")],
) -> None:
    """Make a project: a function, a test, a README, and what an editor needs to know the names that scripts see."""
    name = folder.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise PinionError(f"the name of a project begins with a letter or digit and has no blanks, got {name!r}")
    taken = [place for place in _FILES.values() if (folder / place).exists()]
    if taken:
        raise PinionError(f"{folder} has {', '.join(taken)} already: nothing was written")
    template = files("pinion_redis") / "template"
    for source, place in _FILES.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        text = template.joinpath(*source.split("/")).read_text(encoding="utf-8")
        path.write_text(text.replace("@NAME@", name), encoding="utf-8")
        out.print(f"[green]+[/] {escape(str(path))}")
    note(f"next: cd {folder} && pinion run")
