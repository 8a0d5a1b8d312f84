"""A diffusers network without a diffusers scheduler: from a raw UNet to images in 10 calls.

    python script_examples/diffusers_unet.py

A small `UNet2DModel` learns to draw rings and discs of 16 x 16 pixels (half a minute on one core;
`--train-steps 0` leaves it as it was made, which suffices for the numbers). `NetworkDenoiser` makes a
denoiser of it, from the noise schedule that it was trained with, and `sample_multistep` draws. It
needs diffusers (`pip install diffusers`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import UNet2DModel

from dpm_solver_nodes.samplers import DiscreteSchedule, NetworkDenoiser, sample_multistep

SIZE = 16
CALLS = (5, 10, 20)
CONVERGED = 100


def pictures(count: int) -> torch.Tensor:
    """The data set: [count, 1, SIZE, SIZE], ink 1 on paper -1."""
    place = torch.arange(SIZE) - (SIZE - 1) / 2.0
    shift = torch.empty(2, count, 1, 1).uniform_(-2.0, 2.0)
    radius, hole = torch.empty(count, 1, 1).uniform_(3.0, 6.0), torch.rand(count, 1, 1) < 0.5
    distance = torch.hypot(place[:, None] - shift[0], place - shift[1])
    ink = torch.where(hole, 1.5 - (distance - radius).abs(), radius - distance)
    return ink.clamp(-1.0, 1.0).unsqueeze(1)


def make_unet() -> UNet2DModel:
    """A network that predicts the noise; `UNet2DModel.from_pretrained(...)` would be another."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )


def train(unet: UNet2DModel, alphas_cumprod: torch.Tensor, steps: int) -> None:
    """Denoising diffusion as usual: predict the noise that was added at a random time."""
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3)
    for step in range(steps):
        images = pictures(16)
        noise, t = torch.randn_like(images), torch.randint(len(alphas_cumprod), (len(images),))
        kept = alphas_cumprod[t].float().reshape(-1, 1, 1, 1)
        z = kept.sqrt() * images + (1.0 - kept).sqrt() * noise
        loss = (unet(z, t).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 2e-3 * (1.0 - step / steps)


def show(images: torch.Tensor) -> str:
    """The images side by side in characters."""
    shades = " .:oO@"
    level = ((images[:, 0] + 1.0) / 2.0 * (len(shades) - 1)).round().clamp(0, len(shades) - 1)
    lines = level[:, ::2].int().unbind(1)  # every other one, as characters are tall
    return "\n".join(
        "  ".join("".join(shades[pixel] for pixel in row) for row in line.tolist())
        for line in lines
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--train-steps", type=int, default=400, metavar="N")
    parser.add_argument("--images", type=int, default=4, metavar="N")
    options = parser.parse_args(arguments)

    schedule = DiscreteSchedule.scaled_linear()  # Stable Diffusion's
    unet = make_unet()
    train(unet, (2.0 * schedule.log_alphas).exp(), options.train_steps)
    unet.eval()

    # What the network needs to be sampled: itself, as a function, and its noise schedule.
    model = NetworkDenoiser(lambda z, t: unet(z, t).sample, schedule)
    x = model.noise((options.images, 1, SIZE, SIZE), seed=0)

    def sample(calls: int, order: int = 2) -> torch.Tensor:
        sigmas = model.sigmas(calls)  # n + 1 sigmas: n model calls
        return sample_multistep(
            model, x, sigmas, order=order, schedule=model.schedule, disable=True
        )

    print(show(sample(10)))
    converged = sample(CONVERGED)
    print(f"\nDistance to {CONVERGED} calls (root mean square; paper is -1, ink 1)\n")
    print(f"{'model calls':16}" + "".join(f"{calls:9}" for calls in CALLS))
    for name, order in {"order 1 (DDIM)": 1, "order 2": 2, "order 3": 3}.items():
        errors = [(sample(calls, order) - converged).square().mean().sqrt() for calls in CALLS]
        print(f"{name:16}" + "".join(f"{error:9.5f}" for error in errors))


if __name__ == "__main__":
    main()
