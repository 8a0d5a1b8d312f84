"""The lab in ComfyUI: runs any SAMPLER through a guider, counts its calls, shows how far it is."""

from __future__ import annotations

import copy
import difflib
import importlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import numpy as np
import torch
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrappersMP
from server import PromptServer

from ...lab import compare, grid, plots, table
from ...lab.compare import Candidate, Cell, Job, Meter, Reference, Sigmas
from ...lab.memory import Fingerprint, Memory
from ...samplers import VarianceExploding
from ...samplers.plan import Grid, read_sigmas
from . import sampling
from .model import ComfyModel

# In hiddenswitch's ComfyUI the interrupt has a module of its own.
_INTERRUPTS = comfy.model_management
if not hasattr(_INTERRUPTS, "InterruptProcessingException"):
    _INTERRUPTS = importlib.import_module("comfy.interruption")

PASSING = (_INTERRUPTS.InterruptProcessingException,)
"""In old hosts the interrupt is an ordinary Exception: it must not count as a sampler's failure."""

REFERENCE_SAMPLER = "dpm_solver++_3m_exact"
REFERENCE_SCHEDULER = "dpm_solver_log_snr"
TEXT_EVERY = 0.3  # seconds between two lines of progress
_references: Memory[Reference] = Memory(most=4)


@dataclass(frozen=True)
class Entry:
    """What a Solver Candidate node says: a SAMPLER, and its sigmas or a scheduler's name."""

    label: str
    sampler: Any
    scheduler: str
    sigmas: torch.Tensor | None = None


def entry(label: str, sampler: Any, scheduler: str, sigmas: torch.Tensor | None) -> Entry:
    """A candidate from the node's inputs.

    Raises:
        ValueError: the scheduler is not the host's, or the list has no step.
    """
    if sigmas is not None:
        _at_least_one_step("sigmas", sigmas)
    else:
        _known("scheduler", scheduler, comfy.samplers.KSampler.SCHEDULERS)
    where = "own sigmas" if sigmas is not None else scheduler
    return Entry(label.strip() or f"{_name_of(sampler)} {where}", sampler, scheduler, sigmas)


