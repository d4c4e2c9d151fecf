"""The stress suite's options, its seed, and the table at its end.

What may be changed here: options and fixtures that several scenarios need. Rows travel as
``user_properties`` of the tests' reports, so that they arrive from pytest-xdist's processes, too.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import asdict

import pytest
from stress.table import Tally, lines

STOCK = ("sync", "gthread", "gevent", "uvicorn")


def pytest_addoption(parser):
    group = parser.getgroup("stress")
    group.addoption("--seed", type=int, help="what is drawn by lot is drawn from this number")
    group.addoption("--quick", action="store_true", help="a look of two minutes: fewer rounds")
    group.addoption("--replay", type=int, metavar="SEED", help="of test_walk.py only this cycle")


def pytest_configure(config):
    if hasattr(config, "workerinput"):  # one of xdist's processes
        config.option.seed = config.workerinput["seed"]
    elif config.option.seed is None:
        config.option.seed = random.randrange(1_000_000)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["seed"] = node.config.option.seed


def pytest_report_header(config):
    return f"stress: --seed {config.option.seed}"


def pytest_terminal_summary(terminalreporter, config):
    reports = [r for found in terminalreporter.stats.values() for r in found]
    rows: dict[tuple[str, str], dict[str, Tally]] = {}
    for report in reports:
        if getattr(report, "when", None) != "call":
            continue
        for name, value in report.user_properties:
            if name == "row":
                scenario, worker, figures = value
                side = "ours" if worker.startswith("gracefulworker.") else "stock"
                key = scenario, worker.removeprefix("gracefulworker.")
                sides = rows.setdefault(key, {})
                sides[side] = sides.get(side, Tally()) + Tally(**figures)
    if rows:
        terminalreporter.section(f"stress, --seed {config.option.seed}")
        for line in lines(dict(sorted(rows.items()))):
            terminalreporter.line(line)


@pytest.fixture(params=STOCK)
def stock(request):
    """Each of gunicorn's own workers."""
    return request.param


@pytest.fixture
def table(request):
    """``with table(scenario, worker) as tally``: a row, also when what is inside fails."""

    @contextlib.contextmanager
    def row(scenario, worker):
        tally = Tally()
        try:
            yield tally
        finally:
            request.node.user_properties.append(("row", [scenario, worker, asdict(tally)]))

    return row


@pytest.fixture
def many(request):
    """``many(full, quick)``: how many it shall be in this run."""
    quick = request.config.option.quick
    return lambda full, few: few if quick else full


@pytest.fixture
def dice(request):
    """The test's own generator, drawn from ``--seed``."""
    return random.Random(f"{request.config.option.seed} {request.node.name}")


@pytest.fixture
def fresh(request, serve):
    """``serve`` for one server after the other: the former one is given back at each start."""

    def start(worker, **options):
        for former in request.node.servers:
            former.close()
        request.node.servers.clear()
        return serve(worker, **options)

    return start
