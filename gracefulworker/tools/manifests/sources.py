"""Paths in, texts out.

What may be changed here: which file names count as what, and the limits. `InputError` is one
sentence for the user; whoever raises it knows the file, and the line if there is one.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass

#: Bytes. The largest rendered chart that was looked at (with all its CRDs) has 3.5 MB.
MAX_SIZE = 5_000_000

#: Directories below a given one that hold other people's files.
SKIPPED_DIRECTORIES = frozenset({"node_modules", "site-packages", "venv", "__pycache__"})

#: What stands before the interpreter in a script's first line; the second is s6-overlay's.
_BEFORE_INTERPRETERS = frozenset({"env", "with-contenv"})

#: Hidden directories, and files, that say how something is deployed.
DEPLOYING = frozenset(
    {
        *(".copilot", ".deploy", ".do", ".docker", ".ebextensions", ".helm", ".k8s", ".kube"),
        *(".kubernetes", ".openshift", ".platform", ".platform.app.yaml", ".upsun"),
    }
)

#: The interpreters of what is read as a script.
_SHEBANG = re.compile(rb"#!.*\b(sh|ash|bash|dash|ksh|zsh)\b")

_DOCKERFILE = re.compile(r"(docker|container)file([-_.].*)?|.*[-_.](docker|container)file")

#: A section of supervisord's configuration that starts a program.
_PROGRAM = re.compile(rb"^\s*\[(fcgi-)?program:", re.MULTILINE)

#: A text of any name with one of these keys at the start of a line is taken for a manifest.
_MANIFEST = re.compile(rb'^\s*\{?\s*"?(apiVersion|kind)"?\s*:', re.MULTILINE)


#: What a JSON file has that may be one: Kubernetes', ECS' or Railway's.
_JSON_MANIFEST = re.compile(rb'"(apiVersion|containerDefinitions|image|startCommand)"\s*:')

#: Terraform, Nomad, templates and so on (and execline): they may start gunicorn, and are named.
_WITHOUT_LINES = (".tf", ".hcl", ".nomad")
_OTHER = (
    *(*_WITHOUT_LINES, ".toml", ".tpl", ".tmpl", ".gotmpl"),
    *(".j2", ".jinja", ".jinja2", ".jnj"),
)

#: gunicorn, and gunicorn with something after it, which is no version.
_NAMES = re.compile(rb"\bgunicorn\b")
_STARTS = re.compile(rb"\bgunicorn[\"',]*[ \t]+([\"'\w$-]|\{\{)")


class InputError(Exception):
    """A file that cannot be judged.

    :param line: from 1; 0 when the whole file is meant.
    """

    def __init__(self, file: str, line: int, message: str) -> None:
        super().__init__(message)
        self.file = file
        self.line = line
        self.message = message


def unrendered(file: str, line: int) -> InputError:
    """The error for a template, or a directory of templates."""
    return InputError(
        file,
        line,
        "is a template that has not been rendered: check what comes out of it, such as "
        "`helm template . | gracefulworker check -`",
    )


@dataclass(frozen=True)
class Place:
    """Where something stands: `line` counts from 1, `field` is a path such as ``spec.replicas``."""

    file: str
    line: int
    field: str


@dataclass(frozen=True)
class Source:
    """One text.

    :param kind: ``yaml``, ``dockerfile``, ``procfile``, ``script``, ``systemd``, ``drop-in`` (of a
        systemd unit), ``supervisord``, ``fly``, or ``other`` for what is not read.
    :param named: whether the user gave this very file, and not a directory that holds it.
    :param title: its own name, if it is a part of the file.
    :param line: where it begins there.
    """

    file: str
    kind: str
    text: str
    named: bool
    title: str = ""
    line: int = 1

    @property
    def name(self) -> str:
        """Its own name, or the last part of the path."""
        return self.title or os.path.basename(self.file)

    @property
    def origin(self) -> tuple[str, int]:
        """Its file, and the line where it begins."""
        return self.file, self.line

    @property
    def unit(self) -> str:
        """The systemd unit that a file is, or that it changes."""
        directory = os.path.basename(os.path.dirname(os.path.abspath(self.file)))
        return directory.removesuffix(".d") if self.kind == "drop-in" else self.name

    @property
    def interpreter(self) -> str:
        """The program that a script's first line names, "" without such a line."""
        first = self.text.split("\n", 1)[0]
        words = first[2:].split() if first.startswith("#!") else []
        names = [os.path.basename(word) for word in words if not word.startswith("-")]
        return next((name for name in names if name not in _BEFORE_INTERPRETERS), "")


