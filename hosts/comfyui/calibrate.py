"""What the DPM-Solver Calibrate node runs: a calibration on a guider's model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch

from ...lab.calibration import calibrate, cost, files
from ...lab.calibration.teacher import teacher_sigmas
from ...samplers.checks import at_least
from ...samplers.log import LOG
from ...samplers.options import Options
from ...samplers.sample import sample
from ...samplers.solvers.fitted import Calibration, Fitted
from ...samplers.solvers.multistep import Multistep
from ...samplers.solvers.recommended import Recommended, recommended_sigmas
from . import calibrations, sampling
from .calibrations import Pair
from .guiding import cfg_of, fitting_latent
from .model import ComfyModel
from .progress import Progress

RECOMMENDED = "DPM++ (recommended)"
KARRAS_2M = "DPM++ 2M Karras"


class Asked(NamedTuple):
    """The inputs of the node."""

    calls: int
    seed: int
    seeds: int
    held_out: int
    budget: int
    batch: int
    name: str


def run(guider: Any, latent: Mapping[str, Any], asked: Asked, node_id: str | None = None) -> Pair:
    """Run the DPM-Solver Calibrate node.

    Raises:
        ValueError: an input is out of its range or doesn't fit the others.
        RuntimeError: the model returned NaN or infinity.
    """
    for field in ("calls", "seeds", "held_out", "batch"):
        at_least(field, getattr(asked, field), 1)
    model = ComfyModel.of(guider.model_patcher)
    settings = _settings(asked, model, Fitted(model.kind, cfg_of(guider)))
    name = asked.name.strip() or default_name(settings.fitted, asked.calls)
    calibrations.check_name(name)  # before the model calls, not after
    rivals = _rivals(model, settings)
    progress = _announced(asked, len(settings.sigmas), len(rivals), node_id)
    best: list[Calibration] = []
    settings = replace(settings, tick=partial(_tick, progress), keep=best.append)
    try:
        found, winner = _calibrated(guider, latent, asked, rivals, settings)
    except BaseException:  # mostly an interrupt: keep what was found so far
        _stopped(best, name, progress)
        raise
    progress.end()
    report = calibrations.described(found)
    if winner != calibrate.CALIBRATED:
        errors = report.partition("\n")[2]
        return Pair(
            *sampling.recommended_pair(model, asked.calls),
            f"Calibration found nothing better here: {winner} is closer to the converged image. No "
            f"file was written; the outputs are the recommended sampler and its sigmas.\n{errors}",
        )
    return calibrations.pair(found, found.sigmas, f"{calibrations.saved(found, name)}\n{report}")


def _settings(asked: Asked, model: ComfyModel, fitted: Fitted) -> calibrate.Settings:
    sigmas = teacher_sigmas(model.schedule, model.sigma_max, model.sigma_min)
    return calibrate.Settings(
        model.schedule,
        model.on_whole_times(sigmas),
        asked.calls,
        budget=asked.budget,
        batch=asked.batch,
        fitted=fitted,
    )


def _rivals(model: ComfyModel, settings: calibrate.Settings) -> dict[str, calibrate.Rival]:
    """The solvers without calibration to measure against, each on its own sigmas."""
    schedule, calls = settings.schedule, settings.calls
    ends = settings.sigmas[0], settings.sigmas[-1]
    karras = comfy.samplers.calculate_sigmas(model.model_sampling, "karras", calls)

    def rival(options: Options, sigmas: Any) -> calibrate.Rival:
        return lambda model, x: sample(options, model, x, sigmas, schedule=schedule, disable=True)

    return {
        RECOMMENDED: rival(Recommended(), recommended_sigmas(schedule, *ends, calls)),
        KARRAS_2M: rival(Multistep(), karras),
    }


def _announced(asked: Asked, points: int, rivals: int, node_id: str | None) -> Progress:
    """Log the number of model calls before the first one."""
    plan = cost.cost(asked.budget, asked.calls, asked.seeds, asked.held_out, points, rivals)
    progress = Progress(node_id, plan.total, open_end=False)
    announcement = (
        f"DPM-Solver Calibrate: at most {plan.total} single-image model calls: {plan.teacher} for "
        f"converged images, {plan.trials * plan.trial} for {plan.trials} fits, "
        f"{plan.check} to measure."
    )
    LOG.info(announcement)
    progress.say(announcement)
    return progress


def _tick(progress: Progress, images: int, doing: str) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()
    if images:
        progress.call(doing, images)
        progress.finish(images, images)


def _stopped(best: list[Calibration], name: str, progress: Progress) -> None:
    """Save the best calibration so far, marked as not measured, and log it."""
    outcome = "nothing was fitted yet, so nothing is saved."
    if best:
        stopped = replace(best[-1], fitted=replace(best[-1].fitted, stopped=True))
        saved = calibrations.saved(stopped, name, files.UNMEASURED)
        outcome = f"the best calibration so far was not measured. {saved}"
    LOG.warning(f"DPM-Solver Calibrate was stopped: {outcome}")
    progress.say(f"Stopped: {outcome}")


def default_name(fitted: Fitted, calls: int) -> str:
    guidance = "" if fitted.guidance is None else f"_cfg{fitted.guidance:g}"
    return f"{fitted.model}_{calls}calls{guidance}"


def _calibrated(
    guider: Any,
    latent: Mapping[str, Any],
    asked: Asked,
    rivals: Mapping[str, calibrate.Rival],
    settings: calibrate.Settings,
) -> calibrate.Result:
    """Have the host load the model, and calibrate on it.

    Raises:
        ValueError: the latent has several parts, or the noises are too many for the main memory.
    """
    noise = _noises(guider, latent, asked)
    results: list[calibrate.Result] = []

    def on_model(
        denoiser: Callable[..., torch.Tensor],
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: Mapping[str, Any],
        **_: Any,
    ) -> torch.Tensor:
        model_sampling = guider.model_patcher.get_model_object("model_sampling")
        for part in noise.split(asked.batch):  # in place, to save memory
            on_device = part.to(x)
            none = torch.zeros_like(on_device)
            part.copy_(model_sampling.noise_scaling(sigmas[0], on_device, none, max_denoise=True))
        starts, held_out = noise.split([asked.seeds, asked.held_out])
        model, on = partial(denoiser, **extra_args), replace(settings, device=x.device)
        results.append(calibrate.calibrate(model, starts, held_out, rivals, on))
        return x

    # The host frees memory for as many images as it is given: those of one model call.
    shown = noise[: asked.batch].clone()
    guider.sample(
        shown,
        torch.zeros_like(shown),
        comfy.samplers.KSAMPLER(on_model),
        torch.FloatTensor([settings.sigmas[0], 0.0]),
        disable_pbar=True,
        seed=asked.seed,
    )
    return results[0]


def _noises(guider: Any, latent: Mapping[str, Any], asked: Asked) -> torch.Tensor:
    """One noise for each seed, [seeds + held_out, ...], on the CPU."""
    samples = latent["samples"]
    if samples.is_nested:
        raise ValueError(
            "DPM-Solver Calibrate takes only latents of images or of video, without audio: connect "
            "such an empty latent."
        )
    one = torch.zeros_like(fitting_latent(guider.model_patcher, latent, samples[:1]))
    cost.check_memory(one.numel(), asked.seeds, asked.held_out)
    seeds = range(asked.seed, asked.seed + asked.seeds + asked.held_out)
    return torch.cat([comfy.sample.prepare_noise(one, seed) for seed in seeds])
