"""The node that samples with two models in one run."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..two_models import BOUNDARIES, TwoGuiders, check
from . import inputs


class DPMSolver_TwoModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_TwoModels",
            display_name="Sampler for two models",
            category=inputs.CATEGORY,
            description="One run on two models that share the noise levels, such as the two experts "
            "of Wan 2.2: the model changes at the boundary that both were trained for, and the "
            "sampler goes on with its earlier outputs, which two KSamplerAdvanced lose. Any sampler "
            "and any list of sigmas; the second model is loaded when it is needed.",
            search_aliases=[
                "sampler for two models",
                "wan 2.2",
                "two experts",
                "high noise low noise",
                "ksampleradvanced",
                "refiner",
                "moe",
                "双模型采样器",
            ],
            inputs=[
                io.Noise.Input("noise", tooltip="The noise to start from: RandomNoise."),
                io.Guider.Input(
                    "high_noise_guider",
                    tooltip="Predicts at the boundary and above: a CFGGuider or BasicGuider with the "
                    "model for high noise, and its own prompts and CFG.",
                ),
                io.Guider.Input(
                    "low_noise_guider",
                    tooltip="Predicts below the boundary: a guider with the model for low noise.",
                ),
                io.Sampler.Input("sampler", tooltip="Any sampler, of ours or not."),
                io.Sigmas.Input("sigmas", tooltip="The list of sigmas for the whole run."),
                io.Latent.Input("latent_image", tooltip="An empty latent, or an image to change."),
                inputs.number(
                    "boundary",
                    0.875,
                    "Where the model changes. Wan 2.2: time 0.875 for text to video, 0.9 for image to "
                    "video. SDXL's refiner: time 0.2.",
                    least=0.0,
                    most=10000.0,
                    step=0.001,
                ),
                io.Combo.Input(
                    "boundary_is",
                    options=list(BOUNDARIES),
                    default="time",
                    tooltip="time: a part of the model's training time, from 1 (noise) to 0; on flow "
                    "models it is sigma. sigma: a noise level. step: so many steps with the first "
                    "model, as in KSamplerAdvanced.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="output", tooltip="The latent at the last sigma."),
                io.Latent.Output(
                    display_name="denoised_output",
                    tooltip="The model's last prediction: the same where the list ends at sigma 0.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        noise: Any,
        high_noise_guider: Any,
        low_noise_guider: Any,
        sampler: Any,
        sigmas: Any,
        latent_image: Any,
        boundary: float,
        boundary_is: str,
        **_: Any,
    ) -> io.NodeOutput:
        from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

        check(high_noise_guider.model_patcher, low_noise_guider.model_patcher)
        both = TwoGuiders(high_noise_guider, low_noise_guider, boundary, boundary_is)
        return SamplerCustomAdvanced.execute(noise, both, sampler, sigmas, latent_image)
