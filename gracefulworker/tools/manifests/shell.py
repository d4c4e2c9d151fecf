"""The commands in a shell text, as far as a start script's can be told without running it.

It knows words, quotes, continued lines, here-documents, operators and redirections. It does not
know values: a word with a ``$`` that is not in the given environment stays as it is. What may be
changed here: how a text is cut into commands.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

#: Words that stand before a command and are no part of it.
KEYWORDS = frozenset({"if", "then", "elif", "else", "while", "until", "do", "!", "{", "time"})

_OPERATOR = re.compile(r"[();<>|&]+\Z")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_HEREDOC = re.compile(r"<<-?\s*[\"']?([A-Za-z_]\w*)")
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|([A-Za-z_]\w*))")

#: Lines that one quotation may go on for.
_MAX_JOINED = 200


@dataclass
class Command:
    """One simple command.

    :param line: where it begins, from 1.
    :param before: the operator before it, "" at the start of a line.
    :param after: the operator after it, "" at the end of a line.
    """

    line: int
    before: str = ""
    after: str = ""
    assigned: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    is_exec: bool = False
    is_redirected: bool = False


def commands(text: str) -> list[Command]:
    """Return all commands of `text`, in their order."""
    found: list[Command] = []
    for line, logical in _logical_lines(text):
        found += _simple_commands(line, logical)
    return found


def expand(word: str, environ: Mapping[str, str | None]) -> str:
    """Put in the variables that are known, and the defaults of ``${NAME:-default}``."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[3]
        if name in environ:
            known = environ[name]
            return match[0] if known is None else known
        return match[0] if match[2] is None else match[2]

    return _VARIABLE.sub(value, word)


def _logical_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the tokens of each line, continued ones joined, with the number of its first."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        first, joined = number, lines[number]
        number += 1
        while True:
            try:
                tokens = _tokens(joined)
                break
            except ValueError:
                # A quotation, or an escape, that the next line goes on with.
                if number >= len(lines) or number - first >= _MAX_JOINED:
                    tokens, number = [], first + 1
                    break
                if joined.endswith("\\"):
                    joined = joined[:-1] + " " + lines[number]
                else:
                    joined += "\n" + lines[number]
                number += 1
        for delimiter in _HEREDOC.findall(joined):
            while number < len(lines) and lines[number].strip() != delimiter:
                number += 1
            number += 1
        if tokens:
            yield first + 1, tokens


def _tokens(line: str) -> list[str]:
    """:raises ValueError: when a quotation or an escape is not over at the end."""
    # The 2 of `2>&1` is no argument.
    line = re.sub(r"(?<!\S)\d(?=[<>])", "", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    return list(lexer)


def _simple_commands(line: int, tokens: list[str]) -> Iterator[Command]:
    command = Command(line)
    is_target = False
    for token in tokens:
        if is_target:
            is_target = False
        elif _OPERATOR.match(token):
            if "<" in token or ">" in token:
                command.is_redirected = is_target = True
                continue
            command.after = token
            if command.words:
                yield command
            command = Command(line, before=token)
        elif command.words:
            command.words.append(token)
        elif token in KEYWORDS:
            pass
        elif token == "exec":
            command.is_exec = True
        elif _ASSIGNMENT.match(token):
            name, _, value = token.partition("=")
            command.assigned[name] = value
        else:
            command.words.append(token)
    if command.words or command.assigned:
        yield command
