"""Calibration in ComfyUI: runs it on a guider's model, keeps its files, makes SAMPLERs of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import comfy.sample
import comfy.samplers
import folder_paths
import torch

from ..lab import calibrate, files
from ..samplers import VarianceExploding
from ..samplers.calibrated import Calibration, Fitted
from ..samplers.checks import at_least, between
from ..samplers.recommended import recommended_sigmas
from ..samplers.sample import sample_calibrated, sample_multistep, sample_recommended
from . import comfyui
from .comfyui_lab import Progress, guider_of

FOLDER = "dpm_solver"
"""Of the host's models folder, for calibrations."""

EXTENSION = ".safetensors"
RECOMMENDED = "DPM++ (recommended)"
KARRAS_2M = "DPM++ 2M Karras"
NONE_YET = "(none yet: run DPM-Solver Calibrate)"


def register_folder() -> None:
    """Make the folder for calibrations known to the host."""
    if FOLDER not in folder_paths.folder_names_and_paths:
        place = str(Path(folder_paths.models_dir) / FOLDER)
        folder_paths.folder_names_and_paths[FOLDER] = ([place], {EXTENSION})


def names() -> list[str]:
    """The calibrations there are, for a menu."""
    return folder_paths.get_filename_list(FOLDER) or [NONE_YET]


class Pair(NamedTuple):
    """What the sampling nodes need, and words about it."""

    sampler: comfy.samplers.KSAMPLER
    sigmas: torch.Tensor
    text: str


def load(name: str, model: Any, denoise: float = 1.0) -> Pair:
    """The SAMPLER and SIGMAS of a saved calibration.

    Args:
        name: of a file in the folder.
        model: the host's MODEL that it is to run on.
        denoise: below 1, for image to image, the list starts where that much noise is left.

    Raises:
        ValueError: there is no such file, it is damaged, or it doesn't fit the model.
    """
    between("denoise", denoise, 0.0, 1.0)
    if name not in folder_paths.get_filename_list(FOLDER):
        raise ValueError(
            f'There is no calibration "{name}" in {_folder()}: run DPM-Solver Calibrate, or copy '
            "the file there."
        )
    # The name is one of the host's list, so that it can't lead out of the folder.
    found = files.load(Path(folder_paths.get_full_path(FOLDER, name)))
    model_sampling = model.get_model_object("model_sampling")
    found.fits(comfyui.noise_schedule(model_sampling))
    kind, sigma_max = _kind(model), float(model_sampling.sigma_max)
    if found.fitted.model and found.fitted.model != kind:
        raise ValueError(
            f'The calibration "{name}" was made on a model of the kind {found.fitted.model}, and the '
            f"loaded one is of the kind {kind}: choose another, or calibrate anew."
        )
    if found.sigmas[0] > sigma_max * 1.01:
        raise ValueError(
            f'The calibration "{name}" starts at sigma {found.sigmas[0]:.4g}, beyond the loaded '
            f"model's {sigma_max:.4g}: choose another, or calibrate anew."
        )
    first = 0
    if denoise < 1.0:
        first = found.nearest(comfyui.sigma_at(model_sampling, denoise))
    return _pair(found, _described(found), first)


def _pair(found: Calibration, text: str, first: int = 0) -> Pair:
    sampler = comfyui.sampler(sample_calibrated, {"calibration": found})
    return Pair(sampler, torch.FloatTensor(found.sigmas[first:]), text)


def _kind(model: Any) -> str:
    return type(model.model).__name__


def _folder() -> Path:
    return Path(folder_paths.get_folder_paths(FOLDER)[0])


def _described(found: Calibration) -> str:
    fitted = found.fitted
    guidance = "" if fitted.guidance is None else f", CFG {fitted.guidance:g}"
    lines = [
        f"{found.calls} model calls, for {fitted.model or 'any model'}{guidance}; "
        f"fitted on {fitted.seeds} seeds with {fitted.model_calls} model calls."
    ]
    if fitted.errors:
        lines.append("Distance to the converged image, on seeds it was not fitted on:")
        lines += [f"  {error:.4f}  {name}" for name, error in fitted.errors.items()]
    return "\n".join(lines)


class Settings(NamedTuple):
    """What a calibration is asked for."""

    calls: int
    seed: int
    seeds: int
    held_out: int
    budget: int
    batch: int
    name: str


