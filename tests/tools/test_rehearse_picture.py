"""The picture of a rehearsal in a real browser, opened as the file that it is."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
from typing import Any

import pytest

from gracefulworker.tools.rehearse import picture

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER and importlib.util.find_spec("selenium")),
    reason="needs chromium and chromedriver (Debian: chromium, chromium-driver) and selenium",
)

PODS, CONNECTIONS = 3, 200  # replaced pods, and connections to each of them


def request(began, ended, ending="ok", status=200):
    return {
        "request": "GET /",
        "due": began,
        "began": began,
        "ended": ended,
        "ending": ending,
        "lost": ending != "ok",
        "status": status if ending == "ok" else 0,
    }


def rollout(worker, gate, killed=None):
    """A rollout of which every figure is known: each tenth connection loses if there is no gate.

    :param killed: seconds after which each pod gets SIGKILL.
    """
    pods, connections, endings = [], [], {"ok": 0, "refused": 0, "truncated": 0}
    for number in range(PODS):
        term = 3.0 + number
        marks = {"started": 0.0, "ready": 1.0, "sigterm": term, "endpoint_gone": term + 3.0}
        if gate:
            marks.update(lame_duck=term, gate=term + 5.0, stopped=term + 5.1, exit=term + 5.2)
        elif killed:
            marks.update(sigkill=term + killed, exit=term + killed)
        else:
            marks.update(exit=term + 1.0)
        pods.append({"name": f"pod {number + 1}", "marks": marks, "log": [], "status": 0})
        for n in range(CONNECTIONS):
            opened = term - 2.0 + n * 4.5 / CONNECTIONS
            ending = "ok" if gate or n % 10 else ("refused", "truncated")[n // 10 % 2]
            endings[ending] += 1
            connections.append(
                {
                    "kind": "fresh",
                    "pod": f"pod {number + 1}",
                    "opened": opened,
                    "closed": opened + 0.4,
                    "close": "by the client",
                    "requests": [request(opened, opened + 0.3, ending)],
                }
            )
    for number in range(PODS, 2 * PODS):
        pods.append({"name": f"pod {number + 1}", "marks": {"ready": 2.0, "exit": 12.0}, "log": []})
    lost = endings["refused"] + endings["truncated"]
    return {
        "worker": worker,
        "settings": {"keepalive": "65", **({"graceful_delay": "5"} if gate else {})},
        "load": [1.0, 11.0],
        "asked": len(connections),
        "lost": lost,
        "clean": not lost,
        "endings": {name: n for name, n in endings.items() if n},
        "statuses": {"200": endings["ok"]},
        "pods": pods,
        "connections": connections,
    }


DATA: dict[str, Any] = {
    "schema": "gracefulworker-rehearsal/1",
    "made": {
        "date": "2026-11-25T12:00:00+00:00",
        "command": "gracefulworker rehearse shop:app --rate 20",
        "versions": {"gracefulworker": "0.1.0", "gunicorn": "27.0.1"},
    },
    "kinds": {"fresh": "one request on a connection of its own"},
    "endings": {"ok": "answered", "refused": "nobody listened", "truncated": "it broke off"},
    "plan": {
        "app": "shop:app</script><b><!--<script>",
        "pods": PODS,
        "lag": 3.0,
        "requests": ["GET /"],
    },
    "rollouts": [rollout("gracefulworker.sync", gate=True), rollout("sync", gate=False)],
}
LOST = DATA["rollouts"][1]["lost"]


KILLED: dict[str, Any] = {
    **DATA,
    "rollouts": [DATA["rollouts"][0], rollout("gthread", gate=False, killed=30.0)],
}


def cluster_pod(name, deleted, code=0, reason="Completed"):
    """An old pod as `kubernetes_events` notes it: gracefulworker's, with a sidecar."""
    marks = {"seen": 0.1, "ready": 0.1, "deleted": deleted, "terminating": deleted + 0.02}
    marks.update(lame_duck=deleted + 0.05, gate=deleted + 5.05, endpoint_gone=deleted + 5.4)
    marks.update(exit=deleted + 5.39, gone=deleted + 5.8)
    app = {"name": "app", "restarts": 0, "seen": deleted + 5.3, "exit_code": 0}
    proxy = {"name": "proxy", "restarts": 1, "seen": deleted + 5.39, "exit_code": code}
    return {
        "name": name,
        "old": True,
        "marks": marks,
        "containers": [{**app, "reason": "Completed"}, {**proxy, "reason": reason}],
        "restarts": 1,
        "unready": [[1.5, 2.0]],
        "last_line": "stopped: clean after 5.2 s; served 9, last new connection +0.8 s",
        "last_new_connection": 0.8,
        "log": [],
    }


