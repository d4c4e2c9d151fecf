"""What is a PROXY header, and nothing of a request behind it."""

from __future__ import annotations

import pytest

from gracefulworker.workers.accepting import is_proxy_header

V1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 80\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12)


@pytest.mark.parametrize("header", (V1, b"PROXY UNKNOWN\r\n", V2), ids=("v1", "unknown", "v2"))
def test_a_whole_header_alone(header):
    assert is_proxy_header(header)
    assert not is_proxy_header(header + b"G")
    assert not is_proxy_header(header[:-1])


@pytest.mark.parametrize("data", (b"", b"G", b"GET / HTTP/1.1\r\n", b"PROXY", b"\r\n", V2[:14]))
def test_what_is_none(data):
    assert not is_proxy_header(data)
