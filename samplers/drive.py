"""The loop: it runs any plan, and knows nothing of solvers.

Inside it there is no arithmetic on sigmas and no wait for the device: weights are Python floats that
the plan holds, and each step is a multiplication into a fresh tensor and additions into that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from .plan import Plan, Step

Denoiser = Callable[..., torch.Tensor]
Callback = Callable[[dict[str, Any]], object]
Correction = Callable[[torch.Tensor], torch.Tensor]


class Caller:
    """Calls the model, corrects its output, counts, and reports to the callback and progress bar.

    Args:
        model: `model(x, sigma, **extra_args)` -> denoised, sigma of shape [batch].
        total: steps the progress bar and the callback's i count to.
        correct: applied to every denoised output, or None.
        disable: of the progress bar, as tqdm takes it.
    """

    def __init__(
        self,
        model: Denoiser,
        total: int,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        correct: Correction | None = None,
        disable: bool | None = None,
    ) -> None:
        self.model = model
        self.total = total
        self.extra_args = {} if extra_args is None else extra_args
        self.callback = callback
        self.correct = correct
        self.bar = tqdm(total=total, disable=disable)
        self.nfe = 0

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def denoise(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        self.nfe += 1
        denoised = self.model(x, x.new_full((x.shape[0],), sigma), **self.extra_args)
        return denoised if self.correct is None else self.correct(denoised)

    def report(self, i: int, x: torch.Tensor, sigma: float, denoised: torch.Tensor) -> None:
        self.bar.update(i + 1 - self.bar.n)
        if self.callback is not None:
            level = x.new_full((), sigma)
            self.callback(
                {"x": x, "i": i, "sigma": level, "sigma_hat": level, "denoised": denoised}
            )


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """The state a run computes in: half precision would lose the small steps near the end."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def model_output(step: Step, x: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
    """x0 or the noise, whichever the step's algorithm interpolates."""
    of_state, of_denoised = step.prediction
    return denoised if of_state == 0.0 else combine(((x, of_state), (denoised, of_denoised)))


def advance(step: Step, base: torch.Tensor, outputs: Iterable[torch.Tensor]) -> torch.Tensor:
    """The state after a step, as a fresh tensor.

    Args:
        outputs: model outputs, the newest first.
    """
    return combine(
        ((base, step.state), *zip(outputs, step.outputs, strict=False)), dtype=base.dtype
    )


def combine(
    terms: Sequence[tuple[torch.Tensor, float]], dtype: torch.dtype | None = None
) -> torch.Tensor:
    """sum weight * tensor in the precision of dtype (default: the first tensor's).

    A weight of zero leaves its tensor out, whatever stands in it.
    """
    dtype = dtype or terms[0][0].dtype
    (tensor, weight), *rest = [term for term in terms if term[1] != 0.0]
    total = torch.mul(tensor.to(dtype), weight)
    for tensor, weight in rest:
        total.add_(tensor, alpha=weight)
    return total


def run(
    plan: Plan,
    caller: Caller,
    x: torch.Tensor,
    index: Callable[[int, Step], int] = lambda call, step: call,
) -> torch.Tensor:
    """Run a plan from the state x.

    Args:
        x: [batch, ...], at least float32.
        index: the callback's i for the number of a call and its step.
    """
    base = x
    outputs: deque[torch.Tensor] = deque(maxlen=plan.memory)
    for call, step in enumerate(plan.steps):
        denoised = caller.denoise(x, step.sigma)
        caller.report(index(call, step), x, step.sigma, denoised)
        outputs.appendleft(model_output(step, x, denoised))
        if step.outputs:
            x = advance(step, base, outputs)
            if not step.inner:
                base = x
    return x
