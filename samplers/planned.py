"""The plan that a sampler function would run, without running it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from .calibrated import Calibration
from .exponential import Algorithm
from .plan import Grid, Plan, read_sigmas
from .recommended import recommended
from .sample import (
    SOLVER_TYPE_ALIASES,
    Sigmas,
    _multistep_plan,
    sample_calibrated,
    sample_multistep,
    sample_recommended,
    sample_singlestep,
)
from .schedule import VarianceExploding
from .singlestep import plan_singlestep


def plan_of(
    function: Callable[..., Any], sigmas: Sigmas, settings: Mapping[str, Any], cfg_pp: bool = False
) -> Plan | None:
    """The plan of one of `sample_*` on a list of sigmas.

    Args:
        function: a sampler function, or a `functools.partial` of one.
        settings: its keyword arguments; the schedule is among them.
        cfg_pp: in its CFG++ form.

    Returns:
        None where there is no plan beforehand: the adaptive solver makes it as it goes.

    Raises:
        ValueError: sigmas or a setting is out of its range.
    """
    given: dict[str, Any] = {}
    while isinstance(function, partial):
        given = {**function.keywords, **given}
        function = function.func
    if function is sample_calibrated:
        calibration: Calibration = {**given, **settings}["calibration"]
        schedule = settings.get("schedule") or calibration.schedule()
        return calibration.plan(schedule, calibration.start(read_sigmas(sigmas, schedule)))
    if function is sample_recommended:
        schedule = settings.get("schedule") or VarianceExploding()
        given = {**recommended(schedule, len(sigmas) - 1).settings, **given}
        function = sample_multistep
    if function not in (sample_multistep, sample_singlestep):
        return None
    defaults = {name: one.default for name, one in inspect.signature(function).parameters.items()}
    chosen = {**defaults, **given, **settings}
    if function is sample_multistep:
        names = ["schedule", "algorithm", "order", "solver_type", "lower_order_final"]
        names += ["lower_long_steps", "corrector", "power", "eta"]
        taken = {name: chosen[name] for name in names}
        return _multistep_plan(sigmas, **taken, cfg_pp=cfg_pp)[1]
    grid = Grid.of(sigmas, chosen["schedule"] or VarianceExploding())
    solver_type = SOLVER_TYPE_ALIASES.get(chosen["solver_type"], chosen["solver_type"])
    common = (cast(Algorithm, chosen["algorithm"]), int(chosen["order"]), solver_type)
    lowers = chosen["lower_long_steps"] or not grid.falls
    return plan_singlestep(grid, *common, chosen["grouping"], chosen["eta"], lowers)
