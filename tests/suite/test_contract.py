"""Each line of the contract has a test, and a control where gunicorn's own workers break it."""

from __future__ import annotations

import ast
import re

import pytest
from contract_lines import LINES
from harness import marks

CONTROLS = {str(control): control for control in marks.tests("control") if control.numbers}
HELD = [test for test in marks.tests("contract") if test.numbers]


@pytest.mark.parametrize("number", LINES)
def test_each_line_has_a_test(number):
    holding = [test for test in HELD if number in test.numbers and str(test) not in CONTROLS]
    assert holding, f"nothing holds line {number}: {LINES[number].title}"
    files = [test.path.name for test in holding if test.path.parent.name == "contract"]
    assert any(name.startswith(f"test_{number:02}_") for name in files)


@pytest.mark.parametrize("number", LINES)
def test_each_line_that_stock_breaks_has_a_control(number):
    line = LINES[number]
    controls = [name for name, control in CONTROLS.items() if number in control.numbers]
    if line.stock:
        assert controls, f"no test shows on stock, for line {number}, that it {line.stock}"
    else:
        assert line.no_control and not controls


def test_no_other_line_is_named():
    for test in (*HELD, *CONTROLS.values()):
        assert test.numbers <= LINES.keys(), str(test)


def test_files_of_the_contract_are_named_by_their_line():
    for path in (marks.TESTS / "contract").glob("test_*.py"):
        number = re.match(r"test_(\d\d)_", path.name)
        assert number, f"{path.name}: tests of no line have their place elsewhere"
        assert int(number[1]) in marks.of_module(ast.parse(path.read_text()), "contract"), path.name


def test_each_test_on_stock_among_them_is_a_control_of_its_line():
    for test in marks.tests("contract", (marks.TESTS / "contract").glob("test_*.py")):
        assert str(test) in CONTROLS or "_on_stock" not in test.test.replace("_as_on_stock", ""), (
            f"{test} shows something on stock: of which line is it the control?"
        )
