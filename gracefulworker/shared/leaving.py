"""The way out of a process: the interpreter's own, watched and bounded.

Nothing of it is skipped. A process ends as any Python program does: its callers' `finally`,
non-daemon threads and executors (threading._shutdown), atexit functions, and then the modules, with
what is still open or has a `__del__`. A native thread looks on: after `PATIENCE` it says what is
waited for, and at the deadline it names what still holds the process, and ends it.

That thread cannot run any more once the modules' turn has come, nor while C code keeps the
interpreter to itself. faulthandler's watchdog needs no interpreter: `BACKSTOP` later it writes to
stderr where the code stands, and ends the process with status 1.

What may be changed here: what is said of an exit. Whatever is added to it is for every worker and
for the arbiter.
"""

from __future__ import annotations

import atexit
import contextlib
import enum
import faulthandler
import gc
import os
import signal
import sys
import threading
import time
import traceback
from _thread import get_ident  # bound before gevent patches it: the native one
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any, NamedTuple

from gracefulworker.phases import KILL_MARGIN, SECOND
from gracefulworker.seam import Log
from gracefulworker.shared.forks import at_fork

#: Seconds of an exit in which nothing is said of it.
PATIENCE = 1.0

#: Seconds after the deadline at which faulthandler ends what our thread could not.
BACKSTOP = KILL_MARGIN - 0.1

#: Threads that are named, and lines of a stack that are logged, the innermost.
NAMED = 5
STACK_LINES = 20

#: Modules that keep their pools' threads: Python's own, and loky's, which joblib has in it.
POOLS = ("concurrent.futures.process", "loky.process_executor")

#: Where Python's own modules are.
_LIBRARY = os.path.dirname(os.__file__)

#: Changes nothing on the interpreter's way out. It puts their defaults back, and those of these
#: kill or stop the process: the exit status would be a signal's, after an end that was clean. What
#: is ignored stays so. (SIGINT and SIGQUIT may.)
DEAF = ("HUP", "TERM", "TTIN", "TTOU", "USR1", "USR2")


class Holder(NamedTuple):
    """What an exit waits for."""

    name: str
    frame: FrameType | None  #: where its code stands, if that is known
    thread: threading.Thread | None = None


class Stage(enum.Enum):
    """How far an exit has come; its values tell what is waited for, where nothing else does."""

    NONE = "gunicorn's own stop"
    PROGRAM = "code that runs at the exit"
    THREADS = "threads"
    ATEXIT = "an atexit function"


