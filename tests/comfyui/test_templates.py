"""ComfyUI's own templates, opened in the page and switched to our samplers by changing their fields.

They are those of the package that ComfyUI requires, or of the version that COMFYUI_TEMPLATES names.
`make test` opens a few, WORKFLOWS=all (as in `make test-all`) all that have a sampler to switch.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dpm_solver_nodes.tests.comfyui.test_menu import OUR_SCHEDULERS
from dpm_solver_nodes.tests.support.digits import MENU, Graph
from dpm_solver_nodes.tools import browser
from dpm_solver_nodes.tools.server import Server, wheel

if TYPE_CHECKING:
    from playwright.sync_api import Page

PACKAGE = "comfyui_workflow_templates_json"
FIELDS = {
    "KSampler": ("sampler_name", "scheduler"),
    "KSamplerAdvanced": ("sampler_name", "scheduler"),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler",),
}
"""What is switched, by the node that has it."""
QUICK = ("default", "image_z_image_turbo", "video_wan2_2_14B_t2v")
"""The ordinary graph, a sampler in a subgraph, and two KSamplerAdvanced."""
MOVING = "viewport_state"

SWITCH = """([fields, values]) => {
    // The widget that a user changes: the node's own, or the subgraph's that is linked to its input.
    function shown(node, name, parents) {
        const slot = node.inputs?.find((one) => (one.widget?.name ?? one.name) === name)
        if (slot?.link == null) return node.widgets?.find((one) => one.name === name)
        const link = node.graph.getLink(slot.link)
        const [parent, ...above] = parents
        if (!parent || link.origin_id !== node.graph.inputNode?.id) return undefined
        return shown(parent, parent.inputs[link.origin_slot].name, above)
    }
    const changed = []
    function change(graph, parents) {
        for (const node of graph.nodes) {
            if (node.subgraph) change(node.subgraph, [node, ...parents])
            for (const name of fields[node.type] ?? []) {
                const widget = shown(node, name, parents)
                if (!widget) continue
                widget.value = values[name]
                widget.callback?.(values[name], window.app.canvas, node)
                changed.push(`${node.type} ${name}`)
            }
        }
    }
    change(window.app.rootGraph ?? window.app.graph, [])
    return changed
}"""


def templates() -> Mapping[str, Path]:
    """All files by name; empty if the package isn't installed."""
    if version := os.environ.get("COMFYUI_TEMPLATES"):
        folder = wheel(PACKAGE.replace("_", "-"), version) / PACKAGE
    elif (found := importlib.util.find_spec(PACKAGE)) and found.origin:
        folder = Path(found.origin).parent
    else:
        return {}
    return {path.stem: path for path in sorted(folder.glob("templates/*.json"))}


def nodes(workflow: Any) -> Iterator[dict[str, Any]]:
    """All nodes of a workflow file, those of its subgraphs too; none if it is another kind of file."""
    if isinstance(workflow, dict) and "nodes" in workflow:
        yield from workflow["nodes"]
        for subgraph in workflow.get("definitions", {}).get("subgraphs", []):
            yield from subgraph["nodes"]


def with_samplers() -> dict[str, Path]:
    """The templates in which there is something to switch."""
    return {
        name: path
        for name, path in templates().items()
        if any(node["type"] in FIELDS for node in nodes(json.loads(path.read_text("utf-8"))))
    }


TEMPLATES = with_samplers()
CHOSEN = [name for name in TEMPLATES if os.environ.get("WORKFLOWS") == "all" or name in QUICK]


def switchable(graph: Graph) -> Iterator[tuple[str, str]]:
    """Node and field of all that a user can switch; a linked one has no field."""
    for name, node in graph.items():
        for field in FIELDS.get(node["class_type"], ()):
            if not isinstance(node["inputs"].get(field), list):
                yield name, field


def still(graph: Graph) -> Graph:
    """Without the views of 3D previews, which move by themselves."""
    return {
        name: node
        | {"inputs": {key: value for key, value in node["inputs"].items() if key != MOVING}}
        for name, node in graph.items()
    }


def complaints(host: Server, graph: Graph) -> set[tuple[str, str, str]]:
    """What the host says of a graph that it would not run: node, field and message."""
    said = host.post("/dpm_solver_test/validate", graph)
    of_nodes = {
        (name, one["input"], f"{one['type']}: {one['details']}")
        for name, errors in said["nodes"].items()
        for one in errors
    }
    return of_nodes | {("", "", said["error"] or "")}


def test_the_templates_are_installed() -> None:
    if not TEMPLATES:
        pytest.skip(f"{PACKAGE} is not installed")
    assert len(TEMPLATES) > 150


@pytest.mark.parametrize("name", CHOSEN)
def test_switched_to_ours(host: Server, page: Page, name: str) -> None:
    """Only the fields change, and the host complains of nothing new: files are missing."""
    if host.version == "0.16.3":
        pytest.skip(
            "its page is older than these templates, and can't switch what is in a subgraph"
        )
    number = list(TEMPLATES).index(name)
    ours = {
        "sampler_name": MENU[number % len(MENU)],
        "scheduler": OUR_SCHEDULERS[number % len(OUR_SCHEDULERS)],
    }
    browser.load(page, json.loads(TEMPLATES[name].read_text("utf-8")))
    before = still(browser.converted(page))
    changed = page.evaluate(SWITCH, [FIELDS, ours])
    after = still(browser.converted(page))
    fields = set(switchable(before))
    assert changed or not fields
    expected = copy.deepcopy(before)
    for node, field in fields:
        expected[node]["inputs"][field] = ours[field]
    assert after == expected
    said = complaints(host, before)
    assert complaints(host, after) == {one for one in said if one[:2] not in fields}
