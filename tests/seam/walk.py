"""Our side of the seam: which of gunicorn's functions our classes override or replace, or import.

All of it is found by looking: classes by importing the modules, the rest by reading the sources.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from seam import foreign

import gracefulworker
from gracefulworker.arbiter.takeover import REPLACED

#: Whose functions are foreign, and not a documented interface as Python's own are.
FOREIGN = ("gunicorn", "gevent", "uvicorn", "uvicorn_worker")

#: The package, without what is only a tool, and the console script.
PACKAGE = Path(gracefulworker.__file__).parent
CORE = [
    file
    for file in sorted(PACKAGE.rglob("*.py"))
    if "tools" not in file.relative_to(PACKAGE).parts and file.name != "__main__.py"
]

ARBITER = "gunicorn.arbiter:Arbiter"


def needs_missing_package(module: str) -> bool:
    """HTTP/2 is there since gunicorn 25, with h2."""
    return module.endswith(".http2") and not (find_spec("gunicorn.http2") and find_spec("h2"))


def _place(cls: type) -> str:
    return f"{cls.__module__.removeprefix('gracefulworker.')}:{cls.__qualname__}"


def our_classes() -> list[type]:
    """All classes of the core."""
    found = []
    for file in CORE:
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        if not needs_missing_package(module):
            found += [one for one in vars(importlib.import_module(module)).values() if is_ours(one)]
    return found


def is_ours(candidate: object) -> bool:
    return isinstance(candidate, type) and candidate.__module__.startswith("gracefulworker.")


def overrides(classes: list[type]) -> Iterator[tuple[str, str]]:
    """What each class overrides: the foreign function, and ours.

    A mix-in overrides what stands behind it in the MRO of a class that has it.
    """
    for cls in classes:
        for place, ours in enumerate(cls.__mro__):
            if not is_ours(ours):
                continue
            for theirs in cls.__mro__[place + 1 :]:
                if theirs.__module__.partition(".")[0] not in FOREIGN:
                    continue
                for name in vars(ours).keys() & vars(theirs).keys():
                    function = f"{_place(theirs)}.{name}"
                    # What the compiler puts into each class (__module__) is in no source.
                    if foreign.find(foreign.SITE, function):
                        yield function, f"{_place(ours)}.{name}"


def common_attributes(classes: list[type]) -> Iterator[tuple[str, str, str]]:
    """Names that a foreign class gives an attribute of its instances, and a class of ours has, too.

    Each as the two classes and the name.
    """
    for cls in classes:
        for ours in filter(is_ours, cls.__mro__):
            names = _assigned(PACKAGE.parent, ours) | {
                name for name in vars(ours) if not name.startswith("__")
            }
            for theirs in cls.__mro__:
                if theirs.__module__.partition(".")[0] in FOREIGN:
                    for name in names & _assigned(foreign.SITE, theirs):
                        yield _place(ours), _place(theirs), name


@cache
def _assigned(site: Path, cls: type) -> set[str]:
    found = foreign.find(site, f"{cls.__module__}:{cls.__qualname__}")
    return {
        node.attr
        for node in (ast.walk(found[1]) if found else ())
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if isinstance(node.value, ast.Name) and node.value.id == "self"
    }


def replaced_on_arbiter() -> set[str]:
    """The methods of gunicorn's arbiter in whose place we put others, on the one instance.

    `REPLACED` names most; the others are assigned to (``arbiter.stop = ...``).
    """
    assigned = {
        target.attr
        for file in CORE
        for target in _targets(file)
        if ast.unparse(target.value).endswith("arbiter")
    }
    names = {f"{ARBITER}.{name}" for name in assigned.union(REPLACED)}
    return {name for name in names if isinstance(_node(name), ast.FunctionDef)}


def replaced_in_modules() -> set[str]:
    """What we put into gunicorn's own modules (``wsgi.Response = ...``)."""
    found = set()
    for file in CORE:
        modules = dict(_imports(file))
        for target in _targets(file):
            if isinstance(target.value, ast.Name) and target.value.id in modules:
                name = f"{modules[target.value.id]}:{target.attr}"
                if _node(name) is not None:
                    found.add(name)
    return found


def imported() -> set[str]:
    """The functions of gunicorn's that we import, or call in a module that we import."""
    found = set()
    for file in CORE:
        modules = dict(_imports(file))
        found |= {module.replace("/", ":") for module in modules.values()}
        for node in ast.walk(foreign.tree(file)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in modules:
                    found.add(f"{modules[node.value.id]}:{node.attr}")
    return {name for name in found if isinstance(_node(name), ast.FunctionDef)}


def mentions(place: str, function: str) -> bool:
    """Whether what stands at `place` in our package names a function.

    In its code, or in what is said about it. To make one of a class is to name it.
    """
    path = re.split("[:.]", function)
    name = path[-2] if path[-1] == "__init__" else path[-1]
    module, _, qualified = place.partition(":")
    if qualified:
        text = "\n".join(foreign.text(PACKAGE, place))
    else:
        base = PACKAGE.joinpath(*module.split("."))
        files = base.glob("*.py") if base.is_dir() else [base.with_suffix(".py")]
        text = "\n".join(file.read_text() for file in files if file.is_file())
    return re.search(rf"\b{re.escape(name)}\b", text) is not None


def _node(name: str) -> ast.stmt | None:
    found = foreign.find(foreign.SITE, name) if ":" in name else None
    return found[1] if found else None


def _targets(file: Path) -> Iterator[ast.Attribute]:
    """The attributes that a file assigns to."""
    for node in ast.walk(foreign.tree(file)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node


def _imports(file: Path) -> Iterator[tuple[str, str]]:
    """Each name that a file imports from gunicorn: what it is there, ``module`` or ``module/name``.

    A module that is imported from a package looks like a name in it: both are given as a module
    where there is one.
    """
    for node in ast.walk(foreign.tree(file)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gunicorn"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = foreign.module_file(foreign.SITE, inner) is not None
                yield (
                    alias.asname or alias.name,
                    inner if is_module else f"{node.module}/{alias.name}",
                )