def _name_of(sampler: Any) -> str:
    """The menu's name where it has one, otherwise what tells it apart."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__)
    options = sampling.options_of(sampler)
    if options is not None and name == "sample":  # of a node, and not of the menu
        parts = [type(options).__name__.lower(), getattr(options, "algorithm", "")]
        if (order := getattr(options, "order", None)) is not None:
            parts.append(f"order {order}")
        return " ".join(filter(None, parts))
    return str(name).removeprefix("sample_").removesuffix("_function")


# --- what to run ---------------------------------------------------------------------------------


def guider_of(
    guider: Any, model: Any, positive: Any, negative: Any, cfg: float, node: str = "Solver Compare"
) -> Any:
    """The guider that was given, or a CFGGuider of the model and its prompts.

    Args:
        node: that asks, for its errors.

    Raises:
        ValueError: neither is given, or both.
    """
    given = [
        name
        for name, value in (("model", model), ("positive", positive), ("negative", negative))
        if value is not None
    ]
    if guider is not None:
        if given:
            raise ValueError(
                f"{node} has both a guider and {' and '.join(given)}: connect the guider "
                "alone, or model, positive and negative without it."
            )
        return guider
    if len(given) < 3:
        has = f" (only {' and '.join(given)} there)" if given else ""
        raise ValueError(
            f"{node} has nothing to sample with{has}: connect a guider, or all of model, "
            "positive and negative."
        )
    made = comfy.samplers.CFGGuider(model)
    made.set_conds(positive, negative)
    made.set_cfg(cfg)
    return made


class Bench:
    """One start for all: a guider, a latent, a seed.

    Args:
        latent: the host's LATENT.
    """

    def __init__(self, guider: Any, latent: dict[str, Any], seed: int) -> None:
        self.guider = guider
        self.seed = seed
        self.patcher = guider.model_patcher
        self.mask = latent.get("noise_mask")
        self._batch_index = latent.get("batch_index")
        self.start = fitting_latent(self.patcher, latent, latent["samples"])

    @property
    def model_sampling(self) -> Any:
        return self.patcher.get_model_object("model_sampling")

    def sample(self, sampler: Any, sigmas: Sigmas, meter: Meter) -> torch.Tensor:
        """Sample as the host's own nodes do, from the seed's noise, with the calls metered.

        Returns:
            [batch, ...]; latents of several parts come packed, [batch, 1, length].
        """
        # The global random state, too, is then the same for each run.
        noise = comfy.sample.prepare_noise(self.start, self.seed, self._batch_index)
        samples = _watched(self.guider, meter).sample(
            noise,
            self.start,
            sampler,
            torch.as_tensor(sigmas, dtype=torch.float32),
            denoise_mask=self.mask,
            disable_pbar=True,
            seed=self.seed,
        )
        if samples.is_nested:
            samples, _ = comfy.utils.pack_latents(samples.unbind())
        return samples

    def first_part(self, latent: torch.Tensor) -> torch.Tensor:
        """A latent of `sample` as a VAE takes it: of several parts the first."""
        if not self.start.is_nested:
            return latent
        shapes = [part.shape for part in self.start.unbind()]
        return comfy.utils.unpack_latents(latent, shapes)[0]

    def listed(self, scheduler: str, steps: int, sampler_name: str | None = None) -> torch.Tensor:
        """The list of sigmas that KSampler would take for this scheduler and sampler."""
        if sampler_name is None:
            return comfy.samplers.calculate_sigmas(self.model_sampling, scheduler, steps)
        return comfy.samplers.KSampler(
            self.patcher, steps=steps, device="cpu", sampler=sampler_name, scheduler=scheduler
        ).sigmas

    def fingerprint(self, *others: Any) -> Fingerprint:
        """All that a result on this bench depends on, besides `others`."""
        # The host gives each use of a conditioning an id of its own, which changes nothing.
        found = Fingerprint(self.seed, self._batch_index, leave_out=frozenset({"uuid"}))
        found.add_identity(type(self.guider))
        for name, value in sorted(vars(self.guider).items()):
            found.add(name)
            if value is not self.patcher:
                found.add(value)
        for name in ("object_patches", "model_options", "wrappers", "callbacks"):
            found.add(getattr(self.patcher, name, None))
        found.add(str(getattr(self.patcher, "patches_uuid", "")))
        found.add_identity(self.patcher)
        found.add_identity(self.patcher.model)
        found.add(self.mask)
        for part in self.start.unbind() if self.start.is_nested else [self.start]:
            found.add(part)
        found.add(others)
        return found


def _watched(guider: Any, meter: Meter) -> Any:
    """A copy of the guider whose predictions are counted, and in a dry run not made."""
    watched = copy.copy(guider)
    options = create_model_options_clone(guider.model_options)
    its_own = len(options.get("sampler_post_cfg_function", ()))

    def predict(executor: Any, x: torch.Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        comfy.model_management.throw_exception_if_processing_interrupted()
        meter()
        if not meter.dry:
            return executor(x, timestep, *args, **kwargs)
        given = args[0] if args else kwargs.get("model_options", {})
        denoised = torch.zeros_like(x)
        # CFG++ samplers put in a function that looks at the predictions: it must be called.
        for function in given.get("sampler_post_cfg_function", ())[its_own:]:
            seen = {"denoised": denoised, "cond_denoised": denoised, "uncond_denoised": denoised}
            context = {"model": watched.inner_model, "model_options": given, "cond_scale": 1.0}
            place = {"input": x, "sigma": timestep, "cond": [], "uncond": []}
            denoised = function({**seen, **context, **place})
        return denoised

    # First in line, so that it sees the sampler's calls whatever other packs make of them.
    wrappers = options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    others = wrappers.get(WrappersMP.PREDICT_NOISE, {})
    wrappers[WrappersMP.PREDICT_NOISE] = {"dpm_solver_lab": [predict], **others}
    watched.model_options = options
    return watched


def candidates(bench: Bench, text: str, entries: Sequence[Entry]) -> list[Candidate]:
    """The candidates of the text, one per line, and those of the nodes behind them.

    Raises:
        ValueError: a line is not "sampler scheduler" in the host's words, or there is none.
    """
    found: list[tuple[str, Any, str, str | None, torch.Tensor | None]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        where = f"line {number} of candidates"
        if len(words) != 2:
            raise ValueError(
                f'{where} is "{line.strip()[:60]}": write a sampler and a scheduler with a space '
                'between them, such as "dpmpp_2m karras".'
            )
        name, scheduler = words
        _known(f"sampler in {where}", name, comfy.samplers.KSampler.SAMPLERS)
        _known(f"scheduler in {where}", scheduler, comfy.samplers.KSampler.SCHEDULERS)
        sampler = comfy.samplers.sampler_object(name)
        found.append((f"{name} {scheduler}", sampler, scheduler, name, None))
    found += [(one.label, one.sampler, one.scheduler, None, one.sigmas) for one in entries]
    if not found:
        raise ValueError(
            "Solver Compare has no candidates: write a sampler and a scheduler per line, such as "
            '"dpmpp_2m karras", or connect a Solver Candidate.'
        )
    labels = compare.distinct([label for label, *_ in found])
    return [
        _candidate(bench, label, *rest) for label, (_, *rest) in zip(labels, found, strict=True)
    ]


def _candidate(
    bench: Bench,
    label: str,
    sampler: Any,
    scheduler: str,
    name: str | None = None,
    sigmas: torch.Tensor | None = None,
) -> Candidate:
    return Candidate(
        label,
        lambda sigmas, meter: bench.sample(sampler, sigmas, meter),
        lambda steps: bench.listed(scheduler, steps, name),
        sigmas,
    )


def _known(what: str, name: str, names: Sequence[str]) -> None:
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f'did you mean "{near[0]}"?' if near else "take a name from KSampler's menu."
    raise ValueError(f'The {what} is "{name[:60]}", which this ComfyUI does not have: {hint}')


def _at_least_one_step(name: str, sigmas: torch.Tensor) -> None:
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(
            f"{name} holds {sigmas.numel()} sigmas, which is no step: connect a list of at least 2, "
            "from a scheduler node with a denoise above 0."
        )


# --- running -------------------------------------------------------------------------------------


def fitting_latent(patcher: Any, latent: Mapping[str, Any], samples: torch.Tensor) -> torch.Tensor:
    """The samples, which are all of the latent or some, in the channels and size of the model.

    As the host's sampler nodes do it: an empty latent need not be of the model's kind.
    """
    ratios = [latent.get(f"downscale_ratio_{name}") for name in ("spacial", "temporal")]
    while ratios and ratios[-1] is None:  # older hosts know the first alone, or neither
        ratios.pop()
    return comfy.sample.fix_empty_latent_channels(patcher, samples, *ratios)


class Progress:
    """Tells how many model calls are done of how many, and the time left."""

    def __init__(self, node_id: str | None, total: int, open_end: bool) -> None:
        self._node_id = node_id
        self._total = total
        self._sign = "at least " if open_end else ""
        self._bar = comfy.utils.ProgressBar(max(total, 1))
        self._done = 0
        self._began = time.monotonic()
        self._told = self._began  # what it will take stays to be read for a moment

    def say(self, text: str) -> None:
        send = getattr(PromptServer.instance, "send_progress_text", None)
        if send is not None and self._node_id is not None:
            send(text, self._node_id)

    def call(self, name: str, calls: int) -> None:
        """At each model call, before it is made."""
        self._update(self._done + calls - 1)
        now = time.monotonic()
        if now - self._told < TEXT_EVERY:
            return
        self._told = now
        done = self._done + calls - 1
        left = (now - self._began) / max(done, 1) * max(self._total - done, 0)
        self.say(f"{done} of {self._sign}{self._total} model calls, {_clock(left)} left: {name}")

    def finish(self, calls: int, expected: int) -> None:
        """A run is over, with as many calls as were expected or not."""
        self._done += calls
        self._total += calls - expected
        self._update(self._done)

    def end(self) -> None:
        """No more calls will be made, were they fewer than expected or not."""
        self._total = self._done
        self._update(self._done)
        self.say(f"{self._done} model calls in {_clock(time.monotonic() - self._began)}")

    def _update(self, done: int) -> None:
        total = max(self._total, done, 1)
        self._bar.update_absolute(done, total)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


@dataclass(frozen=True)
class Comparison:
    """What came of it, the budgets being the columns."""

    cells: list[Cell]
    budgets: list[int]
    reference: Reference
    kept: bool


def compare_all(
    bench: Bench,
    chosen: Sequence[Candidate],
    budgets: list[int],
    reference: Candidate,
    reference_calls: int,
    key: Fingerprint,
    node_id: str | None = None,
) -> Comparison:
    """Run every candidate at every number of calls, after saying how many calls that will be.

    Args:
        key: what the reference depends on.

    Raises:
        RuntimeError: the reference failed.
    """
    jobs = compare.prepare(chosen, budgets, PASSING)
    known = _references.get(key)
    for_jobs = sum(job.calls for job in jobs)
    for_reference = 0 if known else _calls_of(reference, reference_calls)
    open_end = any(job.chooses for job in jobs)
    progress = Progress(node_id, for_jobs + for_reference, open_end)
    source = "the reference is kept from an earlier run" if known else "and for the reference"
    announcement = (
        f"Solver Compare: {'at least ' if open_end else ''}{for_jobs + for_reference} model calls "
        f"to make: {for_jobs} for {len(chosen)} candidates, {source}"
        + ("." if known else f" {for_reference}.")
    )
    logging.info(announcement)
    progress.say(announcement)
    if known is None:
        found = compare.find_reference(
            reference, reference_calls, PASSING, lambda n: progress.call("the reference", n)
        )
        progress.finish(found.calls, for_reference)
        _references.put(key, found)
    else:
        found = known
    cells = list(_run(jobs, found, progress))
    progress.end()
    return Comparison(cells, budgets, found, known is not None)


def _run(jobs: Sequence[Job], reference: Reference, progress: Progress) -> Iterator[Cell]:
    def told(job: Job, calls: int) -> None:
        progress.call(job.candidate.label, calls)

    cells = compare.run(jobs, reference, PASSING, told)
    for number, (job, cell) in enumerate(zip(jobs, cells, strict=True), 1):
        progress.finish(cell.calls, job.calls)
        outcome = cell.failure or f"error {table.short(cell.error)}, {cell.seconds:.2f} s"
        logging.info(
            f"Solver Compare {number}/{len(jobs)}: {cell.label}, {cell.calls} calls: {outcome}"
        )
        yield cell


def _calls_of(candidate: Candidate, budget: int) -> int:
    (job, *_) = compare.prepare([candidate], [budget], PASSING)
    return job.calls


def solver_compare(
    latent: dict[str, Any],
    seed: int,
    text: str,
    calls: str,
    reference_calls: int,
    cfg: float,
    guider: Any = None,
    model: Any = None,
    positive: Any = None,
    negative: Any = None,
    vae: Any = None,
    entries: Sequence[Entry] = (),
    reference_sampler: Any = None,
    reference_sigmas: torch.Tensor | None = None,
    node_id: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, str, str]:
    """The Solver Compare node: (plot, grid, table, CSV).

    Raises:
        ValueError: an input is not what it should be, in one sentence.
        ImportError: matplotlib is missing.
        RuntimeError: the reference failed.
    """
    plots.require()  # before the model calls, not after
    budgets = compare.parse_calls(calls)
    bench = Bench(guider_of(guider, model, positive, negative, cfg), latent, seed)
    chosen = candidates(bench, text, entries)
    if reference_sigmas is not None:
        _at_least_one_step("reference_sigmas", reference_sigmas)
    sampler = reference_sampler or comfy.samplers.sampler_object(REFERENCE_SAMPLER)
    name = REFERENCE_SAMPLER if reference_sampler is None else _name_of(reference_sampler)
    where = REFERENCE_SCHEDULER if reference_sigmas is None else "own sigmas"
    reference = _candidate(
        bench, f"{name} {where}", sampler, REFERENCE_SCHEDULER, None, reference_sigmas
    )
    given = None
    if reference_sampler is not None:
        given = [
            type(sampler).__qualname__,
            *(part for one in vars(sampler).items() for part in one),
        ]
    key = bench.fingerprint(given, reference_calls, reference_sigmas)
    result = compare_all(bench, chosen, budgets, reference, reference_calls, key, node_id)
    cells, reference_latent = result.cells, result.reference.latent
    pictures = Pictures(bench, vae)
    curves = plots.convergence(cells, budgets, result.reference)
    return (
        _image(curves),
        _image(
            grid.grid(
                cells,
                budgets,
                {
                    i: pictures(cell.latent)
                    for i, cell in enumerate(cells)
                    if cell.latent is not None and not cell.failure
                },
                result.reference,
                pictures(reference_latent),
                pictures.remark,
            )
        ),
        table.text(cells, budgets, result.reference, result.kept),
        table.as_csv(cells),
    )


def _image(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [height, width, 3] -> the host's image, [1, height, width, 3] from 0 to 1."""
    return torch.from_numpy(pixels.astype(np.float32) / 255.0)[None]


