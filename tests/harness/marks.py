"""Which tests carry which marker: read from their source, so that none has to be importable."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent.parent

#: Only run when named (see pyproject.toml).
ONLY_WHEN_NAMED = ("integrations", "rollout", "stress")


@dataclass(frozen=True)
class Marked:
    path: Path
    test: str
    numbers: frozenset[int]

    def __str__(self) -> str:
        return f"{self.path.relative_to(TESTS)}::{self.test}"


def default_suite() -> Iterator[Path]:
    """The files whose tests run when none is named."""
    for path in sorted(TESTS.rglob("test_*.py")):
        if path.relative_to(TESTS).parts[0] not in ONLY_WHEN_NAMED:
            yield path


def tests(marker: str, paths: Iterator[Path] | None = None) -> Iterator[Marked]:
    """Every test of the default suite, with the numbers that this marker gives it, if any.

    :param marker: such as ``contract``; its arguments are numbers.
    """
    for path in default_suite() if paths is None else paths:
        tree = ast.parse(path.read_text())
        of_all = of_module(tree, marker)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                own = [_numbers(decorator, marker) for decorator in node.decorator_list]
                yield Marked(path, node.name, of_all.union(*own))


def of_module(tree: ast.Module, marker: str) -> frozenset[int]:
    """What ``pytestmark`` says, which holds for each test of the module."""
    found: frozenset[int] = frozenset()
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            several = node.value.elts if isinstance(node.value, ast.List) else [node.value]
            found = found.union(*(_numbers(value, marker) for value in several))
    return found


def _numbers(node: ast.expr, marker: str) -> frozenset[int]:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == f"pytest.mark.{marker}":
        return frozenset(ast.literal_eval(argument) for argument in node.args)
    return frozenset()
