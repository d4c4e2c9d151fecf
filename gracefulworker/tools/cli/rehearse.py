"""`gracefulworker rehearse`: see what a rolling update does to the requests of an application.

What may be changed here: options, each of them a field of `rehearse.plan.Plan`. The exit status is
0 if our side lost nothing, 1 if it lost something (or a pod had to be killed, or failed), 2 if
there was nothing to judge, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gracefulworker.tools.cli.rehearse_common import (
    INTERRUPTED,
    LOST,
    UNUSABLE,
    asked,
    command_line,
    header,
    make_room,
    number,
    path_of,
    plan_of,
    stop_on_signals,
    tell_trouble,
    write,
)

if TYPE_CHECKING:
    from rich.console import Console

    from gracefulworker.tools.rehearse.configured import Configured
    from gracefulworker.tools.rehearse.plan import Plan
    from gracefulworker.tools.rehearse.rollout import Result, Service

#: What a rollout tells: the load's begin and end, and of each pod: the new one is ready; the old
#: one gets SIGTERM, is no endpoint any more, has exited.
EVENTS, EVENTS_PER_POD = 2, 4

#: Seconds between two counts on the progress bar.
COUNT_PERIOD = 0.2

#: Options that say how pods are started here, where a workload in a cluster has its own.
HERE = (
    *("worker_class", "against", "pods", "lag", "grace", "ready_path", "ready_within"),
    *("service", "passed_on"),
)

#: Options that only a workload in a cluster has.
IN_A_CLUSTER = ("url", "namespace", "context", "only_watch", "yes")

DESCRIPTION = """\
Run an application as a few pods behind a Service, keep it busy, and replace the pods one after
another, as Kubernetes does. Each request's ending is noted. What comes after "--" is given to
gunicorn as it is.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    from gracefulworker.tools.cli import rehearse_kubernetes

    parser.usage = (
        "%(prog)s APP [options] [-- gunicorn options]\n"
        "       %(prog)s --kubernetes deployment/NAME --url URL [options]"
    )
    parser.description = DESCRIPTION
    parser.add_argument(
        "app", nargs="?", metavar="APP", help="as given to gunicorn: MODULE:CALLABLE"
    )
    parser.add_argument(
        "-k",
        "--worker-class",
        metavar="NAME",
        help="the worker class on our side (default: that of gunicorn's config file, else"
        " gracefulworker.gthread)",
    )
    parser.add_argument(
        "--against",
        metavar="NAME",
        help='rehearse this worker class too; "stock" is the stock worker of the same engine',
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the picture there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was noted there")

    rollout = parser.add_argument_group("the rollout (times in seconds)")
    number(rollout, "--pods", int, 3, 1, 10, "how many there are")
    number(rollout, "--lag", float, 3.0, 0, 60, "from SIGTERM until a pod is chosen no more")
    number(
        rollout,
        "--warm-up",
        float,
        2.0,
        0,
        60,
        "of load, or more, before the first pod is replaced",
    )
    number(rollout, "--grace", float, 30.0, 0, 900, "from SIGTERM to SIGKILL")
    rollout.add_argument(
        "--ready-path",
        type=path_of,
        metavar="PATH",
        help="the readiness probe's (default: as graceful_readiness_path and graceful_probe_bind"
        " say, else /)",
    )
    number(rollout, "--ready-within", float, 30.0, 0.1, 600, "until a new pod must be ready")
    rollout.add_argument(
        "--service",
        choices=("balancer", "iptables"),
        default="balancer",
        help="a TCP balancer in this process, or a namespace for each pod and iptables rules as"
        " kube-proxy writes them, which needs Linux and root (default: %(default)s)",
    )

    rehearse_kubernetes.configure(parser)

    load = parser.add_argument_group("the load")
    number(load, "--rate", float, 20.0, 0.1, 500, "requests a second on fresh connections")
    number(load, "--connections", int, 30, 0, 2000, "keep-alive connections")
    number(
        load,
        "--idle-limit",
        float,
        1.5,
        0,
        3600,
        "seconds after which a client uses an idle connection no more: less than the delay, and"
        " than gunicorn's --keep-alive",
    )
    number(load, "--timeout", float, 10.0, 0.1, 300, "seconds that an answer may take")
    number(load, "--seed", int, 1, 0, 2**31, "of the clients' schedule")
    paths = load.add_mutually_exclusive_group()
    paths.add_argument("--path", type=path_of, default="/", help="what is asked for (default: /)")
    paths.add_argument(
        "--requests",
        type=Path,
        metavar="FILE",
        help="what is asked for instead: a METHOD, a path and perhaps a body on each line; a body"
        " is sent as JSON or as a form if it looks like one",
    )
    load.add_argument(
        "--header",
        action="append",
        type=header,
        default=[],
        metavar="'NAME: VALUE'",
        help="sent with each request, such as 'Host: shop.example' (repeatable)",
    )
    load.add_argument(
        "--slow", type=path_of, metavar="PATH", help="a path whose answer takes a second or more"
    )
    load.add_argument(
        "--stream",
        type=path_of,
        metavar="PATH",
        help="a path whose answer comes in pieces, also without an end",
    )
    load.add_argument(
        "--upload", type=path_of, metavar="PATH", help="a path that takes a POST of 64 KiB"
    )
    load.add_argument(
        "--any-body",
        action="store_true",
        help="do not compare the bodies of answers with those before the rollout (nor are those"
        " that differ by themselves, or of a single pod)",
    )
    parser.set_defaults(passed_on=())
    here = {name: parser.get_default(name) for name in HERE}
    parser.set_defaults(defaults_here=here)


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.app) == bool(arguments.kubernetes):
        print(
            "gracefulworker rehearse: give the application, as MODULE:CALLABLE, or a workload with"
            " --kubernetes deployment/NAME",
            file=sys.stderr,
        )
        return UNUSABLE
    if not arguments.kubernetes:
        for option in IN_A_CLUSTER:
            if getattr(arguments, option):
                written = f"--{option.replace('_', '-')}"
                print(f"gracefulworker rehearse: {written} goes with --kubernetes", file=sys.stderr)
                return UNUSABLE
    missing = [name for name in ("rich", "h11") if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"gracefulworker rehearse needs {' and '.join(missing)}:"
            " pip install 'gracefulworker[rehearse]'",
            file=sys.stderr,
        )
        return UNUSABLE
    if arguments.kubernetes:
        from gracefulworker.tools.cli import rehearse_kubernetes

        return rehearse_kubernetes.run(arguments)
    try:
        try:
            plan, sides = plan_of(arguments), _sides(arguments)
            make_room(arguments.connections)
        except (OSError, ValueError) as error:
            print(f"gracefulworker rehearse: {error}", file=sys.stderr)
            return UNUSABLE
        return asyncio.run(_main(arguments, plan, sides))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nInterrupted; all pods are stopped.", file=sys.stderr)
        return INTERRUPTED


