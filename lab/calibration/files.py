"""Calibration files: safetensors, portable between systems and checked on reading.

A file holds one or several calibrations: for several numbers of calls, samplers or guidances. Each has
the tensors "sigmas" and "weights", from the second on with a number after the name; one for a sampler
that has its own weights has no "weights". What each was fitted on is JSON among the metadata.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from ...samplers.checks import escaped, quoted
from ...samplers.devices import as_float64
from ...samplers.plan import Weights
from ...samplers.solvers.fitted import MOST_CALLS, Calibration, Fitted

FORMAT = "dpm_solver_calibration"
VERSION = 2
READ_VERSIONS = ("1", "2")
"""Version 1 held one calibration with its weights, and said less about it."""

EXTENSION = ".safetensors"

UNMEASURED = "_unmeasured"
"""The ending of the name of a calibration that was stopped."""

LONGEST_NAME, MOST_PARENTS = 100, 4
"""In bytes, of a file or folder; and how many folders are one in the other."""

DEVICES = {"CON", "PRN", "AUX", "NUL"} | {
    device + digit for device in ("COM", "LPT") for digit in "0123456789¹²³"
}
"""Device names: Windows opens the device in place of a file, whatever follows the first dot."""

MOST_OUTPUTS, MOST_BYTES = 16, 1 << 20
"""In bytes. A larger file is no calibration."""

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MOST_ERRORS, LONGEST_TEXT, MOST_COUNT, MOST_AXES = 40, 64, 10**12, 8
"""Bounds for the metadata of a file: the most errors, characters of a name, and seeds or calls."""

MOST_CALIBRATIONS = 100
"""In a file."""

UNREADABLE = (OSError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError)
"""The exceptions that the content of a damaged or forged file may raise."""


def free_path(folder: Path, name: str, mark: str = "") -> Path:
    """A path for a new file of this name, with a number added if the name is taken.

    The file can be copied to any other system, so names that differ only in case count as the same.

    Args:
        name: of the file, with the subfolders that it is in, "/" between them.
        mark: an ending to add to the name.

    Raises:
        ValueError: the name leads out of the folder, or some system can't hold it.
    """
    *parents, stem = name.removesuffix(EXTENSION).split("/")
    for part in (*parents, stem):
        _check_part(part, name)
    if len(parents) > MOST_PARENTS:
        raise ValueError(f"name has more than {MOST_PARENTS} subfolders: {quoted(name)}.")
    folder = folder.joinpath(*parents)
    stem += mark
    taken = {path.name.casefold() for path in folder.iterdir()} if folder.is_dir() else set()
    path, number = folder / f"{stem}{EXTENSION}", 2
    while path.name.casefold() in taken:
        path = folder / f"{stem}_{number}{EXTENSION}"
        number += 1
    return path


def _check_part(part: str, name: str) -> None:
    """Raise ValueError if a file or folder can't be called so on some system."""
    if not re.fullmatch(r"\w[\w .\-+]*", part) or part.endswith((" ", ".")):
        raise ValueError(
            f"name is {quoted(name)}: use only letters, digits, spaces and . _ - +, begin with a "
            "letter or a digit, and don't end with a dot or a space; / leads to a subfolder."
        )
    if len(part.encode()) > LONGEST_NAME:
        raise ValueError(f"name is longer than {LONGEST_NAME} bytes: {quoted(name)}; shorten it.")
    if part.partition(".")[0].rstrip().upper() in DEVICES:
        raise ValueError(
            f"name is {quoted(name)}, which Windows reserves for a device: take another."
        )


def portable(name: str) -> str:
    """A name with its subfolder, in the way in which workflows hold it on every system."""
    return name.replace("\\", "/")


