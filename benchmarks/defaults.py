"""The measurements behind the pack's defaults, on the exact digits of `digits.py`.

    python -m dpm_solver_nodes.benchmarks.defaults

Prints, for numbers of model calls, the geometric mean over 32 images of the distance to the converged
solution: which variable to step in on flow models, where uniform log-SNR starts on them, whether
lowering the order of a much longer step helps, and how accurate solvers are on each spacing of
diffusion models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ..lab.metrics import distance
from ..samplers import RectifiedFlow, VarianceExploding, sample_multistep, sample_singlestep
from ..samplers.schedules.sigma_lists import TIME_POWERS, in_time, log_snr
from . import digits

CALLS = (6, 8, 10, 15, 20, 25)
IMAGES = 32
FLOW = RectifiedFlow()
DIFFUSION = VarianceExploding()

Sampler = Callable[..., torch.Tensor]
SOLVERS: dict[str, Sampler] = {
    "2M": partial(sample_multistep, order=2),
    "3M": partial(sample_multistep, order=3),
    "3M exact": partial(sample_multistep, order=3, solver_type="exact"),
    "2S": partial(sample_singlestep, order=2),
    "3S": partial(sample_singlestep, order=3),
    "noise 2M": partial(sample_multistep, order=2, algorithm="dpmsolver"),
}


def flow_list(calls: int, start: Callable[[int], float] | None = None) -> list[float]:
    """Sigmas even in time, or with start: a step from 1 to start(calls), then even in log-SNR."""
    if start is None:
        return [*in_time(digits.flow_sigma, 1.0, 0.001, calls - 1), 0.0]
    return [*log_snr(FLOW, 1.0, digits.flow_sigma(0.001), calls - 1, start(calls)), 0.0]


def diffusion_list(spacing: str, calls: int) -> list[float]:
    levels = digits.diffusion_sigmas()
    if spacing == "logSNR":
        return [*log_snr(DIFFUSION, float(levels[-1]), float(levels[0]), calls - 1), 0.0]
    return [*in_time(digits.diffusion_sigma, 1.0, 0.001, calls - 1, TIME_POWERS[spacing]), 0.0]


def compare(
    title: str,
    model: digits.Denoiser,
    x: torch.Tensor,
    lists: dict[str, Callable[[int], Sequence[float]]],
    samplers: dict[str, Sampler],
    converged: Sequence[float],
    **settings: Any,
) -> None:
    run = partial(SOLVERS["3M exact"], disable=True, lower_order_final="off", **settings)
    target = run(model, x, converged)
    print(f"\n{title}\n{'calls':44s}" + "".join(f"{calls:9d}" for calls in CALLS))
    for spacing, make in lists.items():
        for name, sampler in samplers.items():
            errors = (
                distance(sampler(model, x, make(calls), disable=True), target) for calls in CALLS
            )
            print(f"{spacing:24s}{name:20s}" + "".join(f"{e:9.4f}" for e in errors), flush=True)


def main() -> None:
    starts: dict[str, Callable[[int], float] | None] = {
        "even in time": None,
        "log-SNR from 0.999": lambda calls: digits.flow_sigma(0.999),
        "log-SNR from 1 - 1/4n": lambda calls: digits.flow_sigma(1.0 - 0.25 / calls),
        "log-SNR from 1 - 1/2n": lambda calls: digits.flow_sigma(1.0 - 0.5 / calls),
        "log-SNR from 1 - 1/n": lambda calls: digits.flow_sigma(1.0 - 1.0 / calls),  # the pack's
    }
    x = digits.noise(IMAGES)
    compare(
        "flow, shift 3, guidance 4: the variable (log-SNR or -log sigma) and the first sigma",
        digits.denoiser(flow=True, guidance=4.0),
        x,
        {name: partial(flow_list, start=start) for name, start in starts.items()},
        {
            f"{name}, {variable}": partial(SOLVERS[name], schedule=schedule)
            for name in ("2M", "3M")
            for variable, schedule in (("log-SNR", FLOW), ("-log", DIFFUSION))
        },
        flow_list(1000),
        schedule=FLOW,
    )
    compare(
        "flow, shift 3, guidance 4: a last step far longer than the one before, lowered or not",
        digits.denoiser(flow=True, guidance=4.0),
        x,
        {"even in time": flow_list},
        {
            f"{name}, {label}": partial(SOLVERS[name], schedule=FLOW, **settings)
            for name in ("2M", "3M", "3M exact")
            for label, settings in (
                ("lowered", {"lower_long_steps": True}),
                ("not", {"lower_order_final": "off"}),
            )
        },
        flow_list(1000),
        schedule=FLOW,
    )
    levels = digits.diffusion_sigmas()
    start = x * (1.0 + float(levels[-1]) ** 2) ** 0.5
    for guidance in (0.0, 7.5):
        compare(
            f"Stable Diffusion's schedule, guidance {guidance}: spacings",
            digits.denoiser(flow=False, guidance=guidance),
            start,
            {name: partial(diffusion_list, name) for name in ("logSNR", *TIME_POWERS)},
            SOLVERS,
            diffusion_list("logSNR", 1000),
        )


if __name__ == "__main__":
    main()
