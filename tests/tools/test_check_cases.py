"""`gracefulworker check` on small inputs, most of them once judged wrongly: file, finding or none.

Each row is a file or a directory in cases/ (or several, with spaces between them), what is found in
it, and how much is judged, starts another program, and is not judged. A finding is a rule with a
``!`` if it is an error, and the line.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import gunicorn
import pytest

from gracefulworker.tools import cli
from gracefulworker.tools.manifests import documents, prestop
from gracefulworker.tools.manifests.sources import Source

CASES = Path(__file__).parent / "cases"

TABLE = {
    # gunicorn's own parser prints something and ends; the check goes on.
    "Dockerfile.help": ("", 0, 0, 1),
    "entry-version.sh": ("sigterm-lost!3", 1, 0, 0),
    "check-config.sh": ("", 1, 0, 0),
    "print-only.yaml": ("", 0, 0, 1),
    "help-in-variable.yaml": ("options!13", 1, 0, 0),
    # Which image is whose.
    "trigger": ("", 1, 0, 0),
    "of-the-base-image": ("", 0, 0, 1),
    "script-of-the-image": ("sigterm-lost!2 no-delay!2", 2, 0, 0),
    "script-by-path": ("", 0, 1, 1),
    "plain-dockerfile": ("readiness-probe:4 no-delay!2", 2, 0, 1),
    "build-beside": ("readiness-probe:4 no-delay!2", 1, 1, 0),
    "base-is-known": ("", 0, 1, 0),
    "shared-script": ("sigterm-lost!1", 2, 0, 0),
    "base-that-is-built": ("", 1, 1, 0),
    "context-above": ("", 1, 0, 0),
    "both-branches": ("", 1, 0, 0),
    "cmd-args-other": ("", 1, 1, 0),
    "target-hides": ("sigterm-lost!4", 2, 1, 0),
    "image-of-a-sibling": ("", 2, 1, 0),
    "copied": ("", 1, 0, 1),
    "argument-to-script": ("sigterm-lost!4", 1, 0, 0),
    "owned.yaml": ("", 1, 0, 0),
    "template.yaml": ("grace-period!11", 1, 0, 1),
    "two-images": ("no-delay!2", 1, 2, 0),
    "proxy-beside": ("sidecar:14 no-delay!2", 1, 1, 0),
    "two-own-images": ("", 1, 0, 2),
    "two-own-images/all.yaml backend=two-own-images/Dockerfile": (
        "readiness-probe:20 no-delay!2",
        1,
        0,
        1,
    ),
    "by-file-name": ("", 1, 1, 0),
    "last-stage-tests.Dockerfile": ("sigterm-lost!4", 1, 0, 0),
    "base-image-starts.Dockerfile": ("", 0, 0, 1),
    "entrypoint-resets.Dockerfile": ("", 1, 0, 0),
    "exec-form-broken.Dockerfile": ("", 0, 0, 1),
    "Dockerfile-web": ("sigterm-lost!2", 1, 0, 0),
    "bad.Dockerfile": ("sigterm-lost!2", 1, 0, 0),
    # Green only for what was judged.
    "honcho": ("", 1, 1, 0),
    "relative.Procfile": ("", 0, 0, 1),
    "fcgi.conf": ("", 1, 0, 0),
    "fedora.service": ("", 1, 0, 0),
    "azure": ("", 0, 0, 1),
    "mentions": ("", 1, 0, 0),
    "split.service": ("", 1, 0, 0),
    "file.service": ("", 1, 0, 0),
    "hidden": ("", 1, 0, 1),
    "terraform": ("", 1, 0, 1),
    "json": ("", 1, 0, 1),
    "override": ("", 1, 1, 0),
    "override-shortens": ("grace-period!3", 1, 0, 0),
    "supervised": ("graceful-timeout!2", 1, 1, 0),
    "no-arguments": ("", 0, 1, 0),
    "only-named": ("", 0, 0, 1),
    "any-kind.yaml": ("", 0, 0, 1),
    "starter.yaml": ("", 0, 0, 1),
    "unread": ("", 1, 0, 2),
    "one-word.yaml": ("", 0, 0, 1),
    "unknown-class.yaml": ("", 1, 0, 0),
    "extends": ("grace-period!2", 1, 0, 1),
    "container-list.json": ("graceful-timeout!1", 1, 0, 0),
    "drop-in": ("grace-period:2 sigterm-lost!3", 1, 0, 0),
    "colons.conf": ("", 1, 0, 0),
    "procfile-script": ("grace-period!1", 1, 0, 0),
    "short-period.yaml": ("grace-period:2", 2, 0, 0),
    "jobs.yaml": ("", 0, 0, 1),
    "custom-resource.yaml": ("", 0, 0, 1),
    "redis-only.yaml": ("", 0, 1, 0),
    "values.yaml": ("", 0, 0, 0),
    "compose.yaml": ("grace-period!5", 1, 0, 0),
    "compose-image.yaml": ("", 0, 1, 1),
    "compose-built": ("", 1, 1, 0),
    "compose-built/compose.yaml": ("", 0, 1, 1),
    "compose-sound.yaml": ("", 1, 0, 0),
    "compose-init.yaml": ("sigterm-lost!5", 1, 0, 0),
    "compose-signal.yaml": ("sigterm-lost!5", 1, 0, 0),
    "compose-variables.yaml": ("", 1, 0, 0),
    "mixed.service": ("sigterm-lost!4", 1, 0, 0),
    "group.service": ("", 1, 0, 0),
    "sigquit.service": ("sigterm-lost!3", 1, 0, 0),
    "exec-stop.service": ("sigterm-lost!3", 1, 0, 0),
    "no-limit.service": ("", 1, 0, 0),
    "other.service": ("", 0, 1, 0),
    "supervisord.conf": ("graceful-timeout!10", 2, 1, 0),
    "ecs.json": ("sigterm-lost!3", 1, 0, 1),
    "cloudrun.yaml": ("sigterm-lost!10", 1, 0, 0),
    "cloud-run-long.yaml": ("grace-period!8", 1, 0, 0),
    "cloud-run.yaml": ("", 1, 0, 0),
    "fly": ("sigterm-lost!1", 1, 0, 0),
    "fly-sound": ("", 1, 1, 0),
    "openshift.yaml": ("sigterm-lost!13 readiness-probe:11 no-delay!13", 1, 0, 0),
    "deploymentconfig.yaml": ("sigterm-lost!11", 1, 0, 0),
    # The shell as it is.
    "port-wait.yaml": ("", 1, 0, 0),
    "unlike-branches.sh": ("sigterm-lost!2", 1, 0, 0),
    "elif-branches.sh": ("", 1, 0, 0),
    "exec-dashes": ("", 1, 0, 0),
    "banner.sh": ("", 1, 0, 0),
    "exit-trap.sh": ("", 1, 0, 0),
    "exit-trap-of-sh.sh": ("sigterm-lost!2", 1, 0, 0),
    "looked-for.sh": ("", 1, 0, 0),
    "ends-at-once.sh": ("sigterm-lost!2", 1, 0, 0),
    "slow-loop.sh": ("sigterm-lost!3", 1, 0, 0),
    "bash-mixed.yaml": ("sigterm-lost!11", 1, 0, 0),
    "two-shells": ("sigterm-lost!3 sigterm-lost!2", 1, 0, 0),
    "wait-for-db.sh": ("", 1, 0, 0),
    "loop-waits.sh": ("", 1, 0, 0),
    "pipeline.sh": ("sigterm-lost!2", 1, 0, 0),
    "subshell.sh": ("sigterm-lost!2", 1, 0, 0),
    "quit-trap.sh": ("sigterm-lost!3", 1, 0, 0),
    "runuser.sh": ("sigterm-lost!2", 1, 0, 0),
    "with-contenv.sh": ("", 1, 0, 0),
    "beside.sh": ("", 1, 0, 0),
    "either.sh": ("sigterm-lost!2", 1, 0, 0),
    "scripts-of-a-configmap.yaml": ("sigterm-lost!7", 1, 0, 0),
    "default-with-spaces.sh": ("", 1, 0, 0),
    "nested.sh": ("", 1, 0, 0),
    "default-empty.sh": ("", 1, 0, 0),
    "variable-wrapper.sh": ("sigterm-lost!3", 1, 0, 0),
    "quoted-python.sh": ("", 1, 0, 0),
    "and.yaml": ("sigterm-lost!11", 1, 0, 0),
    "and-alpine.yaml": ("", 1, 0, 0),
    "role.sh": ("", 1, 0, 0),
    "role.yaml": ("", 0, 0, 1),
    "role.yaml role.sh": ("", 0, 1, 0),
    "case.sh": ("", 1, 0, 0),
    "case.yaml case.sh": ("", 0, 1, 0),
    "case-web.yaml case.sh": ("no-delay!3", 1, 0, 0),
    "case-web.yaml": ("", 0, 0, 1),
    "trap-foreground.sh": ("sigterm-lost!3", 1, 0, 0),
    "background-wait.sh": ("sigterm-lost!2", 1, 0, 0),
    "trap-passes.sh": ("", 1, 0, 0),
    "trap-once.sh": ("sigterm-lost!3", 1, 0, 0),
    "function.sh": ("", 1, 0, 0),
    "array.sh": ("", 1, 0, 0),
    "daemon.sh": ("sigterm-lost!2", 1, 0, 0),
    "daemon.Dockerfile": ("sigterm-lost!2", 1, 0, 0),
    "dev-branch.sh": ("", 1, 0, 0),
    # preStop sleeps in every spelling.
    "kill-before-sleep.yaml": ("no-delay!11", 1, 0, 0),
    "drain-on-stock.yaml": ("no-delay!11", 1, 0, 0),
    "prestop-plain.yaml": ("grace-period!8", 1, 0, 0),
    "prestop-quoted.yaml": ("grace-period!8", 1, 0, 0),
    "prestop-bin.yaml": ("grace-period!8", 1, 0, 0),
    "prestop-python.yaml": ("grace-period!8", 1, 0, 0),
    "sleep-default.yaml": ("graceful-timeout!7", 1, 0, 0),
    "sleep-unknown.yaml": ("", 1, 0, 0),
    # gunicorn's own types, and names.
    "short-options.Dockerfile": ("options!2", 1, 0, 0),
    "application-variable.sh": ("", 1, 0, 0),
    "threads-egg.Dockerfile": ("options:2", 1, 0, 0),
    "threads.Dockerfile": ("options:2", 1, 0, 0),
    "option-in-one-word.yaml": ("options!3", 1, 0, 0),
    "dollar-unread.yaml": ("options!11", 1, 0, 0),
    "dollar-bind.yaml": ("options!11", 1, 0, 0),
    "dollar-reference.yaml": ("", 1, 0, 0),
    "dollar.Dockerfile": ("options!2", 1, 0, 0),
    "two-applications.Dockerfile": ("options!2", 1, 0, 0),
    "umask.sh": ("", 1, 0, 0),
    "types.yaml": ("", 1, 0, 0),
    "type-wrong.yaml": ("options!11", 1, 0, 0),
    "worker-misspelt.yaml": ("options!11", 1, 0, 0),
    "worker-plain.yaml": ("options!11", 1, 0, 0),
    "one-bad-value.yaml": ("options!13", 1, 0, 0),
    # Balancers, sidecars, probes.
    "proxy-of-ones-own": ("sidecar!4", 1, 1, 0),
    "reload.yaml": ("no-delay!4", 1, 0, 0),
    "bind-variable.yaml": ("", 1, 0, 0),
    "liveness-tcp.yaml": ("", 1, 0, 0),
    "readiness-true.yaml": ("readiness-probe:12", 1, 0, 0),
    "nlb.yaml": ("short-delay:11", 1, 0, 0),
    "alb-instance.yaml": ("", 1, 0, 0),
    "sidecar-outlives.yaml": ("sidecar!17 no-delay!11", 1, 1, 0),
    "sidecar-not-in-front.yaml": ("", 1, 1, 0),
    "sidecar-by-port.yaml": ("sidecar!12", 1, 0, 1),
    "exporter.yaml": ("", 1, 1, 0),
    "proxy-readiness.yaml": ("", 1, 1, 0),
    "keep-alive-at-nginx.yaml": ("", 1, 1, 0),
    "exec-liveness.yaml": ("", 1, 0, 0),
    "sleep-and-sidecar.yaml": ("prestop-sleep:15 sidecar!16", 1, 1, 0),
    "period-variable.yaml": ("", 1, 0, 0),
}


@pytest.mark.parametrize("paths", TABLE)
def test_cases(capsys, monkeypatch, paths):
    if paths.startswith("fly") and sys.version_info < (3, 11):
        pytest.skip("Python reads TOML from 3.11 on")
    if paths == "types.yaml" and gunicorn.version_info < (25,):
        pytest.skip("gunicorn has a control socket since 25")
    monkeypatch.chdir(CASES)
    status = cli.main(["check", "--format", "json", *paths.split()])
    report = json.loads(capsys.readouterr().out)
    found = [
        f"{finding['rule']}{':!'[finding['severity'] == 'error']}{finding['line']}"
        for finding in report["findings"]
    ]
    expected, servers, others, not_judged = TABLE[paths]
    counts = report["servers"], len(report["others"]), len(report["not_judged"])
    assert (" ".join(found), counts) == (expected, (servers, others, not_judged))
    assert report["unreadable"] == []
    assert status == (2 if not servers else int("!" in expected))


def test_the_table_has_every_case():
    named = {path.partition("=")[2] or path for paths in TABLE for path in paths.split()}
    assert {path.partition("/")[0] for path in named} == {path.name for path in CASES.iterdir()}


@pytest.mark.parametrize("paths", ["proxy-beside", "sidecar-outlives.yaml"])
def test_fixes_name_the_same_delay(capsys, monkeypatch, paths):
    monkeypatch.chdir(CASES)
    cli.main(["check", "--format", "json", paths])
    fixes = [one["fix"] for one in json.loads(capsys.readouterr().out)["findings"]]
    delay = "GRACEFUL_DELAY=12" if paths == "proxy-beside" else "GRACEFUL_DELAY=17"
    assert [delay in fix for fix in fixes] == [True, True]


def test_a_proxy_is_told_the_delay_that_remains_without_the_prestop_hook(capsys, monkeypatch):
    monkeypatch.chdir(CASES)
    cli.main(["check", "--format", "json", "sleep-and-sidecar.yaml"])
    fixes = {one["fix"] for one in json.loads(capsys.readouterr().out)["findings"]}
    assert fixes == {
        "remove the preStop hook, and set GRACEFUL_DELAY=7 and a preStop sleep of 5 s for the "
        "container front"
    }


@pytest.mark.parametrize("output", ["text", "json"])
def test_status_0_says_what_was_judged(capsys, monkeypatch, output):
    monkeypatch.chdir(CASES)
    assert cli.main(["check", "--format", output, "two-own-images"]) == 0
    out = capsys.readouterr().out
    assert "its image, example/backend:1, starts it, and no Dockerfile is called like that" in out
    if output == "text":
        last = out.splitlines()[-1]
        assert last == "2 files, 1 gunicorn, 2 not judged: 0 errors, 0 warnings"
    else:
        assert json.loads(out)["judged"] == ["the image of two-own-images/Dockerfile"]


def test_an_option_s_name_in_the_config_file_is_a_near_miss(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(CASES)
    config = tmp_path / "conf.py"
    config.write_text("access_logfile = '-'\nlog_file = name = 'mine'\n")
    cli.main(["check", "--format", "json", "compose-sound.yaml", "-c", str(config)])
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["mistake"].startswith("access_logfile in the config file is not a setting")
    assert finding["mistake"].endswith("did you mean accesslog?")


def test_the_stage_that_is_built_can_be_said(capsys, monkeypatch):
    monkeypatch.chdir(CASES)
    arguments = ["check", "--format", "json", "last-stage-tests.Dockerfile", "--target"]
    assert cli.main([*arguments, "production"]) == 1
    capsys.readouterr()
    assert cli.main([*arguments, "test"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert [one["program"] for one in report["others"]] == ["pytest"]


def test_our_name_alone_may_be_known_to_a_config_file_that_was_not_given(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(CASES)
    text = (
        (CASES / "worker-plain.yaml").read_text().replace('"app:app"', '"-c", "/x.py", "app:app"')
    )
    path = tmp_path / "web.yaml"
    path.write_text(text)
    assert cli.main(["check", "--format", "json", str(path)]) == 0
    config = tmp_path / "conf.py"
    config.write_text("import gracefulworker\n")
    assert cli.main(["check", "worker-plain.yaml", "-c", str(config)]) == 0
    capsys.readouterr()


def test_a_native_sidecar_with_gunicorn_is_named(capsys, tmp_path):
    text = (CASES / "exec-liveness.yaml").read_text()
    sidecar = "{name: side, image: a, restartPolicy: Always, command: [gunicorn, 'a:a']}"
    path = tmp_path / "web.yaml"
    path.write_text(text.replace("containers:", f"initContainers: [{sidecar}]\n      containers:"))
    assert cli.main(["check", "--format", "json", str(path)]) == 0
    (one,) = json.loads(capsys.readouterr().out)["not_judged"]
    assert one["name"] == "Deployment web, container side"


def test_the_fix_of_a_native_sidecar_is_what_the_sound_file_has(capsys):
    """Its hook and its delay, to the letter: and that is what runs in tests/cluster."""
    manifests = CASES.parent / "manifests"
    cli.main(["check", "--format", "json", str(manifests / "sidecar-native.yaml")])
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    (hook,) = re.findall(r"\[.*\]", finding["fix"])
    (delay,) = re.findall(r"GRACEFUL_DELAY=(\d+)", finding["fix"])
    sound = (manifests / "sound" / "native-sidecar.yaml").read_text()
    assert hook in sound and f'value: "{delay}"' in sound


@pytest.mark.parametrize(
    ("hook", "beside", "native"),
    [
        ("", 0, math.inf),
        ("sleep: {seconds: 5}", 5, math.inf),
        ("exec: {command: [sleep, '5']}", 5, math.inf),
        ("exec: {command: [sh, -c, sleep 5]}", 5, math.inf),
        ("exec: {command: [sh, -c, 'sleep 5; kill -QUIT 1; sleep 1']}", 5, 5),
        ("exec: {command: [/bin/sh, -ec, 'sleep 2 && sleep 3 && nginx -s quit']}", 5, 5),
        ("exec: {command: [nginx, -s, quit]}", 0, 0),
        ("exec: {command: [sh, -c, 'sleep 5; wget -qO- localhost/quitquitquit']}", 5, None),
        ("exec: {command: [pilot-agent, request, POST, drain]}", None, None),
        ("httpGet: {path: /drain, port: 9}", None, None),
    ],
)
def test_when_a_proxy_quits(hook, beside, native):
    text = f"lifecycle: {{preStop: {{{hook}}}}}" if hook else "name: proxy"
    (node,) = documents.parse(Source("web.yaml", "yaml", text, True))
    assert prestop.quits_after(node, False) == beside
    assert prestop.quits_after(node, True) == native


FRONT = """\
      - name: front
        image: nginx:1.29
        ports: [{{containerPort: 80}}]
        lifecycle: {{preStop: {{sleep: {{seconds: {}}}}}}}
