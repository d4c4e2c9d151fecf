"""What came out: as a table for a terminal, and as JSON.

What may be changed here: the looks. Figures come from `rollout.Result` and from the journal.
"""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

import gracefulworker
from gracefulworker.tools.rehearse import clients, journal
from gracefulworker.tools.rehearse.clients import ENDLESS
from gracefulworker.tools.rehearse.journal import Ending, Journal, Track
from gracefulworker.tools.rehearse.plan import Plan
from gracefulworker.tools.rehearse.pods import Pod
from gracefulworker.tools.rehearse.rollout import Result

#: What the JSON is; the number counts changes that break a reader.
SCHEMA = "gracefulworker-rehearsal/1"

#: What the columns of a pod's end mean.
COLUMNS = (
    "exit: seconds after SIGTERM; overtime: seconds from the last request, or the delay's end, to"
    " the exit; idle closed: connections closed unannounced (in brackets those idle since before"
    " SIGTERM)"
)

#: Endings that are no losses.
NO_LOSS = (Ending.OK.value, Ending.LEFT.value)


class Outcome(Protocol):
    """What came of a rollout, here or in a cluster."""

    @property
    def worker(self) -> str: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def journal(self) -> Journal: ...
    @property
    def load(self) -> tuple[float, float]: ...
    @property
    def clean(self) -> bool: ...
    def facts(self) -> list[dict[str, Any]]:
        """What was noted of each pod."""
        ...


def show(console: Console, results: list[Result]) -> None:
    """Print the tables: losses by kind of client, and the end of each pod."""
    console.print(clients_table(results))
    for result in results:
        console.print(_pods_table(result, is_last=result is results[-1]))
    for result in results:
        console.print(verdict(result))
        if line := streams(result):
            console.print(line, markup=False)
        for line in result.failed_pods[0].tail() if result.failed_pods else ():
            console.print(line, markup=False, soft_wrap=True)


def verdict(result: Result) -> Text:
    """One line: what was lost of how many, and what else was not as it should be."""
    journal = result.journal
    text = f"{result.worker} lost {journal.lost} of {journal.asked} requests"
    if journal.lost:
        text += f": {in_words(journal.endings())}"
    if result.lost_before:
        text += f"; {result.lost_before} of them before any pod got SIGTERM"
    killed = sum("sigkill" in pod.marks for pod in result.old_pods)
    if killed:
        text += f"; {killed} of {len(result.old_pods)} pods had to be killed"
    if failed := result.failed_pods:
        text += f"; {failed[0].name} exited with status {failed[0].status}"
    early = [pod for pod in result.old_pods if _gate_before_endpoint(pod)]
    if journal.lost and early:
        text += (
            f". The delay of {early[0].name} ended before its endpoint was gone:"
            f" graceful_delay has to be longer than the lag ({result.plan.lag:g} s)"
        )
    if journal.endings()[Ending.TIMEOUT.value] and journal.median_wait > result.plan.timeout / 10:
        text += (
            f". Those that were answered took {journal.median_wait:.1f} s in the median: the pods"
            " may be too slow for this load (--rate, --connections, -- --threads 8)"
        )
    return Text(text + ".", style="bold green" if result.clean else "bold red")


def streams(result: Outcome) -> str:
    """One line: how the streams without an end of their own ended; empty if there were none."""
    endings = result.journal.endings(ENDLESS)
    if not endings:
        return ""
    text = (
        f"{result.worker}: streams without an end of their own: {endings.total()}; ended in order"
        f" by their pods: {endings[Ending.OK.value]}; still open when the load had ended:"
        f" {endings[Ending.LEFT.value]}"
    )
    if cut := endings[Ending.TRUNCATED.value]:
        text += f"; cut: {cut}"
        if any(_is_ours(pod["marks"]) for pod in result.facts()):
            text += (
                " (the application has to look at gracefulworker.draining() while it streams, and"
                " end by itself)"
            )
    return f"{text}."


def as_json(results: Sequence[Outcome], command: str) -> dict[str, Any]:
    """Everything that was noted, times in seconds since each rollout's beginning.

    :param command: the command line.
    """
    return {
        "schema": SCHEMA,
        "made": {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": command,
            "versions": {
                "gracefulworker": gracefulworker.__version__,
                **_versions(results[0].plan),
                "Python": platform.python_version(),
                "system": f"{platform.system()} {platform.release()}",
            },
        },
        "kinds": {kind: clients.MEANINGS[kind] for kind in _kinds(results)},
        "endings": {
            x.label: journal.MEANINGS[x.ending] for r in results for x in r.journal.exchanges()
        },
        "plan": _plan(results[0]),
        "rollouts": [_rollout(result) for result in results],
    }


