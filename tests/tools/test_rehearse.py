"""`gracefulworker rehearse` from outside: real pods, real clients, and nothing left behind."""

from __future__ import annotations

import json
import re
import signal
import socket

import pytest
from harness.documents import ROOT
from harness.rehearsals import HERE, MOMENTS, PATIENCE, needs_kube_proxy, networks

from gracefulworker.tools.cli.rehearse_common import command_line


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
    said = " ".join(rehearsal.said.split())
    assert ": a new connection was reset before a byte" in said or "nobody listened" in said


def test_a_configuration_with_another_worker_class_is_told_of_ours(rehearse):
    rehearsal = rehearse("--pods", "1", config='worker_class = "gthread"\n')
    assert rehearsal.end() == 1, rehearsal.said
    said = " ".join(rehearsal.said.split())
    assert "side by side: -k gracefulworker.gthread --against gthread" in said


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


def test_what_was_lost_before_is_told_apart(rehearse):
    rehearsal = rehearse("--pods", "1", "--path", "/moody", "--warm-up", "1")
    assert rehearsal.end() == 1, rehearsal.said
    said = " ".join(rehearsal.said.split())
    assert re.search(r"; \d+ of them before any pod got SIGTERM", said)
    assert "503: an answer of 500 or more" in said


def test_a_load_that_is_too_much_is_exit_status_2(rehearse):
    options = ["--pods", "1", "--path", "/slow", "--warm-up", "2", "--", "--threads", "1"]
    rehearsal = rehearse(*options)
    assert rehearsal.end() == 2, rehearsal.said
    said = " ".join(rehearsal.said.split())
    assert "does not keep up with the load: after 4.0 s" in said
    assert "gets SIGTERM" not in said


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
        (["--html", "/nowhere/x.html"], "/nowhere/x.html cannot be written: No such file"),
        (["--json", "/"], "/ cannot be written: Is a directory"),
        (["--json", "/proc/x.json"], "/proc/x.json cannot be written: "),
        (["--requests", "/nowhere/requests"], "--requests /nowhere/requests: No such file"),
        (["--path", "shop"], "--path: 'shop' does not begin with /"),
        (["--slow", "/sh\xf6p?a=b c"], "has to be percent-encoded: /sh%C3%B6p?a=b%20c"),
        (["--threads", "8"], "--threads 8 (gunicorn's own stand behind --)"),
        (["--upload", "/missing"], "the slow upload is not answered with success before the"),
        (["--pods", "0"], "0 is not from 1 to 10"),
        (["--only-watch"], "--only-watch goes with --kubernetes"),
        (
            ["-k", "subclasses.Gthread", "--against", "stock"],
            "which class is stock beside it: name that, such as",
        ),
        (["-k", "sync", "--against", "stock"], "gthread is no worker class of gracefulworker"),
        (
            ["-k", "uvicorn_worker.UvicornWorker", "--against", "stock"],
            "give one with -k, such as gracefulworker.uvicorn",
        ),
        (["-k", "subclasses.Nobody"], "there is no worker class subclasses.Nobody ("),
        (
            ["-k", "nobodys.Worker"],
            "worker class nobodys.Worker cannot be loaded: ModuleNotFoundError: No module named",
        ),
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
        (
            ["--path", "/endless", "--stream", "/endless", "--timeout", "1"],
            "GET /endless has no end of its own in 1 s, and is not for clients who wait for one",
        ),
        (["--path", "/account"], "302: it redirects to /login: --path PATH, or a --header"),
        (["--path", "/plain"], "--header 'X-Forwarded-Proto: https'"),
        (
            ["--ready-path", "/broken", "--ready-within", "1"],
            "was not ready within 1 s: GET /broken was answered 500 (give it longer with --ready",
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
        ("till:app", "app = None\n", "at its start: Failed to find application object: 'app'"),
        (
            "till:app",
            "import sys\nsys.exit('set TILL')\n",
            " workers of pod 1 have ended at its start",
        ),
        (
            "till:app",
            "async def app(scope, receive, send): pass\n",
            "'send': the application is an ASGI one: -k gracefulworker.uvicorn",
        ),
        (
            "till:app",
            f"import time\ntime.sleep({PATIENCE})\n",
            "pod 1 was not ready within 4 s: nothing answered GET / (give it longer with --ready",
        ),
    ],
)
def test_a_pod_that_does_not_start_says_why(rehearse, tmp_path, app, text, sentence):
    (tmp_path / "till.py").write_text(text)
    rehearsal = rehearse("--ready-within", "4", "--", "--chdir", str(tmp_path), app=app)
    assert rehearsal.end() == 2
    said = " ".join(rehearsal.said.split())
    assert sentence in said
    assert "The end of pod 1's log:" in said


