"""The type stubs of package/: they have every name that scripts see, and mypy and pyright accept all examples with them."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import Server
from probes import in_script

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "package/src"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
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


def scripts(folder: Path, *, imported: bool) -> None:
    """All examples and the template's functions; `imported`: with the names that are there without an import."""
    for path in EXAMPLES:
        text = path.read_text()
        # A script may give a name of its own to what it has from the server: that one is not imported then.
        own = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
        names = ", ".join(sorted(exported() - own))
        head = f"from pinion_redis.script import {names}\n" if imported else ""
        (folder / path.name).write_text(head + text)
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
