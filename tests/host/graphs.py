"""The ordinary text-to-image graph, in the API form and as the page would save it."""

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


def text_to_image_workflow(checkpoint: str) -> dict[str, Any]:
    """The same as a workflow file (without the tests' nodes), two steps of dpmpp_2m."""
    # id, type, (input name, type, link), (output name, type, links), widgets
    nodes: list[tuple[int, str, list[Any], list[Any], list[Any]]] = [
        (
            4,
            "CheckpointLoaderSimple",
            [],
            [("MODEL", "MODEL", [1]), ("CLIP", "CLIP", [2, 3]), ("VAE", "VAE", [4])],
            [checkpoint],
        ),
        (
            6,
            "CLIPTextEncode",
            [("clip", "CLIP", 2)],
            [("CONDITIONING", "CONDITIONING", [5])],
            ["a cat"],
        ),
        (7, "CLIPTextEncode", [("clip", "CLIP", 3)], [("CONDITIONING", "CONDITIONING", [6])], [""]),
        (5, "EmptyLatentImage", [], [("LATENT", "LATENT", [7])], [64, 64, 1]),
        (
            3,
            "KSampler",
            [
                ("model", "MODEL", 1),
                ("positive", "CONDITIONING", 5),
                ("negative", "CONDITIONING", 6),
                ("latent_image", "LATENT", 7),
            ],
            [("LATENT", "LATENT", [8])],
            [1, "fixed", 2, 5.0, "dpmpp_2m", "karras", 1.0],
        ),
        (
            8,
            "VAEDecode",
            [("samples", "LATENT", 8), ("vae", "VAE", 4)],
            [("IMAGE", "IMAGE", [9])],
            [],
        ),
        (9, "SaveImage", [("images", "IMAGE", 9)], [], ["test"]),
    ]
    source = {link: (n[0], slot) for n in nodes for slot, o in enumerate(n[3]) for link in o[2]}
    links = [
        [link, *source[link], n[0], slot, kind]
        for n in nodes
        for slot, (_, kind, link) in enumerate(n[2])
    ]
    return {
        "last_node_id": 9,
        "last_link_id": 9,
        "nodes": [
            {
                "id": number,
                "type": kind,
                "pos": [340 * place, 100],
                "size": [315, 262],
                "flags": {},
                "order": place,
                "mode": 0,
                "inputs": [{"name": a, "type": b, "link": c} for a, b, c in inputs],
                "outputs": [
                    {"name": a, "type": b, "links": c, "slot_index": i}
                    for i, (a, b, c) in enumerate(outputs)
                ],
                "properties": {"Node name for S&R": kind},
                "widgets_values": widgets,
            }
            for place, (number, kind, inputs, outputs, widgets) in enumerate(nodes)
        ],
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }
