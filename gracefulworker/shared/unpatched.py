"""Functions as they were before gevent patched their modules, for threads beside its hub.

What may be changed here: nothing but how they are found.
"""

from __future__ import annotations

import sys
from typing import Any


def original(module: str, name: str) -> Any:
    """`module.name` as it was before gevent patched it."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    return getattr(sys.modules[module], name)
