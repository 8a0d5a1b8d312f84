"""The one table of samplers that hosts list: menus, panels, the README and the tests read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .sample import sample_adaptive, sample_multistep, sample_singlestep

SAMPLERS: dict[str, Callable[..., Any]] = {
    "multistep": sample_multistep,
    "singlestep": sample_singlestep,
    "adaptive": sample_adaptive,
}


@dataclass(frozen=True)
class Entry:
    """A sampler as users pick it.

    Attributes:
        id: its name in menus and in shared workflows; permanent once released.
        label: its name for people.
        sampler: a key of SAMPLERS.
        settings: what the sampler is called with.
        order: of convergence on a fixed list, with lowering off and a last sigma above zero; None
            for the adaptive solver, which is given a tolerance instead.
        calls: model calls, in words.
        help: what it is good for, in a sentence or two.
        source: paper and place.
    """

    id: str
    label: str
    sampler: str
    settings: Mapping[str, Any]
    order: int | None
    calls: str
    help: str
    source: str

    def function(self) -> Callable[..., Any]:
        return partial(SAMPLERS[self.sampler], **self.settings)


def entry(id_: str) -> Entry:
    """The entry of this id; KeyError if there is none."""
    return {entry.id: entry for entry in CATALOG}[id_]


_ALGORITHMS = {
    "dpmsolver++": ("dpm_solver++", "DPM-Solver++", "DPM-Solver++ (arXiv 2211.01095)"),
    "dpmsolver": ("dpm_solver", "DPM-Solver", "DPM-Solver (arXiv 2206.00927)"),
}
_NOISE_FORM = " In the noise form of the first paper; its authors advise the ++ form for guidance."
# suffix, label, sampler, settings, order, calls, help, place in the papers
_KINDS: tuple[tuple[str, str, str, dict[str, Any], int | None, str, str, str], ...] = (
    (
        "2m",
        "2M",
        "multistep",
        {"order": 2},
        2,
        "1 per step",
        "The one to start with: second order, steady from 10 steps up.",
        "multistep, order 2",
    ),
    (
        "3m",
        "3M",
        "multistep",
        {"order": 3},
        2,
        "1 per step",
        "The published third-order formula, as other programs ship it. It converges at second order.",
        "multistep, order 3",
    ),
    (
        "3m_exact",
        "3M exact",
        "multistep",
        {"order": 3, "solver_type": "exact"},
        3,
        "1 per step",
        "Truly third order, which pays the more steps there are: try it from 15 up; below, 2M is "
        "safer.",
        "multistep, order 3, with the quadratic term integrated exactly and a second-order start",
    ),
    (
        "2s",
        "2S",
        "singlestep",
        {"order": 2},
        2,
        "1 per step",
        "Second order in pairs of steps that use no earlier output: for models that change between "
        "steps, and at very few steps with high CFG.",
        "singlestep, order 2",
    ),
    (
        "3s",
        "3S",
        "singlestep",
        {"order": 3},
        2,
        "1 per step",
        "Third-order groups of three steps that use no earlier output, ending in shorter groups.",
        "singlestep, order 3",
    ),
    (
        "adaptive_12",
        "adaptive 12",
        "adaptive",
        {"order": 2},
        None,
        "as many as it takes",
        "Chooses its own number of steps for a given accuracy; the panel's steps only scale the "
        "progress bar.",
        "adaptive, DPM-Solver-12",
    ),
    (
        "adaptive_23",
        "adaptive 23",
        "adaptive",
        {"order": 3},
        None,
        "as many as it takes",
        "As adaptive 12, of third order: for close tolerances.",
        "adaptive, DPM-Solver-23",
    ),
)

CATALOG: tuple[Entry, ...] = tuple(
    Entry(
        id=f"{prefix}_{suffix}",
        label=f"{name} {label}",
        sampler=sampler,
        settings={"algorithm": algorithm, **settings},
        order=order,
        calls=calls,
        help=help_ + (_NOISE_FORM if algorithm == "dpmsolver" else ""),
        source=f"{paper}, {place}",
    )
    for algorithm, (prefix, name, paper) in _ALGORITHMS.items()
    for suffix, label, sampler, settings, order, calls, help_, place in _KINDS
)
