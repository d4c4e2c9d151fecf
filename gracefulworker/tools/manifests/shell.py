"""The commands that a shell text runs, as far as that can be told without running it.

The text is parsed by tree-sitter's grammar of bash, which reads any text (what is no shell becomes
a node of its own) and knows where each part stands. On its tree this module follows the text as a
shell would: it puts in the variables that are known, leaves out a branch whose condition is known
to be false, enters functions and files that are sourced, and stops at `exec` and `exit`. What is
not known stays as it is written, with its ``$``; what depends on it is marked so. Nothing is run.

What may be changed here: how a text is followed. What its commands mean is `launch`'s business.
"""

from __future__ import annotations

import fnmatch
import functools
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tree_sitter
import tree_sitter_bash

#: Bytes of a text that is followed; start scripts of well-known images have up to 30 kB.
MAX_SIZE = 50_000

#: The parser's time grows with the square of a pipeline's length: 2,000 take half a second.
_MAX_PIPES = 2_000

#: Statements that are followed in one text, its functions counted anew at each call.
_MAX_STEPS = 20_000

#: Functions that call functions, and files that source files.
_MAX_DEPTH = 20

#: A part of a word that is not known keeps this sign, as it was written.
UNKNOWN = "$"

_NAME = re.compile(r"[A-Za-z_]\w*\Z")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)\Z", re.DOTALL)
_ESCAPED = re.compile(r"\\(\n|.)", re.DOTALL)
_SIGTERM = {"TERM", "SIGTERM", "15"}

#: Characters that are no ASCII, and the letters that stand for one while a text is parsed.
_OTHER = re.compile(r"[^\x00-\x7f]|\x01")
_LETTERS = re.compile("\x01([0-9a-f]{2,6})\x02")

#: ``! </dev/tcp/db/5432``
_NEGATED = re.compile(r"!\s*<(?=\s*/dev/)")

#: Commands that set no variable of ours, though they are sourced.
_HARMLESS = re.compile(r"(^|/)activate$")

#: Words of a trap that pass the signal on, or stop gunicorn in another way.
_PASSES_ON = re.compile(r"\b(kill|pkill|killall|supervisorctl)\b|\bgracefulworker drain\b")


#: The signals that a trap sends with kill, and those of them with which gunicorn stops at once.
_KILL = re.compile(r"\b(?:kill|pkill|killall)\s+(?:-s\s*)?(-?\w*)")
_QUICK = {
    f"{dash}{prefix}{name}"
    for dash in ("-", "")
    for prefix in ("SIG", "")
    for name in ("QUIT", "INT", "KILL", "3", "2", "9")
}


#: The seconds of each sleep in a loop's text.
_PAUSES = re.compile(r"\bsleep\s+(\d+(?:\.\d+)?)\b")

#: Nodes that are no statements, and those that end one.
_SILENT = frozenset({"comment", "heredoc_body"})
_ENDS = frozenset({";", ";;", "fi", "esac", ")", "}", "\n"})


class Condition(str):
    """What decides whether a command is run, as it is written.

    :param ways: those of the whole statement, of which one is taken; empty if none may be.
    """

    ways: list[Condition]


class TooMuch(Exception):
    """A text that is not followed to its end: one sentence's rest, such as ``is too long``."""


@dataclass(frozen=True)
class Trap:
    """What the shell does at SIGTERM.

    :param passes_on: whether it is passed on (or may be, in code that is not shown).
    :param waits: whether what it is passed to is waited for in the trap itself.
    :param is_quick: whether what is sent instead ends gunicorn at once, as SIGQUIT does.
    """

    passes_on: bool
    waits: bool
    is_quick: bool = False


@dataclass
class Command:
    """One simple command.

    :param line: where it begins, from 1.
    :param first: its first word as it is written, without an ``exec`` before it.
    :param is_plain: whether it is written without a variable.
    :param words: its words; a part that is not known is left as it is written.
    :param assigned: the exported variables that the text has set, and those before the command.
    :param beside: ``background``, ``pipeline`` or ``subshell`` when another process than the shell
        of the text runs it, else "".
    :param is_last: nothing follows it, and bash, given the text with ``-c``, gives it its place:
        nothing is around it, and its line is either one list of ``&&`` and ``||`` or has ``;``
        before it.
    :param is_tail: nothing follows it, but an ``if``, ``case``, group or subshell may be around it.
    :param in_loop: it may be run several times.
    :param condition: what decides whether it is run, when that is not known.
    :param trap: the last one for SIGTERM in the text.
    :param at_exit: the one for EXIT, which bash runs at SIGTERM, too.
    :param is_trapped: the text has a trap for any signal, so the shell does not give its place up.
    :param is_followed: another command of the text is run after it.
    :param waits: the ``wait`` commands (a loop counts twice) after it.
    """

    line: int
    first: str = ""
    is_plain: bool = True
    words: list[str] = field(default_factory=list)
    assigned: dict[str, str] = field(default_factory=dict)
    is_exec: bool = False
    is_redirected: bool = False
    beside: str = ""
    is_last: bool = False
    is_tail: bool = False
    in_loop: bool = False
    condition: Condition | None = None
    trap: Trap | None = None
    at_exit: Trap | None = None
    is_trapped: bool = False
    is_followed: bool = False
    waits: int = 0


