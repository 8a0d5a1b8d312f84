"""Saved calibrations in ComfyUI: their folder and menu, and SAMPLERs made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import comfy.samplers
import folder_paths
import torch

from ...lab.calibration import files
from ...samplers.checks import between, escaped
from ...samplers.log import LOG
from ...samplers.solvers.fitted import Calibrated, Calibration
from . import sampling
from .model import ComfyModel

FOLDER = "dpm_solver"
"""The folder for calibrations among the host's models."""

NONE_YET = "(none yet: run DPM-Solver Calibrate)"


def register_folder() -> None:
    """Register the folder for calibrations with the host."""
    if FOLDER not in folder_paths.folder_names_and_paths:
        place = str(Path(folder_paths.models_dir) / FOLDER)
        folder_paths.folder_names_and_paths[FOLDER] = ([place], {files.EXTENSION})


def names() -> list[str]:
    """The names of the saved calibrations for a menu, without broken links."""
    listed = folder_paths.get_filename_list(FOLDER)
    there = [name for name in listed if folder_paths.get_full_path(FOLDER, name) is not None]
    return list(map(files.portable, there)) or [NONE_YET]


class Pair(NamedTuple):
    """A sampler, its sigmas, and a text about them."""

    sampler: comfy.samplers.KSAMPLER
    sigmas: torch.Tensor
    text: str


def load(name: str, model: Any, denoise: float = 1.0) -> Pair:
    """The SAMPLER and SIGMAS of a saved calibration.

    Args:
        name: a file's name in the folder, with or without its ending.
        model: the host's MODEL to run it on.
        denoise: below 1, for image to image, only the sigmas of that last part of the model's time.

    Raises:
        ValueError: the file is missing or damaged, or doesn't fit the model.
    """
    between("denoise", denoise, 0.0, 1.0)
    path, name_shown = _file(name), escaped(name, 100)
    if path is None:
        which = "There is no calibration" + (f' "{name_shown}"' if name != NONE_YET else " yet")
        raise ValueError(
            f"{which} in {escaped(str(folder()))}: run DPM-Solver Calibrate, or copy a file there; "
            "then press R and choose it."
        )
    found = files.load(path)
    host_model = ComfyModel.of(model)
    host_model.check(found, f'The calibration "{name_shown}"')
    text = described(found)
    if denoise == 1.0:
        return pair(found, found.sigmas, text)
    if denoise == 0.0:
        return pair(found, (), text)
    first = found.nearest(host_model.sigma_at(denoise))
    return pair(found, found.sigmas[first:], text)


def fingerprint(name: str) -> str:
    """A text that changes if the file of this name is replaced or edited."""
    path = _file(name)
    try:
        state = None if path is None else path.stat()
    except OSError:  # removed meanwhile
        state = None
    return "" if state is None else f"{state.st_mtime_ns} {state.st_size}"


def _file(name: str) -> Path | None:
    """The path of the calibration of this name, with or without its ending; None if there is none.

    Only files on the host's list count, so that a name can't lead out of the folder. The host lists
    files in subfolders as its system writes them, and a workflow may come from another system.
    """
    wanted = files.portable(name)
    for listed in folder_paths.get_filename_list(FOLDER):
        if files.portable(listed) in (wanted, wanted + files.EXTENSION):
            path = folder_paths.get_full_path(FOLDER, listed)
            return None if path is None else Path(path)  # None: a broken link
    return None


def pair(found: Calibration, sigmas: Sequence[float], text: str) -> Pair:
    sampler = sampling.sampler(Calibrated(calibration=found))
    return Pair(sampler, torch.FloatTensor(sigmas), text)


def folder() -> Path:
    return Path(folder_paths.get_folder_paths(FOLDER)[0])


def described(found: Calibration) -> str:
    fitted = found.fitted
    guidance = "" if fitted.guidance is None else f", CFG {fitted.guidance:g}"
    lines = [
        f"{found.calls} model calls, for {fitted.model or 'any model'}{guidance}; "
        f"fitted on {fitted.seeds} seeds with {fitted.model_calls} model calls."
    ]
    if fitted.stopped:
        lines.append(
            "Not measured, as its calibration was stopped: compare it with other samplers, or "
            "calibrate again."
        )
    if fitted.errors:
        lines.append("Distance to the converged image, on other seeds than it was fitted on:")
        lines += [f"  {error:.4f}  {name}" for name, error in fitted.errors.items()]
    return "\n".join(lines)


def check_name(name: str) -> None:
    """Raise ValueError if this is no valid file name on every system."""
    files.free_path(folder(), name)


def saved(found: Calibration, name: str, mark: str = "") -> str:
    """Save under a free name, and say where. If it can't be written, say why: the run goes on."""
    try:
        path = files.free_path(folder(), name, mark)
        files.save(found, path)
    except OSError as error:
        why = escaped(str(error))
        LOG.warning(f"DPM-Solver Calibrate could not save its result: {why}")
        return f"Not saved: {why}."
    return f"Saved as {path.name} in {escaped(str(path.parent))}."
