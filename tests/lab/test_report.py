"""A comparison as it is shared: its files hold the settings and figures, and nothing else."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dpm_solver_nodes.lab import report, table
from dpm_solver_nodes.lab.compare import Cell, Reference
from dpm_solver_nodes.lab.report import Report, Setup
from dpm_solver_nodes.lab.sheet import CLOSEST, sheet
from dpm_solver_nodes.tools import which_sampler

SETUP = Setup(
    name="my model",
    model="Flux",
    prediction="flow",
    sigma_max=1.0,
    sigma_min=0.0003,
    shift=1.15,
    cfg=1.0,
    guidance=3.5,
    image="1024x768",
    latent="1x16x96x128",
    seed=7,
    weights="float8_e4m3fn",
    patched=0,
    device="cpu",
    pack="2.0.0",
    host="ComfyUI 0.30.0",
    torch="2.13.0",
)
REFERENCE = Reference("dpm_solver++_3m_exact dpm_solver_log_snr", 100, 9.0, 1.0, torch.zeros(1, 4))
CELLS = (
    Cell("euler simple", 0, 8, 8, 1.0, 0.5),
    Cell("euler simple", 0, 12, 12, 1.5, 0.25),
    Cell("uni_pc simple", 1, 8, 8, 1.0, failure="it broke."),
    Cell("uni_pc simple", 1, 12, 12, 1.5, 0.125),
    Cell("calibrated mine", 2, None, 9, 1.1, 0.0625),
)
REPORT = Report(SETUP, CELLS, (8, 12), REFERENCE)
ROW = (
    "| my model (Flux) | flow shift 1.15, CFG 1, guidance 3.5, 1024x768, seed 7, float8_e4m3fn "
    "| 8, 12 | euler simple **0.500** 0.250<br>uni_pc simple failed **0.125**<br>"
    "calibrated mine 0.0625 (9) | 2.0.0 |"
)
NASTY = "=cmd|' /C calc'!A0\n<script>`x`</script> [a](b) \ud800 $\\frac$ 猫"


def saved(folder: Path, made: Report) -> Path:
    """A PNG with the report's chunks, as the host's module saves it."""
    chunks = PngInfo()
    for key, text in made.chunks().items():
        chunks.add_text(key, text)
    Image.new("RGB", (4, 4)).save(folder / "picture.png", pnginfo=chunks)
    return folder / "picture.png"


def lines(made: Report) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(made.as_csv())))


def test_the_picture_holds_settings_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, REPORT)
    found = report.read(path)
    assert found["setup"] == asdict(SETUP)
    assert found["reference"] == {"sampler": REFERENCE.label, "calls": 100}
    assert found["calls"] == [8, 12]
    assert [run["error"] for run in found["runs"]] == [0.5, 0.25, None, 0.125, 0.0625]
    assert [run["calls"] for run in found["runs"]] == [8, 12, 8, 12, 9]
    assert report.markdown_row(found) == REPORT.row() == ROW
    assert which_sampler.main([str(path)]) == 0
    assert capsys.readouterr().out.strip() == ROW
    with Image.open(path) as picture:
        texts = dict(picture.info)
    assert texts["Title"] == "Solver Compare: my model"
    assert "Flux (flow, shift 1.15), CFG 1, guidance 3.5, 1024x768" in texts["Description"]
    assert "calibrated mine" in texts["Description"]


def test_the_csv_is_one_line_per_run_with_all_settings() -> None:
    found = lines(REPORT)
    assert [line["candidate"] for line in found] == [cell.label for cell in CELLS]
    assert {line["shift"] for line in found} == {"1.15"}
    assert {(line["reference_calls"], line["pack"]) for line in found} == {("100", "2.0.0")}
    assert [line["error"] for line in found] == ["0.5", "0.25", "", "0.125", "0.0625"]
    assert found[2]["note"] == "it broke."


@pytest.mark.parametrize(
    "message",
    [
        "no file /home/me/ComfyUI/models/x.pt",
        "no file C:\\Users\\A Person\\x.pt",
        "OSError: \\\\server\\share\\x",
    ],
)
def test_no_folder_of_the_machine_is_in_it(tmp_path: Path, message: str) -> None:
    cells = (replace(CELLS[0], error=math.nan, failure=message), *CELLS[1:])
    made = Report(SETUP, cells, (8, 12), REFERENCE)
    texts = [*made.chunks().values(), made.as_csv(), made.row(), *made.setup.lines()]
    texts += [str(cell) for cell in made.cells]
    for part in ("home", "Users", "Person", "server", str(tmp_path)):
        assert not [text for text in texts if part in text]
    assert report.PATH_LEFT_OUT in made.as_csv()


def test_texts_from_outside_mean_nothing_in_it(tmp_path: Path) -> None:
    cells = (replace(CELLS[0], label=NASTY), *CELLS[1:])
    made = Report(replace(SETUP, name=NASTY), cells, (8, 12), REFERENCE)
    found = report.read(saved(tmp_path, made))
    row = report.markdown_row(found)
    assert row == made.row() and "\n" not in row and "猫" in row
    assert row.replace("<br>", "").count("<") == 0 and "\\`x\\`" in row and "\\[a\\]" in row
    assert row.replace("\\|", "").count("|") == ROW.count("|")
    for line in lines(made):
        assert line["name"].startswith("'=cmd") and not line["candidate"].startswith("=")
    assert "\n" not in made.setup.lines()[0]
    pixels = sheet(made, np.zeros((900, 1200, 3), np.uint8), None)
    assert pixels.shape[1:] == (1200, 3)


def test_other_pictures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (4, 4)).save(other)
    for path in (other, tmp_path / "none.png"):
        with pytest.raises(ValueError, match="holds no comparison"):
            report.read(path)
    chunks = PngInfo()
    chunks.add_text(report.KEYWORD, json.dumps({"format": 99}))
    Image.new("RGB", (4, 4)).save(other, pnginfo=chunks)
    with pytest.raises(ValueError, match="later version"):
        report.read(other)
    assert which_sampler.main([str(other)]) == 1
    assert "later version" in capsys.readouterr().err


@pytest.mark.parametrize(
    "forged",
    [
        {},
        {"setup": {}},
        {"calls": []},
        {"calls": [0]},
        {"calls": ["many"]},
        {"runs": []},
        {"runs": [{"candidate": "x"}]},
        {"runs": 3},
        {"setup": asdict(SETUP) | {"cfg": "<b>"}},
        {"setup": asdict(SETUP) | {"seed": 1e999}},
    ],
)
def test_forged_figures_are_refused(forged: dict[str, object]) -> None:
    data = {**REPORT.data(), **forged} if forged else {}
    with pytest.raises(ValueError, match="no comparison"):
        report.markdown_row(data)


def test_the_closest_is_among_those_within_the_calls() -> None:
    """A solver that chose to make more calls than the column's is not the closest there."""
    chooses = Cell("adaptive", 3, None, 13, 1.0, 0.001)
    assert table.closest([*CELLS, chooses], (8, 12)) == {8: CELLS[0], 12: CELLS[3]}


