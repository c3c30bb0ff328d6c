"""The loader, libpinion.so: which Python it takes, and the one line in the log for each thing that can be missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

from helpers import Server, ServerDied, module_path
from probes import in_script

VERSION = "%d.%d" % sys.version_info[:2]
BUILD = f"pinion-cp{VERSION.replace('.', '')}.so"
START = Callable[..., Server]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the loader and the build for this Python, as a package has them: nothing else is there."""
    folder = tmp_path / "files"
    place(folder)
    return folder


def place(folder: Path) -> Path:
    folder.mkdir(parents=True)
    shutil.copy(module_path(), folder / "libpinion.so")
    (folder / BUILD).symlink_to(module_path().parent / BUILD)
    return folder


def start(start_server: START, module: Path, *words: object) -> Server:
    return start_server(module=False, args=["--loadmodule", module, *words])


def refusal(start_server: START, module: Path, *words: object) -> str:
    """Why a server with this module does not start: exactly one line of the loader's."""
    with pytest.raises(ServerDied) as died:
        start(start_server, module, *words)
    assert "ended with status 1;" in str(died.value), "it left by itself"
    [line] = [line for line in str(died.value).splitlines() if "Pinion cannot load: " in line]
    return line.split("Pinion cannot load: ")[1]


def environment(path: Path, python: str) -> Path:
    """A virtual environment whose interpreter is a program of ours."""
    (path / "bin").mkdir(parents=True)
    (path / "pyvenv.cfg").write_text("home = /usr/bin\n")
    program = path / "bin/python"
    program.write_text(python)
    program.chmod(0o755)
    return path


def answer(path: Path, **changed: str) -> str:
    """An interpreter that says this of itself."""
    told = {"name": "cpython", "version": VERSION, "program": f"{path}/bin/python", "prefix": str(path), "base": "/opt/python"}
    told |= {"library": "/opt/python/lib", "arch": "", "shared": "1", "free": "", **changed}
    return "#!/bin/sh\ncat <<'END'\n" + "\n".join(["pinion-probe", *told.values(), "end"]) + "\nEND\n"


# --- which Python ---


def test_it_needs_no_library_of_python_and_is_small() -> None:
    needed = subprocess.run(["ldd", module_path()], capture_output=True, text=True, check=True).stdout
    assert "python" not in needed and "libgcc" not in needed
    assert module_path().stat().st_size < 100_000


@pytest.mark.matrix
def test_the_environment_that_it_is_given(start_server: START, folder: Path) -> None:
    server = start(start_server, folder / "libpinion.so", "PythonVenv", sys.prefix)
    assert os.path.samefile(in_script(server, "import sys\nreturn sys.prefix"), sys.prefix)
    assert server.client().execute_command("RG.CONFIGGET", "PythonVenv") == [sys.prefix]


def test_the_environment_that_it_is_installed_in(start_server: START, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    package = place(venv / f"lib/python{VERSION}/site-packages/pinion_redis")
    link = tmp_path / "pinion.so"
    link.symlink_to(package / "libpinion.so")
    for module in (package / "libpinion.so", link):
        server = start(start_server, module)
        assert in_script(server, "import sys\nreturn sys.prefix") == str(venv)
        [listed] = [entry for entry in server.client().module_list() if entry["name"] == "rg"]
        assert listed.get("path", str(module)) == str(module)


def test_python3_where_it_is_in_no_environment(start_server: START, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "python3").symlink_to(os.path.realpath(sys.executable))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    server = start(start_server, folder / "libpinion.so")
    assert in_script(server, "import sys\nreturn sys.prefix == sys.base_prefix and sys.base_prefix") == sys.base_prefix


def test_paths_with_blanks_and_a_relative_one(start_server: START, tmp_path: Path) -> None:
    folder = place(tmp_path / "a folder")
    server = start(start_server, folder / "libpinion.so", "PythonVenv", sys.prefix)
    assert in_script(server, "return 1") == 1
    other = start(start_server, Path("..") / "a folder" / "libpinion.so", "PythonVenv", sys.prefix)
    assert in_script(other, "return 1") == 1


# --- what can be missing ---


def test_no_build_for_this_python(start_server: START, folder: Path, tmp_path: Path) -> None:
    venv = tmp_path / "env"
    environment(venv, answer(venv, version="3.8"))
    text = refusal(start_server, folder / "libpinion.so", "PythonVenv", venv)
    assert text.startswith(f"{folder} has no build for Python 3.8 (there are builds for {VERSION}): install pinion-redis with")


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"name": "pypy"}, "is pypy: CPython 3.9 or newer is needed"),
        ({"free": "1"}, f"is a free-threaded build of Python {VERSION}, for which there is no build of Pinion"),
    ],
)
def test_another_kind_of_python(start_server: START, folder: Path, tmp_path: Path, told: dict[str, str], reason: str) -> None:
    venv = environment(tmp_path / "env", answer(tmp_path / "env", **told))
    assert refusal(start_server, folder / "libpinion.so", "PythonVenv", venv).endswith(reason)


