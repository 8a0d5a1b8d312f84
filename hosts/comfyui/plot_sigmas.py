"""What the Plot Sigmas node runs: a list of sigmas, and the plan of one of our samplers on it."""

from __future__ import annotations

from typing import Any

import torch

from ...lab import compare, plots
from ...samplers import NoiseSchedule, VarianceExploding
from ...samplers.checks import escaped
from ...samplers.grid import Grid, read_sigmas
from . import sampling
from .candidates import at_least_one_step, name_of
from .model import ComfyModel
from .pictures import as_image


def plot_sigmas(
    sigmas: torch.Tensor, model: Any = None, sampler: Any = None
) -> tuple[torch.Tensor, str]:
    """Run the Plot Sigmas node: (picture, table).

    Raises:
        ValueError: the list has no step, or doesn't fit the model or the sampler.
        ImportError: matplotlib is missing.
    """
    plots.require()
    at_least_one_step("sigmas", sigmas)
    host_model = None if model is None else ComfyModel.of(model)
    schedule = VarianceExploding() if host_model is None else host_model.schedule
    levels = read_sigmas(sigmas, schedule)
    plan, remark = None, ""
    if sampler is not None:
        plan, remark = _plan(sampler, sigmas, schedule, host_model)
    lines = [f"{'step':>4s} {'sigma':>12s} {'half log-SNR':>13s}"]
    lines += [
        f"{i:4d} {sigma:12.6g} {schedule.lambda_(sigma):13.6g}" for i, sigma in enumerate(levels)
    ]
    parts = ["\n".join(lines), remark, str(plan) if plan is not None else ""]
    image = as_image(plots.sigmas(levels, schedule, plan, remark))
    return image, "\n\n".join(filter(None, parts))


def _plan(
    sampler: Any, sigmas: torch.Tensor, schedule: NoiseSchedule, model: ComfyModel | None
) -> tuple[Any, str]:
    """The plan of a SAMPLER of ours, or a sentence why there is none."""
    options = sampling.options_of(sampler)
    if options is None:
        name = escaped(name_of(sampler), compare.LABEL_LENGTH)
        return None, f"{name} is no sampler of this pack: its weights are its own."
    if model is None:
        options = options.on(schedule)
    else:
        options = sampling.adapted(options, sampler.sampler_function.noisy, model)
    plan = options.plan(Grid.of(sigmas, schedule))
    if plan is None:
        return (
            None,
            "The adaptive solver chooses its steps during a run, so it has no weights yet.",
        )
    return plan, ""
