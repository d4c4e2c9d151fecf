"""How to serve app.py; gunicorn reads this file by itself from the current directory."""

import os

# A worker class of your own, with options of uvicorn's, begins with this line: see README.md.
import gracefulworker

# The one line that this example is about.
worker_class = "gracefulworker.uvicorn"

# From SIGTERM on, for so many seconds, everything is served as before, because the load balancer
# goes on sending new connections until it has heard that this pod is leaving. Choose a little more
# than that takes. With this in place no preStop sleep is needed.
graceful_delay = 5

bind = "0.0.0.0:" + os.environ.get("PORT", "8000")
workers = 2

# Longer than the 60 s for which the usual balancers (AWS ALB, nginx) keep an idle connection: the
# side in front should be the one that closes it, or a request may cross our close on the wire.
keepalive = 65

# No access log, so that the lines of a shutdown are easy to see. "-" prints one line per request.
accesslog = None
