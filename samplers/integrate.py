"""The loop that runs any plan. It knows nothing of solvers.

The loop does no arithmetic on sigmas and never waits for the device. The weights are Python floats in
the plan, the sigmas are on the device before the first call, and each step is a multiplication into a
fresh tensor and additions to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from .devices import as_float64, to_device
from .noise import Noise
from .plan import Combination, Plan, Step

Denoiser = Callable[..., torch.Tensor]
Callback = Callable[[dict[str, Any]], object]
Threshold = Callable[[torch.Tensor], torch.Tensor]
Unconditional = Callable[[], torch.Tensor]


class Caller:
    """Calls the model, counts the calls, and reports them to the callback and the progress bar.

    Args:
        model: `model(x, sigma, **extra_args)` -> denoised, sigma of shape [batch].
        total: steps the progress bar and the callback's i count to.
        threshold: applied to every denoised output, or None.
        unconditional: returns the unconditional denoised output of the model's last call, or None.
        disable: hides the progress bar, as tqdm has it.
    """

    def __init__(
        self,
        model: Denoiser,
        total: int,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        threshold: Threshold | None = None,
        unconditional: Unconditional | None = None,
        disable: bool | None = None,
    ) -> None:
        self.model = model
        self.total = total
        self.extra_args = {} if extra_args is None else extra_args
        self.callback = callback
        self.threshold = threshold
        self.unconditional = unconditional
        self.bar = None if disable else tqdm(total=total, disable=disable)
        self.nfe = 0

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Call the model on x, [batch, ...], at sigma, [batch]."""
        self.nfe += 1
        return self.read(self.model(x, sigma, **self.extra_args), x)

    def read(self, denoised: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """A model's prediction for x, in a dtype that has arithmetic, and thresholded if asked for."""
        if denoised.element_size() == 1:  # float8 has no arithmetic
            denoised = denoised.to(x.dtype)
        return denoised if self.threshold is None else self.threshold(denoised)

    def report(self, i: int, x: torch.Tensor, sigma: torch.Tensor, denoised: torch.Tensor) -> None:
        """Report call i, made on x at sigma, a scalar."""
        if self.bar is not None:
            self.bar.update(i + 1 - self.bar.n)
        if self.callback is not None:
            self.callback(
                {"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised}
            )


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """The state a run computes in: half precision would lose the small steps near the end."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def levels(x: torch.Tensor, sigmas: Sequence[float]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each sigma as a scalar and as [batch], on the device of x. There is a single copy to it."""
    scalars = to_device(as_float64(sigmas), x.device, x.dtype)
    batches = scalars.unsqueeze(1).expand(-1, x.shape[0]).contiguous()
    return list(zip(scalars.unbind(), batches.unbind(), strict=True))


def model_output(step: Step, x: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
    """What the step's algorithm interpolates: x0, the noise or the slope."""
    of_state, of_denoised = step.prediction
    if of_state == 0.0:
        return denoised
    return torch.mul(x, of_state).add_(denoised, alpha=of_denoised)


def advance(
    combination: Combination, base: torch.Tensor, outputs: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The state after a step's deterministic part, as a fresh tensor in the precision of base.

    Args:
        outputs: model outputs, the newest first.
    """
    state, terms, average = combination
    if average is not None:
        newer, older = outputs[average.newer], outputs[average.older]
        if newer.dtype == older.dtype == base.dtype:
            # DPM-Solver++ takes this branch: two passes over memory in place of three.
            return torch.lerp(newer, older, average.share).lerp_(base, state)
    if state:
        total = torch.mul(base, state)
    else:
        (age, weight), terms = terms[0], terms[1:]
        total = torch.mul(outputs[age].to(base.dtype), weight)
    for age, weight in terms:
        total.add_(outputs[age], alpha=weight)
    return total


class Stepper:
    """A plan's run, step by step: it is handed each model call's output, and makes the next state.

    Args:
        x: the state at the plan's first sigma, [batch, ...], at least float32.
        noise: draws what the plan's steps add; None adds nothing.
        s_noise: multiplies that noise.

    Attributes:
        x: the present state.
    """

    def __init__(
        self, plan: Plan, x: torch.Tensor, noise: Noise | None = None, s_noise: float = 1.0
    ) -> None:
        self.plan, self.noise, self.s_noise = plan, noise, s_noise
        self.x = x
        self._base, self._base_sigma = x, plan.steps[0].sigma if plan.steps else 0.0
        self._before = x  # the base from which the present one was made; a correction needs it
        self._correcting = any(plan.corrections)
        self._outputs: list[torch.Tensor] = []  # the newest first
        self._call = 0

    def make_room(self) -> None:
        """Let go of outputs that no later step needs: the model call needs their memory."""
        del self._outputs[self.plan.memory - 1 :]

    def take(self, denoised: torch.Tensor, used: torch.Tensor) -> None:
        """Make the next state from the model's output for the present one.

        Args:
            denoised: the model's denoised output.
            used: the output that the solver runs on: the unconditional one with CFG++.
        """
        step, call = self.plan.steps[self._call], self._call
        self._call += 1
        self._outputs.insert(0, model_output(step, self.x, used))
        if correction := self.plan.corrections[call]:
            self._base = advance(correction, self._before, self._outputs)
        if not step.outputs:
            return
        x = advance(self.plan.combinations[call], self._base, self._outputs)
        if used is not denoised:
            x.add_(denoised, alpha=step.guidance).sub_(used, alpha=step.guidance)
        if step.noise and self.noise is not None:
            noise = self.noise(self._base_sigma, step.sigma_next)
            x.add_(noise, alpha=step.noise * self.s_noise)
        self.x = x
        if not step.inner:
            self._before = self._base if self._correcting else x
            self._base, self._base_sigma = x, step.sigma_next

    def replace(self, x: torch.Tensor) -> None:
        """Go on from another state than the one that was made."""
        if self._base is self.x:
            self._base = x
        self.x = x


def run(
    plan: Plan,
    caller: Caller,
    x: torch.Tensor,
    noise: Noise | None = None,
    s_noise: float = 1.0,
    index: Callable[[int, Step], int] = lambda call, step: call,
) -> torch.Tensor:
    """Run a plan from the state x.

    Args:
        x, noise, s_noise: see `Stepper`.
        index: (number of the call, its step) -> the callback's i.
    """
    unconditional, at = caller.unconditional, levels(x, plan.sigmas)
    stepper = Stepper(plan, x, noise, s_noise)
    del x  # not held during the run
    for call, (step, (scalar, batch)) in enumerate(zip(plan.steps, at, strict=True)):
        stepper.make_room()
        denoised = caller.denoise(stepper.x, batch)
        caller.report(index(call, step), stepper.x, scalar, denoised)
        used = denoised
        if unconditional and step.guidance:
            used = caller.read(unconditional(), stepper.x)
        stepper.take(denoised, used)
        del denoised, used
    fresh = plan.steps and plan.steps[-1].outputs
    # Otherwise the caller, the model or the callback holds that state.
    return stepper.x if fresh else stepper.x.clone()
