"""One sampler for each path through the code: what a test of the loop runs, instead of every setting.

The settings that are left out differ from one of these in the numbers of their plan only, which
test_plans.py and test_order.py check for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from dpm_solver_nodes.samplers import (
    Calibration,
    sample_adaptive,
    sample_ancestral,
    sample_calibrated,
    sample_er_sde,
    sample_multistep,
    sample_recommended,
    sample_singlestep,
)
from dpm_solver_nodes.samplers.plan import Weights
from dpm_solver_nodes.tests.support.mixture import Sampler

NOISE_FORM: dict[str, Any] = {"algorithm": "dpmsolver"}
MULTISTEP: dict[str, dict[str, Any]] = {
    "1M": {"order": 1},
    "2M": {},
    "2M taylor, order kept": {"solver_type": "taylor", "lower_order_final": "off"},
    "3M taylor": {"order": 3, "solver_type": "taylor"},
    "3M exact": {"order": 3, "solver_type": "exact"},  # it starts with a singlestep group
    "2M noise": NOISE_FORM,
    "3M noise exact": {**NOISE_FORM, "order": 3, "solver_type": "exact"},
    "2M corrected": {"corrector": "unic"},
    "3M noise exact corrected": {
        **NOISE_FORM,
        "order": 3,
        "solver_type": "exact",
        "corrector": "unic",
    },
    "adams 3": {"algorithm": "adams", "order": 3},
    "adams 4 corrected": {"algorithm": "adams", "order": 4, "corrector": "unic"},
}
SINGLESTEP: dict[str, dict[str, Any]] = {
    "2S": {},
    "2S noise taylor": {**NOISE_FORM, "solver_type": "taylor"},
    "3S": {"order": 3},
    "3S fixed": {"order": 3, "grouping": "fixed"},
    "3S noise fixed exact": {
        **NOISE_FORM,
        "order": 3,
        "grouping": "fixed",
        "solver_type": "exact",
    },
}
SDE: dict[str, Sampler] = {
    "2M SDE": partial(sample_multistep, eta=1.0),
    "3M SDE noise": partial(sample_multistep, eta=0.5, order=3, **NOISE_FORM),
    "2S SDE": partial(sample_singlestep, eta=1.0),
    "2S SDE, r": partial(sample_singlestep, eta=1.0, r=0.4),
    "2M SDE, late": partial(sample_multistep, eta=1.0, s_tmax=0.5),
    "ER-SDE": sample_er_sde,
    "2S ancestral": sample_ancestral,
}


def with_noise(sampler: Sampler) -> Sampler:
    """A stochastic sampler that is given the same noise at each step, alike for every image."""

    def sample(model: Any, x: torch.Tensor, *arguments: Any, **settings: Any) -> Any:
        image = torch.linspace(-1.0, 1.0, x[0].numel()).reshape(x.shape[1:])
        noise = image.expand(x.shape).to(x.device, torch.promote_types(x.dtype, torch.float32))
        return sampler(model, x, *arguments, noise_sampler=lambda *_: noise, **settings)

    return sample


def with_guidance(sampler: Sampler) -> Sampler:
    """A CFG++ sampler whose unconditional prediction is nine tenths of the model's output."""

    def sample(model: Any, *arguments: Any, **settings: Any) -> Any:
        last: list[torch.Tensor] = []

        def seen(x: torch.Tensor, sigma: torch.Tensor, **extra_args: Any) -> torch.Tensor:
            last[:] = [model(x, sigma, **extra_args)]
            return last[0]

        return sampler(seen, *arguments, unconditional=lambda: 0.9 * last[0], **settings)

    return sample


def calibrated(
    model: Any, x: torch.Tensor, sigmas: Any, *arguments: Any, schedule: Any = None, **settings: Any
) -> Any:
    """A calibrated solver whose sigmas are these; they end at 0, which is added if it is missing."""
    values = tuple(map(float, sigmas))
    values += () if values[-1] == 0.0 else (0.0,)
    widths = [after - before for before, after in pairwise(values)]
    steps = [Weights(1.0, (widths[0],))]
    steps += [Weights(1.0, (1.4 * width, -0.4 * width)) for width in widths[1:-1]]
    steps += [Weights(1.0, (widths[-1],))] * (len(widths) > 1)
    kind = "flow" if schedule is not None and schedule.sigma_limit == 1.0 else "diffusion"
    calibration = Calibration(kind, values, tuple(steps))
    return sample_calibrated(model, x, values, *arguments, calibration=calibration, **settings)


def without_progress_bar(samplers: Mapping[str, Sampler]) -> dict[str, Sampler]:
    return {name: partial(sampler, disable=True) for name, sampler in samplers.items()}


ODE = without_progress_bar(
    {name: partial(sample_multistep, **settings) for name, settings in MULTISTEP.items()}
    | {name: partial(sample_singlestep, **settings) for name, settings in SINGLESTEP.items()}
)
"""They take any list of sigmas, and solve the model's own equation."""

FIXED = ODE | without_progress_bar(
    {name: with_noise(sampler) for name, sampler in SDE.items()}
    | {
        "2M CFG++": with_guidance(sample_multistep),
        "2S ancestral CFG++": with_noise(with_guidance(sample_ancestral)),
        "2M SDE noise CFG++": with_noise(
            with_guidance(partial(sample_multistep, eta=1.0, **NOISE_FORM))
        ),
    }
)
"""They take any list of sigmas."""

OFF_THE_LIST = ("2S SDE, r", "2S ancestral", "2S ancestral CFG++")
"""They call the model at a sigma of their own within each pair of intervals."""

CHOSEN = without_progress_bar({"recommended": sample_recommended})
"""The number of sigmas chooses the solver."""

CALIBRATED = without_progress_bar({"calibrated": calibrated})
"""Their list falls and ends at 0."""

ADAPTIVE = without_progress_bar(
    {
        "adaptive 12": partial(sample_adaptive, order=2),
        "adaptive 23 noise": partial(sample_adaptive, order=3, **NOISE_FORM),
    }
)

ALL = FIXED | CHOSEN | CALIBRATED | ADAPTIVE

CHOSEN_IDS = (
    *("dpm_solver++_recommended", "dpm_solver++_2m", "dpm_solver_3m_exact", "dpm_solver++_3s"),
    *("dpm_solver++_adaptive_23", "sde_dpm_solver++_3m", "sde_dpm_solver_2s"),
    *("dpm_solver++_er_sde", "dpm_solver++_2s_ancestral"),
    *("dpm_solver++_er_sde_cfg_pp", "dpm_solver++_2s_ancestral_cfg_pp"),
    *("dpm_solver++_2m_cfg_pp", "sde_dpm_solver++_2m_cfg_pp"),
)
"""Those that stand for the whole catalogue where `--few-samplers` says so (see conftest.py)."""
