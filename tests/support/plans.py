"""Makes plans from positional settings, for tests of many plans."""

from __future__ import annotations

from typing import Any

from dpm_solver_nodes.samplers.grid import Grid
from dpm_solver_nodes.samplers.plan import Plan
from dpm_solver_nodes.samplers.solvers.multistep import Multistep
from dpm_solver_nodes.samplers.solvers.singlestep import Singlestep


def plan_multistep(
    grid: Grid,
    algorithm: str,
    order: int,
    solver_type: str,
    lower_order_final: str,
    corrector: bool = False,
    **settings: Any,
) -> Plan:
    return Multistep(
        algorithm=algorithm,
        order=order,
        solver_type=solver_type,
        lower_order_final=lower_order_final,
        corrector="unic" if corrector else None,
        **settings,
    ).plan(grid)


def plan_singlestep(
    grid: Grid, algorithm: str, order: int, solver_type: str, grouping: str, **settings: Any
) -> Plan:
    return Singlestep(
        algorithm=algorithm, order=order, solver_type=solver_type, grouping=grouping, **settings
    ).plan(grid)