def read(path: str) -> Iterator[Source | InputError]:
    """Yield what `path` holds: a file, a directory with all below it, or ``-`` for stdin."""
    if path == "-":
        data = sys.stdin.buffer.read(MAX_SIZE + 1)
        if data.strip():
            yield _source("<stdin>", "yaml", data, named=True)
        else:
            yield InputError("<stdin>", 0, "is empty: what was to write into it has failed")
    elif not os.path.isdir(path):
        yield _read_file(path)
    else:
        failed: list[InputError] = []
        count = 0
        for directory, below, names in os.walk(path, onerror=lambda e: failed.append(_failed(e))):
            below[:] = sorted(
                name for name in below if name not in SKIPPED_DIRECTORIES and not _is_hidden(name)
            )
            if "Chart.yaml" in names and "templates" in below:
                below.remove("templates")
                count += 1
                yield unrendered(os.path.join(directory, "templates"), 0)
            for name in sorted(names):
                file = os.path.join(directory, name)
                # A JSON file in a directory is rarely a manifest.
                kind = None if name.endswith(".json") else _kind(file)
                kind = kind or _kind_within(file)
                if kind is not None and not _is_hidden(name) and os.path.isfile(file):
                    count += 1
                    yield _read_file(file, kind)
        yield from failed
        if not count and not failed:
            yield InputError(path, 0, "is a directory without any file that is read here")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") and name not in DEPLOYING


def _failed(error: OSError) -> InputError:
    return InputError(str(error.filename), 0, f"cannot be read: {error.strerror or error}")


def _kind(path: str) -> str | None:
    lower = os.path.basename(path).lower()
    stem = lower.split(".")[0]
    if lower.endswith((".sh", ".bash")):
        return "script"
    if os.path.dirname(path).endswith(".service.d") and lower.endswith(".conf"):
        return "drop-in"
    if lower.endswith((".yaml", ".yml", ".json")):
        return "yaml"
    if _DOCKERFILE.fullmatch(lower) and not lower.endswith((".dockerignore", ".md", ".txt")):
        return "dockerfile"
    if lower.endswith(".service"):
        return "systemd"
    if stem == "fly" and lower.endswith(".toml"):
        return "fly"
    if stem == "procfile" or lower.endswith(".procfile"):
        return "procfile"
    return "script" if "entrypoint" in stem else None


def _kind_within(file: str) -> str | None:
    """The kind of a file in a directory whose name alone does not say it."""
    extension = os.path.splitext(file)[1]
    if extension not in ("", ".conf", ".ini", ".json", *_OTHER) or not os.path.isfile(file):
        return None
    try:
        with open(file, "rb") as stream:
            return _kind_of_data(stream.read(10_000), extension)
    except OSError:
        return None


def _kind_of_data(data: bytes, extension: str) -> str | None:
    if not extension and _SHEBANG.match(data):
        return "script"
    if extension in (".conf", ".ini") and _PROGRAM.search(data):
        return "supervisord"
    if extension == ".json" and _JSON_MANIFEST.search(data):
        return "yaml"
    if extension in _OTHER:
        # Where its arguments stand on lines of their own, the name is enough.
        pattern = _NAMES if extension in _WITHOUT_LINES else _STARTS
        return "other" if pattern.search(data) else None
    is_execline = not extension and b"execlineb" in data.split(b"\n", 1)[0]
    return "other" if is_execline and _NAMES.search(data) else None


def _read_file(file: str, kind: str | None = None) -> Source | InputError:
    """Read one file; without a `kind` it was named by the user, and must be of a known one."""
    named = kind is None
    try:
        with open(file, "rb") as stream:
            data = stream.read(MAX_SIZE + 1)
            is_regular = stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError as error:
        return _failed(error)
    except ValueError as error:  # a NUL in the name
        return InputError(file, 0, f"cannot be read: {error}")
    if kind is None:
        kind = _kind(file)
    if kind is None:
        kind = _kind_of_data(data, os.path.splitext(file)[1])
    if kind is None and _SHEBANG.match(data):
        kind = "script"
    # `check <(helm template .)` names a pipe.
    if kind is None and (not is_regular or _MANIFEST.search(data)):
        kind = "yaml"
    if kind is None:
        return InputError(
            file,
            0,
            "is neither YAML, nor a Dockerfile, a Procfile, a shell script, a systemd unit, "
            "supervisord's configuration or a fly.toml, by its name",
        )
    return _source(file, kind, data, named)


def _source(file: str, kind: str, data: bytes, named: bool) -> Source | InputError:
    if len(data) > MAX_SIZE:
        return InputError(file, 0, f"is larger than {MAX_SIZE / 1e6:g} MB: give a smaller part")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return InputError(file, 0, "is not text in UTF-8")
    if "\0" in text:
        return InputError(file, 0, "is not text: it holds a zero byte")
    return Source(file, kind, text, named)
