"""Saves a comparison to be shared: a picture with its settings, and a table, in the output folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import comfy.model_sampling
import folder_paths
import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ...lab.report import Report, Setup, markdown_table, pack_version
from ...samplers.checks import escaped, quoted
from ...samplers.log import LOG
from .guiding import Bench, distilled_guidance_of
from .model import ComfyModel
from .own_models import cfg_of

PREDICTIONS = {
    "IMG_TO_IMG_FLOW": "image to image flow",
    **{"COSMOS_RFLOW": "flow", "CONST": "flow", "EDM": "EDM", "IMG_TO_IMG": "image to image"},
    **{"X0": "x0", "V_PREDICTION": "v", "V_PREDICTION_DDPM": "v", "EPS": "noise"},
}
"""The host's classes for what a network predicts, subclasses first."""


FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')
"""What some system can't have in a file's name."""


class Place(NamedTuple):
    """Where to save.

    Attributes:
        name: of the files, without number and ending.
        prefix: as the user wrote it.
    """

    name: str
    prefix: str


class Saved(NamedTuple):
    """What was saved: a sentence for the user, and the picture as the host's page shows it."""

    text: str
    shown: list[dict[str, str]]


def place(prefix: str) -> Place | None:
    """Where a filename_prefix leads to; None if it is empty.

    Raises:
        ValueError: it leads out of the host's output folder, or to no place for a file.
    """
    if not prefix.strip():
        return None
    try:
        if FORBIDDEN.search(prefix):
            raise ValueError
        _, name, *_ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
        if not name.strip(". "):
            raise ValueError
        name.encode()
    except Exception as error:  # the host raises a plain Exception for a folder outside
        raise ValueError(
            f"filename_prefix is {quoted(prefix)}, and nothing can be saved there in ComfyUI's output "
            "folder: take a name such as which_sampler/my_model."
        ) from error
    return Place(name, prefix)


def setup_of(bench: Bench, name: str, images: np.ndarray | None) -> Setup:
    """What a comparison on this bench was made on.

    Args:
        images: decoded by a VAE, [batch, height, width, 3].
    """
    patcher, model_sampling = bench.patcher, bench.model_sampling
    model = ComfyModel.of(patcher)
    parts = bench.start.unbind() if bench.start.is_nested else [bench.start]
    shift = getattr(model_sampling, "shift", None)
    return Setup(
        name=name,
        model=model.kind,
        prediction=_prediction(model_sampling),
        sigma_max=model.own_sigma_max,
        sigma_min=model.sigma_min,
        shift=float(shift) if isinstance(shift, (int, float)) else None,
        cfg=cfg_of(bench.guider),
        guidance=distilled_guidance_of(bench.guider),
        image="" if images is None else "x".join(map(str, (images.shape[2], images.shape[1]))),
        latent=" and ".join("x".join(map(str, part.shape)) for part in parts),
        seed=bench.seed,
        weights=str(patcher.model_dtype()).removeprefix("torch."),
        patched=len(patcher.patches),
        device=_device(),
        pack=pack_version(),
        host=f"ComfyUI {_host_version()}",
        torch=torch.__version__,
    )


def _prediction(model_sampling: Any) -> str:
    for name, shown in PREDICTIONS.items():
        # isinstance is False for an empty tuple: older hosts lack some of them.
        if isinstance(model_sampling, getattr(comfy.model_sampling, name, ())):
            return shown
    return "unknown"


def _device() -> str:
    device = comfy.model_management.get_torch_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)


def _host_version() -> str:
    try:
        from comfyui_version import __version__
    except ImportError:  # hiddenswitch's has none
        return "of unknown version"
    return str(__version__)


def save(where: Place, report: Report, picture: np.ndarray) -> Saved:
    """Save picture and table under the next free number. If they can't be written, say why.

    Args:
        picture: uint8 [height, width, 3].
    """
    try:
        folder, name, number, subfolder, _ = folder_paths.get_save_image_path(
            where.prefix, folder_paths.get_output_directory()
        )
        stem = f"{name}_{number:05}_"
        chunks = PngInfo()
        for key, text in report.chunks().items():
            chunks.add_text(key, text)
        Image.fromarray(picture).save(Path(folder) / f"{stem}.png", pnginfo=chunks)
        table = Path(folder) / f"{stem}.csv"
        table.write_text(report.as_csv(), encoding="utf-8", newline="\n")
    except Exception as error:  # the runs are made: their results are worth more than the file
        why = escaped(str(error), 200)
        LOG.warning(f"Solver Compare could not save its results: {why}")
        return Saved(f"Not saved: {why}", [])
    shown = "/".join(filter(None, (subfolder.replace("\\", "/"), stem)))
    text = (
        f"Saved as {escaped(shown)}.png and .csv in ComfyUI's output folder. The PNG holds all "
        "settings and figures; neither holds prompts or folders. In Markdown:"
    )
    image = {"filename": f"{stem}.png", "subfolder": subfolder, "type": "output"}
    return Saved(f"{text}\n\n{markdown_table(report.row())}", [image])
