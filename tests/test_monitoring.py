"""What people watch: docs/monitoring.md names every metric of the exporter and every rule, and rules and dashboard ask for metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from helpers import Server, wait_until
from servers import ROOT

PACKAGE = ROOT / "package/src"
sys.path.insert(0, str(PACKAGE))

from pinion_redis.exporter import metrics  # noqa: E402

RULES = PACKAGE / "pinion_redis/prometheus.yml"
PAGE = (ROOT / "docs/monitoring.md").read_text()
SCRIPT = """
@read_through('user:*', ttl=100, breaker=(1, 60))
def load(key):
    return 1 // int(configGet('good')) and 'x'

@write_behind('user:*', max_backoff=60)
def save(changes):
    raise ConnectionError('the database is away')

GB('KeysReader').foreach(lambda r: 1 // 0).register('other:*', mode='sync', eventTypes=['st'])
GB('StreamReader').foreach(lambda r: None).register('events')
GB('CommandReader').map(lambda words: words).register(trigger='t')
"""
# A line of the rules: how deep it is, its name, what it says. All of the file has this form; it is a small part of YAML.
LINE = re.compile(r"^( *)(- )?([a-z]+):(?: (.*))?$")


class Figures(Collector):
    """The metrics of a server, as the exporter gives them."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def collect(self):  # type: ignore[no-untyped-def]
        yield from metrics([json.loads(self.server.own.execute_command("RG.STATS"))])


@pytest.fixture
def samples(server: Server) -> dict[str, list[str]]:
    """Each metric of a server that has everything, with the lines of its samples."""
    if server.version < (7, 0) and not server.is_valkey:
        pytest.skip("this server has no write_behind")
    client = server.client()
    client.config_set("maxmemory", "1gb")
    client.execute_command("RG.CONFIGSET", "good", "0")
    server.run(SCRIPT)
    client.xadd("events", {"a": 1})
    client.set("user:1", "x")
    client.execute_command("RG.TRIGGER", "t")
    assert b"LOADFAILED" in server.raw().call("GET", "user:2")
    registry = CollectorRegistry()
    registry.register(Figures(server))

    def found() -> dict[str, list[str]]:
        lines: dict[str, list[str]] = {"pinion_up": []}
        for line in generate_latest(registry).decode().splitlines():
            if not line.startswith("#"):
                lines.setdefault(line.split("{")[0], []).append(line)
        return lines

    return wait_until(lambda: (told := found()) and "pinion_executions_kept" in told and "pinion_registration_last_estimated_lag_ms" in told and told)


def rules() -> list[dict[str, str]]:
    """The rules of the file: `alert`, `expr`, `for`, `severity`, `summary`."""
    found: list[dict[str, str]] = []
    depths = {"groups": 0, "name": 2, "rules": 4, "alert": 6, "expr": 8, "for": 8, "labels": 8, "annotations": 8, "summary": 10}
    for line in RULES.read_text().splitlines():
        if line.startswith("#"):
            continue
        matched = LINE.match(line)
        assert matched and depths[matched[3]] == len(matched[1]), f"not in the form of the file: {line}"
        name, said = matched[3], matched[4] or ""
        if name == "alert":
            found.append({})
        if name == "labels":
            assert (severity := re.fullmatch(r"\{severity: (warning|critical)\}", said)), line
            name, said = "severity", severity[1]
        if name == "summary":
            said = str(json.loads(said))
        if found and said:
            assert name not in found[-1], line
            found[-1][name] = said
    return found


def test_the_page_has_every_metric(samples: dict[str, list[str]]) -> None:
    rows = re.findall(r"^\| (`pinion_.*?) \|", PAGE, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(set(named)), "twice on the page"
    assert set(named) == set(samples)


def test_rules_ask_for_what_there_is(samples: dict[str, list[str]]) -> None:
    for rule in rules():
        expression = rule["expr"]
        asked = re.findall(r"pinion_\w+", expression)
        assert asked and set(asked) <= set(samples), rule
        assert expression.count("(") == expression.count(")") and expression.count("[") == expression.count("]"), rule
        # What only grows is never compared by itself, and what goes up and down has no rate.
        for name in asked:
            counted = bool(re.search(rf"(increase|rate)\({name}\[\d+[mh]\]\)", expression))
            assert counted == name.endswith("_total"), rule
        labels = set(re.findall(r"\$labels\.(\w+)", rule["summary"]))
        grouped = re.search(r"by \((.*?)\)", expression)
        there = set(grouped[1].split(", ")) if grouped else set(re.findall(r'(\w+)="', samples[asked[0]][0])) if samples[asked[0]] else set()
        assert labels <= there, rule


def test_each_rule_is_on_the_page() -> None:
    told = re.findall(r"^\| `(Pinion\w+)` \| .+ \|.*\|$", PAGE, re.MULTILINE)
    assert told == [rule["alert"] for rule in rules()]
    for rule in rules():
        assert {"alert", "expr", "severity", "summary"} <= set(rule) <= {"alert", "expr", "for", "severity", "summary"}, rule


def test_what_fails_is_seen(samples: dict[str, list[str]]) -> None:
    """The figures that rules compare are those of a server in trouble."""
    [behind] = samples["pinion_write_behind_oldest_ms"]
    assert float(behind.split()[-1]) >= 0
    assert [line.split()[-1] for line in samples["pinion_registration_breaker_open"]] == ["1.0"]
    assert any(line.endswith(" 1.0") for line in samples["pinion_registration_warnings"])
    [failures] = samples["pinion_read_through_load_failures_total"]
    assert float(failures.split()[-1]) >= 1


def test_rules_are_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pinion_redis", "exporter", "--rules"], env={"PYTHONPATH": str(PACKAGE), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == RULES.read_text()
    if promtool := shutil.which("promtool"):  # Prometheus itself, where it is
        (tmp_path / "pinion.yml").write_text(done.stdout)
        checked = subprocess.run([promtool, "check", "rules", tmp_path / "pinion.yml"], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
