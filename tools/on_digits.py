"""Replaces a workflow's checkpoint by the demo model, in the page's format."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

SIZE = 128
CFG = 2.0

# What replaces each node: its type, the names of the inputs that stay, new widgets, and their values.
# Outputs after the first are dropped, with their links.
Widgets = dict[str, Any]
IN_ITS_PLACE: dict[str, tuple[str, set[str], Widgets]] = {
    "CheckpointLoaderSimple": ("DPMSolverDemo_Model", set(), {}),
    "UNETLoader": ("DPMSolverDemo_Model", set(), {}),
    "CLIPTextEncode": ("DPMSolverDemo_Digit", set(), {"digit": ""}),
    "VAEDecode": ("DPMSolverDemo_Decode", {"samples"}, {"scale": 8, "method": "bicubic"}),
    "VAEEncode": ("DPMSolverDemo_Encode", {"pixels"}, {}),
    "EmptyLatentImage": (
        "EmptyLatentImage",
        set(),
        {"width": SIZE, "height": SIZE, "batch_size": 1},
    ),
    "CreateVideo": ("SaveImage", {"images"}, {"filename_prefix": "DPM-Solver"}),
}
IN_ITS_PLACE["EmptyHunyuanLatentVideo"] = IN_ITS_PLACE["EmptyLatentImage"]
IN_ITS_PLACE["EmptySD3LatentImage"] = IN_ITS_PLACE["EmptyLatentImage"]
# The demo model is no flow: where a loader's model gets a shift, it takes the place of both.
IN_ITS_PLACE["ModelSamplingAuraFlow"] = IN_ITS_PLACE["UNETLoader"]
GONE = {"CLIPLoader", "VAELoader", "SaveVideo"}
"""Nodes that have no place on the demo model."""
# Values of nodes that stay, by their index.
VALUES: dict[str, dict[int, Any]] = {
    "ImageScale": {1: SIZE, 2: SIZE},
    "CFGGuider": {0: CFG},
    "SamplerCustom": {3: CFG},
    "KSampler": {3: CFG},
    "DPMSolver_Compare": {5: CFG},
    "DPMSolver_Calibrate": {1: CFG},
}


def on_digits(
    workflow: Mapping[str, Any], digits: str = "1,2,3,4,5,6,7,8,9", values: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """The same graph on the demo model, drawing these digits (one for each image of the batch).

    Args:
        workflow: in the page's format; it is not changed. In the copy its prompts become `digits`,
            except those with "Negative" in their title, its size becomes 128x128, its CFG 2.
        values: {node type: {index of a value: value}} to set as well.
    """
    graph = copy.deepcopy(dict(workflow))
    graph["nodes"] = [node for node in graph["nodes"] if node["type"] not in GONE]
    for node in graph["nodes"]:
        if node["type"] in IN_ITS_PLACE:
            _replace(node)
        if node["type"] == "DPMSolverDemo_Digit" and "Negative" not in node.get("title", ""):
            node["widgets_values"] = [digits]
        if node["type"] == "EmptyLatentImage":
            node["widgets_values"] = [SIZE, SIZE, digits.count(",") + 1]
        for source in (VALUES, values):
            for place, value in source.get(node["type"], {}).items():
                node["widgets_values"][place] = value
    _drop_loose_links(graph)
    return graph


def _replace(node: dict[str, Any]) -> None:
    kind, stay, widgets = IN_ITS_PLACE[node["type"]]
    node["type"] = kind
    node["properties"] = {"Node name for S&R": kind}
    node["inputs"] = [field for field in node["inputs"] if field["name"] in stay] + [
        {"name": name, "type": "*", "widget": {"name": name}, "link": None} for name in widgets
    ]
    node["outputs"] = [] if kind == "SaveImage" else node["outputs"][:1]
    if kind == "DPMSolverDemo_Decode":
        node["flags"] = {"collapsed": True}  # it is taller than the VAE's, and would cover another
    node["widgets_values"] = list(widgets.values())


def _drop_loose_links(graph: dict[str, Any]) -> None:
    """Remove links to nodes that are gone, from both ends and the list, and renumber the slots."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    held = {
        field["link"]: (node["id"], slot)
        for node in graph["nodes"]
        for slot, field in enumerate(node["inputs"])
    }
    kept = {}
    for link, source, slot, _target, _slot, kind in graph["links"]:
        if link in held and source in nodes and slot < len(nodes[source]["outputs"]):
            kept[link] = [link, source, slot, *held[link], kind]
    graph["links"] = list(kept.values())
    for node in graph["nodes"]:
        for field in node["inputs"]:
            field["link"] = field["link"] if field["link"] in kept else None
        for output in node["outputs"]:
            output["links"] = [link for link in output["links"] or () if link in kept]
