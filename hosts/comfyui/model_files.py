"""What kind of model a file holds, told from the shapes of its weights, without loading them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import comfy.model_detection
import folder_paths
import torch
from safetensors import safe_open

from ...samplers.log import LOG

FOLDERS = ("checkpoints", "diffusion_models")
"""The host's folders of models that a loader may name."""

ENDING = ".safetensors"
"""Of files whose shapes can be read apart from the weights."""

WITHOUT_NETWORK = {"disable_unet_model_creation": True}
"""What tells the host to make a model's object without the network in it."""


def kind_of(name: str) -> str:
    """The name of the host's class for the model in a file; "" if there is no such file, or if the
    host can't tell.

    Args:
        name: as a loader's menu has it.
    """
    for folder in FOLDERS:
        path = folder_paths.get_full_path(folder, name)
        if path is not None and path.endswith(ENDING):
            state = Path(path).stat()
            return _kind(path, state.st_mtime_ns, state.st_size)
    return ""


@lru_cache(maxsize=256)
def _kind(path: str, changed: int, size: int) -> str:
    """Read again only if the file has changed."""
    try:
        return _detected(path)
    except Exception as error:  # of any type: it is the host's code, made for real weights
        LOG.debug("can't tell what model %s is", path, exc_info=error)
        return ""


def _detected(path: str) -> str:
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        weights = {
            name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names
        }
        metadata = file.metadata()
    prefix = comfy.model_detection.unet_prefix_from_state_dict(weights)
    if not any(name.startswith(prefix) for name in weights):  # a file of the network alone
        prefix = ""
    config = comfy.model_detection.model_config_from_unet(weights, prefix, metadata=metadata)
    if config is None:
        return ""
    config.unet_config = {**config.unet_config, **WITHOUT_NETWORK}
    return type(config.get_model(weights, prefix)).__name__
