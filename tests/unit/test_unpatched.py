"""Native threads, beside whatever the main thread waits in."""

from __future__ import annotations

import signal
import threading

from gracefulworker.shared.unpatched import start_native, start_thread


def blocked() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def test_no_signal_is_delivered_to_a_native_thread():
    """What comes in a thread's first moment would leave the main thread in its system call."""
    before, seen, over = blocked(), [], threading.Event()

    def run(word: str) -> None:
        seen.append((word, blocked()))
        over.set()

    start_native(run, "word")
    assert over.wait(10)
    ((word, mask),) = seen
    assert word == "word"
    assert mask >= {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGALRM}
    assert blocked() == before


def test_the_wait_for_one_ends_when_it_holds_nothing_any_more():
    held = []
    wait = start_thread(lambda: held.append("run"))
    wait()
    assert held == ["run"]
