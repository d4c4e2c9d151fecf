"""A gunicorn configuration as gunicorn would load it, for commands that start no server.

`gunicorn.app.base.Application.load_config` ends the process on the first mistake, and reads the
process's own command line; here mistakes are collected and everything is handed in. The order is
the same: config file, then GUNICORN_CMD_ARGS, then the command line. What may be changed here: what
counts as a mistake.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import importlib
import io
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gunicorn.errors

#: The sources: each wins over the one before it.
CONFIG_FILE, VARIABLE, COMMAND_LINE = "the config file", "GUNICORN_CMD_ARGS", "the command line"

#: The variable that sets `workers` alone, and only where nothing else does.
CONCURRENCY = "WEB_CONCURRENCY"

_concurrency = os.environ.pop(CONCURRENCY, None)
try:
    import gunicorn.config  # which ends in a traceback at a value that is no number
finally:
    if _concurrency is not None:
        os.environ[CONCURRENCY] = _concurrency

#: Variables that would leak from our own environment into that of the service.
_OWN = ("PORT", CONCURRENCY, VARIABLE)

#: Settings whose values gunicorn looks up as files or users where it runs, which is not here.
OF_THE_HOST = frozenset(
    {"ca_certs", "certfile", "chdir", "group", "keyfile", "reload_extra_files", "user"}
)


#: Stands for a ``$`` that is known to be one, since no shell reads the word: see `launch`.
DOLLAR = "\N{SMALL DOLLAR SIGN}"


class ConfigFileError(Exception):
    """A config file that cannot be run: one sentence."""


@dataclass
class Configuration:
    """What gunicorn would run with.

    :param names: all names of the config file.
    :param given: for each of gunicorn's settings that somebody set, who did.
    :param unclear: settings whose value holds a variable that is not known, as it is written.
    :param open_words: arguments that are not known at all, such as ``$OPTIONS``.
    :param is_open: whether there are such, or some that gunicorn refuses.
    :param mistakes: sentences about arguments, each with the source.
    """

    cfg: Any = field(default_factory=gunicorn.config.Config)
    names: Mapping[str, object] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    unclear: dict[str, object] = field(default_factory=dict)
    open_words: list[str] = field(default_factory=list)
    is_open: bool = False
    #: Each is (source, whether it stops the start, sentence).
    mistakes: list[tuple[str, bool, str]] = field(default_factory=list)

    @property
    def imports_ours(self) -> bool:
        """Whether the config file imports gracefulworker."""
        return any(_is_from_us(value) for value in self.names.values())

    @property
    def has_our_class(self) -> bool:
        """Whether the config file has a worker class that derives from one of ours."""
        classes = (value for value in self.names.values() if hasattr(value, "init_process"))
        return any(map(_is_from_us, classes))

    @property
    def has_hook(self) -> bool:
        """Whether the config file has our `when_ready`, or one of its own that may call it."""
        location = self.cfg.config
        if isinstance(location, str) and location.startswith("python:gracefulworker"):
            return True
        return "when_ready" in self.names and self.imports_ours


def _is_from_us(value: object) -> bool:
    """Tell whether a name of a config file holds our hook, our class, or one of our modules."""
    modules = [getattr(cls, "__module__", "") for cls in getattr(value, "__mro__", ())]
    modules += [getattr(value, "__module__", None), getattr(value, "__name__", None)]
    return any(str(name).split(".")[0] == "gracefulworker" for name in modules if name)


def default_config_file() -> str | None:
    """The file that gunicorn reads here by itself."""
    found: str | None = gunicorn.config.get_default_config_file()
    return found


def load_names(location: str, environ: Mapping[str, str]) -> dict[str, object]:
    """Run a config file, or import ``python:MODULE``, in this environment; return its names.

    :raises ConfigFileError: when it cannot be run.
    """
    path = location.removeprefix("file:")
    if not location.startswith("python:"):
        if not os.path.exists(path):
            raise ConfigFileError(f"there is no config file {path}")
        if os.path.isdir(path):
            raise ConfigFileError(f"the config file {path} is a directory")
    kept, kept_path, directory = dict(os.environ), list(sys.path), os.getcwd()
    os.environ.clear()
    os.environ.update(environ)
    sys.path.insert(0, directory)
    try:
        with _printing_elsewhere():
            if location.startswith("python:"):
                return vars(importlib.import_module(location.removeprefix("python:")))
            return runpy.run_path(path, run_name="__config__")
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigFileError(f"the config file {path} cannot be run: {reason}") from error
    finally:
        os.chdir(directory)
        sys.path[:] = kept_path
        os.environ.clear()
        os.environ.update(kept)


@contextlib.contextmanager
def _printing_elsewhere() -> Iterator[None]:
    """What a config file prints, or a process that it starts, must not end up in our output."""
    with contextlib.ExitStack() as kept, contextlib.redirect_stdout(sys.stderr):
        with contextlib.suppress(OSError):  # either is closed
            output = os.dup(1)
            kept.callback(os.close, output)
            os.dup2(2, 1)
            kept.callback(os.dup2, output, 1)
        yield


def load(
    arguments: Sequence[str], environ: Mapping[str, str], names: Mapping[str, object]
) -> Configuration:
    """Return what gunicorn makes of a command line, an environment and a config file's names."""
    loaded = Configuration(names=names)
    # Config takes both from its own process's environment, when gunicorn is imported.
    port = environ.get("PORT")
    loaded.cfg.set("bind", [f"0.0.0.0:{port}" if port else "127.0.0.1:8000"])
    loaded.cfg.set("workers", 1)
    _set_all(loaded, CONFIG_FILE, {n: v for n, v in names.items() if n in loaded.cfg.settings})
    variable = environ.get(VARIABLE, "")
    try:
        from_variable = shlex.split(variable)
    except ValueError as error:
        from_variable = []
        loaded.mistakes.append((VARIABLE, True, f"GUNICORN_CMD_ARGS is not split: {error}"))
    in_variable = _parse(loaded, VARIABLE, from_variable)
    on_line = _parse(loaded, COMMAND_LINE, arguments)
    for name in in_variable.keys() & on_line.keys():
        if in_variable[name] != on_line[name] and not isinstance(on_line[name], list):
            option = loaded.cfg.settings[name].cli[-1]
            sentence = f"{option} in GUNICORN_CMD_ARGS has no effect: the command line wins"
            loaded.mistakes.append((VARIABLE, False, sentence))
    _set_all(loaded, VARIABLE, in_variable)
    _set_all(loaded, COMMAND_LINE, on_line)
    _judge_concurrency(loaded, environ)
    return loaded


