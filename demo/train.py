"""Train the demo's networks: digits (scikit-learn's scans) and emoji (two vendors' pictures).

    python -m dpm_solver_nodes.demo.train digits    # ten minutes on one CPU core
    python -m dpm_solver_nodes.demo.train emoji     # half an hour

This needs torch and safetensors, the digits scikit-learn, the emoji npm, which fetches 140 MB once.
The result, ``digits.safetensors`` or ``emoji.safetensors``, holds the moving average of the weights in
float16, with the seed, the number of steps and the licence of the data in its metadata.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import emoji, network, pictures, recognise

WARMUP = 200
NULL_SHARE = 0.12  # of the images, trained without their class, for classifier-free guidance
EMA_DECAY = 0.999
SAVE_EVERY = 250  # steps
VERSIONS = 32  # of each emoji
LEVELS = (-0.96, 1.0)  # of tanh(log s / 3), at which the emoji network is trained: s from 0.003 on


@dataclass(frozen=True)
class Batch:
    """Noisy images, their noise levels as the network takes them, class rows and the velocities."""

    x: Tensor
    level: Tensor
    context: Tensor
    target: Tensor


@dataclass(frozen=True)
class Task:
    """What is trained: the network, its file, where the batches come from, and what they show."""

    model: Callable[[], nn.Module]
    batches: Callable[[int, torch.Generator], Callable[[], Batch]]
    path: Path
    batch: int
    rate: float  # the highest learning rate
    hold: float  # how long it stays, as a share of the run
    steps: int
    seed: int
    title: str
    data: str
    data_licence: str


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


def spread(count: int, generator: torch.Generator) -> Tensor:
    """``[count]`` random numbers, one in each equal part of [0, 1]: less noise in the loss."""
    return (torch.arange(count) + torch.rand(count, generator=generator)) / count


def digit_batches(size: int, generator: torch.Generator) -> Callable[[], Batch]:
    """Every digit once, in an order of its own, then again; times spread over the schedule."""
    images, classes = load_images()
    one_hot = network.class_context(range(network.CLASSES))
    model = network.DigitNetwork()  # for its schedule
    order = torch.empty(0, dtype=torch.long)

    def batch() -> Batch:
        nonlocal order
        if len(order) < size:
            order = torch.randperm(len(images), generator=generator)
        chosen, order = order[:size], order[size:]
        clean = images[chosen]
        asked = torch.rand(size, 1, 1, generator=generator) >= NULL_SHARE
        times = (spread(size, generator) * network.TIMESTEPS).long()
        times = times.clamp(max=network.TIMESTEPS - 1)
        noise = torch.randn(clean.shape, generator=generator)
        signal, sigma = model.signal_and_noise(times)
        context = one_hot[classes[chosen]] * asked
        return Batch(signal * clean + sigma * noise, times, context, signal * noise - sigma * clean)

    return batch


def emoji_batches(size: int, generator: torch.Generator) -> Callable[[], Batch]:
    """Emoji of all classes alike often, each in one of its versions; levels spread over LEVELS."""
    images, labels, _ = pictures.load(emoji.IMAGE_SIZE, VERSIONS, seed=0)
    one_hot = emoji.class_context(range(len(emoji.CLASSES)))
    weights = 1.0 / torch.bincount(labels)[labels].double()

    def batch() -> Batch:
        chosen = torch.multinomial(weights, size, replacement=True, generator=generator)
        version = torch.randint(images.shape[1], (size,), generator=generator)
        clean = images[chosen, version].float() / 127.5 - 1.0
        asked = torch.rand(size, 1, 1, generator=generator) >= NULL_SHARE
        low, high = LEVELS
        log_s = 3.0 * torch.atanh(low + (high - low) * spread(size, generator).clamp(max=0.9999))
        noise = torch.randn(clean.shape, generator=generator)
        alpha, sigma = emoji.signal_and_noise(log_s)
        context = one_hot[labels[chosen]] * asked
        return Batch(alpha * clean + sigma * noise, log_s, context, alpha * noise - sigma * clean)

    return batch


TASKS = {
    "digits": Task(
        model=network.DigitNetwork,
        batches=digit_batches,
        path=network.WEIGHTS,
        batch=64,
        rate=2e-3,
        hold=WARMUP / 3500,
        steps=3500,
        seed=2,
        title="DPM-Solver demo digits",
        data=(
            "UCI Optical Recognition of Handwritten Digits, test part, as "
            "sklearn.datasets.load_digits"
        ),
        data_licence="CC BY 4.0, E. Alpaydin and C. Kaynak, https://doi.org/10.24432/C50P49",
    ),
    "emoji": Task(
        model=emoji.EmojiNetwork,
        batches=emoji_batches,
        path=emoji.WEIGHTS,
        batch=32,
        rate=1.5e-3,
        hold=0.6,
        steps=4000,
        seed=0,
        title="DPM-Solver demo emoji",
        data=", ".join(f"{v.package} {v.version}" for v in pictures.VENDORS),
        data_licence="; ".join(v.licence for v in pictures.VENDORS),
    ),
}


def learning_rate(step: int, share: float, hold: float) -> float:
    """A share of the highest rate: linear warm-up, ``hold`` of the run there, a half cosine to zero.

    ``share`` of the run is over.
    """
    falling = max(0.0, share - hold) / (1.0 - hold)
    return min(1.0, step / WARMUP) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, falling)))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move each averaged weight towards the trained one."""
    for kept, trained in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(trained, 1.0 - decay)


