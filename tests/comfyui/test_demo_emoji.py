"""The demo's emoji model in the host, as a flow and predicting noise."""

from __future__ import annotations

import pytest
import torch

from dpm_solver_nodes.demo import emoji, run
from dpm_solver_nodes.lab.metrics import distance
from dpm_solver_nodes.tests.support.probing import counts, latent, reset_counts
from dpm_solver_nodes.tools.server import PromptError, Server


def sampled(host: Server, process: str, steps: int, row: str = "Euler") -> torch.Tensor:
    reset_counts(host)
    host.run(run.graph(row, process, steps, "emoji"))
    assert counts(host) == {"emoji": steps}
    return latent(host, "emoji")


def start_noise() -> torch.Tensor:
    """The host's RandomNoise."""
    generator = torch.manual_seed(run.SEED)
    return torch.randn(len(emoji.CLASSES), 3, 32, 32, generator=generator)


@pytest.mark.parametrize("process", run.PROCESSES)
def test_one_step_is_the_picture_that_the_network_sees_in_the_noise(
    host: Server, process: str
) -> None:
    """The host's scales, times and guidance, against the network alone."""
    found = sampled(host, process, 1)
    denoiser = emoji.Denoiser(emoji.load(), range(len(emoji.CLASSES)), run.CFG)
    s = torch.tensor(14.6146 if process == "noise" else 1e7)  # a flow starts at nothing but noise
    z = start_noise() * (s.square() + 1.0).sqrt()
    with torch.inference_mode():
        expected = denoiser(z, s.expand(len(z)))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("process", run.PROCESSES)
def test_the_recommended_sampler_comes_close(host: Server, process: str) -> None:
    converged = sampled(host, process, 60, "DPM++ 2M")
    distances = {
        row: distance(sampled(host, process, 10, row), converged)
        for row in ("Euler", run.RECOMMENDED)
    }
    assert distances[run.RECOMMENDED] < 0.67 * distances["Euler"]


def test_an_unknown_emoji_is_told_in_one_sentence(host: Server) -> None:
    positive = {"class_type": "DPMSolverDemo_Emoji", "inputs": {"emoji": "dragon"}}
    graph = {**run.graph("Euler", "flow", 1, "emoji"), "positive": positive}
    with pytest.raises(PromptError, match="'dragon' is no emoji of this model: write one of heart"):
        host.run(graph)