def test_the_sheet_has_the_figures_and_the_images() -> None:
    plot = np.full((900, 1200, 3), 9, np.uint8)
    alone = sheet(REPORT, plot, None)
    assert alone.shape[1] == 1200 and alone.shape[0] > 1100
    tinted = (alone == CLOSEST).all(-1)
    assert tinted.any(1).sum() > 40  # in two rows, one for each number of calls
    tall = alone.shape[0]
    for high, expected in ((tall, 1.0), (round(tall / 0.7), 0.7), (10 * tall, 0.5)):
        both = sheet(REPORT, plot, np.full((high, 1000, 3), 7, np.uint8))
        assert both.shape[1] == pytest.approx(1200 + 1000 * expected, abs=2)
        assert both.shape[0] == pytest.approx(max(tall, expected * high), abs=2)


def test_the_page_has_the_tables_head() -> None:
    """And a row to fill in that has as many columns."""
    page = Path(__file__).resolve().parents[2] / "docs" / "which-sampler.md"
    text = page.read_text(encoding="utf-8")
    assert report.markdown_table() in text
    rows = [line for line in text.splitlines() if line.startswith("| my model")]
    assert rows and {row.count("|") for row in rows} == {ROW.count("|")}


def test_the_pack_knows_its_version() -> None:
    root = Path(__file__).resolve().parents[2]
    line = f'version = "{report.pack_version()}"'
    assert line in (root / "pyproject.toml").read_text(encoding="utf-8")
