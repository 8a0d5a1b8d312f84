"""Functions that scripts leave to be called later."""

from __future__ import annotations

from collections.abc import Callable

before_ui: list[Callable[[], None]] = []


def on_before_ui(callback: Callable[[], None]) -> None:
    before_ui.append(callback)
