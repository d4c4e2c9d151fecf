"""The report as metrics, without a process: names, the text format, what is not known."""

from __future__ import annotations

import re

import pytest

from gracefulworker.arbiter import metrics
from gracefulworker.arbiter.metrics import METRICS, as_text
from gracefulworker.arbiter.report import Totals, compose

KNOWN = compose(
    Totals(accepted=2, accepted_at=3_000_000_000, served=7, cut=1),
    "SIGTERM",
    1_000_000_000,
    quick=False,
    known=True,
    killed=0,
) | {"seconds": 5.25}
UNKNOWN = compose(Totals(), "SIGTERM", 0, quick=False, known=False, killed=1) | {"outcome": None}


def samples(text):
    return {
        sample: float(number)
        for sample, _, number in (line.rpartition(" ") for line in text.splitlines())
        if not sample.startswith("#")
    }


def test_each_figure_of_the_report_is_a_metric():
    assert {metric.key for metric in METRICS} == KNOWN.keys() - {"signal"}
    assert len({metric.name for metric in METRICS}) == len(METRICS)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.key)
def test_names_are_as_prometheus_has_them(metric):
    """https://prometheus.io/docs/practices/naming/"""
    assert re.fullmatch(r"gracefulworker_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.unit in metric.name
    assert metric.kind in ("counter", "summary")
    assert metric.help.endswith(".") and "\n" not in metric.help


def test_the_text_has_all_of_it():
    text = as_text(KNOWN, "shop")
    found = samples(text)
    assert found['gracefulworker_requests_served_total{service="shop"}'] == 7
    assert found['gracefulworker_requests_cut_total{service="shop"}'] == 1
    assert found['gracefulworker_workers_killed_total{service="shop"}'] == 0
    assert found['gracefulworker_shutdowns_total{service="shop",outcome="cut"}'] == 1
    assert found['gracefulworker_shutdown_seconds_sum{service="shop"}'] == 5.25
    assert found['gracefulworker_shutdown_seconds_count{service="shop"}'] == 1
    assert found['gracefulworker_last_connection_seconds_sum{service="shop"}'] == 2
    for metric in METRICS:
        assert f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n" in text


def test_what_is_not_known_is_left_out():
    text = as_text(UNKNOWN, "shop")
    assert {sample.partition("{")[0] for sample in samples(text)} == {
        "gracefulworker_shutdown_seconds_sum",
        "gracefulworker_shutdown_seconds_count",
        "gracefulworker_workers_killed_total",
    }
    assert "requests_cut" not in text and "None" not in text and "NaN" not in text


def test_an_older_file_is_added_to():
    """Counters go on, or nobody could tell a second shutdown from the first."""
    once = as_text(KNOWN, "shop")
    twice = as_text(KNOWN, "shop", once)
    assert samples(twice) == {name: 2 * number for name, number in samples(once).items()}
    clean = as_text(KNOWN | {"outcome": "clean"}, "shop", twice)
    assert samples(clean)['gracefulworker_shutdowns_total{service="shop",outcome="cut"}'] == 2
    assert samples(clean)['gracefulworker_shutdowns_total{service="shop",outcome="clean"}'] == 1
    after = as_text(UNKNOWN, "shop", clean)
    assert samples(after)['gracefulworker_requests_served_total{service="shop"}'] == 21
    assert samples(after)['gracefulworker_shutdown_seconds_count{service="shop"}'] == 4
    assert len(after.splitlines()) == len(set(after.splitlines()))


@pytest.mark.parametrize(
    "before", ["", "\n", '{"outcome": "clean"}\n', "other_total 5\n", "half a line", "\0\ufffd 1"]
)
def test_what_is_not_ours_is_replaced(before):
    assert as_text(KNOWN, "shop", before) == as_text(KNOWN, "shop")


def test_a_service_of_any_name():
    text = as_text(KNOWN, 'a"b\\c\nd é')
    assert r'{service="a\"b\\c\nd é"} 7' in text
    once = samples(text)
    assert samples(as_text(KNOWN, 'a"b\\c\nd é', text)) == {n: 2 * v for n, v in once.items()}


def test_prometheus_client_reads_the_text():
    parser = pytest.importorskip("prometheus_client.parser")
    text = as_text(KNOWN, 'a"b\\c\nd', as_text(KNOWN, "shop"))
    families = {one.name: one for one in parser.text_string_to_metric_families(text)}
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        services = {sample.labels["service"] for sample in family.samples}
        assert services == {"shop", 'a"b\\c\nd'}


def test_names_in_statsd_are_what_they_were():
    named = {metric.statsd.removeprefix(metrics.STATSD) for metric in METRICS}
    assert {"served", "cut", "killed", "seconds", "last_connection", "outcome"} < named
