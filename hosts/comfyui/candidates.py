"""The candidates of Solver Compare: from lines of text, and from Solver Candidate nodes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch

from ...lab import compare
from ...lab.calibration import files
from ...lab.compare import Candidate
from ...samplers.checks import escaped, quoted
from ...samplers.log import LOG
from . import calibrations, own_models, sampling
from .guiding import Bench


@dataclass(frozen=True)
class ListedCandidate:
    """The output of a Solver Candidate node: a SAMPLER, with its sigmas or a scheduler's name."""

    label: str
    sampler: Any
    scheduler: str
    sigmas: torch.Tensor | None = None


def entry(label: str, sampler: Any, scheduler: str, sigmas: torch.Tensor | None) -> ListedCandidate:
    """A candidate from the node's inputs.

    Raises:
        ValueError: the host has no such scheduler, or the list has no step.
    """
    if sigmas is not None:
        at_least_one_step("sigmas", sigmas)
    else:
        known("scheduler", scheduler, comfy.samplers.KSampler.SCHEDULERS)
    where = "own sigmas" if sigmas is not None else scheduler
    label = label.strip() or f"{name_of(sampler)} {where}"
    return ListedCandidate(escaped(label, compare.LABEL_LENGTH), sampler, scheduler, sigmas)


def name_of(sampler: Any) -> str:
    """The sampler's name in the menu if it has one, otherwise its settings."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__)
    options = sampling.options_of(sampler)
    if options is not None and name == "sample":  # from a node, not from the menu
        parts = [type(options).__name__.lower(), getattr(options, "algorithm", "")]
        if (order := getattr(options, "order", None)) is not None:
            parts.append(f"order {order}")
        return " ".join(filter(None, parts))
    return str(name).removeprefix("sample_").removesuffix("_function")


CALIBRATED = "calibrated"

_Found = tuple[str, Any, str, str | None, torch.Tensor | None]
"""A label, and what `candidate_of` takes after it."""


def candidates(bench: Bench, text: str, entries: Sequence[ListedCandidate]) -> list[Candidate]:
    """The candidates of the text, one per line, then those of the nodes.

    A line that says only CALIBRATED stands for all saved calibrations that fit the model.

    Raises:
        ValueError: a line is not "sampler scheduler" with the host's names, or there is no candidate.
    """
    found: list[_Found] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        if words == [CALIBRATED]:
            found += _calibrated(bench)
            continue
        where = f"line {number} of candidates"
        if len(words) != 2:
            raise ValueError(
                f'{where} is "{escaped(line.strip(), 60)}": write a sampler and a scheduler with a '
                'space between them, such as "dpmpp_2m karras".'
            )
        name, scheduler = words
        known(f"sampler in {where}", name, comfy.samplers.KSampler.SAMPLERS)
        known(f"scheduler in {where}", scheduler, comfy.samplers.KSampler.SCHEDULERS)
        sampler = comfy.samplers.sampler_object(name)
        found.append((f"{name} {scheduler}", sampler, scheduler, name, None))
    found += [(one.label, one.sampler, one.scheduler, None, one.sigmas) for one in entries]
    if not found:
        raise ValueError(
            "Solver Compare has no candidates: write a sampler and a scheduler on each line, such as "
            '"dpmpp_2m karras", or connect a Solver Candidate.'
        )
    labels = compare.distinct([escaped(label, compare.LABEL_LENGTH) for label, *_ in found])
    return [
        candidate_of(bench, label, *rest) for label, (_, *rest) in zip(labels, found, strict=True)
    ]


def _calibrated(bench: Bench) -> list[_Found]:
    """The saved calibrations that fit the bench's model, each with its own sigmas.

    Of a file with several numbers of calls each, and of several CFGs the nearest to the bench's.
    """
    found: list[_Found] = []
    guidance = own_models.cfg_of(bench.guider) or 0.0
    for name in calibrations.names():
        numbers = calibrations.calls_of(name)
        for calls in numbers:
            try:
                sampler, sigmas, _ = calibrations.load(name, bench.patcher, 1.0, calls, guidance)
            except ValueError:  # for another model, or a sampler that this host doesn't have
                continue
            label = f"{CALIBRATED} {name.removesuffix(files.EXTENSION)}"
            label += f" {calls}" if len(numbers) > 1 else ""
            found.append((label, sampler, "", None, sigmas))
    if not found:
        LOG.info("Solver Compare: no saved calibration fits this model.")
    return found


def candidate_of(
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


def known(what: str, name: str, names: Sequence[str]) -> None:
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f'did you mean "{escaped(near[0])}"?' if near else "take a name from KSampler's menu."
    raise ValueError(
        f'The {what} is "{escaped(name, 60)}", which this ComfyUI does not have: {hint}'
    )


def at_least_one_step(name: str, sigmas: torch.Tensor) -> None:
    if not isinstance(sigmas, torch.Tensor):
        raise ValueError(
            f"{name} is {quoted(sigmas)}, no list of sigmas: connect a scheduler node."
        )
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(
            f"{name} holds {sigmas.numel()} sigmas, which is no step: connect a list of at least 2, "
            "from a scheduler node with a denoise above 0."
        )