@dataclass
class _State:
    variables: dict[str, str | None]
    positional: list[str] | None
    exported: set[str]
    functions: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, list[str]] = field(default_factory=dict)
    trap: str | None = None
    is_over: bool = False
    has_returned: bool = False
    #: A file was sourced that nobody has shown us: any variable may have been set there.
    is_open: bool = False

    def copy(self) -> _State:
        return _State(
            dict(self.variables),
            None if self.positional is None else list(self.positional),
            set(self.exported),
            dict(self.functions),
            dict(self.arrays),
            self.trap,
            self.is_over,
            self.has_returned,
            self.is_open,
        )

    def become(self, others: Sequence[_State]) -> None:
        """Go on after several ways, of which one was taken."""
        going = [one for one in others if not one.is_over and not one.has_returned]
        self.is_over = all(one.is_over for one in others)
        self.has_returned = not going and not self.is_over
        going = going or list(others)
        names = {name for one in going for name in one.variables}
        merged: dict[str, str | None] = {}
        for name in names:
            values = {one.variables.get(name, _UNSET) for one in going}
            value = values.pop() if len(values) == 1 else None
            if value is not _UNSET:
                merged[name] = value  # type: ignore[assignment]
        self.variables = merged
        self.positional = going[0].positional
        if any(one.positional != self.positional for one in going):
            self.positional = None
        self.exported = set().union(*(one.exported for one in going))
        for one in going:
            self.functions |= one.functions
            self.trap = self.trap if one.trap is None else one.trap
            self.is_open |= one.is_open
        arrays = going[0].arrays
        self.arrays = {
            name: value
            for name, value in arrays.items()
            if all(one.arrays.get(name) == value for one in going)
        }


_UNSET = object()

_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "-eq": operator.eq,
    "-ne": operator.ne,
    "-gt": operator.gt,
    "-ge": operator.ge,
    "-lt": operator.lt,
    "-le": operator.le,
}


@functools.cache
def _parser() -> Any:
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_bash.language()))


def commands(
    text: str,
    environ: Mapping[str, str | None] | None = None,
    positional: Sequence[str] | None = (),
    source: Callable[[str], str | None] | None = None,
) -> list[Command]:
    """Return the commands of `text` that may be run, in their order.

    :param environ: the environment as far as it is known (None: a value that is not).
    :param positional: its arguments; None when they are not known.
    :param source: gives the text of a file that is sourced, by its path.
    :raises TooMuch: when it is not followed to its end.
    """
    walk = _Walk(dict(environ or {}), positional, source)
    try:
        walk.text(text)
    except RecursionError:
        raise TooMuch("is nested too deeply") from None
    waits = sum(walk.waits)
    at_exit = walk.trapped(walk.at_exit) if walk.at_exit else None
    for number, command in enumerate(walk.found):
        action = walk.state.trap if walk.state.trap is not None else walk.actions[number]
        command.trap = None if action is None else walk.trapped(action)
        command.at_exit = at_exit
        command.is_trapped = walk.is_trapped
        command.is_followed = number + 1 < len(walk.found)
        waits -= walk.waits[number]
        command.waits = waits
    return walk.found


def is_understood(text: str) -> bool:
    """Whether the grammar finds nothing in a text that is no shell."""
    try:
        return not _parse(text).has_error
    except TooMuch:
        return False


def expand(text: str, environ: Mapping[str, str | None]) -> str:
    """Return a text as it is within double quotes: known variables and defaults are put in.

    This is what Dockerfiles, compose and systemd do with ``$NAME`` and ``${NAME:-default}``.
    """
    if "$" not in text:
        return text
    walk = _Walk(dict(environ), None, None)
    quoted = '"' + re.sub(r'["`]|\\(?!\$)|\$\(', lambda match: "\\" + match[0], text) + '"'
    root = _parse(quoted)
    nodes = [node for node in _descend(root) if node.type == "string"]
    if root.has_error or not nodes or nodes[0].end_byte != root.end_byte:
        return text
    try:
        return "".join(piece for piece, _ in walk.pieces(nodes[0]))
    except (TooMuch, RecursionError):
        return text


def _descend(root: Any) -> Iterator[Any]:
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += reversed(node.children)


def _parse(text: str) -> Any:
    # The grammar's scanner (0.25.1) asks C's isdigit of a character after a brace, which reads past
    # the end of its table for those of other alphabets: the process dies. So they go in as letters.
    # It does not know a redirection alone behind a `!`, with which scripts wait for a port.
    text = _NEGATED.sub("! : <", text)
    data = _OTHER.sub(lambda match: f"\x01{ord(match[0]):x}\x02", text).encode()
    if len(data) > MAX_SIZE:
        raise TooMuch(f"has more than {MAX_SIZE // 1000} kB")
    if text.count("|") > _MAX_PIPES:
        raise TooMuch("has too many pipelines")
    return _parser().parse(data).root_node


def _decoded(data: bytes) -> str:
    return _LETTERS.sub(lambda match: chr(int(match[1], 16)), data.decode())


def _source_text(node: Any) -> str:
    return _decoded(bytes(node.text))


