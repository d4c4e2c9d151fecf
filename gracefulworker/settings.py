"""What a user may set, where it is read from, and how it is fitted into the platform's time.

What may be changed here: a setting is one line, a field of `Settings` with a kind in its metadata;
its name is ``graceful_`` and the field's name, and `TABLE`, the environment, the bounds, the
spelling checks and, with the comment above it, docs/settings.md all follow from that line. Bounds
and words belong to the kinds (`Seconds`, `Switch`, `Path` and so on). Each `SettingsError` is one
sentence with the setting as the user wrote it, the value and the fix, because it is the last thing
that the user sees before the exit.

Settings are plain names in gunicorn's config file, or environment variables of the same name in
capitals. The environment wins, as gunicorn's command line wins over its file.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType
from typing import Any

#: What all names begin with; gunicorn's own `graceful_timeout` shares it.
PREFIX = "graceful_"

#: Seconds kept free before the platform's SIGKILL, for the exit itself.
MARGIN = 1.0

#: Seconds from SIGTERM to SIGKILL that are assumed when nobody names a figure: the default of
#: Kubernetes' terminationGracePeriodSeconds.
ASSUMED_PERIOD = 30.0

#: Where `graceful_probe_bind` answers, when no paths are set.
READINESS_PATH = "/ready"
LIVENESS_PATH = "/live"

#: How alike (`difflib` ratio) a name must be to count as a misspelling. One letter too many or too
#: few in `bind` is 0.89, two swapped letters in `workers` 0.86; `worker_id`, a helper that is met
#: in real config files, is 0.84 from `worker_int`.
ALIKE = 0.85


class SettingsError(RuntimeError):
    """A setting that the service must not start with.

    It is a RuntimeError because gunicorn's `Application.run` prints ``Error: ...`` for one and
    exits with status 1.
    """


@dataclass(frozen=True)
class Seconds:
    """A time: a finite number of seconds, from 0 to `high`."""

    meaning: str
    high: float = 3600.0
    unit = "s"

    def read(self, value: object) -> float:
        """Return `value`, a number or its text, as seconds.

        :raises ValueError: with the rest of a sentence that begins with setting and value.
        """
        try:
            # A bool passes for an int in Python, but True is not a second.
            if isinstance(value, bool) or not isinstance(value, (int, float, str)):
                raise ValueError
            seconds = float(value)
        except (ValueError, OverflowError):
            seconds = math.nan
        if not math.isfinite(seconds) or seconds < 0:
            raise ValueError(
                f"is not a number of seconds: give one from 0 to {self.high:g}, such as 5 or 2.5"
            )
        if seconds > self.high:
            raise ValueError(
                f"is more than {self.high:g} s, so it is probably in milliseconds: give seconds"
            )
        return seconds


@dataclass(frozen=True)
class Switch:
    """Yes or no."""

    meaning: str
    unit = ""

    def read(self, value: object) -> bool:
        """Return `value`, a bool or one of the usual words, as a bool.

        :raises ValueError: with the rest of a sentence that begins with setting and value.
        """
        word = str(value).strip().lower()
        if word in ("1", "true", "yes", "on"):
            return True
        if word in ("0", "false", "no", "off"):
            return False
        raise ValueError("is neither yes nor no: give true or false, 1 or 0, yes or no, on or off")


@dataclass(frozen=True)
class FileName:
    """A file that is written."""

    meaning: str
    unit = "file"

    def read(self, value: object) -> str:
        """Return `value`, a path, as text.

        :raises ValueError: with the rest of a sentence that begins with setting and value.
        """
        if isinstance(value, os.PathLike):
            value = value.__fspath__()
        if not isinstance(value, str) or not value.strip() or value.endswith("/"):
            raise ValueError("is not a file's name: give one such as /tmp/shutdown.json")
        try:
            has_nul = b"\0" in os.fsencode(value)
        except UnicodeEncodeError:
            has_nul = True  # or a character that the file system cannot have
        if has_nul:
            raise ValueError(
                "has a character that no file's name can have: give one such as /tmp/shutdown.json"
            )
        return value


@dataclass(frozen=True)
class Path:
    """The path of a URL, as the application would see it."""

    meaning: str
    unit = "path"

    def read(self, value: object) -> str:
        """Return `value`.

        :raises ValueError: with the rest of a sentence that begins with setting and value.
        """
        if not isinstance(value, str) or not re.fullmatch(r"/[^\s?#%]*", value.strip()):
            raise ValueError("is not a path: give one that begins with a slash, such as /ready")
        return value.strip()


@dataclass(frozen=True)
class Requests:
    """Paths with or without a query, in their order; commas between them in the environment.

    There a list may be written as in the config file, too: a comma in a query needs that.
    """

    meaning: str
    unit = "path,..."

    def read(self, value: object) -> tuple[str, ...]:
        """Return `value`, a list or its text, as a tuple.

        :raises ValueError: with the rest of a sentence that begins with setting and value.
        """
        listed = value
        if isinstance(value, str):
            listed = value.split(",")
            if value.lstrip().startswith("["):
                with contextlib.suppress(ValueError, SyntaxError):  # then it is no list of paths
                    listed = ast.literal_eval(value.strip())
        if isinstance(listed, (list, tuple)) and all(isinstance(path, str) for path in listed):
            paths = tuple(path.strip() for path in listed)
            if all(re.fullmatch(r"/[^\s#]*", path) for path in paths):
                return paths
        raise ValueError(
            "is not a list of paths that begin with a slash: give some, such as /,/login in the"
            ' environment or ["/", "/login"] in the config file'
        )


@dataclass(frozen=True)
class HostPort:
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Address:
    """HOST:PORT; all addresses of the machine when the host is empty, as with gunicorn's bind."""

    meaning: str
    unit = "host:port"

    def read(self, value: object) -> HostPort:
        """Return `value`, a text, as host and port.

        :raises ValueError: with the rest of a sentence that begins with setting and value.
        """
        found = re.fullmatch(r"(\[[^][\0]+\]|[^][:/\s\0]*):(\d{1,5})", str(value).strip())
        if not found or int(found[2]) > 65535:
            raise ValueError("is not an address: give HOST:PORT, such as 0.0.0.0:8081")
        return HostPort(found[1].strip("[]") or "0.0.0.0", int(found[2]))


