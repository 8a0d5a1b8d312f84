"""A labelled grid of pictures: candidates below each other, numbers of model calls side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import fonts
from .compare import MOST_IMAGES, Cell, Reference
from .table import by_row, column_of, short

PAPER, INK, FAINT, RED = (247, 247, 244), (38, 38, 43), (96, 96, 104), (176, 40, 30)
EMPTY = (232, 232, 228)
CELL = 288  # pixels, the width of a cell
TALLEST = 2  # times its width
GAP, MARGIN = 16, 28
HEAD, CAPTION = 40, 36  # font sizes, large as a grid of six columns is shown at a third of its size
LINE = 43
TIGHT = 6  # pixels between the images of a batch


def mosaic(images: np.ndarray, width: int = CELL) -> np.ndarray:
    """The images of a batch as one picture of a given width.

    Images are scaled down smoothly, but up by whole factors, so that the pixels of small ones stay
    sharp. The picture is at most TALLEST times as high as wide.

    Args:
        images: [batch, height, width, 3], from 0 to 1.

    Returns:
        uint8 [height, width, 3].
    """
    from einops import rearrange

    images = images[:MOST_IMAGES]
    count, high, wide, _ = images.shape
    columns = _columns(count, high, wide)
    rows = math.ceil(count / columns)
    most = (
        (width - (columns - 1) * TIGHT) // columns,
        (TALLEST * width - (rows - 1) * TIGHT) // rows,
    )
    scale = min(most[0] / wide, most[1] / high)
    size = (max(1, round(scale * wide)), max(1, round(scale * high)))
    way = Image.Resampling.NEAREST if size[0] >= wide else Image.Resampling.LANCZOS
    bytes_ = (np.clip(images, 0.0, 1.0) * 255.0).round().astype(np.uint8)
    tiles = np.stack([np.asarray(Image.fromarray(one).resize(size, way)) for one in bytes_])
    missing = -count % columns
    ends = ((0, missing), (0, TIGHT), (0, TIGHT), (0, 0))
    padded = np.stack(
        [np.pad(tiles[..., c], ends[:3], constant_values=PAPER[c]) for c in range(3)], axis=-1
    )
    if missing:
        padded[count:] = PAPER
    joined = rearrange(padded, "(row column) h w c -> (row h) (column w) c", column=columns)
    joined = joined[:-TIGHT, :-TIGHT]
    whole = np.full((joined.shape[0], width, 3), PAPER, np.uint8)
    left = (width - joined.shape[1]) // 2
    whole[:, left : left + joined.shape[1]] = joined
    return whole


def _columns(count: int, high: int, wide: int) -> int:
    """How many images to put side by side: few empty places, and a cell a little wider than high."""

    def cost(columns: int) -> float:
        rows = math.ceil(count / columns)
        missing = (rows * columns - count) / count
        return 4.0 * missing + abs(math.log(columns * wide / (rows * high) / 1.2))

    return min(range(1, count + 1), key=cost)


def grid(
    cells: Sequence[Cell],
    budgets: Sequence[int],
    mosaics: Mapping[int, np.ndarray],
    reference: Reference,
    reference_image: np.ndarray,
    remark: str = "",
) -> np.ndarray:
    """The grid: the reference first, then a row for each candidate with its name above.

    Args:
        mosaics: index into `cells` -> its `mosaic`. A cell without one stays empty, and says why.
        reference_image: [batch, height, width, 3].
        remark: a line beside the reference.

    Returns:
        uint8 [height, width, 3].
    """
    first = mosaic(reference_image)
    tall = first.shape[0]
    rows = by_row(cells)
    width = 2 * MARGIN + len(budgets) * CELL + (len(budgets) - 1) * GAP
    width = max(width, 2 * MARGIN + 3 * CELL)
    band = HEAD + 16 + tall + 2 * LINE + 40
    top = MARGIN + max(tall, HEAD + 14 + 3 * LINE) + 40
    canvas = Image.new("RGB", (width, top + len(rows) * band), PAPER)
    draw = ImageDraw.Draw(canvas)
    texts = [reference.label, remark, *(cell.label + cell.failure for cell in cells)]
    head, caption = fonts.font(HEAD, texts), fonts.font(CAPTION, texts)
    canvas.paste(Image.fromarray(first), (MARGIN, MARGIN))
    _beside(draw, width, reference, remark, head, caption)
    places = {id(cell): i for i, cell in enumerate(cells)}
    for line, row in enumerate(rows):
        y = top + line * band
        draw.line((MARGIN, y - 18, width - MARGIN, y - 18), EMPTY, 2)
        draw.text((MARGIN, y), fitting(row[0].label, head, width - 2 * MARGIN), INK, head)
        for cell in row:
            x = MARGIN + column_of(cell, budgets) * (CELL + GAP)
            below = y + HEAD + 16
            image = mosaics.get(places[id(cell)])
            if image is None:
                draw.rectangle((x, below, x + CELL - 1, below + tall - 1), EMPTY)
                _wrapped(draw, (x + 10, below + 8), cell.failure or "no picture", caption, tall)
            else:
                canvas.paste(Image.fromarray(image).crop((0, 0, CELL, tall)), (x, below))
            _captions(draw, (x, below + tall + 6), cell, caption)
    return np.asarray(canvas).copy()


def _beside(
    draw: ImageDraw.ImageDraw,
    width: int,
    reference: Reference,
    remark: str,
    head: ImageFont.FreeTypeFont,
    caption: ImageFont.FreeTypeFont,
) -> None:
    """Write what the reference is, to its right."""
    x = MARGIN + CELL + GAP
    width_left = width - MARGIN - x
    lines = [
        f"Reference: {reference.label}",
        f"{reference.calls} model calls" + _shown(len(reference.latent)),
        "error: RMS distance to it, in the latent",
        remark,
    ]
    draw.text((x, MARGIN), fitting(lines[0], head, width_left), INK, head)
    for i, text in enumerate(lines[1:]):
        y = MARGIN + HEAD + 14 + i * LINE
        draw.text((x, y), fitting(text, caption, width_left), FAINT, caption)


def _shown(count: int) -> str:
    return f"; the first {MOST_IMAGES} of {count} images" if count > MOST_IMAGES else ""


def _captions(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], cell: Cell, font: ImageFont.FreeTypeFont
) -> None:
    x, y = at
    calls = cell.calls if cell.calls else cell.budget
    time = f", {cell.seconds:.2f} s" if cell.seconds < 9.995 else f", {cell.seconds:.0f} s"
    first = f"{calls} calls" + (time if cell.calls else "")
    draw.text((x, y), fitting(first, font, CELL), INK, font)
    if cell.failure:
        draw.text((x, y + LINE), "failed", RED, font)
    else:
        draw.text((x, y + LINE), fitting(f"error {short(cell.error)}", font, CELL), FAINT, font)


def fitting(text: str, font: ImageFont.FreeTypeFont, width_left: float) -> str:
    if font.getlength(text) <= width_left:
        return text
    while text and font.getlength(text + "...") > width_left:
        text = text[:-1]
    return text + "..."


def _wrapped(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont,
    tall: int,
) -> None:
    """The text broken into lines as wide as a cell, as many as fit."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= CELL - 20:
            lines[-1] = longer
        else:
            lines.append(fitting(word, font, CELL - 20))
    for i, line in enumerate(lines[: max(1, (tall - 16) // LINE)]):
        draw.text((at[0], at[1] + i * LINE), line, FAINT, font)
