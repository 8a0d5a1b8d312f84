"""Calibration files: safetensors with two tensors, portable between systems and checked on reading."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
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
VERSION = 1
EXTENSION = ".safetensors"

UNMEASURED = "_unmeasured"
"""The ending of the name of a calibration that was stopped."""

LONGEST_NAME = 100
"""In bytes."""

DEVICES = {"CON", "PRN", "AUX", "NUL"} | {
    device + digit for device in ("COM", "LPT") for digit in "0123456789¹²³"
}
"""Device names: Windows opens the device in place of a file, whatever follows the first dot."""

MOST_OUTPUTS, MOST_BYTES = 16, 1 << 20
"""In bytes. A larger file is no calibration."""

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MOST_ERRORS, LONGEST_TEXT, MOST_COUNT = 16, 60, 10**12
"""Bounds for the metadata of a file: the most errors, characters of a name, and seeds or calls."""

UNREADABLE = (OSError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError)
"""The exceptions that the content of a damaged or forged file may raise."""


def free_path(folder: Path, name: str, mark: str = "") -> Path:
    """A path for a new file of this name, with a number added if the name is taken.

    The file can be copied to any other system, so names that differ only in case count as the same.

    Args:
        mark: an ending to add to the name.

    Raises:
        ValueError: the name leads to another folder, or some system can't hold it.
    """
    stem = name.removesuffix(EXTENSION)
    if not re.fullmatch(r"\w[\w .\-+]*", stem) or stem.endswith((" ", ".")):
        raise ValueError(
            f"name is {quoted(name)}: use only letters, digits, spaces and . _ - +, begin with a "
            "letter or a digit, and don't end with a dot or a space."
        )
    if len(stem.encode()) > LONGEST_NAME:
        raise ValueError(f"name is longer than {LONGEST_NAME} bytes: {quoted(name)}; shorten it.")
    if stem.partition(".")[0].rstrip().upper() in DEVICES:
        raise ValueError(
            f"name is {quoted(name)}, which Windows reserves for a device: take another."
        )
    stem += mark
    taken = {path.name.casefold() for path in folder.iterdir()} if folder.is_dir() else set()
    path, number = folder / f"{stem}{EXTENSION}", 2
    while path.name.casefold() in taken:
        path = folder / f"{stem}_{number}{EXTENSION}"
        number += 1
    return path


def portable(name: str) -> str:
    """A name with its subfolder, in the way in which workflows hold it on every system."""
    return name.replace("\\", "/")


def save(calibration: Calibration, path: Path) -> None:
    """Write a calibration as a safetensors file.

    Raises:
        FileExistsError: the file exists; it is never overwritten.
        OSError: the file can't be written.
    """
    width = max(len(step.outputs) for step in calibration.steps)
    rows = [
        [step.state, *step.outputs, *[0.0] * (width - len(step.outputs))]
        for step in calibration.steps
    ]
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "kind": calibration.kind,
        "fitted": json.dumps(asdict(calibration.fitted)),
    }
    tensors = {
        "sigmas": as_float64(calibration.sigmas),
        "weights": as_float64(np.array(rows)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(to_bytes(tensors, metadata))


def load(path: Path) -> Calibration:
    """Read a calibration.

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
        if metadata.get("version") != str(VERSION):
            raise ValueError(
                f"it is of version {escaped(str(metadata.get('version')), 20)}, and this pack "
                f"reads {VERSION}: update the pack."
            )
        sigmas, rows = _numbers(tensors["sigmas"], 1), _numbers(tensors["weights"], 2)
        fitted = _fitted(metadata.get("fitted", "{}"))
        steps = tuple(
            Weights(row[0], tuple(row[1 : 2 + min(i, len(row) - 2)])) for i, row in enumerate(rows)
        )
        return Calibration(metadata.get("kind", ""), tuple(sigmas), steps, fitted)
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


def _fitted(text: str) -> Fitted:
    """What a file says of its origin. It may hold anything, so all of it is checked."""
    try:
        return _read_fitted(json.loads(text))
    except (AttributeError, *UNREADABLE):
        raise ValueError("its description of the model it was fitted on can't be read.") from None


def _read_fitted(given: Any) -> Fitted:
    guidance = given.get("guidance")
    seeds, model_calls = (int(given.get(name, 0)) for name in ("seeds", "model_calls"))
    errors = {_text(name): float(value) for name, value in given.get("errors", {}).items()}
    numbers = (0.0 if guidance is None else float(guidance), *errors.values())
    if not 0 <= min(seeds, model_calls) <= max(seeds, model_calls) <= MOST_COUNT:
        raise ValueError
    if len(errors) > MOST_ERRORS or any(map(math.isnan, numbers)):
        raise ValueError
    return Fitted(
        model=_text(given.get("model", "")),
        guidance=None if guidance is None else float(guidance),
        seeds=seeds,
        model_calls=model_calls,
        errors=errors,
        stopped=bool(given.get("stopped", False)),
    )


def _text(given: object) -> str:
    return escaped(str(given), LONGEST_TEXT)