"""
NLB = "{name: web, annotations: {service.beta.kubernetes.io/aws-load-balancer-nlb-target-type: ip}}"

TARGETS = """{name: web}
---
apiVersion: elbv2.k8s.aws/v1beta1
kind: TargetGroupBinding
metadata: {name: web}
spec: {serviceRef: {name: web, port: 80}, targetType: ip}
---
kind: Service
metadata: {name: web}"""


@pytest.mark.parametrize(
    ("front", "service", "fix"),
    [
        (None, "{name: web}", "remove the preStop hook"),
        # What the hook was there for must not go with it, be it long enough or not.
        (None, TARGETS, "remove the preStop hook, and set GRACEFUL_DELAY=25"),
        (
            None,
            NLB,
            "remove the preStop hook, and set GRACEFUL_DELAY=150, GRACEFUL_KILL_AFTER=181 and "
            "terminationGracePeriodSeconds: 181",
        ),
        (15, "{name: web}", "remove the preStop hook, and set GRACEFUL_DELAY=17"),
    ],
)
def test_the_hook_that_goes_leaves_a_delay_that_is_long_enough(
    capsys, tmp_path, front, service, fix
):
    port = 8000 if front is None else 80
    text = (CASES / "sleep-and-sidecar.yaml").read_text()
    pod = text.partition("      - name: front")[0].replace("seconds: 15", "seconds: 25")
    pod = pod.replace("terminationGracePeriodSeconds: 60", "terminationGracePeriodSeconds: 90")
    pod += "" if front is None else FRONT.format(front)
    selector = f"spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: {port}}}]}}"
    path = tmp_path / "web.yaml"
    path.write_text(f"{pod}---\nkind: Service\nmetadata: {service}\n{selector}\n")
    cli.main(["check", "--format", "json", str(path)])
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert next(one["fix"] for one in findings if one["rule"] == "prestop-sleep") == fix
    assert any(one["rule"] == "short-delay" for one in findings) == (service is NLB)
