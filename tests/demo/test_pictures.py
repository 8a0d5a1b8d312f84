"""The pictures that the emoji model learns, and those of `make demo`, without a host."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dpm_solver_nodes.demo import emoji, pictures, run

HEART = next(kind for kind in pictures.KINDS if kind.name == "heart")


def test_the_network_knows_the_classes_of_the_pictures() -> None:
    assert tuple(kind.name for kind in pictures.KINDS) == emoji.CLASSES


@pytest.mark.parametrize("degrees", [10.0, 120.0])
def test_turning_the_hue_leaves_grey_and_distances(degrees: float) -> None:
    matrix = pictures._turn_hue(degrees)
    np.testing.assert_allclose(matrix @ np.ones(3), np.ones(3))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)


def test_a_third_of_a_turn_makes_red_green() -> None:
    np.testing.assert_allclose(pictures._turn_hue(120.0) @ [1.0, 0.0, 0.0], [0, 1, 0], atol=1e-12)


def test_a_version_stays_on_white_and_near_its_place() -> None:
    drawn = Image.new("RGB", (pictures.DRAWN, pictures.DRAWN), "white")
    drawn.paste((200, 0, 0), (16, 16, 48, 48))
    generator = np.random.default_rng(0)
    for _ in range(20):
        made = pictures.vary(drawn, HEART, 32, generator)
        assert made.shape == (32, 32, 3) and made.dtype == np.uint8
        assert (made[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
        rows, columns = np.nonzero((made < 250).any(axis=-1))
        assert abs(rows.mean() - 15.5) < 2.0 and abs(columns.mean() - 15.5) < 2.0
        assert 13 <= np.ptp(rows) + 1 <= 18


def _rows() -> run.Rows:
    def cell(value: float, calls: int) -> run.Cell:
        return run.Cell(np.full((8, 3, 32, 32), value, np.float32), calls, abs(value))

    rows = {row: {calls: cell(0.1, calls) for calls in run.CALLS} for row in run.ROWS}
    rows[run.CALIBRATED] = {4: cell(0.1, 5)}
    return {**rows, run.CONVERGED: {run.CONVERGED_CALLS: cell(0.0, run.CONVERGED_CALLS)}}


def test_the_table_says_where_calls_are_not_steps() -> None:
    lines = run.table("flow", _rows()).splitlines()
    assert len(lines) == 1 + len(run.ROWS)
    assert lines[1].split()[1:] == ["0.1000"] * len(run.CALLS)
    assert lines[-1].split() == ["calibrated", "0.1000", "(5)"]


def test_differences_are_amplified_about_grey() -> None:
    rows = _rows()
    (converged,) = rows[run.CONVERGED].values()
    shown = run.differences(rows["Euler"][4], converged)
    np.testing.assert_allclose(shown, 0.5 + 0.1 * run.GAIN / 2.0, rtol=1e-6)
    grids = {kind: np.asarray(run.picture("flow", rows, kind)) for kind in run.PICTURES}
    assert (grids["grid"] == round((0.1 + 1.0) / 2.0 * 255.0)).all(-1).sum() > 128**2
    assert (grids["difference"] == round(0.7 * 255.0)).all(-1).sum() > 128**2
