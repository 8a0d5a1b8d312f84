"""The results of a comparison, as aligned text and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from .compare import Cell, Reference

COLUMNS = ("candidate", "calls_wanted", "calls", "seconds", "error", "note")


def text(
    cells: Sequence[Cell], budgets: Sequence[int], reference: Reference, kept: bool = False
) -> str:
    """A table of errors, candidates by numbers of calls, with failures and notes below.

    If a run made another number of calls than its column says, the number follows in brackets.

    Args:
        kept: whether the reference was kept from an earlier run.
    """
    seconds = f"{reference.seconds:.1f} s" if not kept else "kept from an earlier run"
    images = len(reference.latent)
    head = (
        f"Distance to the reference ({reference.label}, {reference.calls} model calls, {seconds}): "
        "root mean square of the latent's difference"
        + (f", geometric mean of {images} images" if images > 1 else "")
        + ". Smaller is closer; in brackets the calls, if they are not the column's."
    )
    lines = rows(cells, budgets)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join([name.ljust(widths[0]), *map(str.rjust, values, widths[1:])]).rstrip()
        for name, *values in lines
    ]
    return "\n".join([head, "", *aligned, *_remarks(cells)])


def rows(cells: Sequence[Cell], budgets: Sequence[int]) -> list[list[str]]:
    """The figures as lines of words: a head, then each candidate's errors and seconds per call."""
    head = ["model calls", *map(str, budgets), "s per call"]
    return [head, *(_row(row, budgets) for row in by_row(cells))]


def _row(cells: Sequence[Cell], budgets: Sequence[int]) -> list[str]:
    columns = [""] * len(budgets)
    for cell in cells:
        column = column_of(cell, budgets)
        value = short(cell.error) if not cell.failure else "failed"
        if not cell.failure and cell.calls != budgets[column]:
            value += f" ({cell.calls})"
        columns[column] = value
    calls = sum(cell.calls for cell in cells if not cell.failure)
    seconds = sum(cell.seconds for cell in cells if not cell.failure)
    return [cells[0].label, *columns, f"{seconds / calls:.3g}" if calls else ""]


def _remarks(cells: Sequence[Cell]) -> list[str]:
    """Failures and notes, each once per candidate, with the numbers of calls that it concerns."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        for remark in filter(None, (cell.failure, cell.note)):
            where = found.setdefault((cell.label, remark), [])
            where.append(str(cell.budget or cell.calls))
    lines = [f"{label} at {', '.join(where)}: {remark}" for (label, remark), where in found.items()]
    return ["", *lines] if lines else []


def as_csv(cells: Sequence[Cell]) -> str:
    """One line per run, with all digits of the numbers."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell in cells:
        error = "" if math.isnan(cell.error) else repr(cell.error)
        wanted = "" if cell.budget is None else cell.budget
        note = cell.failure or cell.note
        writer.writerow([cell.label, wanted, cell.calls, f"{cell.seconds:.4f}", error, note])
    return stream.getvalue()


def closest(cells: Sequence[Cell], budgets: Sequence[int]) -> dict[int, Cell]:
    """For each number of calls the cell in its column that is closest, among those within it."""
    found: dict[int, Cell] = {}
    for cell in cells:
        budget = budgets[column_of(cell, budgets)]
        if cell.failure or cell.calls > budget:
            continue
        if budget not in found or cell.error < found[budget].error:
            found[budget] = cell
    return found


def by_row(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each candidate, in the candidates' order."""
    rows: dict[int, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.row, []).append(cell)
    return list(rows.values())


def column_of(cell: Cell, budgets: Sequence[int]) -> int:
    """The column of a cell: that of its budget or, if it has none, the nearest to its calls."""
    if cell.budget is not None:
        return list(budgets).index(cell.budget)
    return min(range(len(budgets)), key=lambda i: abs(math.log(budgets[i] / max(cell.calls, 1))))


def short(error: float) -> str:
    """An error with three digits: 0.123, 0.0123, 1.23e-05."""
    if error == 0.0:
        return "0"
    return f"{error:.3g}" if error < 1e-4 else f"{error:#.3g}"
