"""`gracefulworker check`: each rule on a file with just that mistake, sound files, bad input.

The files in manifests/ are called after the rule that they break; a comment `# <- here` marks the
line that the finding has to name. Those in manifests/sound/ must pass without a word: each of them
was once easy to mistake for a mistake.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gracefulworker.tools import cli
from gracefulworker.tools.manifests import dockerfile, rules, shell
from gracefulworker.tools.manifests.sources import MAX_SIZE, Source

TESTS = Path(__file__).parent
EXAMPLES = TESTS.parents[1] / "examples"
FAULTS = sorted(p for p in (TESTS / "manifests").iterdir() if p.is_file())
SOUND = sorted((TESTS / "manifests" / "sound").iterdir())

#: The parts that are filled in below are all that matters.
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: app
          image: registry.example/web:1
          readinessProbe: {httpGet: {path: /, port: 8000}}
"""

DOCKERFILE = 'FROM python:3.13-slim\nCMD ["gunicorn", "-k", "gthread", "app:app"]\n'


@pytest.fixture
def check(capsys):
    """Runs the command on paths; returns its exit status and its report."""

    def run(*arguments):
        status = cli.main(["check", "--format", "json", *map(str, arguments)])
        return status, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def write(tmp_path):
    """Writes a file, its name first, and returns its path."""

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def found(report):
    return [finding["rule"] for finding in report["findings"]]


def deployment(command, more=""):
    return f"{DEPLOYMENT}          command: {json.dumps(command)}\n{more}"


# -- the rules


@pytest.mark.parametrize("path", FAULTS, ids=lambda path: path.name)
def test_finds_exactly_the_planted_fault(check, path):
    status, report = check(path)
    assert report["unreadable"] == []
    (finding,) = report["findings"]
    assert path.name.startswith(finding["rule"])
    assert finding["file"] == str(path)
    marked = [n for n, line in enumerate(path.read_text().splitlines(), 1) if "# <- here" in line]
    assert marked in ([], [finding["line"]])
    assert status == (finding["severity"] == "error")
    assert all(finding[name] for name in ("mistake", "effect", "fix", "field", "server"))


def test_each_rule_has_a_fault():
    names = {path.name for path in FAULTS}
    assert [r for r in rules.RULES if not any(name.startswith(r) for name in names)] == []
    assert len(rules.RULES) == 15


@pytest.mark.parametrize("path", SOUND, ids=lambda path: path.name)
def test_finds_nothing_in_sound_files(check, path):
    status, report = check(path)
    # These two start nothing by themselves, and that is said; all others are judged.
    starts = path.name not in ("entrypoint.sh", "patch.yaml")
    assert (report["findings"], report["unreadable"]) == ([], [])
    assert (status, report["servers"] > 0) == ((0, True) if starts else (2, False))
    assert starts or report["not_judged"]


@pytest.mark.parametrize(
    "words",
    [
        ["gunicorn"],
        ["/opt/venv/bin/gunicorn"],
        ["python3.12", "-X", "dev", "-m", "gunicorn"],
        ["python", "/usr/local/bin/gunicorn"],
        ["tini", "-v", "--", "gunicorn"],
        ["/usr/bin/dumb-init", "--rewrite", "15:2", "gunicorn"],
        ["ddtrace-run", "gunicorn"],
        ["newrelic-admin", "run-program", "gunicorn"],
        ["opentelemetry-instrument", "--traces_exporter", "otlp", "gunicorn"],
        ["poetry", "run", "gunicorn"],
        ["uv", "run", "--no-sync", "gunicorn"],
        ["env", "A=1", "gunicorn"],
        ["gosu", "app", "python", "-m", "gunicorn"],
        ["docker-entrypoint.sh", "gunicorn"],
    ],
    ids=" ".join,
)
def test_gunicorn_is_found_behind_wrappers(check, write, words):
    _, report = check(write("web.yaml", deployment([*words, "-k", "gthread", "app:app"])))
    assert (report["servers"], found(report)) == (1, ["no-delay"])


@pytest.mark.parametrize(
    "words",
    [
        ["celery", "-A", "app"],
        ["pip", "install", "gunicorn"],
        ["echo", "gunicorn"],
        ["uvicorn"],
        [],
    ],
    ids=" ".join,
)
def test_what_is_not_gunicorn_is_not_judged(check, write, words):
    assert check(write("web.yaml", deployment(words)))[1]["servers"] == 0