class Pictures:
    """Latents as pictures: decoded where there is a VAE, otherwise the host's quick previews.

    Attributes:
        remark: what the pictures are, where they are not the real ones.
    """

    def __init__(self, bench: Bench, vae: Any) -> None:
        self._bench = bench
        self._vae = vae
        self.remark = "" if vae is not None else "previews: connect a VAE for the real pictures"

    def __call__(self, latent: torch.Tensor) -> np.ndarray:
        """[batch, ...] -> [batch, height, width, 3], from 0 to 1; of a video the middle frames."""
        latent = self._bench.first_part(latent)[: grid.MOST_IMAGES]
        if self._vae is None:
            return self._preview(latent)
        images = self._vae.decode(latent)
        if images.ndim == 5:  # [batch, frames, height, width, 3]
            images = images[:, images.shape[1] // 2]
        return images[..., :3].float().cpu().numpy()

    def _preview(self, latent: torch.Tensor) -> np.ndarray:
        form = self._bench.patcher.get_model_object("latent_format")
        factors = getattr(form, "latent_rgb_factors", None)
        latent = form.process_in(latent.float())
        reshape = getattr(form, "latent_rgb_factors_reshape", None)
        if reshape is not None:
            latent = reshape(latent)
        if latent.ndim == 5:
            latent = latent[:, :, latent.shape[2] // 2]
        if factors is None or latent.ndim != 4 or latent.shape[1] != len(factors):
            self.remark = "no pictures: connect a VAE"
            return np.full((len(latent), 8, 8, 3), grid.EMPTY[0] / 255.0, np.float32)
        bias = getattr(form, "latent_rgb_factors_bias", None)
        colours = latent.movedim(1, -1) @ torch.tensor(factors)
        if bias is not None:
            colours = colours + torch.tensor(bias)
        return ((colours + 1.0) / 2.0).clamp(0.0, 1.0).numpy()


# --- plotting ------------------------------------------------------------------------------------


def plot_sigmas(
    sigmas: torch.Tensor, model: Any = None, sampler: Any = None
) -> tuple[torch.Tensor, str]:
    """The Plot Sigmas node: (picture, table).

    Raises:
        ValueError: the list has no step, or doesn't fit the model or the sampler.
        ImportError: matplotlib is missing.
    """
    plots.require()
    _at_least_one_step("sigmas", sigmas)
    schedule = VarianceExploding() if model is None else _schedule_of(model)
    levels = read_sigmas(sigmas, schedule)
    plan, remark = None, ""
    if sampler is not None:
        plan, remark = _plan(sampler, sigmas, schedule)
    lines = [f"{'step':>4s} {'sigma':>12s} {'half log-SNR':>13s}"]
    lines += [
        f"{i:4d} {sigma:12.6g} {schedule.lambda_(sigma):13.6g}" for i, sigma in enumerate(levels)
    ]
    parts = ["\n".join(lines), remark, str(plan) if plan is not None else ""]
    image = _image(plots.sigmas(levels, schedule, plan, remark))
    return image, "\n\n".join(filter(None, parts))


def _schedule_of(model: Any) -> Any:
    return ComfyModel.of(model).schedule


def _plan(sampler: Any, sigmas: torch.Tensor, schedule: Any) -> tuple[Any, str]:
    """The plan of a SAMPLER of ours, or why there is none to show."""
    options = sampling.options_of(sampler)
    if options is None:
        return None, f"{_name_of(sampler)} is no sampler of this pack: its weights are its own."
    plan = options.on(schedule).plan(Grid.of(sigmas, schedule))
    if plan is None:
        return (
            None,
            "The adaptive solver chooses its own steps while it runs: it has no weights yet.",
        )
    return plan, ""
