"""Lists of sigmas and menus on every kind of model the host has, inside the host's own Python."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dpm_solver_nodes.tests.comfyui.conftest import ROOT, VERSIONS
from dpm_solver_nodes.tools.server import comfyui, environment

SCRIPT = Path(__file__).with_name("inside_schedules.py")


@pytest.mark.parametrize("version", VERSIONS)
def test_sigmas_and_menus_for_every_kind_of_model(version: str) -> None:
    done = subprocess.run(
        [environment(version), SCRIPT, comfyui(version), ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "checked 14 kinds" in done.stdout
