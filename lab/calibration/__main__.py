"""Lists, checks and merges calibration files.

python -m dpm_solver_nodes.lab.calibration list models/dpm_solver
python -m dpm_solver_nodes.lab.calibration check FILE ...
python -m dpm_solver_nodes.lab.calibration merge NEW FILE FILE ...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import files, texts


def found_in(paths: Sequence[Path]) -> Iterator[Path]:
    """The files themselves, and the calibration files in folders and their subfolders."""
    for path in paths:
        yield from sorted(path.rglob(f"*{files.EXTENSION}")) if path.is_dir() else [path]


def list_files(paths: Sequence[Path]) -> int:
    """A line for each calibration; the number of files that can't be used."""
    refused = 0
    for path in found_in(paths):
        try:
            lines = [texts.made_for(one) for one in files.load(path)]
        except ValueError as error:
            lines, refused = [str(error)], refused + 1
        print(path, *(f"  {line}" for line in lines), sep="\n")
    return refused


def check_files(paths: Sequence[Path]) -> int:
    """All that each file says; the number of files that can't be used."""
    refused = 0
    for path in found_in(paths):
        try:
            print(path, texts.of_file(files.load(path)), "", sep="\n")
        except ValueError as error:
            print(error)
            refused += 1
    return refused


def merge_files(new: Path, paths: Sequence[Path]) -> int:
    """Write all calibrations into one file; 1 if it can't be done."""
    try:
        parts = texts.merged([files.load(path) for path in paths])
        files.save(parts, new)
    except (ValueError, OSError) as error:
        print(f"Nothing was written: {error}")
        return 1
    print(f"{new}: {len(parts)} calibrations.")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dpm_solver_nodes.lab.calibration", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("list", "a line for each calibration"), ("check", "all that is in them")):
        command = commands.add_parser(name, help=what)
        command.add_argument("paths", nargs="+", type=Path, help="files, or folders with files")
    merge = commands.add_parser("merge", help="put the calibrations of some files into a new one")
    merge.add_argument("new", type=Path)
    merge.add_argument("paths", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "merge":
        return merge_files(options.new, options.paths)
    refused = (list_files if options.command == "list" else check_files)(options.paths)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
