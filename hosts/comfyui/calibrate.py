"""Calibration in ComfyUI: runs it on a guider's model, keeps its files, makes SAMPLERs of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import comfy.sample
import comfy.samplers
import folder_paths
import torch

from ...lab.calibration import calibrate, files
from ...samplers.checks import at_least, between
from ...samplers.options import Options
from ...samplers.sample import sample
from ...samplers.solvers.fitted import Calibrated, Calibration, Fitted
from ...samplers.solvers.multistep import Multistep
from ...samplers.solvers.recommended import Recommended, recommended_sigmas
from . import sampling
from .lab import Progress, fitting_latent, guider_of
from .model import ComfyModel

FOLDER = "dpm_solver"
"""Of the host's models folder, for calibrations."""

RECOMMENDED = "DPM++ (recommended)"
KARRAS_2M = "DPM++ 2M Karras"
NONE_YET = "(none yet: run DPM-Solver Calibrate)"


def register_folder() -> None:
    """Make the folder for calibrations known to the host."""
    if FOLDER not in folder_paths.folder_names_and_paths:
        place = str(Path(folder_paths.models_dir) / FOLDER)
        folder_paths.folder_names_and_paths[FOLDER] = ([place], {files.EXTENSION})


def names() -> list[str]:
    """The calibrations there are, for a menu."""
    return [files.portable(name) for name in folder_paths.get_filename_list(FOLDER)] or [NONE_YET]


class Pair(NamedTuple):
    """What the sampling nodes need, and words about it."""

    sampler: comfy.samplers.KSAMPLER
    sigmas: torch.Tensor
    text: str


def load(name: str, model: Any, denoise: float = 1.0) -> Pair:
    """The SAMPLER and SIGMAS of a saved calibration.

    Args:
        name: of a file in the folder, with or without its ending.
        model: the host's MODEL that it is to run on.
        denoise: below 1, for image to image, the list starts where that much noise is left.

    Raises:
        ValueError: there is no such file, it is damaged, or it doesn't fit the model.
    """
    between("denoise", denoise, 0.0, 1.0)
    path = _file(name)
    if path is None:
        which = "There is no calibration" + (f' "{name}"' if name != NONE_YET else " yet")
        raise ValueError(
            f"{which} in {_folder()}: run DPM-Solver Calibrate, or copy a file there; then press R "
            "and choose it."
        )
    found = files.load(path)
    host_model = ComfyModel.of(model)
    host_model.check(found, f"The calibration {name!a}")
    text = _described(found)
    if denoise == 1.0:
        return _pair(found, found.sigmas, text)
    if denoise == 0.0:
        return _pair(found, (), text)
    first = found.nearest(host_model.sigma_at(denoise))
    return _pair(found, found.sigmas[first:], text)


def fingerprint(name: str) -> str:
    """Another one where another file has come under this name."""
    path = _file(name)
    if path is None:
        return ""
    state = path.stat()
    return f"{state.st_mtime_ns} {state.st_size}"


def _file(name: str) -> Path | None:
    """The calibration of this name, with or without its ending, if there is one.

    It is one of the host's list, so that a name can't lead out of the folder. The host lists those in
    subfolders as its system writes them, and a workflow may come from another system.
    """
    wanted = files.portable(name)
    for listed in folder_paths.get_filename_list(FOLDER):
        if files.portable(listed) in (wanted, wanted + files.EXTENSION):
            return Path(folder_paths.get_full_path(FOLDER, listed))
    return None


