"""The harness itself: the server, its client, the checkpoint, the page that converts graphs."""

from __future__ import annotations

import pytest
import torch

from dpm_solver_nodes.demo.host import PromptError, Server, events
from dpm_solver_nodes.tests.host import frontend
from dpm_solver_nodes.tests.host.graphs import text_to_image, text_to_image_workflow
from dpm_solver_nodes.tests.host.probing import counts, latent, reset_counts


def test_the_host_lists_its_nodes(host: Server) -> None:
    assert "dpmpp_2m" in str(host.object_info("KSampler"))
    assert host.object_info("DPMSolverTest_Count")
    assert host.object_info("NoSuchNode") == {}


def test_a_checkpoint_graph_runs(host: Server, sd15: str) -> None:
    reset_counts(host)
    outputs = host.run(text_to_image(sd15, sampler_name="dpmpp_2m", steps=3))
    assert host.image(outputs["9"]["images"][0]).startswith(b"\x89PNG")
    assert torch.isfinite(latent(host)).all()
    assert counts(host) == {"calls": 3}


def test_progress_and_interruption(host: Server, sd15: str) -> None:
    graph = text_to_image(sd15, sampler_name="euler", steps=4)
    progress = [data["value"] for kind, data in events(host, graph) if kind == "progress"]
    assert progress == [1, 2, 3, 4]

    def stop_at_two(kind: str, data: object) -> None:
        if kind == "progress" and isinstance(data, dict) and data["value"] == 2:
            host.interrupt()

    reset_counts(host)
    graph["12"] = {
        "class_type": "DPMSolverTest_Slow",
        "inputs": {"model": ["10", 0], "seconds": 0.3},
    }
    graph["3"]["inputs"]["model"] = ["12", 0]
    assert events(host, graph, stop_at_two)[-1][0] == "execution_interrupted"
    assert counts(host)["calls"] <= 3


def test_refusals_are_the_hosts_words(host: Server, sd15: str) -> None:
    with pytest.raises(PromptError, match="no_such_sampler") as refused:
        host.run(text_to_image(sd15, sampler_name="no_such_sampler"))
    assert refused.value.node_type == "KSampler"


def test_the_page_converts_a_workflow(host: Server, sd15: str) -> None:
    if reason := frontend.missing():
        pytest.skip(reason)
    graph = frontend.to_api(host, text_to_image_workflow(sd15))
    assert sorted(node["class_type"] for node in graph.values()) == [
        "CLIPTextEncode",
        "CLIPTextEncode",
        "CheckpointLoaderSimple",
        "EmptyLatentImage",
        "KSampler",
        "SaveImage",
        "VAEDecode",
    ]
    (sampler,) = (node for node in graph.values() if node["class_type"] == "KSampler")
    assert sampler["inputs"]["sampler_name"] == "dpmpp_2m"
    assert sampler["inputs"]["steps"] == 2
    host.run(graph)
