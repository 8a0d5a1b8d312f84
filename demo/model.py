"""The demo's networks in ComfyUI's own model classes, as if they came from checkpoints.

Everything around the network is the host's: ``BaseModel`` scales the input and turns the prediction
into a clean image, ``ModelPatcher`` loads and patches. The host's sampling code therefore runs
unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch

from . import emoji, network


class DigitLatent(comfy.latent_formats.LatentFormat):
    """The "latent" is the grey image itself, at an eighth of the size that the user asks for.

    So an empty latent of 128x128 pixels becomes the 16x16 that the network draws.
    """

    latent_channels = 1
    latent_rgb_factors = [[1.0, 1.0, 1.0]]  # previews: ink +1 is white, paper -1 is black


class EmojiLatent(comfy.latent_formats.LatentFormat):
    """The "latent" is the colour image itself, 32x32 for an empty latent of 256x256 pixels."""

    latent_channels = 3
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class DigitConfig(comfy.supported_models_base.BASE):
    """The model's configuration, from which the host builds it."""

    unet_config: dict[str, Any] = {}  # the network's default sizes
    unet_extra_config: dict[str, Any] = {}  # replaces the arguments of the host's own U-Net
    latent_format = DigitLatent
    # Small enough for every device to compute in the precision the weights are loaded in.
    supported_inference_dtypes = [torch.float32]
    # The host reserves 0.15 MiB x this for each latent pixel of a batch; 2 MiB an image is plenty.
    memory_usage_factor = 0.05


class EmojiConfig(DigitConfig):
    latent_format = EmojiLatent


class EmojiFlowConfig(EmojiConfig):
    sampling_settings = {"shift": 3.0}  # Stable Diffusion 3's


@dataclass(frozen=True)
class Model:
    """What the host needs to build a model: its configuration, kind, network and weights."""

    config: type[comfy.supported_models_base.BASE]
    kind: comfy.model_base.ModelType
    network: type[torch.nn.Module]
    weights: Path


MODELS = {
    "digits": Model(
        DigitConfig, comfy.model_base.ModelType.EPS, network.DigitNetwork, network.WEIGHTS
    ),
    "emoji, flow": Model(
        EmojiFlowConfig, comfy.model_base.ModelType.FLOW, emoji.FlowPrediction, emoji.WEIGHTS
    ),
    "emoji, noise": Model(
        EmojiConfig, comfy.model_base.ModelType.EPS, emoji.NoisePrediction, emoji.WEIGHTS
    ),
}


def load_model(
    name: str = "digits", disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """A model of MODELS as the host's loaders return one.

    ``disable_dynamic`` asks for the plain patcher instead of the one that streams weights; the host
    calls this function again with it if it needs a second, independent copy.
    """
    chosen = MODELS[name]
    config = chosen.config(chosen.config.unet_config)
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, model_type=chosen.kind, unet_model=chosen.network)
    model.diffusion_model.load_state_dict(network.read_weights(chosen.weights))
    model.requires_grad_(False)
    patcher_class = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:  # hiddenswitch's ComfyUI has no other
        patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", patcher_class)
    patcher = patcher_class(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    patcher.cached_patcher_init = (load_model, (name,))
    return patcher
