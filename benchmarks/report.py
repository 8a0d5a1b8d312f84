"""The text that `quality.py` prints: tables of the best, ratios, targets, and what did not run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .measure import Cell, best
from .pack_samplers import ALWAYS, FAMILY
from .peers import COMFY, Omitted
from .scenarios import SCENARIOS

ROWS = 15
"""How many of a scenario's samplers are shown; the JSON file has all."""

Best = Mapping[int, Cell | None]
"""By budget."""


@dataclass(frozen=True)
class Target:
    """A target for a candidate of ours.

    Attributes:
        at_most: calls -> the largest error, as a fraction of the best peer's.
        models: the start of the scenarios' names.
    """

    sampler: str
    at_most: Mapping[int, float]
    models: str


TARGETS = (
    *(
        Target("recommended", {5: 1.0, 8: 1.0, 10: 1.0, 15: 0.5, 20: 0.5, 25: 0.5}, model)
        for model in ("digits", "demo")
    ),
    Target("calibrated", dict.fromkeys((5, 8, 10), 0.5), "digits"),
    Target("calibrated", dict.fromkeys((5, 8, 10), 0.7), "demo"),
)
TWO_M = "dpmpp_2m"
OVERTAKES = {"digits": {5: 12, 8: 20, 10: 25}, "demo": {5: 10, 10: 20}}
"""Calls of "calibrated" -> those of ComfyUI's dpmpp_2m, with its best scheduler, to be below."""


def best_by_calls(cells: Iterable[Cell], keep: Callable[[Cell], bool] = lambda _: True) -> Best:
    found: dict[int, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.calls, [])
        if keep(cell):
            found[cell.calls].append(cell)
    return {calls: best(some) for calls, some in sorted(found.items())}


def peers(cell: Cell) -> bool:
    return cell.family != FAMILY


def ours(cell: Cell) -> bool:
    return cell.family == FAMILY


def named(family: str, sampler: str) -> Callable[[Cell], bool]:
    return lambda cell: (cell.family, cell.sampler) == (family, sampler)


def mean(cell: Cell | None) -> float | None:
    return None if cell is None else cell.mean


def ratios(some: Best, others: Best) -> dict[int, float | None]:
    """The quotients of the errors, if both have one."""
    found: dict[int, float | None] = {}
    for calls, cell in some.items():
        value, other = mean(cell), mean(others.get(calls))
        found[calls] = value / other if value is not None and other else None
    return found


def report(
    title: str,
    cells: Sequence[Cell],
    omitted: Sequence[Omitted],
    converged_to: Mapping[str, float],
) -> str:
    parts = [title]
    for name, error in converged_to.items():
        found = [cell for cell in cells if cell.scenario == name]
        if found:
            parts.append(_scenario(name, found, error))
    parts += [_targets(cells), _not_run(cells, omitted)]
    return "\n\n".join(part for part in parts if part)


def _scenario(name: str, cells: Sequence[Cell], error: float) -> str:
    peer, own = best_by_calls(cells, peers), best_by_calls(cells, ours)
    lines = [
        f"{SCENARIOS[name].title}: geometric mean of the distance; solution converged to {error:.1e}",
        f"{'calls':44s}" + "".join(f"{calls:9d}" for calls in peer),
        _row("best peer", {calls: mean(cell) for calls, cell in peer.items()}),
    ]
    families = dict.fromkeys(cell.family for cell in cells if peers(cell))
    for family in families:
        its = best_by_calls(cells, lambda cell, family=family: cell.family == family)  # type: ignore[misc]
        lines.append(_row(f"best of {family}", {calls: mean(cell) for calls, cell in its.items()}))
    two_m = best_by_calls(cells, named(COMFY, TWO_M))
    lines.append(
        _row(
            f"{COMFY} {TWO_M}, best scheduler", {calls: mean(cell) for calls, cell in two_m.items()}
        )
    )
    shown = {"best of ours": own}
    shown |= {f"ours {who}": best_by_calls(cells, named(FAMILY, who)) for who in ALWAYS}
    for label, found in shown.items():
        if any(found.values()):
            lines.append(_row(label, {calls: mean(cell) for calls, cell in found.items()}))
            lines.append(_row("  / best peer", ratios(found, peer), "9.2f"))
    lines.append("which they are, with median and 90th percentile")
    for calls in peer:
        lines += [
            f"  {calls:2d} {_who(cell):60s}{cell.mean:9.4f}{cell.median:9.4f}{cell.p90:9.4f}"
            for cell in (peer[calls], own.get(calls))
            if cell is not None
        ]
    lines.append("samplers, each at its best scheduler")
    lines += [_row(f"  {label}", values) for label, values in _ranked(cells, peer)]
    return "\n".join(lines)


