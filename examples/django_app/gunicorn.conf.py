"""How to serve the project; gunicorn reads this file by itself from the current directory."""

import os

# With this line plain `-k gracefulworker` is known, too.
import gracefulworker

# The one line that this example is about. With many slow views: "gracefulworker.gevent".
worker_class = "gracefulworker.gthread"

# From SIGTERM on, for so many seconds, everything is served as before, because the load balancer
# goes on sending new connections until it has heard that this pod is leaving. Choose a little more
# than that takes. With this in place no preStop sleep is needed.
graceful_delay = 5

# Answered before Django sees it: no ALLOWED_HOSTS, no redirect to TLS, no line in the access log.
# 200 once both workers have booted.
graceful_readiness_path = "/ready"

wsgi_app = "mysite.wsgi"
bind = "0.0.0.0:" + os.environ.get("PORT", "8000")
workers = 2
threads = 8

# Longer than the 60 s for which the usual balancers (AWS ALB, nginx) keep an idle connection: the
# side in front should be the one that closes it, or a request may cross our close on the wire.
keepalive = 65
