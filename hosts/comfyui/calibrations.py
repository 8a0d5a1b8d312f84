"""Saved calibrations in ComfyUI: their folder and menu, and SAMPLERs made of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import comfy.samplers
import folder_paths
import torch

from ...lab.calibration import files, texts
from ...samplers.checks import between, escaped
from ...samplers.log import LOG
from ...samplers.solvers.fitted import Calibrated, Calibration
from . import model_files, own_models, sampling
from .model import ComfyModel
from .own_models import FOLDER

NONE_YET = "(none yet: run DPM-Solver Calibrate)"

LATER = (
    "Image to image: these are DPM++ (recommended) and its sigmas for this start, with {calls} model "
    "calls. A calibration is for whole runs; on a stand-in for a large model its end was farther."
)
"""What the report of a calibration says first at a denoise below 1."""

MOST_NAMES, LONGEST_NAME = 3, 30
"""The most calibrations that an error lists, and the most letters of each."""


def register_folder() -> None:
    """Register the folder for calibrations with the host.

    Folders that extra_model_paths.yaml names stay; in the host's own the nodes save.
    """
    place = str(Path(folder_paths.models_dir) / FOLDER)
    named, _ = folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))
    others = [path for path in named if path != place]
    folder_paths.folder_names_and_paths[FOLDER] = ([place, *others], {files.EXTENSION})


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


def load(
    name: str, model: Any, denoise: float = 1.0, calls: int = 0, guidance: float = 0.0
) -> Pair:
    """The SAMPLER and SIGMAS of a saved calibration.

    Args:
        name: a file's name in the folder, with or without its ending.
        model: the host's MODEL to run it on.
        denoise: below 1, for image to image, it is the recommended sampler with as many calls as the
            list has below that part of the model's time; of sigmas for another sampler, those.
        calls, guidance: see `texts.choose`.

    Raises:
        ValueError: the file is missing or damaged, doesn't fit the model, or has none for the calls.
    """
    between("denoise", denoise, 0.0, 1.0)
    path, name_shown = _file(name), escaped(name, 100)
    if path is None:
        which = "There is no calibration" + (f' "{name_shown}"' if name != NONE_YET else " yet")
        raise ValueError(
            f"{which} in {escaped(str(folder()))}: run DPM-Solver Calibrate, or copy a file there; "
            "then press R and choose it."
        )
    found = texts.choose(files.load(path), calls, guidance)
    host_model = ComfyModel.of(model)
    try:
        host_model.check(found, f'The calibration "{name_shown}"')
    except ValueError as error:
        raise ValueError(f"{error} {_those_that_fit(host_model)}") from None
    text = texts.described(found)
    if denoise == 1.0:
        return pair(found, found.sigmas, text)
    if denoise == 0.0:
        return pair(found, (), text)
    first = found.nearest(host_model.sigma_at(denoise))
    if found.fitted.sampler:
        return pair(found, found.sigmas[first:], text)
    calls = found.calls - first
    sampler, sigmas = sampling.recommended_pair(host_model, calls, denoise, own_model=False)
    return Pair(sampler, sigmas, f"{LATER.format(calls=calls)}\n\n{text}")


def _those_that_fit(model: ComfyModel) -> str:
    fitting = []
    for name, one in own_models.saved():
        with contextlib.suppress(ValueError):
            model.check(one, "")
            fitting.append(escaped(files.portable(name), LONGEST_NAME))
    listed = list(dict.fromkeys(fitting))
    if not listed:
        return "None of the saved ones fits it."
    more = f" and {len(listed) - MOST_NAMES} more" if len(listed) > MOST_NAMES else ""
    return f"Those that fit it: {', '.join(listed[:MOST_NAMES])}{more}."


def fitting(names: Sequence[str]) -> list[str] | None:
    """The names of the saved calibrations that were made for such a model.

    Args:
        names: what may be the model's file: all names that its loader has. The first that the
            host can tell counts. Nodes after the loader may change a model's schedule, not its kind.

    Returns:
        None if the host can't tell.
    """
    kind = next(filter(None, map(model_files.kind_of, names)), "")
    if not kind:
        return None
    suited = [name for name, one in own_models.saved() if one.fitted.model in ("", kind)]
    return list(dict.fromkeys(map(files.portable, suited)))


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
    wanted = files.portable(str(name))  # a linked input may be a number
    for listed in folder_paths.get_filename_list(FOLDER):
        if files.portable(listed) in (wanted, wanted + files.EXTENSION):
            path = folder_paths.get_full_path(FOLDER, listed)
            return None if path is None else Path(path)  # None: a broken link
    return None


def about(name: str) -> str:
    """What a saved calibration says of itself; "" if there is none of this name."""
    path = _file(name)
    if path is None:
        return ""
    try:
        return texts.of_file(files.load(path))
    except ValueError as error:
        return str(error)


def calls_of(name: str) -> list[int]:
    """The numbers of model calls that a file has calibrations for; none if it can't be read."""
    path = _file(name)
    try:
        return sorted({one.calls for one in files.load(path)}) if path is not None else []
    except ValueError:
        return []


def pair(found: Calibration, sigmas: Sequence[float], text: str) -> Pair:
    """A calibration's SAMPLER, with these of its sigmas.

    Raises:
        ValueError: the sigmas are for a sampler that this host doesn't have.
    """
    name = found.fitted.sampler
    if not name:
        sampler = sampling.sampler(Calibrated(calibration=found))
    elif name in comfy.samplers.KSampler.SAMPLERS:
        sampler = comfy.samplers.sampler_object(name)
    else:
        raise ValueError(
            f"The sigmas of this calibration are for the sampler {escaped(name)}, which this ComfyUI "
            "does not have."
        )
    return Pair(sampler, torch.FloatTensor(sigmas), text)


def folder() -> Path:
    return Path(folder_paths.get_folder_paths(FOLDER)[0])


def check_name(name: str) -> None:
    """Raise ValueError if this is no valid file name on every system."""
    files.free_path(folder(), name)


def saved(found: Sequence[Calibration], name: str, mark: str = "") -> str:
    """Save under a free name, and say where. If it can't be written, say why: the run goes on."""
    try:
        path = files.free_path(folder(), name, mark)
        files.save(found, path)
    except OSError as error:
        why = escaped(str(error))
        LOG.warning(f"DPM-Solver Calibrate could not save its result: {why}")
        return f"Not saved: {why}."
    shown = path.relative_to(folder()).as_posix()
    return f"Saved as {shown} in {escaped(str(folder()))}."
