"""The lab's node that shows a list of sigmas."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .. import plot_sigmas
from . import inputs


class DPMSolver_PlotSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_PlotSigmas",
            display_name="Plot Sigmas",
            category=inputs.LAB_CATEGORY,
            description="Shows a list of sigmas: the noise level of each step, its log-SNR, and, for "
            "the samplers of this pack, the weights of the model's outputs in each step. Calls no "
            "model.",
            search_aliases=[
                "plot sigmas",
                "show sigmas",
                "plot schedule",
                "sigma curve",
                "log snr",
                "solver weights",
            ],
            inputs=[
                io.Sigmas.Input("sigmas", tooltip="The list, from any scheduler node."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Connect it for flow models (SD3, Flux, Wan), whose log-SNR is defined "
                    "differently. Without it the list is taken for a diffusion model's, such as "
                    "Stable Diffusion's.",
                ),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="Adds the weights of each step, if it is a sampler of this pack.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="The list as a picture."),
                io.String.Output(display_name="table", tooltip="The same in numbers."),
            ],
        )

    @classmethod
    def execute(
        cls, sigmas: Any, model: Any = None, sampler: Any = None, **_: Any
    ) -> io.NodeOutput:
        return io.NodeOutput(*plot_sigmas.plot_sigmas(sigmas, model, sampler))
