"""The functions of gunicorn that we lean on are those that we have read: `functions.csv`.

docs/gunicorn-versions.md says what to do when one of these fails. `foreign` knows gunicorn's side
of the table, `walk` ours.
"""

from __future__ import annotations

import gunicorn
import pytest
from seam import foreign, walk

HOW_TO_LOOK = "python tests/seam/foreign.py difference"


@pytest.fixture(scope="module")
def rows():
    return {row.name: row for row in foreign.read()}


@pytest.fixture(scope="module")
def column(rows):
    """The installed gunicorn's; of a minor version that came out since, the one before it."""
    versions = list(next(iter(rows.values())).digests)
    found = foreign.nearest(gunicorn.__version__, versions)
    if found is None:
        pytest.skip(f"gunicorn {gunicorn.__version__} has not been read yet: {HOW_TO_LOOK}")
    return found


@pytest.fixture(scope="module")
def overrides():
    return set(walk.overrides(walk.our_classes()))


def test_gunicorn_s_functions_are_those_that_we_have_read(rows, column):
    changed = [
        f"{name} ({row.how}: {' '.join(row.ours)}), read in {column}:"
        f" {HOW_TO_LOOK} {column} {gunicorn.__version__} {name}"
        for name, row in rows.items()
        if foreign.digest(foreign.SITE, name) != row.digests[column]
    ]
    assert not changed, "gunicorn has changed\n" + "\n".join(changed)


def test_each_override_has_a_row(rows, overrides):
    missing = [
        f"{ours} overrides {name}"
        for name, ours in sorted(overrides)
        if name not in rows or ours not in rows[name].ours
    ]
    assert not missing, "no row in functions.csv: " + ", ".join(missing)


#: Attributes that foreign classes give their instances, and that are ours on purpose.
COMMON = {
    "alive",  # a property of ours, which gunicorn sets
    "is_http2",  # a default of ours before gunicorn 25
    "max_requests",
    "sock",  # a connection's, which init puts behind TLS
    "sockets",
    "wsgi",
    "nr_conns",  # gthread
    "idle_timeout",  # HTTP/2
    *("full", "handle", "_spawn"),  # gevent's servers
}


def test_no_other_attribute_has_a_name_of_ours():
    """A new version's would be overwritten, or ours by it."""
    clashes = [
        f"{ours} and {theirs} have {name}"
        for ours, theirs, name in walk.common_attributes(walk.our_classes())
        if name not in COMMON
    ]
    assert not clashes, ", ".join(clashes)


def test_each_function_that_we_replace_or_import_has_a_row(rows):
    used = walk.replaced_on_arbiter() | walk.replaced_in_modules() | walk.imported()
    missing = sorted(used - rows.keys())
    assert not missing, "no row in functions.csv: " + ", ".join(missing)


def test_no_row_is_stale(rows, overrides):
    """Each is about a function that some version has, and about code of ours that deals with it."""
    replaced = walk.replaced_on_arbiter() | walk.replaced_in_modules()
    stale = []
    for name, row in rows.items():
        if set(row.digests.values()) == {foreign.ABSENT}:
            stale.append(f"{name} is in no gunicorn")
        is_there = foreign.find(foreign.SITE, name) is not None
        for ours in row.ours:
            if row.how == "overridden":
                module = ours.partition(":")[0]
                looked_at = is_there and not walk.needs_missing_package(module)
                if looked_at and (name, ours) not in overrides:
                    stale.append(f"{ours} does not override {name}")
            elif not walk.mentions(ours, name):
                stale.append(f"{ours} does not mention {name}")
        if row.how == "replaced" and name.startswith(walk.ARBITER):
            if is_there and name not in replaced:
                stale.append(f"{name} is not replaced")
        if row.how not in foreign.HOW:
            stale.append(f"{name} is {row.how!r}, which is none of {foreign.HOW}")
    assert not stale, "\n".join(stale)


def test_an_override_without_a_row_is_found():
    """The walk sees what a class adds, in a mix-in too."""

    class Mixin:
        __module__ = "gracefulworker.workers.invented"

        def handle_error(self, *args):
            """Worker.handle_error, which no row is about."""

    worker = next(one for one in walk.our_classes() if one.__name__ == "SyncWorker")
    invented = type("Invented", (Mixin, worker), {"__module__": Mixin.__module__})
    found = set(walk.overrides([invented])) - set(walk.overrides([worker]))
    ours = f"workers.invented:{Mixin.__qualname__}.handle_error"
    assert found == {("gunicorn.workers.base:Worker.handle_error", ours)}


def test_a_digest_is_of_what_a_function_does(tmp_path):
    """Comments, docstrings and line breaks do not count; anything else does."""
    package = tmp_path / "gunicorn"
    package.mkdir()

    def digest(source):
        (package / "__init__.py").write_text(source)
        foreign.tree.cache_clear()
        foreign.find.cache_clear()
        return foreign.digest(tmp_path, "gunicorn:Arbiter.run")

    plain = digest("class Arbiter:\n    def run(self):\n        return [1, 2]\n")
    assert plain == digest(
        "class Arbiter:\n    '''It.'''\n    def run(self):\n        '''Runs.'''\n"
        "        # twice\n        return [1,\n                2]\n"
    )
    others = (
        "class Arbiter:\n    def run(self):\n        return [2, 1]\n",
        "class Arbiter:\n    def run(self, again=None):\n        return [1, 2]\n",
        "class Arbiter:\n    @classmethod\n    def run(self):\n        return [1, 2]\n",
        "class Arbiter:\n    def run(self):\n        return [1, 2]\n    run = None\n",
    )
    assert plain not in [digest(source) for source in others]
    assert digest("class Arbiter:\n    pass\n") == foreign.ABSENT
