"""Plots: how errors fall with model calls, and what a schedule looks like.

matplotlib draws them without its global state, on a light background that suits dark and light pages,
for a preview of some 500 pixels. All functions return uint8 RGB arrays, [height, width, 3].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..samplers.checks import escaped
from ..samplers.plan import DENOISED, Plan
from ..samplers.schedules.process import NoiseSchedule, RectifiedFlow
from . import fonts
from .compare import Cell, Reference
from .table import by_row

PAPER, INK, FAINT, LINES = "#f7f7f4", "#26262b", "#6b6b73", "#dcdcd8"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc6fa3", "#46a3d9", "#dd9500", "#5b4a9c", "#7a5230")
"""Colours that people with any colour vision can tell apart (after Okabe and Ito)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
DPI = 150
WIDTH = 8.0  # inches
TEXT, SMALL, TITLE = 14.0, 12.0, 16.0  # points
LINEAR_LIMIT = 4.0  # if weights are larger, the axis is logarithmic beyond 1


def require() -> None:
    """Check that pictures can be drawn, before a long computation.

    Raises:
        ImportError: matplotlib is missing.
    """
    _figure_classes()


def _figure_classes() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Plots need matplotlib, which this Python does not have: run `pip install matplotlib` "
            "with the Python that runs ComfyUI, and start ComfyUI again."
        ) from error
    return Figure, FigureCanvasAgg


def convergence(cells: Sequence[Cell], budgets: Sequence[int], reference: Reference) -> np.ndarray:
    """Error against model calls, both logarithmic: a line for each candidate, and a legend below.

    A line that falls by a factor of 2^k each time the calls double is of order k. Cells without an
    error are left out, and the legend says so.
    """
    rows = by_row(cells)
    labels = [_legend(row) for row in rows]
    columns = 1 if max(map(len, labels)) > 36 or len(labels) == 1 else 2
    legend = 0.235 * math.ceil(len(labels) / columns) + 0.15
    height = 5.9 + legend
    figure = _new(height)
    axes = figure.add_axes(
        (0.135, (legend + 0.8) / height, 0.84, (height - legend - 1.65) / height)
    )
    handles = [_curve(axes, row, i) for i, row in enumerate(rows)]
    _decorate(axes)
    axes.set(xscale="log", yscale="log")
    ticks = sorted(
        {*budgets, *(cell.calls for cell in cells if cell.budget is None and cell.calls)}
    )
    _call_ticks(axes, ticks, [cell.calls for cell in cells if cell.error > 0.0])
    _decades(axes, [cell.error for cell in cells if cell.error > 0.0])
    axes.set_xlabel("model calls", fontsize=TEXT, color=INK)
    axes.set_ylabel("error (RMS)", fontsize=TEXT, color=INK)
    _title(
        figure,
        height,
        "Distance to the converged latent",
        f"reference: {reference.label}, {reference.calls} calls",
    )
    # The labels are put in later: matplotlib leaves out those that begin with _.
    shown = figure.legend(
        handles,
        ["label"] * len(labels),
        loc="lower left",
        bbox_to_anchor=(0.05, 0.01),
        ncols=columns,
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        handlelength=2.6,
        columnspacing=1.6,
        labelspacing=0.35,
    )
    for text, label in zip(shown.get_texts(), labels, strict=True):
        text.set_text(label)
        _plain(text)
    return _pixels(figure)


def _plain(text: Any) -> None:
    """Show a text as it is, with `$` as a plain character and not as the start of a formula."""
    text.set_parse_math(False)
    text.set_usetex(False)


def _legend(row: Sequence[Cell]) -> str:
    failed = sum(bool(cell.failure) for cell in row)
    if failed == len(row):
        return f"{row[0].label}: failed"
    if failed:
        return f"{row[0].label} ({failed} of {len(row)} failed)"
    if any(cell.error == 0.0 for cell in row):
        return f"{row[0].label} (0 is not drawn)"
    return row[0].label


