"""What a graceful end costs, and what it saves: ours beside stock, and beside the field.

``python -m benchmarks [--quick] [a] [b] [c] [d]``, or ``tox -e bench``. Linux; as root the rollouts
have kube-proxy's rules. One module for each part::

    __main__.py    the command
    steady.py      (a) requests per second, p99, memory, start: ours beside stock
    exits.py       (b) from the last active request, or the end of the delay, to the exit
    loss.py        (c) storms and rollouts, ours beside the field
    growth.py      (d) the same figures with more connections and more workers
    wrk.py         one burst of load
    report.py      RESULTS.md
    figures.py     minimum, median, maximum
    servers.py     how each server is started and stopped
    app.py, asgi.py, pywsgi.py, goserver/    what they serve

What is compared runs side by side and takes turns, and each turn gives one ratio, so that what else
the machine does hits both. What may be changed here: nothing but this text.
"""
