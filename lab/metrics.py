"""Errors and model calls, defined once for the lab, the benchmarks, the demo and the tests."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..samplers.devices import as_float64

MOST_CALLS = 10_000
"""The most model calls of a run: on a broken model a sampler that chooses its steps may never end."""


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
    """The error of several images, or seeds; 0 if one of them is 0.

    Errors differ by factors, so that an arithmetic mean would show only the largest.
    """
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(np.asarray(errors)).mean()))


def distance(x: torch.Tensor, reference: torch.Tensor) -> float:
    """The error of a batch: the geometric mean over its images of `rms`."""
    return geometric_mean(rms(x, reference))


class TooManyCallsError(RuntimeError):
    """A run was stopped because it called the model more often than it may."""


@dataclass
class Meter:
    """Counts model calls. Call it with the state before each model call.

    Attributes:
        dry: the model is not to be called; its output is taken to be zeros.
        limit: the most calls; one more raises TooManyCallsError.
        on_call: called with the number of calls so far.
        calls: calls so far, each of a whole batch.
        images: how many images these calls had in all.
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


def most_steps(budget: int, calls_of: Callable[[int], int]) -> int:
    """The most steps that fit into a budget of model calls; 0 if not even one does.

    Args:
        calls_of: steps -> calls; more steps must not take fewer. It is called as rarely as possible.
    """
    steps = budget
    if calls_of(budget) > budget:
        steps = bisect.bisect_right(range(1, budget), budget, key=calls_of)
    # Some schedulers make fewer sigmas than they are asked for.
    while steps and calls_of(steps) < calls_of(steps + 1) <= budget:
        steps += 1
    return steps
