"""The samplers as functions, with the signature that k-diffusion, ComfyUI and webui share.

Each is `sample_*(model, x, sigmas, extra_args=None, callback=None, disable=None, **settings)`:

- `model(x, sigma, **extra_args)` returns the denoised x0, with sigma of shape [batch].
- `x` is the state at sigmas[0], [batch, ...] of any rank. It is kept, handed to the model and returned
  in at least float32, whatever the model returns. It is never changed in place.
- `sigmas` is 1-D, n + 1 noise levels, falling (to 0 or above) or rising (image to noise).
- `callback({"x", "i", "sigma", "sigma_hat", "denoised"})` comes once per model call.
- `disable` hides the progress bar.

On a fixed list of n + 1 sigmas the model is called exactly n times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from .grid import Grid
from .integrate import Callback, Caller, Denoiser, Unconditional, at_least_float32, run
from .noise import BrownianNoise, Noise, NoiseDevice, NoiseSampler, noise_of
from .options import Options
from .plan import Plan
from .schedules.process import NoiseSchedule, VarianceExploding
from .solvers.adaptive import Adaptive, AdaptiveInfo, AdaptiveRun
from .solvers.ancestral import Ancestral
from .solvers.er_sde import ErSde
from .solvers.fitted import Calibrated, Calibration
from .solvers.multistep import Multistep
from .solvers.recommended import Recommended
from .solvers.rows import positions_of
from .solvers.singlestep import Singlestep

Sigmas = torch.Tensor | Sequence[float]


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
    variable: str = "log_snr",
    power: float = 1.0,
    eta: float = 0.0,
    s_noise: float = 1.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    noise_device: str = "cpu",
    schedule: NoiseSchedule | None = None,
    thresholding: tuple[float, float] | None = None,
    unconditional: Unconditional | None = None,
) -> torch.Tensor:
    """Multistep DPM-Solver and DPM-Solver++ ("2M", "3M"): one call per interval.

    DPM-Solver++ (arXiv 2211.01095), algorithm 2 and appendix B; with eta above 0 it is stochastic
    ("2M SDE", "3M SDE"). The corrector is UniC (arXiv 2302.04867).

    Args:
        algorithm: "dpmsolver++" interpolates x0, "dpmsolver" the noise, both in log-SNR, and "adams"
            the ODE's slope dx / dsigma in sigma, with exact weights whatever the solver_type.
        order: 1, 2 or 3, and with exact weights 4; lowered silently where the steps so far or the list
            don't allow it.
        solver_type: "dpmsolver" ("midpoint") and "taylor" ("heun") are the published weights;
            "exact" integrates the interpolation polynomial exactly and is truly of its order.
        lower_order_final: whether the k-th interval from the end (not counting a final zero) has at
            most order k: "on", "off", or "auto", on below 10 intervals.
        lower_long_steps: whether a step that is longer in lambda_ than the one before has order 2 at
            most, and less of its second order the longer it is (see `long_steps`). Lists that are even
            in time end with such a step, and there the published formula may be less accurate than
            Euler's. Hosts set it. False keeps to the published formula, and so does lower_order_final
            "off". Unless that is "off", exact weights of order 3 and 4 are always lowered on long
            steps, and the corrector skips steps that are too long for it. DPM-Solver++ 2M is lowered
            only where that is no less accurate than the published formula, and "auto" does not lower
            its last steps for their number.
        schedule: `VarianceExploding()` (default) or `RectifiedFlow()`.
        thresholding: (ratio, maximum) of dynamic thresholding, for pixel-space models.
        eta: 0 solves the ODE; above 0, fresh noise replaces some of the state's noise. 1 is the
            reverse diffusion SDE. From a flow's sigma = 1 the step is the exact limit: all of the
            noise is fresh for any eta above 0.
        s_noise: multiplies that noise, whose scale `schedule` gives.
        s_tmin, s_tmax: noise is added only by steps to a sigma between these two; the others are
            those of the ODE. k-diffusion's Euler has the same names for the range of its noise.
        noise_sampler: `noise_sampler(sigma, sigma_next)` returns noise of unit variance for two scalar
            tensors. By default each image has a Brownian path from extra_args["seed"]; see `noise`.
        noise_device: "cpu" draws the same default noise on every machine; "gpu" draws it on the device
            of x.
        unconditional: a function that returns the unconditional denoised prediction of the model's
            last call. With it the solver uses CFG++ (arXiv 2406.08070), for guidance below 2.
        corrector: "unic" corrects each state by the model output there, which the next step needs
            anyway: one order more without a further call. For the ODE without CFG++. None: no
            corrector.
        variable: "log_snr", as published, or for the ODE with "dpmsolver++" "log_sigma", as
            k-diffusion has it. They differ only on flows: in log sigma the output at sigma = 1 serves
            the next steps, in log-SNR it lies infinitely far away. Hosts set "log_sigma" for 2M, for
            which it measures better on their lists.
        power: only for "adams": its polynomials run in this power of sigma. 1 is sigma itself; the
            lower, the more the slope is expected to bend as sigma falls; 0 is log sigma.

    Returns:
        The state at sigmas[-1], shaped like x; a tensor that nothing else holds.

    Raises:
        ValueError: sigmas or a setting is out of its range, or two settings don't go together.
    """
    options = Multistep(
        algorithm=algorithm,
        order=order,
        solver_type=solver_type,
        lower_order_final=lower_order_final,
        lower_long_steps=lower_long_steps,
        corrector=corrector,
        variable=variable,
        power=power,
        eta=eta,
        s_noise=s_noise,
        s_tmin=s_tmin,
        s_tmax=s_tmax,
        noise_device=noise_device,
        thresholding=thresholding,
        cfg_pp=unconditional is not None,
    )
    given = (model, x, sigmas, extra_args, callback, disable)
    return sample(
        options, *given, schedule=schedule, noise_sampler=noise_sampler, unconditional=unconditional
    )


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
    lower_long_steps: bool = False,
    r: float | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    noise_device: str = "cpu",
    schedule: NoiseSchedule | None = None,
    thresholding: tuple[float, float] | None = None,
) -> torch.Tensor:
    """Singlestep DPM-Solver and DPM-Solver++ ("2S", "3S"): one call per interval.

    Consecutive sigmas form a group, and its inner sigmas are the nodes of one step.

    DPM-Solver (arXiv 2206.00927), algorithms 1 and 2; DPM-Solver++ (arXiv 2211.01095), appendix B.
    With eta above 0, order 2 is what k-diffusion calls DPM++ SDE, and order 1 Euler ancestral.

    Args:
        order: 1, 2 or 3: the size of a group.
        solver_type: "dpmsolver" ("midpoint"), or "taylor" ("heun") or "exact", the same here.
        grouping: "fast", as published, ends in shorter groups; "fixed" uses groups of `order` and
            the remainder as one, which keeps order 3.
        lower_long_steps: whether a group is split into shorter ones if an interval is longer in
            lambda_ than the one before, or an inner node is too far away (see `long_steps`). Hosts
            set it; False keeps to the published groups. With rising sigmas, for which nothing is
            published, groups are always split so.
        r: where the inner node of a group of order 2 lies, as a share of the group in lambda_, as in
            k-diffusion's DPM++ SDE. None: at the listed sigma. With a number the model is called there
            in place of the listed sigma.
        eta: multiplies the standard deviation of the SDE's noise, as in ancestral samplers; for
            orders 1 and 2. At 0 and 1 it has the same meaning as in `sample_multistep`. In between a
            single result converges at order 1 only; the distribution of results is not affected.
        algorithm, schedule, thresholding: see `sample_multistep`.
        s_noise, s_tmin, s_tmax, noise_sampler, noise_device: see `sample_multistep`.

    Returns:
        The state at sigmas[-1], shaped like x; a tensor that nothing else holds.

    Raises:
        ValueError: sigmas or a setting is out of its range, or eta is above 0 at order 3.
    """
    options = Singlestep(
        algorithm=algorithm,
        order=order,
        solver_type=solver_type,
        grouping=grouping,
        lower_long_steps=lower_long_steps,
        r=r,
        eta=eta,
        s_noise=s_noise,
        s_tmin=s_tmin,
        s_tmax=s_tmax,
        noise_device=noise_device,
        thresholding=thresholding,
    )
    given = (model, x, sigmas, extra_args, callback, disable)
    return sample(options, *given, schedule=schedule, noise_sampler=noise_sampler)


def sample_ancestral(
    model: Denoiser,
    x: torch.Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    noise_sampler: NoiseSampler | None = None,
    order: int = 2,
    eta: float = 1.0,
    s_noise: float = 1.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    noise_device: str = "cpu",
    schedule: NoiseSchedule | None = None,
    thresholding: tuple[float, float] | None = None,
    unconditional: Unconditional | None = None,
) -> torch.Tensor:
    """DPM++ 2S ancestral, and Euler ancestral at order 1: one call per interval.

    The formulas of k-diffusion and, on flows, of ComfyUI; see `solvers.ancestral`.

    Args:
        order: 2 takes pairs of intervals, a pair as one step of theirs. The model is called at the
            first sigma of a pair and then between there and below the last one, for which the listed
            sigma between them is not used.
        eta: from 0, the ODE, to 1; it multiplies the standard deviation of the noise, on flows the
            length of the way down.
        noise_sampler, s_noise, s_tmin, s_tmax, noise_device: see `sample_multistep`.
        schedule, thresholding, unconditional: see `sample_multistep`.

    Returns:
        The state at sigmas[-1], shaped like x; a tensor that nothing else holds.

    Raises:
        ValueError: sigmas or a setting is out of its range.
    """
    options = Ancestral(
        order=order,
        eta=eta,
        s_noise=s_noise,
        s_tmin=s_tmin,
        s_tmax=s_tmax,
        noise_device=noise_device,
        thresholding=thresholding,
        cfg_pp=unconditional is not None,
    )
    given = (model, x, sigmas, extra_args, callback, disable)
    return sample(
        options, *given, schedule=schedule, noise_sampler=noise_sampler, unconditional=unconditional
    )


def sample_er_sde(
    model: Denoiser,
    x: torch.Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    noise_sampler: NoiseSampler | None = None,
    order: int = 3,
    noise_type: str = "er_sde",
    integrals: str = "published",
    eta: float = 1.0,
    s_noise: float = 1.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    noise_device: str = "cpu",
    schedule: NoiseSchedule | None = None,
    thresholding: tuple[float, float] | None = None,
    unconditional: Unconditional | None = None,
) -> torch.Tensor:
    """ER-SDE: stochastic multistep solvers that add less noise; one call per interval.

    arXiv 2309.06169, with the formulas of its authors' code and of ComfyUI; see `solvers.er_sde`.

    Args:
        order: 1, 2 or 3: how many model outputs a step combines.
        noise_type: "er_sde", the paper's function of the noise, or "reverse_time", that of the SDE
            which `sample_multistep` solves.
        integrals: "published", sums of 200 terms, or "exact".
        eta: how much of that noise is added: 0 solves the ODE, 1 is as published.
        noise_sampler, s_noise, s_tmin, s_tmax, noise_device: see `sample_multistep`.
        schedule, thresholding, unconditional: see `sample_multistep`.

    Returns:
        The state at sigmas[-1], shaped like x; a tensor that nothing else holds.

    Raises:
        ValueError: sigmas or a setting is out of its range.
    """
    options = ErSde(
        order=order,
        noise_type=noise_type,
        integrals=integrals,
        eta=eta,
        s_noise=s_noise,
        s_tmin=s_tmin,
        s_tmax=s_tmax,
        noise_device=noise_device,
        thresholding=thresholding,
        cfg_pp=unconditional is not None,
    )
    given = (model, x, sigmas, extra_args, callback, disable)
    return sample(
        options, *given, schedule=schedule, noise_sampler=noise_sampler, unconditional=unconditional
    )


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
    """The sampler to start with: step weights that were fitted on many models, one call per interval.

    They belong to the list of `NetworkDenoiser.sigmas` with spacing "recommended" (without such a
    model, of `solvers.recommended_lists.recommended_sigmas`), or a part of it. Any other list gets
    weights made for it (`any_list`). The size of x decides which weights are taken.

    Args:
        noise_sampler: no effect, as no noise is added; only hosts need it.
        sigmas, schedule, thresholding: see `sample_multistep`.

    Raises:
        ValueError: sigmas or a setting is out of its range.
    """
    options = Recommended(thresholding=thresholding, positions=positions_of(x.shape))
    return sample(options, model, x, sigmas, extra_args, callback, disable, schedule=schedule)


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
        sigmas: the calibration's own, or the last of them for image to image. The first steps then
            have exact weights, until there are as many outputs as the calibrated weights use.
        calibration: see `solvers.fitted`.
        schedule: the model's noise schedule; by default the calibration's.

    Returns:
        The state at sigmas[-1], shaped like x; a tensor that nothing else holds.

    Raises:
        ValueError: the sigmas or the schedule are not the calibration's.
    """
    schedule = calibration.schedule() if schedule is None else schedule
    options = Calibrated(calibration=calibration).on(schedule)
    return sample(options, model, x, sigmas, extra_args, callback, disable, schedule=schedule)


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

    DPM-Solver (arXiv 2206.00927), appendix C. It goes from sigmas[0] to sigmas[-1]. If that is 0, it
    goes to min(last sigma above zero, schedule.sigma_min if known) and denoises there. The error is
    measured per image on the variance-preserving scale, and the worst image decides.

    Args:
        order: 2 (DPM-Solver-12) or 3 (DPM-Solver-23).
        rtol, atol: the tolerance is max(atol, rtol * |state|).
        h_init: size of the first step, in lambda_.
        pcoeff, icoeff, dcoeff, accept_safety: if any is given, k-diffusion's PID controller replaces
            the authors' (its defaults: 0, 1, 0, 0.81).
        max_calls: never exceeded. If it runs short, the remaining interval is covered in the calls
            that are left, with one warning in the log.
        callback: its i follows the progress in lambda_, from 0 to len(sigmas) - 2.
        return_info: return (x, info), info with nfe, accepted, rejected and sigmas.
        eta, s_noise, noise_sampler, noise_device: eta must be 0, and the others have no effect. Only
            hosts need them.
        algorithm, solver_type, schedule, thresholding: see `sample_singlestep`.

    Raises:
        ValueError: sigmas or a setting is out of its range, or eta is above 0.
        RuntimeError: the model returned NaN or infinity.
    """
    options = Adaptive(
        algorithm=algorithm,
        order=order,
        solver_type=solver_type,
        rtol=rtol,
        atol=atol,
        h_init=h_init,
        pcoeff=pcoeff,
        icoeff=icoeff,
        dcoeff=dcoeff,
        accept_safety=accept_safety,
        max_calls=max_calls,
        eta=eta,
        s_noise=s_noise,
        noise_device=noise_device,
        thresholding=thresholding,
    )
    grid, x = _grid(sigmas, schedule), _state(x)
    with Caller(
        model, grid.calls, extra_args, callback, options.threshold, disable=disable
    ) as caller:
        x, info = _run_adaptive(options, caller, x, grid)
    return (x, info) if return_info else x


@torch.no_grad()
def sample(
    options: Options,
    model: Denoiser,
    x: torch.Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    noise_sampler: NoiseSampler | None = None,
    schedule: NoiseSchedule | None = None,
    unconditional: Unconditional | None = None,
) -> torch.Tensor:
    """Run a sampler with settings given as one value; the `sample_*` functions call this.

    Args:
        options: the settings of a family of solvers, such as `Multistep` or `Recommended`.
        noise_sampler, schedule: see `sample_multistep`.
        unconditional: see `sample_multistep`; needed if `options.needs_unconditional`.

    Returns:
        The state at sigmas[-1], shaped like x; a tensor that nothing else holds.

    Raises:
        ValueError: the sigmas are out of their range, or don't go with the settings.
    """
    grid = _grid(sigmas, schedule)
    plan = options.plan(grid)
    x = _state(x)
    caller = Caller(
        model, grid.calls, extra_args, callback, options.threshold, unconditional, disable
    )
    with caller:
        if isinstance(options, Adaptive):
            return _run_adaptive(options, caller, x, grid)[0]
        assert plan is not None
        noise = _noise(plan, options, x, grid.schedule, caller.extra_args, noise_sampler)
        return run(plan, caller, x, noise, options.s_noise * grid.schedule.noise_scale)


def _run_adaptive(
    options: Adaptive, caller: Caller, x: torch.Tensor, grid: Grid
) -> tuple[torch.Tensor, AdaptiveInfo]:
    if grid.calls:
        return AdaptiveRun(options, caller, x, grid).run()
    return x.clone(), AdaptiveInfo(nfe=0, accepted=0, rejected=0, sigmas=list(grid.sigmas))


def _grid(sigmas: Sigmas, schedule: NoiseSchedule | None) -> Grid:
    if schedule is not None and not isinstance(schedule, NoiseSchedule):
        raise ValueError(
            f"schedule must be VarianceExploding() or RectifiedFlow(), not {schedule!r}."
        )
    return Grid.of(sigmas, schedule or VarianceExploding())


def _noise(
    plan: Plan,
    options: Options,
    x: torch.Tensor,
    schedule: NoiseSchedule,
    extra_args: Mapping[str, Any],
    noise_sampler: NoiseSampler | None,
) -> Noise | None:
    """The source of the plan's noise; None if the plan adds none."""
    if not plan.noisy or options.s_noise == 0.0:
        return None
    if noise_sampler is not None:
        return noise_of(noise_sampler, x)
    device = cast(NoiseDevice, options.noise_device)
    return BrownianNoise(x, schedule, extra_args.get("seed"), device)


def _state(x: torch.Tensor) -> torch.Tensor:
    if not x.is_floating_point() or x.numel() == 0 or x.ndim == 0:
        raise ValueError(
            "x (the latent) must be a batch of floating-point images, "
            f"not {x.dtype} of shape {tuple(x.shape)}."
        )
    return at_least_float32(x)
