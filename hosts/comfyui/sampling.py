"""ComfyUI: its noise schedules, SAMPLER objects and menus. Only a host can import this."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.k_diffusion.sampling
import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import torch

from ...samplers import NoiseSchedule, RectifiedFlow, VarianceExploding
from ...samplers.catalog import CATALOG
from ...samplers.checks import at_least, one_of
from ...samplers.noise import NoiseSampler
from ...samplers.options import Options
from ...samplers.sample import sample as run
from ...samplers.schedules.sigma_lists import (
    SPACINGS,
    TIME_POWERS,
    dense,
    flow_first,
    in_time,
    log_snr,
)
from ...samplers.solvers.recommended import Recommended, recommended

MOST_STEPS = 1_000_000
RECOMMENDED = "recommended"
OFFERED_SPACINGS = (*SPACINGS, RECOMMENDED)
"""Of the sigmas node and the scheduler menus."""

SCHEDULER_NAMES = {
    "dpm_solver_log_snr": "logSNR",
    "dpm_solver_time_uniform": "time_uniform",
    "dpm_solver_time_quadratic": "time_quadratic",
    "dpm_solver_recommended": RECOMMENDED,
}
"""Our names in the host's scheduler menus -> the spacing; permanent, as workflows hold them."""


def noise_schedule(model_sampling: Any) -> NoiseSchedule:
    """The schedule of a model from its `model_sampling` object.

    Raises:
        ValueError: the model is of the host's kind IMG_TO_IMG_FLOW.
    """
    # An empty tuple is nobody's class: hiddenswitch's ComfyUI has no models of that kind.
    if isinstance(model_sampling, getattr(comfy.model_sampling, "IMG_TO_IMG_FLOW", ())):
        raise ValueError(
            "This model maps one image to another (IMG_TO_IMG_FLOW): its sampling is not a diffusion "
            "ODE, so DPM-Solver does not apply; take a sampler and a scheduler of the host's own."
        )
    sigma_min = float(model_sampling.sigma_min)
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        scale = float(getattr(model_sampling, "noise_scale", 1.0))  # newer hosts have it
        return RectifiedFlow(sigma_min if 0.0 < sigma_min < 1.0 else None, scale)
    return VarianceExploding(sigma_min if sigma_min > 0.0 else None)


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
        model_sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
        schedule = noise_schedule(model_sampling)
        unconditional = None
        if options.needs_unconditional:
            extra_args, unconditional = _unconditional(extra_args or {})
        _remark(options, model_sampling, sigmas)
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


def _remark(options: Options, model_sampling: Any, given: torch.Tensor) -> None:
    """Say in the log what is no error, but perhaps not what was meant."""
    own = given.tolist()
    if len(own) > 1 and own[0] < own[-1]:
        logging.info("DPM-Solver: the sigmas rise, so that this run goes from image to noise.")
    whole = len(own) > 1 and math.isclose(own[0], float(model_sampling.sigma_max), rel_tol=1e-3)
    if isinstance(options, Recommended) and whole:
        measured = sigmas(model_sampling, RECOMMENDED, len(own) - 1)
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
            lambda model_sampling, steps, spacing=spacing: sigmas(model_sampling, spacing, steps)
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


def sigmas(
    model_sampling: Any,
    spacing: str,
    steps: int,
    denoise: float = 1.0,
    final_zero: bool = True,
    rising: bool = False,
) -> torch.Tensor:
    """A list of steps + 1 sigmas for a model.

    Args:
        spacing: one of OFFERED_SPACINGS.
        denoise: below 1, as in the host: the last steps + 1 sigmas of a list of int(steps / denoise)
            steps; an empty list at 0.
        final_zero: end at 0, which the last step reaches; otherwise at the model's sigma_min.
        rising: from sigma_min up, for inversion; such a list has no zero, and on a flow model it is
            a falling one without its sigma 1.

    Raises:
        ValueError: a setting is out of its range, as linked inputs may be, or the list too long.
    """
    one_of("spacing", spacing, OFFERED_SPACINGS)
    at_least("steps", steps, 1)
    at_least("denoise", denoise, 0.0)
    if denoise > 1.0:
        raise ValueError(f"denoise must be a number from 0 to 1, not {denoise!r}.")
    if denoise == 0.0:
        return torch.FloatTensor([])
    if not 1 <= steps / denoise <= MOST_STEPS:
        raise ValueError(
            f"{steps} steps at denoise = {denoise:g} are the last of a list of "
            f"{steps / denoise:g}: take 1 to {MOST_STEPS} steps, or raise denoise."
        )
    total = int(steps / denoise)
    flow = isinstance(noise_schedule(model_sampling), RectifiedFlow)
    if rising:
        falling = _above_zero(model_sampling, spacing, total + flow, False)[-(steps + 1) :]
        return torch.FloatTensor(falling[::-1])
    falling = _above_zero(model_sampling, spacing, total - final_zero, final_zero)
    return torch.FloatTensor((falling + [0.0] * final_zero)[-(steps + 1) :])


