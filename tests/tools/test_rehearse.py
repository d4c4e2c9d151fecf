"""`gracefulworker rehearse` from outside: real pods, real clients, and nothing left behind."""

from __future__ import annotations

import json
import re
import signal
import socket

import pytest
from harness.documents import ROOT
from harness.rehearsals import MOMENTS, needs_kube_proxy, networks

from gracefulworker.tools.cli.rehearse import command_line


def test_ours_beside_stock(rehearse):
    paths = ["--slow", "/slow", "--stream", "/stream", "--upload", "/upload"]
    rehearsal = rehearse("--pods", "1", "--against", "stock", *paths)
    assert rehearsal.end() == 0, rehearsal.said
    ours, stock = rehearsal.rollout(0), rehearsal.rollout(1)
    assert (ours["worker"], stock["worker"]) == ("gracefulworker.gthread", "gthread")
    assert ours["lost"] == 0 and ours["asked"] > 50
    assert stock["lost"] > 0, "a rehearsal that finds nothing on stock can find nothing"
    kinds = {connection["kind"] for connection in ours["connections"]}
    assert kinds == {
        "fresh",
        "keep-alive",
        "sleeper",
        "slow request",
        "late speaker",
        "slow answer",
        "slow upload",
        "stream",
    }
    for pod in ours["pods"][:1]:
        assert {"sigterm", "lame_duck", "endpoint_gone", "gate", "exit"} <= pod["marks"].keys()
        assert pod["status"] == 0 and "sigkill" not in pod["marks"]
        assert pod["marks"]["endpoint_gone"] - pod["marks"]["sigterm"] > 0.5
    assert due(ours) == pytest.approx(due(stock), abs=0.05), "the same seed asks at the same times"
    assert re.search(r"gracefulworker\.gthread lost 0 of \d+ requests\.", rehearsal.said)
    whole = json.loads(rehearsal.json.read_text())
    assert whole["schema"] == "gracefulworker-rehearsal/1"
    assert whole["kinds"].keys() == kinds
    assert whole["endings"].keys() == ours["endings"].keys() | stock["endings"].keys()
    assert whole["plan"]["requests"] == ["GET /", "GET /slow", "GET /stream", "POST /upload"]
    assert whole["made"]["command"].startswith("gracefulworker rehearse rehearsed:app")
    assert (ours["settings"]["graceful_delay"], stock["settings"]["threads"]) == ("1", "8")
    rehearsal.assert_nothing_left()


def test_uvicorn_beside_its_own_worker(rehearse):
    paths = ["--slow", "/slow", "--stream", "/stream", "--upload", "/upload"]
    options = ["-k", "gracefulworker.uvicorn", "--against", "stock", "--pods", "1", *paths]
    rehearsal = rehearse(*options, app="asgi_rehearsed:app")
    assert rehearsal.end() == 0, rehearsal.said
    ours, stock = rehearsal.rollout(0), rehearsal.rollout(1)
    assert ours["worker"] == "gracefulworker.uvicorn"
    assert stock["worker"] == "uvicorn_worker.UvicornWorker"
    assert ours["lost"] == 0 and ours["asked"] > 50
    assert stock["lost"] > 0
    assert {"lame_duck", "gate", "stopped"} <= ours["pods"][0]["marks"].keys()
    for head in (ours["worker"], stock["worker"]):
        assert re.search(rf"┃ +{re.escape(head)} *┃", rehearsal.said), "on one line, whole"


def test_a_terminal_of_80_columns_cuts_no_head(rehearse):
    """Nobody's terminal is narrower, and a file has as many: no head is broken or shortened."""
    rehearsal = rehearse("--pods", "1", "--against", "stock")
    assert rehearsal.end() == 0, rehearsal.said
    for head in ("gracefulworker.gthread", "exit", "overtime", "SIGKILL", "idle closed"):
        assert re.search(rf"┃ +{head} *┃", rehearsal.said), rehearsal.said
    assert "…" not in rehearsal.said


def due(rollout) -> list[float]:
    """When the first requests on fresh connections were due, in seconds of the load."""
    return sorted(
        request["due"] - rollout["load"][0]
        for connection in rollout["connections"]
        for request in connection["requests"]
        if connection["kind"] == "fresh"
    )[:20]


