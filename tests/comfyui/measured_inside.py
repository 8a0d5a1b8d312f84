"""What the scripts inside_*.py print in the host's own Python, once per version and session."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from dpm_solver_nodes.tools.server import comfyui, environment

FOLDER = Path(__file__).resolve().parent


@cache
def printed(script: str, version: str, *arguments: str) -> str:
    """All that a script of this folder prints on a version of the host; it must end well."""
    done = subprocess.run(
        [environment(version), FOLDER / script, comfyui(version), FOLDER.parents[1], *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@cache
def measured(script: str, version: str, *arguments: str) -> dict[str, Any]:
    """The numbers in the last line of it."""
    return dict(json.loads(printed(script, version, *arguments).splitlines()[-1]))
