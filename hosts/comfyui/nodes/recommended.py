"""The node of the recommended sampler with its sigmas."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ....samplers.solvers.recommended import Recommended
from .. import hints, own_models, sampling
from ..model import ComfyModel
from . import inputs


class DPMSolver_Recommended(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Recommended",
            display_name="DPM++ (recommended)",
            category=inputs.CATEGORY,
            description="A sampler and the sigmas that belong to it, fitted on many models for this "
            "number of steps and this kind of model (diffusion or flow). Connect both. In place of 25 "
            "steps take 12 on flow models (SD3, Flux dev, Wan), and 20 on Stable Diffusion and "
            "SDXL. Not for distilled models (Lightning, Turbo, DMD, Schnell, Klein): keep the "
            "sampler and scheduler that their makers name. To get closer still with 5 to 10 "
            "steps, run DPM-Solver Calibrate once on your model.",
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
                inputs.steps(
                    12, "Steps, each one model call. Try 12 on flow models, 20 on others."
                ),
                inputs.denoise(inputs.LAST_STEPS),
                io.Boolean.Input(
                    "use_calibrations",
                    default=True,
                    tooltip="If DPM-Solver Calibrate was run on this very model, for this number of "
                    "steps and a CFG up to 30 % higher or lower, its result is used in place of this "
                    "sampler; the log says so.",
                    **inputs.ADVANCED,
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip="The sampler. It goes with the sigmas beside it."),
                io.Sigmas.Output(tooltip="The sigmas that belong to it. Connect both."),
                io.String.Output(
                    display_name="report",
                    tooltip="What it takes for this model, and calibrations that may run instead.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        steps: int,
        denoise: float = 1.0,
        use_calibrations: bool = True,
        **_: Any,
    ) -> io.NodeOutput:
        host_model = ComfyModel.of(model)
        pair = sampling.recommended_pair(host_model, steps, denoise, own_model=use_calibrations)
        _, sigmas = pair
        report = [hints.what_it_takes(Recommended(), host_model, sigmas)] if denoise else []
        report += [own_models.offered(model, sigmas)] if use_calibrations else []
        return io.NodeOutput(*pair, "\n".join(filter(None, report)))