def test_a_loss_on_our_side_is_exit_status_1(rehearse):
    rehearsal = rehearse("-k", "sync")
    assert rehearsal.end() == 1, rehearsal.said
    assert rehearsal.rollout()["lost"] > 0


def test_a_pod_that_must_be_killed_is_exit_status_1(rehearse):
    rehearsal = rehearse(
        "-k", "gevent", "--pods", "1", "--grace", "1.5", "--", "--keep-alive", "75"
    )
    assert rehearsal.end() == 1, rehearsal.said
    killed = [pod for pod in rehearsal.rollout()["pods"] if "sigkill" in pod["marks"]]
    assert killed, "stock gevent waits for connections that nobody closes"
    assert "had to be killed" in rehearsal.said


@pytest.mark.parametrize("path", ("/time", "/pid"))
def test_a_body_that_differs_by_itself_is_not_compared(rehearse, path):
    rehearsal = rehearse("--pods", "2", "--path", path)
    assert rehearsal.end() == 0, rehearsal.said
    assert f"so not compared: GET {path}" in " ".join(rehearsal.said.split())


def test_of_a_single_pod_nobody_knows_what_differs(rehearse):
    rehearsal = rehearse("--pods", "1", "--path", "/pid")
    assert rehearsal.end() == 0, rehearsal.said


def test_a_path_that_is_not_there_is_named(rehearse, tmp_path):
    requests = tmp_path / "requests"
    requests.write_text("GET /\nGET /missing\n")
    rehearsal = rehearse("--pods", "1", "--requests", str(requests))
    assert rehearsal.end() == 0, rehearsal.said
    said = " ".join(rehearsal.said.split())
    assert "not a success before the rollout: GET /missing (404)" in said
    statuses = rehearsal.rollout()["statuses"]
    assert statuses.keys() == {"200", "404"}
    assert f"answers: {statuses['200']} x 200, {statuses['404']} x 404" in said


def test_a_body_that_changes_is_a_loss(rehearse):
    rehearsal = rehearse("--pods", "2", "--path", "/spoilt")
    assert rehearsal.end() == 1, rehearsal.said
    assert rehearsal.rollout()["endings"]["wrong answer"] > 0


def test_a_lag_beyond_the_delay_is_named(rehearse):
    rehearsal = rehearse("--pods", "1", "--lag", "1.8")
    assert rehearsal.end() == 1, rehearsal.said
    assert "graceful_delay has to be longer than the lag (1.8 s)" in " ".join(
        rehearsal.said.split()
    )


@pytest.mark.parametrize("moment", MOMENTS[1:4:2])  # all of them: tests/rollout
def test_ctrl_c_leaves_nothing(rehearse, moment):
    rehearsal = rehearse()
    rehearsal.wait_line(moment)
    rehearsal.process.send_signal(signal.SIGINT)
    assert rehearsal.end() == 130, rehearsal.said
    assert "Traceback" not in rehearsal.said
    rehearsal.assert_nothing_left()


def test_its_own_death_ends_the_pods(rehearse):
    rehearsal = rehearse()
    rehearsal.wait_line("pod 1 is no endpoint any more")
    rehearsal.process.kill()
    rehearsal.process.wait()
    rehearsal.assert_nothing_left()


def test_the_command_that_is_noted_has_no_secret():
    given = ["rehearse", "app:app", "--header", "Cookie: geheim=1", "--header=X-Token: geheim"]
    noted = command_line([*given, "--rate=2", "--", "--env", "URL=geheim", "-eKEY=geheim"])
    assert noted == (
        "gracefulworker rehearse app:app --header Cookie:... --header=X-Token:... --rate=2 --"
        " --env URL=... -eKEY=..."
    )


@needs_kube_proxy
def test_behind_kube_proxys_rules(rehearse):
    rehearsal = rehearse("--service", "iptables", "--against", "stock", "--pods", "1")
    assert rehearsal.end() == 0, rehearsal.said
    ours, stock = rehearsal.rollout(0), rehearsal.rollout(1)
    assert ours["lost"] == 0 and ours["asked"] > 50
    assert stock["lost"] > 0
    # Each pod was chosen, by the rules alone.
    assert {connection["pod"] for connection in ours["connections"]} >= {"pod 1", "pod 2"}
    rehearsal.assert_nothing_left()


