"""What gunicorn would run with here, and the command of a pod that follows from it.

gunicorn itself loads the configuration, in a process of its own that starts no server: a config
file may import the application, print, or end the process. What only one server at a time can have
is then given to each pod anew: the address of probes, the pidfile, the report.

What may be changed here: what a pod needs of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gracefulworker.tools.rehearse.pods import why

if TYPE_CHECKING:
    from gracefulworker.settings import Settings

#: What is rehearsed when nobody names a worker class.
DEFAULT_WORKER = "gracefulworker.gthread"

#: gunicorn's settings that a reader of the result wants to know.
SHOWN = ("workers", "threads", "keepalive", "timeout", "graceful_timeout")

#: Seconds that a config file may take to run, and lines of what was said about one that cannot be.
PATIENCE = 60.0
LINES = 15


@dataclass(frozen=True)
class Configured:
    """A configuration, as far as a rehearsal is concerned with it."""

    worker: str  #: the worker class's name
    is_ours: bool = False
    worker_options: list[str] | tuple[str, ...] = ()  #: gunicorn's options that name it
    raw_env: list[str] | tuple[str, ...] = ()  #: gunicorn's --env
    pidfile: bool = False
    report: bool = False
    #: Where our workers answer the readiness probe, and whether that is at an address of its own.
    ready_path: str | None = None
    probe_bind: bool = False
    #: What a shutdown depends on, by name: gunicorn's settings and, of our workers, ours.
    settings: dict[str, str] = field(default_factory=dict)
    trouble: str | None = None  #: why there can be no rehearsal: a sentence

    def command(self, app: str, options: tuple[str, ...]) -> tuple[str, ...]:
        """The command of a pod, as `Pod.start` takes it; its log is read here."""
        own: list[str] = []
        if self.pidfile:
            own += ["--pid", "{files}/pid"]
        # gunicorn's --env wins over the environment, and on the command line over the file.
        env = list(self.raw_env)
        if self.probe_bind:
            env.append("GRACEFUL_PROBE_BIND={probe_bind}")
        if self.report:
            env.append("GRACEFUL_REPORT={files}/report")
        for variable in env:
            own += ["--env", variable]
        read_here = ("-b", "{bind}", "--log-level", "info", "--error-logfile", "-")
        return (
            *(sys.executable, "-m", "gunicorn"),
            *options,
            *without_control_socket(),
            *self.worker_options,
            *read_here,
            *own,
            app,
        )


def without_control_socket() -> tuple[str, ...]:
    """gunicorn's option, since 25: else each takes the one of the service that the user runs."""
    return ("--no-control-socket",) if find_spec("gunicorn.ctl") else ()


def load(app: str, options: tuple[str, ...], worker: str | None) -> Configured:
    """What gunicorn would run with.

    :param options: gunicorn's own.
    :param worker: the worker class, where that of the configuration is not wanted.
    :raises ValueError: it would not start, or cannot be rehearsed; the argument says why.
    """
    given = ("-k", worker) if worker else ()
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, *options, *given, app],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the config file has not run to its end in {PATIENCE:g} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = why(lines, is_over=True)
        sentence = f"gunicorn refuses this configuration{reason and f': {reason}'}"
        raise ValueError("\n".join([sentence, *lines[-LINES:]]))
    found = Configured(**json.loads(done.stdout))
    if found.trouble:
        raise ValueError(found.trouble)
    return found


# In the other process


def _main() -> None:
    out = os.dup(1)
    os.dup2(2, 1)  # what a config file prints
    found = _load()
    with open(out, "w", encoding="utf-8") as stream:
        json.dump(asdict(found), stream)


def _load() -> Configured:
    import gunicorn.config
    from gunicorn.app.wsgiapp import WSGIApplication

    from gracefulworker import settings
    from gracefulworker.workers.base import GracefulWorker

    gunicorn.config.WorkerClass.default = DEFAULT_WORKER
    cfg = WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn").cfg
    for path in (cfg.pythonpath or "").split(","):  # as Application.run does
        sys.path.insert(0, os.path.abspath(path))
    os.environ.update(cfg.env)
    name = cfg.worker_class_str
    if cfg.daemon:
        return Configured(
            name, trouble="daemon = True takes a pod away, as it would a container: leave it out"
        )
    if cfg.is_ssl:
        return Configured(
            name,
            trouble="certfile and keyfile are set, and the clients here speak plain HTTP: empty"
            " them, as behind a proxy that ends TLS: -- --certfile= --keyfile=",
        )
    try:
        # Not through Config.__getattr__, which makes an AttributeError into the name itself.
        worker = type(cfg).worker_class.fget(cfg)
    except (RuntimeError, AttributeError) as error:
        reason = str(error).strip(" \n]").splitlines()[-1]
        if isinstance(error, RuntimeError) and not reason.endswith("not found"):
            return Configured(name, trouble=f"the worker class {name} cannot be loaded: {reason}")
        return Configured(
            name,
            trouble=f"there is no worker class {name} ({reason}): name one of sync, gthread and"
            " gevent, one of gracefulworker.sync, .gthread, .gevent and .uvicorn, or MODULE.CLASS",
        )
    chosen = cfg.settings["worker_class"].get()
    is_ours = issubclass(worker, GracefulWorker)
    read = None
    try:
        read = settings.read(cfg, os.environ)
    except settings.SettingsError as error:
        if is_ours:
            return Configured(name, trouble=str(error))
    if read is not None and is_ours and read.reload:
        return Configured(name, trouble="reload is on, and there is no delay with it: leave it out")
    probe_bind = read is not None and read.probe_bind is not None
    ready_path = read.readiness_path if read is not None and is_ours else None
    if read is not None and is_ours and probe_bind:
        ready_path = read.probe_paths[0]
    return Configured(
        worker=name,
        is_ours=is_ours,
        worker_options=["-k", name] if isinstance(chosen, str) else [],
        raw_env=list(cfg.raw_env),
        pidfile=cfg.pidfile is not None,
        report=read is not None and read.report is not None,
        ready_path=ready_path,
        probe_bind=probe_bind,
        settings=_shown(cfg, read if is_ours else None),
    )


def _shown(cfg: Any, ours: Settings | None) -> dict[str, str]:
    """The figures and switches; no path or address, which is each pod's own.

    :param ours: our settings, of which the delay is shown and what is not as by default.
    """
    found = {name: str(cfg.settings[name].get()) for name in SHOWN}
    for setting in fields(ours) if ours is not None else ():
        value = getattr(ours, setting.name)
        if not isinstance(value, (bool, float)) or "kind" not in setting.metadata:
            continue
        if setting.name == "delay" or value != setting.default:
            shown = str(value) if isinstance(value, bool) else f"{value:g}"
            found[f"graceful_{setting.name}"] = shown
    return found


if __name__ == "__main__":
    _main()