def service_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Our own environment, without what belongs to a service, and with the service's."""
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in _OWN and not name.startswith("GRACEFUL_")
    }
    return own | dict(environ)


def _judge_concurrency(loaded: Configuration, environ: Mapping[str, str]) -> None:
    concurrency = environ.get(CONCURRENCY)
    if not concurrency or "$" in concurrency:
        return
    try:
        number = int(concurrency)
    except ValueError:
        sentence = f"WEB_CONCURRENCY={concurrency} is not a whole number, which gunicorn refuses"
        loaded.mistakes.append((CONCURRENCY, True, sentence))
        return
    if "workers" not in loaded.given:
        loaded.cfg.set("workers", number)
    elif loaded.cfg.workers != number and "workers" not in loaded.unclear:
        sentence = (
            f"WEB_CONCURRENCY={concurrency} has no effect: {loaded.given['workers']} "
            f"sets {loaded.cfg.workers} workers"
        )
        loaded.mistakes.append((CONCURRENCY, False, sentence))


class _Given(argparse.Namespace):
    """Notes each value that an option is given, since argparse itself keeps the last one only."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "values", {})

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if value is not None:
            self.values.setdefault(name, []).append(value)


def _parse(loaded: Configuration, source: str, arguments: Sequence[str]) -> dict[str, object]:
    """Return the settings among `arguments`, and note what gunicorn would refuse."""
    known: list[str] = []
    for word in arguments:
        # A bare variable may be anything, or nothing; one within an option is that option's value.
        is_variable = word.startswith("$") and not re.match(r"\$\{?\w+\}?[.:]", word)
        if is_variable and not (known and known[-1].startswith("-")):
            loaded.open_words.append(word)
            loaded.is_open = True
        else:
            known.append(word)
    for word in known:
        if re.match(r"--[\w-]+\s+\S", word):  # a short option takes the rest as its value
            sentence = f"`{word}` is one word: an option and its value are two, or have a = between"
            loaded.mistakes.append((source, True, sentence))
            loaded.is_open = True
    given = _Given()
    parser = _parser()
    try:
        # --help and --version print something, and end the process.
        with contextlib.redirect_stdout(io.StringIO()):
            _, unknown = parser.parse_known_args(known, given)
    except _Refused as error:
        loaded.mistakes.append((source, True, str(error)))
        loaded.is_open = True
        return {}
    except SystemExit:
        sentence = f"{source} has an option with which gunicorn only prints something, and ends"
        loaded.mistakes.append((source, True, sentence))
        loaded.is_open = True
        return {}
    for word in unknown:
        if word.startswith("-"):
            options = [option for one in loaded.cfg.settings.values() for option in one.cli or ()]
            near = difflib.get_close_matches(word.partition("=")[0], options, 1)
            sentence = f"gunicorn does not know the option {word}"
            sentence += f": did you mean {near[0]}?" if near else ""
            loaded.mistakes.append((source, True, sentence))
            loaded.is_open = True
    if any("$" in word for word in unknown):
        loaded.open_words += [word for word in unknown if "$" in word]
        loaded.is_open = True
    if unknown and not loaded.is_open:
        sentence = f"gunicorn takes one application, and refuses what else is named: {unknown[0]}"
        loaded.mistakes.append((source, True, sentence))
    settings = loaded.cfg.settings
    for name, values in given.values.items():
        said = ", ".join(str(value) for value in values)
        is_list = isinstance(values[-1], list)
        if name in settings and len({*map(str, values)}) > 1 and not is_list:
            option = " or ".join(one for one in settings[name].cli if one.startswith("--"))
            loaded.mistakes.append((source, False, f"{option} is given more than once: {said}"))
    return {name: values[-1] for name, values in given.values.items() if name in settings}


class _Refused(Exception):
    """What argparse would print before it ends the process."""


@functools.cache
def _parser() -> argparse.ArgumentParser:
    config = gunicorn.config.Config(prog="gunicorn")
    for setting in config.settings.values():
        # Values are converted and judged when they are set, so that one with a variable in it gets
        # through the parser.
        setting.type = None
    parser: argparse.ArgumentParser = config.parser()

    def refuse(message: str) -> Any:
        raise _Refused(message)

    parser.error = refuse  # type: ignore[method-assign]
    return parser


def _set_all(loaded: Configuration, source: str, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        loaded.given[name] = source
        loaded.unclear.pop(name, None)
        if name in OF_THE_HOST or (source != CONFIG_FILE and "$" in str(value)):
            loaded.unclear[name] = value
            continue
        try:
            convert = loaded.cfg.settings[name].type
            if source != CONFIG_FILE and isinstance(value, str) and convert is not None:
                value = convert(value)
            loaded.cfg.set(name, value)
            if name == "bind":
                _ = loaded.cfg.address
        except (TypeError, ValueError, RuntimeError, gunicorn.errors.ConfigError) as error:
            said = f"{name} = {value!r}"
            if source != CONFIG_FILE:
                written = " ".join(map(str, value)) if isinstance(value, list) else value
                said = f"{loaded.cfg.settings[name].cli[-1]} {written}"
            refused = f"{said} is refused by gunicorn: {error}"
            if DOLLAR in refused:
                refused = refused.replace(DOLLAR, "$")
                refused += " (a variable, where no shell puts in its value)"
            loaded.mistakes.append((source, True, refused))
            loaded.unclear[name] = value
