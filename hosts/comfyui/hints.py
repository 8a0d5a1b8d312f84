"""Hints in ComfyUI's log: settings that are no error, but perhaps a mistake."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import comfy.samplers
import torch

from ...samplers.grid import Grid
from ...samplers.log import LOG
from ...samplers.options import Options
from ...samplers.solvers.recommended import Recommended
from .model import ComfyModel

RECOMMENDED_SCHEDULER = "dpm_solver_recommended"


def hint(options: Options, model: ComfyModel, sigmas: torch.Tensor, cfg: Any = None) -> None:
    """Log hints about a run's sigmas, and what the recommended sampler does on them.

    This never raises: models and schedulers of other packs may lack what it reads.

    Args:
        cfg: the guider's CFG, if it has one.
    """
    try:
        _rising(sigmas)
        if isinstance(options, Recommended):
            LOG.info("DPM++ (recommended): %s", what_it_takes(options, model, sigmas, cfg))
            _other_scheduler(model.model_sampling, sigmas)
    except Exception as error:
        LOG.debug("no hint for this run", exc_info=error)


def what_it_takes(
    options: Recommended, model: ComfyModel, sigmas: torch.Tensor, cfg: Any = None
) -> str:
    """What the recommended sampler does on a list of sigmas, in a line.

    Args:
        cfg: the guider's CFG, if it is known and the guider has one.
    """
    about = [options.describe(Grid.of(sigmas, model.schedule))]
    about += [f"shift {model.shift:g}"] if model.shift is not None else []
    about += [f"CFG {cfg:g}"] if isinstance(cfg, float | int) else []
    return ", ".join(about)


def _rising(sigmas: torch.Tensor) -> None:
    if len(sigmas) > 1 and sigmas[0] < sigmas[-1]:
        LOG.info("DPM-Solver: the sigmas rise, so this run goes from image to noise.")


def _other_scheduler(model_sampling: Any, sigmas: torch.Tensor) -> None:
    """Log it if another scheduler than the recommended one is set.

    Only whole lists are recognised. KSamplerAdvanced, SplitSigmas and a denoise below 1 hand over
    parts of a list, which no scheduler gives for so few steps.
    """
    sigmas = sigmas.detach().cpu().float()
    sigma_max = float(model_sampling.sigma_max)
    if len(sigmas) < 3 or not math.isclose(float(sigmas[0]), sigma_max, rel_tol=1e-3):
        return
    if _lists(RECOMMENDED_SCHEDULER, model_sampling, sigmas):
        return
    for name in comfy.samplers.SCHEDULER_HANDLERS:
        with contextlib.suppress(Exception):  # some have no list for this model
            if _lists(name, model_sampling, sigmas):
                LOG.warning(
                    "dpm_solver++_recommended runs with the sigmas of another scheduler: those it was "
                    f"measured with come from the scheduler {RECOMMENDED_SCHEDULER}, or from the node "
                    "DPM++ (recommended)."
                )
                return


def _lists(scheduler: str, model_sampling: Any, sigmas: torch.Tensor) -> bool:
    """Whether the scheduler gives these sigmas for so many steps."""
    own = comfy.samplers.calculate_sigmas(model_sampling, scheduler, len(sigmas) - 1).cpu().float()
    return own.shape == sigmas.shape and torch.allclose(own, sigmas, rtol=1e-3, atol=1e-6)