def _curve(axes: Any, row: Sequence[Cell], index: int) -> Any:
    points = sorted((cell.calls, cell.error) for cell in row if cell.error > 0.0)
    return axes.plot(
        [calls for calls, _ in points],
        [error for _, error in points],
        color=COLOURS[index % len(COLOURS)],
        marker=MARKERS[index % len(MARKERS)],
        linestyle=DASHES[index // len(COLOURS) % len(DASHES)],
        linewidth=2.4,
        markersize=9.0,
        markeredgecolor=PAPER,
        markeredgewidth=1.2,
        clip_on=False,
        zorder=3 + 0.01 * index,
    )[0]


def _call_ticks(axes: Any, ticks: Sequence[int], drawn: Sequence[int]) -> None:
    """Label the axis with the numbers of calls, except those that would touch their left neighbour.

    Args:
        drawn: the calls of the points, which may be fewer than the ticks': all are to be seen.
    """
    from matplotlib.ticker import NullFormatter, NullLocator

    first, last = ticks[0], ticks[-1]
    spacing = 0.05 * max(math.log(last / first), math.log(1.5))
    shown: list[int] = []
    for tick in ticks:
        if not shown or math.log(tick / shown[-1]) >= spacing:
            shown.append(tick)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(shown, [str(tick) for tick in shown])
    axes.set_xlim(min([first, *drawn]) / 1.08, max([last, *drawn]) * 1.08)


def _decades(axes: Any, errors: Sequence[float]) -> None:
    """Label the error axis with plain numbers, more of them if it spans few powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not errors:
        axes.set_ylim(0.1, 1.0)
        axes.text(0.5, 0.5, "nothing to draw", transform=axes.transAxes, ha="center", color=FAINT)
        return
    low, high = min(errors) / 1.25, max(errors) * 1.25
    axes.set_ylim(low, high)
    span = high / low
    parts = (1.0, 2.0, 5.0) if span < 60.0 else (1.0, 3.0) if span < 3000.0 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=parts, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def sigmas(
    levels: Sequence[float],
    schedule: NoiseSchedule,
    plan: Plan | None = None,
    remark: str = "",
) -> np.ndarray:
    """A list of sigmas, its half log-SNR, and the weights of a plan's steps, one above the other.

    Args:
        levels: n + 1 noise levels.
        plan: n steps; None leaves out the panel of weights.
        remark: a sentence to show in that panel's place.
    """
    weights = 3.0 if plan is not None else 0.6 if remark else 0.0
    panels = 2.75
    height = 1.0 + 2 * panels + weights + 0.3
    figure = _new(height)
    top = height - 1.0

    def place(size: float) -> Any:
        nonlocal top
        top -= size
        return figure.add_axes((0.135, (top + 0.55) / height, 0.84, (size - 0.55) / height))

    first = place(panels)
    _sigma_panel(first, levels)
    _log_snr_panel(place(panels), levels, schedule)
    if plan is not None:
        _weights_panel(place(weights), plan, schedule)
    elif remark:
        _plain(figure.text(0.04, 0.3 / height, escaped(remark, 200), fontsize=SMALL, color=FAINT))
    for axes in figure.axes:
        _decorate(axes)
        axes.set_xlim(-0.02 * len(levels) - 0.1, len(levels) - 1 + 0.02 * len(levels) + 0.1)
        _whole_steps(axes)
    figure.axes[-1].set_xlabel("step (model call)", fontsize=TEXT, color=INK)
    kind = {"VarianceExploding": "noise or v prediction", "RectifiedFlow": "flow"}
    name = kind.get(type(schedule).__name__, type(schedule).__name__)
    _title(
        figure,
        height,
        f"{len(levels) - 1} steps",
        f"sigma {levels[0]:.4g} to {levels[-1]:.4g}, {name}",
    )
    return _pixels(figure)


def _sigma_panel(axes: Any, levels: Sequence[float]) -> None:
    """Plot sigmas on a logarithmic axis, a final zero as a hollow mark on the lower edge."""
    above = [(i, sigma) for i, sigma in enumerate(levels) if sigma > 0.0]
    _points(axes, above, COLOURS[0], len(levels))
    axes.set_yscale("log")
    axes.set_ylabel("sigma", fontsize=TEXT, color=INK)
    _plain_log(axes)
    if above:
        low, high = min(sigma for _, sigma in above), max(sigma for _, sigma in above)
        axes.set_ylim(low / (high / low) ** 0.12 / 1.1, high * (high / low) ** 0.05 * 1.1)
    for i, sigma in enumerate(levels):
        if sigma == 0.0:
            _off_scale(axes, i, 0.0, "0", COLOURS[0])


def _log_snr_panel(axes: Any, levels: Sequence[float], schedule: NoiseSchedule) -> None:
    lambdas = [schedule.lambda_(sigma) for sigma in levels]
    finite = [(i, value) for i, value in enumerate(lambdas) if math.isfinite(value)]
    _points(axes, finite, COLOURS[1], len(levels))
    axes.set_ylabel("half log-SNR", fontsize=TEXT, color=INK)
    if finite:
        low, high = min(value for _, value in finite), max(value for _, value in finite)
        margin = 0.12 * max(high - low, 0.1)
        axes.set_ylim(low - margin, high + margin)
    for i, value in enumerate(lambdas):
        if math.isinf(value):
            rises = value > 0.0
            _off_scale(axes, i, float(rises), "∞" if rises else "−∞", COLOURS[1])


def _points(axes: Any, points: Sequence[tuple[int, float]], colour: str, count: int) -> None:
    axes.plot(
        [i for i, _ in points],
        [value for _, value in points],
        color=colour,
        marker="o",
        markersize=7.0 if count <= 40 else 3.0 if count <= 150 else 0.0,
        linewidth=2.0,
        markeredgecolor=PAPER,
        markeredgewidth=0.8 if count <= 40 else 0.0,
        zorder=3,
    )


def _off_scale(axes: Any, i: int, edge: float, text: str, colour: str) -> None:
    """Draw a hollow mark on the lower (0) or upper (1) edge, for a value that the axis can't show."""
    where = axes.get_xaxis_transform()
    axes.plot(
        [i],
        [edge],
        transform=where,
        marker="o",
        markersize=8.0,
        markerfacecolor=PAPER,
        markeredgecolor=colour,
        markeredgewidth=2.0,
        clip_on=False,
        zorder=4,
    )
    axes.annotate(
        text,
        (i, edge),
        xycoords=where,
        xytext=(0, 7 if edge == 0.0 else -7),
        textcoords="offset points",
        ha="center",
        va="bottom" if edge == 0.0 else "top",
        fontsize=TEXT,
        color=INK,
    )


def _weights_panel(axes: Any, plan: Plan, schedule: NoiseSchedule) -> None:
    """Plot each step's weights of the base state, of the outputs from the newest on, and of the noise.

    A corrector's weights are only in the table.
    """
    count = len(plan.steps)
    ages = max((len(step.outputs) for step in plan.steps), default=0)
    names = ["newest output", "the one before", "two before"]
    series: list[tuple[str, list[float], str, Any]] = [
        ("state", [step.state for step in plan.steps], FAINT, "-")
    ]
    for age in range(ages):
        values = [step.outputs[age] if age < len(step.outputs) else math.nan for step in plan.steps]
        name = names[age] if age < len(names) else f"{age} before"
        series.append((name, values, COLOURS[(2, 3, 5, 4)[age % 4]], "-"))
    if plan.noisy:
        noise = [step.noise for step in plan.steps]
        series.append(("fresh noise", noise, COLOURS[6], (0, (1.5, 1.5))))
    for (name, values, colour, dashes), marker in zip(series, "so^Dv<>", strict=False):
        axes.plot(
            range(count),
            values,
            label=name,
            color=colour,
            linestyle=dashes,
            marker=marker,
            markersize=6.0 if count <= 40 else 0.0,
            markeredgecolor=PAPER,
            markeredgewidth=0.8,
            linewidth=1.8,
            zorder=3,
        )
    axes.axhline(0.0, color=FAINT, linewidth=0.9, zorder=2)
    values = [abs(value) for _, row, _, _ in series for value in row if math.isfinite(value)]
    if max(values, default=0.0) > LINEAR_LIMIT:
        from matplotlib.ticker import FuncFormatter

        axes.set_yscale("symlog", linthresh=1.0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel(f"weights ({_kind(plan, schedule)})", fontsize=TEXT, color=INK)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.97),
        ncols=len(series),
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        handlelength=1.6,
        columnspacing=1.1,
        handletextpad=0.5,
    )


