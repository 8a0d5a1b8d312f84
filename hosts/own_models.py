"""Calibrations of the very model that is sampled: found by a fingerprint of its weights.

Each host reads its model's weights, its saved calibrations and the guidance of a run, and asks here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..samplers.checks import escaped
from ..samplers.grid import Grid
from ..samplers.log import LOG
from ..samplers.options import Options
from ..samplers.solvers.fitted import SAME_SIGMA, Calibration
from ..samplers.solvers.recommended import Recommended
from ..samplers.solvers.rows import positions_of
from .model import HostModel

TENSORS, VALUES = 16, 8
"""How many tensors of a model enter its fingerprint, and how many values of each."""

OTHER_GUIDANCE = 0.3
"""How much the guidance may differ from a calibration's, relative to that one."""

NOT_TO_TELL = (
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What unusual weights, such as quantised ones of other packs, may raise."""

Saved = tuple[str, Calibration]
"""A file's name, and what it holds."""


def fingerprint(
    weights: Mapping[str, torch.Tensor],
    patches: Mapping[Any, Any],
    original: Callable[[str], Any] = lambda _name: None,
) -> str:
    """A text that tells a model, with its LoRAs, from others; "" if its weights can't be read.

    It is made of a few values of some weights, as they are without patches, and of some patches.

    Args:
        weights: of the network, by the names that they have in it.
        patches: key -> patches of that weight, as ComfyUI has them.
        original: the weight of this name before it was patched; None if it was not.
    """
    found = hashlib.sha256()

    def add(name: str, weight: torch.Tensor) -> None:
        flat = weight.detach().reshape(-1)
        places = torch.linspace(0, flat.numel() - 1, min(VALUES, flat.numel())).long()
        values = flat[places.to(flat.device)].cpu().float().tolist()
        found.update(f"{name} {tuple(weight.shape)} {values}".encode())

    try:
        for name in _some(sorted(weights)):
            before = original(name)
            add(name, weights[name] if before is None else before)
        found.update(str(len(patches)).encode())
        for key in _some(sorted(patches)):
            for strength, patch, *others in patches[key]:
                found.update(f"{key} {strength} {others[:1]}".encode())
                for tensor in _tensors(patch):
                    add(str(key), tensor)
    except NOT_TO_TELL as error:
        LOG.debug("no fingerprint of this model", exc_info=error)
        return ""
    return found.hexdigest()[:32] if weights else ""


def _some(names: list[Any]) -> list[Any]:
    """At most TENSORS of the names, evenly."""
    step = max(1, math.ceil(len(names) / TENSORS))
    return names[::step]


def _tensors(patch: Any) -> Iterator[torch.Tensor]:
    """The tensors of a patch: of an adapter's weights, or in nested tuples."""
    if isinstance(patch, torch.Tensor):
        yield patch
    elif isinstance(patch, (tuple, list)):
        for part in patch:
            yield from _tensors(part)
    elif hasattr(patch, "weights"):
        yield from _tensors(patch.weights)


def taken(options: Options, find: Callable[[], Saved | None], switch: str) -> Saved | None:
    """The calibration to run in place of the recommended sampler; None to run what was chosen.

    This never raises, and says in the log what is taken.

    Args:
        options: what was chosen.
        find: the host's call of `best`.
        switch: what switches that off, in the log's words.
    """
    if not isinstance(options, Recommended):
        return None
    try:
        found = find()
    except Exception as error:  # of any type: a run never ends for this
        LOG.debug("no calibration was looked for", exc_info=error)
        return None
    if found is not None:
        name, one = found
        LOG.info(
            f"DPM++ (recommended): takes the calibration {escaped(name, 100)}, which was made on this "
            f"model for {one.calls} calls; {switch} switches that off."
        )
    return found


def best(
    saved: Iterable[Saved],
    model: HostModel,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    guidance: float,
    own: Callable[[], str],
) -> Saved | None:
    """The calibration for a run of the recommended sampler, if there is one.

    It was made on a model of the same fingerprint, kind and shift, for so many calls and about this
    guidance, and measured closer. A part of a list, or another list than the recommended one, is run
    as ever. Of several, the one for the nearest size of image.

    Args:
        x, sigmas: of the run.
        own: the model's fingerprint, which is asked for only if there is a calibration to compare.
    """
    grid = Grid.of(sigmas, model.schedule)
    near = (pair for pair in saved if _near(pair[1].fitted.guidance, guidance, OTHER_GUIDANCE))
    positions = positions_of(x.shape)
    same = made_on(near, model, grid, own)
    return min(same, key=lambda pair: _other_size(pair[1], positions), default=None)


def made_on(
    saved: Iterable[Saved], model: HostModel, grid: Grid, own: Callable[[], str]
) -> list[Saved]:
    """The calibrations of this very model for a run of the recommended sampler, at any guidance.

    Args:
        own: see `best`.
    """
    if not model.is_recommended(grid):
        return []
    fitting = [
        (name, one)
        for name, one in saved
        if one.calls == grid.calls
        and math.isclose(one.sigmas[0], grid.sigmas[0], rel_tol=SAME_SIGMA)
        and _suits(one, model)
    ]
    if not fitting or not (told := own()):
        return []
    return [(name, one) for name, one in fitting if one.fitted.fingerprint == told]


def _suits(one: Calibration, model: HostModel) -> bool:
    """Whether it is a measured solver for such a model."""
    fitted = one.fitted
    if not (one.steps and fitted.errors and fitted.fingerprint) or fitted.stopped:
        return False
    if fitted.guidance is None:  # by a guider of several CFGs or models, which a number can't tell
        return False
    if fitted.model != model.kind or not _near(fitted.shift, model.shift, 1e-3):
        return False
    try:
        model.check(one, "")
    except ValueError:
        return False
    return True


def guidances(one: Calibration) -> str:
    """In words: the guidance for which `best` finds a calibration."""
    own = one.fitted.guidance or 0.0
    return f"a CFG of {own * (1 - OTHER_GUIDANCE):.3g} to {own * (1 + OTHER_GUIDANCE):.3g}"


def _near(own: float | None, other: float | None, apart: float) -> bool:
    if own is None or other is None:
        return own is other
    return abs(own - other) <= apart * abs(own) + 1e-9


def _other_size(one: Calibration, positions: int) -> float:
    """How far an image's size is from that of the fit."""
    return (
        abs(math.log(positions_of((1, *one.fitted.shape)) / positions)) if one.fitted.shape else 0.0
    )


def read(files: Iterable[tuple[str, Path]]) -> Iterator[Saved]:
    """The calibrations of all these files that can be read, each with its file's name."""
    for name, path in files:
        try:
            state = path.stat()
        except OSError:  # a broken link, or a file removed meanwhile
            continue
        for one in _read(path, state.st_mtime_ns, state.st_size):
            yield name, one


@lru_cache(maxsize=256)
def _read(path: Path, changed: int, size: int) -> tuple[Calibration, ...]:
    """What a file holds; read again only if it has changed."""
    from ..lab.calibration import files  # samplers run without the lab, too

    try:
        return files.load(path)
    except ValueError:
        return ()
