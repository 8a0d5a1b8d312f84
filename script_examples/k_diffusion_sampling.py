"""DPM-Solver on a k-diffusion model: our samplers take its denoisers, its sigmas and its callbacks.

    python script_examples/k_diffusion_sampling.py

A small network learns a spiral of points in the plane (some seconds on one core) inside k-diffusion's
`VDenoiser`. It is then sampled by k-diffusion's `sample_dpmpp_2m` and by ours, all from the same noise
and on the same Karras sigmas, and each result is compared with a converged run. It needs k-diffusion
(`pip install k-diffusion 'setuptools<80'`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from k_diffusion.external import VDenoiser
from k_diffusion.sampling import get_sigmas_karras, sample_dpmpp_2m

from dpm_solver_nodes.samplers import sample_multistep, sample_recommended

SIGMA_MIN, SIGMA_MAX = 0.02, 20.0
CALLS = (5, 10, 20)
CONVERGED = 500

# The same arguments in the same places: ours stand wherever k-diffusion's sample_* do.
SAMPLERS: dict[str, tuple[Callable[..., torch.Tensor], dict[str, Any]]] = {
    "k-diffusion's sample_dpmpp_2m": (sample_dpmpp_2m, {}),
    "sample_multistep, as published": (sample_multistep, {"lower_order_final": "off"}),
    "sample_multistep, corrected": (sample_multistep, {"corrector": "unic"}),
    "sample_multistep, order 3": (sample_multistep, {"order": 3, "solver_type": "exact"}),
    "sample_recommended": (sample_recommended, {}),
}


def spiral(count: int) -> torch.Tensor:
    """Points of the data set, [count, 2], of variance about 1."""
    turn = 3.0 * torch.pi * torch.rand(count).sqrt()
    points = torch.stack((turn.cos(), turn.sin()), 1) * turn[:, None] / 5.0
    return points + 0.05 * torch.randn(count, 2)


class Network(torch.nn.Module):
    """Predicts v from a point and its time, as `VDenoiser` asks for it."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(10, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, 2),
        )

    def forward(self, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        angles = t[:, None] * torch.pi * torch.tensor([0.5, 1.0, 2.0, 4.0])
        return self.layers(torch.cat((z, angles.sin(), angles.cos()), 1))


def train(steps: int) -> VDenoiser:
    """k-diffusion's own loss, at noise levels that are normal in log sigma."""
    torch.manual_seed(0)
    model = VDenoiser(Network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        points, sigma = spiral(512), torch.exp(1.4 * torch.randn(512) - 0.8)
        loss = model.loss(points, torch.randn_like(points), sigma).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--train-steps", type=int, default=1500, metavar="N")
    parser.add_argument("--points", type=int, default=1000, metavar="N")
    options = parser.parse_args(arguments)

    model = train(options.train_steps)
    x = SIGMA_MAX * torch.randn(options.points, 2)

    def sample(name: str, calls: int) -> torch.Tensor:
        function, settings = SAMPLERS[name]
        sigmas = get_sigmas_karras(calls, SIGMA_MIN, SIGMA_MAX)  # n + 1 sigmas: n model calls
        return function(model, x, sigmas, disable=True, **settings)

    converged = sample("sample_multistep, order 3", CONVERGED)
    print(f"Distance of {options.points} points to {CONVERGED} calls (root mean square)\n")
    print(f"{'model calls':32}" + "".join(f"{calls:9}" for calls in CALLS))
    for name in SAMPLERS:
        errors = [(sample(name, calls) - converged).square().mean().sqrt() for calls in CALLS]
        print(f"{name:32}" + "".join(f"{error:9.5f}" for error in errors))


if __name__ == "__main__":
    main()
