"""The contract's lines, as the tests know them: what each promises, and what stock does instead.

A test that holds line n carries ``@pytest.mark.contract(n)``; one that shows the loss on gunicorn's
own worker, which proves that such a test can fail, carries ``@pytest.mark.control(n)`` beside it.
``pytest --contract n`` runs both. suite/test_contract.py fails when a line has no test, or when a
line that stock breaks has no control.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    title: str
    #: What gunicorn's own workers do instead, if they break it: then a control must show it.
    stock: str | None
    #: Else why there is nothing that a control could show.
    no_control: str | None = None


LINES = {
    1: Line(
        "During LAME_DUCK nothing is lost and capacity does not shrink",
        stock="turns newcomers away at SIGTERM; one worker that cannot boot ends the service",
    ),
    2: Line(
        "A response whose headers go out after SIGTERM says Connection: close",
        stock="decides before the application runs: a request in flight promises keep-alive",
    ),
    3: Line(
        "After the delay the accept queue is served, and newcomers are refused at once",
        stock="resets all that wait, and lets newcomers in that nobody will accept",
    ),
    4: Line(
        "Idle keep-alive connections are closed within 100 ms of the end of the delay, cleanly",
        stock="keeps them for up to graceful_timeout, and resets a request that crosses the close",
    ),
    5: Line(
        "A request is active from its first byte, and who sends none costs nobody time",
        stock="a silent connection takes the turn of sync and a thread of gthread",
    ),
    6: Line(
        "The process is gone within 300 ms of the last active request or the end of the delay",
        stock="stays until SIGKILL for a silent connection (gevent) or a background thread",
    ),
    7: Line(
        "At the deadline: 503 for what has no response yet, and each one cut is named",
        stock="cuts without a word, and with exit status 0",
    ),
    8: Line(
        "A recycled worker loses no connection either",
        stock="everybody waits for the next import; --reuse-port and HUP reset connections",
    ),
    9: Line(
        "SIGTERM to the group, to a booting worker or to one worker alone: the service ends as one",
        stock="a worker that is still booting loses it, and is waited for until SIGKILL",
    ),
    10: Line(
        "A second SIGTERM, SIGINT and SIGQUIT; from SIGTERM on HUP, USR2 and WINCH are refused",
        stock="SIGQUIT waits for a request in flight; a late SIGHUP changes the exit status",
    ),
    11: Line(
        "A client that never closes its side delays nobody",
        stock="waits for it on the main thread, and resets responses over bytes that nobody read",
    ),
    12: Line(
        "Nothing changes before SIGTERM",
        stock=None,
        no_control="the stock worker is what ours is compared with, byte for byte",
    ),
    13: Line(
        "A unix socket's path lives to the end of the delay; what outlives us is left alone",
        stock="removes the path at SIGTERM, while requests run",
    ),
    14: Line(
        "Bad settings stop the start with one sentence",
        stock="passes over a name in the config file that it does not know",
    ),
}
