"""Our nodes and menu entries inside ComfyUI's subgraphs, in the page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from dpm_solver_nodes.tests.comfyui.conftest import ROOT
from dpm_solver_nodes.tests.comfyui.test_short_menu import HIDDEN, SHORT, ours, set_all
from dpm_solver_nodes.tests.support.digits import MENU, Graph
from dpm_solver_nodes.tools import browser

if TYPE_CHECKING:
    from playwright.sync_api import Page

# Puts these nodes of the graph into a subgraph; returns the workflow.
WRAP = """(types) => {
    const { graph } = window.app
    graph.convertToSubgraph(new Set(graph.nodes.filter((node) => types.includes(node.type))))
    return JSON.parse(JSON.stringify(graph.serialize())) // as it is saved
}"""
# A KSampler in a subgraph that shows the sampler as a widget of its own, set to this value there.
SHOWN_OUTSIDE = """(value) => {
    const { graph } = window.app
    graph.clear()
    const sampler = LiteGraph.createNode("KSampler")
    graph.add(sampler)
    const { subgraph, node } = graph.convertToSubgraph(new Set([sampler]))
    const [inner] = subgraph.nodes
    const slot = inner.inputs.find((one) => one.name === "sampler_name")
    subgraph.addInput("sampler_name", "COMBO").connect(slot, inner)
    const widget = node.widgets.find((one) => one.name === "sampler_name")
    widget.value = value
    return JSON.parse(JSON.stringify(graph.serialize())) // as it is saved
}"""
OUTER_MENU = """() => window.app.graph.nodes.find((node) => node.subgraph)
    .widgets.find((one) => one.name === "sampler_name").options.values"""


def made_by(graph: Graph, name: str) -> dict[str, Any]:
    """A node with all that leads to it in place of the links, so that ids don't matter."""
    node = graph[name]
    inputs = {
        key: (made_by(graph, value[0]), value[1]) if isinstance(value, list) else value
        for key, value in node["inputs"].items()
    }
    return {"class_type": node["class_type"], "inputs": inputs}


def saved(graph: Graph) -> dict[str, Any]:
    (name,) = (name for name, node in graph.items() if node["class_type"] == "SaveImage")
    return made_by(graph, name)


@pytest.mark.parametrize(
    ("workflow", "wrapped"),
    [
        ("ksampler_menu", ["KSampler"]),
        ("dpmpp_2m_custom_sampling", ["DPMSolver_2M", "SamplerCustomAdvanced"]),
        ("recommended", ["DPMSolver_Recommended"]),
    ],
)
def test_the_prompt_is_the_same(page: Page, workflow: str, wrapped: list[str]) -> None:
    path = ROOT / "workflows" / f"{workflow}.json"
    browser.load(page, json.loads(path.read_text("utf-8")))
    without = browser.converted(page)
    assert {node["class_type"] for node in without.values()} >= set(wrapped)
    folded = page.evaluate(WRAP, wrapped)
    assert not {node["type"] for node in folded["nodes"]} & set(wrapped)
    browser.load(page, folded)
    within = browser.converted(page)
    assert len(within) == len(without)
    assert saved(within) == saved(without)


@pytest.mark.parametrize("value", ["dpm_solver++_2m", HIDDEN[0]])
def test_a_sampler_that_the_subgraph_shows(page: Page, value: str) -> None:
    """It reaches the prompt, and the menu outside is the short one with the value that is set."""
    browser.load(page, page.evaluate(SHOWN_OUTSIDE, value))
    (node,) = browser.converted(page).values()
    assert node["class_type"] == "KSampler"
    assert node["inputs"]["sampler_name"] == value
    assert set(ours(page.evaluate(OUTER_MENU))) == {*SHORT, value}
    page.evaluate("async () => { await window.app.refreshComboInNodes() }")
    page.wait_for_timeout(200)
    assert set(ours(page.evaluate(OUTER_MENU))) == {*SHORT, value}
    try:
        set_all(page, True)
        assert ours(page.evaluate(OUTER_MENU)) == MENU
    finally:
        set_all(page, False)
    assert set(ours(page.evaluate(OUTER_MENU))) == {*SHORT, value}
