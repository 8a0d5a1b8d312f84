"""SAMPLER objects, and the samplers and schedulers in ComfyUI's menus."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import comfy.k_diffusion.sampling
import comfy.model_patcher
import comfy.samplers
import torch

from ...samplers.catalog import CATALOG
from ...samplers.checks import escaped
from ...samplers.log import LOG
from ...samplers.noise import NoiseSampler
from ...samplers.options import Options
from ...samplers.sample import sample as run
from ...samplers.solvers.fitted import Calibrated
from ...samplers.solvers.recommended import Recommended
from ..callers import callers_variables
from ..model import RECOMMENDED
from . import own_models
from .hints import hint
from .model import ComfyModel

SCHEDULER_NAMES = {
    "dpm_solver_log_snr": "logSNR",
    "dpm_solver_time_uniform": "time_uniform",
    "dpm_solver_time_quadratic": "time_quadratic",
    "dpm_solver_recommended": RECOMMENDED,
}
"""Our names in the host's scheduler menus -> the spacing; permanent, as workflows hold them."""

NOISE_SETTINGS = ("eta", "s_noise", "noise_sampler", "noise_device")
FREE_SETTINGS = (
    *("solver_type", "lower_order_final", "grouping", "thresholding", "max_calls"),
    *("rtol", "atol", "h_init", "pcoeff", "icoeff", "dcoeff", "accept_safety"),
)
"""Settings that other packs may change in a run, if the sampler has them; see `_signature`."""


class TimeRange(NamedTuple):
    """A part of a run, from one share of the model's time to another, as in ControlNet's percents."""

    start: float
    end: float


WHOLE_RUN = TimeRange(0.0, 1.0)


def sampler(
    options: Options,
    noisy: TimeRange = WHOLE_RUN,
    own_model: bool = True,
) -> comfy.samplers.KSAMPLER:
    """A SAMPLER for the host's custom sampling nodes. It reads its noise schedule from the model.

    Args:
        noisy: the part of a run in which a stochastic solver adds noise.
        own_model: take a calibration of the model, if there is one, in place of Recommended.
    """
    return comfy.samplers.KSAMPLER(with_host_model(options, noisy, own_model))


def with_host_model(
    options: Options,
    noisy: TimeRange = WHOLE_RUN,
    own_model: bool = True,
) -> Callable[..., torch.Tensor]:
    """A sampler function as the host calls it.

    It reads from the model what depends on it: the noise schedule, the settings that follow from it,
    for CFG++ the unconditional predictions, and calibrations that were made on it.
    """

    def sample(
        model: Any,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: NoiseSampler | None = None,
        **settings: Any,
    ) -> torch.Tensor:
        host_model = ComfyModel.of(model.inner_model.model_patcher)
        schedule = host_model.schedule
        unconditional = None
        if options.needs_unconditional:
            extra_args, unconditional = _unconditional(extra_args or {})
        chosen, listed = adapted(replace(options, **settings), noisy, host_model), sigmas
        found = own_models.calibration(chosen, model.inner_model, x, sigmas) if own_model else None
        if found is not None:
            chosen = Calibrated(calibration=found)
            sigmas = sigmas.new_tensor([float(sigmas[0]), *found.sigmas[1:]])
        else:
            hint(chosen, host_model, sigmas, own_models.cfg_of(model.inner_model))
            chosen, sigmas = host_model.sized(chosen, x, sigmas)
        if sigmas is not listed:
            extra_args = _with_sigmas(extra_args or {}, sigmas)
        return run(
            chosen,
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

    sample.options, sample.noisy = options, noisy  # type: ignore[attr-defined]  # see options_of
    sample.__signature__ = _signature(sample, options)  # type: ignore[attr-defined]
    return sample


def adapted(options: Options, noisy: TimeRange, model: ComfyModel) -> Options:
    """The settings as a model needs them."""
    if noisy != WHOLE_RUN:
        s_tmin, s_tmax = model.sigma_after(noisy.end), model.sigma_after(noisy.start)
        options = replace(options, s_tmin=s_tmin, s_tmax=s_tmax)
    return options.on(model.schedule)


def _signature(function: Callable[..., Any], options: Options) -> inspect.Signature:
    """The signature of a sampler function: other packs read from it what they may set in a run.

    Some packs set everything that the signature has, to their own values. So it leaves out what would
    turn the sampler into another one: noise if it adds none, and settings that are not at their
    default.
    """
    usual = {field.name: field.default for field in fields(options)}
    free = [
        name for name in FREE_SETTINGS if name in usual and getattr(options, name) == usual[name]
    ]
    if options.stochastic:
        free += NOISE_SETTINGS
    own = inspect.signature(function).parameters.values()
    called_with = [one for one in own if one.kind is one.POSITIONAL_OR_KEYWORD]
    return inspect.Signature(
        called_with
        + [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=getattr(options, name, None)
            )
            for name in free
        ]
    )