def save(calibrations: Sequence[Calibration], path: Path) -> None:
    """Write calibrations as a safetensors file.

    Raises:
        FileExistsError: the file exists; it is never overwritten.
        OSError: the file can't be written.
        ValueError: they are too many, or of different kinds of model.
    """
    if not 1 <= len(calibrations) <= MOST_CALIBRATIONS:
        raise ValueError(f"A file holds 1 to {MOST_CALIBRATIONS} calibrations.")
    if len({one.kind for one in calibrations}) > 1:
        raise ValueError("A file holds calibrations either for flow models or for others.")
    tensors: dict[str, torch.Tensor] = {}
    for number, one in enumerate(calibrations):
        tensors[f"sigmas{number or ''}"] = as_float64(one.sigmas)
        if one.steps:
            width = max(len(step.outputs) for step in one.steps)
            rows = [
                [step.state, *step.outputs, *[0.0] * (width - len(step.outputs))]
                for step in one.steps
            ]
            tensors[f"weights{number or ''}"] = as_float64(np.array(rows))
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "kind": calibrations[0].kind,
        "fitted": json.dumps([asdict(_shortened(one.fitted)) for one in calibrations]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    content = to_bytes(tensors, metadata)
    file = path.open("xb")
    try:
        with file:
            file.write(content)
    except OSError:  # a full disk: no part of a file is left
        path.unlink(missing_ok=True)
        raise


def _shortened(fitted: Fitted) -> Fitted:
    """With the least of its errors: beside other packs there are more schedulers than a file holds."""
    least = sorted(fitted.errors.items(), key=lambda item: item[1])[:MOST_ERRORS]
    return replace(fitted, errors=dict(least)) if len(fitted.errors) > MOST_ERRORS else fitted


def load(path: Path) -> tuple[Calibration, ...]:
    """Read the calibrations of a file, at least one.

    Raises:
        ValueError: the file is missing, damaged, of a later version, or no calibration.
    """
    file_name = escaped(path.name)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("it is too large to be one.")
        # Read the bytes ourselves: safetensors can't open a file whose name is no UTF-8.
        content = path.read_bytes()
        tensors, metadata = from_bytes(content), _metadata(content)
        if metadata.get("format") != FORMAT:
            raise ValueError("it holds something else.")
        if metadata.get("version") not in READ_VERSIONS:
            raise ValueError(
                f"it is of version {escaped(str(metadata.get('version')), 20)}, and this pack "
                f"reads {VERSION}: update the pack."
            )
        fitted = _fitted(metadata.get("fitted", "{}"))
        return tuple(
            _calibration(tensors, str(number or ""), metadata.get("kind", ""), each)
            for number, each in enumerate(fitted)
        )
    except safetensors.SafetensorError:
        raise ValueError(
            f"{file_name} is no calibration that can be used: it is no safetensors file, or was "
            "damaged in copying; copy it again, or choose another calibration."
        ) from None
    except OSError as error:
        raise ValueError(
            f"{file_name} is no calibration that can be used: it can't be read "
            f"({error.strerror or 'no reason is given'}); copy it again, or choose another "
            "calibration."
        ) from None
    except UNREADABLE as error:
        why = escaped(" ".join(str(error).split()), 200)
        raise ValueError(f"{file_name} is no calibration that can be used: {why}") from None


def _calibration(
    tensors: Mapping[str, torch.Tensor], number: str, kind: str, fitted: Fitted
) -> Calibration:
    sigmas = _numbers(tensors[f"sigmas{number}"], 1)
    if fitted.sampler and f"weights{number}" not in tensors:
        return Calibration(kind, tuple(sigmas), (), fitted)
    rows = _numbers(tensors[f"weights{number}"], 2)
    steps = tuple(
        Weights(row[0], tuple(row[1 : 2 + min(i, len(row) - 2)])) for i, row in enumerate(rows)
    )
    return Calibration(kind, tuple(sigmas), steps, fitted)


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file that has been read without an error."""
    length = int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return found


def _numbers(tensor: torch.Tensor, dimensions: int) -> Any:
    most = (MOST_CALLS + 1, MOST_OUTPUTS + 1)[:dimensions]
    fits = tensor.ndim == dimensions and all(
        size <= limit for size, limit in zip(tensor.shape, most, strict=True)
    )
    if not fits or tensor.dtype not in DTYPES or tensor.numel() == 0:
        raise ValueError(f"it holds a tensor of the wrong shape {tuple(tensor.shape)}.")
    return tensor.to(torch.float64).tolist()


def _fitted(text: str) -> list[Fitted]:
    """What a file says of its origin. It may hold anything, so all of it is checked."""
    try:
        given = json.loads(text)
        parts = given if isinstance(given, list) else [given]  # version 1: of the only one
        if not 1 <= len(parts) <= MOST_CALIBRATIONS:
            raise ValueError
        return [_read_fitted(part) for part in parts]
    except (AttributeError, *UNREADABLE):
        raise ValueError("its description of the model it was fitted on can't be read.") from None


def _read_fitted(given: Any) -> Fitted:
    guidance, shift = (
        None if given.get(name) is None else float(given[name]) for name in ("guidance", "shift")
    )
    counts = {
        name: int(given.get(name, default))
        for name, default in (
            *(("seeds", 0), ("model_calls", 0)),
            *(("prompts", 1), ("unconverged", 0)),
        )
    }
    errors = {_text(name): float(value) for name, value in given.get("errors", {}).items()}
    shape = tuple(map(int, given.get("shape", ())))
    numbers = (guidance or 0.0, shift or 0.0, *errors.values())
    whole = (*counts.values(), *shape)
    if not 0 <= min(whole) <= max(whole) <= MOST_COUNT or len(shape) > MOST_AXES:
        raise ValueError
    if len(errors) > MOST_ERRORS or any(map(math.isnan, numbers)):
        raise ValueError
    return Fitted(
        model=_text(given.get("model", "")),
        guidance=guidance,
        errors=errors,
        stopped=bool(given.get("stopped", False)),
        sampler=_text(given.get("sampler", "")),
        shape=shape,
        shift=shift,
        version=_text(given.get("version", "")),
        fingerprint=_text(given.get("fingerprint", "")),
        **counts,
    )


def _text(given: object) -> str:
    return escaped(str(given), LONGEST_TEXT)
