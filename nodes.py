"""ComfyUI nodes: names, inputs and tooltips, and a call into hosts/ or samplers/. No maths."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io

from .hosts.comfyui import sampling
from .hosts.comfyui.model import ComfyModel
from .hosts.model import OFFERED_SPACINGS
from .samplers.checks import one_of
from .samplers.options import ALGORITHMS, NOISE_DEVICES, SOLVER_TYPES, Options
from .samplers.solvers.adaptive import Adaptive
from .samplers.solvers.multistep import (
    CORRECTORS,
    LOWER_ORDER_FINAL,
    MULTISTEP_ALGORITHMS,
    Multistep,
)
from .samplers.solvers.singlestep import GROUPINGS, Singlestep

CATEGORY = "sampling/DPM-Solver"
CONTROLLERS = ("authors", "pid")
METHODS = ("multistep", "singlestep")
DIRECTIONS = ("falling", "rising")


def _algorithm(options: tuple[str, ...] = ALGORITHMS, more: str = "") -> io.Combo.Input:
    return io.Combo.Input(
        "algorithm",
        options=list(options),
        default="dpmsolver++",
        tooltip="What the solver interpolates between steps. dpmsolver++: the denoised image; the "
        "authors advise it for guided sampling, so start with it. dpmsolver: the noise, as in the "
        "first paper; on some models it is closer, which a run with each will show." + more,
    )


def _order(least: int, default: int, tooltip: str, most: int = 3) -> io.Int.Input:
    return io.Int.Input("order", default=default, min=least, max=most, tooltip=tooltip)


def _published_type(tooltip: str) -> io.Combo.Input:
    return io.Combo.Input(
        "solver_type", options=["dpmsolver", "taylor"], default="dpmsolver", tooltip=tooltip
    )


def _lower_order_final() -> io.Combo.Input:
    return io.Combo.Input(
        "lower_order_final",
        options=list(LOWER_ORDER_FINAL),
        default="auto",
        optional=True,
        advanced=True,
        tooltip="Take the last steps at a lower order, which keeps short runs stable. auto: with "
        "fewer than 10 steps above sigma 0, as published; leave it there. on: always. off: never; "
        "only for measuring the order of convergence.",
    )


def _cfg_pp() -> io.Boolean.Input:
    return io.Boolean.Input(
        "cfg_pp",
        default=False,
        optional=True,
        advanced=True,
        tooltip="CFG++: guidance that keeps to the path of the model without the prompt, for truer "
        "colours and fewer artefacts. Set CFG low with it, 1 to 2, nearer to 1 the more steps there "
        "are above 30, and connect a negative prompt; the model is then asked for both even at CFG 1.",
    )


def _advanced(
    name: str, default: float, tooltip: str, least: float, most: float, step: float = 0.01
) -> io.Float.Input:
    return io.Float.Input(
        name,
        default=default,
        min=least,
        max=most,
        step=step,
        round=False,
        optional=True,
        advanced=True,
        tooltip=tooltip,
    )


def _thresholding() -> list[io.Input]:
    return [
        io.Boolean.Input(
            "thresholding",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Clamp the denoised image of each step to its own range (dynamic thresholding). "
            "Only for models that work on pixels, against burnt images at high CFG. Not for latents "
            "(Stable Diffusion, SDXL, Flux): their values have no range to clamp to.",
        ),
        _advanced(
            "threshold_ratio",
            0.995,
            "thresholding only: the part of each image's values that is left as it is.",
            least=0.01,
            most=1.0,
            step=0.001,
        ),
        _advanced(
            "threshold_max",
            1.0,
            "thresholding only: the range of a clean image; 1 where pixels go from -1 to 1.",
            least=0.01,
            most=1000.0,
        ),
    ]


def _sampler_output() -> io.Sampler.Output:
    return io.Sampler.Output(
        tooltip="The sampler, for SamplerCustom or SamplerCustomAdvanced, or for the lab."
    )


def _sampler(
    node: type[io.ComfyNode], make: Callable[..., Options], settings: dict[str, Any]
) -> io.NodeOutput:
    """A SAMPLER from a node's inputs.

    Args:
        make: settings of a family, from keyword arguments.
        settings: the node's inputs. The host also hands over links to inputs that it doesn't have,
            which are left out.
    """
    inputs = {one.id for one in node.define_schema().inputs}
    settings = {name: value for name, value in settings.items() if name in inputs}
    ratio = settings.pop("threshold_ratio", 0.995)
    maximum = settings.pop("threshold_max", 1.0)
    if settings.pop("thresholding", False):
        settings["thresholding"] = (ratio, maximum)
    return io.NodeOutput(sampling.sampler(make(**settings)))


class DPMSolver_2M(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_2M",
            display_name="DPM++ 2M",
            category=CATEGORY,
            description="DPM-Solver++ 2M, the classic: second order, one model call per step, good "
            "from 10 steps up; DPM++ (recommended) needs fewer. Gives what ComfyUI's dpmpp_2m gives "
            "from 11 steps up on noise- and v-prediction models; below that it takes its last steps "
            "at a lower order, and on flow models (SD3, Flux, Wan) it steps in the paper's log-SNR, "
            "which was measured to be closer to the converged image.",
            search_aliases=[
                "dpmpp_2m",
                "dpmpp",
                "dpm++",
                "dpm solver++",
                "dpm solver",
                "采样器",
            ],
            inputs=[_lower_order_final()],
            outputs=[_sampler_output()],
        )

    @classmethod
    def execute(cls, **settings: Any) -> io.NodeOutput:
        return _sampler(cls, Multistep, settings)


class DPMSolver_3M(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_3M",
            display_name="DPM++ 3M",
            category=CATEGORY,
            description="DPM-Solver++ 3M with exact weights: truly third order, one model call per "
            "step. Its order pays the more steps there are: try it from 15 up, with a spacing that is "
            "smooth in log-SNR (logSNR, Karras); with fewer steps DPM++ 2M is safer. The published "
            "weights, which converge at second order only, are in DPM-Solver Multistep.",
            search_aliases=["dpmpp_3m", "dpm++", "dpm solver++", "third order", "采样器"],
            inputs=[_lower_order_final()],
            outputs=[_sampler_output()],
        )

    @classmethod
    def execute(cls, **settings: Any) -> io.NodeOutput:
        return _sampler(cls, partial(Multistep, order=3, solver_type="exact"), settings)


class DPMSolver_Multistep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Multistep",
            display_name="DPM-Solver Multistep",
            category=CATEGORY,
            description="Every multistep solver of the family: one model call per step, reusing the "
            "outputs of the steps before. The default settings are DPM++ 2M; UniPC is here as "
            "corrector: unic.",
            search_aliases=[
                "dpm-solver multistep",
                "dpmpp",
                "dpm++",
                "unipc",
                "uni_pc",
                "predictor corrector",
                "deis",
                "ipndm",
                "adams",
                "ddim",
                "cfg++",
            ],
            inputs=[
                _algorithm(
                    MULTISTEP_ALGORITHMS,
                    " adams: the direction of the path, in sigma, as ipndm and lms do; strong with "
                    "the corrector from 15 steps up.",
                ),
                _order(
                    1,
                    2,
                    "How many model outputs a step combines. 1: DDIM, needs many steps. 2: the "
                    "default. 3: closer from about 15 steps up, less stable below. 4: with the exact "
                    "solver type or adams alone; from about 20 steps up.",
                    most=4,
                ),
                io.Combo.Input(
                    "solver_type",
                    options=list(SOLVER_TYPES),
                    default="dpmsolver",
                    tooltip="The weights of a step. dpmsolver: the paper's midpoint form, as in "
                    "other programs. taylor: the paper's other form; rarely better. exact: the "
                    "interpolation integrated exactly; the only one that is third order at order 3, "
                    "and the same as taylor below.",
                ),
                _lower_order_final(),
                *_thresholding(),
                _cfg_pp(),
                # Later ones come last: workflow files hold the values of inputs by their place.
                io.Combo.Input(
                    "corrector",
                    options=["none", *CORRECTORS],
                    default="none",
                    optional=True,
                    tooltip="unic: each step first corrects the state by the model's output at it, "
                    "which it needs anyway: one order more at no model call. Closer from about 8 "
                    "steps up; with fewer and a high CFG try none. Not with CFG++.",
                ),
            ],
            outputs=[_sampler_output()],
        )

    @classmethod
    def execute(cls, corrector: str = "none", **settings: Any) -> io.NodeOutput:
        one_of("corrector", corrector, ("none", *CORRECTORS))
        if corrector != "none":
            settings["corrector"] = corrector
        return _sampler(cls, Multistep, settings)


class DPMSolver_Singlestep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Singlestep",
            display_name="DPM-Solver Singlestep",
            category=CATEGORY,
            description="Every singlestep solver of the family: steps are taken in groups of two or "
            "three that reuse nothing from before. Still one model call per step, so 20 steps are 20 "
            "calls. Multistep is usually closer at equal calls; singlestep is steadier at very few "
            "steps with high CFG, and where something changes the model between steps.",
            search_aliases=[
                "dpm-solver singlestep",
                "dpmpp_2s",
                "dpm++ 2s",
                "dpm_fast",
                "runge kutta",
            ],
            inputs=[
                _algorithm(),
                _order(
                    1,
                    2,
                    "Steps in a group. 2 (2S): the default. 3 (3S): closer from about 15 steps up. "
                    "1: DDIM.",
                ),
                _published_type(
                    "The weights of a group's last step. dpmsolver: the paper's midpoint form, the "
                    "default. taylor: exact weights; often closer on uneven spacings."
                ),
                io.Combo.Input(
                    "grouping",
                    options=list(GROUPINGS),
                    default="fast",
                    tooltip="How steps are grouped where order 3 does not divide them evenly. fast: "
                    "end in groups of 2 and 1, as published. fixed: groups of 3 and a remainder, "
                    "which keeps third order; try it when the steps above sigma 0 are a multiple "
                    "of 3.",
                ),
                *_thresholding(),
            ],
            outputs=[_sampler_output()],
        )

    @classmethod
    def execute(cls, **settings: Any) -> io.NodeOutput:
        return _sampler(cls, Singlestep, settings)


class DPMSolver_Adaptive(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Adaptive",
            display_name="DPM-Solver Adaptive",
            category=CATEGORY,
            description="Chooses its own number of steps: it goes on until the error it measures is "
            "within the tolerance, whatever number of steps the scheduler is set to. Only the first "
            "and last sigma of the list are used. Expect 20 to 60 model calls at the default "
            "tolerance. The progress bar shows the way done, not the calls.",
            search_aliases=[
                "dpm-solver adaptive",
                "dpm_adaptive",
                "dpm-solver-12",
                "dpm-solver-23",
                "tolerance",
            ],
            inputs=[
                _algorithm(),
                _order(
                    2,
                    3,
                    "2 (DPM-Solver-12): two calls per step, good at loose tolerances. "
                    "3 (DPM-Solver-23): three calls per step, fewer calls at tight ones.",
                ),
                _published_type(
                    "The weights of a step. dpmsolver: the paper's default. taylor: rarely better."
                ),
                io.Float.Input(
                    "rtol",
                    default=0.05,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    round=False,
                    tooltip="Error allowed in a step, relative to the image: with atol, the knob for "
                    "quality. 0.05 as published. Lower both together: a fifth of each takes about one "
                    "and a half to two times the calls.",
                ),
                io.Float.Input(
                    "atol",
                    default=0.0078,
                    min=0.0,
                    max=10.0,
                    step=0.0001,
                    round=False,
                    tooltip="Error allowed in a step where the image is near zero. 0.0078 (one grey "
                    "level in 256) as published; lower it together with rtol.",
                ),
                io.Int.Input(
                    "max_calls",
                    default=500,
                    min=1,
                    max=100000,
                    tooltip="Never call the model more often than this. When it runs short, the rest "
                    "is taken in the calls that are left, the image is kept, and the console says so.",
                ),
                io.Combo.Input(
                    "controller",
                    options=list(CONTROLLERS),
                    default="authors",
                    optional=True,
                    advanced=True,
                    tooltip="How the next step's size follows from the error. authors: as published. "
                    "pid: k-diffusion's controller, with the coefficients below; for smoother changes "
                    "of the step size.",
                ),
                _advanced(
                    "h_init",
                    0.05,
                    "Size of the first step in log-SNR. 0.05 as published; a larger one saves a few "
                    "calls, and is taken back if it was too much.",
                    least=0.0001,
                    most=10.0,
                ),
                _advanced(
                    "pcoeff",
                    0.0,
                    "pid only: proportional coefficient. Raise it (0.2 to 0.4) to damp jumps.",
                    least=-10.0,
                    most=10.0,
                ),
                _advanced(
                    "icoeff",
                    1.0,
                    "pid only: integral coefficient. Lower it (0.3 to 0.4) with a raised pcoeff.",
                    least=-10.0,
                    most=10.0,
                ),
                _advanced(
                    "dcoeff",
                    0.0,
                    "pid only: derivative coefficient. Leave at 0 unless step sizes oscillate.",
                    least=-10.0,
                    most=10.0,
                ),
                _advanced(
                    "accept_safety",
                    0.81,
                    "pid only: a step is rejected if the next one would have to shrink below this "
                    "part of it. Higher rejects more.",
                    least=0.0,
                    most=1.0,
                ),
                *_thresholding(),
            ],
            outputs=[_sampler_output()],
        )

    @classmethod
    def execute(cls, controller: str = "authors", **settings: Any) -> io.NodeOutput:
        one_of("controller", controller, CONTROLLERS)
        pid = {
            name: settings.pop(name, default)
            for name, default in (
                ("pcoeff", 0.0),
                ("icoeff", 1.0),
                ("dcoeff", 0.0),
                ("accept_safety", 0.81),
            )
        }
        return _sampler(cls, Adaptive, settings | (pid if controller == "pid" else {}))


class DPMSolver_SDE(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_SDE",
            display_name="DPM-Solver SDE",
            category=CATEGORY,
            description="The stochastic solvers: each step adds fresh noise, which mends errors of "
            "earlier ones and gives more texture, but needs more steps; take 20 to 60. The default is "
            "DPM++ 2M SDE. The noise of an image depends on the seed and on its place in the batch "
            "alone. A seed keeps its noise at any number of steps, so that more steps refine the same "
            "image.",
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
                _algorithm(),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="multistep",
                    tooltip="multistep: reuses earlier outputs (DPM++ 2M SDE, 3M SDE); the one to "
                    "start with. singlestep: groups of `order` steps that reuse nothing; order 2 is "
                    "DPM++ SDE, which elsewhere counts two calls as one step: take twice the steps.",
                ),
                _order(
                    1,
                    2,
                    "How many model outputs a step combines. 1: as Euler ancestral. 2: the default. "
                    "3: multistep only; a little closer from 30 steps up.",
                ),
                io.Float.Input(
                    "eta",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    round=False,
                    tooltip="How much of the noise is fresh. 0: none, the ordinary solver. 1: the "
                    "diffusion SDE, as published. Between: calmer images that need fewer steps. Above "
                    "1: more texture, and more steps needed. With algorithm dpmsolver take 50 steps "
                    "or more. On flow models (SD3, Flux, Wan) any value above 0 replaces all of the "
                    "starting noise in the first step.",
                ),
                io.Float.Input(
                    "s_noise",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    round=False,
                    tooltip="Multiplies the fresh noise. 1 is right; a little less gives smoother "
                    "images, a little more grain.",
                ),
                io.Combo.Input(
                    "solver_type",
                    options=list(SOLVER_TYPES),
                    default="dpmsolver",
                    optional=True,
                    advanced=True,
                    tooltip="The weights of a step. dpmsolver: midpoint. taylor: heun, elsewhere. "
                    "exact: exact weights at order 3 too, and the same as taylor below; no order is "
                    "won by it when eta is above 0.",
                ),
                io.Combo.Input(
                    "noise_device",
                    options=list(NOISE_DEVICES),
                    default="cpu",
                    optional=True,
                    advanced=True,
                    tooltip="Where the noise is drawn. cpu: the same image on every machine. gpu: "
                    "faster for large latents, but the image depends on the kind of GPU.",
                ),
                _lower_order_final(),
                *_thresholding(),
                _cfg_pp(),
            ],
            outputs=[_sampler_output()],
        )

    @classmethod
    def execute(cls, method: str, **settings: Any) -> io.NodeOutput:
        one_of("method", method, METHODS)
        if method == "multistep":
            return _sampler(cls, Multistep, settings)
        if settings.pop("cfg_pp", False):
            raise ValueError(
                "cfg_pp has no singlestep form: set method to multistep, or cfg_pp off."
            )
        settings.pop("lower_order_final", None)  # groups end as they are
        return _sampler(cls, Singlestep, settings)


class DPMSolver_Sigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Sigmas",
            display_name="DPM-Solver Sigmas",
            category=CATEGORY,
            description="The spacings of the DPM-Solver paper as SIGMAS, for any model: where between "
            "noise and image the steps are put.",
            search_aliases=[
                "dpm solver scheduler",
                "scheduler",
                "log snr",
                "logsnr",
                "timesteps",
                "noise schedule",
                "inversion",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model whose noise levels are spaced."),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=10000,
                    tooltip="Steps, which are model calls for all but the adaptive solver.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1 for image to image: the last steps of a longer list, as in "
                    "KSampler. 1 starts from pure noise.",
                ),
                io.Combo.Input(
                    "spacing",
                    options=list(OFFERED_SPACINGS),
                    default="logSNR",
                    tooltip="logSNR: even in log-SNR; the one to use from 15 steps up. "
                    "recommended: what goes with the sampler dpm_solver++_recommended. "
                    "time_quadratic: closer steps at low noise than time_uniform; often the best of "
                    "the three from 6 to 12 steps. time_uniform: even in the model's time, as other "
                    "schedulers are; on flow models the steadiest below 10 steps. On flow models, "
                    "whose log-SNR is infinite at sigma 1, logSNR takes one exact step from there to "
                    "the time 1 - 1/m (of m sigmas above zero), and is even from there.",
                ),
                io.Boolean.Input(
                    "final_zero",
                    default=True,
                    tooltip="End at sigma 0, a finished image. Off: end at the model's smallest "
                    "sigma, with a trace of noise left, for a sampler that goes on from there.",
                ),
                io.Combo.Input(
                    "direction",
                    options=list(DIRECTIONS),
                    default="falling",
                    tooltip="falling: noise to image. rising: image to noise (inversion), from the "
                    "model's smallest sigma up; without a zero, and on flow models without sigma 1.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(
                    tooltip="The list of sigmas, for SamplerCustom or SamplerCustomAdvanced."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        steps: int,
        denoise: float,
        spacing: str,
        final_zero: bool,
        direction: str,
        **_: Any,
    ) -> io.NodeOutput:
        one_of("direction", direction, DIRECTIONS)
        rising = direction == "rising"
        sigmas = ComfyModel.of(model).sigmas(spacing, steps, denoise, final_zero, rising)
        return io.NodeOutput(torch.FloatTensor(sigmas))


class DPMSolver_Recommended(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Recommended",
            display_name="DPM++ (recommended)",
            category=CATEGORY,
            description="The sampler and the sigmas that were measured best for this number of steps "
            "and this kind of model; nothing else to choose. Connect both outputs. To get closer "
            "still with 5 to 10 steps, run DPM-Solver Calibrate once on your model.",
            search_aliases=[
                "dpm++ (recommended)",
                "dpm",
                "dpm solver",
                "dpmpp",
                "best sampler",
                "default sampler",
                "fast sampler",
                "few steps",
                "推荐采样器",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model to sample with."),
                io.Int.Input(
                    "steps",
                    default=12,
                    min=1,
                    max=10000,
                    tooltip="Steps, each one model call. 10 to 15 are enough for most images.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1 for image to image: the last steps of a longer list, as in "
                    "KSampler. 1 starts from pure noise.",
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip="The sampler. It goes with the sigmas beside it."),
                io.Sigmas.Output(tooltip="The sigmas that belong to it. Connect both."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, steps: int, denoise: float = 1.0, **_: Any) -> io.NodeOutput:
        return io.NodeOutput(*sampling.recommended_pair(ComfyModel.of(model), steps, denoise))


NODES: list[type[io.ComfyNode]] = [
    DPMSolver_Recommended,  # the page's search shows the first ones first
    DPMSolver_2M,
    DPMSolver_3M,
    DPMSolver_Multistep,
    DPMSolver_Singlestep,
    DPMSolver_Adaptive,
    DPMSolver_SDE,
    DPMSolver_Sigmas,
]
