"""What came of a rollout in a cluster, as tables for a terminal.

What may be changed here: the looks. Figures come from `kubernetes.Result` and from the journal.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gracefulworker.tools.rehearse import report
from gracefulworker.tools.rehearse.kubernetes import Result
from gracefulworker.tools.rehearse.kubernetes_events import KILLED, SeenPod

#: What the columns of a pod's end mean.
COLUMNS = (
    "seconds after its deletion was asked, when this was told here: the EndpointSlices say"
    " terminating, and drop it; its last container has ended, with that exit code and reason"
)


def show(console: Console, result: Result) -> None:
    """Print the tables, our last lines, what can be read off them, and the verdict."""
    console.print(report.clients_table([result]))
    console.print(_pods_table(result))
    for pod in result.old_pods:
        if pod.last_line:
            console.print(f"{pod.name}: {pod.last_line}", markup=False)
    for sentence in news(result):
        console.print(sentence, markup=False)
    console.print(verdict(result))


def news(result: Result) -> list[str]:
    """What can be read off, in a sentence or two; only what was seen."""
    pods = result.old_pods
    slices = [t for pod in pods if (t := pod.since_deletion("terminating")) is not None]
    told = [pod.newcomer for pod in pods if pod.last_line]
    newcomers = [newcomer for newcomer in told if newcomer is not None]
    delays = [pod.delay for pod in pods if pod.delay is not None]
    found = []
    if slices:
        found.append(
            f"The EndpointSlices said so within {max(0.0, *slices):.1f} s of each deletion."
        )
    if told:
        came = (
            f"the last new connection came {max(newcomers):.1f} s after a SIGTERM"
            if newcomers
            else "no new connection came after a SIGTERM"
        )
        delay = f", and the delay is {min(delays):.1f} s" if delays else ""
        found.append(f"By their last lines {came}{delay}.")
    return found


def verdict(result: Result) -> Text:
    """One line: what was lost of how many, and what else was not as it should be."""
    journal = result.journal
    text = f"{result.worker} lost {journal.lost} of {journal.asked} requests"
    if journal.lost:
        text += f": {report.in_words(journal.endings())}"
    if result.lost_before:
        text += f"; {result.lost_before} of them before any pod's deletion was asked"
    unready = sum(bool(pod.unready) for pod in result.sightings.pods.values())
    if unready and journal.lost:
        text += (
            f"; not ready for a time, before anybody asked for its deletion: {unready} of"
            f" {len(result.sightings.pods)} pods (kubectl get events says why)"
        )
    for pod in result.old_pods:
        for container in pod.failures:
            how = "was killed" if container.exit_code == KILLED else "failed"
            text += f"; {container.name} of {pod.name} {how} ({container.words})"
    return Text(text + ".", style="bold green" if result.clean else "bold red")


def _pods_table(result: Result) -> Table:
    table = Table(title=f"The end of each pod: {result.worker}", title_justify="left")
    table.caption, table.caption_justify = COLUMNS, "left"
    table.add_column("pod", overflow="fold")
    for column in ("terminating", "dropped", "ended"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("containers", overflow="fold")
    kind, _, name = result.worker.partition("/")
    for pod in result.old_pods:
        table.add_row(
            # The title has the rest, and there are 80 columns.
            pod.name.removeprefix(f"{name}-" if kind == "deployment" else ""),
            *(_since(pod, mark) for mark in ("terminating", "endpoint_gone", "exit")),
            "\n".join(_ends(pod)),
        )
    return table


def _ends(pod: SeenPod) -> list[str]:
    """How each container ended, and how often it had been restarted."""
    found = []
    for container in pod.containers.values():
        words = container.words if "deleted" in pod.marks else "goes on"
        restarts = f", restarts: {container.restarts}" if container.restarts else ""
        found.append(f"{container.name}: {words}{restarts}")
    return found


def _since(pod: SeenPod, mark: str) -> str:
    if "deleted" not in pod.marks:
        return "stays"
    since = pod.since_deletion(mark)
    return "not seen" if since is None else f"{round(since, 2) + 0.0:.2f}"  # no -0.00
