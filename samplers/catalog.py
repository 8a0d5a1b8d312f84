"""The one table of samplers that hosts list: menus, panels, the README and the tests read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .sample import sample_adaptive, sample_multistep, sample_recommended, sample_singlestep

SAMPLERS: dict[str, Callable[..., Any]] = {
    "multistep": sample_multistep,
    "singlestep": sample_singlestep,
    "adaptive": sample_adaptive,
    "recommended": sample_recommended,
}


@dataclass(frozen=True)
class Entry:
    """A sampler as users pick it.

    Attributes:
        id: its name in menus and in shared workflows; permanent once released.
        label: its name for people.
        sampler: a key of SAMPLERS.
        settings: what the sampler is called with.
        order: of convergence on a fixed list, with lowering off and a last sigma above zero; the weak
            order, that of the end distribution, where `stochastic`; None where there is none: the
            adaptive solver is given a tolerance instead, and the CFG++ forms follow no equation.
        calls: model calls, in words.
        help: what it is good for, in a sentence or two.
        source: paper and place.
        cfg_pp: it is to be given the host's unconditional prediction (see `sample_multistep`).
    """

    id: str
    label: str
    sampler: str
    settings: Mapping[str, Any]
    order: int | None
    calls: str
    help: str
    source: str
    cfg_pp: bool = False

    @property
    def stochastic(self) -> bool:
        return "eta" in self.settings

    def function(self) -> Callable[..., Any]:
        return partial(SAMPLERS[self.sampler], **self.settings)


def entry(id_: str) -> Entry:
    """The entry of this id; KeyError if there is none."""
    return {entry.id: entry for entry in CATALOG}[id_]


@dataclass(frozen=True)
class _Kind:
    """What the entries of both algorithms share; `prefix` and `suffix` are of the id."""

    suffix: str
    label: str
    sampler: str
    settings: Mapping[str, Any]
    order: int | None
    help: str
    place: str
    calls: str = "1 per step"
    prefix: str = ""
    noise_form: bool = True
    cfg_pp: bool = False

    def entry(self, algorithm: str, name: str, label: str, paper: str, remark: str) -> Entry:
        if algorithm == "dpmsolver" and "eta" in self.settings:
            remark += " Take 50 steps or more: with fewer, too much of the noise is left."
        return Entry(
            id=f"{self.prefix}{name}_{self.suffix}",
            label=f"{self.prefix.upper().replace('_', '-')}{label} {self.label}",
            sampler=self.sampler,
            settings={"algorithm": algorithm, **self.settings},
            order=self.order,
            calls=self.calls,
            help=self.help + remark,
            source=f"{paper}, {self.place}",
            cfg_pp=self.cfg_pp,
        )


_TAYLOR_3M = {"order": 3, "solver_type": "taylor"}  # k-diffusion's 3M SDE has these weights
_KINDS = (
    _Kind(
        "2m",
        "2M",
        "multistep",
        {"order": 2},
        2,
        "The classic, dpmpp_2m elsewhere: second order, steady from 10 steps up.",
        "multistep, order 2",
    ),
    _Kind(
        "3m",
        "3M",
        "multistep",
        {"order": 3},
        2,
        "The published third-order formula, as other programs ship it. It converges at second order.",
        "multistep, order 3",
    ),
    _Kind(
        "3m_exact",
        "3M exact",
        "multistep",
        {"order": 3, "solver_type": "exact"},
        3,
        "Truly third order, which pays the more steps there are: try it from 15 up; below, 2M is "
        "safer.",
        "multistep, order 3, with the quadratic term integrated exactly and a second-order start",
    ),
    _Kind(
        "2s",
        "2S",
        "singlestep",
        {"order": 2},
        2,
        "Second order in pairs of steps that use no earlier output: for models that change between "
        "steps, and at very few steps with high CFG.",
        "singlestep, order 2",
    ),
    _Kind(
        "3s",
        "3S",
        "singlestep",
        {"order": 3},
        2,
        "Third-order groups of three steps that use no earlier output, ending in shorter groups.",
        "singlestep, order 3",
    ),
    _Kind(
        "adaptive_12",
        "adaptive 12",
        "adaptive",
        {"order": 2},
        None,
        "Chooses its own number of steps for a given accuracy; the panel's steps only scale the "
        "progress bar.",
        "adaptive, DPM-Solver-12",
        calls="as many as it takes",
    ),
    _Kind(
        "adaptive_23",
        "adaptive 23",
        "adaptive",
        {"order": 3},
        None,
        "As adaptive 12, of third order: for close tolerances.",
        "adaptive, DPM-Solver-23",
        calls="as many as it takes",
    ),
    _Kind(
        "2m",
        "2M",
        "multistep",
        {"order": 2, "eta": 1.0},
        2,
        "Adds fresh noise in each step, which mends errors of earlier ones: take 20 to 60 steps. "
        "What others call DPM++ 2M SDE.",
        "its section on SDEs, multistep, order 2",
        prefix="sde_",
    ),
    _Kind(
        "3m",
        "3M",
        "multistep",
        {**_TAYLOR_3M, "eta": 1.0},
        2,
        "As 2M, with one more output in each step: a little closer from 30 steps up. What others "
        "call DPM++ 3M SDE.",
        "its section on SDEs, in k-diffusion's third-order form",
        prefix="sde_",
        noise_form=False,
    ),
    _Kind(
        "2s",
        "2S",
        "singlestep",
        {"order": 2, "eta": 1.0},
        2,
        "Stochastic pairs of steps that use no earlier output. What others call DPM++ SDE, which "
        "counts a pair as one step: take twice its steps here.",
        "its section on SDEs, in k-diffusion's singlestep form",
        prefix="sde_",
    ),
    _Kind(
        "2m_cfg_pp",
        "2M CFG++",
        "multistep",
        {"order": 2},
        None,
        "Guidance that keeps to the unconditional path: set CFG low, 1 to 2, and "
        "nearer to 1 the more steps there are above 30.",
        "multistep, order 2, with CFG++ (arXiv 2406.08070)",
        noise_form=False,
        cfg_pp=True,
    ),
    _Kind(
        "3m_cfg_pp",
        "3M CFG++",
        "multistep",
        {"order": 3},
        None,
        "As 2M CFG++, with the published third-order formula.",
        "multistep, order 3, with CFG++ (arXiv 2406.08070)",
        noise_form=False,
        cfg_pp=True,
    ),
    _Kind(
        "2m_cfg_pp",
        "2M CFG++",
        "multistep",
        {"order": 2, "eta": 1.0},
        None,
        "2M CFG++ with fresh noise in each step.",
        "its section on SDEs, multistep, order 2, with CFG++ (arXiv 2406.08070)",
        prefix="sde_",
        noise_form=False,
        cfg_pp=True,
    ),
    _Kind(
        "3m_cfg_pp",
        "3M CFG++",
        "multistep",
        {**_TAYLOR_3M, "eta": 1.0},
        None,
        "3M CFG++ with fresh noise in each step.",
        "its section on SDEs, in k-diffusion's third-order form, with CFG++ (arXiv 2406.08070)",
        prefix="sde_",
        noise_form=False,
        cfg_pp=True,
    ),
)

_IMAGE_FORM = ("dpmsolver++", "dpm_solver++", "DPM-Solver++", "DPM-Solver++ (arXiv 2211.01095)", "")
_NOISE_FORM = (
    "dpmsolver",
    "dpm_solver",
    "DPM-Solver",
    "DPM-Solver (arXiv 2206.00927)",
    " In the noise form of the first paper; its authors advise the ++ form for guidance.",
)
_ORDINARY = [kind for kind in _KINDS if not kind.prefix and not kind.cfg_pp]
_OTHERS = [kind for kind in _KINDS if kind not in _ORDINARY]

_RECOMMENDED = Entry(
    id="dpm_solver++_recommended",
    label="DPM++ (recommended)",
    sampler="recommended",
    settings={},
    order=None,
    calls="1 per step",
    help="The one to start with: takes form, order and corrector by the number of steps and the kind "
    "of model, as measured the closest of all here from 5 steps up. Set the scheduler to "
    "dpm_solver_recommended with it.",
    source="DPM-Solver++ (arXiv 2211.01095), UniPC (arXiv 2302.04867), benchmarks/recommended.py",
)

# In the order of menus: what to start with comes first.
CATALOG: tuple[Entry, ...] = (
    _RECOMMENDED,
    *(
        kind.entry(*form)
        for kinds in (_ORDINARY, _OTHERS)
        for form in (_IMAGE_FORM, _NOISE_FORM)
        for kind in kinds
        if kind.noise_form or form is _IMAGE_FORM
    ),
)
