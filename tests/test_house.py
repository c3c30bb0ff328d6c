"""The source keeps to its plan: rooms, walks, rules (docs/architecture.md). No server is needed."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PLAN = (ROOT / "docs" / "architecture.md").read_text()
WALK = re.compile(r"^\*\*(.+?)\*\*: ", re.M)
LINE = re.compile(r"^(\d+)\. `([\w/]+\.rs)` `(\w+)`(?: \((.+?)\))?: ", re.M)
ELSEWHERE = {"the server", "another thread", "another shard", "a script"}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rooms, rules = script("rooms"), script("rules")


def walks() -> dict[str, list[tuple[str, str, str, str]]]:
    """Number, file, function and way of each line, by walk."""
    chapter = PLAN.split("\n## Six ways through the house\n")[1].split("\n## ")[0]
    begins = list(WALK.finditer(chapter))
    ends = [match.start() for match in begins[1:]] + [len(chapter)]
    return {match[1]: LINE.findall(chapter[match.end() : end]) for match, end in zip(begins, ends, strict=True)}


def test_the_picture_of_the_rooms_is_that_of_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert rooms.main() == 0
    picture = PLAN.split("```text\n")[1].split("```")[0]
    assert picture == capsys.readouterr().out, "put what `make rooms` prints into docs/architecture.md"


def test_there_are_six_walks_without_gaps() -> None:
    assert len(walks()) == 6
    for name, lines in walks().items():
        assert len(lines) >= 10, name
        assert [int(line[0]) for line in lines] == list(range(1, len(lines) + 1)), name


@pytest.mark.parametrize("name", walks())
def test_each_line_of_a_walk_is_a_call_in_one_direction(name: str) -> None:
    knows, _ = rooms.knowledge()
    source = {path: path.read_text() for path in (ROOT / "src").rglob("*.rs")}
    seen: list[str] = []
    for _, file, function, way in walks()[name]:
        assert re.search(rf"\bfn {function}\b", source[ROOT / "src" / file]), f"{file} has no {function}"
        room = Path(file).parts[0].removesuffix(".rs")
        if trait := re.fullmatch(r"by `(\w+)`", way):
            where = [path for path, text in source.items() if re.search(rf"\b(trait|type) {trait[1]}\b", text)]
            assert where, f"there is no trait {trait[1]}"
            homes = {path.relative_to(ROOT / "src").parts[0].removesuffix(".rs") for path in where}
            assert homes & knows[room] or room in homes, f"{room} does not know {trait[1]}"
        elif way:
            assert way in ELSEWHERE
        else:
            assert any(room == other or room in knows[other] for other in seen), f"nobody above calls {file}"
        seen.append(room)


def test_a_circle_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.rs").write_text("use crate::{error::Error, two::Two};")
    (tmp_path / "two.rs").write_text("fn f() { crate::one::g() }")
    (tmp_path / "error.rs").write_text("// use crate::one;")
    monkeypatch.setattr(rooms, "SOURCE", tmp_path)
    assert rooms.main() == 1
    assert "one -> two: one.rs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "code, count",
    [
        ('unsafe extern "C" fn on_key(a: u8) { look(a) }', 1),
        ('unsafe extern "C" fn on_key(a: u8) { caught((), || look(a)) }', 0),
        ('unsafe extern "C" fn on_key(a: u8) { run(a) }', 1),
        ('unsafe extern "C" fn on_key(a: u8) { waiting::run(a) }', 1),
        ('unsafe extern "C" fn on_key(a: u8) { bus::run(a) }', 0),
        ('unsafe extern "C" fn on_reply<const WHY: usize>(a: u8) { look(a) }', 1),
        ('type Function = unsafe extern "C" fn(u8);', 0),
        ('unsafe extern "C" { fn add(hook: unsafe extern "C" fn on_event(u8)); }', 0),
        ("use parking_lot::Mutex;", 1),
        ("use parking_lot::{Condvar, Mutex};", 0),
    ],
)
def test_broken_rules_are_found(code: str, count: int) -> None:
    assert len(list(rules.broken("server/x.rs", code))) == count


def test_the_rules_hold() -> None:
    assert rules.main() == 0


def test_the_table_of_instructions_is_that_of_the_budgets() -> None:
    made = subprocess.run([sys.executable, ROOT / "benches" / "budgets.py", "--table"], capture_output=True, text=True, check=True, timeout=60)
    page = (ROOT / "docs" / "performance.md").read_text()
    table = page.split("<!-- budgets -->\n")[1].split("<!-- /budgets -->")[0]
    assert table.strip() == made.stdout.strip(), "make bench-budgets ARGS=--update"


def test_the_tables_of_results_are_those_that_are_kept() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    names = re.findall(r"<!-- results ([a-z-]+) -->\n", page)
    assert names
    for name in names:
        made = subprocess.run([sys.executable, ROOT / "benches" / "keep.py", "--table", name], capture_output=True, text=True, check=True, timeout=60)
        table = page.split(f"<!-- results {name} -->\n")[1].split(f"<!-- /results {name} -->")[0]
        assert table.strip() == made.stdout.strip(), "make bench-keep"
