"""gunicorn's own tests of its workers, on its classes and then on ours: `tox -e gunicorns-own`.

They are taken from the sdist of the gunicorn that is installed. What passes on stock and does not
on ours is printed, and is the exit status::

    python tests/gunicorns_own/compare.py             # both, and the difference
    python tests/gunicorns_own/compare.py -k TestTConn  # what follows is pytest's
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import gunicorn

#: Files that name one of the workers' modules, or start a server.
ABOUT_WORKERS = re.compile(
    r"workers(\.base)? import|workers\.(sync|gthread|ggevent|base)|['\"]-m['\"], ?['\"]gunicorn"
)

#: Of other workers, or in need of containers.
OTHERS = re.compile(r"tests/docker/|test_asgi_|test_gtornado|test_dirty")

#: They patch `__bases__[0]` of the worker's class, which is none of gunicorn's here.
OF_ITS_SHAPE = {
    "tests.workers.test_ggevent.TestGeventWorkerInit.test_init_process_patches_and_reinits",
    "tests.workers.test_ggevent.TestSignalHandling.test_notify_exits_on_parent_change",
}

HERE = Path(__file__).parent


def fetch(directory: Path) -> list[str]:
    """Unpack the tests of the installed gunicorn there; the files that are about workers."""
    wanted = f"gunicorn=={gunicorn.__version__}"
    command = [sys.executable, "-m", "pip", "-q", "download", "--no-deps", "--no-binary=:all:"]
    subprocess.run([*command, "-d", str(directory), wanted], check=True)
    (sdist,) = directory.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        # Not the package: what is installed is to be tested.
        members = [m for m in archive.getmembers() if re.match(r"[^/]+/(tests|examples)/", m.name)]
        archive.extractall(directory, members)
    (root,) = (entry for entry in directory.iterdir() if entry.is_dir())
    root.rename(directory / "gunicorn")
    files = sorted((directory / "gunicorn").glob("tests/**/test_*.py"))
    names = (path.relative_to(directory / "gunicorn").as_posix() for path in files)
    return [
        name
        for name, path in zip(names, files, strict=True)
        if not OTHERS.search(name) and ABOUT_WORKERS.search(path.read_text())
    ]


def run(directory: Path, kind: str, files: list[str], options: Sequence[str]) -> dict[str, str]:
    """Run them on the classes of this kind; each test's outcome."""
    print(f"=== {kind}", flush=True)
    results = directory / f"{kind}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir=."]
    command += ["-p", "no:cacheprovider", f"--junitxml={results}", *options]
    # A stock worker has no delay, and these tests' patience is made for that.
    environ = {**os.environ, "PYTHONPATH": str(HERE), "GRACEFUL_DELAY": "0"}
    environ.pop("PYTHONDEVMODE", None)  # gunicorn's tests are not made for it
    if kind == "ours":
        command += ["-p", "ours"]
    subprocess.run([*command, *files], cwd=directory / "gunicorn", env=environ, check=False)
    outcomes = {}
    for case in ElementTree.parse(results).iter("testcase"):
        bad = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        name = f"{case.get('classname')}.{case.get('name')}"
        outcomes[name] = bad[0] if bad else "passed"
    return outcomes


def main(options: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="gunicorns-own-") as name:
        directory = Path(name)
        files = fetch(directory)
        stock = run(directory, "stock", files, options)
        ours = run(directory, "ours", files, options)
    passed = [
        test for test, outcome in stock.items() if outcome == "passed" and test not in OF_ITS_SHAPE
    ]
    worse = {test: ours.get(test, "not run") for test in passed if ours.get(test) != "passed"}
    for test, outcome in worse.items():
        print(f"passes on stock, {outcome} on ours: {test}")
    print(
        f"=== gunicorn {gunicorn.__version__}: {len(passed)} pass on stock, {len(worse)} of them do"
        " not on ours"
    )
    return 1 if worse or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
