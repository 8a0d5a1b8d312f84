"""Calibrations of the very model that webui samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from modules import paths

from ...samplers.options import Options
from .. import own_models
from .model import WebuiModel
from .settings import USE_CALIBRATIONS, switched_on

FOLDER, PATTERN = "dpm_solver", "**/*.safetensors"
"""The folder for calibrations among the host's models, and the files in it."""


def calibration_files() -> list[Path]:
    return sorted((Path(paths.models_path) / FOLDER).glob(PATTERN))


def calibration(
    options: Options,
    denoiser: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: Mapping[str, Any],
) -> own_models.Saved | None:
    """The calibration to run in place of the recommended sampler; see `own_models.taken`.

    Args:
        denoiser: the host's, with guidance.
        x, sigmas, extra_args: of the run.
    """
    if not switched_on(USE_CALIBRATIONS):
        return None

    def find() -> own_models.Saved | None:
        wrap, guidance = denoiser.inner_model, extra_args["cond_scale"]
        network = wrap.inner_model
        return own_models.best(
            saved(), WebuiModel(wrap), x, sigmas, guidance, lambda: fingerprint(network)
        )

    return own_models.taken(options, find, "a setting on the page DPM-Solver")


def saved() -> Iterator[own_models.Saved]:
    yield from own_models.read((path.stem, path) for path in calibration_files())


def fingerprint(sd_model: Any) -> str:
    """See `own_models.fingerprint`; "" with LoRAs, which these hosts merge into the weights."""
    unet = getattr(getattr(sd_model, "forge_objects", None), "unet", None)
    network = (unet or sd_model).model.diffusion_model
    if getattr(unet, "lora_patches", None) or getattr(unet, "patches", None):
        return ""
    if any(getattr(part, "network_current_names", ()) for part in network.modules()):
        return ""  # AUTOMATIC1111's
    return own_models.fingerprint(dict(network.named_parameters()), {})
