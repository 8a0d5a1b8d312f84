"""Train the demo's network on scikit-learn's handwritten digits.

    python -m dpm_solver_nodes.demo.train

This needs scikit-learn, torch and safetensors, and about ten minutes on one CPU core. The result,
``digits.safetensors``, holds the moving average of the weights in float16, with the seed, the
number of steps and the licence of the data in its metadata.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from . import network

BATCH = 64
PEAK_RATE = 2e-3
WARMUP = 200
NULL_SHARE = 0.12  # of the images, trained without their class, for classifier-free guidance
EMA_DECAY = 0.999

DATA = "UCI Optical Recognition of Handwritten Digits, test part, as sklearn.datasets.load_digits"
DATA_LICENCE = "CC BY 4.0, E. Alpaydin and C. Kaynak, https://doi.org/10.24432/C50P49"


def load_images() -> tuple[Tensor, Tensor]:
    """All 1797 digits: images ``[1797, 1, 16, 16]``, ink +1 and paper -1, and classes ``[1797]``.

    The 8x8 originals (0 to 16) are scaled to [-1, 1] and doubled in size by bicubic interpolation,
    which overshoots that range a little; the variance over all pixels is 0.54.
    """
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    small = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8.0 - 1.0
    size = (network.IMAGE_SIZE, network.IMAGE_SIZE)
    images = functional.interpolate(small, size=size, mode="bicubic", align_corners=False)
    return images, torch.tensor(classes, dtype=torch.long)


def spread_times(count: int, generator: torch.Generator) -> Tensor:
    """``[count]`` random times, one in each equal part of the schedule: less noise in the loss."""
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return (places * network.TIMESTEPS).long().clamp(max=network.TIMESTEPS - 1)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a half cosine to zero, as a share of the peak."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1.0 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


@torch.no_grad()
def update_average(
    average: network.DigitNetwork, model: network.DigitNetwork, decay: float
) -> None:
    """Move each averaged weight towards the trained one."""
    for kept, trained in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(trained, 1.0 - decay)


def train(steps: int, seed: int) -> tuple[network.DigitNetwork, float]:
    """The averaged network after ``steps`` batches, and the loss over the last tenth of them."""
    torch.manual_seed(seed)  # the first weights
    generator = torch.Generator().manual_seed(seed)  # everything drawn while training
    images, classes = load_images()
    one_hot = network.class_context(range(network.CLASSES))
    model = network.DigitNetwork()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: learning_rate(i, steps))
    losses: list[float] = []
    started = time.monotonic()
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(images), generator=generator)
        chosen, order = order[:BATCH], order[BATCH:]
        clean = images[chosen]
        context = one_hot[classes[chosen]]
        asked = torch.rand(BATCH, 1, 1, generator=generator) >= NULL_SHARE
        times = spread_times(BATCH, generator)
        noise = torch.randn(clean.shape, generator=generator)
        signal_scale, noise_scale = model.signal_and_noise(times)
        noisy = signal_scale * clean + noise_scale * noise
        target = signal_scale * noise - noise_scale * clean
        loss = functional.mse_loss(model.velocity(noisy, times, context * asked), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        update_average(average, model, min(EMA_DECAY, (step + 1) / (step + 10)))
        losses.append(loss.item())
        if (step + 1) % 250 == 0 or step + 1 == steps:
            recent = sum(losses[-250:]) / len(losses[-250:])
            spent = time.monotonic() - started
            left = spent / (step + 1) * (steps - step - 1)
            print(
                f"step {step + 1:5d} of {steps}  loss {recent:.4f}"
                f"  {spent / 60:5.1f} min, {left / 60:5.1f} min left",
                flush=True,
            )
    last = losses[-max(1, steps // 10) :]
    return average, sum(last) / len(last)


def save(model: network.DigitNetwork, path: Path, metadata: dict[str, str]) -> None:
    """Write the weights as float16."""
    from safetensors.torch import save_file

    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, str(path), metadata=metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's network on handwritten digits.")
    parser.add_argument("--steps", type=int, default=3500, help=f"batches of {BATCH} images")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=network.WEIGHTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    model, loss = train(arguments.steps, arguments.seed)
    metadata = {
        "title": "DPM-Solver demo digits",
        "seed": str(arguments.seed),
        "steps": str(arguments.steps),
        "batch": str(BATCH),
        "loss": f"{loss:.5f}",
        "minutes": f"{(time.monotonic() - started) / 60:.1f}",
        "data": DATA,
        "data_licence": DATA_LICENCE,
        "licence": "MIT",
    }
    save(model, arguments.out, metadata)
    print(
        f"wrote {arguments.out.name}, {arguments.out.stat().st_size / 1e6:.2f} MB, loss {loss:.5f}"
    )


if __name__ == "__main__":
    main()
