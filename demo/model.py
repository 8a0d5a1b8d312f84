"""The demo's network in ComfyUI's own model classes, as if it came from a checkpoint.

Everything around the network is the host's: ``BaseModel`` scales the input and turns noise into a
clean image, ``ModelPatcher`` loads and patches. The host's sampling code therefore runs unchanged.
"""

from __future__ import annotations

from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch

from . import network


class DigitLatent(comfy.latent_formats.LatentFormat):
    """The "latent" is the grey image itself, at an eighth of the size that the user asks for.

    So an empty latent of 128x128 pixels becomes the 16x16 that the network draws.
    """

    latent_channels = 1
    latent_rgb_factors = [[1.0, 1.0, 1.0]]  # previews: ink +1 is white, paper -1 is black


class DigitConfig(comfy.supported_models_base.BASE):
    """The model's configuration, from which the host builds it."""

    unet_config: dict[str, Any] = {}  # the network's default sizes
    unet_extra_config: dict[str, Any] = {}  # replaces the arguments of the host's own U-Net
    latent_format = DigitLatent
    # Small enough for every device to compute in the precision the weights are loaded in.
    supported_inference_dtypes = [torch.float32]
    # The host reserves 0.15 MiB x this for each latent pixel of a batch; 2 MiB an image is plenty.
    memory_usage_factor = 0.05


def load_model(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The demo model as the host's loaders return one.

    ``disable_dynamic`` asks for the plain patcher instead of the one that streams weights; the host
    calls this function again with it if it needs a second, independent copy.
    """
    config = DigitConfig(DigitConfig.unet_config)
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(
        config, model_type=comfy.model_base.ModelType.EPS, unet_model=network.DigitNetwork
    )
    model.diffusion_model.load_state_dict(network.read_weights())
    model.requires_grad_(False)
    patcher_class = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:  # hiddenswitch's ComfyUI has no other
        patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", patcher_class)
    patcher = patcher_class(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    patcher.cached_patcher_init = (load_model, ())
    return patcher
