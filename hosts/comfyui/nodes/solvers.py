"""Nodes of the solvers with a fixed number of steps: 2M, 3M, Multistep and Singlestep."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ....samplers.checks import one_of
from ....samplers.options import SOLVER_TYPES
from ....samplers.solvers.multistep import CORRECTORS, MULTISTEP_ALGORITHMS, Multistep
from ....samplers.solvers.singlestep import GROUPINGS, Singlestep
from .. import sampling
from . import inputs
from .inputs import settings_of


class DPMSolver_2M(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_2M",
            display_name="DPM++ 2M",
            category=inputs.CATEGORY,
            description="DPM-Solver++ 2M, the classic: second order, one model call per step, good "
            "from 10 steps up; DPM++ (recommended) needs fewer. It gives the same as ComfyUI's "
            "dpmpp_2m, on flow models (SD3, Flux, Wan) too, but on lists of sigmas that have a step "
            "far longer than the one before it (normal, ddim_uniform): there it stays closer to the "
            "converged image. With lower_order_final off it is the same on all lists.",
            search_aliases=[
                "dpmpp_2m",
                "dpmpp",
                "dpm++",
                "dpm solver++",
                "dpm solver",
                "采样器",
            ],
            inputs=[inputs.lower_order_final()],
            outputs=[inputs.sampler_output()],
        )

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(sampling.sampler(Multistep(**settings_of(cls, given))))


class DPMSolver_3M(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_3M",
            display_name="DPM++ 3M",
            category=inputs.CATEGORY,
            description="DPM-Solver++ 3M with exact weights: truly third order, one model call per "
            "step. The more steps there are, the more it gains: try it from 15 up, with a spacing "
            "that is smooth in log-SNR (logSNR, Karras). With fewer steps DPM++ 2M is safer. The "
            "published weights, which converge only at second order, are in DPM-Solver Multistep.",
            search_aliases=["dpmpp_3m", "dpm++", "dpm solver++", "third order", "采样器"],
            inputs=[inputs.lower_order_final()],
            outputs=[inputs.sampler_output()],
        )

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        options = Multistep(order=3, solver_type="exact", **settings_of(cls, given))
        return io.NodeOutput(sampling.sampler(options))


class DPMSolver_Multistep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Multistep",
            display_name="DPM-Solver Multistep",
            category=inputs.CATEGORY,
            description="All multistep solvers of the family: each step makes one model call and "
            "combines its output with those of earlier steps. The default settings are DPM++ 2M. For "
            "UniPC set corrector to unic.",
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
                inputs.algorithm(
                    MULTISTEP_ALGORITHMS,
                    " adams: the slope of the path in sigma, as in ipndm and lms. It is good from 15 "
                    "steps up, with the corrector.",
                ),
                inputs.order(
                    1,
                    2,
                    "How many model outputs a step combines. 1: DDIM, needs many steps. 2: the "
                    "default. 3: closer to the converged image from about 15 steps up, less stable "
                    "below. 4: only with the solver type exact or with adams, from about 20 steps up.",
                    most=4,
                ),
                inputs.solver_type(
                    SOLVER_TYPES,
                    "The weights of a step. dpmsolver: the paper's midpoint form, as in other "
                    "programs. taylor: the paper's other form, which is rarely better. exact: the "
                    "interpolation integrated exactly. Only exact is third order at order 3; at lower "
                    "orders it is the same as taylor.",
                ),
                inputs.lower_order_final(),
                *inputs.thresholding(),
                inputs.cfg_pp(),
                # Later ones come last: workflow files hold the values of inputs by their place.
                io.Combo.Input(
                    "corrector",
                    options=["none", *CORRECTORS],
                    default="none",
                    optional=True,
                    tooltip="unic: the model's output at a state, which the next step needs anyway, "
                    "first corrects that state. This gains one order and costs no model call. It is "
                    "closer to the converged image from about 8 steps up; with fewer steps and a high "
                    "CFG try none. It can't be used with CFG++.",
                ),
            ],
            outputs=[inputs.sampler_output()],
        )

    @classmethod
    def execute(cls, corrector: str = "none", **given: Any) -> io.NodeOutput:
        one_of("corrector", corrector, ("none", *CORRECTORS))
        options = Multistep(
            corrector=None if corrector == "none" else corrector, **settings_of(cls, given)
        )
        return io.NodeOutput(sampling.sampler(options))


class DPMSolver_Singlestep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Singlestep",
            display_name="DPM-Solver Singlestep",
            category=inputs.CATEGORY,
            description="All singlestep solvers of the family: steps are taken in groups of two or "
            "three, and a group uses no output from before it. Each step is still one model call, so "
            "20 steps are 20 calls. At equal calls multistep is usually closer to the converged "
            "image; singlestep is steadier at very few steps with a high CFG, and if something "
            "changes the model between steps.",
            search_aliases=[
                "dpm-solver singlestep",
                "dpmpp_2s",
                "dpm++ 2s",
                "dpm_fast",
                "runge kutta",
            ],
            inputs=[
                inputs.algorithm(),
                inputs.order(
                    1,
                    2,
                    "Steps in a group. 2 (2S): the default. 3 (3S): closer to the converged image "
                    "from about 15 steps up. 1: DDIM.",
                ),
                inputs.solver_type(
                    inputs.PUBLISHED_TYPES,
                    "The weights of a group's last step. dpmsolver: the paper's midpoint form, the "
                    "default. taylor: exact weights, often better if steps are uneven.",
                ),
                io.Combo.Input(
                    "grouping",
                    options=list(GROUPINGS),
                    default="fast",
                    tooltip="How steps are grouped at order 3. fast: groups of 3, and shorter ones of "
                    "2 and 1 at the end, as published. fixed: groups of 3 and a remainder, which "
                    "keeps third order; try it if the steps above sigma 0 are a multiple of 3.",
                ),
                *inputs.thresholding(),
            ],
            outputs=[inputs.sampler_output()],
        )

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(sampling.sampler(Singlestep(**settings_of(cls, given))))
