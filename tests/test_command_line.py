"""The command `pinion` of package/: deploying, exit codes, the ways to a server, `run`, `new` and `path`.

The subcommands run in this process, as `pinion` would; the installed one is played by test_packages.py. What watches a server is in
test_command_line_watching.py.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

from command_line import KEYS, ROOT, TRIGGER, Pinion, pinion, script, url  # noqa: F401
from helpers import Server, ServerDied, free_port, module_path, wait_until

# command_line says where it is.
from pinion_redis import scripts

# --- deploy ---


def test_a_file_is_deployed_listed_and_removed(server: Server, pinion: Pinion, url: str, script: Callable[..., Path]) -> None:
    path = script(KEYS)
    done = pinion("deploy", path, "-u", url, "--description", "a demo")
    assert (done.code, done.out) == (0, "+ KeysReader x* set async_local\n")
    server.client().set("x1", 1)
    server.wait_idle()
    [entry] = json.loads(pinion("list", "-u", url, "--json").out)
    assert (entry["session"], entry["succeeded"], entry["failed"], entry["description"]) == ("counts", 1, 0, "counts")
    assert "0000-" in pinion("list", "-u", url).out
    assert "a demo" in pinion("list", "--sessions", "-u", url).out
    shown = pinion("show", "0000-" + entry["id"].rpartition("-")[2], "-u", url)
    assert "1 triggered, 1 succeeded" in shown.out
    removed = pinion("rm", "counts", "-u", url)
    assert removed.code == 0 and removed.out.startswith("- KeysReader x* set")
    assert server.registrations() == []


def test_a_second_deployment_tells_what_changed(pinion: Pinion, url: str, script: Callable[..., Path]) -> None:
    pinion("deploy", script(KEYS + TRIGGER), "-u", url)
    done = pinion("deploy", script(KEYS + KEYS.replace("x*", "y*")), "-u", url)
    assert sorted(done.out.splitlines()) == [
        *("+ KeysReader y* set async_local", "- CommandReader shout async"),
        "= KeysReader x* set async_local (same events, new code)",
    ]
    assert pinion("deploy", script(KEYS), "-u", url, "--no-upgrade").code == 1


def test_a_folder_is_deployed_as_a_whole_or_not_at_all(server: Server, pinion: Pinion, url: str, script: Callable[..., Path]) -> None:
    folder = script("COUNT = 'first'\nGB('CommandReader').map(lambda r: COUNT).register(trigger='one')", "shop/one.py").parent
    script("COUNT = 'second'\nGB('CommandReader').map(lambda r: COUNT).register(trigger='two')", "shop/two.py")
    script("1 / 0", "shop/test_two.py")
    assert pinion("deploy", folder, "-u", url).code == 0
    assert [pinion("call", name, "-u", url).out for name in ("one", "two")] == ["first\n", "second\n"]
    before = server.registrations()
    script("def broken():\n    return 1 / 0\n\n\nbroken()", "shop/two.py")
    done = pinion("deploy", folder, "-u", url)
    assert done.code == 1 and "division by zero" in done.err and "two.py" in done.err
    assert server.registrations() == before, "nothing has changed"


def test_what_can_never_fire_is_told(pinion: Pinion, url: str, script: Callable[..., Path]) -> None:
    path = script(KEYS.replace("'set'", "'sett'"))
    done = pinion("deploy", path, "-u", url)
    assert done.code == 0 and "may never fire" in done.err and "sett" in done.err
    assert pinion("deploy", path, "-u", url, "--strict").code == 1
    assert "may never fire" in pinion("doctor", "-u", url).out


def test_a_run_shows_its_results_and_its_errors(server: Server, pinion: Pinion, url: str, script: Callable[..., Path]) -> None:
    server.client().mset({"k:1": 1, "k:2": 0})
    assert pinion("deploy", script("GB().count().run('k:*')"), "-u", url).out == "2\n"
    done = pinion("deploy", script("GB().map(lambda r: 1 / int(r['value'])).run('k:*')"), "-u", url)
    assert done.code == 1 and "ZeroDivisionError: division by zero" in done.err
    assert "registers nothing and has no run" in pinion("deploy", script("log('x')"), "-u", url).err


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_script_that_registers_nothing_is_told(server: Server, pinion: Pinion, url: str, script: Callable[..., Path], options: tuple[str, ...]) -> None:
    done = pinion("deploy", script("log('x')"), "-u", url, *options)
    assert done.code == 0 and "registers nothing" in done.err
    assert pinion("deploy", script(KEYS + TRIGGER), "-u", url, *options).code == 0
    done = pinion("deploy", script("log('x')"), "-u", url, *options)
    assert done.code == 1 and "registers nothing: what it had before is gone, 2 registrations" in done.err
    assert server.registrations() == []


def test_requirements_come_from_the_script_and_its_folder(pinion: Pinion, script: Callable[..., Path]) -> None:
    path = script("# /// script\n# dependencies = ['requests>=2']\n# ///\n" + KEYS)
    script("numpy  # numbers\n\n# nothing\n", "functions.txt")
    assert scripts.read(path).requirements == ["requests>=2", "numpy"]
    path.write_text("# /// script\n# dependencies = 7\n# ///\n")
    assert pinion("deploy", path, "--dry-run").code == 3, "it looks for the server first"


@pytest.mark.parametrize(
    ("text", "reason"),
    [("def f(:\n", ":1: invalid syntax"), ("# /// script\n# dependencies = 7\n# ///\n", "`dependencies` must be a list of texts")],
)
def test_a_script_that_is_wrong_is_not_sent(pinion: Pinion, url: str, script: Callable[..., Path], text: str, reason: str) -> None:
    done = pinion("deploy", script(text), "-u", url)
    assert done.code == 1 and reason in done.err


def test_a_requirement_that_does_not_exist_leaves_what_was_there(server: Server, pinion: Pinion, url: str, script: Callable[..., Path]) -> None:
    pinion("deploy", script(KEYS), "-u", url)
    before = server.registrations()
    done = pinion("deploy", script(KEYS), "-u", url, "-r", "./no-such-folder")
    assert done.code == 1 and done.err.startswith("pinion: ") and "requirement" in done.err
    assert server.registrations() == before


# --- errors and exit codes ---


def test_what_is_not_there(pinion: Pinion, url: str) -> None:
    for words, reason in {
        ("rm", "nobody"): "neither a session nor a registration 'nobody'",
        ("show", "nobody"): "neither a session nor a registration 'nobody'",
        ("call", "nobody"): "no function is registered with trigger='nobody'",
        ("profile", "nobody"): "there is no session 'nobody'",
    }.items():
        done = pinion(*words, "-u", url)
        assert done.code == 4 and reason in done.err, words
        assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("wrong", ["http://localhost", "redis+sentinel://localhost:1", "redis://127.0.0.1:1", "unix:///nowhere.sock"])
def test_no_server(pinion: Pinion, wrong: str) -> None:
    done = pinion("list", "-u", wrong)
    assert done.code == 3 and wrong in done.err
    assert "Traceback" not in done.err


def test_secrets_are_not_shown(pinion: Pinion) -> None:
    done = pinion("list", "-u", "redis://ann:secret@127.0.0.1:1")
    assert done.code == 3 and "secret" not in done.err and "***@127.0.0.1" in done.err


def test_wrong_usage(pinion: Pinion, url: str, script: Callable[..., Path]) -> None:
    assert pinion("deploy").code == 2
    assert pinion("nonsense").code == 2
    done = pinion("deploy", script(KEYS), "-u", url, "--id", "a b")
    assert done.code == 1 and "letters, digits" in done.err


def test_a_server_without_the_module(source: Server, pinion: Pinion) -> None:
    there = f"redis://{source.host}:{source.port}"
    done = pinion("list", "-u", there)
    assert done.code == 1 and "is the module loaded?" in done.err
    done = pinion("doctor", "-u", there)
    assert done.code == 1 and "Pinion is not loaded in this server" in done.out and "--loadmodule" in done.out


# --- ways to a server ---


def test_users_and_passwords(server: Server, pinion: Pinion, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server.client().execute_command("ACL", "SETUSER", "ann", "on", ">secret", "~*", "+ping", "+info", "+rg.stats")
    try:
        assert pinion("list", "-u", url, "--user", "ann", "--password", "secret", "--json").out == "[]\n"
        assert pinion("list", "-u", url.replace("//", "//ann:secret@"), "--json").out == "[]\n"
        monkeypatch.setenv("PINION_PASSWORD", "secret")
        monkeypatch.setenv("PINION_USER", "ann")
        assert pinion("list", "-u", url, "--json").code == 0
        done = pinion("rm", "x", "-u", url, "--password", "wrong")
        assert done.code == 3 and "does not let this user in" in done.err
        done = pinion("call", "x", "-u", url)
        assert done.code == 1 and "this user may not do that" in done.err
    finally:
        server.client().execute_command("ACL", "DELUSER", "ann")


def test_doctor_tells_which_rights_are_missing(server: Server, pinion: Pinion, url: str) -> None:
    if not server.is_valkey and server.version < (7, 0):
        pytest.skip("this server has no ACL DRYRUN")
    server.client().execute_command("ACL", "SETUSER", "ann", "on", ">secret", "~*", "+@all", "-rg.pyexecute")
    try:
        done = pinion("doctor", "-u", url, "--user", "ann", "--password", "secret")
        assert "may not call rg.pyexecute" in done.out and "ACL SETUSER ann +rg.pyexecute" in done.out
        assert pinion("doctor", "-u", url).code == 0
    finally:
        server.client().execute_command("ACL", "DELUSER", "ann")


def test_a_user_without_rights_is_told_all_that_is_missing(server: Server, pinion: Pinion, url: str) -> None:
    client = server.client()
    client.execute_command("ACL", "SETUSER", "mini", "on", ">secret", "~*")
    mini = ("--user", "mini", "--password", "secret")
    try:
        done = pinion("doctor", "-u", url, *mini)
        assert done.code == 1 and "`pinion doctor`" not in done.out + done.err
        for word in ("ping", "info", "command"):
            assert f"do: ACL SETUSER mini +{word}" in done.out, done.out
        assert "FAIL figures: this user may not do that" in done.out
        assert "+info +rg.stats, in a cluster +cluster|myid +cluster|slots as well" in done.out
        assert "see `pinion doctor`" in pinion("list", "-u", url, *mini).err
        client.execute_command("ACL", "SETUSER", "mini", "+info", "+rg.stats")
        assert pinion("list", "-u", url, *mini, "--json").out == "[]\n", "PING is not needed"
        done = pinion("doctor", "-u", url, *mini)
        assert done.code == 0 and "ok   functions: 0 registrations" in done.out
    finally:
        client.execute_command("ACL", "DELUSER", "mini")


def test_unix_sockets_and_tls(start_server: Callable[..., Server], pinion: Pinion, tmp_path: Path) -> None:
    key, certificate, port = tmp_path / "key", tmp_path / "certificate", free_port()
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2", *subject]
    subprocess.run(make, check=True, capture_output=True)
    socket_path = tmp_path / "s"
    tls = ["--tls-port", port, "--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate]
    try:
        start_server(module=False, args=["--tls-port", free_port(), *tls[2:]])
    except ServerDied:
        pytest.skip("this server has no TLS")
    start_server(args=["--unixsocket", socket_path, *tls, "--tls-auth-clients", "no"])
    assert pinion("list", "-u", f"unix://{socket_path}", "--json").out == "[]\n"
    secure = f"rediss://127.0.0.1:{port}"
    assert pinion("list", "-u", secure, "--tls-ca", certificate, "--json").out == "[]\n"
    assert pinion("list", "-u", secure, "--tls-insecure", "--json").out == "[]\n"
    done = pinion("list", "-u", secure)
    assert done.code == 3 and "certificate" in done.err


def test_sentinel(server: Server, pinion: Pinion, script: Callable[..., Path], tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(f"port {port}\ndir {tmp_path}\nsentinel monitor cache 127.0.0.1 {server.port} 1\n")
    program = shutil.which("redis-server") or str(server.binary)
    with subprocess.Popen([program, config, "--sentinel"], stdout=subprocess.DEVNULL) as sentinel:
        try:
            there = f"redis+sentinel://127.0.0.1:{port}"
            wait_until(lambda: pinion("list", "-u", f"{there}/cache", "--json").out == "[]\n", message="the sentinel knows the master")
            assert pinion("deploy", script(TRIGGER), "-u", f"{there}/cache").code == 0
            assert pinion("call", "shout", "x", "-u", f"{there}/cache").out == "X\n"
            done = pinion("list", "-u", f"{there}/other")
            assert done.code == 3 and "no Sentinel" in done.err
        finally:
            sentinel.terminate()


def test_a_cluster(cluster, pinion: Pinion, script: Callable[..., Path]) -> None:  # type: ignore[no-untyped-def]
    there = f"redis://127.0.0.1:{cluster.nodes[1].port}"
    assert pinion("deploy", script(KEYS.replace("'n'", "'n:{' + hashtag() + '}'")), "-u", there).code == 0
    client = cluster.client()
    for number in range(30):
        client.set(f"x{number}", 1)
    for node in cluster.nodes:
        node.wait_idle()
    [entry] = json.loads(pinion("list", "-u", there, "--json").out)
    assert entry["succeeded"] == 30, "the sum of all shards"
    assert "3 shards, all linked" in pinion("doctor", "-u", there).out
    assert "shards 3" in " ".join(pinion("top", "--once", "-i", "0.1", "-u", there).out.split())
    for number in range(5):
        shown = json.loads(pinion("key", f"x{number}", "-u", there, "--json").out)
        assert (shown["key"], shown["inCache"]) == (f"x{number}", 1), "from the shard that has it"
    assert pinion("rm", "counts", "-u", there).code == 0


# --- run, new, path ---


def test_run_follows_its_files(pinion: Pinion, script: Callable[..., Path], tmp_path: Path, server: Server) -> None:
    path = script("GB('CommandReader').map(lambda r: 'first').register(trigger='t')", "functions/one.py")
    port = free_port()
    environment = {"PYTHONPATH": str(ROOT / "package/src"), "PATH": "/usr/bin:/bin", "PINION_MODULE": str(module_path())}
    words = [sys.executable, "-m", "pinion_redis", "run", "--port", str(port), "--server", str(server.binary), "-o", "MaxExecutions=7"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        there = f"redis://127.0.0.1:{port}"
        wait_until(lambda: pinion("call", "t", "-u", there).out == "first\n", 30, "the first one is deployed")
        assert json.loads(pinion("list", "--json", "-u", there).out)[0]["session"] == tmp_path.name.replace(".", "_")
        path.write_text(path.read_text().replace("first", "second"))
        wait_until(lambda: pinion("call", "t", "-u", there).out == "second\n", 30, "the change is deployed")
        path.write_text("1 / 0")
        wait_until(lambda: "not deployed" in (tmp_path / "log").read_text(), 30, "the error is told")
        assert pinion("call", "t", "-u", there).out == "second\n"
        taken = pinion("run", "--port", port)
        assert taken.code == 1 and f"port {port} is taken" in taken.err
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_new_overwrites_nothing(pinion: Pinion, tmp_path: Path) -> None:
    assert pinion("new", tmp_path / "shop").code == 0
    (tmp_path / "shop/README.md").write_text("mine")
    done = pinion("new", tmp_path / "shop")
    assert done.code == 1 and "README.md" in done.err and (tmp_path / "shop/README.md").read_text() == "mine"
    assert pinion("new", tmp_path / "a b").code == 1


def test_path(pinion: Pinion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINION_MODULE", str(module_path()))
    assert pinion("path").out == f"{module_path()}\n"
    monkeypatch.setenv("PINION_MODULE", "/nowhere/libpinion.so")
    assert pinion("path").code == 4
    monkeypatch.delenv("PINION_MODULE")
    monkeypatch.setattr("pinion_redis.__file__", "/nowhere/__init__.py")
    done = pinion("path")
    assert done.code == 4 and "set PINION_MODULE to its path" in done.err