def _ranked(cells: Sequence[Cell], peer: Best) -> list[tuple[str, dict[int, float | None]]]:
    """The samplers, sorted by their mean distance to the best peer."""
    found = []
    for family, sampler in dict.fromkeys((cell.family, cell.sampler) for cell in cells):
        its = best_by_calls(cells, named(family, sampler))
        known = [ratio for ratio in ratios(its, peer).values() if ratio]
        if known:
            missing = len(its) - len(known)
            rank = missing, sum(map(math.log, known)) / len(known)
            found.append((rank, f"{family} {sampler}", {c: mean(cell) for c, cell in its.items()}))
    return [(label, values) for _, label, values in sorted(found, key=lambda row: row[0])[:ROWS]]


def _row(label: str, values: Mapping[int, float | None], form: str = "9.4f") -> str:
    return f"{label:44s}" + "".join(
        f"{'-':>9s}" if value is None else f"{value:{form}}" for value in values.values()
    )


def _who(cell: Cell) -> str:
    used = "" if cell.used == cell.calls else f" ({cell.used} calls)"
    return f"{cell.family} {cell.name}{used}"


def _targets(cells: Sequence[Cell]) -> str:
    lines = []
    for name in dict.fromkeys(cell.scenario for cell in cells):
        found = [cell for cell in cells if cell.scenario == name]
        model = name.partition("-")[0]
        peer, two_m = best_by_calls(found, peers), best_by_calls(found, named(COMFY, TWO_M))
        for target in TARGETS:
            own = best_by_calls(found, named(FAMILY, target.sampler))
            for calls, ratio in ratios(own, peer).items():
                if target.models == model and ratio is not None and calls in target.at_most:
                    what = f"{name}: {target.sampler} / best peer at {calls} calls"
                    lines.append(_verdict(what, ratio, target.at_most[calls]))
        calibrated = best_by_calls(found, named(FAMILY, "calibrated"))
        for few, many in OVERTAKES.get(model, {}).items():
            value, other = mean(calibrated.get(few)), mean(two_m.get(many))
            if value is not None and other:
                what = f"{name}: calibrated at {few} / {TWO_M} at {many} calls"
                lines.append(_verdict(what, value / other, 1.0))
    return "\n".join(["targets", *lines]) if lines else ""


def _verdict(what: str, value: float, at_most: float) -> str:
    verdict = "met" if value <= at_most else "NOT met"
    return f"  {what:58s}{value:8.2f}  at most {at_most:<6g}{verdict}"


def _not_run(cells: Sequence[Cell], omitted: Sequence[Omitted]) -> str:
    lines = [f"  {item.family} {item.sampler}: {item.reason}" for item in omitted]
    reasons: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        if cell.reason:
            reasons.setdefault((cell.family, cell.sampler, cell.reason), []).append(cell)
    for (family, sampler, reason), found in reasons.items():
        where = ", ".join(dict.fromkeys(cell.scenario for cell in found))
        which = ", ".join(dict.fromkeys(cell.scheduler for cell in found))
        budgets = ", ".join(str(calls) for calls in sorted({cell.calls for cell in found}))
        lines.append(f"  {family} {sampler} ({which}; {where}; at {budgets} calls): {reason}")
    return "\n".join(["without a result", *lines]) if lines else ""
