"""What a container's preStop hook does: how long it sleeps, and what it ends.

What may be changed here: the spellings of a sleep, and the commands that end a proxy or gunicorn.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Mapping, Sequence

from gracefulworker.tools.manifests import launch, shell, units
from gracefulworker.tools.manifests.documents import Node


def sleeps(container: Node, environ: Mapping[str, str | None]) -> float | None:
    """Seconds from the start of a container's preStop hook to SIGTERM, from the hook or after it.

    :returns: 0 without a hook; None for one that does not sleep, or for a time that is not known.
    """
    hook = container["lifecycle"]["preStop"]
    if not hook:
        return 0.0
    if hook["sleep"]:
        return hook["sleep"]["seconds"].number
    slept = 0.0
    for one in _commands(command(container, environ), environ):
        if _ends_gunicorn(one.words):
            return slept
        if not any("sleep" in word for word in one.words) or one.beside == "background":
            continue
        seconds = _slept(one.words, environ)
        if seconds is None or one.condition or one.in_loop:
            return None
        slept += seconds
    return slept or None


def quits_after(container: Node, is_native: bool) -> float | None:
    """Seconds from the pod's deletion until a proxy in it lets nobody in any more.

    That is at the end of its preStop hook, unless the hook itself tells it to quit. A native
    sidecar's hook is run at once as well, but its end tells the proxy nothing.

    :returns: infinity for a native sidecar that is not told; None when the hook is not understood.
    """
    hook = container["lifecycle"]["preStop"]
    slept = 0.0
    for one in _commands(command(container, {}), {}):
        if _tells_to_quit(one.words):
            return slept
        seconds = _slept(one.words, {})
        if is_native and seconds is None:
            return None  # it may tell the proxy in a way of its own
        slept += seconds or 0.0
    if not is_native:
        return sleeps(container, {})
    return None if hook["httpGet"] else math.inf


def command(container: Node, environ: Mapping[str, str | None]) -> list[str]:
    """The command of a container's preStop hook, [] without one."""
    words = container["lifecycle"]["preStop"]["exec"]["command"]
    return [units.referring(word.text or "", environ) for word in words]


def _commands(words: Sequence[str], environ: Mapping[str, str | None]) -> Sequence[shell.Command]:
    """What a hook's command line runs, be it one program or a shell's text."""
    text = launch.shell_text(words)
    if text is not None:
        with contextlib.suppress(shell.TooMuch):
            return shell.commands(text[0], environ)
    return [shell.Command(line=1, words=list(words))] if words else []


def _tells_to_quit(words: Sequence[str]) -> bool:
    """Tell whether a command ends a proxy: ``kill -QUIT 1``, ``nginx -s quit``, ``caddy stop``."""
    is_kill = os.path.basename(words[0]) == "kill"
    return is_kill or any(word in ("quit", "stop", "graceful-stop") for word in words[1:])


def _ends_gunicorn(words: Sequence[str]) -> bool:
    """Tell whether a command in its container ends it: ``kill 1``, ``pkill -QUIT gunicorn``."""
    name, line = os.path.basename(words[0]), " ".join(words[1:])
    if re.search(r"(^|\s)-(s\s*)?(SIG)?(0|HUP|USR1|USR2|WINCH|TTIN|TTOU)\b", line):
        return False
    if name in ("pkill", "killall"):
        return "gunicorn" in line
    return name == "kill" and re.search(r"(^|\s)1$|\$", line) is not None


def _slept(words: Sequence[str], environ: Mapping[str, str | None]) -> float | None:
    """Seconds that a command sleeps; None when it does not, or when they are not known."""
    name = os.path.basename(words[0]) if words else ""
    if name == "busybox":
        words, name = words[1:], os.path.basename(words[1]) if len(words) > 1 else ""
    if name == "sleep":
        times = [units.seconds_of(word) for word in words[1:]]
        return None if None in times or not times else sum(time or 0.0 for time in times)
    if name.startswith("python"):
        found = re.findall(r"\bsleep\(\s*(\d+(?:\.\d+)?)\s*\)", " ".join(words))
        return sum(map(float, found)) if found else None
    return None
