"""Measure the pack on other ComfyUIs, Pythons and torches, as a table for docs/compatibility.md.

    python -m dpm_solver_nodes.tools.compatibility                 all combinations
    python -m dpm_solver_nodes.tools.compatibility 0.18.2 3.10     only names with either part

Each is a real ComfyUI on the CPU, in an environment that uv makes in the cache folder.  A torch takes
some GB: `UV_TORCH_BACKEND=cpu` makes uv take the small builds, and `--discard` removes each
environment after its measurement.  uv must find the Pythons, or be able to download them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from dpm_solver_nodes.tests.support.digits import MENU
from dpm_solver_nodes.tools.compatibility.checks import NODES, Measured, measure
from dpm_solver_nodes.tools.compatibility.combinations import (
    COMBINATIONS,
    REFERENCE,
    Combination,
)
from dpm_solver_nodes.tools.server import environment

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
OUTPUT = Path(__file__).resolve().parent / "out"
MARKS = ("<!-- compatibility -->", "<!-- /compatibility -->")
CLOSE, CLOSE_ADAPTIVE = 1e-4, 1e-2
"""The largest differences that count as rounding. Adaptive samplers choose steps by small errors,
which enlarges it."""


@dataclass(frozen=True)
class Row:
    """One line of the table; the output folder keeps it as a file."""

    nodes: int
    samplers: int
    difference: float | None
    adaptive: float | None
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        if self.failures or self.difference is None or self.adaptive is None:
            return False
        return self.difference < CLOSE and self.adaptive < CLOSE_ADAPTIVE


def row(measured: Measured, reference: Measured) -> Row:
    """The largest difference of a pixel, over all images that both made."""
    fixed: list[float] = []
    adaptive: list[float] = []
    for name, image in measured.images.items():
        if other := reference.images.get(name):
            largest = float((image.latent.double() - other.latent.double()).abs().max())
            (adaptive if "_adaptive_" in name else fixed).append(largest)
    return Row(
        measured.nodes,
        measured.samplers,
        max(fixed, default=None),
        max(adaptive, default=None),
        measured.failures,
    )


def table(rows: Iterable[tuple[Combination, Row]]) -> str:
    """The table in Markdown."""
    lines = [
        "| ComfyUI | Python | torch | Nodes | Samplers | Worst pixel | If adaptive | Result |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for combination, found in rows:
        differences = [_shown(value) for value in (found.difference, found.adaptive)]
        if combination == REFERENCE:
            differences = ["the reference", ""]
        cells = [
            *combination,
            f"{found.nodes} of {len(NODES)}",
            f"{found.samplers} of {len(MENU)}",
            *differences,
            "passed" if found.passed else "; ".join(found.failures) or "differs",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(difference: float | None) -> str:
    if difference is None:
        return "–"
    return f"{difference:.0e}" if difference else "none"


def kept(folder: Path) -> list[tuple[Combination, Row]]:
    """All results, new and earlier ones, in the order of the combinations."""
    found = []
    for combination in COMBINATIONS:
        path = folder / f"{combination.name}.json"
        if path.exists():
            values = json.loads(path.read_text(encoding="utf-8"))
            found.append((combination, Row(**values | {"failures": tuple(values["failures"])})))
    return found


def into_page(text: str, path: Path) -> bool:
    """Put the table between the page's marks, if it has them."""
    page = path.read_text(encoding="utf-8")
    before, start, rest = page.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (start and end):
        return False
    new = f"{before}{start}\n{text}\n{end}{after}"
    path.write_text(new, encoding="utf-8", newline="\n")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="parts of names (ComfyUI-Python-torch)")
    parser.add_argument("--list", action="store_true", help="only print the names")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="where the results are kept")
    parser.add_argument("--table", type=Path, help="a file for the table, instead of the page")
    parser.add_argument("--discard", action="store_true", help="remove each environment afterwards")
    options = parser.parse_args()
    chosen = [
        combination
        for combination in COMBINATIONS
        if not options.names or any(name in combination.name for name in options.names)
    ]
    if options.list or not chosen:
        print(*(combination.name for combination in chosen or COMBINATIONS), sep="\n")
        return int(not options.list)
    options.out.mkdir(parents=True, exist_ok=True)
    reference = measure(REFERENCE)
    bad = False
    for combination in chosen:
        began = time.monotonic()
        measured = reference if combination == REFERENCE else measure(combination)
        found = row(measured, reference)
        path = options.out / f"{combination.name}.json"
        path.write_text(json.dumps(asdict(found), indent=1), encoding="utf-8", newline="\n")
        seconds = time.monotonic() - began
        print(
            f"{combination.name}: {'passed' if found.passed else found.failures} ({seconds:.0f} s)"
        )
        bad |= not found.passed
        if options.discard:
            discard(combination)
    text = table(kept(options.out))
    print(text)
    if options.table:
        options.table.write_text(text + "\n", encoding="utf-8", newline="\n")
    elif not into_page(text, PAGE):
        print(f"{PAGE} has no {MARKS[0]} ... {MARKS[1]} to put it between.", file=sys.stderr)
    return int(bad)


def discard(combination: Combination) -> None:
    """Remove an environment from the cache folder, unless this process runs in it."""
    place = environment(*combination).parents[1]
    if place != Path(sys.prefix) and place.name.endswith("-lab"):
        shutil.rmtree(place)


if __name__ == "__main__":
    sys.exit(main())
