"""ComfyUI: its noise schedules, SAMPLER objects and menus. Only a host can import this."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.k_diffusion.sampling
import comfy.model_patcher
import comfy.samplers
import torch

from ...samplers.catalog import CATALOG
from ...samplers.noise import NoiseSampler
from ...samplers.options import Options
from ...samplers.sample import sample as run
from ...samplers.solvers.recommended import Recommended
from ..model import RECOMMENDED
from .model import ComfyModel

SCHEDULER_NAMES = {
    "dpm_solver_log_snr": "logSNR",
    "dpm_solver_time_uniform": "time_uniform",
    "dpm_solver_time_quadratic": "time_quadratic",
    "dpm_solver_recommended": RECOMMENDED,
}
"""Our names in the host's scheduler menus -> the spacing; permanent, as workflows hold them."""


def sampler(options: Options) -> comfy.samplers.KSAMPLER:
    """A SAMPLER for the host's custom sampling nodes, which reads its schedule from the model."""
    return comfy.samplers.KSAMPLER(with_host_model(options))


def with_host_model(options: Options) -> Callable[..., torch.Tensor]:
    """A sampler function as the host calls it: what depends on the model comes from the model.

    That is its noise schedule, what follows from it for the settings, and for CFG++ the unconditional
    predictions.
    """

    def sample(
        model: Any,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
        noise_sampler: NoiseSampler | None = None,
        **settings: Any,
    ) -> torch.Tensor:
        host_model = ComfyModel.of(model.inner_model.model_patcher)
        schedule = host_model.schedule
        unconditional = None
        if options.needs_unconditional:
            extra_args, unconditional = _unconditional(extra_args or {})
        _remark(options, host_model, sigmas)
        return run(
            replace(options, **settings).on(schedule),
            model,
            x,
            sigmas,
            extra_args,
            callback,
            disable,
            noise_sampler=noise_sampler,
            schedule=schedule,
            unconditional=unconditional,
        )

    sample.options = options  # type: ignore[attr-defined]  # see options_of
    return sample


def _remark(options: Options, model: ComfyModel, given: torch.Tensor) -> None:
    """Say in the log what is no error, but perhaps not what was meant."""
    own = given.tolist()
    if len(own) > 1 and own[0] < own[-1]:
        logging.info("DPM-Solver: the sigmas rise, so that this run goes from image to noise.")
    whole = len(own) > 1 and math.isclose(own[0], model.own_sigma_max, rel_tol=1e-3)
    if isinstance(options, Recommended) and whole:
        measured = torch.FloatTensor(model.sigmas(RECOMMENDED, len(own) - 1))
        if not torch.allclose(measured, torch.FloatTensor(own), rtol=1e-3, atol=1e-6):
            logging.warning(
                "dpm_solver++_recommended runs with other sigmas than those it was measured with: "
                "for them set the scheduler to dpm_solver_recommended, or connect the SIGMAS of "
                "DPM++ (recommended)."
            )


def options_of(sampler: Any) -> Options | None:
    """The settings of a SAMPLER of ours; None for another's."""
    function = getattr(sampler, "sampler_function", None)
    options = getattr(function, "options", None)
    return options if isinstance(options, Options) else None


def _unconditional(
    extra_args: Mapping[str, Any],
) -> tuple[dict[str, Any], Callable[[], torch.Tensor]]:
    """Arguments under which the host's guider shows its unconditional prediction, and a look at it.

    The guider then predicts without the prompt even at a CFG of 1, as for the host's own CFG++.
    """
    last: torch.Tensor | None = None

    def keep(args: Mapping[str, Any]) -> torch.Tensor:
        nonlocal last
        last = None if args.get("uncond") is None else args["uncond_denoised"]
        return args["denoised"]

    def look() -> torch.Tensor:
        nonlocal last
        found, last = last, None
        if found is None:
            raise ValueError(
                "A CFG++ sampler needs the prediction for a negative prompt, and this guider makes "
                "none: use CFGGuider or KSampler, or a sampler without cfg_pp."
            )
        return found

    model_options = comfy.model_patcher.set_model_options_post_cfg_function(
        dict(extra_args.get("model_options", {})), keep, disable_cfg1_optimization=True
    )
    return {**extra_args, "model_options": model_options}, look


def register_menus() -> None:
    """Put our samplers and spacings into every KSampler's menus, in place and once.

    The host's lists are shared by reference with its nodes and with other packs, so that they are
    appended to and never replaced. Of two copies of the pack the one that is loaded later counts.
    """
    for entry in CATALOG:
        function = with_host_model(entry.options)
        function.__name__ = f"sample_{entry.id}"
        if entry is CATALOG[0]:
            _check_alone(getattr(comfy.k_diffusion.sampling, function.__name__, None))
        function.__doc__ = f"{entry.label}: {entry.help}\n\n{entry.source}."
        setattr(comfy.k_diffusion.sampling, function.__name__, function)
        _append(comfy.samplers.KSampler.SAMPLERS, entry.id)
        _append(comfy.samplers.SAMPLER_NAMES, entry.id)
    for name, spacing in SCHEDULER_NAMES.items():
        comfy.samplers.SCHEDULER_HANDLERS[name] = comfy.samplers.SchedulerHandler(
            lambda model_sampling, steps, spacing=spacing: torch.FloatTensor(
                ComfyModel(model_sampling).sigmas(spacing, steps)
            )
        )
        _append(comfy.samplers.KSampler.SCHEDULERS, name)
        _append(comfy.samplers.SCHEDULER_NAMES, name)


def _check_alone(registered: Any) -> None:
    """Say so where a sampler of ours is there already, from another folder."""
    if (code := getattr(registered, "__code__", None)) is None:
        return
    other, here = Path(code.co_filename).parents[2], Path(__file__).parents[2]
    if other.resolve() != here.resolve():
        logging.warning(f"DPM-Solver is installed twice: in {other} and in {here}. Remove one.")


def _append(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)


def recommended_pair(
    model: ComfyModel, steps: int, denoise: float = 1.0
) -> tuple[comfy.samplers.KSAMPLER, torch.Tensor]:
    """The recommended SAMPLER with its SIGMAS; see `HostModel.sigmas` for the arguments."""
    return sampler(Recommended()), torch.FloatTensor(model.sigmas(RECOMMENDED, steps, denoise))
