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

from .checks import at_least, between, one_of
from .coefficients import Algorithm
from .integrate import (
    Callback,
    Caller,
    Correction,
    Denoiser,
    Unconditional,
    at_least_float32,
    run,
)
from .noise import BrownianNoise, Noise, NoiseDevice, NoiseSampler, noise_of
from .plan import Grid, Plan, read_sigmas
from .schedules.process import NoiseSchedule, VarianceExploding
from .solvers.adaptive import AdaptiveInfo, Solver, run_adaptive
from .solvers.fitted import Calibration
from .solvers.multistep import RULES, plan_multistep
from .solvers.recommended import recommended
from .solvers.singlestep import plan_singlestep
from .solvers.step_size import AuthorsController, Controller, PIDController
from .thresholding import dynamic_threshold

ALGORITHMS = ("dpmsolver++", "dpmsolver")
MULTISTEP_ALGORITHMS = (*ALGORITHMS, "adams")
POWERS = (-2.0, 2.0)
CORRECTORS = ("unic",)
SOLVER_TYPES = tuple(RULES)
SOLVER_TYPE_ALIASES = {"midpoint": "dpmsolver", "heun": "taylor"}
ORDERS = (1, 2, 3)
EXACT_ORDERS = (*ORDERS, 4)
LOWER_ORDER_FINAL = ("auto", "on", "off")
GROUPINGS = ("fast", "fixed")
NOISE_DEVICES = ("cpu", "gpu")
MOST_NOISE = 1e6  # of eta and s_noise: beyond it float32 may not hold the weights

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
    noise_sampler: NoiseSampler | None = None,
    algorithm: str = "dpmsolver++",
    order: int = 2,
    solver_type: str = "dpmsolver",
    lower_order_final: str = "auto",
    lower_long_steps: bool = False,
    corrector: str | None = None,
    power: float = 1.0,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_device: str = "cpu",
    schedule: NoiseSchedule | None = None,
    thresholding: tuple[float, float] | None = None,
    unconditional: Unconditional | None = None,
) -> torch.Tensor:
    """Multistep DPM-Solver and DPM-Solver++ ("2M", "3M"): one call per interval.

    DPM-Solver++ (arXiv 2211.01095), algorithm 2 and appendix B; with eta above 0 its stochastic forms
    ("2M SDE", "3M SDE"). The corrector is UniC (arXiv 2302.04867).

    Args:
        algorithm: "dpmsolver++" interpolates x0 in log-SNR, "dpmsolver" the noise in log-SNR, "adams"
            the ODE's slope dx / dsigma in sigma, with exact weights whatever the solver_type.
        order: 1, 2 or 3, and with exact weights 4; lowered silently where the steps so far or the list
            don't allow it.
        solver_type: "dpmsolver" ("midpoint") and "taylor" ("heun") are the published weights;
            "exact" integrates the interpolation polynomial exactly and is truly of its order.
        lower_order_final: whether the k-th interval from the end (a final zero aside) has at most
            order k: "on", "off", or "auto", on below 10 intervals.
        lower_long_steps: whether a step that is far longer in lambda_ than the one before it (over 2,
            and over 3 times as long), with which lists even in time may end, has order 1, unless
            lower_order_final is "off". It is better so on flows and with eta above 0, and hosts set
            it there; False keeps to the published formula. The exact order 3 does so in any case.
        schedule: `VarianceExploding()` (default) or `RectifiedFlow()`.
        thresholding: (ratio, maximum) of dynamic thresholding, for pixel-space models.
        eta: 0 solves the ODE; above, fresh noise takes the place of some of the state's. 1 is the
            reverse diffusion SDE. From a flow's sigma = 1 the step is the exact limit: all of the
            noise is fresh for any eta above 0.
        s_noise: multiplies that noise, of which `schedule` says the scale.
        noise_sampler: `noise_sampler(sigma, sigma_next)`, of unit variance, both scalar tensors. By
            default a Brownian path for each image from extra_args["seed"]; see `noise`.
        noise_device: "cpu" draws the same default noise on every machine; "gpu" on the device of x.
        unconditional: returns the unconditional denoised prediction that belongs to the model's last
            call; with it the solver takes its CFG++ form (arXiv 2406.08070), for guidance below 2.
        corrector: "unic" corrects each state by the model output at it, which the next step needs
            anyway: one order more at no call. For the ODE without CFG++. None: no corrector.
        power: of sigma, the variable of the polynomials of "adams", which alone has it: 1 is sigma
            itself; the lower, the more the slope is expected to bend as sigma falls; 0 is log sigma.

    Returns:
        The state at sigmas[-1], shaped like x; a tensor that nothing else holds.

    Raises:
        ValueError: sigmas or a setting is out of its range, or two settings don't go together.
        ImportError: eta is above 0 without a noise_sampler, and torchsde is not installed.
    """
    grid, plan = _multistep_plan(
        sigmas,
        schedule,
        algorithm,
        order,
        solver_type,
        lower_order_final,
        lower_long_steps,
        corrector,
        power,
        eta,
        unconditional is not None,
    )
    _stochastic(eta, s_noise, noise_device)
    x = _state(x)
    noise = _noise(plan, x, grid.schedule, extra_args, noise_sampler, noise_device, s_noise)
    correct = _correction(thresholding)
    total = len(plan.steps)
    with Caller(
        model, total, extra_args, callback, correct, unconditional=unconditional, disable=disable
    ) as caller:
        return run(plan, caller, x, noise, s_noise * grid.schedule.noise_scale)


