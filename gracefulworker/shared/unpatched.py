"""Functions as they were before gevent patched their modules, for threads beside its hub.

What may be changed here: nothing but how they are found, and how a native thread ends.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any


def original(module: str, name: str) -> Any:
    """`module.name` as it was before gevent patched it."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    return getattr(sys.modules[module], name)


def start_thread(run: Callable[[], None]) -> Callable[[], object]:
    """Call `run` in a native thread; returned is what waits for its end.

    Nothing holds what it has worked with any more then. What a thread that is not waited for holds
    is never given up, and so never finalized: its files, if it comes to the application's, are not
    flushed.

    :raises RuntimeError: there can be no more threads.
    """
    gone = original("_thread", "allocate_lock")()
    gone.acquire()
    start_native(_run, [run], gone)
    return gone.acquire  # type: ignore[no-any-return]


def start_native(function: Callable[..., object], *args: object) -> None:
    """Call `function` in a native thread that no signal is delivered to, not even in its first
    moment: the main thread, whose they are, would wait on in a system call.

    :raises RuntimeError: there can be no more threads.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        original("_thread", "start_new_thread")(function, args)
    finally:  # also when the handler of one that came before has raised
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(box: list[Callable[[], None]], gone: Any) -> None:
    # The interpreter itself holds the arguments until the thread's end, which is after `gone`.
    try:
        box.pop()()
    finally:
        gone.release()
