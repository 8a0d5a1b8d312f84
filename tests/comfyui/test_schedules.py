"""Lists of sigmas and menus on every kind of model the host has, inside the host's own Python."""

from __future__ import annotations

import pytest

from dpm_solver_nodes.tests.comfyui.conftest import VERSIONS
from dpm_solver_nodes.tests.comfyui.measured_inside import printed


@pytest.mark.parametrize("version", VERSIONS)
def test_sigmas_and_menus_for_every_kind_of_model(version: str) -> None:
    assert "checked 14 kinds" in printed("inside_schedules.py", version)
