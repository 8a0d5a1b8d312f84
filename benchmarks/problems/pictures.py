"""Real pictures that come with packages: patches of photographs, emoji, digits."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

CACHE = Path.home() / ".cache" / "dpm-solver-nodes" / "problems"
EMOJI = "emoji-datasource-google", "16.0.0"
"""A package of npm, fetched once; some 60 MB."""

SKLEARN = ("china", "flower")
SIDES = 2
"""Each photograph is cut into SIDES x SIDES parts: its patches' classes."""


def standardised(values: np.ndarray) -> torch.Tensor:
    points = torch.tensor(values.reshape(len(values), -1), dtype=torch.float64)
    return (points - points.mean()) / points.std()


@cache
def photograph(name: str) -> np.ndarray:
    """[height, width, 3], from 0 to 1."""
    if name in SKLEARN:
        from sklearn.datasets import load_sample_image

        return np.asarray(load_sample_image(f"{name}.jpg"), dtype=np.float64) / 255.0
    import skimage.data
    import skimage.io

    where = Path(skimage.data.__file__).parent
    found = next(where.glob(f"{name}.*"))
    return np.asarray(skimage.io.imread(found), dtype=np.float64)[..., :3] / 255.0


@cache
def patches(
    names: Sequence[str], size: int, count: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` patches a third of a part's height wide, scaled to `size` pixels, and their classes."""
    generator = np.random.default_rng(seed)
    found, labels = [], []
    for i in range(count):
        label = i % (len(names) * SIDES * SIDES)
        picture = photograph(names[label // (SIDES * SIDES)])
        height, width = (n // SIDES for n in picture.shape[:2])
        row, column = divmod(label % (SIDES * SIDES), SIDES)
        scale = max(1, min(height, width) // (3 * size))
        top = row * height + generator.integers(height - size * scale + 1)
        left = column * width + generator.integers(width - size * scale + 1)
        cut = picture[top : top + size * scale, left : left + size * scale]
        found.append(cut.reshape(size, scale, size, scale, 3).mean((1, 3)))
        labels.append(label)
    return standardised(np.stack(found)), torch.tensor(labels)


@cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return standardised(data.data), torch.tensor(data.target)


def _sheet() -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    sheet = CACHE / "emoji.png"
    if not sheet.exists():
        name, version = EMOJI
        archive = CACHE / f"{name}-{version}.tgz"
        if not archive.exists():
            subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=CACHE, check=True)
        with tarfile.open(archive) as package:
            member = package.extractfile("package/img/google/sheets/32.png")
            assert member is not None
            sheet.write_bytes(member.read())
    return sheet


@cache
def emoji(size: int, count: int, offset: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Every few of the sheet's emoji, on white; neighbours, which are alike, make 16 classes."""
    from PIL import Image

    cell = 34  # 32 pixels and a margin of 1
    sheet = np.asarray(Image.open(_sheet()).convert("RGBA"), dtype=np.float64) / 255.0
    colours = sheet[..., :3] * sheet[..., 3:] + 1.0 - sheet[..., 3:]
    whole = sheet.shape[0] // cell
    scale = 32 // size
    pictures = []
    for i in range(whole * whole):
        column, row = divmod(i, whole)
        top, left = row * cell + 1, column * cell + 1
        cut = colours[top : top + 32, left : left + 32]
        if cut.min() < 0.99:
            pictures.append(cut.reshape(size, scale, size, scale, 3).mean((1, 3)))
    chosen = (np.linspace(0, len(pictures) - 2, count).astype(int) + offset) % len(pictures)
    labels = torch.arange(count) * 16 // count
    return standardised(np.stack([pictures[i] for i in chosen])), labels
