"""What the application may ask: in which phase is the process that I run in?

`gracefulworker.phase` and `gracefulworker.draining` come from here. They work wherever the
application's code runs, in any thread or greenlet: each is a look at shared memory. What may be
changed here: nothing is remembered but whom to ask, and nothing is imported but the phases.
"""

from __future__ import annotations

from collections.abc import Callable

from gracefulworker.phases import Phase


def _outside() -> Phase:
    return Phase.SERVING


_ask: Callable[[], Phase] = _outside


def answer_with(ask: Callable[[], Phase]) -> None:
    """Have this process, and those that it forks, ask `ask`."""
    global _ask
    _ask = ask


def phase() -> Phase:
    """The phase of the worker that this code runs in; SERVING outside of one.

    A worker that is recycled is in DRAINING, while the service is still in SERVING.
    """
    return _ask()


def draining() -> bool:
    """Whether the end has begun (LAME_DUCK or later), so that nothing long should be begun.

    A response that would go on for ever looks at this now and then, and ends by itself.
    """
    return _ask() > Phase.SERVING
