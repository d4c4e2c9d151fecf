"""Complaints on gunicorn's tracker, by number; docs/tracker.md is the table of them.

Each is shown by a test elsewhere, which carries the marker ``tracker`` with the numbers. Here the
table and the markers are kept in step.
"""

from __future__ import annotations

import re

from harness import marks
from harness.documents import ROOT


def rows():
    """The table's rows: the issues' numbers, and the tests that are named for them."""
    for line in (ROOT / "docs" / "tracker.md").read_text().splitlines():
        if line.startswith("| #"):
            numbers, *_, tests = line.strip("|").split("|")
            yield (
                {int(number) for number in re.findall(r"#(\d+)", numbers)},
                set(re.findall(r"`(\w+/test_\w+\.py::test_\w+)`", tests)),
            )


def test_the_table_and_the_markers_are_in_step():
    named: dict[str, set[int]] = {}
    for numbers, tests in rows():
        assert tests, f"no test is named for {numbers}"
        for test in tests:
            named.setdefault(test, set()).update(numbers)
    assert named == {str(test): test.numbers for test in marks.tests("tracker") if test.numbers}
