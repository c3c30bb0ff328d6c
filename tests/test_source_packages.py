"""Requirements that are source distributions, on a machine that has built none of them before.

Spec: docs/persistence.md, "Packages". No network is used: the distributions are made by hand, and what builds them is in the
server's environment, or in the distribution itself.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest
import redis

from helpers import PATIENCE, Server

# The folder of packages is in the environment that a server starts with. What is tested is how pip builds them.
pytestmark = [pytest.mark.own_server, pytest.mark.once]

SETUP = "from setuptools import setup, Extension\nsetup(name='{name}', version='1.0', {options})\n"
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "{name}"
version = "1.0"
[tool.setuptools]
py-modules = ["{module}"]
"""
# A package that builds itself, as PEP 517 allows, and needs nothing for that.
OWN_BACKEND = """
import zipfile
def build_wheel(directory, config_settings=None, metadata_directory=None):
    name, info = '{module}-1.0-py3-none-any.whl', '{module}-1.0.dist-info'
    with zipfile.ZipFile(directory + '/' + name, 'w') as archive:
        archive.write('{module}.py')
        archive.writestr(info + '/METADATA', 'Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n')
        archive.writestr(info + '/WHEEL', 'Wheel-Version: 1.0\\nGenerator: own\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
        archive.writestr(info + '/RECORD', '')
    return name
"""
BUILD = "[build-system]\nrequires = [{requires}]\nbuild-backend = '{backend}'\nbackend-path = ['.']\n"


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip takes packages from; its cache is empty."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_RETRIES", "0")
    return folder


def sdist(folder: Path, name: str, files: dict[str, str]) -> None:
    """Makes a source distribution of version 1.0 with one module and these files, where `{name}` and `{module}` are filled in."""
    module = name.replace("-", "_")
    top = f"{module}-1.0"
    with tarfile.open(folder / f"{top}.tar.gz", "w:gz") as archive:
        head = f"Metadata-Version: 1.2\nName: {name}\nVersion: 1.0\n"
        for path, text in {"PKG-INFO": head, f"{module}.py": "BUILT = True\n", **files}.items():
            data = text.replace("{name}", name).replace("{module}", module).encode()
            entry = tarfile.TarInfo(f"{top}/{path}")
            entry.size, entry.mtime = len(data), 1_700_000_000
            archive.addfile(entry, io.BytesIO(data))


def refusal(server: Server, requirement: str) -> str:
    """The error reply; a build may take its time."""
    with pytest.raises(redis.ResponseError) as refused:
        server.client(socket_timeout=50 * PATIENCE).execute_command("RG.PYEXECUTE", "1", "REQUIREMENTS", requirement)
    return str(refused.value)


def setup(options: str = "py_modules=['{module}']") -> dict[str, str]:
    """An old distribution, with a setup.py only."""
    return {"setup.py": SETUP.replace("{options}", options)}


KINDS = {
    "old": setup(),
    "project": {"pyproject.toml": PROJECT},
    "both": {**setup(), "pyproject.toml": "[build-system]\nrequires = ['setuptools', 'wheel']\n"},
    "own-backend": {"backend.py": OWN_BACKEND, "pyproject.toml": BUILD.format(requires="", backend="backend")},
}


@pytest.mark.parametrize("kind", KINDS)
def test_source_distributions_are_built(server: Server, packages: Path, kind: str) -> None:
    name = f"pinion-{kind}"
    sdist(packages, name, KINDS[kind])
    script = f"import {name.replace('-', '_')} as m\nGB('ShardsIDReader').map(lambda _: m.BUILT).run()"
    assert server.run(script, "REQUIREMENTS", name, client=server.client(socket_timeout=50 * PATIENCE)) == [["True"], []]


def test_one_that_another_one_needs(server: Server, packages: Path) -> None:
    sdist(packages, "pinion-inner", setup())
    sdist(packages, "pinion-outer", setup("py_modules=['{module}'], install_requires=['pinion-inner']"))
    assert server.run("import pinion_inner, pinion_outer", "REQUIREMENTS", "pinion-outer", client=server.client(socket_timeout=50 * PATIENCE)) == "OK"


EXTENSION = "ext_modules=[Extension('{module}', ['it.c'])]"
# Name, files, what the reply says besides the name.
BROKEN = {
    "compiler": ({**setup(EXTENSION), "it.c": "int f(void) { return nobody; }\n"}, ["could not be built: it.c:1", "nobody"]),
    "header": ({**setup(EXTENSION), "it.c": "#include <nowhere.h>\n"}, ["could not be built: it.c:1", "nowhere.h"]),
    "setup": ({"setup.py": "raise RuntimeError('no pg_config')\n"}, ["could not be built: RuntimeError: no pg_config"]),
    "syntax": ({"setup.py": "print 'Python 2'\n"}, ["could not be built: SyntaxError: Missing parentheses"]),
    "backend": ({"pyproject.toml": BUILD.format(requires="", backend="nowhere")}, ["nowhere"]),
    "tools": ({"pyproject.toml": BUILD.format(requires="'pinion-nowhere'", backend="nowhere")}, ["nowhere"]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_reply_names_the_package_and_the_reason(server: Server, packages: Path, kind: str) -> None:
    files, said = BROKEN[kind]
    if "it.c" in files and not shutil.which("cc"):
        pytest.skip("no compiler")
    name = f"pinion-{kind}"
    sdist(packages, name, files)
    error = refusal(server, name)
    assert error.startswith(f"Could not satisfy requirements (look at redis log file for more information): {name}: ")
    assert all(word in error.replace("_", "-") or word in error for word in said), error
    assert "\n" not in error and len(error) < 600
    assert server.client().execute_command("RG.PYDUMPREQS") == []


def test_a_broken_one_that_another_one_needs(server: Server, packages: Path) -> None:
    sdist(packages, "pinion-setup", BROKEN["setup"][0])
    sdist(packages, "pinion-outer", setup("py_modules=['{module}'], install_requires=['pinion-setup']"))
    error = refusal(server, "pinion-outer")
    assert "pinion-outer: " in error and "pinion_setup-1.0.tar.gz could not be built: RuntimeError: no pg_config" in error