@torch.no_grad()
def sample_singlestep(
    model: Denoiser,
    x: torch.Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    noise_sampler: NoiseSampler | None = None,
    algorithm: str = "dpmsolver++",
    order: int = 2,
    solver_type: str = "dpmsolver",
    grouping: str = "fast",
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_device: str = "cpu",
    schedule: NoiseSchedule | None = None,
    thresholding: tuple[float, float] | None = None,
) -> torch.Tensor:
    """Singlestep DPM-Solver and DPM-Solver++ ("2S", "3S"): consecutive sigmas are grouped, and the
    inner ones are the nodes of one step, so that this too is one call per interval.

    DPM-Solver (arXiv 2206.00927), algorithms 1 and 2; DPM-Solver++ (arXiv 2211.01095), appendix B.
    With eta above 0, order 2 is what k-diffusion calls DPM++ SDE, and order 1 Euler ancestral.

    Args:
        order: 1, 2 or 3: the size of a group.
        solver_type: "dpmsolver" ("midpoint"), or "taylor" ("heun") and "exact", the same here.
        grouping: "fast", as published, ends in shorter groups; "fixed" uses groups of `order` and
            the remainder as one, which keeps order 3.
        eta: multiplies the standard deviation of the SDE's noise, as in ancestral samplers; for
            orders 1 and 2. At 0 and 1 it means what it means in `sample_multistep`. Between, what is
            left of the start in the result converges at order 1 alone; their distribution does not
            suffer from it.
        algorithm, schedule, thresholding: see `sample_multistep`.
        s_noise, noise_sampler, noise_device: see `sample_multistep`.

    Returns:
        The state at sigmas[-1], shaped like x; a tensor that nothing else holds.

    Raises:
        ValueError: sigmas or a setting is out of its range, or eta is above 0 at order 3.
        ImportError: eta is above 0 without a noise_sampler, and torchsde is not installed.
    """
    settings = (_algorithm(algorithm), _order(order, ORDERS), _solver_type(solver_type))
    one_of("grouping", grouping, GROUPINGS)
    _stochastic(eta, s_noise, noise_device)
    if eta > 0.0 and order == 3:
        raise ValueError(
            f"eta = {eta:g}: the singlestep solver of order 3 has no stochastic form; set order to 1 "
            "or 2, or eta to 0."
        )
    grid = _grid(sigmas, schedule, eta)
    plan = plan_singlestep(grid, *settings, grouping, eta)
    x = _state(x)
    noise = _noise(plan, x, grid.schedule, extra_args, noise_sampler, noise_device, s_noise)
    correct = _correction(thresholding)
    total = len(plan.steps)
    with Caller(model, total, extra_args, callback, correct, disable=disable) as caller:
        return run(plan, caller, x, noise, s_noise * grid.schedule.noise_scale)


