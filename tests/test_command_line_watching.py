"""The subcommands of `pinion` that watch a server: `call`, `list`, `top`, `profile`, `exporter`."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Callable

import pytest
import redis

from command_line import KEYS, ROOT, TRIGGER, UNSAVED, Pinion, pinion, script, url  # noqa: F401
from helpers import Server, free_port, wait_until

# command_line says where it is.
from pinion_redis.connection import Address
from pinion_redis.exporter import StatsCollector
from pinion_redis.figures import last_line
from pinion_redis.profiling import Profile, parse, speedscope


def test_call(server: Server, pinion: Pinion, url: str, script: Callable[..., Path]) -> None:
    pinion("deploy", script(TRIGGER), "-u", url)
    assert pinion("call", "shout", "hello", "-u", url).out == "HELLO\n"
    assert json.loads(pinion("call", "shout", "hello", "-u", url, "--json").out) == ["HELLO"]
    assert pinion("call", "shout", "hello", "--key", "k", "-u", url).code == 0
    done = pinion("call", "shout", "-u", url)
    assert done.code == 1 and "IndexError" in done.err


def test_key(server: Server, pinion: Pinion, url: str, script: Callable[..., Path]) -> None:
    loader = "read_through('user:*', lambda key: 1 / 0 if 'bad' in key else 'x', ttl=95, backoff=45, max_backoff=45)"
    pinion("deploy", script(loader), "-u", url)
    client = server.client()
    client.get("user:1")
    shown = pinion("key", "user:1", "-u", url).out
    for part in ("user:1 (database 0, master)", "in the cache  yes, for another 9", "read_through user:*", "state    fresh", "fresh    9"):
        assert part in shown, shown
    with pytest.raises(redis.ResponseError, match="LOADFAILED"):
        client.get("user:bad")
    shown = pinion("key", "user:bad", "-u", url).out
    assert "in the cache  no" in shown and "ZeroDivisionError" in shown and "backoff" in shown and "failures   1" in shown, shown
    found = json.loads(pinion("key", "user:1", "-u", url, "--json").out)
    assert (found["registered"], found["read_through"][0]["state"], found["write_behind"]) == ("read_through", "fresh", [])
    assert "neither read_through nor write_behind has this key" in pinion("key", "order:1", "-u", url).out


def test_each_row_of_a_key_has_a_name_of_its_own(server: Server, pinion: Pinion, url: str, script: Callable[..., Path]) -> None:
    loader = "import time\ndef load(key):\n    while execute('EXISTS', 'well') == 0:\n        time.sleep(0.01)\nread_through('user:*', load, max_load_time=600)"
    pinion("deploy", script(loader), "-u", url)
    server.raw().send("GET", "user:1")
    wait_until(lambda: "load for" in pinion("key", "user:1", "-u", url).out)
    rows = [line.split("  ")[0].strip() for line in pinion("key", "user:1", "-u", url).out.splitlines()]
    named = [row for row in rows if row]
    assert "load" in named and len(named) == len(set(named)), named
    server.own.set("well", 1)


def test_top_shows_rates_and_errors(server: Server, pinion: Pinion, url: str, script: Callable[..., Path]) -> None:
    pinion("deploy", script("GB(desc='halves').foreach(lambda r: 1 / int(r['value'])).register('x*', mode='async_local')"), "-u", url)
    for value in (1, 2, 0):
        server.client().set("x", value)
        server.wait_idle()
    shown = pinion("top", "--once", "-i", "0.1", "-u", url).out
    assert "halves" in shown and "keys x*" in shown and "ZeroDivisionError: division by zero" in shown
    assert json.loads(pinion("top", "--json", "-u", url).out)[0]["schema"] == 1


def test_changes_that_are_not_saved_count_as_backlog(server: Server, pinion: Pinion, url: str, script: Callable[..., Path]) -> None:
    if server.version < (7, 0):
        pytest.skip("this server cannot have write_behind")
    pinion("deploy", script(UNSAVED), "-u", url)
    server.client().mset({f"w{number}": number for number in range(8)})
    for words in (("list",), ("top", "--once", "-i", "0.1")):
        lines = pinion(*words, "-u", url).out.splitlines()
        [head] = [line for line in lines if "events" in line]
        [row] = [line for line in lines if "w*" in line]
        end = max(head.find(title) + len(title) for title in ("pending", "backlog") if title in head)
        assert row[:end].endswith(" 8"), lines


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("", ""),
        ("NameError: x", "NameError: x"),
        ("Traceback (most recent call last):\n  File \"f\"\nValueError: 'no'\n", "ValueError: 'no'"),
        (str(["Traceback:\n", "AttributeError: 'str' object has no attribute 'get'\n"]), "AttributeError: 'str' object has no attribute 'get'"),
        (str(["Traceback:\n", "ValueError: [\"it's\", 'so']\n"]), "ValueError: [\"it's\", 'so']"),
        (str(["Traceback:\n", "psycopg.Error: no such table\nLINE 1: select\n        ^\n"]), "psycopg.Error: no such table"),
        ("..." + str(["  File 'f'\n", "ValueError: it is long\n"])[5:], "ValueError: it is long"),
        ("...", "..."),
    ],
)
def test_the_last_line_of_an_error(error: str, shown: str) -> None:
    assert last_line(error) == shown


def test_profile_gives_a_table_and_a_file_for_speedscope(server: Server, pinion: Pinion, url: str, script: Callable[..., Path], tmp_path: Path) -> None:
    pinion("deploy", script("""
        def inner():
            return sum(range(20000))

        def outer(record):
            for _ in range(20):
                inner()

        GB().foreach(outer).register('x*', mode='async_local')
        """, "work.py"), "-u", url)
    client = server.client()
    client.execute_command("RG.CONFIGSET", "ProfileExecutions", 1)
    for number in range(3):
        client.set(f"x{number}", 1)
    server.wait_idle()
    client.execute_command("RG.CONFIGSET", "ProfileExecutions", 0)
    target = tmp_path / "profile.json"
    done = pinion("profile", "work", "--seconds", "0", "-o", target, "-u", url)
    assert done.code == 0 and "(inner)" in done.out and "(outer)" in done.out
    flame = json.loads(target.read_text())
    names = [frame["name"] for frame in flame["shared"]["frames"]]
    stacks = [[names[frame].rsplit("(", 1)[-1].rstrip(")") for frame in sample] for sample in flame["profiles"][0]["samples"]]
    assert any(stack[:2] == ["outer", "inner"] for stack in stacks), stacks
    assert flame["profiles"][0]["endValue"] == pytest.approx(sum(flame["profiles"][0]["weights"]))
    assert pinion("profile", "work", "--seconds", "0.2", "-u", url).code == 0
    assert client.execute_command("RG.CONFIGGET", "ProfileExecutions") == [0], "it is as it was"


def test_exporter(server: Server, url: str, pinion: Pinion, script: Callable[..., Path]) -> None:
    has_write_behind = server.version >= (7, 0)
    pinion("deploy", script(KEYS + "read_through('r*', str)\n" + UNSAVED * has_write_behind), "-u", url)
    server.client().set("x", 1)
    server.client().set("w", 1)
    server.wait_idle()
    dashboard = json.loads(pinion("exporter", "--dashboard").out)
    port = free_port()
    words = [sys.executable, "-m", "pinion_redis", "exporter", "-u", url, "--port", str(port)]
    with subprocess.Popen(words, env={"PYTHONPATH": str(ROOT / "package/src"), "PATH": "/usr/bin:/bin"}, stderr=subprocess.PIPE) as exporter:
        try:
            def ready() -> bool:
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", port)) == 0
            wait_until(ready, 20, "the exporter listens")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
                text = reply.read().decode()
        finally:
            exporter.send_signal(signal.SIGTERM)
            assert exporter.wait(20) == 0
    assert "pinion_up 1.0" in text
    [line] = [line for line in text.splitlines() if re.match("pinion_registration_succeeded_total{.*KeysReader", line)]
    assert 'session="counts"' in line and line.endswith(" 1.0")
    known = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    if has_write_behind:
        told = {name.removeprefix("rg_write_behind") for name in server.client().info("rg_write_behind")}
        shown = {name.removeprefix("pinion_registration") for name in known}
        assert {name for name in told if name.endswith("_total")} - {"_handed_on_total"} <= shown
        assert {"_queued", "_queued_bytes", "_oldest_ms", "_save_p99_us"} <= shown
        assert {f"pinion_write_behind{name}" for name in told} <= known, "and the sums"
    asked = {target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])}
    for expression in asked:

        for name in re.findall(r"pinion_\w+", expression):
            assert name in known, f"the dashboard asks for {name}"


def test_the_exporter_tells_each_reason_once(server: Server, cluster) -> None:  # type: ignore[no-untyped-def]
    told: list[str] = []
    server.client().execute_command("ACL", "SETUSER", "monitor", "on", ">secret")

    def up(port: int) -> float:
        collector = StatsCollector(Address(f"redis://127.0.0.1:{port}", user="monitor", password="secret"), told.append)
        values = [next(iter(collector.collect())).samples[0].value for _ in range(3)]
        return float(values[-1])

    try:
        assert up(server.port) == 0
        [reason] = told
        assert "'info'" in reason and "the exporter needs: ACL SETUSER monitor +info +rg.stats" in reason
        server.client().execute_command("ACL", "SETUSER", "monitor", "+info", "+rg.stats")
        assert up(server.port) == 1
        for node in cluster.nodes:
            rules = ("+info", "+rg.stats", "+cluster|myid", "+cluster|slots")
            node.client().execute_command("ACL", "SETUSER", "monitor", "on", ">secret", *rules)
        assert up(cluster.nodes[1].port) == 1 and len(told) == 1
    finally:
        for node in [server, *cluster.nodes]:
            node.client().execute_command("ACL", "DELUSER", "monitor")
    assert up(free_port()) == 0 and "cannot be reached" in told[-1]


def test_flame_graphs_share_time_among_callers() -> None:
    text = """
   ncalls  tottime  percall  cumtime  percall filename:lineno(function)
        2    1.000    0.500    4.000    2.000 <string>:1(a)
      3/1    3.000    1.000    3.000    1.000 <string>:2(b)

