"""The plot of `quality.py`: error against model calls, one panel per scenario."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .measure import Cell
from .pack_samplers import ALWAYS, FAMILY
from .report import best_by_calls, named, ours, peers
from .scenarios import SCENARIOS

COLUMNS = 3
PANEL = (5.2, 4.4)
"""Inches."""

# Ours in strong colours, others in grey with dashes, which can be told apart in print, too.
LINES: dict[str, tuple[Callable[[Cell], bool], dict[str, Any]]] = {
    "ComfyUI euler": (named("ComfyUI", "euler"), {"color": "#9a9a9a", "ls": ":", "marker": "v"}),
    "ComfyUI dpmpp_2m": (
        named("ComfyUI", "dpmpp_2m"),
        {"color": "#777777", "ls": "--", "marker": "s"},
    ),
    "ComfyUI uni_pc": (named("ComfyUI", "uni_pc"), {"color": "#777777", "ls": "-.", "marker": "^"}),
    "best peer of all": (peers, {"color": "#222222", "ls": "-", "marker": "o", "lw": 2.2}),
    "ours: DPM-Solver++ 2M": (
        named(FAMILY, "dpm_solver++_2m"),
        {"color": "#5aa9e6", "ls": "--", "marker": "s"},
    ),
    "best of ours": (ours, {"color": "#0b62c4", "ls": "-", "marker": "o", "lw": 2.2}),
    f"ours: {ALWAYS[0]}": (
        named(FAMILY, ALWAYS[0]),
        {"color": "#d9480f", "ls": "-", "marker": "D"},
    ),
    f"ours: {ALWAYS[1]}": (
        named(FAMILY, ALWAYS[1]),
        {"color": "#2b8a3e", "ls": "-", "marker": "*"},
    ),
}


def plot(cells: Sequence[Cell], file: Path) -> None:
    """Write the panels, each line at its best scheduler for each number of calls."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    names = list(dict.fromkeys(cell.scenario for cell in cells))
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    # An opaque background: the page that shows it may be light or dark.
    with pyplot.style.context({"figure.facecolor": "white", "axes.facecolor": "white"}):
        figure, panels = pyplot.subplots(
            rows, columns, figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.9), squeeze=False
        )
        legend: dict[str, Any] = {}
        for panel, name in zip(panels.flat, names, strict=False):
            found = [cell for cell in cells if cell.scenario == name]
            for label, (keep, style) in LINES.items():
                points = [
                    (calls, cell.mean)
                    for calls, cell in best_by_calls(found, keep).items()
                    if cell is not None
                ]
                if points:
                    (legend[label],) = panel.plot(*zip(*points, strict=True), label=label, **style)
            calls = sorted({cell.calls for cell in found})
            panel.set(xscale="log", yscale="log", title=SCENARIOS[name].title, xlabel="model calls")
            panel.xaxis.set_major_locator(FixedLocator(calls))
            panel.xaxis.set_major_formatter(ScalarFormatter())
            panel.xaxis.set_minor_locator(NullLocator())
            panel.grid(True, which="major", color="#dddddd")
        for panel in list(panels.flat)[len(names) :]:
            panel.set_axis_off()
        for panel in panels[:, 0]:
            panel.set_ylabel("distance to the converged solution")
        ordered = [label for label in LINES if label in legend]
        figure.legend(
            [legend[label] for label in ordered],
            ordered,
            loc="lower center",
            ncols=4,
            frameon=False,
        )
        figure.suptitle("Each at its best scheduler; geometric mean over images")
        figure.tight_layout(rect=(0.0, 0.9 / (PANEL[1] * rows + 0.9), 1.0, 1.0))
        figure.savefig(file, dpi=110)
        pyplot.close(figure)
