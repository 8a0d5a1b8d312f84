"""The node of the solvers that add noise in each step."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ....samplers.checks import one_of
from ....samplers.options import NOISE_DEVICES, SOLVER_TYPES
from ....samplers.solvers.multistep import Multistep
from ....samplers.solvers.singlestep import Singlestep
from .. import sampling
from . import inputs
from .inputs import ADVANCED, number, settings_of

METHODS = ("multistep", "singlestep")


class DPMSolver_SDE(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_SDE",
            display_name="DPM-Solver SDE",
            category=inputs.CATEGORY,
            description="The stochastic solvers: each step adds fresh noise, which corrects errors of "
            "earlier steps and gives more texture, but needs more steps: take 20 to 60. The default "
            "settings are DPM++ 2M SDE. The noise of an image depends only on the seed and on its "
            "place in the batch. A seed gives the same noise at any number of steps, so more steps "
            "refine the same image.",
            search_aliases=[
                "dpmpp_2m_sde",
                "dpmpp_3m_sde",
                "dpmpp_sde",
                "dpm++ sde",
                "stochastic",
                "ancestral",
                "随机采样器",
            ],
            inputs=[
                inputs.algorithm(),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="multistep",
                    tooltip="multistep: combines the outputs of earlier steps (DPM++ 2M SDE, 3M SDE); "
                    "start with it. singlestep: groups of `order` steps, which use no output from "
                    "before them. Order 2 is DPM++ SDE. Other programs count its two calls as one "
                    "step, so take twice as many steps here.",
                ),
                inputs.order(
                    1,
                    2,
                    "How many model outputs a step combines. 1: as Euler ancestral. 2: the default. "
                    "3: only with multistep; a little more accurate from 30 steps up.",
                ),
                number(
                    "eta",
                    1.0,
                    "How much of the noise is fresh. 0: none, the ordinary solver. 1: the diffusion "
                    "SDE, as published. Between 0 and 1: calmer images, which need fewer steps. Above "
                    "1: more texture, which needs more steps. With algorithm dpmsolver take 50 steps "
                    "or more. On flow models (SD3, Flux, Wan) any value above 0 replaces all of the "
                    "starting noise in the first step of multistep.",
                    least=0.0,
                    most=100.0,
                    step=0.01,
                ),
                number(
                    "s_noise",
                    1.0,
                    "Multiplies the fresh noise. 1 is right; a little less gives smoother images, a "
                    "little more gives more grain.",
                    least=0.0,
                    most=100.0,
                    step=0.01,
                ),
                inputs.solver_type(
                    SOLVER_TYPES,
                    "The weights of a step. dpmsolver: midpoint. taylor: what other programs call "
                    "heun. exact: exact weights at order 3 too; at lower orders it is the same as "
                    "taylor. With eta above 0 it gains no order.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "noise_device",
                    options=list(NOISE_DEVICES),
                    default="cpu",
                    tooltip="Which device makes the noise. cpu: the same image on every machine. gpu: "
                    "faster for large latents, but the image depends on the type of GPU.",
                    **ADVANCED,
                ),
                inputs.lower_order_final(),
                *inputs.thresholding(),
                inputs.cfg_pp(),
            ],
            outputs=[inputs.sampler_output()],
        )

    @classmethod
    def execute(cls, method: str, **given: Any) -> io.NodeOutput:
        one_of("method", method, METHODS)
        settings = settings_of(cls, given)
        if method == "multistep":
            return io.NodeOutput(sampling.sampler(Multistep(**settings)))
        if settings.pop("cfg_pp", False):
            raise ValueError(
                "cfg_pp works only with the method multistep: set method to multistep, or switch "
                "cfg_pp off."
            )
        settings.pop("lower_order_final", None)  # groups have no orders that could be lowered
        return io.NodeOutput(sampling.sampler(Singlestep(**settings)))