class _Walk:
    """Follows one text."""

    def __init__(
        self,
        environ: dict[str, str | None],
        positional: Sequence[str] | None,
        source: Callable[[str], str | None] | None,
    ) -> None:
        arguments = None if positional is None else list(positional)
        self.state = _State(environ, arguments, set(environ))
        self.initial = dict(environ)
        self.source = source
        self.found: list[Command] = []
        #: After each command (and before the first), how many waits came before the next one.
        self.waits: list[int] = [0]
        self.is_trapped = False
        #: For each command the trap for SIGTERM that was set before it.
        self.actions: list[str | None] = []
        self.at_exit = ""
        #: All functions, also those that are defined after the trap that calls them.
        self.functions: dict[str, Any] = {}
        self.steps = 0
        self.depth = 0
        self.offset = 0  # of the lines
        self.beside = ""
        self.redirected = False
        self.inner = 0
        self.is_alone = True
        #: For each function that is being followed, what is so where it may return.
        self.returns: list[list[_State]] = []
        self.loops = 0
        self.conditions: list[Condition] = []

    # -- statements

    def text(self, text: str) -> None:
        """Follow a whole text."""
        self._sequence(_parse(text).children, is_last=True)

    def _sequence(self, nodes: Sequence[Any], is_last: bool = False) -> None:
        nodes = [node for node in nodes if node.type not in _SILENT]
        last = max((n for n, node in enumerate(nodes) if node.type not in _ENDS), default=-1)
        if not self.inner and not self.depth:
            self.is_alone = _is_alone(nodes[: last + 1])
        for number, node in enumerate(nodes):
            if self.state.is_over or self.state.has_returned:
                return
            is_background = number + 1 < len(nodes) and nodes[number + 1].type == "&"
            self._statement(node, is_last and number >= last, is_background)

    def _statement(self, node: Any, is_last: bool = False, is_background: bool = False) -> None:
        self.steps += 1
        if self.steps > _MAX_STEPS:
            raise TooMuch("runs too many commands")
        if is_background:
            self._apart("background", lambda: self._statement(node))
            return
        handler = getattr(self, f"_on_{node.type}", None)
        if handler is not None:
            handler(node, is_last)
        elif node.type == "ERROR":
            self._inside(lambda: self._sequence(node.children))

    def _apart(self, beside: str, follow: Callable[[], None]) -> None:
        """Follow what runs in a process of its own: nothing that it sets comes back."""
        outer, kept = self.beside, self.state
        self.beside, self.state = outer or beside, kept.copy()
        try:
            follow()
        finally:
            self.beside, self.state = outer, kept

    def _inside(self, follow: Callable[[], None]) -> None:
        self.inner += 1
        try:
            follow()
        finally:
            self.inner -= 1

    def _if(self, label: str, follow: Callable[[], None]) -> Condition:
        condition = Condition(label)
        condition.ways = []
        self.conditions.append(condition)
        try:
            follow()
        finally:
            self.conditions.pop()
        return condition

    def _on_program(self, node: Any, is_last: bool) -> None:
        self._sequence(node.children, is_last)

    def _on_compound_statement(self, node: Any, is_last: bool) -> None:
        self._inside(lambda: self._sequence(node.children, is_last))

    def _on_do_group(self, node: Any, is_last: bool) -> None:
        self.loops += 1
        try:
            self._inside(lambda: self._sequence(node.children))
        finally:
            self.loops -= 1

    def _on_subshell(self, node: Any, is_last: bool) -> None:
        follow = lambda: self._sequence(node.children, is_last)  # noqa: E731
        self._inside(lambda: self._apart("subshell", follow))

    def _on_pipeline(self, node: Any, is_last: bool) -> None:
        for child in node.named_children:
            self._apart("pipeline", functools.partial(self._statement, child))

    def _on_negated_command(self, node: Any, is_last: bool) -> None:
        self._inside(lambda: self._sequence(node.named_children))

    def _on_redirected_statement(self, node: Any, is_last: bool) -> None:
        kept, self.redirected = self.redirected, True
        try:
            body, *redirections = node.named_children
            self._statement(body, is_last)
            for redirection in redirections:
                # `cat <<EOF | sh`: what follows on the line stands within the redirection.
                for child in redirection.named_children:
                    if child.type in ("pipeline", "list", "command"):
                        self._statement(child)
        finally:
            self.redirected = kept

    def _on_list(self, node: Any, is_last: bool) -> None:
        """``A && B``: a command that is no test is expected to succeed."""
        first, operator, second = (node.children[0], node.children[1].type, node.children[-1])
        truth = self.truth(first)
        if truth is None and not _is_test(first):
            self._statement(first)
            truth = True
            if operator == "||":
                truth = None
        else:
            self._statement(first)
        if self.state.is_over or self.state.has_returned:
            return
        if truth is None:
            self._perhaps(_line_of(first), lambda: self._statement(second))
        elif truth == (operator == "&&"):
            self._statement(second, is_last)

    def _perhaps(self, condition: str, follow: Callable[[], None]) -> None:
        kept = self.state
        self.state = kept.copy()
        self._if(condition, follow)
        taken, self.state = self.state, kept
        self._join([kept.copy(), taken])

    def _join(self, ways: Sequence[_State]) -> None:
        """Go on after several ways; one that has returned goes on where the function was called."""
        if self.returns:
            self.returns[-1] += [way for way in ways if way.has_returned]
        self.state.become(ways)

    def _on_if_statement(self, node: Any, is_last: bool) -> None:
        self._inside(lambda: self._branches(node, is_last))

    def _branches(self, node: Any, is_last: bool) -> None:
        """``if``, with its elif and else clauses."""
        ways: list[_State] = []
        before = self.state
        clauses: list[tuple[list[Any], list[Any]]] = []
        test: list[Any] = []
        body: list[Any] | None = None
        for child in node.children:
            if child.type == "then":
                body = []
            elif child.type == "elif_clause":
                clauses.append((test, body or []))
                test, body = _elif(child)
            elif child.type == "else_clause":
                clauses.append((test, body or []))
                test, body = [], list(child.children)
            elif body is not None:
                body.append(child)
            else:
                test.append(child)
        clauses.append((test, body or []))
        is_decided = False
        conditions: list[Condition] = []
        label = "else"  # of a text that has no test
        for test, body in clauses:
            tests = [child for child in test if child.is_named and child.type != "comment"]
            truth: bool | None = True
            if tests:
                label = _line_of(tests[-1])
                truth = self.truth(tests[-1])
                self._sequence(test)
            if truth is False:
                continue
            if truth is True and not ways:
                self._sequence(body, is_last)
                return
            self.state = before.copy()
            conditions.append(self._if(label, functools.partial(self._sequence, body, is_last)))
            ways.append(self.state)
            self.state = before
            if truth is True:
                is_decided = True
                break
        if not is_decided:
            ways.append(before.copy())
        for condition in conditions if is_decided else ():
            condition.ways = conditions
        self.state = before
        self._join(ways)

    def _on_case_statement(self, node: Any, is_last: bool) -> None:
        self._inside(lambda: self._cases(node, is_last))

    def _cases(self, node: Any, is_last: bool) -> None:
        subject = node.child_by_field_name("value") or node.named_children[0]
        value = self.joined(subject)
        is_known = UNKNOWN not in value
        before = self.state
        ways: list[_State] = []
        for item in (child for child in node.named_children if child.type == "case_item"):
            patterns, body = _case(item)
            known = [self._pattern(pattern) for pattern in patterns]
            matches: bool | None = None
            if is_known and all(one is not None for one in known):
                matches = any(fnmatch.fnmatchcase(value, str(one)) for one in known)
            if matches is False:
                continue
            if matches and not ways:
                self._sequence(body, is_last)
                return
            self.state = before.copy()
            condition = f"case {_line_of(subject)}"
            self._if(condition, functools.partial(self._sequence, body, is_last))
            ways.append(self.state)
            self.state = before
            if matches:
                break
        else:
            ways.append(before.copy())
        self.state = before
        self._join(ways)

    def _pattern(self, node: Any) -> str | None:
        """A pattern for fnmatch, None when it is not known."""
        if node.type in ("extglob_pattern", "word", "regex"):
            text = _source_text(node)
            return None if UNKNOWN in text or "(" in text else text.strip("\"'")
        text = self.joined(node)
        return None if UNKNOWN in text else re.sub(r"([*?\[])", r"[\1]", text)

    def _on_while_statement(self, node: Any, is_last: bool) -> None:
        tests = [child for child in node.named_children if child.type != "do_group"]
        bodies = [child for child in node.named_children if child.type == "do_group"]
        truth = self.truth(tests[0]) if tests else None
        if node.children[0].type == "until" and truth is not None:
            truth = not truth
        self._sequence(tests)
        if truth is False:
            return
        # `while kill -0 $PID; do sleep 1; done` waits, and so do a wait in a loop and short sleeps.
        text = _source_text(node)
        pauses = [float(pause) for pause in _PAUSES.findall(text)] if bodies else []
        if bodies and (re.search(r"\bwait\b|\bkill\b", text) or (pauses and max(pauses) <= 5)):
            self.waits[-1] += 2
        follow = functools.partial(self._sequence, bodies)
        if truth is True:
            follow()
        else:
            self._perhaps(f"while {_line_of(tests[0])}" if tests else "while", follow)

    def _on_for_statement(self, node: Any, is_last: bool) -> None:
        variable = node.child_by_field_name("variable")
        if variable is not None:
            self.state.variables[_source_text(variable)] = None
        bodies = [c for c in node.named_children if c.type in ("do_group", "compound_statement")]
        # A list that is written there is not empty; it is run at least once.
        self._inside(lambda: self._sequence(bodies))

    _on_c_style_for_statement = _on_for_statement

    def _on_function_definition(self, node: Any, is_last: bool) -> None:
        name = node.child_by_field_name("name")
        body = node.child_by_field_name("body")
        if name is not None and body is not None:
            self.state.functions[_source_text(name)] = self.functions[_source_text(name)] = body

    def _on_test_command(self, node: Any, is_last: bool) -> None:
        """It runs nothing."""

    def _on_variable_assignment(self, node: Any, is_last: bool) -> None:
        self._assign(node)

    def _on_variable_assignments(self, node: Any, is_last: bool) -> None:
        self._sequence(node.named_children)

    def _on_unset_command(self, node: Any, is_last: bool) -> None:
        for child in node.named_children:
            self.state.variables.pop(_source_text(child), None)

    def _on_declaration_command(self, node: Any, is_last: bool) -> None:
        """``export A=1 B``, ``local``, ``readonly``, ``declare``."""
        is_export = node.children[0].type == "export" or "-x" in _source_text(node).split()
        for child in node.named_children:
            if child.type == "variable_assignment":
                name = self._assign(child)
            elif child.type == "variable_name":
                name = _source_text(child)
            else:  # `export "$NAME"`, `export $(cat .env)`
                name = ""
                for word in self.fields(child):
                    match = _ASSIGNMENT.match(word)
                    if match is not None:
                        name = match[1]
                        self.state.variables[name] = match[2]
                    elif UNKNOWN in word:
                        self.state.is_open = True
            if is_export and name:
                self.state.exported.add(name)

    def _assign(self, node: Any) -> str:
        target = node.child_by_field_name("name")
        value = node.child_by_field_name("value")
        name = _source_text(target) if target is not None else ""
        if not _NAME.match(name):
            return ""  # an element of an array
        is_added = any(child.type == "+=" for child in node.children)
        if value is not None and value.type == "array":
            words = [word for child in value.named_children for word in self.fields(child)]
            self.state.arrays[name] = (self.state.arrays.get(name, []) if is_added else []) + words
            self.state.variables[name] = None
            return name
        text = "" if value is None else self.joined(value)
        if is_added:
            text = (self.state.variables.get(name) or "") + text
        self.state.arrays.pop(name, None)
        # `PORT=${PORT}` tells as little as before.
        self.state.variables[name] = None if text in (f"${name}", f"${{{name}}}") else text
        return name

    # -- simple commands

    def _on_command(self, node: Any, is_last: bool) -> None:
        assigned: dict[str, str] = {}
        words: list[str] = []
        is_redirected = self.redirected
        name = node.child_by_field_name("name")
        for child in node.children:
            # The grammar takes `A=1 B=2` and the command on the next line for one.
            is_before = name is not None and child.end_point[0] < name.start_point[0]
            if child.type == "variable_assignment" and is_before and b"\\\n" not in node.text:
                self._assign(child)
            elif child.type == "variable_assignment":
                target, value = (child.child_by_field_name(n) for n in ("name", "value"))
                text = "" if value is None else self.joined(value)
                assigned[_source_text(target) if target is not None else ""] = text
            elif child.type == "command_name":
                words += [word for part in child.children for word in self.fields(part)]
            elif child.type in ("file_redirect", "heredoc_redirect", "herestring_redirect"):
                is_redirected = True
            elif child.is_named:
                words += self.fields(child)
        is_exec = is_timed = False
        if words[:1] == ["command"] and words[1:2] in (["-v"], ["-V"]):
            return  # it looks for a program
        while words[:1] and words[0] in ("exec", "command", "builtin", "time", "nohup"):
            is_exec |= words[0] == "exec"
            is_timed |= words[0] == "time"
            words = words[1:]
            while is_exec and words[:1] and words[0] in ("-a", "-c", "-l", "--"):
                words = words[2:] if words[0] == "-a" else words[1:]
        if not words:
            return  # `exec 2>&1`, or nothing is left
        if self._builtin(words, assigned, node, is_exec):
            return
        exported = {
            name: value
            for name, value in self.state.variables.items()
            if name in self.state.exported
            and value is not None
            # What has not been touched is the reader's already.
            and self.initial.get(name, _UNSET) != value
        }
        self.found.append(
            Command(
                line=self.offset + (name or node).start_point[0] + 1,
                first=words[0] if is_exec or name is None else _source_text(name),
                is_plain=b"$" not in node.text,
                words=words,
                assigned={**exported, **assigned},
                is_exec=is_exec,
                is_redirected=is_redirected,
                beside=self.beside,
                is_last=is_last and not self.inner and self.is_alone and not is_timed,
                is_tail=is_last,
                in_loop=self.loops > 0,
                condition=self.conditions[-1] if self.conditions else None,
            )
        )
        self.actions.append(self.state.trap)
        self.waits.append(0)
        if is_exec and not self.beside:
            self.state.is_over = True

    def _builtin(
        self, words: list[str], assigned: dict[str, str], node: Any, is_exec: bool
    ) -> bool:
        """Do what a builtin does to the shell itself; tell whether it was one."""
        name, rest = words[0], words[1:]
        state = self.state
        if name in state.functions and not is_exec:
            self._call(state.functions[name], rest)
        elif name in ("exit", "logout"):
            state.is_over = True
        elif name == "return":
            state.has_returned = True
        elif name == "wait":
            self.waits[-1] += 1
        elif name == "trap":
            self._trap(rest)
        elif name == "shift" and state.positional is not None:
            count = int(rest[0]) if rest and rest[0].isdecimal() else 1
            state.positional = state.positional[count:]
        elif name == "set":
            self._set(rest)
        elif name in ("export", "readonly", "local", "declare", "typeset"):
            for word in rest:
                match = _ASSIGNMENT.match(word)
                if match is not None:
                    state.variables[match[1]] = match[2]
                if name == "export":
                    state.exported.add(match[1] if match is not None else word)
        elif name in (".", "source") and rest:
            self._source(rest[0])
        elif name == "eval":
            self._again(" ".join(rest), node)
        elif name == "read" or name == "getopts":
            for word in rest:
                if _NAME.match(word):
                    state.variables[word] = None
        elif name in (":", "true", "false", "cd", "echo", "printf", "unset", "umask", "test", "["):
            pass
        else:
            return False
        return True

    def _call(self, body: Any, arguments: list[str]) -> None:
        if self.depth >= _MAX_DEPTH:
            raise TooMuch("has functions that call each other without end")
        kept = self.state.positional
        self.state.positional = arguments
        self.depth += 1
        self.returns.append([])
        try:
            self._inside(lambda: self._statement(body))
        finally:
            self.depth -= 1
            self.state.has_returned = False
            ways = [self.state.copy(), *self.returns.pop()]
            for way in ways:
                way.has_returned = False
            self.state.become(ways)
            self.state.positional = kept

    def _again(self, text: str, node: Any) -> None:
        """Follow a text that is read where this one stands: of eval, or of a sourced file."""
        if self.depth >= _MAX_DEPTH:
            raise TooMuch("has files that source each other without end")
        kept = self.offset
        self.offset = kept + node.start_point[0] if node is not None else 0
        self.depth += 1
        try:
            self._inside(lambda: self._sequence(_parse(text).children))
        finally:
            self.depth -= 1
            self.offset = kept

    def _source(self, path: str) -> None:
        if _HARMLESS.search(path):
            return
        text = self.source(path) if self.source is not None else None
        if text is None:
            self.state.is_open = True
            return
        kept = len(self.found)
        self._again(text, None)
        # Its lines are not this file's.
        for command in self.found[kept:]:
            command.line = 1
        self.state.has_returned = False

    def _set(self, words: list[str]) -> None:
        if "--" in words:
            self.state.positional = words[words.index("--") + 1 :]
        elif words and not words[0].startswith(("-", "+")):
            self.state.positional = words
        elif "-a" in words or "allexport" in words:
            self.state.exported = _Everything()

    def _trap(self, words: list[str]) -> None:
        if words[:1] == ["--"]:
            words = words[1:]
        self.is_trapped |= len(words) > 1 and words[0] != "-"
        if {"EXIT", "0"} & {word.upper() for word in words[1:]}:
            self.at_exit = words[0]
        if len(words) < 2 or not _SIGTERM & {word.upper() for word in words[1:]}:
            return
        action = words[0]
        if action == "-":
            self.state.trap = None
            return
        self.state.trap = action

    def trapped(self, action: str) -> Trap:
        """What a trap's text does, with the functions that it calls, and those that these call."""
        functions = self.functions
        text = action
        if re.search(r"\bexit\b", action) and action != self.at_exit:
            text += f"\n{self.at_exit}"
        seen: set[str] = set()
        for _ in range(_MAX_DEPTH):
            called = {name for name in functions if re.search(rf"\b{re.escape(name)}\b", text)}
            if called <= seen:
                break
            for name in called - seen:
                text += "\n" + _source_text(functions[name])
            seen |= called
        name = action.split()[0] if action.split() else ""
        if self.state.is_open and name not in functions:  # it may be defined in what was sourced
            return Trap(True, True)
        sent = set(_KILL.findall(text))
        is_quick = bool(sent) and sent <= _QUICK
        passes_on = bool(_PASSES_ON.search(text)) and not is_quick
        waits = re.search(r"\bwait\b|\bkill -0\b|\bdrain\b", text) is not None
        return Trap(passes_on, waits, is_quick)

    # -- conditions

    def truth(self, node: Any) -> bool | None:
        """Whether a condition holds; None when that is not known."""
        handler = getattr(self, f"_truth_of_{node.type}", None)
        return handler(node) if handler is not None else None

    def _truth_of_test_command(self, node: Any) -> bool | None:
        return None if node.has_error else self._truth_of_parts(_parts(node.children[1:-1]))

    def _truth_of_parts(self, parts: Sequence[Any]) -> bool | None:
        """The truth of operators (texts) and operands (nodes), of which the grammar has no order.

        It takes ``a = b || c`` for ``a = (b || c)``.
        """
        for joints in (("||", "-o"), ("&&", "-a")):
            at = next((n for n, part in enumerate(parts) if part in joints), None)
            if at is not None:
                truths = [self._truth_of_parts(some) for some in (parts[:at], parts[at + 1 :])]
                return _either(*truths) if "||" in joints else _both(*truths)
        if parts and parts[0] == "!":
            truth = self._truth_of_parts(parts[1:])
            return None if truth is None else not truth
        if len(parts) == 1 and not isinstance(parts[0], str):
            (node,) = parts
            if node.type == "parenthesized_expression":
                return self._truth_of_parts(_parts(node.children[1:-1]))
            value = self.joined(node)
            return None if UNKNOWN in value else bool(value)
        if len(parts) == 3 and parts[1] in ("=", "==", "!="):
            value, pattern = self._text(parts[0]), self._pattern_of(parts[2])
            if pattern is None or UNKNOWN in value:
                return None
            return fnmatch.fnmatchcase(value, pattern) is (parts[1] != "!=")
        return _test([self._text(part) for part in parts]) if len(parts) in (2, 3) else None

    def _text(self, part: Any) -> str:
        return part if isinstance(part, str) else self.joined(part)

    def _pattern_of(self, part: Any) -> str | None:
        return part if isinstance(part, str) else self._pattern(part)

    def _truth_of_command(self, node: Any) -> bool | None:
        if any(child.type == "variable_assignment" for child in node.children):
            return None
        words = [word for child in node.children for word in self._of_part(child)]
        if words[:1] in (["true"], [":"]):
            return True
        if words[:1] == ["false"]:
            return False
        if words[:1] == ["["] and words[-1] == "]":
            return _test(words[1:-1])
        return _test(words[1:]) if words[:1] == ["test"] else None

    def _of_part(self, child: Any) -> list[str]:
        if child.type == "command_name":
            return [word for part in child.children for word in self.fields(part)]
        # A quoted word that is empty counts here, as it does in the shell.
        return self.fields(child) if child.is_named else []

    def _truth_of_negated_command(self, node: Any) -> bool | None:
        truth = self.truth(node.named_children[-1])
        return None if truth is None else not truth

    def _truth_of_list(self, node: Any) -> bool | None:
        truths = self.truth(node.children[0]), self.truth(node.children[-1])
        return _both(*truths) if node.children[1].type == "&&" else _either(*truths)

    def _truth_of_redirected_statement(self, node: Any) -> bool | None:
        return self.truth(node.named_children[0])

    # -- words

    def joined(self, node: Any) -> str:
        """What a word becomes where it is not split."""
        return "".join(text for text, _ in self.pieces(node))

    def fields(self, node: Any) -> list[str]:
        """The words that one word becomes: none, one, or several."""
        positional = self._list(node)
        if positional is not None:
            return positional
        pieces = self.pieces(node)
        if not any(can_split for _, can_split in pieces):
            return ["".join(text for text, _ in pieces)]
        fields: list[str] = []
        current: str | None = None
        for text, can_split in pieces:
            if not can_split:
                current = (current or "") + text
                continue
            for part in re.findall(r"\s+|\S+", text):
                if part.isspace():
                    if current is not None:
                        fields.append(current)
                    current = None
                else:
                    current = (current or "") + part
        if current is not None:
            fields.append(current)
        return fields

    def _list(self, node: Any) -> list[str] | None:
        """``$@``, ``"$@"``, ``$*`` and ``"${ARRAY[@]}"``, which stand for several words."""
        inner = node
        if node.type == "string":
            if len(node.named_children) != 1 or _source_text(node)[1:2] != "$":
                return None
            inner = node.named_children[0]
            if inner.end_byte - inner.start_byte != node.end_byte - node.start_byte - 2:
                return None
        text = _source_text(inner)
        if text in ("$@", "$*", "${@}", "${*}"):
            return ["$@"] if self.state.positional is None else list(self.state.positional)
        match = re.fullmatch(r"\$\{[@*]:(\d+)(?::(\d+))?\}", text)
        if match is not None and self.state.positional is not None and int(match[1]) > 0:
            rest = self.state.positional[int(match[1]) - 1 :]
            return rest if match[2] is None else rest[: int(match[2])]
        match = re.fullmatch(r"\$\{(\w+)\[[@*]\]\}", text)
        if match is not None and match[1] in self.state.arrays:
            return list(self.state.arrays[match[1]])
        return None

    def pieces(self, node: Any) -> list[tuple[str, bool]]:
        """The parts of a word, each with whether it is split at spaces."""
        kind = node.type
        if kind in ("simple_expansion", "expansion"):
            return [(text, True) for text in self._expansion(node)]
        if kind == "string":
            return [("".join(text for text, _ in self._with_gaps(node, 1, True)), False)]
        if kind == "raw_string":
            return [(_source_text(node)[1:-1], False)]
        if kind in ("ansi_c_string", "translated_string"):
            return [(_source_text(node)[2:-1], False)]
        if kind == "concatenation":
            return [piece for child in node.children for piece in self.pieces(child)]
        if kind == "command_name":
            return [piece for child in node.children for piece in self.pieces(child)]
        if kind == "command_substitution":
            return [(self._substitution(node), True)]
        if kind in ("arithmetic_expansion", "process_substitution"):
            return [("$(...)", False)]
        text = _source_text(node)
        return [(_ESCAPED.sub(lambda m: "" if m[1] == "\n" else m[1], text), False)]

    def _with_gaps(self, node: Any, quote: int, is_quoted: bool) -> list[tuple[str, bool]]:
        """The parts of a text with expansions in it, spaces between them too."""
        data = bytes(node.text)
        start, end = node.start_byte, node.start_byte
        parts: list[tuple[str, bool]] = []
        position = quote
        for child in node.named_children:
            if child.type not in (
                *("simple_expansion", "expansion", "command_substitution"),
                "arithmetic_expansion",
            ):
                continue
            begin, end = child.start_byte - start + _lead(child), child.end_byte - start
            parts.append((_literal(data[position:begin]), False))
            parts += self.pieces(child)
            position = end
        parts.append((_literal(data[position : len(data) - quote]), False))
        return parts

    def _substitution(self, node: Any) -> str:
        inner = _source_text(node).strip("`")
        match = re.fullmatch(r"(?:\$\()?\s*(?:which|command -v|type -p)\s+([\w./-]+)\s*\)?", inner)
        return match[1] if match is not None else "$(...)"

    def _expansion(self, node: Any) -> list[str]:
        """``$NAME`` or ``${NAME...}``."""
        self.steps += 1
        if self.steps > _MAX_STEPS:
            raise TooMuch("is too long")
        inner = [child for child in node.children if child.type not in ("$", "${", "}")]
        name = ""
        for child in inner:
            if child.type in ("variable_name", "special_variable_name", "subscript"):
                name = _source_text(child)
                break
        written = f"${name}" if _NAME.match(name) else _source_text(node).lstrip()
        if not name and node.type == "expansion":
            # `${@}`, `${1:-x}` and what the grammar has no name for
            match = re.match(r"\s*\$\{(\w+|[@*#?])", _source_text(node))
            name = match[1] if match is not None else ""
        value = self._value(name)
        if node.type == "simple_expansion":
            return [written if value is None or value is _UNSET else str(value)]
        text = _source_text(node).lstrip()
        match = re.match(r"\$\{[\w@*]+(:?[-=+?]|##?|%%?|,,?|\^\^?)", text, re.ASCII)
        if match is None:
            is_plain = re.fullmatch(r"\$\{\w+\}", text) is not None
            return [str(value) if is_plain and isinstance(value, str) else written]
        operator, at = match[1], len(match[0].encode()) + _lead(node)
        kind = operator[-1]
        if kind in "-=":
            if value is _UNSET and not self.state.is_open and name != "@":
                value = self._word_after(node, at)
            elif value == "" and operator[0] == ":":
                value = self._word_after(node, at)
            if kind == "=" and isinstance(value, str):
                self.state.variables[name] = value
        elif kind == "+":
            if isinstance(value, str):
                is_empty = value == "" and operator[0] == ":"
                is_known = UNKNOWN not in value
                value = "" if is_empty else self._word_after(node, at) if is_known else None
            elif value is _UNSET and not self.state.is_open:
                value = ""
        elif kind in "#%" and isinstance(value, str):
            value = _cut(value, operator, self._word_after(node, at))
        elif kind == "," and isinstance(value, str):
            value = value.lower() if operator == ",," else None
        elif kind == "^" and isinstance(value, str):
            value = value.upper() if operator == "^^" else None
        return [written if value is None or value is _UNSET else str(value)]

    def _word_after(self, node: Any, at: int) -> str:
        """What stands after the operator of ``${NAME:-...}``."""
        data = bytes(node.text)
        start = node.start_byte
        parts: list[str] = []
        position = at
        for child in node.named_children:
            begin, end = child.start_byte - start + _lead(child), child.end_byte - start
            if begin < at:
                continue
            if child.type in (
                *("simple_expansion", "expansion", "string", "raw_string", "concatenation"),
                *("command_substitution", "arithmetic_expansion"),
            ):
                parts.append(_literal(data[position:begin]))
                parts.append(self.joined(child))
                position = end
        parts.append(_literal(data[position : len(data) - 1]))
        return "".join(parts)

    def _value(self, name: str) -> object:
        """The value of a variable: text, None when it is not known, or `_UNSET`."""
        positional = self.state.positional
        if name.isdecimal():
            if positional is None or name == "0":
                return None
            return positional[int(name) - 1] if int(name) <= len(positional) else ""
        if name == "#":
            return None if positional is None else str(len(positional))
        if name in ("@", "*"):
            return None if positional is None else " ".join(positional)
        return self.state.variables.get(name, _UNSET)


