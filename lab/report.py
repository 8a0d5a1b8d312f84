"""A comparison as it is shared: what it was made on, and its figures, as metadata, CSV and Markdown.

Nothing here names a place on the computer it was made on: other people read these files.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ..samplers.checks import escaped
from . import table
from .compare import LABEL_LENGTH, Cell, Reference, escape_fields

KEYWORD = "dpm_solver_compare"
"""The text chunk of a PNG that holds the comparison as JSON."""

FORMAT = 1
PATH_LEFT_OUT = "failed; its message names a file and is left out here: see the log."
MOST_BYTES = 1 << 20
UNREADABLE = (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError)
"""The exceptions that a damaged or forged picture may raise."""


@dataclass(frozen=True)
class Setup:
    """What a comparison was made on; None and "" where it isn't known or doesn't apply.

    Attributes:
        name: what its user calls it.
        model: the name of the model's class in the host.
        prediction: what the network predicts: "flow", "noise", "v", ...
        shift: of a flow's noise levels.
        cfg: classifier-free guidance scale.
        guidance: the scale that a network distilled for guidance is given (Flux Guidance).
        image: width x height in pixels.
        latent: its shape, the batch first.
        weights: the data type of the network's weights.
        patched: how many of its weights a LoRA or another patch changes.
        device: the GPU's name, or "cpu".
        pack, host, torch: versions.
    """

    name: str
    model: str
    prediction: str
    sigma_max: float
    sigma_min: float
    shift: float | None
    cfg: float | None
    guidance: float | None
    image: str
    latent: str
    seed: int
    weights: str
    patched: int
    device: str
    pack: str
    host: str
    torch: str

    def __post_init__(self) -> None:
        escape_fields(
            self,
            *("name", "model", "prediction", "image", "latent", "weights"),
            *("device", "pack", "host", "torch"),
        )

    def lines(self) -> list[str]:
        """The same as two lines of text."""
        size = self.image or f"latent {self.latent}"
        patched = f"{self.patched} weights patched" if self.patched else ""
        made_on = [
            f"{self.model} ({self.prediction}{_given(', shift', self.shift)})",
            *(_given("CFG", self.cfg), _given("guidance", self.guidance)),
            *(size, f"seed {self.seed}", self.weights, patched),
        ]
        made_with = [f"DPM-Solver nodes {self.pack}", self.host, f"torch {self.torch}", self.device]
        return [", ".join(filter(None, part)) for part in (made_on, made_with)]


def _given(name: str, value: float | None) -> str:
    return "" if value is None else f"{name} {value:g}"


@dataclass(frozen=True)
class Report:
    """A comparison with what it was made on. Messages that may name a file are left out."""

    setup: Setup
    cells: Sequence[Cell]
    budgets: Sequence[int]
    reference: Reference

    def __post_init__(self) -> None:
        cells = [
            replace(cell, failure=PATH_LEFT_OUT) if re.search(r"[\\/]", cell.failure) else cell
            for cell in self.cells
        ]
        object.__setattr__(self, "cells", cells)

    def data(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "format": FORMAT,
            "setup": asdict(self.setup),
            "reference": {"sampler": self.reference.label, "calls": self.reference.calls},
            "calls": list(self.budgets),
            "runs": [
                {
                    "candidate": cell.label,
                    "wanted": cell.budget,
                    "calls": cell.calls,
                    "seconds": round(cell.seconds, 4),
                    "error": None if math.isnan(cell.error) else cell.error,
                    "note": cell.failure or cell.note,
                }
                for cell in self.cells
            ],
        }

    def chunks(self) -> dict[str, str]:
        """The text chunks of its PNG: for people, and as JSON for programs."""
        return {
            "Title": f"Solver Compare: {self.setup.name}",
            "Software": f"DPM-Solver nodes {self.setup.pack}",
            "Description": "\n".join(
                [*self.setup.lines(), "", table.text(self.cells, self.budgets, self.reference)]
            ),
            KEYWORD: json.dumps(self.data(), allow_nan=False),
        }

    def as_csv(self) -> str:
        """One line per run, each with the whole setup, so that several files can be joined."""
        setup = asdict(self.setup)
        lines = list(csv.reader(io.StringIO(table.as_csv(self.cells))))
        reference = {"reference": self.reference.label, "reference_calls": self.reference.calls}
        same = {**setup, **reference}
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*same, *lines[0]])
        for line in lines[1:]:
            writer.writerow([_cell(value) for value in (*same.values(), *line)])
        return stream.getvalue()

    def row(self) -> str:
        return markdown_row(self.data())


def _cell(value: object) -> str:
    """A value that no spreadsheet takes for a formula."""
    text = "" if value is None else str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


COLUMNS = ("Model", "Made on", "Calls", "Distance to the converged image", "With")


def markdown_table(*rows: str) -> str:
    """The table of these rows of `markdown_row`."""
    return "\n".join([_line(COLUMNS), _line(["---"] * len(COLUMNS)), *rows])


def _line(columns: Sequence[str]) -> str:
    return f"| {' | '.join(columns)} |"


def markdown_row(data: Mapping[str, Any]) -> str:
    """A comparison as one row of a Markdown table: each candidate's distances, the closest bold.

    Args:
        data: as `Report.data` makes it; it may come from a stranger's file.

    Raises:
        ValueError: it is no such data.
    """
    try:
        setup, calls, runs = data["setup"], [int(n) for n in data["calls"]], list(data["runs"])
        names = [str(run["candidate"]) for run in runs]
        cells = [_run(run, names.index(name)) for run, name in zip(runs, names, strict=True)]
        made_on = [
            " ".join(filter(None, (_text(setup["prediction"]), _number("shift ", setup["shift"])))),
            *(_number("CFG ", setup["cfg"]), _number("guidance ", setup["guidance"])),
            *(_text(setup["image"] or setup["latent"]), f"seed {int(setup['seed'])}"),
            *(_text(setup["weights"]), "patched" if setup["patched"] else ""),
        ]
        model = f"{_text(setup['name'])} ({_text(setup['model'])})"
        pack = _text(setup["pack"])
        if not (calls and cells and min(calls) > 0):
            raise ValueError
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise ValueError("this is no comparison of Solver Compare.") from error
    best = {id(cell) for cell in table.closest(cells, calls).values()}
    figures = [
        " ".join([_text(row[0].label), *(_figure(cell, id(cell) in best) for cell in row)])
        for row in table.by_row(cells)
    ]
    columns = [
        model,
        ", ".join(filter(None, made_on)),
        ", ".join(map(str, calls)),
        "<br>".join(figures),
        pack,
    ]
    return _line(columns)


def _run(run: Mapping[str, Any], row: int) -> Cell:
    error = run["error"]
    return Cell(
        str(run["candidate"])[:LABEL_LENGTH],
        row,
        None if run["wanted"] is None else int(run["wanted"]),
        int(run["calls"]),
        error=math.nan if error is None else float(error),
        failure="failed" if error is None else "",
    )


def _figure(cell: Cell, closest: bool) -> str:
    """The error; with the calls in brackets if they are not those of its column."""
    if cell.failure:
        return "failed"
    error = table.short(cell.error)
    calls = "" if cell.calls == cell.budget else f" ({cell.calls})"
    return f"**{error}**{calls}" if closest else error + calls


def _number(name: str, value: Any) -> str:
    return "" if value is None else f"{name}{float(value):g}"


def _text(value: Any) -> str:
    """Text from outside that means nothing else in a Markdown table."""
    plain = html.escape(escaped(str(value), LABEL_LENGTH), quote=False)
    return re.sub(r"([\\`*\[\]|~$])", r"\\\1", plain)


def read(path: Path) -> dict[str, Any]:
    """The comparison that a PNG of Solver Compare holds, as `Report.data` made it.

    Raises:
        ValueError: the file is missing, or holds none.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            text = picture.info[KEYWORD]
        data = json.loads(text if len(text) <= MOST_BYTES else "")
        if data["format"] == FORMAT:
            return dict(data)
    except UNREADABLE as error:
        raise ValueError(
            f"{escaped(path.name)} holds no comparison: take the PNG as Solver Compare saved it, not "
            "a screenshot or what a chat made of it."
        ) from error
    raise ValueError(f"{escaped(path.name)} was saved by a later version: update the pack.")


@cache
def pack_version() -> str:
    """The pack's version: a clone holds it in pyproject.toml, an installed package in its metadata."""
    try:
        text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
        return re.findall(r'^version = "(.+)"$', text, re.MULTILINE)[0]
    except (OSError, LookupError):
        try:
            return metadata.version("dpm-solver-nodes")
        except metadata.PackageNotFoundError:
            return "unknown"
