"""Points that are no pictures: tables that come with scikit-learn, and trees in a few dimensions."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import torch

from .pictures import standardised

DEPTH, BRANCHES, ALONG = 4, 2, 24
"""Of a tree: how often it branches, into how many branches, and the points along each."""

SHORTER, TURN = 0.7, 0.8
"""How much shorter each branch is than the one before, and how far it may turn away from it."""


@cache
def table(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of a table, each feature of variance 1, and their classes."""
    import sklearn.datasets

    data = getattr(sklearn.datasets, f"load_{name}")()
    values = (data.data - data.data.mean(0)) / data.data.std(0)
    return standardised(values), torch.tensor(data.target)


@cache
def tree(dimensions: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points along the branches of a random tree, and the main branch that each belongs to."""
    random = np.random.default_rng(seed)

    def unit(direction: np.ndarray) -> np.ndarray:
        return direction / np.linalg.norm(direction)

    tips = [(np.zeros(dimensions), unit(random.standard_normal(dimensions)), 0)]
    found, labels = [], []
    for depth in range(DEPTH + 1):
        grown = []
        for begin, direction, label in tips:
            end = begin + direction * SHORTER**depth
            found.append(np.linspace(begin, end, ALONG))
            labels += [label] * ALONG
            grown.append((end, direction, label))
        tips = [
            (
                end,
                unit(direction + TURN * random.standard_normal(dimensions)),
                label if depth else k,
            )
            for (end, direction, label), k in product(grown, range(BRANCHES))
        ]
    return standardised(np.concatenate(found)), torch.tensor(labels)