Function          was called by...
                      ncalls  tottime  cumtime
<string>:1(a)     <-
<string>:2(b)     <-       2    3.000    3.000  <string>:1(a)


Function          called...
"""
    profile = Profile.merged([parse(text), parse(text)])
    assert [(f.name, f.calls, f.own_s) for f in profile.by_time()] == [("<string>:2(b)", 6, 6.0), ("<string>:1(a)", 4, 2.0)]
    drawn = speedscope(profile, "s")["profiles"][0]
    assert (drawn["samples"], drawn["weights"]) == ([[0], [0, 1]], [2.0, 6.0])


SWALLOWED = """
import signal, sys
sys.path.insert(0, {path!r})
from pinion_redis import cli
from pinion_redis.connection import Server

class Ends:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

looks, stats = [], Server.stats

def look(self):
    looks.append(1)
    if len(looks) == 3:
        Ends()  # Python drops the exception that comes out there
    assert len(looks) < 6, "it goes on"
    return stats(self)

Server.stats = look
sys.argv = ["pinion", "top", "-i", "0.1", "-u", {url!r}]
cli.main()
"""


def test_top_ends_though_something_swallows_ctrl_c(url: str) -> None:
    program = SWALLOWED.format(path=str(ROOT / "package/src"), url=url)
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "FORCE_COLOR": "1"}, capture_output=True, timeout=60)
    # What is dropped is told on the screen.
    assert done.returncode == 0 and b"KeyboardInterrupt" in done.stdout, done
