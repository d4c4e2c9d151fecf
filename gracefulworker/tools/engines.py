"""Which worker class of ours is beside which other one.

What may be changed here: an engine, when there is a new one in `gracefulworker.workers`.
"""

from __future__ import annotations

from gunicorn.workers import SUPPORTED_WORKERS

#: By the name that ours has after ``gracefulworker.``: the class that is stock beside it.
STOCK = {
    "sync": "sync",
    "gthread": "gthread",
    "gevent": "gevent",
    "uvicorn": "uvicorn_worker.UvicornWorker",
}

#: Other names of these: what gunicorn itself makes of the short ones, and that of uvicorn's own
#: class before it had a package of its own.
_OTHER_NAMES: dict[str, str] = {
    **{SUPPORTED_WORKERS[stock]: stock for stock in STOCK.values() if stock in SUPPORTED_WORKERS},
    "uvicorn.workers.UvicornWorker": STOCK["uvicorn"],
}

#: How the names of worker classes begin that are known not to be ours.
FOREIGN = ("gunicorn.", "uvicorn.", "uvicorn_worker.", "aiohttp.", "egg:gunicorn", "egg:meinheld")


def is_ours(worker: str) -> bool | None:
    """Whether a name given to ``-k`` is one of ours; None where only its module could say."""
    if worker.startswith(("gracefulworker", "egg:gracefulworker")):
        return True
    if "." not in worker and ":" not in worker:
        return False
    return False if worker.startswith(FOREIGN) else None


def ours_beside(worker: str) -> str | None:
    """The name of our class that takes this one's place, as given to ``-k``; None if none does."""
    name = worker.removeprefix("egg:gunicorn#")
    name = _OTHER_NAMES.get(name, name)
    return next((f"gracefulworker.{engine}" for engine in STOCK if STOCK[engine] == name), None)
