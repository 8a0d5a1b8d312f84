"""Calibrations in subfolders, by the names that workflows of any system hold them under."""

from __future__ import annotations

import itertools

import pytest

from dpm_solver_nodes.lab.calibration import files
from dpm_solver_nodes.samplers.plan import Weights
from dpm_solver_nodes.samplers.solvers.fitted import Calibration
from dpm_solver_nodes.tests.support.digits import (
    MODEL,
    custom,
    distance,
    listed,
    menu,
    node,
    sample,
)
from dpm_solver_nodes.tools.server import Server

SIGMAS = (14.6146, 3.0, 0.5, 0.0)
EULER = tuple(Weights(1.0, (end - start,)) for start, end in itertools.pairwise(SIGMAS))


@pytest.mark.parametrize(
    "name",
    ["mine/of euler.safetensors", "mine\\of euler.safetensors", "mine/of euler", "mine\\of euler"],
)
def test_a_calibration_in_a_subfolder(host: Server, name: str) -> None:
    path = host.work / "models" / "dpm_solver" / "mine" / "of euler.safetensors"
    if not path.exists():
        files.save([Calibration("diffusion", SIGMAS, EULER)], path)
    kind = "DPMSolver_Calibrated"
    field = host.object_info(kind)[kind]["input"]["required"]["calibration"]
    assert "mine/of euler.safetensors" in str(field)
    graph = custom(node(kind, calibration=name, model=MODEL, denoise=1.0), listed("1, 0"))
    graph["sample"]["inputs"]["sigmas"] = ["sampler", 1]
    ours = sample(host, graph)
    theirs = sample(host, custom(menu("euler"), listed(", ".join(map(str, SIGMAS)))))
    assert ours.calls == theirs.calls == 3
    assert distance(ours, theirs) < 1e-5
