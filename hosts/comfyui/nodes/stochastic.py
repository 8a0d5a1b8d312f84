"""The node of the solvers that add noise in each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

from ....samplers.checks import between, one_of, quoted
from ....samplers.options import NOISE_DEVICES, SOLVER_TYPES, Options
from ....samplers.solvers.ancestral import Ancestral
from ....samplers.solvers.er_sde import ErSde
from ....samplers.solvers.multistep import Multistep
from ....samplers.solvers.singlestep import Singlestep
from .. import sampling
from . import inputs
from .inputs import ADVANCED, number, settings_of

METHODS = ("multistep", "singlestep", "er_sde", "2s_ancestral")
ONE_FORMULA: dict[str, Callable[..., Options]] = {"er_sde": ErSde, "2s_ancestral": Ancestral}


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
                "er_sde",
                "er-sde",
                "dpmpp_2s_ancestral",
                "euler_ancestral",
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
                    "before them. Order 2 is DPM++ SDE. er_sde: ER-SDE, a multistep solver that adds "
                    "less noise and needs fewer steps; set order to 3. 2s_ancestral: DPM++ 2S "
                    "ancestral; order 1 is Euler ancestral. Other programs count the two calls of "
                    "DPM++ SDE and of 2S ancestral as one step, so take twice as many steps here.",
                ),
                inputs.order(
                    1,
                    2,
                    "How many model outputs a step combines. 1: as Euler ancestral. 2: the default. "
                    "3: only with multistep and er_sde; a little more accurate from 30 steps up.",
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
                # Later ones come last: workflow files hold the values of inputs by their place.
                number(
                    "noise_start",
                    0.0,
                    "Noise is added only from here on, as a share of the model's time, like "
                    "ControlNet's start_percent. Before it a step is that of the ordinary solver.",
                    least=0.0,
                    most=1.0,
                    step=0.01,
                    **ADVANCED,
                ),
                number(
                    "noise_end",
                    1.0,
                    "Noise is added only up to here, as a share of the model's time, like "
                    "ControlNet's end_percent. After it a step is that of the ordinary solver. Try "
                    "0.8: the last steps then settle the details without new noise.",
                    least=0.0,
                    most=1.0,
                    step=0.01,
                    **ADVANCED,
                ),
                number(
                    "r",
                    0.0,
                    "Used with singlestep at order 2: where, between the ends of a pair of steps in "
                    "log-SNR, the model is called for the second time. 0: at the sigma of the list. "
                    "0.5: in the middle, as DPM++ SDE in other programs.",
                    least=0.0,
                    most=1.0,
                    step=0.01,
                    **ADVANCED,
                ),
            ],
            outputs=[inputs.sampler_output()],
        )

    @classmethod
    def execute(
        cls,
        method: str,
        noise_start: float = 0.0,
        noise_end: float = 1.0,
        r: float = 0.0,
        **given: Any,
    ) -> io.NodeOutput:
        one_of("method", method, METHODS)
        between("noise_start", noise_start, 0.0, 1.0)
        between("noise_end", noise_end, noise_start, 1.0)
        if r and (method != "singlestep" or given.get("order") != 2):
            raise ValueError(
                f"r = {quoted(r)} is only for the method singlestep at order 2: set r to 0, or method "
                "to singlestep and order to 2."
            )
        settings = settings_of(cls, given)
        options = _options(method, settings, r)
        noisy = sampling.TimeRange(noise_start, noise_end)
        return io.NodeOutput(sampling.sampler(options, noisy))


def _options(method: str, settings: dict[str, Any], r: float) -> Options:
    if method == "multistep":
        return Multistep(**settings)
    if method in ONE_FORMULA:
        algorithm = settings.pop("algorithm", "dpmsolver++")
        if algorithm != "dpmsolver++":
            raise ValueError(
                f"algorithm = {quoted(algorithm)} has no method {method}: set algorithm to "
                "dpmsolver++, or method to multistep."
            )
        for name in ("solver_type", "lower_order_final"):  # they have one formula
            settings.pop(name, None)
        return ONE_FORMULA[method](**settings)
    if settings.pop("cfg_pp", False):
        raise ValueError(
            "cfg_pp works with every method but singlestep: set method to multistep, or switch cfg_pp "
            "off."
        )
    settings.pop("lower_order_final", None)  # groups have no orders that could be lowered
    return Singlestep(r=r or None, **settings)