def sample_recommended(
    model: Denoiser,
    x: torch.Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    noise_sampler: NoiseSampler | None = None,
    schedule: NoiseSchedule | None = None,
    thresholding: tuple[float, float] | None = None,
) -> torch.Tensor:
    """`sample_multistep` with the form, order and corrector measured best for the number of calls.

    At its best on the sigmas that go with it; see `recommended`.

    Args:
        noise_sampler: as the other samplers have it; no noise is added, and it has no effect.
        sigmas, schedule, thresholding: see `sample_multistep`.

    Raises:
        ValueError: sigmas or a setting is out of its range.
    """
    schedule = _schedule(schedule)
    settings = recommended(schedule, len(read_sigmas(sigmas, schedule)) - 1).settings
    return sample_multistep(
        model,
        x,
        sigmas,
        extra_args,
        callback,
        disable,
        schedule=schedule,
        thresholding=thresholding,
        **settings,
    )


@torch.no_grad()
def sample_calibrated(
    model: Denoiser,
    x: torch.Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    calibration: Calibration,
    schedule: NoiseSchedule | None = None,
) -> torch.Tensor:
    """A solver calibrated on the model: one call per interval.

    Args:
        sigmas: the calibration's own, or the last of them, for image to image: the first steps then
            have the exact weights, until there are as many outputs as the calibrated ones use.
        calibration: see `calibrated`.
        schedule: of the model's kind; by default the calibration's.

    Returns:
        The state at sigmas[-1], shaped like x; a tensor that nothing else holds.

    Raises:
        ValueError: other sigmas, or a model of another kind.
    """
    schedule = calibration.schedule() if schedule is None else _schedule(schedule)
    calibration.fits(schedule)
    plan = calibration.plan(schedule, calibration.start(read_sigmas(sigmas, schedule)))
    x = _state(x)
    with Caller(model, len(plan.steps), extra_args, callback, disable=disable) as caller:
        return run(plan, caller, x)


