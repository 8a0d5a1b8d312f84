"""Checks of settings. An error is one sentence: which setting, and what it may be."""

from __future__ import annotations

import unicodedata
from numbers import Real

UNSHOWN = ("Cc", "Cs", "Zl", "Zp")
"""Categories of characters that break a line, or that no file, log or picture can hold."""


def escaped(text: object, most: int | None = None) -> str:
    """Text from outside, made safe for a message, a file or a picture.

    The result is one line. If `most` is given, the text is cut to that many characters first. A linked
    input may be no text: it is shown as `str` has it.
    """
    text = str(text)
    if most is not None and len(text) > most:
        text = text[: most - 3] + "..."
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in UNSHOWN else c
        for c in text
    )


def quoted(value: object) -> str:
    """A value from outside, made safe for a message."""
    return escaped(repr(value), 60)


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ValueError if the value is not among the allowed ones."""
    if value not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(map(str, allowed))}, not {quoted(value)}."
        )


def at_least(name: str, value: float, least: float) -> None:
    """Raise ValueError if the value is no number, or is below `least`."""
    if not (isinstance(value, Real) and value >= least):
        raise ValueError(f"{name} must be a number of at least {least:g}, not {quoted(value)}.")


def between(name: str, value: float, least: float, most: float) -> None:
    """Raise ValueError if the value is no number, or is out of its bounds."""
    if not (isinstance(value, Real) and least <= value <= most):
        raise ValueError(
            f"{name} must be a number from {least:g} to {most:g}, not {quoted(value)}."
        )
