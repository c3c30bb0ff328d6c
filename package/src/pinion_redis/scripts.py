"""A script as it goes to the server: its text, the id of its session, what it needs. From a file, or from all files of a folder.

A folder becomes one script, so that the server takes all of it or nothing. Each file keeps its own global names, and its own name
in tracebacks.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from .errors import PinionError

# Names of files that are not functions.
_LEFT_OUT = re.compile(r"test_.*|.*_test|conftest|setup|_.*")
# Inline script metadata: a block of comments between `# /// script` and `# ///`.
_METADATA = re.compile(r"^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$", re.MULTILINE)

_FOLDER = """\
# Made by `pinion deploy` of {count} files.
def _pinion_files():
    import linecache
    shared = {{**globals()}}
    shared.pop('_pinion_files')
    for name, text in {files!r}:
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        exec(compile(text, name, 'exec'), {{**shared}})


_pinion_files()
"""


@dataclass(frozen=True)
class Script:
    """What RG.PYEXECUTE gets."""

    id: str
    text: str
    requirements: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def read(path: Path) -> Script:
    """The script of a file, or of the files of a folder.

    # Raises `PinionError`: there is none, it is no Python, its metadata are no TOML.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise PinionError(f"{path} does not exist")
    text = _text(path)
    return Script(_id(path.stem), text, [*_requirements(path, text), *_listed(path.parent)], [path])


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that hold functions, in the order of their names."""
    return [path for path in sorted(folder.glob("*.py")) if not _LEFT_OUT.fullmatch(path.stem)]


def _read_folder(folder: Path) -> Script:
    files = files_of(folder)
    if not files:
        raise PinionError(f"{folder} has no functions: no file *.py, tests and names with _ in front left out")
    texts = [(path.name, _text(path)) for path in files]
    needed = [name for path, (_, text) in zip(files, texts) for name in _requirements(path, text)]
    text = _FOLDER.format(count=len(files), files=texts)
    place = folder.resolve()
    name = place.parent.name if place.name == "functions" else place.name  # a project's functions bear its name
    return Script(_id(name), text, list(dict.fromkeys([*needed, *_listed(folder)])), files)


def _text(path: Path) -> str:
    """# Raises `PinionError` for what Python cannot read, before a server has seen it."""
    try:
        text = path.read_text(encoding="utf-8")
        compile(text, str(path), "exec", dont_inherit=True)
    except UnicodeDecodeError as error:
        raise PinionError(f"{path} is no UTF-8 text: {error}") from None
    except SyntaxError as error:
        raise PinionError(f"{path}:{error.lineno}: {error.msg}") from None
    return text


def _id(name: str) -> str:
    """A session's id: letters, digits, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def _requirements(path: Path, text: str) -> list[str]:
    """What stands in the script's own metadata."""
    found = _METADATA.search(text)
    if not found:
        return []
    lines = [line[2:] if line.startswith("# ") else line[1:] for line in found["content"].splitlines()]
    try:
        metadata: dict[str, Any] = tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError as error:
        raise PinionError(f"{path}: the block `# /// script` is no TOML: {error}") from None
    needed = metadata.get("dependencies", [])
    if not isinstance(needed, list) or not all(isinstance(name, str) for name in needed):
        raise PinionError(f"{path}: `dependencies` must be a list of texts")
    return needed


def _listed(folder: Path) -> list[str]:
    """What the folder's functions.txt lists: a requirement on each line."""
    path = folder / "functions.txt"
    if not path.is_file():
        return []
    lines = (line.split("#", 1)[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]
