"""One burst of load from wrk (https://github.com/wg/wrk).

What may be changed here: what is read of wrk's output.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from benchmarks.servers import Running

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Burst:
    rate: float  #: requests per second
    p99: float  #: milliseconds
    cpu: float  #: microseconds of the workers' processor time per request
    errors: int


def check() -> None:
    """:raises RuntimeError: with a sentence that says what is missing."""
    if shutil.which("wrk") is None:
        raise RuntimeError("the benchmarks need wrk: apt-get install wrk (Debian, Ubuntu)")


def burst(running: Running, close: bool, connections: int = 8, seconds: int = 1) -> Burst:
    """Ask as fast as the answers come; with `close`, each time on a new connection."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    if close:
        command += ["-H", "Connection: close"]
    before = running.cpu()
    url = "http://{}:{}/".format(*running.address)
    said = subprocess.run([*command, url], check=True, capture_output=True, text=True).stdout
    used = running.cpu() - before
    number, unit = _find(r"99%\s+([\d.]+)(us|ms|s)", said).groups()
    count = int(_find(r"(\d+) requests in", said).group(1))
    return Burst(
        rate=float(_find(r"Requests/sec:\s+([\d.]+)", said).group(1)),
        p99=float(number) * _UNITS[unit],
        cpu=used / max(1, count) * 1e6,
        errors=sum(map(int, re.findall(r"(?:connect|read|write|timeout|responses:) (\d+)", said))),
    )


def _find(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"wrk said no {pattern}:\n{text}")
    return found
