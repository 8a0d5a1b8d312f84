"""The samplers as functions, in the dialect that k-diffusion, ComfyUI and webui share.

Each is `sample_*(model, x, sigmas, extra_args=None, callback=None, disable=None, **settings)`:

- `model(x, sigma, **extra_args)` returns the denoised x0, with sigma of shape [batch].
- `x` is the state at sigmas[0], [batch, ...] of any rank. It is computed with, handed to the model and
  returned in at least float32, whatever the model returns, and is never changed in place.
- `sigmas` is 1-D, n + 1 noise levels, falling (to 0 or above) or rising (image to noise).
- `callback({"x", "i", "sigma", "sigma_hat", "denoised"})` comes once per model call.
- `disable` hides the progress bar.

On a fixed list of n + 1 sigmas the model is called exactly n times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch

from .adaptive import AdaptiveInfo, Solver, run_adaptive
from .control import AuthorsController, Controller, PIDController
from .drive import Callback, Caller, Correction, Denoiser, at_least_float32, run
from .exponential import Algorithm
from .multistep import RULES, plan_multistep
from .plan import Grid, Plan, read_sigmas
from .schedule import NoiseSchedule, VarianceExploding
from .singlestep import plan_singlestep
from .thresholding import dynamic_threshold

ALGORITHMS = ("dpmsolver++", "dpmsolver")
SOLVER_TYPES = tuple(RULES)
SOLVER_TYPE_ALIASES = {"midpoint": "dpmsolver", "heun": "taylor"}
LOWER_ORDER_FINAL = ("auto", "on", "off")
GROUPINGS = ("fast", "fixed")

Sigmas = torch.Tensor | Sequence[float]


@torch.no_grad()
def sample_multistep(
    model: Denoiser,
    x: torch.Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    noise_sampler: object | None = None,
    algorithm: str = "dpmsolver++",
    order: int = 2,
    solver_type: str = "dpmsolver",
    lower_order_final: str = "auto",
    corrector: str | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
    schedule: NoiseSchedule | None = None,
    thresholding: tuple[float, float] | None = None,
) -> torch.Tensor:
    """Multistep DPM-Solver and DPM-Solver++ ("2M", "3M"): one call per interval.

    DPM-Solver++ (arXiv 2211.01095), algorithm 2 and appendix B.

    Args:
        algorithm: "dpmsolver++" interpolates x0, "dpmsolver" the noise.
        order: 1, 2 or 3; lowered silently where the steps so far or the list don't allow it.
        solver_type: "dpmsolver" ("midpoint") and "taylor" ("heun") are the published weights;
            "exact" integrates the interpolation polynomial exactly and is third order at order 3.
        lower_order_final: whether the k-th interval from the end (a final zero aside) has at most
            order k: "on", "off", or "auto", on below 10 intervals.
        schedule: `VarianceExploding()` (default) or `RectifiedFlow()`.
        thresholding: (ratio, maximum) of dynamic thresholding, for pixel-space models.
        eta, corrector: not there yet; 0 and None only.
        s_noise, noise_sampler: of the noise that eta adds; without effect at eta = 0.

    Returns:
        The state at sigmas[-1], shaped like x.

    Raises:
        ValueError: sigmas or a setting is out of its range.
        NotImplementedError: eta above 0, or a corrector.
    """
    _not_yet(eta, corrector)
    settings = (_algorithm(algorithm), _order(order, (1, 2, 3)), _solver_type(solver_type))
    _one_of("lower_order_final", lower_order_final, LOWER_ORDER_FINAL)
    grid = Grid.of(sigmas, _schedule(schedule))
    plan = plan_multistep(grid, *settings, lower_order_final)
    return _run(plan, model, x, extra_args, callback, disable, _correction(thresholding))


@torch.no_grad()
def sample_singlestep(
    model: Denoiser,
    x: torch.Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    noise_sampler: object | None = None,
    algorithm: str = "dpmsolver++",
    order: int = 2,
    solver_type: str = "dpmsolver",
    grouping: str = "fast",
    eta: float = 0.0,
    s_noise: float = 1.0,
    schedule: NoiseSchedule | None = None,
    thresholding: tuple[float, float] | None = None,
) -> torch.Tensor:
    """Singlestep DPM-Solver and DPM-Solver++ ("2S", "3S"): consecutive sigmas are grouped, and the
    inner ones are the nodes of one step, so that this too is one call per interval.

    DPM-Solver (arXiv 2206.00927), algorithms 1 and 2; DPM-Solver++ (arXiv 2211.01095), appendix B.

    Args:
        order: 1, 2 or 3: the size of a group.
        solver_type: "dpmsolver" ("midpoint"), or "taylor" ("heun") and "exact", the same here.
        grouping: "fast", as published, ends in shorter groups; "fixed" uses groups of `order` and
            the remainder as one, which keeps order 3.
        algorithm, schedule, thresholding, eta, s_noise, noise_sampler: see `sample_multistep`.

    Returns:
        The state at sigmas[-1], shaped like x.

    Raises:
        ValueError: sigmas or a setting is out of its range.
        NotImplementedError: eta above 0.
    """
    _not_yet(eta)
    settings = (_algorithm(algorithm), _order(order, (1, 2, 3)), _solver_type(solver_type))
    _one_of("grouping", grouping, GROUPINGS)
    grid = Grid.of(sigmas, _schedule(schedule))
    plan = plan_singlestep(grid, *settings, grouping)
    return _run(plan, model, x, extra_args, callback, disable, _correction(thresholding))


@torch.no_grad()
def sample_adaptive(
    model: Denoiser,
    x: torch.Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    noise_sampler: object | None = None,
    algorithm: str = "dpmsolver++",
    order: int = 3,
    solver_type: str = "dpmsolver",
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float | None = None,
    icoeff: float | None = None,
    dcoeff: float | None = None,
    accept_safety: float | None = None,
    max_calls: int = 500,
    return_info: bool = False,
    eta: float = 0.0,
    s_noise: float = 1.0,
    schedule: NoiseSchedule | None = None,
    thresholding: tuple[float, float] | None = None,
) -> torch.Tensor | tuple[torch.Tensor, AdaptiveInfo]:
    """Adaptive DPM-Solver-12 and -23: chooses its own steps between the ends of the list.

    DPM-Solver (arXiv 2206.00927), appendix C. Goes from sigmas[0] to sigmas[-1] or, where that is 0,
    to min(last sigma above zero, schedule.sigma_min if known), and denoises there. Its error is taken
    per image on the variance-preserving scale, and the worst image decides.

    Args:
        order: 2 (DPM-Solver-12) or 3 (DPM-Solver-23).
        rtol, atol: the tolerance is max(atol, rtol * |state|).
        h_init: first step, in lambda_.
        pcoeff, icoeff, dcoeff, accept_safety: giving any of them selects k-diffusion's PID controller
            (its defaults 0, 1, 0, 0.81) in place of the authors'.
        max_calls: never exceeded. When it runs short, the rest of the way is taken in the calls that
            are left, with a RuntimeWarning.
        callback: its i follows the way done in lambda_, from 0 to len(sigmas) - 2.
        return_info: return (x, info), info with nfe, accepted, rejected and sigmas.
        algorithm, solver_type, schedule, thresholding, eta, s_noise, noise_sampler: see
            `sample_singlestep`.

    Raises:
        ValueError: sigmas or a setting is out of its range.
        NotImplementedError: eta above 0.
        RuntimeError: the model returned NaN or infinity.
    """
    _not_yet(eta)
    if not (isinstance(max_calls, int) and max_calls >= 1):
        raise ValueError(f"max_calls must be a whole number of at least 1, not {max_calls!r}.")
    _at_least("rtol", rtol, 0.0)
    _at_least("atol", atol, 0.0)
    _at_least("h_init", h_init, 0.0)
    if rtol == atol == 0.0:
        raise ValueError("rtol and atol are both 0: one of them must be above 0.")
    if h_init == 0.0:
        raise ValueError("h_init must be above 0.")
    schedule = _schedule(schedule)
    solver = Solver(
        schedule, _algorithm(algorithm), _order(order, (2, 3)), _solver_type(solver_type)
    )
    correct = _correction(thresholding)
    values = read_sigmas(sigmas, schedule)
    x = _state(x)
    if len(values) == 1:
        info = AdaptiveInfo(nfe=0, accepted=0, rejected=0, sigmas=list(values))
        return (x, info) if return_info else x
    pid = {"pcoeff": pcoeff, "icoeff": icoeff, "dcoeff": dcoeff, "accept_safety": accept_safety}
    given: dict[str, Any] = {name: value for name, value in pid.items() if value is not None}
    controller: Controller = PIDController(h_init, **given) if given else AuthorsController(h_init)
    with Caller(model, len(values) - 1, extra_args, callback, correct, disable) as caller:
        x, info = run_adaptive(caller, x, values, solver, controller, rtol, atol, max_calls)
    return (x, info) if return_info else x


def _run(
    plan: Plan,
    model: Denoiser,
    x: torch.Tensor,
    extra_args: Mapping[str, Any] | None,
    callback: Callback | None,
    disable: bool | None,
    correct: Correction | None,
) -> torch.Tensor:
    x = _state(x)
    with Caller(model, len(plan.steps), extra_args, callback, correct, disable) as caller:
        return run(plan, caller, x)


def _state(x: torch.Tensor) -> torch.Tensor:
    if not x.is_floating_point() or x.numel() == 0 or x.ndim == 0:
        raise ValueError(
            f"x must be a batch of floating-point images, not {x.dtype} of shape {tuple(x.shape)}."
        )
    return at_least_float32(x)


def _correction(thresholding: tuple[float, float] | None) -> Correction | None:
    if thresholding is None:
        return None
    try:
        ratio, maximum = thresholding
        valid = 0.0 < ratio <= 1.0 and maximum > 0.0
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            "thresholding takes (ratio, maximum) with 0 < ratio <= 1 and maximum above 0, "
            f"not {thresholding!r}."
        )
    return partial(dynamic_threshold, ratio=ratio, maximum=maximum)


def _schedule(schedule: NoiseSchedule | None) -> NoiseSchedule:
    if schedule is None:
        return VarianceExploding()
    if not isinstance(schedule, NoiseSchedule):
        raise ValueError(
            f"schedule must be VarianceExploding() or RectifiedFlow(), not {schedule!r}."
        )
    return schedule


def _algorithm(algorithm: str) -> Algorithm:
    _one_of("algorithm", algorithm, ALGORITHMS)
    return cast(Algorithm, algorithm)


def _solver_type(solver_type: str) -> str:
    _one_of("solver_type", solver_type, (*SOLVER_TYPES, *SOLVER_TYPE_ALIASES))
    return SOLVER_TYPE_ALIASES.get(solver_type, solver_type)


def _order(order: int, allowed: tuple[int, ...]) -> int:
    _one_of("order", order, allowed)
    return int(order)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, not {value!r}.")


def _at_least(name: str, value: float, least: float) -> None:
    if not (isinstance(value, (int, float)) and value >= least):
        raise ValueError(f"{name} must be a number of at least {least:g}, not {value!r}.")


def _not_yet(eta: float, corrector: str | None = None) -> None:
    _at_least("eta", eta, 0.0)
    if eta > 0.0:
        raise NotImplementedError(
            f"eta = {eta:g}: the stochastic solvers are not there yet, set eta to 0."
        )
    if corrector is not None:
        raise NotImplementedError(
            f"corrector = {corrector!r}: correctors are not there yet, set it to None."
        )
