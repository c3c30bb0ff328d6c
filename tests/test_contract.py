"""The contract in docs/contract has every chapter that the code and the tests cite, and its links lead somewhere.

No server is needed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = ROOT / "docs" / "contract"
PAGES = ["commands.md", "readers-and-events.md", "python-api.md", "read-through.md", "write-behind.md"]
SOURCES = ("src/**/*.rs", "python/*.py", "python/*.pyi", "tests/*.py")
CITING = sorted(path for pattern in SOURCES for path in ROOT.glob(pattern))

# A chapter is a heading, or a row of a table that begins with a number with a dot.
CHAPTER = re.compile(r"^(?:#{2,3} (\d+(?:\.\d+)?)\.? |\| (\d+\.\d+) \|)", re.MULTILINE)
NAME = r"(?:%s)" % "|".join(map(re.escape, PAGES))
NUMBER = r"\d+(?:\.\d+)?"
# `4.6`, `chapter 4`, `3.1 to 3.5, 8.3 and chapter 9`.
CHAPTERS = rf"(?:chapters? )?{NUMBER}(?:(?:,| and| to|, and) (?:chapters? )?{NUMBER}(?![\w:]))*"
# Whatever names a page of the contract and a number, in its right form or not.
CITATION = re.compile(rf"([\w/`.-]*?)({NAME})`?(?:'s)? (?:its )?({CHAPTERS})?")
NEXT_LINE = re.compile(r"\n[ \t]*(?://[/!]?|#)?[ \t]*(?=\S)")
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


def chapters_of(page: Path) -> set[str]:
    return {heading or row for heading, row in CHAPTER.findall(page.read_text())}


def citations(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """What stands in front of a page's name, the name, and the numbers of the chapters that are cited there."""
    for before, page, chapters in CITATION.findall(NEXT_LINE.sub(" ", text)):
        if chapters:
            yield before, page, re.findall(NUMBER, chapters)


def slug(heading: str) -> str:
    """The anchor of a heading, as hosts of repositories make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("text, found", [
    ("//! A. Contract: docs/contract/commands.md 4.6.", [("docs/contract/", "commands.md", ["4.6"])]),
    ("//! See docs/contract/commands.md\n//! 3.1 to 3.5,\n//! 8.3 and chapter 9. 7 more",
     [("docs/contract/", "commands.md", ["3.1", "3.5", "8.3", "9"])]),
    ("(`commands.md` chapter 2, python-api.md 4.1)", [("`", "commands.md", ["2"]), ("", "python-api.md", ["4.1"])]),
    ("[commands](commands.md#rights) and docs/commands.md tell", []),
])
def test_what_a_citation_is(text: str, found: list[tuple[str, str, list[str]]]) -> None:
    assert list(citations(text)) == found


@pytest.mark.parametrize("page", PAGES)
def test_no_chapter_stands_twice(page: str) -> None:
    numbers = [heading or row for heading, row in CHAPTER.findall((CONTRACT / page).read_text())]
    assert len(numbers) > (10 if page in ("read-through.md", "write-behind.md") else 50)
    assert len(numbers) == len(set(numbers))


def test_each_chapter_that_is_cited_exists() -> None:
    known = {page: chapters_of(CONTRACT / page) for page in PAGES}
    wrong, count = [], 0
    for path in CITING:
        if path == Path(__file__).resolve():
            continue
        for before, page, numbers in citations(path.read_text()):
            count += 1
            missing = [number for number in numbers if number not in known[page]]
            if before != "docs/contract/" or missing:
                wrong.append(f"{path.relative_to(ROOT)}: {before}{page} {', '.join(missing or numbers)}")
        wrong += [
            f"{path.relative_to(ROOT)}: {page}"
            for page in re.findall(r"docs/contract/([\w-]+\.md)", path.read_text())
            if not (CONTRACT / page).is_file()
        ]
    assert wrong == []
    assert count > 100, "citations are not recognised any more"


@pytest.mark.parametrize("path", sorted(CONTRACT.glob("*.md")), ids=lambda path: path.stem)
def test_pages_cite_each_other_rightly(path: Path) -> None:
    wrong = [
        f"{page} {number}"
        for _, page, numbers in citations(path.read_text())
        for number in numbers
        if number not in chapters_of(CONTRACT / page)
    ]
    assert wrong == []


@pytest.mark.parametrize("path", sorted(CONTRACT.glob("*.md")), ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for link in LINK.findall(path.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if target.is_file() else []
        if not target.is_file() or (anchor and anchor not in map(slug, headings)):
            broken.append(link)
    assert broken == []