def _kind(plan: Plan, schedule: NoiseSchedule) -> str:
    """What the weights multiply: "x0", "slope" or "noise"."""
    others = [step.prediction for step in plan.steps if step.prediction != DENOISED]
    if not others:
        return "x0"
    # The slope is (x - x0) / sigma, the noise (x - alpha x0) / sigma: the same where alpha is 1.
    slope = isinstance(schedule, RectifiedFlow) and all(x0 == -x for x, x0 in others)
    return "slope" if slope else "noise"


def _plain_log(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _whole_steps(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))


def _new(height: float) -> Any:
    figure_class, canvas_class = _figure_classes()
    figure = figure_class(figsize=(WIDTH, height), dpi=DPI, facecolor=PAPER)
    canvas_class(figure)
    return figure


def _title(figure: Any, height: float, title: str, below: str) -> None:
    figure.text(
        0.04,
        1.0 - 0.42 / height,
        title,
        fontsize=TITLE,
        color=INK,
        fontweight="bold",
        va="baseline",
    )
    height_of_below = 1.0 - 0.72 / height
    _plain(figure.text(0.04, height_of_below, below, fontsize=SMALL, color=FAINT, va="baseline"))


def _decorate(axes: Any) -> None:
    axes.set_facecolor(PAPER)
    axes.grid(True, which="major", color=LINES, linewidth=1.0)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=INK, labelsize=SMALL, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)


def _pixels(figure: Any) -> np.ndarray:
    _with_all_letters(figure)
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())[..., :3].copy()


def _with_all_letters(figure: Any) -> None:
    """Letters that matplotlib's own font lacks are drawn with one of the system's that has them."""
    from matplotlib.font_manager import FontProperties, fontManager
    from matplotlib.text import Text

    texts = [one for one in figure.findobj(Text) if fonts.has_east_asian(one.get_text())]
    if texts and (path := fonts.east_asian()):
        fontManager.addfont(path)
        families = ["DejaVu Sans", FontProperties(fname=path).get_name()]
        for one in texts:
            one.set_fontfamily(families)
