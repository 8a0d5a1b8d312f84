"""A comparison on one picture to share: what it was made on, the plot, the figures, the images."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import fonts, table
from .grid import EMPTY, FAINT, INK, MARGIN, PAPER, fitting
from .report import Report

TITLE, TEXT = 44, 24  # font sizes
LINE = 40
SMALLEST = 0.5
"""The images are scaled down to the height of what is beside them, but by no more than this."""

CLOSEST = (213, 232, 219)
"""Behind the smallest error of each number of calls."""


def sheet(report: Report, plot: np.ndarray, images: np.ndarray | None) -> np.ndarray:
    """The settings above the plot, the figures below it, and the grid of images to their right.

    Args:
        plot, images: uint8 [height, width, 3], from `plots.convergence` and `grid.grid`.

    Returns:
        uint8 [height, width, 3].
    """
    width = plot.shape[1]
    left = np.concatenate([_head(report, width), plot, _figures(report, width)])
    if images is None:
        return left
    high, wide = images.shape[:2]
    scale = min(1.0, max(SMALLEST, left.shape[0] / high))
    size = round(scale * wide), round(scale * high)
    right = np.asarray(Image.fromarray(images).resize(size, Image.Resampling.LANCZOS))
    tall = max(left.shape[0], right.shape[0])
    return np.concatenate([_filled(left, tall), _filled(right, tall)], axis=1)


def _filled(picture: np.ndarray, tall: int) -> np.ndarray:
    whole = np.full((tall, *picture.shape[1:]), PAPER, np.uint8)
    whole[: picture.shape[0]] = picture
    return whole


def _head(report: Report, width: int) -> np.ndarray:
    setup = report.setup
    texts = [setup.name, *setup.lines()]
    title, text = fonts.font(TITLE, texts), fonts.font(TEXT, texts)
    lines = [part for line in setup.lines() for part in _broken(line, text, width - 2 * MARGIN)]
    canvas = Image.new("RGB", (width, MARGIN + TITLE + 20 + len(lines) * LINE), PAPER)
    draw = ImageDraw.Draw(canvas)
    question = fitting(f"Which sampler for {setup.name}?", title, width - 2 * MARGIN)
    draw.text((MARGIN, MARGIN), question, INK, title)
    for i, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + TITLE + 20 + i * LINE), line, FAINT, text)
    return np.asarray(canvas)


def _broken(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The parts of a list in a sentence, on as many lines as they need."""
    lines = [""]
    for part in text.split(", "):
        longer = f"{lines[-1]}, {part}" if lines[-1] else part
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(fitting(part, font, width))
    return list(filter(None, lines))


def _figures(report: Report, width: int) -> np.ndarray:
    """The errors as a table, the smallest of each number of calls on a tinted ground."""
    rows = table.rows(report.cells, report.budgets)
    font = fonts.font(TEXT, (name for name, *_ in rows))
    marked = _marked(report)
    columns = [
        max(map(font.getlength, column)) + 28 for column in list(zip(*rows, strict=True))[1:]
    ]
    first = width - 2 * MARGIN - sum(columns)
    if first < 0.25 * width:  # more numbers of calls than fit
        return np.full((1, width, 3), PAPER, np.uint8)
    canvas = Image.new("RGB", (width, 2 * MARGIN + len(rows) * LINE), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (name, *values) in enumerate(rows):
        y = MARGIN + i * LINE
        colour = FAINT if i == 0 else INK
        draw.text((MARGIN, y), fitting(name, font, first - 16), colour, font)
        right = MARGIN + first
        for j, (value, column) in enumerate(zip(values, columns, strict=True)):
            right += column
            if (i - 1, j) in marked:
                draw.rectangle((right - column + 12, y - 4, right + 8, y + LINE - 8), CLOSEST)
            draw.text((right, y), value, colour, font, anchor="ra")
        if i == 0:
            draw.line((MARGIN, y + LINE - 5, width - MARGIN, y + LINE - 5), EMPTY, 2)
    return np.asarray(canvas)


def _marked(report: Report) -> set[tuple[int, int]]:
    """(row, column) of the smallest error of each number of calls."""
    rows = [row[0].row for row in table.by_row(report.cells)]
    best = table.closest(report.cells, report.budgets)
    return {(rows.index(cell.row), list(report.budgets).index(n)) for n, cell in best.items()}
