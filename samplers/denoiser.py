"""Makes a raw network the denoiser that the samplers call.

model = NetworkDenoiser(network, DiscreteSchedule.scaled_linear(), condition=c, unconditional=u,
                        guidance=7.5)
sigmas = model.sigmas(20)
images = sample_multistep(model, model.noise((1, 4, 64, 64), seed=0), sigmas,
                          schedule=model.schedule)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch

from .checks import one_of
from .devices import CPU_FLOAT64
from .integrate import at_least_float32
from .schedules.networks import TrainingSchedule
from .schedules.process import NoiseSchedule
from .schedules.sigma_lists import SPACINGS, TIME_POWERS, flow_first, in_time, log_snr
from .solvers.recommended_lists import recommended_sigmas
from .solvers.rows import LARGEST

Coefficients = tuple[torch.Tensor, torch.Tensor]

PREDICTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], Coefficients]] = {
    # noise
    "noise": lambda alpha, std: (1.0 / alpha, -std / alpha),
    # x0
    "x0": lambda alpha, std: (torch.zeros_like(alpha), torch.ones_like(std)),
    # alpha noise - std x0 (Salimans and Ho, arXiv 2202.00512, appendix D)
    "v": lambda alpha, std: (alpha / (alpha**2 + std**2), -std / (alpha**2 + std**2)),
    # the gradient of log p(z), -noise / std
    "score": lambda alpha, std: (1.0 / alpha, std**2 / alpha),
    # noise - x0, the velocity of a flow
    "flow": lambda alpha, std: (1.0 / (alpha + std), -std / (alpha + std)),
}
"""What a network predicts from z = alpha x0 + std noise -> (alpha, std) -> (a, b) with
x0 = a z + b output."""

Condition = Any
"""A tensor [batch or 1, ...], or dicts, lists and tuples of them."""


@dataclass(eq=False)
class NetworkDenoiser:
    """`model(x, sigma, **extra_args)` -> denoised x0, for a network as it was trained.

    The network is called once per model call, as `network(z, t, **extra_args)` or, with a condition,
    `network(z, t, condition, **extra_args)`. z is the network's state (see
    `schedules.networks`), and t, of shape [batch], its time: from 0 to N - 1 for a `DiscreteSchedule`,
    fractions included; in (0, 1] for a continuous schedule; sigma for a flow. It must return a tensor
    shaped like z, so wrap a network that returns more: `lambda z, t: unet(z, t).sample` (diffusers),
    `lambda z, t: network(z, t)[:, :3]` (a learned variance).

    Args:
        training: `DiscreteSchedule`, `ContinuousLinear`, `ContinuousCosine` or `FlowSchedule`.
        prediction: "noise", "x0", "v", "score" or "flow" (noise - x0).
        condition: the input of the network or, with `classifier`, of the classifier.
        unconditional: the condition for no condition (an empty prompt). With it guidance is
            classifier-free (Ho and
            Salimans, arXiv 2207.12598): x0_u + guidance (x0_c - x0_u), both from one network call on
            a batch of [unconditional, condition]. At guidance 1 only the condition is evaluated.
        guidance: the scale of the guidance, with or without a classifier.
        classifier: `classifier(z, t, condition)` -> log p(condition | z), [batch]. Its gradient
            guides a network that is called without the condition (Dhariwal and Nichol, arXiv
            2105.05233, algorithm 2); z has the precision of the sampler's state. It guides nothing at
            a flow's sigma = 1, where z holds no x0.
        keep_unconditional: evaluate the unconditional prediction at guidance 1 too;
            `last_unconditional` needs it.
        time_scale: factor on t: 1000 for most flows, 999 for networks of score_sde, 1000 / N if a
            discrete schedule's numbers were rescaled to 1000.
        integer_times: round t to int64, for a network that looks its time up in a table.
        dtype: the dtype of z for the network, for networks in half precision. t and all arithmetic
            stay at least float32. None: the dtype of the sampler's state.

    Raises:
        ValueError: an argument is out of its range, or does not go with another.
    """

    network: Callable[..., torch.Tensor]
    training: TrainingSchedule
    _: KW_ONLY
    prediction: str = "noise"
    condition: Condition = None
    unconditional: Condition = None
    guidance: float = 1.0
    classifier: Callable[..., torch.Tensor] | None = None
    keep_unconditional: bool = False
    time_scale: float = 1.0
    integer_times: bool = False
    dtype: torch.dtype | None = None
    _last_unconditional: torch.Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.training, TrainingSchedule):
            raise ValueError(
                "training must be a training schedule, for example "
                f"DiscreteSchedule.scaled_linear(), not {self.training!r}."
            )
        one_of("prediction", self.prediction, tuple(PREDICTIONS))
        if not (isinstance(self.guidance, (int, float)) and math.isfinite(self.guidance)):
            raise ValueError(f"guidance must be a finite number, not {self.guidance!r}.")
        if not (isinstance(self.time_scale, (int, float)) and self.time_scale > 0.0):
            raise ValueError(f"time_scale must be a number above 0, not {self.time_scale!r}.")
        if self.dtype is not None and not self.dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point one, not {self.dtype}.")
        if self.classifier is not None and self.unconditional is not None:
            raise ValueError(
                "classifier and unconditional are two ways of guidance: give only one of them."
            )
        if self.unconditional is not None and self.condition is None:
            raise ValueError("unconditional is given without condition: give both.")
        guided = self.classifier is not None or self.unconditional is not None
        if self.guidance != 1.0 and not guided:
            raise ValueError(
                f"guidance = {self.guidance:g} has nothing to guide with: give a condition with its "
                "unconditional, or a classifier."
            )
        if self.keep_unconditional and self.condition is not None and not guided:
            raise ValueError("keep_unconditional needs unconditional: give it, too.")
        first = torch.tensor(self.training.sigma_at(self.training.t_start), **CPU_FLOAT64)
        _, alpha, std = self.training.state(first)
        if not all(weight.isfinite() for weight in PREDICTIONS[self.prediction](alpha, std)):
            raise ValueError(
                f"prediction = {self.prediction!r} does not determine x0 at sigma = {first:g}, "
                "where sampling would start: give the schedule a t_start below 1, for example 0.999."
            )

    @property
    def schedule(self) -> NoiseSchedule:
        """The `schedule` argument of the samplers."""
        return self.training.noise_schedule

    def sigmas(
        self,
        steps: int,
        spacing: str = "logSNR",
        final_zero: bool = True,
        *,
        positions: int = LARGEST,
    ) -> torch.Tensor:
        """A falling list for `steps` model calls: [steps + 1], float64, on the CPU.

        Args:
            spacing: "logSNR", "time_uniform" or "time_quadratic" (DPM-Solver, section 3.4), or
                "recommended", the list of `sample_recommended`, which always ends at 0.
            final_zero: end at 0, in a step of its own; otherwise at the schedule's t_end.
            positions: height x width of x, and x frames; only "recommended" depends on it.

        Raises:
            ValueError: steps or spacing is out of its range.
        """
        if not (isinstance(steps, int) and steps >= 1):
            raise ValueError(f"steps must be a whole number of at least 1, not {steps!r}.")
        one_of("spacing", spacing, (*SPACINGS, "recommended"))
        sigma_at = self.training.sigma_at
        t_start, t_end = self.training.t_start, self.training.t_end
        if spacing == "recommended":
            ends = sigma_at(t_start), sigma_at(t_end)
            found = recommended_sigmas(self.schedule, *ends, steps, positions)
            return torch.tensor(found, **CPU_FLOAT64)
        intervals = steps - final_zero
        if spacing == "logSNR":
            first = flow_first(sigma_at, t_start, intervals)  # only a flow uses it
            ends = sigma_at(t_start), sigma_at(t_end)
            above_zero = log_snr(self.schedule, *ends, intervals, first)
        else:
            above_zero = in_time(sigma_at, t_start, t_end, intervals, TIME_POWERS[spacing])
        return torch.tensor(above_zero + [0.0] * final_zero, **CPU_FLOAT64)

    def noise(
        self,
        shape: Sequence[int],
        seed: int,
        *,
        sigma: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """The state to start from: noise of level sigma, by default the first of `sigmas`.

        The noise is drawn on the CPU in float32, image k from the seed plus k, so that it is the same
        in every batch and on every device.
        """
        level = self.training.sigma_at(self.training.t_start) if sigma is None else sigma
        images = [
            torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed + k), device="cpu")
            for k in range(shape[0])
        ]
        return torch.stack(images).to(device, dtype) * level

    def __call__(
        self, x: torch.Tensor, sigma: torch.Tensor, *, seed: object = None, **extra_args: Any
    ) -> torch.Tensor:
        """The denoised x0.

        Args:
            x: [batch, ...], the samplers' state.
            sigma: [batch], its noise level, which may differ from image to image.
            seed: not used here. The samplers read it from extra_args for their own noise.
            extra_args: handed to the network unchanged. What belongs to one image of the batch goes
                into the condition instead.

        Raises:
            ValueError: the condition does not fit the batch or its unconditional, or the network or
                the classifier returns a wrong type or shape.
        """
        x = at_least_float32(x)
        sigma = sigma.to(x).expand(len(x))
        scale, alpha, std = (_per_image(weight, x) for weight in self.training.state(sigma))
        z, t = scale * x, self._time(sigma)
        of_state, of_output = PREDICTIONS[self.prediction](alpha, std)
        conditions = self._conditions()
        outputs = self._outputs(z, t, conditions, extra_args)
        first, *guiding = [of_state * z + of_output * output for output in outputs]
        self._last_unconditional = None if len(conditions) == 1 else first
        if self.classifier is not None:
            # x0 = (z + std^2 score) / alpha, and the classifier's gradient adds to the score.
            strength = torch.where(alpha > 0.0, self.guidance * std**2 / alpha, 0.0)
            return first + strength * self._gradient(z, t)
        return torch.lerp(first, guiding[0], self.guidance) if guiding else first

    def last_unconditional(self) -> torch.Tensor:
        """The unconditional x0 of the last call: with the unconditional condition, or without the
        classifier, or simply the prediction of a network that takes no condition.

        Hand this function to `sample_multistep` as `unconditional` for CFG++.

        Raises:
            RuntimeError: the last call made no unconditional prediction, or there was no call.
        """
        if self._last_unconditional is None:
            raise RuntimeError(
                "The last call made no unconditional prediction: call the model first, with "
                "unconditional given, and keep_unconditional=True if guidance is 1."
            )
        return self._last_unconditional

    def _time(self, sigma: torch.Tensor) -> torch.Tensor:
        t = self.training.label(sigma) * self.time_scale
        return t.round().long() if self.integer_times else t

    def _conditions(self) -> tuple[Condition, ...]:
        """The conditions to evaluate. The one to guide to is the last."""
        if self.condition is None or self.classifier is not None:
            return ()
        if self.unconditional is None or (self.guidance == 1.0 and not self.keep_unconditional):
            return (self.condition,)
        return (self.unconditional, self.condition)

    def _outputs(
        self,
        z: torch.Tensor,
        t: torch.Tensor,
        conditions: tuple[Condition, ...],
        extra_args: Mapping[str, Any],
    ) -> tuple[torch.Tensor, ...]:
        """The network's output for each of the conditions, or for none, from a single call."""
        copies = max(len(conditions), 1)
        inputs = torch.cat([z] * copies).to(self.dtype or z.dtype)
        if t.is_floating_point():  # half precision has no 999.5
            t = t.to(torch.promote_types(inputs.dtype, torch.float32))
        given = (join(conditions, len(z)),) if conditions else ()
        output = self.network(inputs, torch.cat([t] * copies), *given, **extra_args)
        if not isinstance(output, torch.Tensor):
            raise ValueError(
                f"The network returned {type(output).__name__}, not a tensor: hand over a function "
                "that takes the prediction out of it, for example lambda z, t: network(z, t).sample."
            )
        if output.shape != inputs.shape:
            raise ValueError(
                f"The network returned shape {tuple(output.shape)} for inputs of shape "
                f"{tuple(inputs.shape)}: hand over a function that returns only the prediction, for "
                "example lambda z, t: network(z, t)[:, :3] if the network also predicts a variance."
            )
        return output.to(z.dtype).chunk(copies)

    def _gradient(self, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The gradient in z of the classifier's log p(condition | z)."""
        assert self.classifier is not None
        # Samplers run without gradients, and hosts in inference mode, whose tensors allow none: copy.
        with torch.inference_mode(False), torch.enable_grad():
            z = z.detach().clone().requires_grad_(True)
            log_prob = self.classifier(z, *_map(torch.clone, (t, self.condition)))
            if log_prob.shape != z.shape[:1] or not log_prob.requires_grad:
                raise ValueError(
                    f"The classifier must return log probabilities of shape ({len(z)},) that can be "
                    f"differentiated, not shape {tuple(log_prob.shape)} "
                    f"{'with' if log_prob.requires_grad else 'without'} a gradient."
                )
            return torch.autograd.grad(log_prob.sum(), z)[0]


def join(conditions: Sequence[Condition], batch: int) -> Condition:
    """Conditions one after the other along the batch.

    Args:
        conditions: with the same structure and shapes. A tensor of one row stands for the whole batch;
            values that are no tensors must be equal in all conditions.

    Returns:
        The same structure, with tensors of len(conditions) * batch rows.

    Raises:
        ValueError: they differ in structure or shapes, or a tensor has neither one row nor `batch`.
    """
    first = conditions[0]
    if isinstance(first, torch.Tensor) and all(isinstance(c, torch.Tensor) for c in conditions):
        shapes = {tuple(c.shape) for c in conditions}
        if any(len(shape) == 0 or shape[0] not in (1, batch) for shape in shapes):
            raise ValueError(
                f"A condition has shapes {sorted(shapes)} beside a batch of {batch}: each tensor "
                "needs that many rows, or one row for all."
            )
        if len({shape[1:] for shape in shapes}) > 1:
            raise ValueError(
                f"The condition and its unconditional have shapes {sorted(shapes)}: they go "
                "into one batch, so only the first number may differ; pad the shorter one."
            )
        return torch.cat([c.expand(batch, *c.shape[1:]) for c in conditions])
    if isinstance(first, Mapping) and all(isinstance(c, Mapping) for c in conditions):
        if all(c.keys() == first.keys() for c in conditions):
            return {key: join([c[key] for c in conditions], batch) for key in first}
    elif isinstance(first, (list, tuple)) and all(isinstance(c, (list, tuple)) for c in conditions):
        if all(len(c) == len(first) for c in conditions):
            joined = [join(rows, batch) for rows in zip(*conditions, strict=True)]
            return tuple(joined) if isinstance(first, tuple) else joined
    elif not any(isinstance(c, torch.Tensor) for c in conditions) and all(
        c == first for c in conditions
    ):
        return first
    raise ValueError(
        "The condition and its unconditional are built differently "
        f"({_describe(conditions[-1])} and {_describe(first)}): give both the same keys, lengths and "
        "types."
    )


def _describe(condition: Condition) -> str:
    if isinstance(condition, Mapping):
        return f"keys {list(condition)}"
    if isinstance(condition, (list, tuple)):
        return f"{type(condition).__name__} of {len(condition)}"
    return "a tensor" if isinstance(condition, torch.Tensor) else repr(condition)


def _map(function: Callable[[torch.Tensor], torch.Tensor], condition: Condition) -> Condition:
    """The condition with the function applied to its tensors."""
    if isinstance(condition, torch.Tensor):
        return function(condition)
    if isinstance(condition, Mapping):
        return {key: _map(function, value) for key, value in condition.items()}
    if isinstance(condition, (list, tuple)):
        mapped = [_map(function, value) for value in condition]
        return tuple(mapped) if isinstance(condition, tuple) else mapped
    return condition


def _per_image(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """[batch] as [batch, 1, ...], to be multiplied with x."""
    return weight.reshape(-1, *[1] * (x.ndim - 1))
