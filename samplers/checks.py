"""Settings that are out of their range end in one sentence: what, and what it may be."""

from __future__ import annotations

import math


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ValueError where the value is not among the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, not {value!r}.")


def at_least(name: str, value: float, least: float) -> None:
    """Raise ValueError where the value is no number, or below `least`."""
    if not (isinstance(value, (int, float)) and value >= least):
        raise ValueError(f"{name} must be a number of at least {least:g}, not {value!r}.")


def finite(name: str, value: float) -> None:
    """Raise ValueError where the value is no number, negative or infinite."""
    at_least(name, value, 0.0)
    if math.isinf(value):
        raise ValueError(f"{name} must be a finite number, not {value!r}.")
