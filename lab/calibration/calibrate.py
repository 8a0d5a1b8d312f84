"""Calibrate a solver on a model: where to put few steps, and with which weights.

    1. A teacher solves the ODE for some noises on a fine list of sigmas; its states and outputs are
       kept (`teach`).
    2. A search chooses the student's sigmas among the teacher's without calling the model (`search`);
       the recommended ones are tried beside them.
    3. The student runs on the model; step by step its weights are fitted so that it meets the
       teacher's next state (`fit`). It thereby learns from its own states, errors included.
    4. What it gains is measured on noises that it has not seen, against solvers without calibration
       (`calibrate`).

Each fit is a regularised weighted least squares problem of a few unknowns with the exact weights as
its prior. Weights of the images follow their errors, so that a few images that go another way don't
decide for all: it minimises the geometric mean of the errors (iteratively reweighted least squares).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from ...samplers import NoiseSchedule, RectifiedFlow, sample_multistep
from ...samplers.integrate import Denoiser
from ...samplers.plan import Weights
from ...samplers.sample import sample_calibrated
from ...samplers.solvers.fitted import Calibration, Fitted, exact_weights
from ...samplers.solvers.recommended import recommended_sigmas

POINTS = 64
"""Sigmas on the teacher's list, among which the student's are chosen."""

SLOPES = 4
"""How many slopes a step uses at most."""

RIDGE = 1e-4
"""Pull of a weight towards the exact one, relative to what its slope weighs in the fit."""

PRIOR_ORDER = 3
"""Of those exact weights."""

ROUNDS, SOFTENING = 4, 0.05
"""Of the reweighting: how often, and the part of the mean square error that no image falls below."""

MOST_NUMBERS, MOST_NUMBERS_OF_ALL = 16384, 2**20
"""Numbers of each image, and of all seeds, that enter a fit: a random choice if there are more. The
teacher's states then take 260 MiB at most."""

STATES_BYTES = 2**26
"""What a search keeps at most."""

MOST_BYTES = 2**32
"""What the noises, and the students' states and slopes, may take of the main memory."""

SPREADS = (0.5, 0.3, 1.0)
"""What the searches suppose of a model off the teacher's path; see `Surrogate`."""

FIRST_TRIALS = 1 + len(SPREADS)
"""Fits on the model that there are in any case: on the recommended sigmas, and on those searched."""

MOST_TRIALS = 40
"""Fits on the model; from there on little is won."""

CALIBRATED = "calibrated"
"""Name of the calibrated solver among the errors."""

TEACHER = partial(sample_multistep, order=3, solver_type="exact", corrector="unic", disable=True)

Tick = Callable[[int, str], None]
Rival = Callable[[Denoiser, torch.Tensor], torch.Tensor]
Array = np.ndarray


