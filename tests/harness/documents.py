"""What README.md, docs/*.md and others show, for tests that hold it in step with the code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")])


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language ("" when none is named), its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        indent, language, inside = match.groups()
        line = text.count("\n", 0, match.start()) + 1
        inside = re.sub(rf"^{indent}", "", inside, flags=re.MULTILINE)
        found.append(Block(page, line, language, inside))
    return found


def block(page: str, language: str, contains: str) -> str:
    """The one block of a page in this language that has this in it."""
    (only,) = (
        found.text
        for found in blocks(ROOT / page)
        if found.language == language and contains in found.text
    )
    return only


def table(page: Path, heading: str) -> list[list[str]]:
    """The rows of the one table whose heading has this in it; cells without their spaces."""
    lines = page.read_text().splitlines()
    (start,) = (n for n, line in enumerate(lines) if line.startswith("|") and heading in line)
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows
