"""What the DPM-Solver Calibrate node runs: a calibration on a guider's model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch

from ...lab.calibration import calibrate, cost, files, texts
from ...lab.calibration.sampler import Sampler, check_sampler
from ...lab.calibration.teacher import teacher_sigmas
from ...lab.calibration.version import version
from ...samplers.checks import at_least, escaped, quoted
from ...samplers.log import LOG
from ...samplers.options import Options
from ...samplers.sample import sample
from ...samplers.solvers.fitted import MOST_CALLS, Calibration, Fitted
from ...samplers.solvers.multistep import Multistep
from ...samplers.solvers.recommended import Recommended
from . import calibrations, own_models, sampling
from .calibrations import Pair
from .guiding import fitting_latent
from .hints import RECOMMENDED_SCHEDULER
from .model import ComfyModel
from .progress import Progress

RECOMMENDED = "DPM++ (recommended)"
KARRAS_2M = "DPM++ 2M Karras"
OWN_WEIGHTS = "calibrated"
"""In place of a sampler's name: a solver whose weights are fitted, too."""


class Asked(NamedTuple):
    """The inputs of the node; `more_calls` and `sampler` are described there."""

    calls: int
    seed: int
    seeds: int
    held_out: int
    budget: int
    batch: int
    name: str
    more_calls: str = ""
    sampler: str = OWN_WEIGHTS

    @property
    def all_calls(self) -> tuple[int, ...]:
        """All numbers of calls, each once, the main one first.

        Raises:
            ValueError: `more_calls` is no list of numbers.
        """
        words = self.more_calls.replace(",", " ").split()
        if not all(word.isascii() and word.isdigit() and len(word) < 4 for word in words):
            raise ValueError(
                f"more_calls is {quoted(self.more_calls)}: write numbers of model calls with commas "
                'between them, such as "5, 12".'
            )
        found = tuple(dict.fromkeys((self.calls, *map(int, words))))
        for calls in found:
            if not 1 <= calls <= MOST_CALLS:
                raise ValueError(f"calls must be from 1 to {MOST_CALLS}, not {calls}.")
        return found


def run(
    guiders: Sequence[Any], latent: Mapping[str, Any], asked: Asked, node_id: str | None = None
) -> Pair:
    """Run the DPM-Solver Calibrate node.

    Args:
        guiders: one for each prompt, all with the same model.

    Raises:
        ValueError: an input is out of its range or doesn't fit the others.
        RuntimeError: the model returned NaN or infinity.
    """
    for field in ("calls", "seeds", "held_out", "batch"):
        at_least(field, getattr(asked, field), 1)
    if len(set(map(_measured_by, guiders))) > 1:
        raise ValueError(
            "DPM-Solver Calibrate has guiders of different models, LoRAs or CFGs: connect guiders of "
            "one model with one CFG, each with a prompt of its own."
        )
    patcher = guiders[0].model_patcher
    model = ComfyModel.of(patcher)
    own = _sampler(guiders[0], asked.sampler, model)
    shape = fitting_latent(patcher, latent, latent["samples"][:1]).shape[1:]
    fitted = Fitted(
        model.kind,
        own_models.cfg_of(guiders[0]),
        sampler="" if own is None else asked.sampler,
        shape=tuple(shape),
        shift=model.shift,
        version=version(),
        fingerprint=own_models.fingerprint(patcher),
    )
    settings = _settings(asked, model, fitted, own)
    name = asked.name.strip() or default_name(settings.fitted, settings.calls)
    calibrations.check_name(name)  # before the model calls, not after
    rivals = (
        partial(_rivals, model, settings) if own is None else partial(_listed, patcher, own, asked)
    )
    progress = _announced(
        settings, asked, max(len(rivals(calls)) for calls in settings.calls), node_id
    )
    best: dict[int, Calibration] = {}
    settings = replace(
        settings,
        tick=partial(_tick, progress),
        keep=lambda found: best.update({found.calls: found}),
    )
    try:
        results = _calibrated(guiders, latent, asked, rivals, settings)
    except BaseException:  # mostly an interrupt: keep what was found so far
        _stopped(list(best.values()), name, progress)
        raise
    progress.end()
    return _outcome(results, model, patcher, asked, name)


