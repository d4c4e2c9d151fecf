"""docs/design.md and docs/architecture.md say what is there: the contract, the tests, the files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from contract_lines import LINES
from harness.documents import ROOT

import gracefulworker

DESIGN = (ROOT / "docs" / "design.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGE = Path(gracefulworker.__file__).parent


def held() -> dict[int, list[str]]:
    """Where each line is held, by the table in docs/design.md."""
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", DESIGN, re.MULTILINE)
    return {int(number): re.findall("`([^`]+)`", cells) for number, cells in rows}


def test_the_contract_is_there_as_a_whole():
    contract = DESIGN.partition("## The contract\n")[2].partition("\n###")[0]
    assert [int(n) for n in re.findall(r"^(\d+)\. ", contract, re.MULTILINE)] == [*LINES]
    assert held().keys() == LINES.keys()


@pytest.mark.parametrize("line", LINES)
def test_each_line_is_held_where_the_page_says(line):
    files = [file for file in held()[line] if file.startswith("tests/")]
    assert files
    for file in files:
        assert re.search(rf"contract\((\d+, )*{line}[,)]", (ROOT / file).read_text()), file


def test_the_file_list_is_the_files():
    """Each module of the core is named, and nothing that is not there; packages by their folder."""
    listing = ARCHITECTURE.partition("    gracefulworker/\n")[2].partition("\n\n")[0]
    named = set(re.findall(r"\b(\w+\.py)\b", listing))
    files = [file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py")]
    core = {file.name for file in files if file.parts[0] != "tools"}
    assert named == core - {"__main__.py"}, "the list in docs/architecture.md"


def test_each_word_of_the_glossary_is_explained_once():
    glossary = ARCHITECTURE.partition("## Glossary")[2].partition("\n## ")[0]
    words = re.findall(r"^\| ([a-z, ]+) \| \S", glossary, re.MULTILINE)[1:]
    assert len(words) > 20 and len(words) == len(set(words))
    assert words == sorted(words)
