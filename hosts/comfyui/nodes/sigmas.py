"""The node of the paper's spacings."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ....samplers.checks import one_of
from ...model import OFFERED_SPACINGS
from ..model import ComfyModel
from . import inputs

DIRECTIONS = ("falling", "rising")


class DPMSolver_Sigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Sigmas",
            display_name="DPM-Solver Sigmas",
            category=inputs.CATEGORY,
            description="The spacings of the DPM-Solver paper as SIGMAS, for any model. A spacing "
            "decides which noise levels the steps go through on the way from noise to image.",
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
                inputs.steps(
                    20, "Number of steps. Each is one model call, except with the adaptive solver."
                ),
                inputs.denoise(inputs.LAST_STEPS),
                io.Combo.Input(
                    "spacing",
                    options=list(OFFERED_SPACINGS),
                    default="logSNR",
                    tooltip="logSNR: even in log-SNR; the one to use from 15 steps up. "
                    "recommended: what goes with the sampler dpm_solver++_recommended. "
                    "time_quadratic: closer steps at low noise than time_uniform; often the best of "
                    "the three from 6 to 12 steps. time_uniform: even in the model's time, as other "
                    "schedulers are; on flow models the steadiest below 10 steps. On flow models the "
                    "log-SNR is infinite at sigma 1, so logSNR takes one exact step from there to the "
                    "time 1 - 1/m (of m sigmas above zero), and is even from there.",
                ),
                io.Boolean.Input(
                    "final_zero",
                    default=True,
                    tooltip="On: the list ends at sigma 0, for a finished image. Off: it ends at the "
                    "model's smallest sigma, and a trace of noise is left for a sampler that goes on "
                    "from there.",
                ),
                io.Combo.Input(
                    "direction",
                    options=list(DIRECTIONS),
                    default="falling",
                    tooltip="falling: from noise to image. rising: from image to noise (inversion). "
                    "The list then starts at the model's smallest sigma and has no zero; on flow "
                    "models it has no sigma 1 either.",
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
