"""The ordinary text-to-image graph, in the API form."""

from __future__ import annotations

from typing import Any


def text_to_image(
    checkpoint: str, size: int = 64, prompt: str = "a cat", **sampling: Any
) -> dict[str, Any]:
    """Checkpoint, two prompts, KSampler, VAE decode, SaveImage (node 9); saves the latent, too.

    `sampling` overrides KSampler's inputs (node 3).  The model's calls are counted under "calls".
    """
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "4": ("CheckpointLoaderSimple", {"ckpt_name": checkpoint}),
        "5": ("EmptyLatentImage", {"width": size, "height": size, "batch_size": 1}),
        "6": ("CLIPTextEncode", {"text": prompt, "clip": ["4", 1]}),
        "7": ("CLIPTextEncode", {"text": "", "clip": ["4", 1]}),
        "10": ("DPMSolverTest_Count", {"model": ["4", 0], "key": "calls"}),
        "3": (
            "KSampler",
            {
                "model": ["10", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
                "seed": 1,
                "steps": 10,
                "cfg": 5.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
                **sampling,
            },
        ),
        "8": ("VAEDecode", {"samples": ["3", 0], "vae": ["4", 2]}),
        "9": ("SaveImage", {"images": ["8", 0], "filename_prefix": "test"}),
        "11": ("DPMSolverTest_SaveLatent", {"samples": ["3", 0], "name": "latent"}),
    }
    return {
        name: {"class_type": kind, "inputs": dict(inputs)} for name, (kind, inputs) in nodes.items()
    }
