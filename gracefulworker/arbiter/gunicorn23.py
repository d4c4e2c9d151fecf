"""What gunicorn 23 needs beside the rest: its arbiter reaps in a signal handler.

There SIGCHLD's handler reaps, in the middle of whatever the main loop does, which sleeps on a pipe;
since 24 the main loop does both itself (`Arbiter.wait_for_signals`). All that stands here is to
bring the former to the latter. It goes when 23 is no longer supported; nothing is to be added.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import SimpleNamespace

from gracefulworker import seam


def adapt(arbiter: seam.Arbiter, stock: SimpleNamespace, wait: Callable[[float], None]) -> None:
    """Let the main loop reap.

    :param stock: the methods that were replaced, by their names.
    :param wait: waits for a signal, so many seconds at the most.
    """
    stock_stop = stock.stop

    def sleep() -> None:
        """Arbiter.sleep (until 23): called when no signal is left to be handled."""
        wait(1.0)
        arbiter.reap_workers()

    def stop(graceful: bool = True) -> None:
        """Arbiter.stop polls `WORKERS`, which only its own handler makes empty."""
        signal.signal(signal.SIGCHLD, arbiter.handle_chld)
        arbiter.reap_workers()
        stock_stop(graceful)

    arbiter.sleep, stock.stop = sleep, stop
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # it only ends `wait`