def _outcome(
    results: Sequence[calibrate.Result], model: ComfyModel, patcher: Any, asked: Asked, name: str
) -> Pair:
    """Save what is better than what there was; the outputs are for the first number of calls."""
    better = [found for found, winner in results if winner == calibrate.CALIBRATED]
    saved = f"{calibrations.saved(better, name)}\n" if better else ""
    lines: list[str] = []
    for found, winner in results:
        if winner == calibrate.CALIBRATED:
            lines.append(texts.described(found))
            continue
        errors = texts.described(found).partition("\n")[2]
        lines.append(
            f"Calibration found nothing better here for {found.calls} calls: {winner} is closer to "
            f"the converged image. {'That is not in the file' if better else 'No file was written'}."
            f"\n{errors}"
        )
    found, winner = results[0]
    text = saved + "\n\n".join(lines)
    if winner == calibrate.CALIBRATED:
        return calibrations.pair(found, found.sigmas, text)
    if found.fitted.sampler:
        scheduler = winner.removeprefix(f"{asked.sampler} ")
        listed = _lists(patcher, asked.sampler, found.calls)[scheduler]
        return Pair(comfy.samplers.sampler_object(asked.sampler), listed, text)
    text += "\nThe outputs are the recommended sampler and its sigmas."
    return Pair(*sampling.recommended_pair(model, found.calls), text)


def _settings(
    asked: Asked, model: ComfyModel, fitted: Fitted, own: Sampler | None
) -> calibrate.Settings:
    sigmas = teacher_sigmas(model.schedule, model.sigma_max, model.sigma_min)
    return calibrate.Settings(
        model.schedule,
        model.on_whole_times(sigmas),
        asked.all_calls,
        budget=asked.budget,
        batch=asked.batch,
        sampler=own,
        whole=model.on_whole_times,
        fitted=fitted,
    )


def _measured_by(guider: Any) -> tuple[object, ...]:
    """What must be the same for all prompts: the network, its patches and its sigmas, and the CFG."""
    patcher = guider.model_patcher
    model = ComfyModel.of(patcher)
    network = id(patcher.model), getattr(patcher, "patches_uuid", None)
    kind = type(model.model_sampling).__bases__  # the host makes the class anew each time
    return *network, kind, model.own_sigma_max, model.sigma_min, own_models.cfg_of(guider)


class _Seen:
    """A model as the host's samplers see it: with the guider's attributes that they read."""

    def __init__(self, model: Any, guider: Any) -> None:
        self.model = model
        patcher = guider.model_patcher
        self.inner_model = SimpleNamespace(
            inner_model=patcher.model, model_patcher=patcher, cfg=getattr(guider, "cfg", None)
        )

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **extra: Any) -> Any:
        return self.model(x, sigma, **extra)


