"""Who asks only whether the service is up: a request that is no traffic.

A prober comes on the application's own port as well, and goes on doing so from SIGTERM on. Its
requests are the application's to answer; but they are nobody new, or each delay would look too
short, and none would ever be quiet.
"""

from __future__ import annotations

from gracefulworker.seam import Request

#: What the User-Agent of a prober begins with.
AGENTS = (
    "kube-probe/",  # the kubelet (kubernetes pkg/probe/http)
    "ELB-HealthChecker/",  # AWS load balancers: "Health checks for your target groups"
    "GoogleHC/",  # Google Cloud load balancers: "Health checks overview"
    "Consul Health Check",  # Consul's HTTP checks (consul agent/checks)
    "Envoy/HC",  # Envoy's active health checks (envoy source/common/http/headers)
    "Amazon-Route53-Health-Check-Service",  # Route 53: "Values that you specify for health checks"
)


def is_prober(request: Request) -> bool:
    """Whether its User-Agent is one of `AGENTS`."""
    return any(name == "USER-AGENT" and value.startswith(AGENTS) for name, value in request.headers)
