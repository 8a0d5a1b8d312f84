"""diffusers' samplers on the problems, each through its own code, on each of its spacings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .problems import Problem, Process

SPACINGS: dict[str, dict[str, Any]] = {
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
}
SOME = {name: SPACINGS[name] for name in SPACINGS if name != "lu"}
SINGLESTEP: dict[str, dict[str, Any]] = {"linspace": {}} | {
    name: SPACINGS[name] for name in ("karras", "exponential", "beta")
}
LOWERED = {"lower_order_final": True}  # without it, singlestep wants a multiple of its order
SAMPLERS: dict[str, tuple[str, dict[str, dict[str, Any]], dict[str, Any]]] = {
    "DPMSolverMultistep 2": ("DPMSolverMultistep", SPACINGS, {"solver_order": 2}),
    "DPMSolverMultistep 3": ("DPMSolverMultistep", SPACINGS, {"solver_order": 3}),
    "DPMSolverSinglestep 2": ("DPMSolverSinglestep", SINGLESTEP, {"solver_order": 2, **LOWERED}),
    "DPMSolverSinglestep 3": ("DPMSolverSinglestep", SINGLESTEP, {"solver_order": 3, **LOWERED}),
    "DEISMultistep 3": ("DEISMultistep", SOME, {"solver_order": 3}),
    "UniPC 2": ("UniPCMultistep", SOME, {"solver_order": 2}),
    "UniPC 3": ("UniPCMultistep", SOME, {"solver_order": 3}),
}
"""Name -> scheduler class, its spacings on diffusion models, and its settings."""

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "sample",
}


def candidates(process: Process) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Name, spacing, class and settings of each sampler that solves such a process's ODE."""
    flow = {"flow": {"use_flow_sigmas": True, "flow_shift": process.shift}}
    for name, (kind, spacings, settings) in SAMPLERS.items():
        for spacing, own in (flow if process.flow else spacings).items():
            yield name, spacing, f"{kind}Scheduler", {**STABLE_DIFFUSION, **settings, **own}


def result(
    problem: Problem, process: Process, kind: str, settings: Mapping[str, Any], steps: int
) -> tuple[torch.Tensor, int]:
    """The images, and the number of model calls.

    Args:
        process: a flow, or the one named "sd".
    """
    import diffusers

    scheduler = getattr(diffusers, kind)(**settings)
    scheduler.set_timesteps(steps)
    x = problem.noise() * float(scheduler.init_noise_sigma)
    for i, time in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[i])
        alpha = process.alpha(sigma)
        # Its states on diffusion are of variance 1: ours over sqrt(1 + sigma^2).
        scale = 1.0 if process.flow else (1.0 + sigma**2) ** 0.5
        denoised = problem.model(x * scale / alpha, sigma / alpha)
        x = scheduler.step(denoised, time, x).prev_sample
    return x, len(scheduler.timesteps)
