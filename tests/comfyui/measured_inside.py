"""What inside_solvers.py measured in the host's own Python, once per version and session."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from dpm_solver_nodes.tools.server import comfyui, environment

ROOT = Path(__file__).resolve().parents[2]


@cache
def measured(version: str) -> dict[str, Any]:
    script = Path(__file__).with_name("inside_solvers.py")
    done = subprocess.run(
        [environment(version), script, comfyui(version), ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))
