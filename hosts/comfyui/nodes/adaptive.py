"""The node of the solver that chooses its own number of steps."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ....samplers.checks import one_of
from ....samplers.solvers.adaptive import Adaptive
from ....samplers.solvers.step_size import PIDController
from .. import sampling
from . import inputs
from .inputs import ADVANCED, number, settings_of

CONTROLLERS = ("authors", "pid")
PID = ("pcoeff", "icoeff", "dcoeff", "accept_safety")
"""Inputs that only the controller "pid" uses."""


def _coefficient(
    name: str, tooltip: str, least: float = -10.0, most: float = 10.0
) -> io.Float.Input:
    default = getattr(PIDController, name)
    return number(name, default, tooltip, least, most, step=0.01, **ADVANCED)


class DPMSolver_Adaptive(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Adaptive",
            display_name="DPM-Solver Adaptive",
            category=inputs.CATEGORY,
            description="Chooses its own number of steps: each step is as long as the tolerance "
            "allows, whatever number of steps the scheduler is set to. Only the first and last sigma "
            "of the list are used. Expect 20 to 60 model calls at the default tolerance. The progress "
            "bar shows the way done, not the calls.",
            search_aliases=[
                "dpm-solver adaptive",
                "dpm_adaptive",
                "dpm-solver-12",
                "dpm-solver-23",
                "tolerance",
            ],
            inputs=[
                inputs.algorithm(),
                inputs.order(
                    2,
                    3,
                    "2 (DPM-Solver-12): two calls per step, good at loose tolerances. "
                    "3 (DPM-Solver-23): three calls per step, fewer calls in all at tight tolerances.",
                ),
                inputs.solver_type(
                    inputs.PUBLISHED_TYPES,
                    "The weights of a step. dpmsolver: the paper's default. taylor: rarely better.",
                ),
                number(
                    "rtol",
                    Adaptive.rtol,
                    "Error allowed in a step, relative to the image. 0.05 as published. rtol and atol "
                    "set the quality: lower both together. A fifth of each takes about one and a half "
                    "to two times the calls.",
                    least=0.0,
                    most=10.0,
                    step=0.001,
                ),
                number(
                    "atol",
                    Adaptive.atol,
                    "Error allowed in a step for values near zero. 0.0078 (one grey level in 256) as "
                    "published; lower it together with rtol.",
                    least=0.0,
                    most=10.0,
                    step=0.0001,
                ),
                io.Int.Input(
                    "max_calls",
                    default=Adaptive.max_calls,
                    min=1,
                    max=100000,
                    tooltip="The most model calls that a run may make. If they run short, the rest of "
                    "the way is taken in the calls that are left, the image is kept, and the log says "
                    "so.",
                ),
                io.Combo.Input(
                    "controller",
                    options=list(CONTROLLERS),
                    default="authors",
                    tooltip="How the next step's size follows from the error. authors: as published. "
                    "pid: k-diffusion's controller, with the coefficients below, for smoother changes "
                    "of the step size.",
                    **ADVANCED,
                ),
                number(
                    "h_init",
                    Adaptive.h_init,
                    "Size of the first step in log-SNR. 0.05 as published. A larger one saves a few "
                    "calls; if it is too large, the step is made again with a smaller one.",
                    least=0.0001,
                    most=10.0,
                    step=0.01,
                    **ADVANCED,
                ),
                _coefficient(
                    "pcoeff",
                    "Used with pid: proportional coefficient. Raise it (0.2 to 0.4) if the step size "
                    "changes too abruptly.",
                ),
                _coefficient(
                    "icoeff",
                    "Used with pid: integral coefficient. Lower it (0.3 to 0.4) if you raise pcoeff.",
                ),
                _coefficient(
                    "dcoeff",
                    "Used with pid: derivative coefficient. Leave it at 0 unless the step sizes "
                    "oscillate.",
                ),
                _coefficient(
                    "accept_safety",
                    "Used with pid: a step is rejected if the next one would have to shrink below "
                    "this part of it. A higher value rejects more steps.",
                    least=0.0,
                    most=1.0,
                ),
                *inputs.thresholding(),
            ],
            outputs=[inputs.sampler_output()],
        )

    @classmethod
    def execute(cls, controller: str = "authors", **given: Any) -> io.NodeOutput:
        one_of("controller", controller, CONTROLLERS)
        settings = settings_of(cls, given)
        for name in PID:
            value = settings.pop(name, getattr(PIDController, name))
            if controller == "pid":
                settings[name] = value
        return io.NodeOutput(sampling.sampler(Adaptive(**settings)))
