"""The version of this pack, which a calibration notes."""

from __future__ import annotations

import importlib.metadata
import re
from functools import cache
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


@cache
def version() -> str:
    """From the clone's pyproject.toml, or else the installed package; "" if neither is there."""
    try:
        found = re.search(
            r'^version = "([^"]+)"', PYPROJECT.read_text(encoding="utf-8"), re.MULTILINE
        )
    except OSError:
        found = None
    if found:
        return found[1]
    try:
        return importlib.metadata.version("dpm-solver-nodes")
    except importlib.metadata.PackageNotFoundError:
        return ""