@pytest.mark.parametrize(
    ("told", "advice"),
    [
        ({"shared": "0"}, "it was built without one: take a Python that was configured with --enable-shared"),
        ({"shared": "1"}, "repair this installation of Python"),
        ({"base": "/usr", "library": "/nowhere", "arch": "none"}, f"apt-get install libpython{VERSION}"),
    ],
)
def test_no_shared_library_of_python(start_server: START, folder: Path, tmp_path: Path, told: dict[str, str], advice: str) -> None:
    if told.get("base") == "/usr" and Path(f"/usr/lib/libpython{VERSION}.so.1.0").exists():
        pytest.skip("this machine has one in /usr/lib")
    venv = environment(tmp_path / "env", answer(tmp_path / "env", **told))
    text = refusal(start_server, folder / "libpinion.so", "PythonVenv", venv)
    assert f"has no shared library libpython{VERSION}.so.1.0: " in text
    assert text.endswith(advice)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("#!/bin/sh\necho 'No module named sysconfig' >&2; exit 1\n", "does not work: No module named sysconfig"),
        ("#!/bin/sh\n", "does not work: it says nothing"),
        ("\x7fELF of another machine", "cannot be run: Exec format error"),
    ],
)
def test_a_python_that_does_not_run(start_server: START, folder: Path, tmp_path: Path, program: str, reason: str) -> None:
    venv = environment(tmp_path / "env", program)
    assert reason in refusal(start_server, folder / "libpinion.so", "PythonVenv", venv)


def test_a_build_for_another_processor(start_server: START, folder: Path) -> None:
    head = bytearray((folder / BUILD).read_bytes()[:4096])
    head[18:20] = (183).to_bytes(2, "little")
    (folder / BUILD).unlink()
    (folder / BUILD).write_bytes(head)
    text = refusal(start_server, folder / "libpinion.so", "PythonVenv", sys.prefix)
    assert text == f"{folder / BUILD} is for another kind of processor (ARM, 64 bits) than this server (x86-64)"


def test_a_damaged_build(start_server: START, folder: Path) -> None:
    (folder / BUILD).unlink()
    (folder / BUILD).write_bytes(b"half a file")
    text = refusal(start_server, folder / "libpinion.so", "PythonVenv", sys.prefix)
    assert text == f"{folder / BUILD} is damaged: it is no shared library"


def test_a_build_of_another_release(start_server: START, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "old.c").write_text("int pinion_load_0(void) { return 0; }\n")
    (folder / BUILD).unlink()
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / BUILD, tmp_path / "old.c"], check=True)
    text = refusal(start_server, folder / "libpinion.so", "PythonVenv", sys.prefix)
    assert "is of another release of Pinion than the file that loads it" in text


def test_another_c_library(tmp_path: Path, folder: Path) -> None:
    """The loader itself can be opened with musl, and says what is wrong."""
    compiler = shutil.which("musl-gcc")
    if compiler is None:
        pytest.skip("musl-gcc is not on this machine")
    program = tmp_path / "server.c"
    program.write_text(
        """
        #include <dlfcn.h>
        #include <stdarg.h>
        #include <stdio.h>
        #include <string.h>
        static void say(void *ctx, const char *level, const char *format, ...) {
            va_list words; va_start(words, format); vprintf(format, words); va_end(words);
        }
        static int api(const char *name, void **function) {
            *function = strcmp(name, "RedisModule_Log") ? 0 : (void *)say;
            return *function == 0;
        }
        int main(int argc, char **argv) {
            void *ctx[1] = {(void *)api};
            void *module = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
            if (!module) { puts(dlerror()); return 2; }
            int (*load)(void *, void **, int) = (int (*)(void *, void **, int))dlsym(module, "RedisModule_OnLoad");
            return load(ctx, 0, 0);
        }
        """
    )
    subprocess.run([compiler, "-o", tmp_path / "server", program], check=True)
    done = subprocess.run([tmp_path / "server", folder / "libpinion.so"], capture_output=True, text=True)
    assert done.stdout.startswith("Pinion cannot load: this server's C library is not glibc (Alpine and its musl")
    assert done.returncode == 1


@pytest.mark.matrix
def test_it_is_loaded_once(start_server: START, folder: Path) -> None:
    with pytest.raises(ServerDied) as died:
        start_server(module=False, args=["--loadmodule", folder / "libpinion.so", "PythonVenv", sys.prefix,
                                         "--loadmodule", folder / "libpinion.so"])
    assert "Pinion cannot load: it is loaded already" in str(died.value)


def test_no_path_of_the_build_is_looked_for() -> None:
    """The module itself names no folder of a Python: it has no run path."""
    build = module_path().parent / BUILD
    shown = subprocess.run(["readelf", "-d", build], capture_output=True, text=True, check=True).stdout
    assert "RPATH" not in shown and "RUNPATH" not in shown
