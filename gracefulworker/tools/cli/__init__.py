"""The command `gracefulworker`: one module beside this one for each of its subcommands.

Such a module has two functions: ``configure(parser)`` adds its arguments, and ``run(arguments)``
returns the exit status. It is imported when its name is given, so that one command's extra is not
needed for another's. One that has the default ``passed_on=()`` gets there what is given after
``--``, to pass it on. What may be changed here: the list of subcommands.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import gunicorn

import gracefulworker

#: Exit statuses of the command: whoever reads our output has gone, as a shell gives it for SIGPIPE;
#: Ctrl-C, as for SIGINT; the output cannot be written.
NOBODY_READS, INTERRUPTED, NOT_WRITTEN = 141, 130, os.EX_IOERR

#: Each subcommand and what `gracefulworker --help` says of it.
COMMANDS: dict[str, str] = {
    "drain": "begin the delay now and wait for its end, as a preStop hook or in a script",
    "plan": "show how a shutdown will go with given settings, and the time that it needs",
    "check": "find what would lose requests in manifests, Dockerfiles, Procfiles and scripts",
    "rehearse": "see what a rolling update does to the requests of an application",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status: 2 for a usage error, as argparse does."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="gracefulworker",
        description="Stops gunicorn without losing a request: commands beside the service.",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"%(prog)s {gracefulworker.__version__} (gunicorn {gunicorn.__version__}, Python"
        f" {platform.python_version()})",
    )
    parser.add_argument(
        "--print-completion",
        action=Completion,
        choices=Completion.SHELLS,
        help="print a script with which this shell completes the command (needs shtab)",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command, meaning in COMMANDS.items():
        subparser = commands.add_parser(command, help=meaning, description=meaning)
        if given[:1] in ([command], ["--print-completion"]):
            module = importlib.import_module(f"gracefulworker.tools.cli.{command}")
            module.configure(subparser)
            subparser.set_defaults(run=module.run)
            if subparser.get_default("passed_on") is not None:
                given, passed_on = _split(given)
                subparser.set_defaults(passed_on=passed_on)
    try:
        try:
            arguments, unknown = parser.parse_known_args(given)
            if unknown:
                sentence = f"unrecognized arguments: {' '.join(unknown)}"
                if "passed_on" in arguments:
                    sentence += " (gunicorn's own stand behind --)"
                parser.error(sentence)
            return int(arguments.run(arguments))
        finally:
            if sys.stdout is not None:  # closed: `>&-`
                sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC) or error.filename is not None:
            raise
        # Python flushes once more at its end, and would say what has been said, or is no news:
        # `... | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            return NOBODY_READS
        print(f"gracefulworker: the output is not written: {error.strerror}", file=sys.stderr)
        return NOT_WRITTEN


class Completion(argparse.Action):
    """Prints what shtab makes of all subcommands, and ends; nothing of it runs otherwise."""

    SHELLS = ("bash", "zsh", "tcsh", "fish")

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        try:
            import shtab
        except ModuleNotFoundError:
            parser.error("--print-completion needs shtab: pip install 'gracefulworker[completion]'")
        commands = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
        for subparser in commands[0].choices.values():
            for action in subparser._actions:
                if action.metavar == "FILE" or action.dest == "paths":
                    action.complete = shtab.FILE
        print(shtab.complete(parser, shell=values))
        parser.exit()


def _split(given: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the first ``--`` and what stands after it.

    Not left to argparse, whose optional positionals are used up before the first option.
    """
    at = given.index("--") if "--" in given else len(given)
    return given[:at], given[at + 1 :]