@pytest.mark.parametrize(
    ("text", "is_held"),
    [
        ("exec gunicorn app:app", False),
        ("cd /app && exec gunicorn app:app", False),
        ("if true; then exec gunicorn app:app; fi", False),
        ("exec gunicorn app:app >> /log 2>&1", False),
        ("gunicorn app:app", True),
        ("exec gunicorn app:app | tee /log", True),
        ("exec gunicorn app:app &\nwait", True),
        ("trap 'kill $!' TERM; gunicorn app:app & wait", True),
        ("trap 'kill $!; wait' TERM; gunicorn app:app & wait", False),
        ("trap 'kill $!' TERM; gunicorn app:app & wait; wait", False),
        ("stop() { kill -TERM $!; wait $!; }; trap stop TERM INT; gunicorn app:app & wait", False),
        ("trap 'kill $!; wait' TERM; gunicorn app:app", True),
        ("trap 'echo bye; exit' TERM; gunicorn app:app & wait", True),
        ("trap cleanup EXIT; exec gunicorn app:app", False),
        ("(exec gunicorn app:app)", True),
        ("gunicorn app:app &\nexec nginx", True),
    ],
)
def test_shell_above_gunicorn(check, write, text, is_held):
    words = ["sh", "-c", text.replace("app:app", "-k gracefulworker.gthread app:app")]
    _, report = check(write("web.yaml", deployment(words)))
    assert (report["servers"], found(report)) == (1, ["sigterm-lost"] * is_held)


@pytest.mark.parametrize("shell_name", ["dash", "bash", "busybox sh"])
@pytest.mark.parametrize(
    "text",
    [
        *("{}", "true && {}", "true; {}", "A=1 {}", "{} 2>&1", "{} | cat", "cd / && exec {}"),
        *("if true; then {}; fi", "{{ {}; }}", "({})", "(exec {})", "case a in a) {};; esac"),
        *("f() {{ {}; }}; f", "for i in 1; do {}; done", "{} || exit 1", "true\n{}\n", "{}; exit"),
        *("trap 'true' EXIT; {}", "eval '{}'", "[ -n x ] && {}", "! {}"),
        *("true & {}", "true &\n{}", "true; true && {}", "true & true; {}", "true && true; {}"),
        *("true | true; {}", "{{ true; }}; {}", "export A=1; true && {}", "true; true\ntrue && {}"),
    ],
)
def test_shells_do_what_the_rule_says(check, write, tmp_path, shell_name, text):
    """The same text is judged, and run: is the shell still there, or has it become the command?"""
    if shutil.which(shell_name.split()[0]) is None:
        pytest.skip(f"there is no {shell_name} here")
    words = [*shell_name.split(), "-c", text.format("gunicorn -k gracefulworker.gthread app:app")]
    _, report = check(write("web.yaml", deployment(words)))

    program = write("gunicorn", "#!/bin/sh\necho $$; exec sleep 60\n")
    program.chmod(0o755)
    process = subprocess.Popen(
        [*shell_name.split(), "-c", text.format(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with process:
        try:
            stays = int(process.stdout.readline()) != process.pid
        finally:
            os.killpg(process.pid, 9)
    assert found(report) == ["sigterm-lost"] * stays


def test_many_wrappers_are_followed_in_time(check, write):
    """Each looks at all the words after it, and does so once."""
    begin = time.monotonic()
    words = ["env", "$X", "/run.sh", "tini", "--"] * 200
    assert check(write("web.yaml", deployment([*words, "celery"])))[1]["servers"] == 0
    assert check(write("web.yaml", deployment(["env", "tini", "gunicorn"])))[1]["servers"] == 1
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["poetry", "run", "gunicorn", "app:app"], None),
        (["sh", "-c", "./checks.sh && exec gunicorn app:app"], None),
        (["/docker-entrypoint.sh", "gunicorn", "app:app"], "docker-entrypoint.sh was not given"),
    ],
)
def test_only_what_gunicorn_is_started_through_is_noted(check, write, words, note):
    _, report = check(write("web.yaml", deployment(words)))
    assert report["servers"] == 1
    assert [note in one for one in report["notes"]] == ([] if note is None else [True])


# -- several files together


def test_command_of_the_image(check, write):
    """A container without a command is started by the one Dockerfile that was given."""
    image = write("Dockerfile", DOCKERFILE)
    assert found(check(write("web.yaml", DEPLOYMENT))[1]) == []
    assert found(check(write("web.yaml", DEPLOYMENT), image)[1]) == ["no-delay"]
    more = '          args: ["gunicorn", "-k", "gracefulworker.gthread", "app:app"]\n'
    assert found(check(write("web.yaml", DEPLOYMENT + more), image)[1]) == []


def test_image_with_the_containers_name_among_several(check, write, tmp_path):
    write("web/Dockerfile", DOCKERFILE)
    write("worker/Dockerfile", 'FROM python\nCMD ["celery"]\n')
    write("web.yaml", DEPLOYMENT)
    _, report = check(tmp_path)
    assert [one["server"] for one in report["findings"]] == ["Deployment web, container app"]


