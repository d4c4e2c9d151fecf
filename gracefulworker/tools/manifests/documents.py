"""YAML with line numbers, read only where somebody looks.

A `Node` stands for a place in a document, also for one where nothing is: it can be indexed on and
on, and knows the field's whole path and the nearest line. So a rule can say where something is
missing. What may be changed here: how YAML is read; what it means is other modules' business.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml

from gracefulworker.tools.manifests.sources import InputError, Place, Source, unrendered

#: libyaml's parser, where PyYAML was built with it, is ten times as fast.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: Collections within each other; the parser can bear four times as many.
MAX_DEPTH = 5_000

#: In block style each level but the first begins further to the right, or after one more dash.
_DEEP_BLOCK = re.compile(r"^[ \t?:-]{1000}", re.MULTILINE)

TOO_DEEP = "is not read: its YAML is nested too deeply"

#: How a template of Helm (Go), Jinja or Ansible looks before it is rendered.
_TEMPLATE = re.compile(r"\{\{|\{%")


class Node:
    """A place in a YAML document; false when nothing, or null, stands there."""

    __slots__ = ("_children", "_node", "field", "file", "line")

    def __init__(self, node: Any, file: str, line: int, field: str) -> None:
        self._node = node
        self._children: dict[str, tuple[int, Any]] | None = None
        self.file = file
        self.line = line
        self.field = field

    def __bool__(self) -> bool:
        return self._node is not None and not str(self._node.tag).endswith(":null")

    def __getitem__(self, key: str) -> Node:
        """What a mapping has under `key`."""
        if self._children is None:
            self._children = _children(self._node)
        line, node = self._children.get(key, (self.line, None))
        return Node(node, self.file, line, f"{self.field}.{key}" if self.field else key)

    def __iter__(self) -> Iterator[Node]:
        """Yield what a sequence holds."""
        if isinstance(self._node, yaml.SequenceNode):
            for number, node in enumerate(self._node.value):
                line = node.start_mark.line + 1
                # An alias bears the line of its anchor, which stands elsewhere.
                if line < self.line:
                    line = self.line
                yield Node(node, self.file, line, f"{self.field}[{number}]")

    def pairs(self) -> Iterator[tuple[str, Node]]:
        """Yield the keys of a mapping, each with what it has."""
        self[""]  # collects the children
        for key in self._children or ():
            yield key, self[key]

    @property
    def text(self) -> str | None:
        """The text of a scalar; None for anything else, and for null."""
        return str(self._node.value) if self and isinstance(self._node, yaml.ScalarNode) else None

    @property
    def is_mapping(self) -> bool:
        """Whether it is a mapping."""
        return isinstance(self._node, yaml.MappingNode)

    def holds(self, key: str) -> bool:
        """Whether a mapping somewhere in it has `key`."""
        return any(True for _ in self._all_under({key}))

    def substitute(self, values: Mapping[str, str]) -> None:
        """Put the parameters of OpenShift's ``${NAME}`` into all scalars."""
        for node in self._all():
            if isinstance(node, yaml.ScalarNode) and "${" in node.value:
                for name, value in values.items():
                    node.value = node.value.replace(f"${{{name}}}", value)

    def texts_under(self, keys: Collection[str]) -> Iterator[str]:
        """Yield the scalars that stand under one of `keys` anywhere in it, in lists too."""
        for node in self._all_under(keys):
            listed = node.value if isinstance(node, yaml.SequenceNode) else [node]
            yield from (str(one.value) for one in listed if isinstance(one, yaml.ScalarNode))

    def _all_under(self, keys: Collection[str]) -> Iterator[Any]:
        """Yield what mappings have under these keys."""
        for node in self._all():
            if isinstance(node, yaml.MappingNode):
                yield from (value for key, value in node.value if str(key.value) in keys)

    def _all(self) -> Iterator[Any]:
        """Yield each of PyYAML's nodes in it once."""
        seen: set[int] = set()
        waiting = [self._node]
        while waiting:
            node = waiting.pop()
            if node is None or id(node) in seen:
                continue
            seen.add(id(node))
            yield node
            if isinstance(node, yaml.SequenceNode):
                waiting += node.value
            elif isinstance(node, yaml.MappingNode):
                waiting += [value for _, value in node.value]

    @property
    def is_block(self) -> bool:
        """Whether it is a scalar in several lines, after | or >."""
        return isinstance(self._node, yaml.ScalarNode) and self._node.style in ("|", ">")

    @property
    def number(self) -> float | None:
        """The value of a number; None for anything else."""
        try:
            value = float(self.text or "")
        except ValueError:
            return None
        return value if math.isfinite(value) else None

    @property
    def last_line(self) -> int:
        """The line after the last one of what stands here."""
        return self.line if self._node is None else int(self._node.end_mark.line) + 1

    @property
    def place(self) -> Place:
        """This place, for a finding."""
        return Place(self.file, self.line, self.field)


def _children(mapping: Any) -> dict[str, tuple[int, Any]]:
    """Return line and node for each key, those of ``<<`` merges too.

    A merge can refer to what holds it, and a chain of them can be long: no recursion here.
    """
    children: dict[str, tuple[int, Any]] = {}
    seen: set[int] = set()
    waiting = [mapping]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.SequenceNode) and node is not mapping:
            waiting += reversed(node.value)
        if not isinstance(node, yaml.MappingNode) or id(node) in seen:
            continue
        seen.add(id(node))
        own: dict[str, tuple[int, Any]] = {}
        for key, value in node.value:
            if str(key.tag).endswith(":merge"):
                waiting.append(value)
            elif isinstance(key, yaml.ScalarNode):
                own[str(key.value)] = (key.start_mark.line + 1, value)
        # What stands nearer wins.
        children = own | children
    return children


def _is_too_deep(text: str) -> bool:
    """Tell whether the parser, which is recursive and written in C, would overflow its stack.

    That happens at a depth between 20,000 and 30,000. Most texts cannot be so deep.

    :raises yaml.YAMLError: when it is not YAML.
    """
    if text.count("[") + text.count("{") < MAX_DEPTH and not _DEEP_BLOCK.search(text):
        return False
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            return True
    return False


def parse(source: Source) -> list[Node]:
    """Return the documents of one text.

    :raises InputError: when it is not YAML.
    """
    text = source.text
    if source.file.endswith(".json"):
        # YAML holds JSON, but for tabs between its tokens; within them JSON has none.
        text = text.replace("\t", " ")
    try:
        if _is_too_deep(text):
            raise RecursionError
        roots = [root for root in yaml.compose_all(text, Loader=_LOADER) if root is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 0
        if _TEMPLATE.search(text):
            raise unrendered(source.file, line) from None
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        if "nesting depth" in problem:  # PyYAML 6.0.4 on has a limit of its own
            raise InputError(source.file, line, TOO_DEEP) from None
        raise InputError(source.file, line, f"is not valid YAML: {problem}") from None
    except RecursionError:
        raise InputError(source.file, 0, TOO_DEEP) from None
    return [Node(root, source.file, root.start_mark.line + 1, "") for root in roots]