def candidates(
    schedule: NoiseSchedule, sigma_max: float, sigma_min: float, points: int = POINTS
) -> tuple[float, ...]:
    """The teacher's sigmas: even in lambda_; on flows half of them even in sigma.

    Args:
        sigma_max: where sampling starts; it comes first, exactly.
        sigma_min: the last one.
    """
    if not isinstance(schedule, RectifiedFlow):
        return tuple(np.geomspace(sigma_max, sigma_min, points).tolist())
    first, last = schedule.lambda_(min(sigma_max, 0.995)), schedule.lambda_(sigma_min)
    even_in_lambda = [schedule.sigma(each) for each in np.linspace(first, last, points // 2)]
    even_in_sigma = np.linspace(sigma_max, sigma_min, points - points // 2).tolist()
    chosen: list[float] = []
    for sigma in sorted([*even_in_lambda, *even_in_sigma], reverse=True):
        if not chosen or chosen[-1] - sigma > 1e-3 * chosen[-1] * (1.0 - 0.9 * sigma):
            chosen.append(sigma)
    return (*chosen[:-1], sigma_min)


class NotFiniteError(RuntimeError):
    """The model returned NaN or infinity."""


class Model:
    """A model as the calibration calls it: in small batches, counted, with every call told of.

    All else happens in the main memory: no more than a batch is ever on the device.

    Raises:
        NotFiniteError: at the first call whose output is not finite, so that no more are wasted.
    """

    def __init__(
        self, model: Denoiser, batch: int, tick: Tick, device: torch.device | str = "cpu"
    ) -> None:
        self.model, self.batch, self.tick, self.device = model, batch, tick, device
        self.doing = ""
        self.calls = 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **extra: object) -> torch.Tensor:
        outputs = []
        for part, level in zip(x.split(self.batch), sigma.split(self.batch), strict=True):
            output = self.model(part.to(self.device), level.to(self.device), **extra)
            outputs.append(output.cpu().to(x.dtype))
            self.calls += len(part)
            self.tick(len(part), self.doing)
            if not outputs[-1].isfinite().all():
                raise NotFiniteError(
                    f"The model returned NaN or infinity at sigma {float(level[0]):.4g}: nothing "
                    "can be fitted to that. Look at the model's precision, and at its guidance."
                )
        return torch.cat(outputs)


@dataclass(frozen=True)
class Records:
    """What the teacher did.

    Attributes:
        sigmas: M, its list without the final 0.
        starts: [S, ...], the noises it started from.
        states: [M + 1, S, d] at each sigma and at the end, d numbers of each image.
        products: [S, 2M + 1, 2M + 1], mean products of those states and of the M denoised outputs,
            of each image.
        numbers: [d], which numbers of an image were kept.
    """

    sigmas: tuple[float, ...]
    starts: torch.Tensor
    states: torch.Tensor
    products: Array
    numbers: torch.Tensor

    @property
    def variance(self) -> float:
        """Of the numbers of the finished images."""
        return self.states[-1].double().var().item()

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The numbers that are kept, of a batch: [S, d]."""
        return _numbers(x, self.numbers)


def _numbers(x: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    return x.cpu().flatten(1)[:, which].float()


def teach(
    model: Model, starts: torch.Tensor, sigmas: Sequence[float], schedule: NoiseSchedule
) -> Records:
    """Solve the ODE finely from each start."""
    points = len(sigmas)
    generator = torch.Generator("cpu").manual_seed(0)
    order = torch.randperm(starts[0].numel(), generator=generator, device="cpu")
    most = min(MOST_NUMBERS, MOST_NUMBERS_OF_ALL // len(starts))
    numbers = order[:most].sort().values
    states = torch.empty(points + 1, len(starts), len(numbers), device="cpu")
    products: list[Array] = []
    for part, kept in zip(starts.split(model.batch), states.split(model.batch, 1), strict=True):
        outputs = torch.empty_like(kept[1:])

        def keep(
            report: Mapping[str, Any],
            kept: torch.Tensor = kept,
            outputs: torch.Tensor = outputs,
        ) -> None:
            kept[report["i"]] = _numbers(report["x"], numbers)
            outputs[report["i"]] = _numbers(report["denoised"], numbers)

        end = TEACHER(model, part, [*sigmas, 0.0], callback=keep, schedule=schedule)
        kept[points] = _numbers(end, numbers)
        for k in range(len(part)):
            products.append(_products(torch.cat([kept[:, k], outputs[:, k]])))
    return Records(tuple(sigmas), starts, states, np.stack(products), numbers)


def _products(rows: torch.Tensor) -> Array:
    """[m, m]: mean products of m vectors, of one image, [m, d]."""
    rows = rows.double()
    return (rows @ rows.T / rows.shape[1]).numpy()


def reweighted(products: Array, prior: Array, rounds: int = ROUNDS) -> tuple[Array, Array]:
    """Fit the last of some vectors by the others, image by image of another weight.

    Args:
        products: [S, m + 1, m + 1], mean products of the m vectors and of the target, the last one.
        prior: [m], what the weights are pulled to.

    Returns:
        The weights [m], and each image's mean square error [S].
    """
    of_image = np.full(len(products), 1.0 / len(products))
    for _ in range(rounds):
        total = np.tensordot(of_image, products, 1)
        matrix, target = total[:-1, :-1], total[:-1, -1]
        pull = RIDGE * np.diag(matrix) + 1e-12 * np.trace(matrix)
        weights = np.linalg.solve(matrix + np.diag(pull), target + pull * prior)
        residual = np.append(-weights, 1.0)
        errors = np.maximum(products @ residual @ residual, 1e-18)
        of_image = 1.0 / (errors + SOFTENING * errors.mean())
        of_image /= of_image.sum()
    return weights, errors


def geometric_mean(square_errors: Array) -> float:
    """Of root mean square errors, from their squares."""
    return math.exp(0.5 * np.log(square_errors).mean())


class _State(NamedTuple):
    """A student on the way, as combinations of the vectors in `Surrogate`."""

    x: Array
    slopes: tuple[Array, ...]
    unknown: Array
    error: float


class Surrogate:
    """The model near the teacher's path, so that a student's error can be told without calling it.

    At the teacher's states its outputs are known. Off them, the output is supposed to move with the
    state as that of Gaussian data of a third of the images' variance, and besides by as much as
    `spread` times the distance, in a direction that nobody knows. All of the student's states are
    then combinations of the teacher's states and outputs (and of those unknown directions), of which
    only products are needed, so that the cost doesn't depend on the images' size.
    """

    def __init__(
        self,
        records: Records,
        schedule: NoiseSchedule,
        calls: int,
        slopes: int = SLOPES,
        spread: float = SPREADS[0],
    ) -> None:
        self.records, self.schedule = records, schedule
        self.calls, self.slopes, self.spread = calls, slopes, spread
        self.products = records.products
        self.points = len(records.sigmas)
        self.variance = 0.3 * records.variance
        self.unit = np.eye(2 * self.points + 1 + calls)
        self.states: dict[tuple[int, ...], _State] = {}
        numbers = len(self.products) * calls + (slopes + 2) * len(self.unit)
        self.most_states = STATES_BYTES // (8 * numbers)
        self.priors: dict[tuple[int, ...], Array] = {}

    def gain(self, sigma: float) -> float:
        """How far the output moves along with the state."""
        alpha = self.schedule.alpha(sigma)
        return alpha * self.variance / (alpha**2 * self.variance + sigma**2)

    def prior(self, indices: Sequence[int]) -> Array:
        """Exact weights of the step that leads to the last of these, padded to its slopes."""
        recent = tuple(indices[-(self.slopes + 1) :])
        if recent not in self.priors:
            sigmas = [self.sigma(index) for index in recent]
            self.priors[recent] = prior(self.schedule, sigmas, self.slopes)
        return self.priors[recent]

    def sigma(self, index: int) -> float:
        return self.records.sigmas[index] if index < self.points else 0.0

    def error(self, indices: tuple[int, ...]) -> float:
        """What a student on these sigmas, one for each call, would end with."""
        if len(self.states) > self.most_states:
            self.states.clear()
        return self._state((*indices, self.points)).error

    def _state(self, path: tuple[int, ...]) -> _State:
        """The student after the steps along a path of indices; lists share their beginnings."""
        if path in self.states:
            return self.states[path]
        # Vectors: the teacher's states, its outputs, and one unknown direction for each call.
        known, unit = 2 * self.points + 1, self.unit
        if len(path) == 1:
            none = np.zeros((len(self.products), self.calls))
            state = _State(unit[path[0]], (), none, 0.0)
        else:
            before = self._state(path[:-1])
            call, index = len(path) - 2, path[-2]
            unknown, output = before.unknown, unit[self.points + 1 + index]
            if call:
                away = before.x - unit[index]
                unknown = unknown.copy()
                unknown[:, call] = self.spread**2 * self._products(away[None], unknown)[:, 0, 0]
                output = output + self.gain(self.sigma(index)) * away + unit[known + call]
            slope = (before.x - output) / self.sigma(index)
            slopes = (slope, *before.slopes[: self.slopes - 1])
            vectors = np.stack([before.x, *slopes, unit[path[-1]]])
            weights, errors = reweighted(self._products(vectors, unknown), self.prior(path))
            state = _State(weights @ vectors[:-1], slopes, unknown, geometric_mean(errors))
        self.states[path] = state
        return state

    def _products(self, vectors: Array, unknown: Array) -> Array:
        """[S, m, m] of m vectors; unknown: [S, calls], mean squares of the unknown directions."""
        known = 2 * self.points + 1
        used = np.flatnonzero(vectors[:, :known].any(0))
        of_known = vectors[:, used] @ self.products[:, used[:, None], used] @ vectors[:, used].T
        off = vectors[:, known:]
        return of_known + (off * unknown[:, None, :]) @ off.T


def prior(schedule: NoiseSchedule, sigmas: Sequence[float], slopes: int) -> Array:
    """The exact weights of a list's last step as [1 + number of slopes], with zeros at the end."""
    exact = exact_weights(schedule, sigmas, PRIOR_ORDER)
    used = min(len(sigmas) - 1, slopes)
    weights = np.zeros(1 + used)
    weights[: 1 + min(used, len(exact.outputs))] = (exact.state, *exact.outputs[:used])
    return weights


def search(
    surrogate: Surrogate, start: Sequence[int], tick: Callable[[], object] = lambda: None
) -> tuple[int, ...]:
    """Coordinate descent on the surrogate's error: one sigma at a time, or with all after it.

    Args:
        tick: called before each sigma is moved, some hundreds of times in a second.
    """
    best = tuple(start)
    stride = max(2, surrogate.points // 12)
    while stride:
        before = best
        for i in range(1, len(best)):
            tick()
            for until in (i + 1, len(best)):
                for shift in (-stride, stride):
                    moved = (*best[:i], *(k + shift for k in best[i:until]), *best[until:])
                    if _falls(moved, surrogate.points) and (
                        surrogate.error(moved) < surrogate.error(best)
                    ):
                        best = moved
        if best == before:
            stride //= 2
    return best


def _falls(indices: Sequence[int], points: int) -> bool:
    return indices[-1] < points and all(a < b for a, b in itertools.pairwise(indices))


def nearest(sigmas: Sequence[float], wanted: Sequence[float]) -> tuple[int, ...]:
    """Indices of the falling sigmas that are nearest by ratio to those wanted, each another one."""
    levels, points, chosen = np.log(sigmas), len(sigmas), list[int]()
    for i, sigma in enumerate(wanted):
        index = int(np.abs(levels - math.log(sigma)).argmin())
        lowest = chosen[-1] + 1 if chosen else 0
        chosen.append(min(max(index, lowest), points - len(wanted) + i))
    return tuple(chosen)


class Student(NamedTuple):
    """Weights fitted on given sigmas, and the geometric mean error on the noises of the fit."""

    indices: tuple[int, ...]
    steps: tuple[Weights, ...]
    error: float


def fit(
    model: Model, records: Records, schedule: NoiseSchedule, indices: tuple[int, ...], slopes: int
) -> Student:
    """Run a student on the model and fit each step's weights on the way."""
    path = (*indices, len(records.sigmas))
    sigmas = [*(records.sigmas[index] for index in indices), 0.0]
    x, kept = records.starts, list[torch.Tensor]()
    steps: list[Weights] = []
    for i in range(len(indices)):
        kept.insert(0, (x - model(x, x.new_full((len(x),), sigmas[i]))) / sigmas[i])
        del kept[slopes:]
        target = records.states[path[i + 1]]
        vectors = torch.stack([*(records.of(part) for part in (x, *kept)), target], 1)
        products = np.stack([_products(of_image) for of_image in vectors])
        exact = prior(schedule, sigmas[: i + 2], slopes)
        weights, errors = reweighted(products, exact)
        steps.append(Weights(float(weights[0]), tuple(map(float, weights[1:]))))
        x = steps[-1].state * x
        for weight, slope in zip(steps[-1].outputs, kept, strict=True):
            x.add_(slope, alpha=weight)
    return Student(indices, tuple(steps), geometric_mean(errors))


def moves(student: Student, points: int) -> list[tuple[int, ...]]:
    """Lists that differ from a student's in one sigma, or in one and all after it, in random order."""
    indices = student.indices
    found = [
        (*indices[:i], *(k + shift for k in indices[i:until]), *indices[until:])
        for shift in (-2, 2, -1, 1)
        for i in range(1, len(indices))
        for until in {i + 1, len(indices)}
    ]
    order = np.random.default_rng(len(indices)).permutation(len(found))
    return [found[i] for i in order if _falls(found[i], points)]


class Cost(NamedTuple):
    """What a calibration will take, in single-image model calls.

    Attributes:
        teacher: the teacher's, for all noises.
        trial: one fit.
        trials: how many fits there will be.
        check: the measurement on held-out noises.
    """

    teacher: int
    trial: int
    trials: int
    check: int

    @property
    def total(self) -> int:
        return self.teacher + self.trials * self.trial + self.check


def cost(budget: int, calls: int, seeds: int, held_out: int, points: int, rivals: int) -> Cost:
    """Plan a calibration within a budget of single-image model calls.

    Raises:
        ValueError: the budget is too small for it.
    """
    teacher, trial = (seeds + held_out) * points, seeds * calls
    check = held_out * calls * (1 + rivals)
    trials = min(MOST_TRIALS, (budget - teacher - check) // trial)
    if trials < FIRST_TRIALS:
        least = teacher + check + FIRST_TRIALS * trial
        raise ValueError(
            f"A budget of {budget} model calls is too small for {calls} calls and {seeds} seeds: "
            f"allow {least} at least, or take fewer seeds."
        )
    return Cost(teacher, trial, trials, check)


def check_memory(size: int, seeds: int, held_out: int, slopes: int = SLOPES) -> None:
    """Raise ValueError if latents of `size` numbers would take more than MOST_BYTES of main memory.

    A seed takes its noise, its state and the next one, its slopes and the model's output at once.
    """
    of_seed, of_held_out = 4 * size * (slopes + 4), 4 * size
    if seeds * of_seed + held_out * of_held_out > MOST_BYTES:
        most = max(MOST_BYTES - held_out * of_held_out, 0) // of_seed
        raise ValueError(
            f"{seeds} seeds of latents of {size} numbers take more than {MOST_BYTES >> 30} GiB of "
            f"main memory: take at most {most} seeds, or smaller latents."
        )


class Result(NamedTuple):
    """What `calibrate` found.

    Attributes:
        calibration: with the errors that were measured on held-out noises.
        best: the name of the solver with the least of them; CALIBRATED unless a rival is closer.
    """

    calibration: Calibration
    best: str


@torch.no_grad()
def calibrate(
    model: Denoiser,
    starts: torch.Tensor,
    held_out: torch.Tensor,
    schedule: NoiseSchedule,
    sigmas: Sequence[float],
    calls: int,
    rivals: Mapping[str, Rival],
    *,
    budget: int = 5000,
    batch: int = 4,
    device: torch.device | str | None = None,
    slopes: int = SLOPES,
    fitted: Fitted = Fitted(),  # noqa: B008  # frozen
    tick: Tick = lambda calls, doing: None,
    keep: Callable[[Calibration], None] = lambda calibration: None,
) -> Result:
    """Calibrate a solver of some number of calls on a model.

    Args:
        model: `model(x, sigma)` -> denoised.
        starts: [seeds, ...], noises at sigmas[0] to fit on.
        held_out: [any, ...], others to measure on.
        sigmas: the teacher's, see `candidates`.
        calls: of the solver; its list has calls + 1 sigmas, the last one 0.
        rivals: solvers without calibration to measure against: name -> (model, starts) -> images.
        budget: single-image model calls that may be made.
        batch: images in a model call, and at any time on the device.
        device: where the model is called; by default where the starts are. All else is computed in
            the main memory, of which it takes at most MOST_BYTES and 0.5 GiB.
        slopes: how many of them a step may use.
        fitted: what to write into the calibration besides what is found here.
        tick: told after every model call: how many images it had, and what it is for; and while it
            searches, with 0 images.
        keep: given each calibration that is better than those before, not yet measured, so that an
            interrupt loses nothing.

    Raises:
        ValueError: the budget is too small, there are more calls than sigmas, or the latents take
            more than MOST_BYTES.
        NotFiniteError: the model returned NaN or infinity.
    """
    if not 1 <= calls <= len(sigmas) // 2:
        raise ValueError(
            f"calls must be a whole number from 1 to {len(sigmas) // 2}, not {calls!r}."
        )
    plan = cost(budget, calls, len(starts), len(held_out), len(sigmas), len(rivals))
    check_memory(starts[0].numel(), len(starts), len(held_out), slopes)
    wrapped = Model(model, batch, tick, starts.device if device is None else device)
    starts, held_out = starts.cpu(), held_out.cpu()
    wrapped.doing = "solving finely"
    # One after the other: an image has the same place in its batch whenever it is run, as a host may
    # give the images of a batch a prompt each.
    records = teach(wrapped, starts, sigmas, schedule)
    teacher = partial(TEACHER, sigmas=[*sigmas, 0.0], schedule=schedule)
    converged = _ends(teacher, wrapped, held_out, records)

    def calibration(student: Student) -> Calibration:
        chosen = (*(records.sigmas[index] for index in student.indices), 0.0)
        kind = "flow" if isinstance(schedule, RectifiedFlow) else "diffusion"
        known = replace(fitted, seeds=len(starts), model_calls=wrapped.calls)
        return Calibration(kind, chosen, student.steps, known)

    wrapped.doing = "choosing sigmas and weights"
    best = _best_student(
        wrapped,
        records,
        schedule,
        calls,
        slopes,
        plan.trials,
        lambda student: keep(calibration(student)),
    )

    wrapped.doing = "measuring on other noises"
    found = calibration(best)
    solvers: dict[str, Rival] = {
        CALIBRATED: lambda model, x: sample_calibrated(
            model, x, found.sigmas, calibration=found, schedule=schedule, disable=True
        ),
        **rivals,
    }
    errors: dict[str, float] = {}
    for name, solver in solvers.items():
        try:
            end = _ends(solver, wrapped, held_out, records)
        except NotFiniteError:  # a solver that leads there has lost; the others are measured
            errors[name] = math.inf
            if len(errors) == len(solvers) and set(errors.values()) == {math.inf}:
                raise
            continue
        square = (end - converged).double().square().mean(1).clamp_min(1e-18).numpy()
        errors[name] = geometric_mean(square)
    known = replace(found.fitted, errors=errors, model_calls=wrapped.calls)
    return Result(replace(found, fitted=known), min(errors, key=errors.__getitem__))


def _ends(solver: Rival, model: Model, starts: torch.Tensor, records: Records) -> torch.Tensor:
    """[S, d]: the numbers that are kept of what a solver ends with, batch by batch."""
    return torch.cat([records.of(solver(model, part)) for part in starts.split(model.batch)])


def _best_student(
    model: Model,
    records: Records,
    schedule: NoiseSchedule,
    calls: int,
    slopes: int,
    trials: int,
    keep: Callable[[Student], None],
) -> Student:
    """Take the recommended sigmas, and those that a search without the model finds under each of
    SPREADS; then try moves from the best of them on the model."""
    points = len(records.sigmas)
    even = tuple(round(points * i / calls) for i in range(calls))
    ends = records.sigmas[0], records.sigmas[-1]
    recommended = nearest(records.sigmas, recommended_sigmas(schedule, *ends, calls)[:-1])
    tried: dict[tuple[int, ...], Student] = {}

    def attempt(indices: tuple[int, ...]) -> Student:
        best = min(tried.values(), key=lambda student: student.error, default=None)
        if indices not in tried:
            tried[indices] = fit(model, records, schedule, indices, slopes)
            if best is None or tried[indices].error < best.error:
                keep(tried[indices])
        return tried[indices]

    def searched(spread: float) -> tuple[int, ...]:
        surrogate = Surrogate(records, schedule, calls, slopes, spread)
        return search(surrogate, even, lambda: model.tick(0, model.doing))

    starts = [attempt(recommended), *(attempt(searched(spread)) for spread in SPREADS)]
    best = min(starts, key=lambda student: student.error)
    waiting = moves(best, points)
    while len(tried) < trials and waiting:
        indices = waiting.pop(0)
        if indices in tried:
            continue
        student = attempt(indices)
        if student.error < best.error:
            best, waiting = student, moves(student, points)
    return best