def test_a_dockerfile_that_no_container_is_matched_to_is_named(check, write, tmp_path):
    """Else nobody would know that the Deployment was not judged."""
    image = write("shop/Dockerfile", DOCKERFILE)
    write("worker/Dockerfile", 'FROM python\nCMD ["celery"]\n')
    write("more/Dockerfile", DOCKERFILE)
    write("web.yaml", DEPLOYMENT.replace("/web:1", "/other:1"))
    _, report = check(tmp_path)
    assert (
        f"{image}: no container in the files is known to start this image as it is"
        in report["notes"]
    )
    assert len(report["notes"]) == 2


def test_script_of_the_image(check, write):
    """ENTRYPOINT a script that was given, CMD what it runs."""
    image = write(
        "Dockerfile", 'FROM python\nENTRYPOINT ["/entrypoint.sh"]\nCMD ["gunicorn", "app:app"]\n'
    )
    sound = write("entrypoint.sh", '#!/bin/sh\nset -e\nexec "$@"\n')
    assert found(check(image, sound)[1]) == []
    script = write("entrypoint.sh", '#!/bin/sh\nset -e\n"$@"\n')
    (finding,) = check(image, script)[1]["findings"]
    assert (finding["rule"], finding["file"], finding["line"]) == ("sigterm-lost", str(script), 3)


def test_scripts_in_a_directory_are_read_only_when_they_are_used(check, write, tmp_path):
    write("scripts/dev.sh", "#!/bin/sh\ngunicorn --reload app:app\n")
    assert check(tmp_path)[1]["servers"] == 0


def test_config_file(check, write):
    manifest = write("web.yaml", deployment(["gunicorn", "-c", "/etc/web.py", "app:app"]))
    status, report = check(manifest)
    assert (status, report["findings"]) == (0, [])
    assert "gunicorn reads /etc/web.py: give it with -c" in report["notes"][0]
    config = write("conf.py", "import os\nprint('hello')\nworker_class = os.environ['WORKER']\n")
    more = "          env: [{name: WORKER, value: %s}]\n"
    stock = write("web.yaml", manifest.read_text() + more % "gevent")
    assert found(check(stock, "-c", config)[1]) == ["no-delay"]
    ours = write("web.yaml", manifest.read_text().replace("gevent", "gracefulworker.gevent"))
    assert found(check(ours, "-c", config)[1]) == []


def test_config_file_that_lies_beside_is_named_and_not_run(check, write):
    manifest = write("web.yaml", deployment(["gunicorn", "app:app"]))
    assert found(check(manifest)[1]) == ["no-delay"]
    write("gunicorn.conf.py", "raise SystemExit('run')\n")
    _, report = check(manifest)
    assert report["findings"] == []
    assert "gunicorn.conf.py: give it with -c" in report["notes"][0]


HOOK = "from gracefulworker.hooks import when_ready\n"
CALLED = "import gracefulworker.hooks as h\ndef when_ready(s): h.when_ready(s)\n"


@pytest.mark.parametrize("config", (HOOK, CALLED), ids=("imported", "called"))
def test_hooks_in_the_config_file_are_a_delay(check, write, config):
    manifest = write("web.yaml", deployment(["gunicorn", "-k", "uvicorn.workers.W", "app:app"]))
    assert found(check(manifest, "-c", write("conf.py", config))[1]) == []


def test_an_import_alone_is_no_delay(check, write):
    """It makes `-k gracefulworker` known, or is for `draining`."""
    config = write("conf.py", "import gracefulworker\nfrom gracefulworker import Phase, draining\n")
    manifest = write("web.yaml", deployment(["gunicorn", "-k", "gthread", "app:app"]))
    assert found(check(manifest, "-c", config)[1]) == ["no-delay"]
    manifest = write("web.yaml", deployment(["gunicorn", "-k", "gracefulworker", "app:app"]))
    assert found(check(manifest, "-c", config)[1]) == []
    config = write(
        "conf.py", "import gracefulworker\nclass W(gracefulworker.sync): ...\nworker_class = W\n"
    )
    manifest = write("web.yaml", deployment(["gunicorn", "app:app"]))
    assert found(check(manifest, "-c", config)[1]) == []


