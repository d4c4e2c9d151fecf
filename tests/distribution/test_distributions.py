"""The sdist and the wheel: what they hold, what an index says to them, what a user's mypy says."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from email.parser import Parser

import pytest
from distribution.conftest import must, run

import gracefulworker

#: In the repository for those who work on it there, and of no use elsewhere.
NOT_IN_THE_SDIST = (".ci/", ".gitignore")


@pytest.fixture(scope="session")
def distributions(source, tmp_path_factory):
    """The sdist, and the wheel that is made of it."""
    directory = tmp_path_factory.mktemp("dist")
    must(sys.executable, "-m", "build", "--outdir", directory, source)
    (sdist,), (wheel,) = directory.glob("*.tar.gz"), directory.glob("*.whl")
    return sdist, wheel


def test_an_index_takes_them(distributions):
    printed = must(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *distributions)
    assert printed.count("PASSED") == 2


def test_the_sdist_has_all_of_the_repository(distributions, source):
    sdist, _ = distributions
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    tracked = must("git", "-C", source, "ls-files").splitlines()
    left_out = [name for name in tracked if name not in packed]
    assert [name for name in left_out if not name.startswith(NOT_IN_THE_SDIST)] == []
    for name in ("CHANGELOG.md", "docs/check.md", "tests/conftest.py", "tox.ini", "LICENSE"):
        assert name in packed


def test_the_wheel_has_the_package_alone(distributions):
    _, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        about = Parser().parsestr(archive.read(metadata).decode())
    assert {name.partition("/")[0] for name in names} == {
        "gracefulworker",
        metadata.partition("/")[0],
    }
    assert "gracefulworker/py.typed" in names
    assert about["Version"] == gracefulworker.__version__
    urls = [line.partition(",")[0] for line in about.get_all("Project-URL")]
    assert {"Documentation", "Changelog", "Issues"} <= {*urls}
    assert about["Home-page"].startswith("https://github.com/")


# -- a user's project


@pytest.fixture(scope="session", params=("gunicorn alone", "gevent and types"))
def project(request, distributions, tmp_path_factory):
    """An environment with the wheel and mypy, and a directory for a project."""
    directory = tmp_path_factory.mktemp("project")
    must(sys.executable, "-m", "venv", directory / "venv")
    wheel, more = str(distributions[1]), []
    if request.param != "gunicorn alone":
        wheel, more = f"{wheel}[gevent]", ["types-gunicorn"]
    pip = (directory / "venv" / "bin" / "python", "-m", "pip", "install", "-q")
    must(*pip, wheel, "mypy", *more)
    return directory


def mypy(project, text):
    (project / "ours.py").write_text(text)
    command = (project / "venv" / "bin" / "mypy", "--strict", "--no-incremental", "ours.py")
    return run(*command, cwd=project)


@pytest.mark.parametrize("name", gracefulworker._WORKERS)
def test_a_subclass_is_typed(project, name):
    done = mypy(
        project,
        f"""\
from types import FrameType

import gracefulworker


class Worker(gracefulworker.{name}):
    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        if gracefulworker.draining():
            return
        super().handle_quit(sig, frame)


def is_serving() -> bool:
    return gracefulworker.phase() is gracefulworker.Phase.SERVING


reveal_type(gracefulworker.{name})
""",
    )
    assert done.returncode == 0, done.stdout
    module, worker = gracefulworker._WORKERS[name]
    assert f"-> {module}.{worker}" in done.stdout


def test_a_name_that_there_is_not_is_a_mistake(project):
    done = mypy(project, "import gracefulworker\n\nclass Worker(gracefulworker.gthred): ...\n")
    assert done.returncode == 1
    assert 'Name "gracefulworker.gthred" is not defined' in done.stdout


def test_dir_lists_what_can_be_had(project):
    say = "import gracefulworker, inspect; inspect.getmembers(gracefulworker)"
    code = f"{say}; print(*dir(gracefulworker))"
    names = set(must(project / "venv" / "bin" / "python", "-c", code).split())
    has_gevent = run(project / "venv" / "bin" / "python", "-c", "import gevent").returncode == 0
    assert {"sync", "gthread", "phase", "Phase", "draining"} <= names
    assert ("gevent" in names) == has_gevent