NEW_POD = {"old": False, "containers": [], "restarts": 0, "unready": [], "last_line": None}
CLUSTER: dict[str, Any] = {
    **DATA,
    "plan": {
        "app": "deployment/shop",
        "pods": 2,
        "requests": ["GET /"],
        "cluster": {
            "workload": "deployment/shop",
            "namespace": "store",
            "context": "c",
            "url": "u",
        },
    },
    "rollouts": [
        {
            **DATA["rollouts"][1],
            "worker": "deployment/shop",
            "settings": {},
            "pods": [
                cluster_pod("shop-5d549fd859-fp8fd", 3.0),
                cluster_pod("shop-5d549fd859-7fpr6", 4.0, 137, "OOMKilled"),
                {**NEW_POD, "name": "shop-76b97c7756-8kkz2", "marks": {"seen": 2.0, "ready": 2.9}},
            ],
        }
    ],
}


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture
def show(browser, tmp_path):
    """Opens the picture of something in a window of some width."""

    def show(data, width):
        file = tmp_path / "rehearsal.html"
        file.write_text(picture.draw(data), encoding="utf-8")
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False},
        )
        browser.get(file.as_uri())
        return browser

    return show


@pytest.fixture
def page(show):
    return show(DATA, 1300)


def count(page, selector):
    return page.execute_script("return document.querySelectorAll(arguments[0]).length", selector)


def text(page, selector):
    return page.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def test_the_verdicts(page):
    assert text(page, "h1") == "A rolling update of shop:app</script><b><!--<script>, under load"
    assert text(page, ".verdict.clean b") == "0 lost"
    assert text(page, ".verdict.lossy b") == f"{LOST} lost"
    assert "30 refused, 30 truncated" in text(page, ".verdict.lossy small")
    assert text(page, ".verdict.lossy .statuses") == f"; answers: {PODS * CONNECTIONS - LOST} x 200"


def test_one_file_that_needs_nothing_else(page):
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert page.get_log("browser") == []


def test_a_row_for_each_connection_and_a_bar_for_each_request(page):
    total = 2 * PODS * CONNECTIONS
    assert count(page, "main > .columns .row") == total
    assert count(page, "main > .columns .row .request") == total
    assert count(page, ".row .request.ok") == total - LOST
    assert count(page, ".row .request.refused") == count(page, ".row .request.cut") == LOST / 2
    assert count(page, ".row .cross") == LOST, "what was lost is crossed out, whatever its colour"


def test_two_hundred_connections_can_be_told_apart(page):
    tops = page.execute_script(
        """const figure = document.querySelector("figure[data-pod='pod 1']");
        return [...figure.querySelectorAll(".row .idle")]
            .map(line => line.getBoundingClientRect().top)"""
    )
    steps = [below - above for above, below in itertools.pairwise(tops)]
    assert len(tops) == CONNECTIONS
    assert min(steps) >= 2
    assert tops[-1] - tops[0] < 1000, "a pod fits on a screen"


def test_the_marks_and_phases_of_each_pod(page):
    figures = page.execute_script(
        """return [...document.querySelectorAll("figure[data-pod]")].slice(0, 2).map(figure => [
            [...figure.querySelectorAll("text:not(.soft)")].map(text => text.textContent),
            ["lame_duck", "draining", "stopping", "void"].filter(
                name => figure.querySelector("rect." + name)),
        ])"""
    )
    after = "endpoint removed +3.00 s"
    assert figures[0] == [
        ["SIGTERM", after, "delay over +5.00 s", "exit +5.20 s"],
        ["lame_duck", "draining"],
    ]
    assert figures[1] == [["SIGTERM", "exit +1.00 s", after], ["stopping", "void"]]


@pytest.mark.parametrize("width", (1280, 700, 699, 400))
@pytest.mark.parametrize("data", (DATA, KILLED, CLUSTER), ids=("exits", "killed", "cluster"))
def test_no_word_is_cut_or_written_over(show, data, width):
    page = show(data, width)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    wrong = page.execute_script(
        """const found = [];
        for (const drawing of document.querySelectorAll("main > .columns svg")) {
            const frame = drawing.getBoundingClientRect();
            const words = [...drawing.querySelectorAll("text")].map(
                text => [text.textContent, text.getBoundingClientRect()]);
            const labels = [...drawing.querySelectorAll("text.label")].map(
                text => [text.textContent, text.getBoundingClientRect()]);
            for (const [text, box] of words)
                if (box.left < frame.left - 1 || box.right > frame.right + 1) found.push(text);
            labels.forEach(([text, a], n) => labels.slice(n + 1).forEach(([other, b]) => {
                const apart = a.right <= b.left || b.right <= a.left
                    || a.bottom <= b.top + 3 || b.bottom <= a.top + 3;
                if (!apart) found.push(`${text} over ${other}`);
            }));
        }
        return found"""
    )
    assert wrong == []


