"""Calibrations of the very model that ComfyUI samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.samplers
import folder_paths
import torch

from ...samplers.checks import escaped
from ...samplers.grid import Grid
from ...samplers.log import LOG
from ...samplers.options import Options
from ...samplers.solvers.fitted import Calibration
from .. import own_models
from .model import ComfyModel

FOLDER = "dpm_solver"
"""The folder for calibrations among the host's models."""

PREFIX = "diffusion_model."
"""Of the network's weights, in the host's keys of patches."""


def fingerprint(patcher: Any) -> str:
    """See `own_models.fingerprint`."""
    try:
        weights = dict(patcher.model.diffusion_model.named_parameters())
    except AttributeError as error:
        LOG.debug("no fingerprint of this model", exc_info=error)
        return ""
    backup = getattr(patcher, "backup", {})

    def original(name: str) -> Any:
        kept = backup.get(PREFIX + name)  # of weights that the host has patched
        return getattr(kept, "weight", kept)

    return own_models.fingerprint(weights, getattr(patcher, "patches", {}), original)


def cfg_of(guider: Any) -> float | None:
    """The guider's guidance scale, if it is one number, on one model."""
    plain, cfg = comfy.samplers.CFGGuider, getattr(guider, "cfg", None)
    one = all(
        getattr(type(guider), name, None) is getattr(plain, name)
        for name in ("set_cfg", "predict_noise")
    )
    return float(cfg) if one and isinstance(cfg, (int, float)) else None


def calibration(
    options: Options, guider: Any, x: torch.Tensor, sigmas: torch.Tensor
) -> Calibration | None:
    """The calibration to run in place of the recommended sampler; see `own_models.taken`.

    Args:
        guider: the host's, prepared. One of several models or CFGs takes none.
        x, sigmas: of the run.
    """

    def find() -> own_models.Saved | None:
        guidance = cfg_of(guider)
        if guidance is None:
            return None
        patcher = guider.model_patcher
        model = ComfyModel.of(patcher)
        return own_models.best(saved(), model, x, sigmas, guidance, lambda: fingerprint(patcher))

    found = own_models.taken(options, find, "the input use_calibrations of its node")
    return found and found[1]


def offered(patcher: Any, sigmas: torch.Tensor) -> str:
    """For the node's report: the calibrations that a run on these sigmas may take; "" for none.

    This never raises. The run itself looks again, and tells what it takes.
    """
    try:
        model = ComfyModel.of(patcher)
        grid = Grid.of(sigmas, model.schedule)
        found = own_models.made_on(saved(), model, grid, lambda: fingerprint(patcher))
    except Exception as error:  # of any type, as of other packs' models
        LOG.debug("no calibration was looked for", exc_info=error)
        return ""
    return "\n".join(
        f"With {own_models.guidances(one)}: the calibration {escaped(name, 100)} in its place."
        for name, one in found
    )


def saved() -> Iterator[own_models.Saved]:
    """The calibrations of all files that can be read, each with its file's name."""
    listed = folder_paths.get_filename_list(FOLDER)
    paths = ((name, folder_paths.get_full_path(FOLDER, name)) for name in listed)
    # Broken links have no path.
    yield from own_models.read((name, Path(path)) for name, path in paths if path is not None)
