"""The report as metrics: for statsd, for prometheus_client, and in Prometheus' text format.

All of them are made of `METRICS`, and what a report does not know is in none. A process reports
once, at its end, so for Prometheus everything is a counter or a summary, which goes on where the
process before left off: in prometheus_client's multiprocess directory by its own means, in a file
because its old figures are added to. A gauge of the last shutdown would show an older one's figure
for what this one does not know, and `increase` would not see a second shutdown that is like the
first.

What may be changed here: metrics may be added, and none renamed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from gunicorn.instrument.statsd import Statsd

from gracefulworker import seam

Report = dict[str, Any]

#: What the names begin with in statsd, after gunicorn's --statsd-prefix.
STATSD = "gunicorn.graceful."

#: The variable that says where prometheus_client keeps what several processes have counted.
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

#: The end of the names of files that node_exporter's text-file collector reads.
SUFFIX = ".prom"


@dataclass(frozen=True)
class Metric:
    """One metric, as Prometheus has it.

    :param key: the figure's name in the report.
    :param kind: ``counter``, or ``summary``, which is a sum and how many there were.
    :param unit: as in its name.
    :param label: the name of a label whose values are the report's; 1 is counted for each.
    """

    key: str
    name: str
    kind: str
    unit: str
    help: str
    label: str = ""

    @property
    def statsd(self) -> str:
        """Its name in statsd, where a summary is a gauge; a label's value is appended."""
        return STATSD + self.key

    @property
    def samples(self) -> tuple[str, ...]:
        """The names of its lines in the text format."""
        if self.kind == "counter":
            return (self.name,)
        return f"{self.name}_sum", f"{self.name}_count"


METRICS = (
    Metric(
        "seconds",
        "gracefulworker_shutdown_seconds",
        "summary",
        "seconds",
        "From the signal to the end of the last worker.",
    ),
    Metric(
        "last_connection",
        "gracefulworker_last_connection_seconds",
        "summary",
        "seconds",
        "From the signal to the last new connection, in shutdowns that saw one.",
    ),
    Metric(
        "accepted",
        "gracefulworker_connections_accepted_total",
        "counter",
        "connections",
        "New connections from the signal on.",
    ),
    Metric(
        "served",
        "gracefulworker_requests_served_total",
        "counter",
        "requests",
        "Requests that were answered from the signal on, probes left out.",
    ),
    Metric(
        "told_to_close",
        "gracefulworker_connections_told_to_close_total",
        "counter",
        "connections",
        "Responses that said Connection: close to a client that would have stayed.",
    ),
    Metric(
        "closed_idle",
        "gracefulworker_idle_connections_closed_total",
        "counter",
        "connections",
        "Keep-alive connections that were closed while they were idle.",
    ),
    Metric(
        "from_queue",
        "gracefulworker_connections_from_queue_total",
        "counter",
        "connections",
        "Connections that were taken from the accept queue after the delay, and served.",
    ),
    Metric(
        "websockets_told",
        "gracefulworker_websockets_told_total",
        "counter",
        "websockets",
        "WebSockets that were told that the server is going away.",
    ),
    Metric(
        "cut",
        "gracefulworker_requests_cut_total",
        "counter",
        "requests",
        "Requests that had no whole answer of the application's by the deadline.",
    ),
    Metric(
        "killed",
        "gracefulworker_workers_killed_total",
        "counter",
        "workers",
        "Workers that had to be killed at the deadline.",
    ),
    Metric(
        "outcome",
        "gracefulworker_shutdowns_total",
        "counter",
        "shutdowns",
        "Shutdowns that are over: clean, cut (a request was cut or a worker killed) or quick.",
        "outcome",
    ),
)


def known(report: Report) -> Iterator[tuple[Metric, dict[str, str], float]]:
    """Yield each metric that the report knows, with its label if it has one, and what to add."""
    for metric in METRICS:
        value = report[metric.key]
        if value is not None:
            yield metric, *(({metric.label: value}, 1) if metric.label else ({}, value))


def to_statsd(log: seam.Log, report: Report) -> None:
    """Send the figures to statsd, if that is the logger (gunicorn's --statsd-host)."""
    if not isinstance(log, Statsd):
        return
    # Its own methods, because its `info` passes over a value of 0 before gunicorn 26.
    for metric, labels, value in known(report):
        if metric.kind == "counter":
            log.increment(".".join((metric.statsd, *labels.values())), value)
        else:
            log.gauge(metric.statsd, value)


def to_prometheus(log: seam.Log, report: Report, service: str) -> None:
    """Add the figures to those in prometheus_client's multiprocess directory, if there is one.

    :param service: the value of the label of that name.
    """
    is_there = os.path.isdir(os.environ.get(DIRECTORY, ""))
    if not is_there or find_spec("prometheus_client") is None:
        return
    try:
        from prometheus_client import Counter, Summary

        for metric, labels, value in known(report):
            names = ("service", *labels)
            if metric.kind == "counter":
                counter = Counter(metric.name, metric.help, names, registry=None)
                counter.labels(service, *labels.values()).inc(value)
            else:
                summary = Summary(metric.name, metric.help, names, registry=None)
                summary.labels(service).observe(value)
    except Exception as error:  # somebody else's files, of any state
        log.warning("the report could not be added to %s: %r", os.environ[DIRECTORY], error)


def as_text(report: Report, service: str, before: str = "") -> str:
    """Return the figures in Prometheus' text format.

    :param service: the value of the label of that name.
    :param before: what the file had until now: its figures are added to.
    """
    totals: dict[str, float] = {}
    for line in before.splitlines():
        sample, _, number = line.rpartition(" ")
        try:
            totals[sample] = float(number)
        except ValueError:
            continue  # a comment, or a file that somebody else began
    for metric, labels, value in known(report):
        pairs = {"service": service, **labels}.items()
        braced = ",".join(f'{name}="{_escape(text)}"' for name, text in pairs)
        for name, step in zip(metric.samples, (value, 1), strict=False):
            sample = f"{name}{{{braced}}}"
            totals[sample] = round(totals.get(sample, 0) + step, 3)
    lines = []
    for metric in METRICS:
        samples = [sample for sample in totals if sample.partition("{")[0] in metric.samples]
        if samples:
            lines.append(f"# HELP {metric.name} {metric.help}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            lines += [f"{sample} {totals[sample]:.15g}" for sample in samples]
    return "".join(f"{line}\n" for line in lines)


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
