"""Settings that are out of their range end in one sentence: what, and what it may be."""

from __future__ import annotations

from numbers import Real


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ValueError where the value is not among the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, not {value!r}.")


def at_least(name: str, value: float, least: float) -> None:
    """Raise ValueError where the value is no number, or below `least`."""
    if not (isinstance(value, Real) and value >= least):
        raise ValueError(f"{name} must be a number of at least {least:g}, not {value!r}.")


def between(name: str, value: float, least: float, most: float) -> None:
    """Raise ValueError where the value is no number, or beyond its bounds."""
    if not (isinstance(value, Real) and least <= value <= most):
        raise ValueError(f"{name} must be a number from {least:g} to {most:g}, not {value!r}.")