@needs_kube_proxy
def test_the_end_behind_kube_proxys_rules_leaves_nothing(rehearse):
    """No process, and with it no namespace, link or rule: they are all held by these."""
    before = networks()
    rehearsal = rehearse("--service", "iptables")
    rehearsal.wait_line("pod 3 is ready")
    rehearsal.process.kill()
    rehearsal.process.wait()
    rehearsal.assert_nothing_left()
    assert networks() == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--", "--bind", ":80"], "leave --bind to the rehearsal"),
        (["--", "-b:80"], "leave -b:80 to the rehearsal"),
        (["--html", "/nowhere/x.html"], "/nowhere/x.html cannot be written"),
        (["--requests", "/nowhere/requests"], "No such file"),
        (["--pods", "0"], "0 is not from 1 to 10"),
        (["--only-watch"], "--only-watch goes with --kubernetes"),
        (["-k", "subclasses.Gthread", "--against", "stock"], "name the class that is beside"),
        (["-k", "sync", "--against", "stock"], "gthread is no worker class of gracefulworker"),
        (
            ["-k", "uvicorn_worker.UvicornWorker", "--against", "stock"],
            "give one with -k, such as gracefulworker.uvicorn",
        ),
        (["-k", "subclasses.Nobody"], "there is no worker class subclasses.Nobody ("),
        (["--against", "bogus"], "there is no worker class bogus ("),
        (["--header", "Host"], "'Host' is not 'NAME: VALUE'"),
        (["--header", "Content-Length: 3"], "leave Content-Length to the rehearsal"),
        (["--path", "/broken"], "GET /broken was answered 500 before the rollout"),
        (["--path", "/raises"], "500 before the rollout: LookupError: no such thing as a till"),
        (
            ["--path", "/endless", "--timeout", "1"],
            "within 1 s before the rollout to its end: if it has none, name it with --stream",
        ),
        (
            ["--stream", "/endless", "--timeout", "1", "--", "--threads", "1"],
            "; GET /endless may hold all threads of a pod: -- --threads 8",
        ),
        (["--path", "/account"], "302: it redirects to /login: --path PATH, or a --header"),
        (["--path", "/plain"], "--header 'X-Forwarded-Proto: https'"),
        (
            ["--ready-path", "/broken", "--ready-within", "1"],
            "did not answer GET /broken within 1 s",
        ),
        (["--", "--no-such-option"], "unrecognized arguments: --no-such-option"),
    ],
)
def test_what_cannot_be_rehearsed_is_exit_status_2(rehearse, options, sentence):
    rehearsal = rehearse(*options)
    assert rehearsal.end() == 2
    assert sentence in " ".join(rehearsal.said.split())
    assert "the load begins" not in rehearsal.said


@pytest.mark.parametrize(
    ("app", "text", "sentence"),
    [
        ("nobody:app", "", "at its start: ModuleNotFoundError: No module named 'nobody'"),
        (
            "till:app",
            "import os\nURL = os.environ['TILL_URL']\n",
            "at its start: the variable TILL_URL is not set: set it for this command",
        ),
    ],
)
def test_a_pod_that_does_not_start_says_why(rehearse, tmp_path, app, text, sentence):
    (tmp_path / "till.py").write_text(text)
    rehearsal = rehearse("--", "--chdir", str(tmp_path), app=app)
    assert rehearsal.end() == 2
    said = " ".join(rehearsal.said.split())
    assert sentence in said
    assert "The end of pod 1's log:" in said and "Worker failed to boot" in said


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("daemon = True\n", "daemon = True takes a pod away"),
        ("certfile = __file__\n", "the clients here speak plain HTTP"),
        ("graceful_delay = 'soon'\n", "graceful_delay = 'soon' in the config file is not a number"),
        ("reload = True\n", "reload is on, and there is no delay with it: leave it out"),
        ("import nobody\n", "ModuleNotFoundError: No module named 'nobody'"),
    ],
)
def test_a_configuration_that_cannot_be_rehearsed(rehearse, config, sentence):
    environ = {"GRACEFUL_DELAY": ""}
    rehearsal = rehearse(config=config, env=environ)
    assert rehearsal.end() == 2
    assert sentence in " ".join(rehearsal.said.split())


