"""`gracefulworker rehearse --kubernetes`: the same for what runs in a cluster.

What may be changed here: options, and what is asked before anything happens. The exit status is
that of `rehearse`; 2 also where the rollout does not come to its end.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from gracefulworker.tools.cli import rehearse_common as common

if TYPE_CHECKING:
    from gracefulworker.tools.rehearse.kubectl import Kubectl
    from gracefulworker.tools.rehearse.kubernetes import Target
    from gracefulworker.tools.rehearse.plan import Plan
    from gracefulworker.tools.rehearse.wire import Direct


def configure(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "what runs in a cluster, by your own kubectl",
        "Load on its URL, kubectl rollout restart, until the last old pod has gone. The rate, the"
        " paths and so on are as below; what runs in the pods may be anything.",
    )
    group.add_argument(
        "--kubernetes", metavar="WORKLOAD", help="deployment/NAME or statefulset/NAME"
    )
    group.add_argument(
        "--url", help="where its users reach it: http://HOST[:PORT][/PATH], https too"
    )
    group.add_argument("-n", "--namespace", help="its namespace (default: kubectl's)")
    group.add_argument("--context", help="kubectl's context (default: the current one)")
    group.add_argument(
        "--only-watch",
        action="store_true",
        help="restart nothing: wait for a rollout that somebody else begins",
    )
    group.add_argument("--yes", action="store_true", help="do not ask before it begins")
    common.number(
        group, "--within", float, 600.0, 1, 7200, "seconds that the rollout, or its begin, may take"
    )


def run(arguments: argparse.Namespace) -> int:
    from gracefulworker.tools.rehearse import kubernetes
    from gracefulworker.tools.rehearse.kubectl import Kubectl, NoCluster
    from gracefulworker.tools.rehearse.kubernetes_events import workload

    try:
        try:
            name = workload(arguments.kubernetes)
            server, plan = _plan(arguments)
            common.make_room(arguments.connections)
            kubectl = Kubectl(arguments.context, arguments.namespace)
            target = kubernetes.examine(
                kubectl, name, arguments.context, only_watch=arguments.only_watch
            )
            plan = replace(
                plan,
                app=name,
                pods=target.replicas,
                cluster={
                    "workload": name,
                    "namespace": target.namespace,
                    "context": target.context,
                    "url": arguments.url,
                    "Kubernetes": target.version,
                },
            )
            if not _is_wanted(arguments, plan, target):
                print("Nothing was done.", file=sys.stderr)
                return common.UNUSABLE
        except (NoCluster, OSError, ValueError) as error:
            print(f"gracefulworker rehearse: {error}", file=sys.stderr)
            return common.UNUSABLE
        kubectl = Kubectl(arguments.context, target.namespace)
        return asyncio.run(_main(arguments, plan, target, kubectl, server))
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was done.", file=sys.stderr)
        return common.INTERRUPTED


def _plan(arguments: argparse.Namespace) -> tuple[Direct, Plan]:
    """Where the load goes, and the plan.

    :raises ValueError: something does not fit; the argument is a sentence.
    :raises OSError: as `rehearse.plan_of`.
    """
    from gracefulworker.tools.rehearse import kubernetes

    if not arguments.url:
        raise ValueError(
            "say with --url where the users of it reach it, such as http://shop.example/"
        )
    for option, default in arguments.defaults_here.items():
        if (getattr(arguments, option) or None) != (default or None):
            written = "--" if option == "passed_on" else f"--{option.replace('_', '-')}"
            raise ValueError(f"leave {written} out: what runs in the cluster decides it")
    server, host, path = kubernetes.server(arguments.url)
    if path.strip("/"):
        if arguments.path != "/" or arguments.requests:
            raise ValueError("give the path in --url or with --path or --requests, not both")
        try:
            arguments.path = common.path_of(path)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--url: {error}") from None
    plan = common.plan_of(arguments)
    if not any(name.lower() == "host" for name, _ in plan.headers):
        plan = replace(plan, headers=(("Host", host), *plan.headers))
    # Two pods may say different things, and nobody knows which one is asked.
    return server, replace(plan, same_body=False)


def _is_wanted(arguments: argparse.Namespace, plan: Plan, target: Target) -> bool:
    """Say what will happen, and ask.

    :raises ValueError: there is nobody to be asked.
    """
    from gracefulworker.tools.rehearse.clients import total_rate

    pods = f"{target.workload} ({target.replicas} pods)"
    where = f"In the context {target.context}, namespace {target.namespace}:"
    if arguments.only_watch:
        print(f"{where} {pods} is watched, and restarted by somebody else.")
    else:
        print(f"{where} {pods} will be restarted, by kubectl rollout restart.")
    print(
        f"About {total_rate(plan):.0f} requests a second ({common.asked(plan)}) go to"
        f" {arguments.url}, until the last old pod has gone."
    )
    if arguments.yes:
        return True
    if not sys.stdin.isatty():
        raise ValueError("nobody can be asked here: say --yes")
    return input("Go on? [y/N] ").strip().lower() in ("y", "yes")


async def _main(
    arguments: argparse.Namespace, plan: Plan, target: Target, kubectl: Kubectl, server: Direct
) -> int:
    from rich.console import Console

    from gracefulworker.tools.rehearse import kubernetes_report, report
    from gracefulworker.tools.rehearse.clients import Unusable
    from gracefulworker.tools.rehearse.journal import Journal
    from gracefulworker.tools.rehearse.kubectl import NoCluster
    from gracefulworker.tools.rehearse.kubernetes import ClusterRollout

    common.stop_on_signals()
    console = Console(highlight=False)
    if arguments.html:
        console.print("The picture will be here:", arguments.html.resolve(), soft_wrap=True)

    def tell(event: str) -> None:
        console.print(event, markup=False)

    rollout = ClusterRollout(plan, target, kubectl, server, Journal(), tell)
    status, trouble = 0, ""
    try:
        await rollout.run(arguments.within, only_watch=arguments.only_watch)
    except asyncio.CancelledError:
        status = common.INTERRUPTED
    except (NoCluster, Unusable) as error:
        status, trouble = common.UNUSABLE, str(error)
    finally:
        await rollout.clean_up()
    if result := rollout.result:
        kubernetes_report.show(console, result)
        data = report.as_json([result], common.command_line(sys.argv[1:]))
        written = common.write(arguments, data, console)
        ended = 0 if result.clean else common.LOST
        status = status or (ended if written else common.UNUSABLE)
    if trouble:
        what = "Not to its end" if result else "Cannot rehearse"
        common.tell_trouble(console, what, trouble)
    if status == common.INTERRUPTED:
        console.print(f"Interrupted; {target.workload} is left to itself.", style="bold")
    return status