def test_the_other_side_that_does_not_start_is_the_last_word(rehearse, tmp_path):
    (tmp_path / "till.py").write_text(
        "import sys\nfrom rehearsed import app\n"
        "if 'gevent' in sys.argv: raise LookupError('no till beside that')\n"
    )
    there = ["--pythonpath", f"{tmp_path},{HERE}"]
    rehearsal = rehearse("--pods", "1", "--against", "gevent", "--", *there, app="till:app")
    assert rehearsal.end() == 2
    said = " ".join(rehearsal.said.split())
    assert re.search(r"gthread lost 0 of \d+ .* Cannot rehearse gevent: pod 1 exited", said)
    assert "at its start: LookupError: no till beside that" in said
    assert rehearsal.rollout()["lost"] == 0, "what there is, is written"


def binding(tmp_path) -> list[str]:
    """An application that binds an address, starts a process in a session of its own, and has a
    directory until its end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = str(tmp_path / "till-")
    (tmp_path / "till.py").write_text(f"""
import atexit, shutil, socket, subprocess, sys, tempfile

listener = socket.create_server(("127.0.0.1", {port}))
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
atexit.register(shutil.rmtree, tempfile.mkdtemp(prefix={files!r}))


def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
""")
    return ["--", "--chdir", str(tmp_path)]


def test_two_pods_that_bind_one_address(rehearse, tmp_path):
    """What is in the way is said; and what the first one left behind has ended with it."""
    rehearsal = rehearse("--pods", "1", *binding(tmp_path), app="till:app")
    assert rehearsal.end() == 2
    said = " ".join(rehearsal.said.split())
    assert "Address already in use" in said
    assert "the application binds an address of its own" in said
    assert "with --service iptables each pod has its own network" in said
    rehearsal.assert_nothing_left()
    assert not list(tmp_path.glob("till-*")), "functions that were registered at exit have run"


@needs_kube_proxy
def test_behind_kube_proxys_rules_two_pods_may_bind_one_address(rehearse, tmp_path):
    options = ["--pods", "1", "--service", "iptables", *binding(tmp_path)]
    rehearsal = rehearse(*options, app="till:app")
    assert rehearsal.end() == 0, rehearsal.said
    rehearsal.assert_nothing_left()
    assert not list(tmp_path.glob("till-*"))


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
        f"streams without an end of their own: {len(endings)}; ended in order by their pods:"
        f" {endings.count('ok')}; still open when the load had ended: {endings.count('still open')}"
    ) in said


def test_a_stream_without_an_end_may_be_all_there_is(rehearse):
    rehearsal = rehearse("--path", "/broken", "--stream", "/events", "--ready-path", "/events")
    assert rehearsal.end() == 2, rehearsal.said
    assert "GET /broken was answered 500 before" in " ".join(rehearsal.said.split()), "it was ready"


def test_streams_that_are_cut_are_lost(rehearse):
    rehearsal = rehearse(
        "--pods", "1", "--stream", "/endless", "--timeout", "3", "--", "--graceful-timeout", "1"
    )
    assert rehearsal.end() == 1, rehearsal.said
    said = " ".join(rehearsal.said.split())
    assert re.search(r"cut: \d+ \(the application has to look at gracefulworker\.draining", said)
    assert "pod 1 exited with status 5" in said
    assert "The end of pod 1's log:" in said and "stopped: cut after" in said
    assert "truncated: the answer broke off" in said
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
    said = " ".join(other.said.split())
    assert "POST /api: 415, 2 of 2" in said and "415: it takes no text/plain" in said
    wrong = tmp_path / "wrong"
    wrong.write_text('POST /api {"thing": 7}\n')
    lacking = rehearse("--pods", "1", "--requests", str(wrong), *token)
    assert lacking.end() == 2
    assert "POST /api: 422, 2 of 2: item is missing & wanted" in " ".join(lacking.said.split())
    guest = rehearse(*wanted, *token)
    assert guest.end() == 0, guest.said
    assert guest.rollout()["statuses"].keys() == {"200"}
    assert "sends real requests (POST /api) to your application" in " ".join(guest.said.split())
    for file in (guest.json, guest.html):
        assert "Authorization" in file.read_text() and "sesame" not in file.read_text()
