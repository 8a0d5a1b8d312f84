"""The pictures the colour model learns: emoji of eight classes as two vendors draw them.

They come from npm when the model is trained, and are not in the repository; NOTICE.md names their
authors and licences. Each picture is shown in several versions: mirrored, moved, of another size and
in slightly different colours.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CACHE = Path.home() / ".cache" / "dpm-solver-nodes" / "emoji"
DRAWN = 64
"""Side of the pictures that the versions are made from, in pixels."""


@dataclass(frozen=True)
class Vendor:
    """A package of npm with one picture per emoji, at ``path`` with the emoji's code points."""

    package: str
    version: str
    path: str
    drawn: str = ""  # the key in emoji.json that says that this vendor has drawn the emoji
    licence: str = ""


VENDORS = (
    Vendor(
        "emoji-datasource-google",
        "16.0.0",
        "package/img/google/64/{}.png",
        "has_img_google",
        "Noto Emoji, Google, Apache License 2.0",
    ),
    Vendor(
        "emoji-datasource-twitter",
        "16.0.0",
        "package/img/twitter/64/{}.png",
        "has_img_twitter",
        "Twemoji, Twitter and other contributors, CC BY 4.0",
    ),
)


@dataclass(frozen=True)
class Kind:
    """A class of emoji: names of Unicode's subcategories, or code points; and how it may vary."""

    name: str
    codes: str = ""
    subcategories: tuple[str, ...] = ()
    mirrored: bool = True
    hue: float = 10.0  # degrees, either way


KINDS = (
    Kind(
        "heart",
        "2764-fe0f 1f9e1 1f49b 1f49a 1f499 1fa75 1f49c 1f90e 1f5a4 1fa76 1f90d 1fa77 1f493 1f497 "
        "1f496 1f498 1f49d",
        hue=180.0,
    ),
    Kind(
        "smiley",
        subcategories=(
            *("face-smiling", "face-affection", "face-tongue", "face-sleepy", "face-glasses"),
            *("face-neutral-skeptical", "face-concerned"),
        ),
    ),
    Kind("cat", subcategories=("cat-face",)),
    Kind(
        "animal",
        "1f436 1f42d 1f439 1f430 1f98a 1f43b 1f43c 1f43b-200d-2744-fe0f 1f428 1f42f 1f981 1f42e "
        "1f437 1f438 1f435 1f43a 1f99d",
    ),
    Kind("person", subcategories=("person",)),
    Kind("flower", "1f33c 1f33b 1f33a 1f339 1f337 1f338 1fab7 1f3f5-fe0f 1f4ae 1fabb", hue=40.0),
    Kind(
        "fruit",
        "1f347 1f348 1f349 1f34a 1f34b 1f34c 1f34d 1f96d 1f34e 1f34f 1f350 1f351 1f352 1f353 "
        "1fad0 1f95d 1f345",
    ),
    Kind(
        "car",
        "1f697 1f698 1f699 1f695 1f696 1f693 1f694 1f691 1f692 1f690 1f68c 1f68d 1f69a 1f69b "
        "1f6fb 1f68e 1f69c",
    ),
)


def _archive(vendor: Vendor) -> tarfile.TarFile:
    """The vendor's package, from npm the first time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    name = f"{vendor.package.removeprefix('@').replace('/', '-')}-{vendor.version}.tgz"
    if not (CACHE / name).exists():
        command = ["npm", "pack", "--silent", f"{vendor.package}@{vendor.version}"]
        subprocess.run(command, cwd=CACHE, check=True)
    return tarfile.open(CACHE / name)


@cache
def _emoji() -> list[dict[str, Any]]:
    """Unicode's emoji, those with a skin tone too: code points, subcategory, who has drawn it."""
    with _archive(VENDORS[0]) as archive:
        file = archive.extractfile("package/emoji.json")
        assert file is not None
        entries = json.load(file)
    found = []
    for entry in sorted(entries, key=lambda entry: entry["sort_order"]):
        for variant in (entry, *entry.get("skin_variations", {}).values()):
            code = variant["unified"].lower()
            found.append({**variant, "code": code, "subcategory": entry["subcategory"]})
    return found


def _wanted(kind: Kind) -> Callable[[dict[str, Any]], bool]:
    codes = set(kind.codes.split())
    return lambda entry: entry["code"] in codes or entry["subcategory"] in kind.subcategories


def _drawings(vendor: Vendor) -> Iterator[tuple[int, Image.Image]]:
    """The class and the picture, on white, of each emoji that the vendor has drawn."""
    with _archive(vendor) as archive:
        names = set(archive.getnames())
        for label, kind in enumerate(KINDS):
            for entry in filter(_wanted(kind), _emoji()):
                name = vendor.path.format(entry["code"])
                if (vendor.drawn and not entry[vendor.drawn]) or name not in names:
                    continue
                file = archive.extractfile(name)
                assert file is not None
                drawn = Image.open(BytesIO(file.read())).convert("RGBA")
                drawn = drawn.resize((DRAWN, DRAWN), Image.Resampling.LANCZOS)
                white = Image.new("RGBA", drawn.size, "white")
                yield label, Image.alpha_composite(white, drawn).convert("RGB")


def _turn_hue(degrees: float) -> np.ndarray:
    """The matrix [3, 3] that turns a colour about the grey axis."""
    angle = np.deg2rad(degrees)
    third, root = 1.0 / 3.0, np.sqrt(1.0 / 3.0)
    cross = root * np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    mean = np.full((3, 3), third)
    return np.cos(angle) * (np.eye(3) - mean) + np.sin(angle) * cross + mean


def vary(picture: Image.Image, kind: Kind, size: int, generator: np.random.Generator) -> np.ndarray:
    """A version of ``picture``, uint8 [size, size, 3]: mirrored, moved, scaled, other colours."""
    if kind.mirrored and generator.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = generator.uniform(0.98, 1.12)  # of the picture's surroundings: above 1 is smaller
    middle = DRAWN / 2 + generator.uniform(-2.0, 2.0, size=2)
    half = DRAWN / 2 * scale
    corners = (middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half)
    wide = Image.new("RGB", (2 * DRAWN, 2 * DRAWN), "white")  # what lies beside the picture
    wide.paste(picture, (DRAWN // 2, DRAWN // 2))
    box = tuple(corner + DRAWN / 2 for corner in corners)
    small = wide.resize((size, size), Image.Resampling.BOX, box=box)
    matrix = _turn_hue(generator.uniform(-kind.hue, kind.hue))
    colours = np.asarray(small, dtype=np.float64) @ matrix.T
    return np.clip(colours.round(), 0, 255).astype(np.uint8)


def load(size: int, versions: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures uint8 ``[n, versions, 3, size, size]``, classes ``[n]`` and vendors ``[n]``."""
    generator = np.random.default_rng(seed)
    pictures, labels, vendors = [], [], []
    for number, vendor in enumerate(VENDORS):
        for label, drawn in _drawings(vendor):
            kind = KINDS[label]
            made = [vary(drawn, kind, size, generator) for _ in range(versions)]
            pictures.append(np.stack(made).transpose(0, 3, 1, 2))
            labels.append(label)
            vendors.append(number)
    return (torch.from_numpy(np.stack(pictures)), torch.tensor(labels), torch.tensor(vendors))
