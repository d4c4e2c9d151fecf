"""`gracefulworker check` on anything at all: never a traceback, never green without a word.

CHECK_EXAMPLES is the number of examples for each kind of file, 200 unless set: with 3000 it takes
five minutes.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gracefulworker.tools import cli
from gracefulworker.tools.manifests import shell

EXAMPLES = int(os.environ.get("CHECK_EXAMPLES", "200"))

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

#: What is made of names and values that mean something here, and of anything else.
VALUES = [
    *("gunicorn", "gunicorn -w 2 app:app", "exec gunicorn app:app", "sh", "-c", "--help", "-h"),
    *("--version", "$X", "${X:-1}", "${X:- -w 4}", "app:app", "-k", "gracefulworker.gthread", "30"),
    *("10s", "1m30s", "0", "-1", "1e400", "SIGINT", "true", "nginx", "redis:7", "web", "/start.sh"),
    *("sleep 5", "python -c 'import time; time.sleep(3)'", "--umask", "007", "--timeout", "a=b"),
]
TEXT = st.sampled_from(VALUES) | st.text(max_size=8)
SCALAR = TEXT | st.none() | st.booleans() | st.integers() | st.floats()
KEYS = [
    *("command", "args", "entrypoint", "image", "env", "environment", "name", "value", "build"),
    *("stop_grace_period", "stop_signal", "lifecycle", "preStop", "exec", "sleep", "seconds"),
    *("containerDefinitions", "entryPoint", "stopTimeout", "containers", "template", "spec"),
    *("metadata", "labels", "annotations", "ports", "containerPort", "readinessProbe", "httpGet"),
    *("livenessProbe", "port", "path", "kind", "apiVersion", "items", "objects", "services"),
    *("terminationGracePeriodSeconds", "selector", "initContainers", "x", "target", "context"),
    *("extends", "service", "file", "parameters", "podSpec", "data", "start.sh", "dockerfile"),
    *("ownerReferences", "family", "essential"),
]
KIND = st.sampled_from(
    [
        *("Deployment", "Pod", "Service", "Ingress", "ConfigMap", "List", "Template", "Job"),
        *("TargetGroupBinding", "DeploymentConfig", "WebService", "ReplicaSet", "App"),
    ]
)
TREE = st.recursive(
    SCALAR,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=6)
    ),
    max_leaves=20,
)
CONTAINER = st.fixed_dictionaries(
    {"image": TEXT, "name": TEXT},
    optional={
        "command": st.lists(TEXT, max_size=4),
        "args": st.lists(TEXT, max_size=4),
        "env": st.lists(st.fixed_dictionaries({"name": TEXT, "value": SCALAR}), max_size=2),
        "lifecycle": TREE,
        "readinessProbe": TREE,
        "livenessProbe": TREE,
        "ports": TREE,
    },
)
POD = st.fixed_dictionaries(
    {"containers": st.lists(CONTAINER, max_size=3)},
    optional={"terminationGracePeriodSeconds": SCALAR, "initContainers": TREE},
)
MANIFEST = st.one_of(
    st.builds(
        lambda kind, pod, more: {**more, "kind": kind, "spec": {"template": {"spec": pod}}},
        KIND,
        POD,
        st.dictionaries(st.sampled_from(KEYS), TREE, max_size=2),
    ),
    st.fixed_dictionaries({"services": st.dictionaries(TEXT, TREE | CONTAINER, max_size=3)}),
    st.fixed_dictionaries({"containerDefinitions": st.lists(CONTAINER | TREE, max_size=3)}),
    st.builds(
        lambda pod, metadata: {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"template": {"spec": pod}},
        },
        POD,
        TREE,
    ),
    TREE,
)

SHELL = st.sampled_from(
    [
        *("while true; do sleep 1; done", "${@:2}", "su x -c", "runuser -u x --", "return 0"),
        *('[[ $1 = a || -z "$1" ]]', "mlflow server", "f; }", "exec s6-setuidgid"),
        *("gunicorn", "exec", "app:app", "&&", "||", "|", "&", ";", "\n", "if", "then", "else"),
        *(
            "elif",
            "fi",
            "case $1 in",
            "a)",
            ";;",
            "esac",
            "while",
            "until",
            "do",
            "done",
            "for x in",
        ),
        *("{", "}", "(", ")", "f()", "f", "trap 'kill $!' TERM", "wait", "set --", '"$@"', "$@"),
        *("[ -n $X ]", '[[ "$A" == b* ]]', "test 1 -eq 1", "A=1", "export B=2", "A=(1 2)", "eval"),
        *("${A[@]}", "${X:-${Y:- 1}}", "${X#a}", "$(which gunicorn)", "`x`", "$((1+1))", "<<EOF"),
        *(
            "EOF",
            "'",
            '"',
            "\\",
            "#",
            ">",
            "2>&1",
            ". ./env",
            "source x",
            "return",
            "exit",
            "shift",
        ),
        *(
            "sh -c 'gunicorn'",
            "bash",
            "-c",
            "--reload",
            "sleep 1",
            "!",
            "${!A}",
            "${A/x/y}",
            "$'a'",
        ),
    ]
)
SCRIPT = st.lists(SHELL | st.text(max_size=4), max_size=25).map(" ".join)
DOCKERFILE = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("FROM", "FROM python AS", "CMD", "ENTRYPOINT", "ENV", "ARG", "SHELL", "RUN"),
                *("COPY", "COPY --from=a", "ADD [", "FROM gcr.io/distroless/python3"),
                *("STOPSIGNAL", "cmd", "CMD [", "ENTRYPOINT [", "# escape=`", "FROM a AS b"),
            ]
        ),
        st.lists(
            st.sampled_from([*VALUES, '"gunicorn"', ",", "]", "<<EOF", "EOF", "\\\n", "$A", "A=1"])
            | st.text(max_size=5),
            max_size=6,
        ),
    ),
    max_size=10,
).map(lambda lines: "\n".join(f"{name} {' '.join(words)}" for name, words in lines))
INI = st.lists(
    st.sampled_from(
        [
            *("[Service]", "[program:web]", "[program:", "KillMode=mixed", "KillSignal=SIGINT"),
            *("TimeoutStopSec=5min 20s", "TimeoutStopSec=x", "stopwaitsecs=", "stopasgroup=true"),
            *("environment=A=\"1\",B='2',C", "Environment=A=1 'B=2", " continued", "# comment"),
            *(
                "ExecStart=gunicorn app:app",
                "ExecStart=-/bin/sh -c 'gunicorn \\",
                "command=gunicorn",
            ),
            *("Command: gunicorn", "command: gunicorn # x", "Environment=", "ExecStart=", "\\"),
            *("command=%(ENV_X)s gunicorn", "=", "a=b=c", 'command=sh -c "gunicorn', "[]"),
        ]
    )
    | st.text(max_size=8),
    max_size=12,
).map("\n".join)
TOML = st.lists(
    st.sampled_from(
        [
            *("[env]", "[processes]", "[build]", 'web = "gunicorn app:app"', 'kill_timeout = "5s"'),
            *(
                "kill_timeout = -1",
                'kill_signal = "SIGTERM"',
                'dockerfile = "x"',
                "kill_timeout = []",
            ),
            *("env = 3", "processes = 4", "build = []", 'image = "redis"', "A = 1", 'jobs = "\'"'),
        ]
    ),
    max_size=8,
    unique=True,
).map("\n".join)


def judged(capsys, path):
    """Check one file; status 0 takes a gunicorn that was judged, and the last line counts it."""
    status = cli.main(["check", str(path)])
    printed = capsys.readouterr()
    assert status in (0, 1, 2)
    assert "Traceback" not in printed.err
    *_, last = printed.out.splitlines()
    servers = int(last.partition(", ")[2].split()[0])
    assert last.startswith("1 file, ")
    assert status == 2 or servers > 0
    if not servers:
        assert "no gunicorn was judged" in printed.err


@fuzzed
@given(MANIFEST)
def test_manifests(tmp_path, capsys, tree):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(tree))
    judged(capsys, path)


YAML = st.lists(
    st.sampled_from(
        [
            *("a: &a [x]", "? [k]\n: v", "b: *a", "<<: *a", "- {", "}", "---", "kind: Pod", "|"),
            *("command: [gunicorn, 'a:a']", "spec:", "  containers:", "  - image: x", "? {a: b}"),
            *("    command: [gunicorn]", "services:", "  w:", "    extends: {service: w}", "!!set"),
            *("kind: Template", "parameters: [{name: X, value: y}]", "objects:", "- kind: ${X}"),
            *("kind: ConfigMap", "data: {start.sh: gunicorn}", "? *a", "kind: [x]", "null: ~"),
        ]
    )
    | st.text(max_size=6),
    max_size=12,
).map("\n".join)
NAMES = [
    *("compose.yaml", "k8s/a.yaml", "a.json", "Dockerfile", "prod/Dockerfile", "x.tf", "Procfile"),
    *("start.sh", "prod/start.sh", "web.service", "web.service.d/a.conf", "supervisord.conf"),
]
FILES = st.dictionaries(
    st.sampled_from(NAMES),
    st.one_of(SCRIPT, DOCKERFILE, INI, YAML, MANIFEST.map(json.dumps)),
    min_size=1,
)


@fuzzed
@given(FILES)
def test_directories(tmp_path_factory, capsys, files):
    directory = tmp_path_factory.mktemp("files")
    for name, text in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    status = cli.main(["check", "--format", "json", str(directory)])
    report = json.loads(capsys.readouterr().out)
    assert (status == 2) == (not report["judged"] or report["unreadable"] != [])


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("web.yaml", YAML),
        ("start.sh", SCRIPT),
        ("Dockerfile", DOCKERFILE),
        ("Procfile", SCRIPT.map("web: ".__add__)),
        ("web.service", INI),
        ("supervisord.conf", INI.map("[program:web]\n".__add__)),
        ("fly.toml", TOML),
    ],
)
def test_texts(tmp_path, capsys, name, strategy):
    @fuzzed
    @given(strategy)
    def run(text):
        path = tmp_path / name
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        judged(capsys, path)

    run()


@fuzzed
@given(SCRIPT)
def test_any_script_is_followed_or_given_up(text):
    try:
        shell.commands(text, {"A": "b", "Y": None}, ["a"])
    except shell.TooMuch:
        return


ECHOED = st.lists(
    st.sampled_from(
        [
            *("if [ $A = b ]; then", 'elif [ -z "$B" ]; then', "else", "fi", "echo one;"),
            *('echo "$A" $B ${C:-x y} ${A#b};', "case $A in b) echo b;; *) echo c;; esac;"),
            *(
                "set -- 1 2;",
                'echo "$@" $#;',
                "shift;",
                "A=z;",
                'B="$A $A";',
                "f() { echo f $1; };",
            ),
            *('f "$A";', "true && echo and;", "false || echo or;", "echo ${A:+set} ${B:=given};"),
            *("[[ $A = x || -z $B && $A = b ]] && echo mixed;", 'echo "${@:2}" ${@:1:1};'),
            *(
                "g() { if [ $1 = b ]; then return; fi; echo g; }; g $A; g x;",
                "[ $A = b -o x = y ] ||",
            ),
            *('test "$A" != b && echo no;', "[[ $A == [a-z] ]] && echo letter;", "exit;"),
        ]
    ),
    max_size=10,
).map(" ".join)


@settings(fuzzed, max_examples=max(EXAMPLES // 3, 1))
@given(ECHOED)
def test_a_text_is_followed_as_bash_runs_it(text):
    """What is known is decided as bash does: the same words, in the same order."""
    script = "f() { echo f $1; }; " + text
    script = script.replace("echo", "command_of_nobody")
    ran = subprocess.run(
        ["bash", "-c", f'command_of_nobody() {{ printf "<%s>" "$@"; printf "\\n"; }}\n{script}'],
        capture_output=True,
        text=True,
        env={"A": "b", "B": "", "PATH": "/usr/bin:/bin"},
    )
    if "syntax error" in ran.stderr:
        return
    found = shell.commands(script, {"A": "b", "B": ""}, [])
    if any(command.condition for command in found):
        return
    # A function that has not been defined is a command that bash does not find.
    found = [command for command in found if command.words[0] == "command_of_nobody"]
    ours = ["".join(f"<{word}>" for word in command.words[1:]) or "<>" for command in found]
    assert ours == ran.stdout.splitlines()
