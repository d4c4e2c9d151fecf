"""What is done around each fork, as long as there is someone to do it.

What may be changed here: nothing but how they are remembered.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakMethod


def at_fork(**methods: Callable[[], None]) -> None:
    """os.register_at_fork, for methods of objects that others keep.

    It would keep them to the interpreter's very end, and from ours one comes to the arbiter, and to
    the application: the files that it has left open would never be flushed.
    """
    os.register_at_fork(**{when: partial(_call, WeakMethod(one)) for when, one in methods.items()})


def _call(reference: WeakMethod[Any]) -> None:
    method = reference()
    if method is not None:
        method()
