"""Prints the rows of docs/which-sampler.md for pictures that Solver Compare saved.

python -m dpm_solver_nodes.tools.which_sampler PNG [PNG ...]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..lab import report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PNG")
    failed = 0
    for path in parser.parse_args(argv).pictures:
        try:
            print(report.markdown_row(report.read(path)))
        except ValueError as error:
            print(error, file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