def _is_alone(nodes: Sequence[Any]) -> bool:
    """Whether bash (5.2) gives its place to the last of the statements of a text, if it can.

    It looks at one line at a time, and there either at a list of ``&&`` and ``||`` that is all of
    the line, or at a command after the last ``;``.
    """
    if len(nodes) < 2:
        return True
    before, separator = nodes[-2], nodes[-2].type
    if before.end_point[0] < nodes[-1].start_point[0] or separator == "\n":
        return True
    return bool(separator == ";" and nodes[-1].type != "list")


class _Everything(set[str]):
    """After ``set -a`` each variable is exported."""

    def __contains__(self, name: object) -> bool:
        return True


def _lead(node: Any) -> int:
    """The bytes of white space before an expansion, which the grammar takes into its first sign."""
    return len(node.text) - len(node.text.lstrip()) if "expansion" in node.type else 0


def _literal(data: bytes) -> str:
    text = _decoded(data)
    return re.sub(r"\\(\n|[$`\"\\])", lambda m: "" if m[1] == "\n" else m[1], text)


def _parts(nodes: Sequence[Any]) -> list[Any]:
    """The operators (texts) and operands (nodes) of a test, in their order."""
    found: list[Any] = []
    for node in nodes:
        if node.type in ("binary_expression", "unary_expression"):
            found += _parts(node.children)
        elif node.type == "test_operator" or not node.is_named:
            found.append(_source_text(node))
        else:
            found.append(node)
    return found


