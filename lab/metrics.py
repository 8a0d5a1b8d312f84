"""What is measured, once for lab, benchmarks, demo and tests: errors and model calls."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..samplers.devices import as_float64

MOST_CALLS = 10_000
"""No run goes on beyond this: a sampler that chooses its own steps may never end on a broken model."""


def rms(x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Each image's error: the root mean square of its difference from the reference.

    Args:
        x, reference: [batch, ...] of any rank, on any device.

    Returns:
        [batch], float64, on the CPU.

    Raises:
        ValueError: the shapes differ.
    """
    if x.shape != reference.shape:
        raise ValueError(
            f"its latent has the shape {list(x.shape)}, the reference {list(reference.shape)}."
        )
    return (as_float64(x) - as_float64(reference)).flatten(1).square().mean(1).sqrt()


def geometric_mean(errors: torch.Tensor | np.ndarray | Sequence[float]) -> float:
    """The error of several images, or seeds: errors differ by factors, and an arithmetic mean would be
    that of the worst one. It is 0 if one of them is."""
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(np.asarray(errors)).mean()))


def distance(x: torch.Tensor, reference: torch.Tensor) -> float:
    """The error of a batch: the geometric mean over its images of `rms`."""
    return geometric_mean(rms(x, reference))


class TooManyCallsError(RuntimeError):
    """A run was stopped because it called the model more often than it may."""


@dataclass
class Meter:
    """Counts model calls: whoever calls the model calls this first.

    Attributes:
        dry: the model is not to be called; zeros stand in for what it would give.
        limit: of calls; one more raises TooManyCallsError.
        on_call: told the number of calls so far.
        calls: of whole batches, so far.
        images: in all of these calls.
    """

    dry: bool = False
    limit: float = MOST_CALLS
    on_call: Callable[[int], object] | None = None
    calls: int = 0
    images: int = 0

    def __call__(self, images: int = 1) -> None:
        if self.calls >= self.limit:
            raise TooManyCallsError(f"stopped after {self.limit} model calls without an end.")
        self.calls += 1
        self.images += images
        if self.on_call is not None:
            self.on_call(self.calls)


def metered(model: Callable[..., torch.Tensor], meter: Meter) -> Callable[..., torch.Tensor]:
    """A denoiser `model(x, sigma, **extra_args)` with its calls counted."""

    def counted(x: torch.Tensor, sigma: torch.Tensor, **extra_args: Any) -> torch.Tensor:
        meter(len(x))
        return torch.zeros_like(x) if meter.dry else model(x, sigma, **extra_args)

    return counted


def most_steps(budget: int, calls_of: Callable[[int], int]) -> int:
    """The most steps that fit into a budget of model calls; 0 if not even one does.

    Args:
        calls_of: the calls that a number of steps takes; more steps never take fewer. It is asked as
            rarely as can be.
    """
    steps = budget
    if calls_of(budget) > budget:
        steps = bisect.bisect_right(range(1, budget), budget, key=calls_of)
    # Some schedulers make fewer sigmas than they are asked for.
    while steps and calls_of(steps) < calls_of(steps + 1) <= budget:
        steps += 1
    return steps
