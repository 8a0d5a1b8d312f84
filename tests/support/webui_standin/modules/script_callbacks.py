"""Functions that scripts leave to be called later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

before_ui: list[Callable[[], None]] = []
app_started: list[Callable[[Any, Any], None]] = []


def on_before_ui(callback: Callable[[], None]) -> None:
    before_ui.append(callback)


def on_app_started(callback: Callable[[Any, Any], None]) -> None:
    app_started.append(callback)