def _line_of(node: Any) -> str:
    """A condition, for a sentence."""
    line = " ".join(_source_text(node).split())
    return line if len(line) <= 60 else line[:57] + "..."


def _elif(node: Any) -> tuple[list[Any], list[Any]]:
    children = list(node.children)
    at = next((n for n, child in enumerate(children) if child.type == "then"), len(children))
    return children[1:at], children[at + 1 :]


def _case(item: Any) -> tuple[list[Any], list[Any]]:
    """The patterns of one case and what it runs."""
    children = list(item.children)
    at = next((n for n, child in enumerate(children) if child.type == ")"), len(children))
    return [child for child in children[:at] if child.is_named], children[at + 1 :]


def _is_test(node: Any) -> bool:
    if node.type == "negated_command" or node.type == "redirected_statement":
        return _is_test(node.named_children[-1])
    if node.type == "list":
        return _is_test(node.children[0]) and _is_test(node.children[-1])
    if node.type == "command":
        return _source_text(node).split()[:1] in (["test"], ["["], ["grep"], ["command"])
    return bool(node.type == "test_command")


def _both(one: bool | None, other: bool | None) -> bool | None:
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


def _either(one: bool | None, other: bool | None) -> bool | None:
    if one or other:
        return True
    return None if one is None or other is None else False


