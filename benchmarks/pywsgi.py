"""gevent.pywsgi, stopped on SIGTERM as gevent's documentation has it: HOST PORT.

What may be changed here: nothing, as long as gevent recommends no other way.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import signal  # noqa: E402
import sys  # noqa: E402

import gevent  # noqa: E402
from gevent.pool import Pool  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402

from benchmarks.app import app  # noqa: E402

if __name__ == "__main__":
    # Without a pool stop() waits for nobody, and with one for a second.
    server = WSGIServer((sys.argv[1], int(sys.argv[2])), app, log=None, spawn=Pool(10000))
    server.stop_timeout = 25
    gevent.signal_handler(signal.SIGTERM, server.stop)
    server.serve_forever()