def _sampler(guider: Any, name: str, model: ComfyModel) -> Sampler | None:
    """The host's sampler of this name; None if weights are to be fitted.

    Raises:
        ValueError: there is none, or none that sigmas can be found for.
    """
    if name == OWN_WEIGHTS:
        return None
    if name not in comfy.samplers.KSampler.SAMPLERS:
        raise ValueError(f'sampler is "{escaped(name, 60)}", which this ComfyUI does not have.')
    function = comfy.samplers.sampler_object(name).sampler_function

    def sampler(model: Any, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = function(_Seen(model, guider), x, sigmas.clone(), {}, None, True)
        return result

    check_sampler(sampler, name, model.schedule)
    return sampler


def _lists(patcher: Any, name: str, calls: int) -> dict[str, torch.Tensor]:
    """Scheduler -> the sigmas that KSampler would take, if they are for so many calls."""
    made = {}
    for scheduler in comfy.samplers.KSampler.SCHEDULERS:
        try:
            sigmas = comfy.samplers.KSampler(
                patcher, steps=calls, device="cpu", sampler=name, scheduler=scheduler
            ).sigmas.float()
        except Exception as error:  # of any type: another pack's scheduler
            LOG.info(f"DPM-Solver Calibrate leaves out the scheduler {escaped(scheduler)}: {error}")
            continue
        if len(sigmas) == calls + 1 and bool((sigmas.diff() < 0.0).all()):
            made[scheduler] = sigmas
    return made


def _listed(patcher: Any, sampler: Sampler, asked: Asked, calls: int) -> dict[str, calibrate.Rival]:
    """The sampler on each of the host's schedulers."""

    def rival(sigmas: torch.Tensor) -> calibrate.Rival:
        return lambda model, x: sampler(model, x, sigmas)

    lists = _lists(patcher, asked.sampler, calls)
    return {f"{asked.sampler} {scheduler}": rival(sigmas) for scheduler, sigmas in lists.items()}


def _rivals(
    model: ComfyModel, settings: calibrate.Settings, calls: int
) -> dict[str, calibrate.Rival]:
    """The solvers without calibration to measure against, each as the menus run it."""

    def rival(options: Options, scheduler: str) -> calibrate.Rival:
        own = sampling.adapted(options, sampling.WHOLE_RUN, model)
        listed = comfy.samplers.calculate_sigmas(model.model_sampling, scheduler, calls)

        def run(denoiser: Any, x: torch.Tensor) -> torch.Tensor:
            sized, sigmas = model.sized(own, x, listed)
            return sample(sized, denoiser, x, sigmas, schedule=settings.schedule, disable=True)

        return run

    return {
        RECOMMENDED: rival(Recommended(), RECOMMENDED_SCHEDULER),
        KARRAS_2M: rival(Multistep(), "karras"),
    }


def _announced(
    settings: calibrate.Settings, asked: Asked, rivals: int, node_id: str | None
) -> Progress:
    """Log the number of model calls before the first one."""
    plan = settings.cost(asked.seeds, asked.held_out, rivals)
    progress = Progress(node_id, plan.total, open_end=False)
    announcement = (
        f"DPM-Solver Calibrate: at most {plan.total} single-image model calls: {plan.teacher} for "
        f"converged images and up to {plan.refined} more where they are not, up to "
        f"{plan.trials * plan.trial} for {plan.trials} fits, {plan.check} to measure."
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
        stopped = [replace(one, fitted=replace(one.fitted, stopped=True)) for one in best]
        saved = calibrations.saved(stopped, name, files.UNMEASURED)
        outcome = f"the best calibration so far was not measured. {saved}"
    LOG.warning(f"DPM-Solver Calibrate was stopped: {outcome}")
    progress.say(f"Stopped: {outcome}")


def default_name(fitted: Fitted, calls: Sequence[int]) -> str:
    """In a subfolder for the type of model."""
    guidance = "" if fitted.guidance is None else f"_cfg{fitted.guidance:g}"
    of_sampler = f"_{fitted.sampler}" if fitted.sampler else ""
    numbers = "-".join(map(str, calls))
    return f"{fitted.model}/{fitted.model}_{numbers}calls{of_sampler}{guidance}"


def _calibrated(
    guiders: Sequence[Any],
    latent: Mapping[str, Any],
    asked: Asked,
    rivals: Callable[[int], Mapping[str, calibrate.Rival]],
    settings: calibrate.Settings,
) -> tuple[calibrate.Result, ...]:
    """Have the host load the model, and calibrate on it.

    Raises:
        ValueError: the latent has several parts, or the noises are too many for the main memory.
    """
    patcher = guiders[0].model_patcher
    noise = _noises(patcher, latent, asked)
    # The host frees memory for as many images as it is given: those of one model call.
    shown = noise[: asked.batch].clone()
    if settings.sampler is not None:
        lists = {calls: _lists(patcher, asked.sampler, calls).values() for calls in settings.calls}
        settings = replace(
            settings, lists=lambda calls: [sigmas.tolist() for sigmas in lists[calls]]
        )
    results: tuple[calibrate.Result, ...] = ()
    models: list[Callable[..., torch.Tensor]] = []

    def on_models(x: torch.Tensor, sigmas: torch.Tensor) -> None:
        nonlocal results
        model_sampling = patcher.get_model_object("model_sampling")
        for part in noise.split(asked.batch):  # in place, to save memory
            on_device = part.to(x)
            none = torch.zeros_like(on_device)
            part.copy_(model_sampling.noise_scaling(sigmas[0], on_device, none, max_denoise=True))
        starts, held_out = noise.split([asked.seeds, asked.held_out])
        on = replace(settings, device=x.device)
        results = calibrate.calibrate(models, starts, held_out, rivals, on)

    def prepare(waiting: Sequence[Any]) -> None:
        """Have the host prepare one guider after the other; within the last one, calibrate."""

        def on_model(
            denoiser: Callable[..., torch.Tensor],
            x: torch.Tensor,
            sigmas: torch.Tensor,
            extra_args: Mapping[str, Any],
            **_: Any,
        ) -> torch.Tensor:
            models.append(partial(denoiser, **extra_args))
            if waiting[1:]:
                prepare(waiting[1:])
            else:
                on_models(x, sigmas)
            return x

        copy.copy(waiting[0]).sample(  # the same guider may be there twice
            shown,
            torch.zeros_like(shown),
            comfy.samplers.KSAMPLER(on_model),
            torch.FloatTensor([settings.sigmas[0], 0.0]),
            disable_pbar=True,
            seed=asked.seed,
        )

    prepare(guiders)
    return results


def _noises(patcher: Any, latent: Mapping[str, Any], asked: Asked) -> torch.Tensor:
    """One noise for each seed, [seeds + held_out, ...], on the CPU."""
    samples = latent["samples"]
    if samples.is_nested:
        raise ValueError(
            "DPM-Solver Calibrate takes only latents of images or of video, without audio: connect "
            "such an empty latent."
        )
    one = torch.zeros_like(fitting_latent(patcher, latent, samples[:1]))
    cost.check_memory(one.numel(), asked.seeds, asked.held_out)
    seeds = range(asked.seed, asked.seed + asked.seeds + asked.held_out)
    return torch.cat([comfy.sample.prepare_noise(one, seed) for seed in seeds])