def _is_ours(marks: Mapping[str, float]) -> bool:
    """Whether a pod's log has told of our phases."""
    return "lame_duck" in marks


def _gate_before_endpoint(pod: Pod) -> bool:
    return pod.marks.get("gate", math.inf) < pod.marks.get("endpoint_gone", -math.inf)


def in_words(endings: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in endings.most_common() if name not in NO_LOSS)


def _statuses(result: Outcome, kind: str | None = None) -> str:
    return ", ".join(
        f"{n} x {status}" for status, n in sorted(result.journal.statuses(kind).items())
    )


def clients_table(results: Sequence[Outcome]) -> Table:
    table = Table(title="Requests lost, by kind of client", title_justify="left")
    for head in ("client", *(result.worker for result in results)):
        table.add_column(head, overflow="fold")
    for name in [*_kinds(results), None]:
        cells = [_cell(result, name) for result in results]
        table.add_row(Text(name or "all", "" if name else "bold"), *cells, end_section=bool(name))
    lost = [x for r in results for x in r.journal.exchanges() if x.lost]
    if meanings := {x.label: journal.MEANINGS[x.ending] for x in lost}:
        table.caption = "; ".join(f"{label}: {meaning}" for label, meaning in meanings.items())
        table.caption_justify = "left"
    return table


def _kinds(results: Sequence[Outcome]) -> list[str]:
    """The kinds of client that asked for anything."""
    return list(dict.fromkeys(x.kind for r in results for x in r.journal.exchanges()))


def _cell(result: Outcome, kind: str | None) -> Text:
    """Losses and what they were; the statuses of all, and of a kind that has others than 200."""
    endings = result.journal.endings(kind)
    lost = endings.total() - sum(endings[name] for name in NO_LOSS)
    text = Text(f"{lost} of {endings.total()}", style="red" if lost else "green")
    if lost:
        text.append(f"\n{in_words(endings)}", style="dim")
    if kind is None or result.journal.statuses(kind).keys() - {200}:
        text.append(f"\nanswers: {_statuses(result, kind) or 'none'}", style="dim")
    return text


def _pods_table(result: Result, *, is_last: bool) -> Table:
    table = Table(title=f"The end of each pod: {result.worker}", title_justify="left")
    if is_last:
        table.caption, table.caption_justify = COLUMNS, "left"
    table.add_column("pod", overflow="fold")
    for column in ("exit", "overtime", "status", "SIGKILL", "idle closed"):
        table.add_column(column, justify="right", no_wrap=True)
    for pod in result.old_pods:
        told, asleep = result.idle_closes(pod)
        table.add_row(
            pod.name,
            f"{pod.marks['exit'] - pod.marks['sigterm']:.2f}",
            f"{result.overtime(pod):.2f}",
            str(pod.status),
            "needed" if "sigkill" in pod.marks else "no",
            f"{len(told)} ({len(asleep)})",
        )
    return table


def _versions(plan: Plan) -> dict[str, str]:
    """Of what the requests were answered by, as far as that is known."""
    if plan.cluster:
        return {}
    return {"gunicorn": metadata.version("gunicorn")}


def _plan(result: Outcome) -> dict[str, Any]:
    plan = result.plan
    if plan.cluster:
        own: dict[str, Any] = {"cluster": dict(plan.cluster)}
    else:
        own = {"options": list(plan.options), "lag": plan.lag, "grace": plan.grace}
    return {
        "app": plan.app,
        "pods": plan.pods,
        **own,
        "warm_up": plan.warm_up,
        "seed": plan.seed,
        "rate": plan.rate,
        "connections": plan.connections,
        "idle_limit": plan.idle_limit,
        "timeout": plan.timeout,
        "requests": plan.asked,
        # Their values may be secrets.
        "headers": [name for name, _ in plan.headers],
    }


def _rollout(result: Outcome) -> dict[str, Any]:
    journal = result.journal
    return {
        "worker": result.worker,
        "settings": dict(result.plan.settings),
        "load": result.load,
        "asked": journal.asked,
        "lost": journal.lost,
        "clean": result.clean,
        "endings": dict(journal.endings()),
        "statuses": {str(status): n for status, n in sorted(journal.statuses().items())},
        "pods": result.facts(),
        "connections": [_track(track) for track in journal.tracks],
    }


def _track(track: Track) -> dict[str, Any]:
    return {
        "kind": track.kind,
        "pod": track.pod,
        "opened": track.opened,
        "closed": track.closed,
        "close": track.close.value,
        "requests": [
            {
                "request": x.request,
                "due": x.due,
                "began": x.began,
                "ended": x.ended,
                "ending": x.label,
                "lost": x.lost,
                "status": x.status,
            }
            for x in track.exchanges
        ],
    }
