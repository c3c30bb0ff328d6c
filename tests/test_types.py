"""The type stubs of package/: they have every name that scripts see, and mypy and pyright accept all examples with them."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from helpers import Server
from probes import in_script

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "package/src"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGE = (ROOT / "docs/command-line.md").read_text()
WRONG = "GB('KeysReader').register(eventTypes=['set'], moed='sync')\nexecut('PING')\nlog('x', level='loud')\n"
# What the template of all globals imports for itself: modules of Python, and the parts of contextlib and others.
OWN = {"partial", "StringIO", "Thread", "Future"}
# Not every example's packages are installed here; globals that are filled by `onRegistered` are None before; psycopg's stubs are strict
# about row factories.
LENIENT = {"reportMissingImports": False, "reportOptionalMemberAccess": False, "reportArgumentType": False}


def names_of(stub: Path) -> set[str]:
    """The names that a stub defines."""
    found: set[str] = set()
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def exported() -> set[str]:
    """What `from pinion_redis.script import *` gives."""
    tree = ast.parse((PACKAGE / "pinion_redis/script.pyi").read_text())
    [names] = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    return set(ast.literal_eval(names))


def mypy(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    stubs = cwd / "stubs"  # mypy sees a folder *-stubs only where it is installed
    stubs.mkdir(exist_ok=True)
    if not (stubs / "redisgears").exists():
        (stubs / "redisgears").symlink_to(PACKAGE / "redisgears-stubs")
    environment = {**os.environ, "MYPYPATH": f"{PACKAGE}:{stubs}"}
    line = [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--cache-dir", str(cwd / "cache"), *map(str, words)]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True)


def pyright(folder: Path, **options: bool) -> subprocess.CompletedProcess[str]:
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(PACKAGE)], **options}))
    template = PACKAGE / "pinion_redis/template/builtins.pyi.txt"
    (folder / "__builtins__.pyi").write_text(template.read_text())
    line = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(folder)]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True)


# What docs/command-line.md tells people to write.
HEADER = textwrap.dedent(re.findall(r"^    from typing import TYPE_CHECKING\n(?:    .*\n|\n)*?        from pinion_redis.script import \*\n", PAGE, re.MULTILINE)[0])


def scripts(folder: Path, *, imported: bool) -> None:
    """All examples and the template's functions; `imported`: with the header of the page."""
    for path in EXAMPLES:
        (folder / path.name).write_text((HEADER if imported else "") + path.read_text())
    template = PACKAGE / "pinion_redis/template/functions/users.py.txt"
    (folder / "users.py").write_text(template.read_text())


@pytest.mark.once
def test_mypy_accepts_all_examples(tmp_path: Path) -> None:
    scripts(tmp_path, imported=True)
    done = mypy(*tmp_path.glob("*.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    (tmp_path / "wrong.py").write_text("from pinion_redis.script import *\n" + WRONG)
    told = mypy(tmp_path / "wrong.py", cwd=tmp_path).stdout
    assert all(word in told for word in ("moed", "execut", "loud")), told


TYPED = """
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pinion_redis.script import *

@read_through('user:*', ttl=300)
def load(key: str) -> dict[str, str] | None:
    return {'key': key} if key else None

@read_through('name:*', batch=100)
async def names(keys: list[str]) -> list[str | None]:
    return [key for key in keys]

@write_behind('user:*', batch=100)
def save(changes: 'list[Change]') -> None:
    for change in changes:
        log(change['event'], level='debug')

def save_too(changes: list[dict[str, object]]) -> int:
    return len(changes)

reveal_type(load)
reveal_type(names)
reveal_type(save)
reveal_type(write_behind('other:*', save_too, interval=1))
"""
MISTAKES = {
    "load(7)": "arg-type",
    "save([{'key': 1}])": "typeddict-item",
    "write_behind('x*', interval='1')(save)": "call-overload",
    "read_through('x*', ttl_=7)(load)": "call-overload",
    "@read_through('x*')\ndef two(key: str, other: str) -> str: ...": "type-var",
}


@pytest.mark.once
def test_decorators_keep_the_type_of_functions(tmp_path: Path) -> None:
    (tmp_path / "typed.py").write_text(TYPED)
    done = mypy("--strict", "--python-version", "3.12", tmp_path / "typed.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    loads, names, saves, saves_too = (text.replace("builtins.", "").replace("typing.", "") for text in revealed)
    assert loads == "def (key: str) -> dict[str, str] | None"
    assert names == "def (keys: list[str]) -> Coroutine[Any, Any, list[str | None]]"
    assert saves.startswith("def (changes: list[TypedDict(") and "Change" in saves
    assert saves_too == "def (changes: list[dict[str, object]]) -> int"
    for mistake, code in MISTAKES.items():
        (tmp_path / "typed.py").write_text(TYPED + mistake + "\n")
        told = mypy("--strict", "--python-version", "3.12", tmp_path / "typed.py", cwd=tmp_path)
        assert told.returncode == 1 and f"[{code}]" in told.stdout, (mistake, told.stdout)


@pytest.mark.once
def test_pyright_accepts_all_examples(tmp_path: Path) -> None:
    scripts(tmp_path, imported=False)
    done = pyright(tmp_path, **LENIENT)
    assert done.returncode == 0, done.stdout
    other = tmp_path / "other"
    other.mkdir()
    (other / "wrong.py").write_text(WRONG)
    told = pyright(other).stdout
    assert all(word in told for word in ("moed", "execut", "loud")), told


@pytest.mark.once
def test_the_package_itself(tmp_path: Path) -> None:
    done = mypy("--config-file", ROOT / "package/pyproject.toml", PACKAGE / "pinion_redis", cwd=tmp_path)
    assert done.returncode == 0, done.stdout


def test_every_name_that_scripts_see_has_a_type(server: Server) -> None:
    body = """
        import types
        return [n for n, v in globals().items() if not n.startswith('__') and not isinstance(v, types.ModuleType)]
        """
    seen = set(in_script(server, body))
    known = names_of(PACKAGE / "pinion_redis/script.pyi")
    assert seen - known - OWN - {"probe"} == set()


def test_every_name_of_the_module_has_a_type(server: Server) -> None:
    seen = {name for name in in_script(server, "import redisgears\nreturn dir(redisgears)") if not name.startswith("_")}
    own = "".join(path.read_text() for path in (ROOT / "python").glob("*.py"))
    internal = {name for name in seen if f"redisgears.{name}" in own}  # what only the module's own Python calls
    assert seen - names_of(PACKAGE / "redisgears-stubs/__init__.pyi") - internal == set()


@pytest.mark.parametrize("name", ["GearsBuilder", "PyFlatExecution"])
def test_every_operation_has_a_type(server: Server, name: str) -> None:
    methods = in_script(server, f"return [m for m in dir({name}) if m[0] != '_']")
    stub = "pinion_redis/script.pyi" if name == "GearsBuilder" else "redisgears-stubs/__init__.pyi"
    defined: set[str] = set()
    for path in (stub, "redisgears-stubs/__init__.pyi"):
        for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
            if isinstance(node, ast.ClassDef) and node.name in (name, "PyFlatExecution"):
                defined |= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
    assert set(methods) - defined == set()