def test_what_one_server_has_each_pod_has_for_itself(rehearse, tmp_path):
    """The addresses and files of the service that the user runs stay free, or in other hands."""
    (tmp_path / "own").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as service:
        rehearsal = rehearse(
            env={"TMPDIR": str(tmp_path / "own")},
            config=f"""
worker_class = "subclasses.Gthread"
graceful_probe_bind = "127.0.0.1:{service.getsockname()[1]}"
pidfile = {str(tmp_path / "pid")!r}
raw_env = ["GRACEFUL_REPORT={tmp_path / "report"}"]
print("a config file may print")
""",
        )
        assert rehearsal.end() == 0, rehearsal.said
    rollout = rehearsal.rollout()
    assert rollout["worker"] == "subclasses.Gthread", "that of the config file"
    logs = ["\n".join(line for _, line in pod["log"]) for pod in rollout["pods"]]
    found = [re.findall(r"probes at (http://\S+) ", log)[0] for log in logs]
    assert len(set(found)) == len(logs) == 4
    assert not (tmp_path / "pid").exists() and not (tmp_path / "report").exists()
    assert not list((tmp_path / "own").iterdir()), "nothing is left of the pods' files"


@needs_kube_proxy
def test_behind_kube_proxys_rules_probes_have_their_address_too(rehearse):
    rehearsal = rehearse(
        "--service", "iptables", "--pods", "1", config='graceful_probe_bind = "127.0.0.1:8000"\n'
    )
    assert rehearsal.end() == 0, rehearsal.said
    assert rehearsal.rollout()["asked"] > 50


def test_streams_without_an_end_end_with_their_pods(rehearse):
    rehearsal = rehearse("--stream", "/events", "--timeout", "3")
    assert rehearsal.end() == 0, rehearsal.said
    said = " ".join(rehearsal.said.split())
    assert "GET /events has no end of its own in 3 s" in said
    endings = [
        connection["requests"][0]["ending"]
        for connection in rehearsal.rollout()["connections"]
        if connection["kind"] == "endless stream"
    ]
    assert set(endings) == {"ok", "still open"}
    assert (
        f"of {len(endings)} streams without an end of their own {endings.count('ok')} were ended in"
        f" order by their pods, and {endings.count('still open')} were still open"
    ) in said


def test_streams_that_are_cut_are_lost(rehearse):
    rehearsal = rehearse(
        "--pods", "1", "--stream", "/endless", "--timeout", "3", "--", "--graceful-timeout", "1"
    )
    assert rehearsal.end() == 1, rehearsal.said
    said = " ".join(rehearsal.said.split())
    assert "were cut: the application has to look at gracefulworker.draining()" in said
    assert rehearsal.rollout()["endings"]["truncated"] > 0


# -- projects that want something


DJANGO = ROOT / "examples" / "django_app"


def test_a_django_project_with_allowed_hosts(rehearse):
    pytest.importorskip("django")
    how = {"app": "mysite.wsgi", "env": {"ALLOWED_HOSTS": "shop.example"}}
    served = ["--", "--chdir", str(DJANGO), "-c", str(DJANGO / "gunicorn.conf.py")]
    refused = rehearse(*served, **how)
    assert refused.end() == 2
    said = " ".join(refused.said.split())
    assert "GET /: 400, 4 of 4" in said
    assert (
        "not know the Host localhost, such as Django with its ALLOWED_HOSTS: --header 'Host: NAME'"
        in said
    )
    known = rehearse("--header", "Host: shop.example", *served, **how)
    assert known.end() == 0, known.said
    assert known.rollout()["statuses"].keys() == {"200"}


def test_an_api_that_wants_json_and_a_token(rehearse, tmp_path):
    requests = tmp_path / "requests"
    requests.write_text('POST /api {"item": 7}\n')
    wanted = ["--pods", "1", "--requests", str(requests)]
    stranger = rehearse(*wanted)
    assert stranger.end() == 2
    assert "401: it wants a token, a cookie or a password: --header 'Authorization" in " ".join(
        stranger.said.split()
    )
    token = ["--header", "Authorization: Bearer open sesame"]
    other = rehearse(*wanted, *token, "--header", "Content-Type: text/plain")
    assert other.end() == 2
    assert "POST /api: 415, 2 of 2" in " ".join(other.said.split())
    guest = rehearse(*wanted, *token)
    assert guest.end() == 0, guest.said
    assert guest.rollout()["statuses"].keys() == {"200"}
    assert "sends real requests (POST /api) to your application" in " ".join(guest.said.split())
    for file in (guest.json, guest.html):
        assert "Authorization" in file.read_text() and "sesame" not in file.read_text()
