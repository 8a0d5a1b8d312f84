"""What a host does not tell: how many steps it keeps of a list of sigmas that it asks for.

For image to image both hosts ask their schedulers for a longer list, and keep the end of it. How
much they keep they don't say. It stands in the variables of the function that asks.
"""

from __future__ import annotations

import sys
from typing import Any


def callers_variables(*names: str) -> tuple[Any, ...] | None:
    """The values of these variables in the nearest calling function that has all of them."""
    frame = sys._getframe(1)
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        found = frame.f_locals
        if all(name in found for name in names):
            return tuple(found[name] for name in names)
    return None