def save(model: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write the weights as float16."""
    from safetensors.torch import save_file

    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, str(path), metadata=metadata)


def train(task: Task, steps: int, seed: int, bfloat16: bool, out: Path) -> None:
    """Train for ``steps`` batches; ``out`` has the averaged weights so far, from time to time."""
    torch.manual_seed(seed)  # the first weights
    model = task.model()
    drawing = torch.Generator().manual_seed(seed)  # all that is drawn while training
    batch = task.batches(task.batch, drawing)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.rate, weight_decay=0.01)
    losses: list[float] = []
    started = time.monotonic()
    for step in range(1, steps + 1):
        share = (step - 1) / steps
        for group in optimizer.param_groups:
            group["lr"] = task.rate * learning_rate(step, share, task.hold)
        drawn = batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            found = model.velocity(drawn.x, drawn.level, drawn.context)  # type: ignore[operator]
        loss = functional.mse_loss(found.float(), drawn.target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        update_average(average, model, min(EMA_DECAY, step / (step + 9)))
        losses.append(loss.item())
        if step % SAVE_EVERY and step != steps:
            continue
        spent = (time.monotonic() - started) / 60
        recent = sum(losses[-SAVE_EVERY:]) / len(losses[-SAVE_EVERY:])
        print(
            f"step {step:5d} of {steps}  loss {recent:.4f}  {spent:5.1f} min, "
            f"{spent / step * (steps - step):5.1f} min left",
            flush=True,
        )
        last = losses[-max(1, step // 10) :]
        metadata = {
            "title": task.title,
            "seed": str(seed),
            "steps": str(step),
            "complete": str(step == steps),
            "batch": str(task.batch),
            "loss": f"{sum(last) / len(last):.5f}",
            "minutes": f"{spent:.1f}",
            "data": task.data,
            "data_licence": task.data_licence,
            "licence": "MIT",
        }
        save(average, out, metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one of the demo's networks.")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--steps", type=int, help="batches of images")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--bfloat16", action="store_true", help="compute in bfloat16: faster on some CPUs"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task = TASKS[arguments.task]
    steps = task.steps if arguments.steps is None else arguments.steps
    seed = task.seed if arguments.seed is None else arguments.seed
    out = arguments.out or task.path
    train(task, steps, seed, arguments.bfloat16, out)
    print(f"wrote {out.name}, {out.stat().st_size / 1e6:.2f} MB")
    if arguments.task == "emoji":
        recognise.report(out, save_to=None)


if __name__ == "__main__":
    main()