@torch.no_grad()
def sample_adaptive(
    model: Denoiser,
    x: torch.Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    noise_sampler: NoiseSampler | None = None,
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
    noise_device: str = "cpu",
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
        eta, s_noise, noise_sampler, noise_device: as the other samplers have them; eta must be 0, and
            then the rest has no effect.
        algorithm, solver_type, schedule, thresholding: see `sample_singlestep`.

    Raises:
        ValueError: sigmas or a setting is out of its range, or eta is above 0.
        RuntimeError: the model returned NaN or infinity.
    """
    _stochastic(eta, s_noise, noise_device)
    if eta > 0.0:
        raise ValueError(
            f"eta = {eta:g}: the adaptive solver has no stochastic form; set eta to 0, or take "
            "another sampler."
        )
    if not (isinstance(max_calls, int) and max_calls >= 1):
        raise ValueError(f"max_calls must be a whole number of at least 1, not {max_calls!r}.")
    at_least("rtol", rtol, 0.0)
    at_least("atol", atol, 0.0)
    at_least("h_init", h_init, 0.0)
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
        return (x.clone(), info) if return_info else x.clone()
    pid = {"pcoeff": pcoeff, "icoeff": icoeff, "dcoeff": dcoeff, "accept_safety": accept_safety}
    given: dict[str, Any] = {name: value for name, value in pid.items() if value is not None}
    controller: Controller = PIDController(h_init, **given) if given else AuthorsController(h_init)
    total = len(values) - 1
    with Caller(model, total, extra_args, callback, correct, disable=disable) as caller:
        x, info = run_adaptive(caller, x, values, solver, controller, rtol, atol, max_calls)
    return (x, info) if return_info else x


def _multistep_plan(
    sigmas: Sigmas,
    schedule: NoiseSchedule | None,
    algorithm: str,
    order: int,
    solver_type: str,
    lower_order_final: str,
    lower_long_steps: bool,
    corrector: str | None,
    power: float,
    eta: float,
    cfg_pp: bool,
) -> tuple[Grid, Plan]:
    """Check the settings of `sample_multistep` one by one and together, and plan."""
    one_of("algorithm", algorithm, MULTISTEP_ALGORITHMS)
    solver_type = "exact" if algorithm == "adams" else _solver_type(solver_type)
    if order == 4 and solver_type != "exact":
        raise ValueError(
            'order = 4 has exact weights alone: set solver_type to "exact" or algorithm to "adams", '
            "or order to 3."
        )
    order = _order(order, EXACT_ORDERS)
    one_of("lower_order_final", lower_order_final, LOWER_ORDER_FINAL)
    one_of("corrector", corrector, (None, *CORRECTORS))
    between("power", power, *POWERS)
    between("eta", eta, 0.0, MOST_NOISE)
    if power != 1.0 and algorithm != "adams":
        raise ValueError(f'power = {power:g} is for algorithm = "adams" alone: leave it out.')
    if eta > 0.0 and (corrector or algorithm == "adams"):
        setting = f"corrector = {corrector!r}" if corrector else 'algorithm = "adams"'
        raise ValueError(f"{setting} has no stochastic form: set eta to 0, or choose another.")
    if corrector and cfg_pp:
        raise ValueError(
            f"corrector = {corrector!r} and CFG++ (cfg_pp) exclude each other: switch one of them off."
        )
    grid = _grid(sigmas, schedule, eta)
    plan = plan_multistep(
        grid,
        cast(Algorithm, algorithm),
        order,
        solver_type,
        lower_order_final,
        eta,
        lower_long_steps,
        corrector is not None,
        power,
    )
    return grid, plan.cfg_pp(grid.schedule) if cfg_pp else plan


def _grid(sigmas: Sigmas, schedule: NoiseSchedule | None, eta: float) -> Grid:
    grid = Grid.of(sigmas, _schedule(schedule))
    if eta > 0.0 and not grid.falls:
        raise ValueError(
            f"eta = {eta:g} with rising sigmas: only the ODE runs backwards, so set eta to 0 for "
            "inversion."
        )
    return grid


def _noise(
    plan: Plan,
    x: torch.Tensor,
    schedule: NoiseSchedule,
    extra_args: Mapping[str, Any] | None,
    noise_sampler: NoiseSampler | None,
    device: str,
    s_noise: float,
) -> Noise | None:
    """What draws the plan's noise, or None where it has none."""
    if not plan.noisy or s_noise == 0.0:
        return None
    if noise_sampler is not None:
        return noise_of(noise_sampler, x)
    seed = (extra_args or {}).get("seed")
    return BrownianNoise(x, schedule, seed, cast(NoiseDevice, device))


def _state(x: torch.Tensor) -> torch.Tensor:
    if not x.is_floating_point() or x.numel() == 0 or x.ndim == 0:
        raise ValueError(
            "x (the latent) must be a batch of floating-point images, "
            f"not {x.dtype} of shape {tuple(x.shape)}."
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
    one_of("algorithm", algorithm, ALGORITHMS)
    return cast(Algorithm, algorithm)


def _solver_type(solver_type: str) -> str:
    one_of("solver_type", solver_type, (*SOLVER_TYPES, *SOLVER_TYPE_ALIASES))
    return SOLVER_TYPE_ALIASES.get(solver_type, solver_type)


def _order(order: int, allowed: tuple[int, ...]) -> int:
    one_of("order", order, allowed)
    return int(order)


def _stochastic(eta: float, s_noise: float, noise_device: str) -> None:
    between("eta", eta, 0.0, MOST_NOISE)
    between("s_noise", s_noise, 0.0, MOST_NOISE)
    one_of("noise_device", noise_device, NOISE_DEVICES)