@pytest.mark.parametrize(
    ("worker", "ours"),
    [
        ("uvicorn_worker.UvicornWorker", "gracefulworker.uvicorn"),
        ("uvicorn.workers.UvicornWorker", "gracefulworker.uvicorn"),
        ("gunicorn.workers.ggevent.GeventWorker", "gracefulworker.gevent"),
        ("egg:gunicorn#gthread", "gracefulworker.gthread"),
        ("sync", "gracefulworker.sync"),
        ("asgi", None),
        ("uvicorn_worker.UvicornH11Worker", None),
    ],
)
def test_what_is_to_be_used_instead_of_a_stock_class(check, write, worker, ours):
    """Alone it has no delay; beside the hook, not our end."""
    manifest = write("web.yaml", deployment(["gunicorn", "-k", worker, "app:app"]))
    (finding,) = check(manifest)[1]["findings"]
    fix = finding["fix"].partition(" (")[0]
    assert finding["rule"] == "no-delay"
    assert fix == (f"-k {ours}" if ours else f"`{HOOK.strip()}` in gunicorn's config file")
    report = check(manifest, "-c", write("conf.py", HOOK))[1]
    assert [(f["rule"], f["fix"]) for f in report["findings"]] == (
        [("hook-only", f"-k {ours}")] if ours else []
    )


@pytest.mark.parametrize(
    "worker",
    ("gracefulworker.uvicorn", "egg:gracefulworker#uvicorn", "uvicorn_worker.UvicornWorker"),
)
@pytest.mark.parametrize("keep_alive", ("0", "5", "65"))
def test_uvicorn_keeps_connections_alive(check, write, worker, keep_alive):
    words = ["gunicorn", "-k", worker, "--keep-alive", keep_alive, "app:app"]
    procfile = write("Procfile", f"web: {' '.join(words)}\n")
    assert "keep-alive" in found(check(procfile)[1])
    procfile = write("Procfile", f"web: {' '.join(words)} --keep-alive 95\n")
    assert "keep-alive" not in found(check(procfile)[1])