def _pair(found: Calibration, sigmas: Sequence[float], text: str) -> Pair:
    sampler = sampling.sampler(Calibrated(calibration=found))
    return Pair(sampler, torch.FloatTensor(sigmas), text)


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
    for field in ("calls", "seeds", "held_out", "batch"):
        at_least(field, getattr(settings, field), 1)
    guider = guider_of(guider, model, positive, negative, cfg, "DPM-Solver Calibrate")
    patcher = guider.model_patcher
    model = ComfyModel.of(patcher)
    schedule, sigma_max, sigma_min = model.schedule, model.sigma_max, model.sigma_min
    fitted = Fitted(model.kind, _guidance(guider))
    name = settings.name.strip() or _default_name(fitted, settings.calls)
    files.free_path(_folder(), name)  # what won't do is told of before the model calls, not after
    sigmas = model.on_whole_times(calibrate.candidates(schedule, sigma_max, sigma_min))
    rivals = {
        RECOMMENDED: _rival(
            Recommended(),
            recommended_sigmas(schedule, sigma_max, sigma_min, settings.calls),
            schedule,
        ),
        KARRAS_2M: _rival(
            Multistep(),
            comfy.samplers.calculate_sigmas(model.model_sampling, "karras", settings.calls),
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
        if not images:
            return
        progress.call(doing, images)
        progress.finish(images, images)

    best: list[Calibration] = []

    def on_model(denoiser: Any, starts: torch.Tensor, extra_args: Any) -> None:
        result.append(
            calibrate.calibrate(
                partial(denoiser, **extra_args),
                starts[: settings.seeds],
                starts[settings.seeds :],
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

    result: list[calibrate.Result] = []
    try:
        _sample(guider, latent, settings, sigma_max, on_model)
    except BaseException:  # an interrupt, most likely: what was found so far is kept
        if best:
            outcome = f"the best so far is not yet measured. {_saved(best[-1], name)}"
        else:
            outcome = "nothing was fitted yet, and nothing is saved."
        logging.warning(f"DPM-Solver Calibrate was stopped: {outcome}")
        progress.say(f"Stopped: {outcome}")
        raise
    progress.end()
    found, winner = result[0]
    if winner != calibrate.CALIBRATED:
        errors = _described(found).partition("\n")[2]
        return Pair(
            *sampling.recommended_pair(model, settings.calls),
            f"Calibration brought nothing here: {winner} is closer, and the recommended solver "
            f"is what comes out; no file was written.\n{errors}",
        )
    return _pair(found, found.sigmas, f"{_saved(found, name)}\n{_described(found)}")


def _rival(options: Options, sigmas: Any, schedule: Any) -> calibrate.Rival:
    return lambda model, x: sample(options, model, x, sigmas, schedule=schedule, disable=True)


def _guidance(guider: Any) -> float | None:
    """The scale of a guider, where it is one number."""
    cfg = getattr(guider, "cfg", None)
    one = getattr(type(guider), "set_cfg", None) is comfy.samplers.CFGGuider.set_cfg
    return float(cfg) if one and isinstance(cfg, (int, float)) else None


def _default_name(fitted: Fitted, calls: int) -> str:
    guidance = "" if fitted.guidance is None else f"_cfg{fitted.guidance:g}"
    return f"{fitted.model}_{calls}calls{guidance}"


def _saved(found: Calibration, name: str) -> str:
    """Save under a free name, and say where; a full disk must not lose what was found."""
    try:
        path = files.free_path(_folder(), name)
        files.save(found, path)
    except OSError as error:
        logging.warning(f"DPM-Solver Calibrate could not save its result: {error}")
        return f"Not saved: {error}."
    return f"Saved as {path.name} in {path.parent}."


def _sample(
    guider: Any, latent: Mapping[str, Any], settings: Settings, sigma_max: float, function: Any
) -> None:
    """Have the host load the model, and call `function(denoiser, starts, extra_args)` with it.

    The starts are one noise per seed, as the host scales it. The host is shown no more images than
    one model call has, as it makes room for as many.
    """
    samples = latent["samples"]
    if samples.is_nested:
        raise ValueError(
            "DPM-Solver Calibrate takes latents of one part: connect an empty latent of images or "
            "of video alone."
        )
    one = torch.zeros_like(fitting_latent(guider.model_patcher, latent, samples[:1]))
    count = settings.seeds + settings.held_out
    noise = torch.cat([comfy.sample.prepare_noise(one, settings.seed + k) for k in range(count)])

    def on_model(
        denoiser: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any, **_: Any
    ) -> torch.Tensor:
        scaled = guider.model_patcher.get_model_object("model_sampling").noise_scaling(
            sigmas[0], noise.to(x), torch.zeros_like(noise).to(x), max_denoise=True
        )
        function(denoiser, scaled, extra_args)
        return x

    shown = noise[: settings.batch]
    guider.sample(
        shown,
        torch.zeros_like(shown),
        comfy.samplers.KSAMPLER(on_model),
        torch.FloatTensor([sigma_max, 0.0]),
        disable_pbar=True,
        seed=settings.seed,
    )