class Leaving:
    """The exit of one process."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self._stage = Stage.NONE
        self._began_at = 0  # ns
        self._main = 0
        self._greenlet: Any = None  # that runs the program, where there are such
        self._bound = 0  # ns
        self._is_said = False

    # In the main thread

    def begin(self, deadline: int, wait_for_threads: bool, let_go: Callable[[], object]) -> None:
        """The process's work is over; what follows is its exit.

        The interpreter calls threading._shutdown first, and atexit functions then: here as well,
        and last what is ours, which atexit itself would call before those that were there first.

        :param deadline: ns by which the process shall have ended; 0 as long as there is none.
        :param wait_for_threads: else only pools of processes are waited for.
        :param let_go: called before the modules' turn. It ends the thread that looks (the
            interpreter aborts when one dies while it writes to stderr), and gives up whatever
            leads from there or from a module to the application: modules are often held by
            something of C's, and what it holds itself would not be finalized in its turn then.
        """
        stock_shutdown, pid = threading._shutdown, os.getpid()  # type: ignore[attr-defined]

        def shutdown() -> None:
            if os.getpid() != pid:
                stock_shutdown()  # a process that exit code has forked (multiprocessing)
                return
            self._stage = Stage.THREADS
            try:
                if wait_for_threads:
                    stock_shutdown()
                else:
                    _tell_pools()
            finally:  # also when a signal's SystemExit ends the wait
                self._stage = Stage.ATEXIT
                atexit._run_exitfuncs()
                threading._shutdown = stock_shutdown  # type: ignore[attr-defined]
                if os.getpid() == pid:  # else an atexit function has forked
                    let_go()
                    for name in DEAF:
                        signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_IGN)

        threading._shutdown = shutdown  # type: ignore[attr-defined]
        self._main = get_ident()
        if "greenlet" in sys.modules:
            self._greenlet = sys.modules["greenlet"].getcurrent()
        self._bind(deadline)
        # A forked process would wait at its own end for the thread of faulthandler's parent.
        at_fork(before=self._unbind, after_in_parent=self._bind_again)
        self._began_at = time.monotonic_ns()
        self._stage = Stage.PROGRAM

    # In a native thread

    def look(self, deadline: int) -> None:
        """Say what is waited for when that takes long; now and then, also before it has begun."""
        if not self.has_begun():
            return
        if deadline != self._bound:
            self._bind(deadline)
        if self._is_said or time.monotonic_ns() - self._began_at < PATIENCE * SECOND:
            return
        self._is_said = True
        self.log.info("%s", self._sentence())

    def has_begun(self) -> bool:
        return self._stage is not Stage.NONE

    def name_holders(self) -> None:
        """At the deadline: log what still holds the process."""
        for holder in self._holders():
            self.log.warning(
                "cut at the deadline: the exit, held by %s, which is at:\n%s",
                holder.name,
                _stack(holder.frame),
            )
        for process in _processes_of_pools():
            process.kill()  # it would for ever wait for work from here

    def _unbind(self) -> None:
        faulthandler.cancel_dump_traceback_later()

    def _bind_again(self) -> None:
        self._bind(self._bound)

    def _bind(self, deadline: int) -> None:
        self._bound = deadline
        if deadline:
            left = max(deadline - time.monotonic_ns(), 0) / SECOND
            # No thread is left for it: the arbiter's SIGKILL is, or the platform's.
            with contextlib.suppress(RuntimeError):
                faulthandler.dump_traceback_later(left + BACKSTOP, exit=True, file=_stderr())

    def _sentence(self) -> str:
        holders = self._holders()
        named = [f"{one.name}{_place(one.frame)}" for one in holders[:NAMED]]
        if len(holders) > NAMED:
            named.append(f"{len(holders) - NAMED} more")
        sentence = f"exit: waiting for {', '.join(named)}"
        if holders[0].thread is not None:
            sentence += " (not for threads with daemon=True, nor with graceful_threads = False)"
        return sentence

    def _holders(self) -> list[Holder]:
        """What is waited for; not empty."""
        frame = getattr(self._greenlet, "gr_frame", None)  # None while it runs
        frame = frame or sys._current_frames().get(self._main)
        stage = self._stage
        if stage is Stage.THREADS and (threads := _waited_for()):
            return threads
        callers = [] if frame is None else list(_callers(frame))
        entered = [n for n, one in enumerate(callers) if one.f_globals is globals()]
        if stage is Stage.ATEXIT and entered and entered[0] > 0:
            function = callers[entered[0] - 1]
            code = function.f_code
            name = getattr(code, "co_qualname", code.co_name)  # 3.11 on
            return [Holder(f"atexit function {function.f_globals.get('__name__')}.{name}", frame)]
        return [Holder(stage.value, frame)]


def _waited_for() -> list[Holder]:
    """The threads that the interpreter waits for."""
    executors = getattr(_thread_pools(), "_threads_queues", ())
    # Not by enumerate, which takes a lock: gevent's, which is not for a native thread.
    active = list(threading._active.values())  # type: ignore[attr-defined]
    return [
        Holder(_name(thread), _frame(thread.ident), thread)
        for thread in active
        if thread in executors or not (thread.daemon or thread is threading.main_thread())
    ]


def _processes_of_pools() -> list[Any]:
    """Of each ProcessPoolExecutor, also where its thread is a greenlet; and of joblib's."""
    modules = (module for name, module in list(sys.modules.items()) if name.endswith(POOLS))
    threads = [thread for module in modules for thread in getattr(module, "_threads_wakeups", ())]
    return [one for t in threads for one in list((getattr(t, "processes", None) or {}).values())]


def _tell_pools() -> None:
    """threading._shutdown, as far as it does not wait for threads.

    It calls what executors have registered, and then joins. A pool of processes has to be told, and
    waited for: multiprocessing waits for its processes at exit, and takes down before what they are
    told by.
    """
    joins_threads = getattr(_thread_pools(), "_python_exit", None)
    for call in reversed(threading._threading_atexits):  # type: ignore[attr-defined]
        if call.func is not joins_threads:
            call()


def _thread_pools() -> ModuleType | None:
    """ThreadPoolExecutor's module: what it joins its threads by, and all of them, are private."""
    return sys.modules.get("concurrent.futures.thread")


def _stderr() -> int:
    """A descriptor of stderr by which nobody waits for whoever reads it, if there can be one."""
    try:
        return os.open("/proc/self/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
    except OSError:
        return 2  # a socket; another user's


def _frame(ident: int | None) -> FrameType | None:
    """Where a thread stands; under gevent it is a greenlet's number."""
    frame = sys._current_frames().get(ident or 0)
    if frame is None and "greenlet" in sys.modules:
        greenlet: Any = sys.modules["greenlet"].greenlet
        running = (one for one in gc.get_objects() if isinstance(one, greenlet))
        frame = next((one.gr_frame for one in running if id(one) == ident), None)
    return frame


def _callers(frame: FrameType) -> Iterator[FrameType]:
    """`frame` and those that it was called from."""
    caller: FrameType | None = frame
    while caller is not None:
        yield caller
        caller = caller.f_back


def _name(thread: threading.Thread) -> str:
    kind = type(thread).__name__
    return f"thread {thread.name!r}" + ("" if kind == "Thread" else f" ({kind})")


def _place(frame: FrameType | None) -> str:
    """Where it is in code that is not Python's own, if it is in such."""
    if frame is None:
        return ""
    theirs = (caller for caller in _callers(frame) if not _is_pythons(caller.f_code.co_filename))
    frame = next(theirs, frame)
    return f" at {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def _is_pythons(filename: str) -> bool:
    return filename.startswith((_LIBRARY, "<frozen")) and "site-packages" not in filename


def _stack(frame: FrameType | None) -> str:
    if frame is None:
        return "  (no Python code)"
    lines = "".join(traceback.format_stack(frame)).splitlines()
    return "\n".join(lines[-STACK_LINES:])
