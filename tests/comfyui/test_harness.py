"""The harness itself; what the other tests here rest on is not tested twice."""

from __future__ import annotations

import pytest

from dpm_solver_nodes.tests.support.graphs import text_to_image
from dpm_solver_nodes.tools.server import PromptError, Server


def test_the_host_lists_its_nodes(host: Server) -> None:
    assert "dpmpp_2m" in str(host.object_info("KSampler"))
    assert host.object_info("DPMSolverTest_Count")
    assert host.object_info("NoSuchNode") == {}


def test_refusals_are_the_hosts_words(host: Server, sd15: str) -> None:
    with pytest.raises(PromptError, match="no_such_sampler") as refused:
        host.run(text_to_image(sd15, sampler_name="no_such_sampler"))
    assert refused.value.node_type == "KSampler"