def options_of(sampler: Any) -> Options | None:
    """The settings of a SAMPLER of ours; None for other samplers."""
    function = getattr(sampler, "sampler_function", None)
    if hasattr(function, "__wrapped__"):  # wrapped by another pack, which may change the arguments
        return None
    options = getattr(function, "options", None)
    return options if isinstance(options, Options) else None


def _unconditional(
    extra_args: Mapping[str, Any],
) -> tuple[dict[str, Any], Callable[[], torch.Tensor]]:
    """Arguments that make the host's guider report its unconditional prediction, and a function that
    returns it.

    The guider then predicts without the prompt even at a CFG of 1, as for the host's own CFG++. If a
    cache (LazyCache) answers a call in the guider's place, the last prediction is returned, as there.
    """
    last: torch.Tensor | None = None

    def keep(args: Mapping[str, Any]) -> torch.Tensor:
        nonlocal last
        if args.get("uncond") is not None:
            last = args["uncond_denoised"]
        elif last is not None:  # guidance was switched off during the run
            last = args["denoised"]
        return args["denoised"]

    def look() -> torch.Tensor:
        if last is None:
            raise ValueError(
                "A CFG++ sampler needs the prediction for a negative prompt, and this guider makes "
                "none: use CFGGuider or KSampler, or a sampler without cfg_pp."
            )
        return last

    model_options = comfy.model_patcher.set_model_options_post_cfg_function(
        dict(extra_args.get("model_options", {})), keep, disable_cfg1_optimization=True
    )
    return {**extra_args, "model_options": model_options}, look


def _with_sigmas(extra_args: Mapping[str, Any], sigmas: torch.Tensor) -> dict[str, Any]:
    """Arguments that tell the model which sigmas it is called at, if they aren't the host's list.

    Context windows, some of the host's models and other packs look up in them which step a call is.
    """
    model_options = extra_args.get("model_options", {})
    transformer_options = {
        **model_options.get("transformer_options", {}),
        "sample_sigmas": sigmas,
    }
    model_options = {**model_options, "transformer_options": transformer_options}
    return {**extra_args, "model_options": model_options}


def register_menus() -> None:
    """Add our samplers and spacings to every KSampler's menus, each only once.

    The host's nodes and other packs hold the same list objects, so the lists are changed in place. If
    two copies of the pack are installed, the one loaded later counts.
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
                ComfyModel(model_sampling).asked_for(spacing, steps, steps_kept(steps))
            )
        )
        _append(comfy.samplers.KSampler.SCHEDULERS, name)
        _append(comfy.samplers.SCHEDULER_NAMES, name)


def steps_kept(total: int) -> int:
    """How many of these steps the node takes that asks for a list of so many.

    For a denoise below 1 KSampler, BasicScheduler, and other packs' nodes after them ask for
    int(steps / denoise) steps, and take the last. For some samplers KSampler asks for one more.
    """
    found = callers_variables("steps", "denoise")
    if found is None:
        return total
    steps, denoise = found
    try:
        more = total - int(steps / denoise)
    except (TypeError, ValueError, ArithmeticError):  # other variables of that name
        return total
    return steps + more if denoise < 1.0 and more in (0, 1) else total


def _check_alone(registered: Any) -> None:
    """Log a warning if our samplers are there already, from another folder."""
    if (code := getattr(registered, "__code__", None)) is None:
        return
    other, here = Path(code.co_filename).parents[2], Path(__file__).parents[2]
    if other.resolve() != here.resolve():
        places = " and in ".join(escaped(str(place)) for place in (other, here))
        LOG.warning(f"DPM-Solver is installed twice: in {places}. Remove one.")


def _append(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)


def recommended_pair(
    model: ComfyModel, steps: int, denoise: float = 1.0, own_model: bool = True
) -> tuple[comfy.samplers.KSAMPLER, torch.Tensor]:
    """The recommended SAMPLER with its SIGMAS; see `HostModel.sigmas` for the arguments.

    Args:
        own_model: see `sampler`.
    """
    sigmas = torch.FloatTensor(model.sigmas(RECOMMENDED, steps, denoise))
    return sampler(Recommended(), own_model=own_model), sigmas