@dataclass(frozen=True)
class Function:
    """A function of the user's; only a config file can have one."""

    meaning: str
    parameters: str
    unit = ""

    def read(self, value: object) -> Callable[..., object]:
        """Return `value`, if it can be called.

        :raises ValueError: with the rest of a sentence that begins with setting and value.
        """
        if not callable(value):
            raise ValueError(
                f"is not a function: define one in the config file, with ({self.parameters})"
            )
        return value


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What was set, fitted into the time that the platform gives. Times are in seconds."""

    #: Everything is served as before for so long after SIGTERM: a little longer than your load
    #: balancer takes to hear of a leaving pod. [How
    #: long?](operations.md#how-long-should-the-delay-be)
    delay: float = field(
        default=5.0,
        metadata={"kind": Seconds("how long LAME_DUCK lasts; 0 = none; always 0 with --reload")},
    )
    #: What is in flight after the delay may take this long: gunicorn's graceful_timeout, fitted.
    finish: float
    #: In Kubernetes `terminationGracePeriodSeconds`, less any `preStop` sleep. The delay,
    #: gunicorn's `graceful_timeout` and 1 s for the exit are [fitted into
    #: it](shutdown.md#the-plan).
    kill_after: float | None = field(
        default=None,
        metadata={"kind": Seconds("what the platform gives from SIGTERM to SIGKILL")},
    )
    #: What `delay` and `finish` were fitted into: `kill_after`, or `ASSUMED_PERIOD`, or None when
    #: nothing was assumed.
    period: float | None
    #: A connection that has not sent a byte by then counts as idle.
    first_byte: float = field(
        default=2.0,
        metadata={"kind": Seconds("how long a connection may take to its first byte at the end")},
    )
    #: For a request that may be on its way over a long round trip.
    idle: float = field(
        default=0.0,
        metadata={"kind": Seconds("how long after the delay an idle connection is still kept")},
    )
    #: At HUP and at `max_requests`. 0 = as stock: leave first, boot afterwards, for an application
    #: that holds a port or a lock.
    overlap: float = field(
        default=10.0,
        metadata={"kind": Seconds("how long old workers serve on while the new ones boot")},
    )
    #: Fly.io and Nomad send SIGINT.
    sigint: bool = field(
        default=False,
        metadata={"kind": Switch("SIGINT begins the same shutdown as SIGTERM")},
    )
    #: Nobody has sent a request or made a connection; never later than `graceful_delay`.
    quiet: float = field(
        default=0.0,
        metadata={"kind": Seconds("ends LAME_DUCK after so long without newcomers; 0 = off")},
    )
    #: [The figures](operations.md#the-report). A regular file is replaced; a device, a pipe or
    #: /dev/stdout is written into. A name that ends in `.prom` gets
    #: [Prometheus' text format](operations.md#prometheus).
    report: str | None = field(
        default=None,
        metadata={
            "kind": FileName("where the last line's figures are written: JSON, or FILE.prom")
        },
    )
    #: In [your code](code.md#functions-of-yours).
    on_lame_duck: Callable[..., object] | None = field(
        default=None,
        metadata={"kind": Function("called when LAME_DUCK begins", "server")},
    )
    #: In [your code](code.md#functions-of-yours), with the figures of the last line.
    on_drained: Callable[..., object] | None = field(
        default=None,
        metadata={"kind": Function("called when all workers have gone", "server, report")},
    )
    #: On your own port, before the application sees it: [probes](probes.md).
    readiness_path: str | None = field(
        default=None,
        metadata={"kind": Path("where workers answer the readiness probe")},
    )
    #: On your own port, before the application sees it: [probes](probes.md).
    liveness_path: str | None = field(
        default=None,
        metadata={"kind": Path("where workers answer the liveness probe")},
    )
    #: By the main process. The paths there are `/ready` and `/live` unless set:
    #: [probes](probes.md).
    probe_bind: HostPort | None = field(
        default=None,
        metadata={"kind": Address("where both are answered also while every worker is busy")},
    )
    #: A function of the config file; it may return False, or a reason, to be not ready.
    readiness_check: Callable[..., object] | None = field(
        default=None,
        metadata={"kind": Function("whether a service that has booted is ready", "")},
    )
    #: For balancers that probe the pod themselves (ALB, GKE NEG, HAProxy, Nomad), and for
    #: [restarts in place](probes.md#a-restart-in-place).
    unready: bool = field(
        default=False,
        metadata={"kind": Switch("readiness answers 503 from SIGTERM on")},
    )
    #: Those that workers answer.
    probe_log: bool = field(
        default=False,
        metadata={"kind": Switch("probes appear in the access log")},
    )
    #: Such as `["/", "/login"]`; one that fails, fails the boot: [probes](probes.md).
    warmup: tuple[str, ...] = field(
        default=(),
        metadata={"kind": Requests("what each worker asks its application before it serves")},
    )
    #: False for endless threads that nobody can change: [your
    #: code](code.md#threads-executors-atexit).
    threads: bool = field(
        default=True,
        metadata={"kind": Switch("the exit waits for threads and executors, as Python does")},
    )
    #: Sentences to be logged at the start.
    warnings: tuple[str, ...] = ()
    #: gunicorn's --reload: a developer at the terminal, who waits for nobody.
    reload: bool = False

    @property
    def needed(self) -> int:
        """The whole seconds from SIGTERM to SIGKILL that hold all of it."""
        return whole(self.delay + self.finish + MARGIN)

    @property
    def probe_paths(self) -> tuple[str, str]:
        """Where `probe_bind` answers readiness and liveness."""
        return self.readiness_path or READINESS_PATH, self.liveness_path or LIVENESS_PATH

    def plan(self) -> str:
        """Return the line that tells at the start how a shutdown will go."""
        end = self.delay + self.finish
        line = (
            f"shutdown plan: accept {self.delay:.1f} s, finish within {self.finish:.1f} s, "
            f"exit by {end:.1f} s"
        )
        if self.period is None:
            line += f": needs terminationGracePeriodSeconds of {self.needed} or more"
        else:
            line += f" of {self.period:.1f} s"
        if self.reload:
            line += " (no delay with --reload)"
        return line


#: All settings, by their names in the config file. In capitals they are the environment's names.
TABLE: Mapping[str, dataclasses.Field[Any]] = MappingProxyType(
    {PREFIX + f.name: f for f in dataclasses.fields(Settings) if "kind" in f.metadata}
)

#: Those that are functions: any other name of one is the user's own, unless it is much like these.
_FUNCTIONS = [name for name, row in TABLE.items() if isinstance(row.metadata["kind"], Function)]


def config_names(cfg: Any) -> Mapping[str, object]:
    """Return the names of the config file that gunicorn loaded for `cfg`, {} when there is none.

    gunicorn keeps a file as ``sys.modules["__config__"]``, also one that it found by itself, and
    ``-c python:NAME`` as NAME; `cfg.config` holds the location, whether it was given on the
    command line or in GUNICORN_CMD_ARGS. A file is loaded anew by each HUP, a module is not.
    `cfg.config` must not be compared with the file's path: unless the command line gave it, a
    file may assign a `config` of its own to it. So in a process that ran a second application,
    the first one's file would be taken for an embedded one's, which has none; gunicorn's own
    command never does that.
    """
    location = str(cfg.config)
    is_module = location.startswith("python:")
    module = sys.modules.get(location.removeprefix("python:") if is_module else "__config__")
    return {} if module is None else vars(module)


def read(
    cfg: Any,
    environ: Mapping[str, str],
    names: Mapping[str, object] | None = None,
    options: Mapping[str, str] = MappingProxyType({}),
) -> Settings:
    """Read, check and fit the settings of one loaded gunicorn configuration.

    :param cfg: gunicorn's `Config`; a HUP makes a new one, so read again then.
    :param environ: the arbiter's environment, in which gunicorn's ``-e`` has its place too.
    :param names: the config file's names; `config_names` when not given.
    :param options: a command's own options, by the names in `TABLE`; they win over the environment.
    :raises SettingsError: a value out of bounds, a wrong name, or a `graceful_kill_after` that
        leaves no time.
    """
    if names is None:
        names = config_names(cfg)
    warnings = [*_misspelt_in_file(cfg, names), *_unknown_in_environment(cfg, environ)]
    values: dict[str, Any] = {row.name: row.default for row in TABLE.values()}
    given: dict[str, str] = {}  # how the user wrote each setting, to begin a sentence with
    for name, row in TABLE.items():
        variable = name.upper()
        # Kubernetes manifests and compose files cannot unset a variable, only empty it.
        value: object = environ.get(variable, "").strip() or None
        if name in options:
            value = options[name]
            given[name] = f"--{name.replace('_', '-')} {value}"
        elif value is not None:
            given[name] = f"{variable}={value} in the environment"
        else:
            value = names.get(name)
            given[name] = f"{name} = {value!r} in the config file"
        if value is None:
            continue
        try:
            values[row.name] = row.metadata["kind"].read(value)
        except ValueError as error:
            raise SettingsError(f"{given[name]} {error}") from None

    _judge_paths(values, given)
    if values["readiness_path"] is None and values["probe_bind"] is None:
        for name in ("readiness_check", "unready"):
            if values[name]:
                warnings.append(
                    f"{PREFIX}{name} has no effect: nobody answers a readiness probe without"
                    " graceful_probe_bind or graceful_readiness_path"
                )
    reload = bool(cfg.reload)
    if reload:
        values["delay"] = 0.0
    kill_after: float | None = values["kill_after"]
    finish, period, said = _fit(cfg, values["delay"], kill_after, given["graceful_kill_after"])
    warnings += said
    if not reload:
        warnings += _contradictions(values, given, finish)
    return Settings(**values, finish=finish, period=period, warnings=tuple(warnings), reload=reload)


def _contradictions(
    values: Mapping[str, Any], given: Mapping[str, str], finish: float
) -> list[str]:
    """Return a sentence for each time that another one leaves without effect."""
    delay, quiet = values["delay"], values["quiet"]
    found = []
    if quiet and quiet >= delay:
        found.append(
            f"{given['graceful_quiet']} has no effect, because the delay of {delay:g} s is over "
            "before: lower it, or raise graceful_delay above it"
        )
    for name in ("first_byte", "idle"):
        # Its default was chosen by nobody.
        if values[name] > finish and values[name] != TABLE[PREFIX + name].default:
            found.append(
                f"{given[PREFIX + name]} is cut short, because the deadline comes {finish:g} s "
                "after the delay: lower it, or raise graceful_timeout (and graceful_kill_after)"
            )
    return found


def _judge_paths(values: Mapping[str, Any], given: Mapping[str, str]) -> None:
    ready, live = values["readiness_path"], values["liveness_path"]
    if values["probe_bind"] is not None:
        ready, live = ready or READINESS_PATH, live or LIVENESS_PATH
    if ready is None or ready != live:
        return
    one, other = "graceful_liveness_path", "readiness"
    if values["liveness_path"] is None:
        one, other = "graceful_readiness_path", "liveness"
    raise SettingsError(
        f"{given[one]} is the {other} path too: give each its own, for a service that is not ready "
        "is not to be restarted"
    )


def _fit(
    cfg: Any, delay: float, kill_after: float | None, given: str
) -> tuple[float, float | None, list[str]]:
    """Return the time to finish, what it was fitted into, and what there is to say about it.

    A graceful_timeout that the user chose is cut only where a figure was named for the whole:
    real services drain for 85 to 900 s, and know why.
    """
    finish = float(cfg.graceful_timeout)
    chosen = cfg.graceful_timeout != cfg.settings["graceful_timeout"].default
    needed = whole(delay + finish + MARGIN)
    period = kill_after
    if period is None:
        if chosen:
            return finish, None, []
        if ASSUMED_PERIOD - delay - MARGIN <= 1.0:
            warning = (
                f"a graceful_delay of {delay:g} s leaves no time to finish requests in the "
                f"{ASSUMED_PERIOD:g} s that Kubernetes gives by default: lower it, or set "
                f"terminationGracePeriodSeconds to {needed} or more and graceful_kill_after to "
                "the same"
            )
            return finish, None, [warning]
        period = ASSUMED_PERIOD

    # Rounded, because 4.4 - 3.4 - 1 leaves 0.0000000000000004 s otherwise.
    left = round(period - delay - MARGIN, 3)
    if left <= 0:
        fix = f"raise it (and the platform's own figure) above {delay + MARGIN:g} s"
        if period > MARGIN:
            fix += f", or lower graceful_delay below {period - MARGIN:g} s"
        raise SettingsError(
            f"{given} leaves no time to finish requests after the delay of {delay:g} s and "
            f"{MARGIN:g} s for the exit: {fix}"
        )
    if finish <= left:
        return finish, period, []
    if not chosen:
        return left, period, []
    warning = (
        f"graceful_timeout = {cfg.graceful_timeout} is cut to {left:g} s, because {given} has to "
        f"hold the delay of {delay:g} s and {MARGIN:g} s for the exit too: raise "
        f"graceful_kill_after (and the platform's own figure) to {needed}, or lower "
        "graceful_timeout"
    )
    return left, period, [warning]


def _misspelt_in_file(cfg: Any, names: Mapping[str, object]) -> list[str]:
    """Return a warning for each name in the config file that was probably meant as a setting.

    gunicorn ignores names that it does not know without a word, and a shutdown that is not as
    configured shows only at a deploy.

    :raises SettingsError: for an unknown name with our prefix.
    """
    known = [*TABLE, *cfg.settings]
    # Some options are called otherwise on the command line. `preload` is `preload_app` here, and
    # not `reload`, which is spelt more like it.
    options = {
        option.lstrip("-").replace("-", "_"): name
        for name, setting in cfg.settings.items()
        for option in setting.cli or ()
    }
    warnings = []
    for name, value in names.items():
        if name in known or name.startswith("_") or name.isupper():
            continue
        if callable(value) and not _nearest(name, _FUNCTIONS):
            continue
        if isinstance(value, ModuleType):
            continue
        if name.startswith(PREFIX):
            # `graceful_timeout_str = os.getenv(...); graceful_timeout = int(graceful_timeout_str)`
            # stands in thousands of files, copied from one well-known image: it is no mistake.
            if any(name.startswith(f"{other}_") for other in names if other in known):
                continue
            right = [other for other in known if other.startswith(PREFIX)]
            raise SettingsError(
                f"{name} = {value!r} in the config file is not a setting: did you mean "
                f"{difflib.get_close_matches(name, right, 1, 0.0)[0]}? (If it is a variable of "
                "your own, begin its name with an underscore.)"
            )
        near = _nearest(name.lower(), known)
        option = options.get(name)
        # `access_logfile` is an option's name; `log_file` is one too, and often the user's own.
        if near is None and option is not None and _is_longer(name, option):
            near = option
        if near is None:
            continue
        near = option or near
        # `log_level = os.getenv(...); loglevel = log_level` is no mistake either.
        if near not in names:
            warnings.append(
                f"{name} in the config file is not a setting, gunicorn ignores it: did you mean "
                f"{near}?"
            )
    return warnings


def _unknown_in_environment(cfg: Any, environ: Mapping[str, str]) -> list[str]:
    """Return one warning for all variables that look like ours and are not, or none.

    Never an error: Kubernetes injects the addresses of Services, and a Service called
    graceful-something gives them our prefix.
    """
    right = [name.upper() for name in TABLE]
    found = []
    is_prefixed = False
    for variable, value in sorted(environ.items()):
        if variable in right or not value.strip():
            continue
        near = _nearest(variable.upper(), right)
        if not variable.startswith(PREFIX.upper()):
            if near is not None:
                found.append(f"{variable} (did you mean {near}?)")
            continue
        gunicorns = cfg.settings.get(variable.lower())
        if gunicorns is not None:
            # Many config files read GRACEFUL_TIMEOUT themselves; then it has had its effect.
            if value.strip() == str(gunicorns.get()):
                continue
            found.append(f"{variable} (gunicorn's: use {gunicorns.cli[0]} or the config file)")
        elif near is not None:
            found.append(f"{variable} (did you mean {near}?)")
        else:
            found.append(variable)
        is_prefixed = True
    if not found:
        return []
    warning = f"ignored in the environment: {', '.join(found)}"
    if is_prefixed:
        warning += (
            "; Kubernetes itself sets such names for a Service called graceful-something, and "
            "enableServiceLinks: false in the pod's spec stops that"
        )
    return [warning]


def _is_longer(name: str, setting: str) -> bool:
    return name.replace("_", "").startswith(setting)


def _nearest(name: str, known: list[str]) -> str | None:
    """Return the known name that `name` is a misspelling of, or None."""
    return next(iter(difflib.get_close_matches(name, known, 1, ALIKE)), None)


def whole(seconds: float) -> int:
    """Return the whole seconds that hold `seconds`, which carries errors of float arithmetic."""
    return math.ceil(round(seconds, 3))