@pytest.mark.parametrize(
    "text", ["import nothing_of_this_name", "raise SystemExit(3)", "x = (", "1 / 0"]
)
def test_config_file_that_cannot_be_run(write, capsys, text):
    manifest = write("web.yaml", deployment(["gunicorn", "app:app"]))
    config = write("conf.py", text)
    assert cli.main(["check", str(manifest), "-c", str(config)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "conf.py cannot be run: " in printed.err
    assert "Traceback" not in printed.err


def test_misspelt_name_in_the_config_file(check, write):
    manifest = write("web.yaml", deployment(["gunicorn", "-k", "gracefulworker.gthread", "app:a"]))
    config = write("conf.py", "grateful_timeout = 20\n")
    (finding,) = check(manifest, "-c", config)[1]["findings"]
    assert (finding["rule"], finding["severity"]) == ("options", "warning")
    assert "did you mean graceful_timeout?" in finding["mistake"]


def test_our_own_environment_does_not_leak_into_the_service(check, write, monkeypatch):
    monkeypatch.setenv("GRACEFUL_DELAY", "nonsense")
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--no-such-option")
    monkeypatch.setenv("WEB_CONCURRENCY", "many")
    command = ["gunicorn", "-k", "gracefulworker.gthread", "app:app"]
    assert found(check(write("web.yaml", deployment(command)))[1]) == []


# -- the example


def test_example_is_valid():
    documents = [
        document
        for path in sorted((EXAMPLES / "kubernetes").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]
    kinds = {document["kind"] for document in documents}
    served = {"Deployment", "Service", "PodDisruptionBudget", "Kustomization"}
    assert kinds == served | {"Job", "ServiceAccount", "Role", "RoleBinding"}
    for document in documents:
        if document["kind"] != "Kustomization":  # kustomize's own, no part of the API
            for version in ("1.30", kubernetes_validate.latest_version()):
                kubernetes_validate.validate(document, version, strict=True)


def test_schemas_find_a_fault():
    document = yaml.safe_load((EXAMPLES / "kubernetes" / "deployment.yaml").read_text())
    document["spec"]["template"]["spec"]["terminationGracePeriod"] = 30
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_kustomization_lists_what_is_there():
    directory = EXAMPLES / "kubernetes"
    listed = yaml.safe_load((directory / "kustomization.yaml").read_text())["resources"]
    # The rehearsal restarts what runs, so it is applied by itself.
    known = [*listed, "kustomization.yaml", "rehearse-job.yaml"]
    assert sorted(known) == sorted(p.name for p in directory.iterdir())


def test_nothing_is_found_in_the_examples(check):
    config = EXAMPLES / "flask_app" / "gunicorn.conf.py"
    status, report = check(EXAMPLES / "kubernetes", EXAMPLES / "flask_app", "-c", config)
    assert (status, report["findings"], report["notes"]) == (0, [], [])
    assert report["judged"] == ["Deployment graceful-flask, container app"]


def test_a_fault_in_the_example_is_found(check, tmp_path):
    """The test above does look: the same files with a shorter period."""
    text = (EXAMPLES / "kubernetes" / "deployment.yaml").read_text()
    assert "terminationGracePeriodSeconds: 30\n" in text
    path = tmp_path / "deployment.yaml"
    path.write_text(
        text.replace("terminationGracePeriodSeconds: 30\n", "terminationGracePeriodSeconds: 20\n")
    )
    config = EXAMPLES / "flask_app" / "gunicorn.conf.py"
    _, report = check(path, EXAMPLES / "flask_app", "-c", config)
    assert found(report) == ["grace-period"]


# -- input and output


def test_text(capsys):
    path = TESTS / "manifests" / "no-delay.yaml"
    assert cli.main(["check", str(path)]) == 1
    first, where, clients, fix, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}:17: error: no-delay: gunicorn (worker class gthread) stops")
    assert where.endswith("container app: spec.template.spec.containers[0].command")
    assert clients.startswith("    clients  for some seconds at each deploy")
    assert fix.startswith("    fix      -k gracefulworker.gthread")
    assert last == "1 file, 1 gunicorn: 1 error, 0 warnings"


def test_json_fields(check):
    _, report = check(TESTS / "manifests" / "no-delay.yaml")
    assert report.keys() == {
        *("schema", "files", "servers", "findings", "unreadable", "notes"),
        *("ignored", "judged", "not_judged", "others", "passed_over"),
    }
    assert report["schema"] == 1
    assert report["findings"][0].keys() == {
        *("rule", "severity", "server", "file", "line", "field", "mistake", "effect", "fix"),
        "also",
    }


def test_standard_input():
    text = (TESTS / "manifests" / "no-delay.yaml").read_text()
    command = [sys.executable, "-m", "gracefulworker", "check", "-"]
    ran = subprocess.run(command, input=text, capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stdout.startswith("<stdin>:17: error: no-delay")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.yaml", b"a: [1, 2\nb: }", "is not valid YAML"),
        ("a.yaml", b"\xff\xfe\x00\x01", "is not text"),
        ("a.yaml", b"a: \x00", "zero byte"),
        ("a.yaml", b"a: \x07", "is not valid YAML"),
        ("a.yaml", b"[" * 100_000, "is not read: its YAML is nested too deeply"),
        ("a.yaml", b"- " * 100_000, "is not read: its YAML is nested too deeply"),
        (
            "a.yaml",
            b"\n".join(b" " * (1998 * n) + b"- " * 999 for n in range(70)),
            "is not read: its YAML is nested too deeply",
        ),
        ("a.yaml", b"a: " + b"x" * 10_000_000, "is larger than 5 MB"),
        ("a.json", b'{"kind": ', "is not valid YAML"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "is neither YAML, nor a Dockerfile"),
        ("notes.txt", b"gunicorn", "is neither YAML, nor a Dockerfile"),
        ("a.yaml", b"{{- if .Values.web }}\nkind: Deployment\n{{- end }}\n", "helm template"),
        (
            "a.yaml",
            deployment(["gunicorn", "app"], "          env: {{ .Values.env }}\n").encode(),
            "a template that has not been rendered",
        ),
    ],
)
def test_unreadable_input_is_named(check, tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    status, report = check(path)
    assert status == 2
    (error,) = report["unreadable"]
    assert error["file"] == str(path)
    assert message in error["message"]


def test_line_of_broken_yaml(check, write):
    (error,) = check(write("a.yaml", "a: 1\nb: 2\nc: d: e\n"))[1]["unreadable"]
    assert error["line"] == 3


def test_what_can_be_read_is_judged_all_the_same(check, write):
    broken = write("broken.yaml", "a: [")
    status, report = check(broken, TESTS / "manifests" / "no-delay.yaml", broken.parent / "none")
    assert status == 2
    assert found(report) == ["no-delay"]
    assert [Path(one["file"]).name for one in report["unreadable"]] == ["broken.yaml", "none"]


@pytest.mark.parametrize(
    "text", ["", "---\n---\n", "# nothing\n", "null", "[1, 2]", "text", "a: *b"]
)
def test_files_without_a_workload(check, write, text):
    status, report = check(write("a.yaml", text))
    assert (status, report["servers"]) == (2, 0)
    assert report["unreadable" if "*" in text else "passed_over"]


@pytest.mark.parametrize(
    "text",
    [
        "kind: Deployment\nspec: &a {template: *a}\n",
        "kind: Deployment\nspec: &a\n  <<: *a\n  template: *a\n",
        "kind: [Deployment]\n",
        "kind: Deployment\nspec: 3\n",
        "kind: Pod\nspec: {containers: {name: app, image: a}}\n",
        "kind: Pod\nspec: {containers: [null, 3, [], {image: [], command: 3}]}\n",
        "kind: Pod\nspec: {containers: [{image: a, command: [gunicorn, [], {}, null], env: x}]}\n",
        "kind: Pod\nspec: {containers: [{image: a, command: [sh, -c]}]}\n",
        "kind: List\nitems: {}\n",
        "kind: Deployment\nspec: {strangeField: 1, template: {spec: {containers: [{image: a}]}}}\n",
    ],
)
def test_strange_manifests_are_no_traceback(check, write, text):
    status, report = check(write("a.yaml", text))
    assert (status in (0, 1)) == (report["servers"] > 0)


def test_laughs(check, write):
    """Aliases of aliases of aliases: 10 ** 9 nodes, if anybody wrote them out."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    text = "\n".join([*lines, "kind: Deployment", "spec: {template: {spec: {containers: *a8}}}"])
    assert check(write("a.yaml", text))[0] == 2


def test_directory_with_other_files(check, write, tmp_path):
    write("web.yaml", deployment(["gunicorn", "app:app"]))
    write("package-lock.json", "{")
    write("README.md", "{{ }}")
    write("node_modules/x/broken.yaml", "a: [")
    write(".git/broken.yaml", "a: [")
    os.mkfifo(tmp_path / "pipe.yaml")
    status, report = check(tmp_path)
    assert (status, report["files"], found(report)) == (1, 1, ["no-delay"])


def test_chart_in_a_directory_is_one_error(check, write, tmp_path):
    write("chart/Chart.yaml", "name: web\n")
    for name in ("deployment", "service"):
        write(f"chart/templates/{name}.yaml", "{{- if .Values.web }}\n{{- end }}\n")
    status, report = check(tmp_path)
    assert status == 2
    (error,) = report["unreadable"]
    assert error["file"] == str(tmp_path / "chart" / "templates")


def test_json_with_tabs(check, write):
    manifest = yaml.safe_load(deployment(["gunicorn", "app:app"]))
    path = write("web.json", json.dumps(manifest, indent="\t"))
    assert found(check(path)[1]) == ["no-delay"]


def test_characters_that_cannot_be_printed(capsys, tmp_path):
    path = tmp_path / "a\udcff.yaml"
    text = deployment(["gunicorn", "app:app"]).replace("name: app", 'name: "a\\nb\\e[2J"')
    path.write_text(text)
    assert cli.main(["check", str(path)]) == 1
    first, where, *_ = capsys.readouterr().out.splitlines()
    assert "/a\\udcff.yaml:" in first
    assert "container a\\nb\\x1b[2J: " in where


def test_directory_that_cannot_be_read(check, tmp_path, monkeypatch):
    """Permissions do not hold back root, so the directory vanishes between two calls."""
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    status, report = check(tmp_path / "gone")
    assert status == 2
    assert report["unreadable"][0]["message"] == "cannot be read: No such file or directory"


def test_config_file_that_changes_the_directory(check, write):
    manifest = write("web.yaml", deployment(["gunicorn", "app:app"]))
    config = write("conf.py", "import os, sys\nos.chdir('/')\nsys.path.clear()\n")
    before = os.getcwd(), list(sys.path)
    assert found(check(manifest, "-c", config)[1]) == ["no-delay"]
    assert (os.getcwd(), sys.path) == before


def test_usage_errors(capsys):
    assert cli.main(["check"]) == 2
    assert "give at least one file or directory" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", "--format", "xml", "."])
    assert ended.value.code == 2


@pytest.mark.parametrize("name", ["yaml", "tree_sitter", "tree_sitter_bash"])
def test_without_the_extra(tmp_path, name):
    """Each of the packages is hidden by a module of its name that is not there."""
    (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError(name='{name}')\n")
    command = [sys.executable, "-m", "gracefulworker", "check", "x.yaml"]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr == (
        "gracefulworker check needs PyYAML and tree-sitter: "
        "pip install 'gracefulworker[kubernetes]'\n"
    )


def test_two_hundred_documents(check, write):
    """The ceiling is far above what it takes (0.3 s on an idle machine): it is not quadratic."""
    documents = [
        deployment(["gunicorn", "-k", "gracefulworker.gthread", "app:app"]).replace(
            "name: web", f"name: web-{number}"
        )
        for number in range(200)
    ]
    path = write("all.yaml", "---\n".join(documents))
    begin = time.monotonic()
    status, report = check(path)
    assert time.monotonic() - begin < 20
    assert (status, report["servers"]) == (0, 200)


# -- anything at all


WORDS = st.sampled_from(
    [
        *("kind: Deployment", "spec:", "template:", "containers:", "- name: app", "image: a:1"),
        *("command: [", "gunicorn", "sh", "-c", "]", "{", "}", "'", '"', "|", ">", "&a", "*a"),
        *("<<: *a", "---", "{{", "env:", "- name: GUNICORN_CMD_ARGS", "value: ", "\t", "$(X)"),
        *("-b", "$X", "${X:-1}", "exec", "&&", "<<EOF", "EOF", "FROM a AS b", "CMD", "ENTRYPOINT"),
        *("readinessProbe: {httpGet: {port: x}}", "lifecycle: {preStop: {sleep: 3}}", "\\", "#"),
        *("terminationGracePeriodSeconds: .inf", "SHELL []", 'CMD ["gunicorn", "-w"]', "web: "),
    ]
)
LINES = st.lists(
    st.tuples(st.integers(0, 8), st.lists(WORDS | st.text(max_size=8), max_size=6)), max_size=20
)
ANY = LINES.map(lambda lines: "\n".join(" " * n + " ".join(words) for n, words in lines))


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(ANY | st.text(), st.sampled_from(["a.yaml", "Dockerfile", "Procfile", "entrypoint.sh"]))
def test_no_text_is_a_traceback(tmp_path, capsys, text, name):
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert cli.main(["check", str(path)]) in (0, 1, 2)
    capsys.readouterr()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = [
    *(("kind",), ("metadata",), ("spec",), ("spec", "template"), ("spec", "template", "spec")),
    *(("spec", "template", "metadata", "labels"), ("spec", "strategy")),
    *(("spec", "template", "spec", "containers"),),
    *(("spec", "template", "spec", "terminationGracePeriodSeconds"),),
]
CONTAINER = ["command", "args", "env", "envFrom", "image", "name", "ports", "lifecycle"]
CONTAINER += ["readinessProbe", "livenessProbe", "startupProbe"]


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_no_value_in_any_field_is_a_traceback(tmp_path, capsys, data):
    manifest = yaml.safe_load(deployment(["gunicorn", "--timeout", "120", "app:app"]))
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    for name in data.draw(st.lists(st.sampled_from(CONTAINER), max_size=3)):
        container[name] = data.draw(VALUES)
    if data.draw(st.booleans()):
        *path, last = data.draw(st.sampled_from(FIELDS))
        target = manifest
        for key in path:
            target = target.setdefault(key, {})
        target[last] = data.draw(VALUES)
    file = tmp_path / "a.json"
    file.write_text(json.dumps(manifest))
    assert cli.main(["check", str(file)]) in (0, 1, 2)
    capsys.readouterr()


# -- the readers


def test_shell_commands():
    text = "A=1 B='x y' run one \\\n  two # comment\nif [ x ]; then exec last 2>&1; fi | tee\n"
    first, second, tee = shell.commands(text)
    assert (first.line, first.assigned, first.words) == (
        1,
        {"A": "1", "B": "x y"},
        ["run", "one", "two"],
    )
    assert (second.line, second.words, second.is_exec) == (3, ["last"], True)
    assert second.is_redirected
    assert (tee.words, tee.beside) == (["tee"], "pipeline")


def test_shell_here_document_is_no_command():
    text = "cat <<-'EOF' > file\nit's\nEOF\nrun\n"
    assert [command.words for command in shell.commands(text)] == [["cat"], ["run"]]


def test_shell_quotation_that_never_ends_is_not_understood():
    assert shell.commands("echo it's\nrun\n") == []
    assert not shell.is_understood("echo it's\nrun\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run ${A:- -x 1} ${B:-${C:-2}}", ["run", "-x", "1", "2"]),
        ('A=${A:-}\n$A run "$A"', ["run", ""]),
        ('run $KNOWN "$KNOWN" $OTHER', ["run", "a", "b", "a b", "$OTHER"]),
        ("L=(one 'two 2')\nL+=(three)\nrun \"${L[@]}\"", ["run", "one", "two 2", "three"]),
        ('set -- x "$@"; shift; run "$@"', ["run", "arg 1", "arg2"]),
        ("$(which run) `command -v x`", ["run", "x"]),
        ('if [ "$KNOWN" = no ]; then other; else run; fi', ["run"]),
        ("[[ $KNOWN == a* ]] && run", ["run"]),
        ("case $KNOWN in b*) other;; a*) run;; *) other;; esac", ["run"]),
        ('f() { run "$1"; }; f "$KNOWN"', ["run", "a b"]),
        ('eval "run $KNOWN"', ["run", "a", "b"]),
        ("run ${KNOWN#a } ${KNOWN%% *}", ["run", "b", "a"]),
        ("exit 0\nother", None),
        ("exec run\nother", ["run"]),
        ('test -n "$KNOWN" || other; run', ["run"]),
        # A character that is no ASCII after a brace ended the process, in the grammar's scanner.
        ("run {\U000e7335 'é' \"$KNOWN ü\" ${A:-ñ}", ["run", "{\U000e7335", "é", "a b ü", "ñ"]),
        ('B="$KNOWN $KNOWN"; run "$B"', ["run", "a b a b"]),
    ],
)
def test_shell_is_followed(text, words):
    found = shell.commands(text, {"KNOWN": "a b"}, ["arg 1", "arg2"])
    assert [command.words for command in found] == ([] if words is None else [words])
    assert not any(command.condition for command in found)


def test_shell_branches_that_are_not_known_are_marked():
    text = "if [ $X = 1 ]; then A=1; one; else A=2; two; fi\nthree $A\n"
    one, two, three = shell.commands(text)
    assert (one.condition, two.condition, three.condition) == ("[ $X = 1 ]", "[ $X = 1 ]", None)
    assert three.words == ["three", "$A"]


def test_shell_variables_reach_a_command_only_when_they_are_exported():
    (command,) = shell.commands("A=1\nexport B=2\nC=3 D=4\nexport C\nE=5 run\n")
    assert command.assigned == {"B": "2", "C": "3", "E": "5"}


@pytest.mark.parametrize(
    "text",
    [
        "f() { f; f; }; f",
        "f() { g; g; }; g() { f; f; }; f",
        "if x; then " * 3000 + "y; " + "fi; " * 3000,
    ],
)
def test_shell_without_an_end_is_given_up(text):
    with pytest.raises(shell.TooMuch):
        shell.commands(text)


@pytest.mark.parametrize("unit", ["(", "{ ", "a | ", "if x; then ", "${", '"', "<<A ", "x $A\n"])
def test_a_long_text_is_followed_or_given_up_in_time(unit):
    """The ceiling is far above what each takes (2 s at most on an idle machine)."""
    begin = time.monotonic()
    for size in (shell.MAX_SIZE - 10, 2 * shell.MAX_SIZE):
        with contextlib.suppress(shell.TooMuch):
            shell.commands(unit * (size // len(unit)))
    assert time.monotonic() - begin < 30


def test_dockerfile_stages():
    text = (
        "ARG BASE=python\n"
        "FROM python:3.13-alpine AS base\n"
        "ENV A=1 B='two words'\n"
        'ENTRYPOINT ["tini", "--"]\n'
        "FROM node AS assets\n"
        "CMD npm start\n"
        "FROM base\n"
        "env C $A\n"
        'CMD ["gunicorn"]\n'
    )
    *_, image = dockerfile.read(Source("Dockerfile", "dockerfile", text, True)).stages
    assert image.entrypoint.words == ("tini", "--")
    assert (image.command.words, image.command.place.line) == (("gunicorn",), 9)
    assert image.environ == {"A": "1", "B": "two words", "C": "1"}
    assert image.sh == "busybox"


def test_size_limit_is_far_above_a_large_chart():
    assert MAX_SIZE == 5_000_000


def test_documentation_has_each_rule_with_an_anchor():
    text = (TESTS.parents[1] / "docs" / "check.md").read_text()
    sections = text.partition("## The rules")[2].partition("\n## ")[0]
    assert re.findall(r"^### ([\w-]+)$", sections, re.MULTILINE) == [*rules.RULES]
    for word in ("Clients", "Fix"):
        assert sections.count(f"- **{word}:** ") == len(rules.RULES)


@pytest.mark.parametrize(
    "test",
    [
        *('[[ "$1" = "api" || -z "$1" ]]', '[ "$1" = api -o -z "$1" ]', '[ -z "$1" -o "$1" = b ]'),
        *('[ "$1" = api -a "$2" = b ]', "[[ $1 == a* && $2 != b ]]", '[[ -n "$1" && $1 != api ]]'),
        *('[[ ! ( "$1" = x || $1 == y ) ]]', '[ ! "$1" = x ]', "[[ ! -z $1 && ! $2 ]]", "[[ $1 ]]"),
        *('[ "$1" ]', '[ "$#" -gt 1 ]', "[[ $# -eq 0 || $1 = -* ]]", '[ "${1#-}" != "$1" ]'),
        *(
            '[ x"$1" = xapi ]',
            "[[ $1 = a || $1 = b || $2 = b ]]",
            "[[ $1 = x && $1 = b || $2 = b ]]",
        ),
    ],
)
def test_tests_hold_as_in_bash(test):
    for arguments in ([], ["api"], ["x"], ["a", "b"], ["b"], ["-x"], ["apix", "c"]):
        text = f"if {test}; then run; fi"
        holds = subprocess.run(["bash", "-c", f"! {test}", "bash", *arguments]).returncode == 1
        found = [(one.words, one.condition) for one in shell.commands(text, {}, arguments)]
        assert found == [(["run"], None)] * holds
