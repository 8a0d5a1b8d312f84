"""Inputs and outputs that several nodes have, and a sampler's settings from a node's inputs."""

from __future__ import annotations

import sys
from typing import Any

from comfy_api.latest import io

from ....samplers.options import ALGORITHMS
from ....samplers.solvers.multistep import LOWER_ORDER_FINAL


def _of_the_host() -> str:
    """Where the host files its own samplers: "sampling", and "model/sampling" in newer ones."""
    sampler = getattr(sys.modules.get("nodes"), "KSampler", None)
    return str(getattr(sampler, "CATEGORY", "sampling"))


CATEGORY = f"{_of_the_host()}/DPM-Solver"
LAB_CATEGORY = f"{CATEGORY}/lab"

ADVANCED = {"optional": True, "advanced": True}
PUBLISHED_TYPES = ("dpmsolver", "taylor")

FIXED = getattr(getattr(io, "ControlAfterGenerate", None), "fixed", True)
"""The page keeps a seed after a run. hiddenswitch's ComfyUI can't be told so: there it changes."""


# --- of samplers ---------------------------------------------------------------------------------


def algorithm(options: tuple[str, ...] = ALGORITHMS, more: str = "") -> io.Combo.Input:
    return io.Combo.Input(
        "algorithm",
        options=list(options),
        default="dpmsolver++",
        tooltip="What the solver interpolates between steps. dpmsolver++: the denoised image. Start "
        "with it, as its authors advise it for guided sampling. dpmsolver: the noise, as in the first "
        "paper. On some models it is closer to the converged image: try both." + more,
    )


def order(least: int, default: int, tooltip: str, most: int = 3) -> io.Int.Input:
    return io.Int.Input("order", default=default, min=least, max=most, tooltip=tooltip)


def solver_type(options: tuple[str, ...], tooltip: str, **how: bool) -> io.Combo.Input:
    return io.Combo.Input(
        "solver_type", options=list(options), default="dpmsolver", tooltip=tooltip, **how
    )


def number(
    name: str, default: float, tooltip: str, least: float, most: float, step: float, **how: bool
) -> io.Float.Input:
    return io.Float.Input(
        name,
        default=default,
        min=least,
        max=most,
        step=step,
        round=False,
        tooltip=tooltip,
        **how,
    )


def lower_order_final() -> io.Combo.Input:
    return io.Combo.Input(
        "lower_order_final",
        options=list(LOWER_ORDER_FINAL),
        default="auto",
        tooltip="Keeps short runs and uneven steps stable. auto: a step that is much longer in "
        "log-SNR than the one before it relies less on earlier outputs, and with fewer than 10 "
        "steps above sigma 0 the last ones have a lower order, as published (but for 2M without "
        "noise); leave it there. on: the last steps always have a lower order. off: neither; the "
        "formula's own weights in every step.",
        **ADVANCED,
    )


def cfg_pp() -> io.Boolean.Input:
    return io.Boolean.Input(
        "cfg_pp",
        default=False,
        tooltip="CFG++: the solver follows the prediction without the prompt, and guidance moves each "
        "new state, for truer colours and fewer artefacts. Set CFG to 1 to 2 with it; the more steps "
        "there are above 30, the nearer to 1. Connect a negative prompt: the model predicts for both "
        "prompts even at CFG 1.",
        **ADVANCED,
    )


THRESHOLD = {"threshold_ratio": 0.995, "threshold_max": 1.0}


def thresholding() -> list[io.Input]:
    return [
        io.Boolean.Input(
            "thresholding",
            default=False,
            tooltip="Dynamic thresholding: clamps the denoised image of each step to its own range. "
            "Use it only with models that work on pixels, against burnt images at a high CFG. Leave "
            "it off for latents (Stable Diffusion, SDXL, Flux): they have no range to clamp to.",
            **ADVANCED,
        ),
        number(
            "threshold_ratio",
            THRESHOLD["threshold_ratio"],
            "Used with thresholding: the share of each image's values that is left as it is.",
            least=0.01,
            most=1.0,
            step=0.001,
            **ADVANCED,
        ),
        number(
            "threshold_max",
            THRESHOLD["threshold_max"],
            "Used with thresholding: the range of a clean image; 1 if pixels go from -1 to 1.",
            least=0.01,
            most=1000.0,
            step=0.01,
            **ADVANCED,
        ),
    ]


def sampler_output() -> io.Sampler.Output:
    return io.Sampler.Output(
        tooltip="The sampler, for SamplerCustom, SamplerCustomAdvanced or the lab's nodes."
    )


def settings_of(node: type[io.ComfyNode], inputs: dict[str, Any]) -> dict[str, Any]:
    """A node's inputs as keyword arguments of a family's settings.

    Args:
        inputs: what the host calls the node with. It passes links to inputs that the node doesn't
            have, too, which are left out.
    """
    own = {one.id for one in node.define_schema().inputs}
    settings = {name: value for name, value in inputs.items() if name in own}
    threshold = tuple(settings.pop(name, default) for name, default in THRESHOLD.items())
    if settings.pop("thresholding", False):
        settings["thresholding"] = threshold
    return settings


# --- of lists of sigmas --------------------------------------------------------------------------


def steps(default: int, tooltip: str) -> io.Int.Input:
    return io.Int.Input("steps", default=default, min=1, max=10000, tooltip=tooltip)


def denoise(tooltip: str) -> io.Float.Input:
    return io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


LAST_STEPS = (
    "Below 1 for image to image: the part of the model's time that is run, as in KSampler. 1 starts "
    "from pure noise."
)
"""What denoise means for lists that can have any number of steps."""


# --- of runs in the lab --------------------------------------------------------------------------


def cfg(tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        "cfg",
        default=7.0,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        tooltip=f"{tooltip} A guider has its own, and then this one has no effect.",
    )


def noise_seed(most: int, tooltip: str) -> io.Int.Input:
    return io.Int.Input(
        "noise_seed",
        default=0,
        min=0,
        max=most,
        control_after_generate=FIXED,
        tooltip=tooltip,
    )


def guider_or_model(model: str, positive: str, negative: str) -> list[io.Input]:
    """A guider, or the three inputs that stand for it, which have these tooltips."""
    return [
        io.Guider.Input(
            "guider",
            optional=True,
            tooltip="Makes the predictions: CFGGuider, BasicGuider or any other. Connect it instead "
            "of model, positive and negative. Flow models without a negative prompt need one.",
        ),
        io.Model.Input("model", optional=True, tooltip=model),
        io.Conditioning.Input("positive", optional=True, tooltip=positive),
        io.Conditioning.Input("negative", optional=True, tooltip=negative),
    ]