def run(
    latent: Mapping[str, Any],
    settings: Settings,
    cfg: float,
    guider: Any = None,
    model: Any = None,
    positive: Any = None,
    negative: Any = None,
    node_id: str | None = None,
) -> Pair:
    """The DPM-Solver Calibrate node.

    Raises:
        ValueError: an input is not what it should be, in one sentence.
        RuntimeError: the model returned NaN or infinity.
    """
    for name in ("calls", "seeds", "held_out", "batch"):
        at_least(name, getattr(settings, name), 1)
    guider = guider_of(guider, model, positive, negative, cfg, "DPM-Solver Calibrate")
    patcher = guider.model_patcher
    model_sampling = patcher.get_model_object("model_sampling")
    schedule = comfyui.noise_schedule(model_sampling)
    sigma_max, sigma_min = float(model_sampling.sigma_max), float(model_sampling.sigma_min)
    if not isinstance(schedule, VarianceExploding) and abs(sigma_max - 1.0) < 1e-5:
        sigma_max = 1.0
    fitted = Fitted(_kind(patcher), getattr(guider, "cfg", None))
    path = _free_path(settings.name or _default_name(fitted, settings.calls))
    sigmas = calibrate.candidates(schedule, sigma_max, sigma_min)
    rivals = {
        RECOMMENDED: _rival(
            sample_recommended,
            recommended_sigmas(schedule, sigma_max, sigma_min, settings.calls),
            schedule,
        ),
        KARRAS_2M: _rival(
            sample_multistep,
            comfy.samplers.calculate_sigmas(model_sampling, "karras", settings.calls),
            schedule,
        ),
    }
    plan = calibrate.cost(
        settings.budget, settings.calls, settings.seeds, settings.held_out, len(sigmas), len(rivals)
    )
    progress = Progress(node_id, plan.total, open_end=False)
    announcement = (
        f"DPM-Solver Calibrate: at most {plan.total} single-image model calls: {plan.teacher} to "
        f"solve finely, {plan.trials * plan.trial} for {plan.trials} fits, {plan.check} to measure."
    )
    logging.info(announcement)
    progress.say(announcement)

    def tick(images: int, doing: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        progress.call(doing, images)
        progress.finish(images, images)

    best: list[Calibration] = []

    def on_model(
        denoiser: Any, x: torch.Tensor, _: Any, extra_args: Any, **__: Any
    ) -> torch.Tensor:
        result.append(
            calibrate.calibrate(
                partial(denoiser, **extra_args),
                x[: settings.seeds],
                x[settings.seeds :],
                schedule,
                sigmas,
                settings.calls,
                rivals,
                budget=settings.budget,
                batch=settings.batch,
                fitted=fitted,
                tick=tick,
                keep=best.append,
            )
        )
        return x

    result: list[calibrate.Result] = []
    try:
        _sample(guider, latent, settings, sigma_max, on_model)
    except BaseException:  # an interrupt, most likely: what was found so far is kept
        if best:
            files.save(best[-1], path)
            logging.warning(
                f"DPM-Solver Calibrate was stopped; the best so far, not yet measured, is {path}."
            )
        raise
    found, winner = result[0]
    if winner != calibrate.CALIBRATED:
        errors = _described(found).partition("\n")[2]
        return Pair(
            *comfyui.recommended_pair(model_sampling, settings.calls),
            f"Calibration brought nothing here: {winner} is closer, and the recommended solver "
            f"is what comes out; no file was written.\n{errors}",
        )
    files.save(found, path)
    return _pair(found, f"Saved as {path.name} in {path.parent}.\n{_described(found)}")


def _rival(function: Any, sigmas: Any, schedule: Any) -> calibrate.Rival:
    return lambda model, x: function(model, x, sigmas, schedule=schedule, disable=True)


def _default_name(fitted: Fitted, calls: int) -> str:
    guidance = "" if fitted.guidance is None else f"_cfg{fitted.guidance:g}"
    return f"{fitted.model}_{calls}calls{guidance}"


def _free_path(name: str) -> Path:
    """A file of this name, or of this name and a number, that is not there yet.

    Raises:
        ValueError: the name would lead elsewhere.
    """
    name = name.strip().removesuffix(EXTENSION)
    if not re.fullmatch(r"[\w][\w .\-+]{0,99}", name) or name.endswith("."):
        raise ValueError(
            f'name is "{name[:60]}": use up to 100 letters, digits, spaces, and . _ - + alone.'
        )
    path = _folder() / f"{name}{EXTENSION}"
    number = 2
    while path.exists():
        path = _folder() / f"{name}_{number}{EXTENSION}"
        number += 1
    return path


def _sample(
    guider: Any, latent: Mapping[str, Any], settings: Settings, sigma_max: float, function: Any
) -> None:
    """Have the host load the model and call `function` with it, and with one noise per seed."""
    samples = latent["samples"]
    if samples.is_nested:
        raise ValueError(
            "DPM-Solver Calibrate takes latents of one part: connect an empty latent of images or "
            "of video alone."
        )
    ratios = [latent.get(f"downscale_ratio_{name}") for name in ("spacial", "temporal")]
    ratios = ratios if ratios[1] is not None else ratios[:1]  # older hosts know the first alone
    one = comfy.sample.fix_empty_latent_channels(guider.model_patcher, samples[:1], *ratios)
    one = torch.zeros_like(one)
    count = settings.seeds + settings.held_out
    noise = [comfy.sample.prepare_noise(one, settings.seed + k, None) for k in range(count)]
    guider.sample(
        torch.cat(noise),
        one.repeat(count, *[1] * (one.ndim - 1)),
        comfy.samplers.KSAMPLER(function),
        torch.FloatTensor([sigma_max, 0.0]),
        disable_pbar=True,
        seed=settings.seed,
    )
