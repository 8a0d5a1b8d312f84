"""Files of calibrations: safetensors with two tensors, portable and checked when they are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as to_bytes

from ...samplers.plan import Weights
from ...samplers.solvers.fitted import MOST_CALLS, Calibration, Fitted

FORMAT = "dpm_solver_calibration"
VERSION = 1
EXTENSION = ".safetensors"

LONGEST_NAME = 100
"""In bytes."""

DEVICES = {"CON", "PRN", "AUX", "NUL"} | {
    device + digit for device in ("COM", "LPT") for digit in "0123456789¹²³"
}
"""Windows opens these in place of a file, whatever stands behind a first dot."""

MOST_OUTPUTS, MOST_BYTES = 16, 1 << 20
"""Larger files are no calibrations."""

UNREADABLE = (OSError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError)
"""What the content of a damaged or of a forged file may lead to."""


def free_path(folder: Path, name: str) -> Path:
    """A file of this name, or of this name and a number, that is not there yet.

    The file can be copied to any other system: names that differ in case alone are one name.

    Raises:
        ValueError: the name would lead elsewhere, or is none that every system can hold.
    """
    stem = name.removesuffix(EXTENSION)
    if len(stem.encode()) > LONGEST_NAME:
        raise ValueError(f"name is longer than {LONGEST_NAME} bytes: {name[:60]!r}...; shorten it.")
    if not re.fullmatch(r"\w[\w .\-+]*", stem) or stem.endswith((" ", ".")):
        raise ValueError(
            f"name is {name!r}: use letters, digits, spaces, and . _ - + alone, begin with a letter "
            "or a digit, and end with no dot or space."
        )
    if stem.partition(".")[0].rstrip().upper() in DEVICES:
        raise ValueError(f"name is {name[:60]!r}, which Windows keeps for a device: take another.")
    taken = {path.name.casefold() for path in folder.iterdir()} if folder.is_dir() else set()
    path, number = folder / f"{stem}{EXTENSION}", 2
    while path.name.casefold() in taken:
        path = folder / f"{stem}_{number}{EXTENSION}"
        number += 1
    return path


def portable(name: str) -> str:
    """A name in a subfolder as the workflows of every system hold it."""
    return name.replace("\\", "/")


def save(calibration: Calibration, path: Path) -> None:
    """Write a calibration as a safetensors file.

    Raises:
        FileExistsError: there is a file of this name: it is never overwritten.
        OSError: it can't be written.
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
        "sigmas": torch.tensor(calibration.sigmas, dtype=torch.float64),
        "weights": torch.tensor(rows, dtype=torch.float64),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(to_bytes(tensors, metadata))


def load(path: Path) -> Calibration:
    """Read a calibration.

    Raises:
        ValueError: the file is no calibration, is damaged, or is of a later version.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("it is too large to be one.")
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError("it holds something else.")
            if metadata.get("version") != str(VERSION):
                raise ValueError(
                    f"it is of version {str(metadata.get('version'))[:20]}, and this pack reads "
                    f"{VERSION}: "
                    "update the pack."
                )
            sigmas = _numbers(file.get_tensor("sigmas"), 1)
            rows = _numbers(file.get_tensor("weights"), 2)
            fitted = _fitted(json.loads(metadata.get("fitted", "{}")))
        steps = tuple(
            Weights(row[0], tuple(row[1 : 2 + min(i, len(row) - 2)])) for i, row in enumerate(rows)
        )
        return Calibration(metadata.get("kind", ""), tuple(sigmas), steps, fitted)
    except safetensors.SafetensorError:
        raise ValueError(
            f"{path.name} is no calibration that can be used: it is no safetensors file, or was "
            "damaged in copying; copy it again, or choose another."
        ) from None
    except UNREADABLE as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"{path.name} is no calibration that can be used: {why}") from None


def _numbers(tensor: torch.Tensor, dimensions: int) -> Any:
    most = (MOST_CALLS + 1, MOST_OUTPUTS + 1)[:dimensions]
    fits = tensor.ndim == dimensions and all(
        size <= limit for size, limit in zip(tensor.shape, most, strict=True)
    )
    if not fits or not tensor.is_floating_point() or tensor.numel() == 0:
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is not what it should hold.")
    return tensor.to(torch.float64).tolist()


def _fitted(given: object) -> Fitted:
    if not isinstance(given, Mapping):
        raise ValueError("what it says of its origin can't be read.")
    guidance = given.get("guidance")
    return Fitted(
        model=str(given.get("model", "")),
        guidance=None if guidance is None else float(guidance),
        seeds=int(given.get("seeds", 0)),
        model_calls=int(given.get("model_calls", 0)),
        errors={str(name): float(value) for name, value in dict(given.get("errors", {})).items()},
    )
