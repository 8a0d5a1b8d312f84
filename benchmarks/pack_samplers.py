"""This pack's candidates for `quality.py`, in one table.

To add one, add a line to OURS: a function of a scenario and a number of model calls that returns a
sampler, such as `samplers.sample_*`, and its sigmas. It is called once per scenario and number of
calls. Model calls that it makes itself (of `scenario.make(classes=...)`) are preparation and not
counted. A name "sampler, spacing" is shown in two columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..lab.calibration import calibrate
from ..lab.calibration.teacher import teacher_sigmas
from ..samplers.catalog import CATALOG, Entry
from ..samplers.sample import sample, sample_calibrated, sample_recommended
from ..samplers.schedules.sigma_lists import SPACINGS, TIME_POWERS, in_time
from ..samplers.solvers.recommended_lists import recommended_sigmas
from .peers import Candidate, Omitted, Run, host, host_sigmas
from .scenarios import LAST_TIME, Counted, Scenario

FAMILY = "ours"
Sampler = Callable[..., torch.Tensor]
Sigmas = Sequence[float] | torch.Tensor
Build = Callable[[Scenario, int], tuple[Sampler, Sigmas]]


def sampler_of(entry: Entry, scenario: Scenario) -> Sampler:
    """The sampler of an entry, as hosts run it on such a model."""
    return partial(sample, entry.options.on(scenario.schedule), schedule=scenario.schedule)


def spaced(spacing: str, scenario: Scenario, calls: int) -> list[float]:
    """Sigmas for this number of calls: one of SPACINGS from sigma_max to sigma_min, and 0."""
    if spacing not in TIME_POWERS:
        return scenario.log_snr(calls)
    times = (1.0, LAST_TIME, calls - 1, TIME_POWERS[spacing])
    return [*in_time(scenario.sigma_of_time, *times), 0.0]


def _on_spacing(
    entry: Entry, spacing: str, scenario: Scenario, calls: int
) -> tuple[Sampler, Sigmas]:
    return sampler_of(entry, scenario), spaced(spacing, scenario, calls)


def _on_scheduler(
    entry: Entry, scheduler: str, scenario: Scenario, steps: int
) -> tuple[Sampler, Sigmas]:
    return sampler_of(entry, scenario), host_sigmas(scenario.flow, scheduler, steps)


_FIXED = [
    entry for entry in CATALOG if not entry.stochastic and not entry.cfg_pp and not entry.adaptive
]

OURS: dict[str, Build] = {
    f"{entry.id}, {spacing}": partial(_on_spacing, entry, spacing)
    for entry in _FIXED
    for spacing in SPACINGS
}
FIT_SEED, FIT_CLASSES = 1000, (0, 3, 5)
"""The noises and classes that calibrations are fitted on; most measured images are of others."""


def recommended(scenario: Scenario, calls: int) -> tuple[Sampler, Sigmas]:
    ends = scenario.sigma_max, scenario.sigma_min
    sigmas = recommended_sigmas(scenario.schedule, *ends, calls)
    return partial(sample_recommended, schedule=scenario.schedule), sigmas


def calibrated(scenario: Scenario, calls: int) -> tuple[Sampler, Sigmas]:
    """A solver calibrated with the node's defaults: 20 seeds, 8 held out, 12000 model calls."""
    sampler, sigmas = recommended(scenario, calls)
    ends = scenario.sigma_max, scenario.sigma_min
    starts = scenario.start(scenario.noise(28, FIT_SEED))
    (result,) = calibrate.calibrate(
        [Counted(scenario.make(classes=FIT_CLASSES))],
        starts[:20],
        starts[20:],
        lambda _: {"recommended": lambda model, x: sampler(model, x, sigmas, disable=True)},
        calibrate.Settings(
            scenario.schedule, teacher_sigmas(scenario.schedule, *ends), [calls], batch=len(starts)
        ),
    )
    if result.best != calibrate.CALIBRATED:
        return sampler, sigmas
    found = result.calibration
    return partial(sample_calibrated, calibration=found, schedule=scenario.schedule), found.sigmas


OURS["recommended"] = recommended
OURS["calibrated"] = calibrated
ALWAYS = ("recommended", "calibrated")
"""Samplers of OURS that run in every scenario, even if they are not among the best elsewhere."""


def prepare(build: Build, scenario: Scenario, calls: int) -> Run:
    """The candidate's run from the scenario's start."""
    sampler, sigmas = build(scenario, calls)

    def run(model: Counted, noise: torch.Tensor) -> torch.Tensor:
        return sampler(model, scenario.start(noise), sigmas, disable=True)

    return run


def our_candidates(scenario: Scenario) -> tuple[list[Candidate], list[Omitted]]:
    """OURS, and the catalogue's samplers with ComfyUI's schedulers."""
    found = [
        Candidate(FAMILY, *_columns(name), partial(prepare, build), as_asked=True)
        for name, build in OURS.items()
    ]
    found += [
        Candidate(
            FAMILY, entry.id, scheduler, partial(prepare, partial(_on_scheduler, entry, scheduler))
        )
        for entry in _FIXED
        for scheduler in host().samplers.SCHEDULER_NAMES
    ]
    omitted = [
        Omitted(FAMILY, entry.id, "stochastic, adaptive or CFG++: no fixed steps of this ODE")
        for entry in CATALOG
        if entry not in _FIXED
    ]
    return found, omitted


def _columns(name: str) -> tuple[str, str]:
    sampler, _, scheduler = name.partition(", ")
    return sampler, scheduler