def recommended_pair(
    model_sampling: Any, steps: int, denoise: float = 1.0
) -> tuple[comfy.samplers.KSAMPLER, torch.Tensor]:
    """The recommended SAMPLER with its SIGMAS; see `sigmas` for the arguments."""
    return sampler(Recommended()), sigmas(model_sampling, RECOMMENDED, steps, denoise)


def sigma_at(model_sampling: Any, denoise: float) -> float:
    """Where image to image starts that keeps this part of the model's time."""
    sigma_of_time, t_start, _ = _times(model_sampling)
    return sigma_of_time(t_start * denoise)


def _above_zero(model_sampling: Any, spacing: str, intervals: int, finishes: bool) -> list[float]:
    """From the model's sigma_max to its sigma_min in a number of intervals.

    Where a final zero follows (`finishes`), the recommended spacing may end above sigma_min.
    """
    schedule = noise_schedule(model_sampling)
    sigma_max, sigma_min = float(model_sampling.sigma_max), float(model_sampling.sigma_min)
    if isinstance(schedule, RectifiedFlow) and math.isclose(sigma_max, 1.0, rel_tol=1e-5):
        sigma_max = 1.0
    if spacing == RECOMMENDED:
        density = recommended(schedule, intervals + finishes).density
        if not finishes:
            density = density._replace(last=0.0)
        even = dense(density, sigma_max, sigma_min, intervals)
        own = on_table(model_sampling, even) if intervals > 1 else even
        return own if len(own) == len(even) else even
    sigma_of_time, t_start, t_end = _times(model_sampling)
    if spacing == "logSNR":
        first = flow_first(sigma_of_time, t_start, intervals)
        return log_snr(schedule, sigma_max, sigma_min, intervals, first)
    between = in_time(sigma_of_time, t_start, t_end, intervals, TIME_POWERS[spacing])[1:-1]
    return [sigma_max, *between, sigma_min][: intervals + 1]


def on_table(model_sampling: Any, sigmas: Sequence[float]) -> list[float]:
    """The nearest of the model's own sigmas to each, where it knows whole times alone.

    The host gives such a model the nearest whole time for any sigma: between the table's sigmas the
    prediction is that for another noise level, an error that few steps can do without. Both ends stay;
    sigmas that fall together become one.
    """
    first, *inner, last = sigmas
    times = model_sampling.timestep(torch.tensor(inner))
    if times.is_floating_point():
        return list(sigmas)
    own = {sigma for sigma in model_sampling.sigma(times).tolist() if last < sigma < first}
    return [first, *sorted(own, reverse=True), last]


def _times(model_sampling: Any) -> tuple[Callable[[float], float], float, float]:
    """The model's sigma as a function of the paper's time, and the times of sigma_max and sigma_min.

    Time is 1 at the noise and near 0 at the image where the host knows such a time.
    """

    def sigma(timestep: float) -> float:
        return float(model_sampling.sigma(torch.tensor(timestep)))

    def timestep(sigma: torch.Tensor) -> torch.Tensor:
        return model_sampling.timestep(sigma)

    sigma_max, sigma_min = model_sampling.sigma_max.cpu(), model_sampling.sigma_min.cpu()
    first, last = timestep(sigma_max), timestep(sigma_min)
    if not first.is_floating_point():  # indices into a table: index i is the time (i + 1) / count
        count = getattr(model_sampling, "num_timesteps", len(model_sampling.sigmas))
        return lambda t: sigma(t * count - 1.0), (int(first) + 1) / count, (int(last) + 1) / count
    # Flows and Stable Cascade: timestep() is what the network sees, after the shift, while sigma()
    # takes the time before it, in which their table is even. Cascade's is clamped at both ends.
    table = model_sampling.sigmas.cpu()
    multiplier = float(getattr(model_sampling, "multiplier", 1.0))
    t_start = 1.0 - (int((table >= sigma_max).sum()) - 1) / len(table)
    t_end = int((table <= sigma_min).sum()) / len(table)
    if math.isclose(sigma(t_start * multiplier), sigma_max, rel_tol=1e-3) and math.isclose(
        sigma(t_end * multiplier), sigma_min, rel_tol=1e-3
    ):
        return lambda t: sigma(t * multiplier), t_start, t_end
    # EDM counts time in logarithms, which may be negative: count from the last one there.
    origin = min(float(last), 0.0)
    return lambda t: sigma(t + origin), float(first) - origin, float(last) - origin
