"""Fixtures for what is started by, or together with, packages that gracefulworker does not need.

``tox -e integrations`` installs them; what is missing is skipped with its name.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from integrations.started import Prefixed

HERE = str(Path(__file__).parent)


@pytest.fixture
def serve_prefixed(request):
    """As ``serve``, of observed.py and with a command in front."""
    servers = request.node.servers = []

    def start(worker, *prefix, app="observed:app", **options):
        options["options"] = ("--chdir", HERE, *options.get("options", ()))
        server = Prefixed(worker, app=app, prefix=prefix, **options)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.close()