@pytest.mark.parametrize(("width", "columns"), [(700, 2), (699, 1), (400, 1)])
def test_narrow_windows_have_one_column(show, width, columns):
    page = show(DATA, width)
    lefts = page.execute_script(
        """return [...document.querySelectorAll("main figure")].map(
            figure => Math.round(figure.getBoundingClientRect().left))"""
    )
    assert len(set(lefts)) == columns


def test_time_in_which_nothing_happens_is_left_out(show):
    page = show(KILLED, 1280)
    assert count(page, ".omitted"), "30 s until SIGKILL"
    ours, stock = page.execute_script(
        """return [...document.querySelectorAll("figure[data-pod='pod 1'] svg")].map(drawing => {
            const at = [...drawing.querySelectorAll("text.soft")].find(
                text => text.textContent === "1 s").getBoundingClientRect().left;
            return [Math.round(at - drawing.getBoundingClientRect().left),
                drawing.querySelector(".omitted").textContent]})"""
    )
    assert ours == stock, "both sides have the same axis"
    assert stock[1] == "24 s left out", "from the last change, 5.2 s, to the kill, without margins"
    inverse = page.execute_script(
        """const canvas = new Canvas(500, 9, 0, 100, [[10, 40], [50, 90]]);
        return [0, 5, 10, 25, 40, 45, 50, 70, 90, 99, 100].map(
            t => Math.abs(canvas.time(canvas.x(t)) - t)).every(difference => difference < 1e-6)"""
    )
    assert inverse, "what the pointer shows is what is drawn there"


def test_the_end_of_a_pod_in_a_cluster(show):
    page = show(CLUSTER, 1280)
    assert page.get_log("browser") == []
    first, second = page.execute_script(
        """return [...document.querySelectorAll("main figure[data-pod^='shop']")].map(figure =>
            [...figure.querySelectorAll("text.label, figcaption, blockquote")].map(
                text => text.textContent))"""
    )
    for words in (
        *("deletion asked", "EndpointSlices: terminating +0.02 s", "dropped +5.40 s"),
        *("its log: SIGTERM +0.05 s", "last new connection +0.85 s", "delay over +5.05 s"),
        *("ended +5.39 s", "gone +5.80 s", "shop-5d549fd859-fp8fd: ended +5.39 s, 1 restart"),
        CLUSTER["rollouts"][0]["pods"][0]["last_line"],
    ):
        assert words in first
    assert first.count("0 Completed") == 2 and "137 OOMKilled" in second
    # Nobody knows which pod had which connection, so only what was lost has a row.
    assert count(page, "main .row") == count(page, "main .row .cross") == LOST
    assert text(page, "figure[data-pod='lost'] b") == f"lost {LOST}"
    assert "pod is not ready" in text(page, "#legend")
    assert "workload deployment/shop, namespace store" in text(page, "#made")


def test_nothing_is_left_out_of_a_short_rollout(page):
    assert count(page, ".omitted") == 0


def test_who_is_handed_the_file_alone_can_read_it(page):
    told = text(page, "#made")
    for words in (
        *("fresh", "one request on a connection of its own", "it broke off", "status 200"),
        *("graceful_delay", "keepalive", "gunicorn 27.0.1", "2026-11-25T12:00:00+00:00"),
        *("gracefulworker rehearse shop:app --rate 20", "pods 3, lag 3", "GET /"),
    ):
        assert words in told
    assert f"{LOST} lost of {PODS * CONNECTIONS}" in told


def test_the_pointer_shows_what_is_under_it(page):
    from selenium.webdriver import ActionChains

    lost = page.find_element("css selector", ".row .request.refused")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", lost)
    assert not page.find_element("id", "hint").is_displayed()
    ActionChains(page).move_to_element(lost).perform()
    shown = page.find_element("id", "hint").text
    assert page.find_element("id", "hint").is_displayed()
    assert shown.startswith("GET /: refused\n")
    assert "300 ms" in shown and "fresh connection, pod 1" in shown


def test_dark_and_light(page):
    """Losses stand out from the page in both."""
    colours = set()
    for scheme in ("light", "dark"):
        page.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        found = page.execute_script(
            """const fill = selector => getComputedStyle(document.querySelector(selector)).fill;
            return [getComputedStyle(document.body).backgroundColor,
                fill(".request.ok"), fill(".request.refused"), fill(".request.cut")]"""
        )
        assert len(set(found)) == 4
        colours.add(found[0])
    assert len(colours) == 2