async def _main(arguments: argparse.Namespace, plan: Plan, sides: list[Configured]) -> int:
    from rich.console import Console

    from gracefulworker.tools import engines
    from gracefulworker.tools.rehearse import report
    from gracefulworker.tools.rehearse.clients import Unusable
    from gracefulworker.tools.rehearse.configured import DEFAULT_WORKER
    from gracefulworker.tools.rehearse.kubeproxy import NoNetwork
    from gracefulworker.tools.rehearse.pods import NotReady

    stop_on_signals()
    console = Console(highlight=False)
    if arguments.html:
        console.print("The picture will be here:", arguments.html.resolve(), soft_wrap=True)
    console.print(
        f"This sends real requests ({asked(plan)}) to your application, which is started here with"
        " this environment: its database and whatever else it is connected to will see them.",
        markup=False,
    )
    ours = sides[0]
    if not (ours.is_ours or arguments.worker_class or arguments.against):
        beside = engines.ours_beside(ours.worker) or DEFAULT_WORKER
        console.print(
            f"The configuration says {ours.worker}, which is no worker class of gracefulworker;"
            f" to see them side by side: -k {beside} --against {ours.worker}",
            markup=False,
        )
    results: list[Result] = []
    trouble = ""
    try:
        for side in sides:
            own = _plan_of(side, plan, arguments.ready_path)
            results.append(await _one(arguments, own, side.worker, console))
    except (NotReady, Unusable, NoNetwork) as error:
        trouble = str(error)
    written = True
    if results:
        report.show(console, results)
        data = report.as_json(results, command_line(sys.argv[1:]))
        written = write(arguments, data, console)
    if trouble:
        tell_trouble(console, f"Cannot rehearse {sides[len(results)].worker}", trouble)
    if trouble or not written:
        return UNUSABLE
    return 0 if results[0].clean else LOST


def _plan_of(side: Configured, plan: Plan, ready_path: str | None) -> Plan:
    """The plan for one worker class: the same but for the pods' command and their probe."""
    return replace(
        plan,
        command=side.command(plan.app, plan.options),
        settings=tuple(side.settings.items()),
        ready_path=ready_path or side.ready_path or "/",
        ready_at_probes=not ready_path and side.is_ours and side.probe_bind,
    )


async def _one(arguments: argparse.Namespace, plan: Plan, worker: str, console: Console) -> Result:
    """The rollout of one worker class, with its progress on the console."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from gracefulworker.tools.rehearse.journal import Journal
    from gracefulworker.tools.rehearse.rollout import rehearse

    journal = Journal()
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(worker, total=EVENTS + EVENTS_PER_POD * plan.pods)

        def tell(event: str) -> None:
            progress.console.print(f"{worker}: {event}", markup=False)
            progress.advance(bar)

        async def count() -> None:
            while True:
                await asyncio.sleep(COUNT_PERIOD)
                lost = f"{journal.asked} requests, {journal.lost} lost"
                progress.update(bar, description=f"{worker}: {lost}")

        counter = asyncio.ensure_future(count())
        try:
            return await rehearse(plan, worker, _service(arguments), journal, tell)
        finally:
            counter.cancel()


def _sides(arguments: argparse.Namespace) -> list[Configured]:
    """Our side, and what it is held against: each as gunicorn would start it.

    :raises ValueError: one of them would not start, or nobody knows which worker class is stock
        beside ours.
    """
    from gracefulworker.tools import engines
    from gracefulworker.tools.rehearse import configured

    options = tuple(arguments.passed_on)
    ours = configured.load(arguments.app, options, arguments.worker_class)
    against = arguments.against
    if not against:
        return [ours]
    if against == "stock":
        worker = ours.worker
        if not ours.is_ours:
            beside = engines.ours_beside(worker)
            raise ValueError(
                f"--against stock: {worker} is no worker class of gracefulworker: give one with -k,"
                f" such as {beside or 'gracefulworker.gthread'}"
            )
        engine = "gthread" if worker == "gracefulworker" else re.split("[.#]", worker)[-1]
        if engine not in engines.STOCK:
            raise ValueError(
                f"--against stock: {worker} does not say by its name which class is stock beside"
                " it: name that, such as --against gthread"
            )
        against = engines.STOCK[engine]
    return [ours, configured.load(arguments.app, options, against)]


def _service(arguments: argparse.Namespace) -> Service:
    if arguments.service == "iptables":
        from gracefulworker.tools.rehearse.kubeproxy import KubeProxy

        return KubeProxy()
    from gracefulworker.tools.rehearse.balancer import Balancer

    return Balancer(arguments.seed)
