"""The nodes that calibrate a solver on a model, and that load such a calibration."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io, ui

from .. import calibrate, calibrations, guiding
from . import inputs

PROMPTS = ("guider", "positive", "negative")
"""Inputs of which several may be connected, as a list."""


class DPMSolver_Calibrate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Calibrate",
            display_name="DPM-Solver Calibrate",
            category=inputs.LAB_CATEGORY,
            description="Fits a solver of few model calls to your own model: it solves some noises "
            "finely, chooses where the steps go, fits their weights, and measures the result on other "
            "noises. Run it once; the result is saved, and DPM-Solver Calibrated uses it in every "
            "later graph. It also helps with other seeds and prompts, and with a CFG up to 30 % "
            "higher or lower.",
            search_aliases=[
                "dpm-solver calibrate",
                "calibration",
                "fit sampler",
                "optimise sampler",
                "optimize sampler",
                "few steps",
            ],
            inputs=[
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent of the size you make images in."
                ),
                io.Int.Input(
                    "calls",
                    default=8,
                    min=2,
                    max=30,
                    tooltip="Model calls of the solver you want, which are its steps. 5 to 10 gain "
                    "the most over other samplers.",
                ),
                inputs.cfg("The CFG you will sample with."),
                io.Int.Input(
                    "seeds",
                    default=20,
                    min=2,
                    max=256,
                    tooltip="How many noises to fit on. 20 are enough; take fewer for very large "
                    "latents. Each takes eight times its latent of main memory, and all of them "
                    "together at most 4 GiB.",
                ),
                io.Int.Input(
                    "held_out",
                    default=8,
                    min=1,
                    max=64,
                    tooltip="How many further noises to measure the result on. The solver is not "
                    "fitted on them.",
                ),
                io.Int.Input(
                    "model_calls",
                    default=12000,
                    min=100,
                    max=1000000,
                    step=100,
                    tooltip="The most model calls that the calibration may make, counted per image. "
                    "A high CFG, where converged images take more steps, and more_calls need more. "
                    "The log and the node say beforehand how many it will make.",
                ),
                io.Int.Input(
                    "batch",
                    default=4,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip="Images in a model call, which are on the device together. 1 takes the "
                    "least memory.",
                ),
                inputs.noise_seed(0xFFFFFFFFFFFFF, "The first of the seeds; the others follow it."),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="Name of the file in models/dpm_solver, with / between subfolders. Empty: "
                    "made from model, calls and CFG. An older file is never overwritten: a number is "
                    "added to the name.",
                ),
                *inputs.guider_or_model(
                    model="The model to calibrate on, if no guider is connected.",
                    positive="A prompt like those you use; the solver works for others too.",
                    negative="The negative prompt; an empty one will do.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=[calibrate.OWN_WEIGHTS, *comfy.samplers.KSampler.SAMPLERS],
                    default=calibrate.OWN_WEIGHTS,
                    optional=True,
                    tooltip="calibrated: fits sigmas and step weights, which is closest. Or the name "
                    "of a sampler: finds the sigmas that are best for it on this model, as lists like "
                    "Align Your Steps or OptimalSteps are for other models. It must call the model "
                    "once a step and add no noise: euler, dpmpp_2m, res_multistep, uni_pc, ...",
                ),
                io.String.Input(
                    "more_calls",
                    default="",
                    optional=True,
                    tooltip='Further numbers of model calls, such as "5, 12". They share the '
                    "converged images and go into the same file. Allow more model_calls for each.",
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip="The calibrated solver."),
                io.Sigmas.Output(tooltip="The sigmas that belong to it. Connect both."),
                io.String.Output(
                    display_name="report",
                    tooltip="How far it and other samplers are from the converged image.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            is_input_list=True,
        )

    @classmethod
    def execute(cls, **inputs: list[Any]) -> io.NodeOutput:
        """Each input is a list: of several prompts or guiders, and otherwise of one value."""
        prompts = [inputs.pop(name, [None]) or [None] for name in PROMPTS]
        one = {name: values[0] for name, values in inputs.items()}
        model, cfg, count = one.get("model"), one["cfg"], max(map(len, prompts))
        several = zip(*(_repeated(values, count) for values in prompts), strict=True)
        guiders = [
            guiding.guider_of(guider, model, positive, negative, cfg, "DPM-Solver Calibrate")
            for guider, positive, negative in several
        ]
        asked = calibrate.Asked(
            one["calls"],
            one["noise_seed"],
            one["seeds"],
            one["held_out"],
            one["model_calls"],
            one.get("batch", 4),
            one["name"],
            one.get("more_calls", ""),
            one.get("sampler", calibrate.OWN_WEIGHTS),
        )
        pair = calibrate.run(guiders, one["latent_image"], asked, cls.hidden.unique_id)
        return io.NodeOutput(*pair, ui=ui.PreviewText(pair.text))


def _repeated(values: list[Any], count: int) -> list[Any]:
    """So many values, the last one repeated."""
    return [*values, *values[-1:] * (count - len(values))]


class DPMSolver_Calibrated(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Calibrated",
            display_name="DPM-Solver Calibrated",
            category=inputs.CATEGORY,
            description="A solver that DPM-Solver Calibrate fitted to this model. Connect both "
            "outputs: its weights are right only for its own sigmas.",
            search_aliases=[
                "dpm-solver calibrated",
                "load calibration",
                "few steps",
                "fast sampler",
            ],
            inputs=[
                io.Combo.Input(
                    "calibration",
                    options=calibrations.names(),
                    tooltip="A file in models/dpm_solver or its subfolders. With the mouse over "
                    "it, its text says for which model and settings it is. Files for another kind of "
                    "model than the connected one are left out, if its loader tells the kind. To use "
                    "a file of somebody else, copy it there and press R.",
                ),
                io.Model.Input(
                    "model",
                    tooltip="The model to sample with. A calibration for another kind of model is "
                    "refused.",
                ),
                inputs.denoise(
                    "Below 1 for image to image, with fewer model calls: DPM++ (recommended) runs in "
                    "the place of the calibration, which was fitted for whole runs."
                ),
                io.Int.Input(
                    "calls",
                    default=0,
                    min=0,
                    max=100,
                    optional=True,
                    tooltip="For a file with several numbers of model calls: which one. 0: the first.",
                ),
                io.Float.Input(
                    "cfg",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    optional=True,
                    tooltip="For a file with several CFGs: the one you sample with; the nearest is "
                    "taken. 0: the first.",
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip="The calibrated solver. It takes only these sigmas."),
                io.Sigmas.Output(tooltip="The sigmas that belong to it. Connect both."),
                io.String.Output(
                    display_name="report", tooltip="What it was fitted on, and its measured error."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, calibration: str) -> bool:
        return True  # execute says more about a missing name than the host would

    @classmethod
    def fingerprint_inputs(cls, calibration: str, **_: Any) -> str:
        return calibrations.fingerprint(calibration)

    @classmethod
    def execute(
        cls,
        calibration: str,
        model: Any,
        denoise: float = 1.0,
        calls: int = 0,
        cfg: float = 0.0,
        **_: Any,
    ) -> io.NodeOutput:
        return io.NodeOutput(*calibrations.load(calibration, model, denoise, calls, cfg))
