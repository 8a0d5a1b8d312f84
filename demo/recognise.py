"""Does the colour model draw what it was asked for? A classifier of the real pictures says so.

    python -m dpm_solver_nodes.demo.recognise

trains a small convolutional network on the pictures that the colour model has learned, measures it
on emoji that were kept from it, lets it read what the colour model draws with 20 calls, and saves
it for the tests, which then need no pictures. A minute or two on a CPU core.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import emoji, pictures
from .network import read_weights

ROOT = Path(__file__).resolve().parents[1]
CLASSIFIER = ROOT / "tests" / "data" / "emoji_classifier.safetensors"

VERSIONS = 8  # of each emoji
KEPT = 6  # every sixth emoji is for measuring
STEPS = 3000
BATCH = 64
NOISE = 0.1  # standard deviation on the training pictures: drawn ones are never quite clean

CALLS = 20
CFG = 3.0
PER_CLASS = 25
SEED = 20


class Classifier(nn.Sequential):
    """Pictures [batch, 3, 32, 32] -> a score for each class of the colour model."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(48, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 16, len(emoji.CLASSES)),
        )


def load_classifier(path: Path = CLASSIFIER) -> Classifier:
    classifier = Classifier()
    classifier.load_state_dict(read_weights(path))
    return classifier.eval().requires_grad_(False)


def train_classifier() -> tuple[Classifier, float]:
    """The classifier, and its mean accuracy over the classes on the emoji that were kept from it."""
    images, labels, _ = pictures.load(emoji.IMAGE_SIZE, VERSIONS, seed=1)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    kept = torch.arange(len(images)) % KEPT == 0
    weights = (~kept).double() / torch.bincount(labels)[labels]
    classifier = Classifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        chosen = torch.multinomial(weights, BATCH, replacement=True, generator=generator)
        version = torch.randint(VERSIONS, (BATCH,), generator=generator)
        clean = images[chosen, version].float() / 127.5 - 1.0
        noisy = clean + NOISE * torch.randn(clean.shape, generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(classifier(noisy), labels[chosen]).backward()
        optimizer.step()
        rate.step()
    classifier.eval().requires_grad_(False)
    shown = images[kept].flatten(0, 1).float() / 127.5 - 1.0
    right = classifier(shown).argmax(1) == labels[kept].repeat_interleave(VERSIONS)
    counted = labels[kept].repeat_interleave(VERSIONS)
    by_class = [right[counted == label].double().mean() for label in range(len(emoji.CLASSES))]
    return classifier, float(torch.stack(by_class).mean())


def draw(network: emoji.EmojiNetwork, labels: list[int], seed: int = SEED) -> Tensor:
    """Pictures of these classes, by DPM++ 2M with CALLS calls, evenly spaced in log sigma."""
    from ..samplers import sample_multistep

    levels = torch.linspace(math.log(15.0), math.log(0.03), CALLS).exp()
    sigmas = torch.cat([levels, levels.new_zeros(1)])
    generator = torch.Generator().manual_seed(seed)
    size = emoji.IMAGE_SIZE
    start = torch.randn(len(labels), 3, size, size, generator=generator) * sigmas[0]
    with torch.inference_mode():
        return sample_multistep(emoji.Denoiser(network, labels, CFG), start, sigmas, disable=True)


def read(classifier: Classifier, network: emoji.EmojiNetwork, per_class: int) -> Tensor:
    """The share of drawings that the classifier reads as asked for, one number per class."""
    labels = list(range(len(emoji.CLASSES))) * per_class
    found = classifier(draw(network, labels).clamp(-1.0, 1.0)).argmax(1)
    right = (found == torch.tensor(labels)).double()
    return right.reshape(per_class, len(emoji.CLASSES)).mean(0)


def report(weights: Path = emoji.WEIGHTS, save_to: Path | None = CLASSIFIER) -> None:
    from safetensors.torch import save_file

    classifier, accuracy = train_classifier()
    print(
        f"the classifier reads {accuracy:.0%} of the real emoji that were kept from it", flush=True
    )
    if save_to is not None:
        save_file({k: v.half() for k, v in classifier.state_dict().items()}, str(save_to))
    shares = read(classifier, emoji.load(weights), PER_CLASS)
    print(f"and {shares.mean():.0%} of {PER_CLASS} drawings of each class with {CALLS} calls:")
    for name, share in zip(emoji.CLASSES, shares, strict=True):
        print(f"  {name:8s} {share:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=emoji.WEIGHTS)
    arguments = parser.parse_args()
    report(arguments.weights)


if __name__ == "__main__":
    main()