def _test(words: list[str]) -> bool | None:
    """What `test` makes of its words; None where it looks at files, or at what is not known."""
    if words[:1] == ["!"]:
        truth = _test(words[1:])
        return None if truth is None else not truth
    if any(UNKNOWN in word for word in words):
        return None
    if len(words) == 1:
        return bool(words[0])
    if len(words) == 2 and words[0] in ("-z", "-n"):
        return bool(words[1]) == (words[0] == "-n")
    if len(words) != 3:
        return None
    left, comparison, right = words
    if comparison in ("=", "==", "!="):
        return (left == right) == (comparison != "!=")
    if comparison in _COMPARISONS and left.isdecimal() and right.isdecimal():
        return _COMPARISONS[comparison](int(left), int(right))
    return None


def _cut(value: str, operator: str, pattern: str) -> str | None:
    """``${NAME#pattern}`` and its three siblings."""
    if UNKNOWN in value or UNKNOWN in pattern or len(value) > 1000:
        return None
    lengths = range(len(value) + 1)
    if len(operator) == 2:
        lengths = range(len(value), -1, -1)
    for length in lengths:
        if operator[0] == "#" and fnmatch.fnmatchcase(value[:length], pattern):
            return value[length:]
        rest = len(value) - length
        if operator[0] == "%" and fnmatch.fnmatchcase(value[rest:], pattern):
            return value[:rest]
    return value
