"""Labels in letters that the usual fonts lack, with a font of the system that has them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dpm_solver_nodes.lab import fonts, grid, plots
from dpm_solver_nodes.lab.compare import Cell, Reference

LETTER = "\u4e1c"
REFERENCE = Reference("fine", 100, 1.0, 14.6, torch.zeros(1, 3, 4, 4))
PICTURE = np.full((1, 16, 16, 3), 0.5)


@pytest.fixture
def font(tmp_path: Path) -> Path:
    """A font in which the letter is a black square."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", "square"]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(LETTER): "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path = tmp_path / "squares.ttf"
    builder.save(path)
    return path


def plot(label: str) -> np.ndarray:
    return plots.convergence([Cell(label, 0, 5, 5, 0.1, 0.1)], [5], REFERENCE)


def sheet(label: str) -> np.ndarray:
    cells = [Cell(label, 0, 5, 5, 0.1, 0.1)]
    return grid.grid(cells, [5], {0: grid.mosaic(PICTURE)}, REFERENCE, PICTURE)


def solid(image: np.ndarray) -> int:
    """How many lines of pixels hold as much ink as three squares side by side."""
    return int(((image.max(-1) < 60).sum(1) > 60).sum())


@pytest.mark.parametrize("picture", [plot, sheet])
def test_they_are_drawn_with_a_font_that_has_them(
    picture: Callable[[str], np.ndarray], font: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "east_asian", lambda: "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the letter is missing
        without = solid(picture(LETTER * 3))
    monkeypatch.setattr(fonts, "east_asian", lambda: str(font))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert solid(picture(LETTER * 3)) > without + 10


def test_other_texts_keep_their_font(font: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plot("euler \u00e9"), sheet("euler \u00e9")
    monkeypatch.setattr(fonts, "east_asian", lambda: str(font))
    for old, new in zip(before, (plot("euler \u00e9"), sheet("euler \u00e9")), strict=True):
        assert np.array_equal(old, new)


def test_the_search_for_a_font_never_fails() -> None:
    assert fonts.east_asian() == "" or Path(fonts.east_asian()).exists()
