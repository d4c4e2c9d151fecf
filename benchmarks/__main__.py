"""``python -m benchmarks [--quick] [a] [b] [c] [d]``: measure, and write it to RESULTS.md.

What may be changed here: parts. Each is a module with `run(quick)`, which returns its section.
"""

from __future__ import annotations

import argparse
import compileall
import sys
from pathlib import Path

import gracefulworker
from benchmarks import exits, growth, loss, report, servers, steady, wrk

PARTS = {"a": steady, "b": exits, "c": loss, "d": growth}


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="a, b, c, d (default: all)")
    parser.add_argument("--quick", action="store_true", help="few rounds, for a look")
    arguments = parser.parse_args()
    parts = arguments.parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if sys.platform != "linux":
        parser.error("the benchmarks need Linux")
    try:
        wrk.check()
    except RuntimeError as error:
        parser.error(str(error))
    servers.more_files()
    # An installer has done so with gunicorn; without it each start of ours would compile anew.
    compileall.compile_dir(Path(gracefulworker.__file__).parent, quiet=1)
    for part in parts:
        report.write(part, PARTS[part].run(arguments.quick), arguments.quick)
    print(report.RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
