"""Calibrations of the very model that ComfyUI samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
import torch

from ...samplers.log import LOG
from ...samplers.options import Options
from ...samplers.solvers.fitted import Calibration
from ...samplers.solvers.recommended import Recommended
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


def calibration(
    options: Options, guider: Any, x: torch.Tensor, sigmas: torch.Tensor
) -> Calibration | None:
    """The calibration to run in place of the recommended sampler; None to run that.

    See `own_models.best`. This never raises, and says in the log what is taken.

    Args:
        guider: the host's, prepared.
        x, sigmas: of the run.
    """
    if not isinstance(options, Recommended):
        return None
    try:
        patcher = guider.model_patcher
        guidance = getattr(guider, "cfg", None)
        found = own_models.best(
            saved(), ComfyModel.of(patcher), x, sigmas, guidance, lambda: fingerprint(patcher)
        )
    except Exception as error:  # of any type: a run never ends for this
        LOG.debug("no calibration was looked for", exc_info=error)
        return None
    if found is None:
        return None
    own_models.tell(found, "the input use_calibrations of its node")
    return found[1]


def saved() -> Iterator[own_models.Saved]:
    """The calibrations of all files that can be read, each with its file's name."""
    listed = folder_paths.get_filename_list(FOLDER)
    paths = ((name, folder_paths.get_full_path(FOLDER, name)) for name in listed)
    # Broken links have no path.
    yield from own_models.read((name, Path(path)) for name, path in paths if path is not None)
