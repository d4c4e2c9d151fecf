"""A listener set that cannot be made leaves no listener behind (contract 8)."""

from __future__ import annotations

import errno
import os
import resource

import pytest
from gunicorn import sock
from gunicorn.config import Config
from gunicorn.glogging import Logger

from gracefulworker.arbiter.listener_sets import _siblings

pytestmark = pytest.mark.contract(8)


@pytest.fixture
def listeners():
    cfg = Config()
    cfg.set("reuse_port", True)
    cfg.set("bind", ["127.0.0.1:0", "127.0.0.1:0"])
    listeners = sock.create_sockets(cfg, Logger(cfg))
    yield listeners
    for listener in listeners:
        listener.close()


def test_a_set_that_is_half_made_when_descriptors_run_out_is_given_back(listeners):
    before = set(os.listdir("/proc/self/fd"))
    free = os.dup(0)
    os.close(free)  # the lowest one
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        with pytest.raises(OSError) as raised:
            _siblings(listeners)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised.value.errno == errno.EMFILE
    assert set(os.listdir("/proc/self/fd")) == before
    siblings = _siblings(listeners)
    for sibling, listener in zip(siblings, listeners, strict=True):
        assert sibling.getsockname() == listener.getsockname()
        sibling.close()
