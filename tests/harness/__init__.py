"""A real gunicorn, real sockets, and a name for every way in which a request can end.

What a test does here: start a ``Server`` (one gunicorn process tree in a session of its own), let
requests stop at its ``gate``, send a signal, wait for an *event*, and look at the ``Ending`` that
each client got. Events are a line of the server's log (``wait_log``), a request that has reached
the gate (``gate.entered``), bytes or an end of file at a client, and the end of the whole process
tree (``wait_gone``). Time is never waited for, it is only a ceiling: whatever does not happen
within ``CEILING`` fails the test with the server's whole log.

What may be changed: new routes in ``served/apps.py``, new keyword arguments of ``Server`` that
become gunicorn options, new helpers in ``steps``. What must stay as it is: listeners are bound here
and handed down (no port race, and a client can connect before the first worker is up); our
copy of them is closed as soon as the server has its own (a listener that lives on in the test
would turn every refusal into a hang); the pipe that carries the log is held by the arbiter and by
every worker, so its end of file, and nothing else, means that all of them are gone; and every
server is killed, reaped and its pipe read to the end, whatever the test did.
"""

from harness.clients import CEILING, Address, Client, Ending, ends, fetch, knock, now, request
from harness.gate import Gate, Held
from harness.server import CONTROL, OFFERS_CONTROL, Line, Server, stock_of
from harness.stalls import assert_within, watch_stalls
from harness.steps import FULL, assert_clean, cross_the_end, fill, line_up, summary, wait_until
from harness.storm import Storm

__all__ = [
    "CEILING",
    "CONTROL",
    "FULL",
    "OFFERS_CONTROL",
    "Address",
    "Client",
    "Ending",
    "Gate",
    "Held",
    "Line",
    "Server",
    "Storm",
    "assert_clean",
    "assert_within",
    "cross_the_end",
    "ends",
    "fetch",
    "fill",
    "knock",
    "line_up",
    "now",
    "request",
    "stock_of",
    "summary",
    "wait_until",
    "watch_stalls",
]
