"""The table of all samplers that hosts list. Menus, panels, docs/solvers.md and the tests read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from .options import Options
from .sample import sample
from .solvers.adaptive import Adaptive
from .solvers.ancestral import Ancestral
from .solvers.er_sde import ErSde
from .solvers.multistep import Multistep
from .solvers.recommended import Recommended
from .solvers.singlestep import Singlestep


@dataclass(frozen=True)
class Entry:
    """A sampler as users choose it.

    Attributes:
        id: its name in menus and in shared workflows; permanent once released.
        label: its name for people.
        options: its settings.
        order: order of convergence on a fixed list, with lowering off and a last sigma above zero. If
            noise is added it is the weak order, that of the resulting distribution. None: there is
            none, as an adaptive solver takes a tolerance instead, and CFG++ solves no equation.
        help: what it is good for, in a sentence or two.
        source: the paper, and the place in it.
        short: whether menus list it by default. The others are listed if the user asks for all, and
            may be used by their ids always.
    """

    id: str
    label: str
    options: Options
    order: int | None
    help: str
    source: str
    short: bool = False

    def function(self) -> Callable[..., torch.Tensor]:
        """The sampler as a function with the arguments of `sample_multistep`."""
        return partial(sample, self.options)

    @property
    def stochastic(self) -> bool:
        return self.options.stochastic

    @property
    def calls(self) -> str:
        """How many model calls it makes, in words."""
        return "as many as it takes" if self.adaptive else "1 per step"

    @property
    def adaptive(self) -> bool:
        """Whether it chooses its own number of model calls."""
        return isinstance(self.options, Adaptive)

    @property
    def cfg_pp(self) -> bool:
        return self.options.needs_unconditional


def entry(id_: str) -> Entry:
    """The entry of this id; KeyError if there is none."""
    return {entry.id: entry for entry in CATALOG}[id_]


_IMAGE = "DPM-Solver++ (arXiv 2211.01095), "
_NOISE = "DPM-Solver (arXiv 2206.00927), "
_SDE = "its section on SDEs, "
_ER = "ER-SDE (arXiv 2309.06169), "
_CFG_PP = ", with CFG++ (arXiv 2406.08070)"

_2M = "The classic, dpmpp_2m elsewhere: second order, steady from 10 steps up."
_3M = "The published third-order formula, as other programs ship it. It converges at second order."
_3M_EXACT = (
    "Truly third order, which pays the more steps there are: try it from 15 up; below, 2M is safer."
)
_2S = (
    "Second order in pairs of steps that use no earlier output: for models that change between "
    "steps, and at very few steps with high CFG."
)
_3S = "Third-order groups of three steps that use no earlier output, ending in shorter groups."
_ADAPTIVE_12 = (
    "Chooses its own number of steps for a given accuracy; the panel's steps only scale the "
    "progress bar."
)
_ADAPTIVE_23 = "As adaptive 12, of third order: for close tolerances."
_SDE_2M = (
    "Adds fresh noise in each step, which mends errors of earlier ones: take 20 to 60 steps. What "
    "others call DPM++ 2M SDE."
)
_SDE_3M = (
    "As 2M, with one more output in each step: a little closer from 30 steps up. What others call "
    "DPM++ 3M SDE."
)
_SDE_2S = (
    "Stochastic pairs of steps that use no earlier output. What others call DPM++ SDE, which counts "
    "a pair as one step: take twice its steps here."
)
_ER_SDE = (
    "Adds less fresh noise than the SDE samplers, most of it in the first steps, and needs fewer "
    "steps than they do. The same as er_sde elsewhere."
)
_2S_ANCESTRAL = (
    "Pairs of steps; each pair removes more noise than asked for and adds fresh noise. The same as "
    "dpmpp_2s_ancestral elsewhere, which counts a pair as one step: take twice its steps here."
)
_2M_CFG_PP = (
    "CFG++ guidance, for a low scale: set CFG low, 1 to 2, and nearer to 1 the more "
    "steps there are above 30."
)
_NOISE_FORM = " Interpolates the noise, as in the first paper; its authors advise ++ with guidance."
_MORE_STEPS = " Take 50 steps or more: with fewer, too much of the noise is left."

_EXACT_3M = (
    "multistep, order 3, with the quadratic term integrated exactly and a second-order start"
)
_K_3M = "in k-diffusion's third-order form"
_K_2S = "in k-diffusion's singlestep form"


# In the order of menus: what to start with comes first.
CATALOG: tuple[Entry, ...] = (
    Entry(
        "dpm_solver++_recommended",
        "DPM++ (recommended)",
        Recommended(),
        None,
        "The one to start with: sigmas and step weights that were fitted together on many models, "
        "with and without guidance. Set the scheduler to dpm_solver_recommended with it.",
        "DPM-Solver++ (arXiv 2211.01095), multistep of orders 1 to 3, benchmarks/fit_recommended.py",
        short=True,
    ),
    Entry(
        "dpm_solver++_2m",
        "DPM-Solver++ 2M",
        Multistep(order=2),
        2,
        _2M,
        _IMAGE + "multistep, order 2",
        short=True,
    ),
    Entry(
        "dpm_solver++_3m",
        "DPM-Solver++ 3M",
        Multistep(order=3),
        2,
        _3M,
        _IMAGE + "multistep, order 3",
    ),
    Entry(
        "dpm_solver++_3m_exact",
        "DPM-Solver++ 3M exact",
        Multistep(order=3, solver_type="exact"),
        3,
        _3M_EXACT,
        _IMAGE + _EXACT_3M,
        short=True,
    ),
    Entry(
        "dpm_solver++_2s",
        "DPM-Solver++ 2S",
        Singlestep(order=2),
        2,
        _2S,
        _IMAGE + "singlestep, order 2",
        short=True,
    ),
    Entry(
        "dpm_solver++_3s",
        "DPM-Solver++ 3S",
        Singlestep(order=3),
        2,
        _3S,
        _IMAGE + "singlestep, order 3",
    ),
    Entry(
        "dpm_solver++_adaptive_12",
        "DPM-Solver++ adaptive 12",
        Adaptive(order=2),
        None,
        _ADAPTIVE_12,
        _IMAGE + "adaptive, DPM-Solver-12",
    ),
    Entry(
        "dpm_solver++_adaptive_23",
        "DPM-Solver++ adaptive 23",
        Adaptive(order=3),
        None,
        _ADAPTIVE_23,
        _IMAGE + "adaptive, DPM-Solver-23",
        short=True,
    ),
    Entry(
        "dpm_solver_2m",
        "DPM-Solver 2M",
        Multistep(algorithm="dpmsolver", order=2),
        2,
        _2M + _NOISE_FORM,
        _NOISE + "multistep, order 2",
    ),
    Entry(
        "dpm_solver_3m",
        "DPM-Solver 3M",
        Multistep(algorithm="dpmsolver", order=3),
        2,
        _3M + _NOISE_FORM,
        _NOISE + "multistep, order 3",
    ),
    Entry(
        "dpm_solver_3m_exact",
        "DPM-Solver 3M exact",
        Multistep(algorithm="dpmsolver", order=3, solver_type="exact"),
        3,
        _3M_EXACT + _NOISE_FORM,
        _NOISE + _EXACT_3M,
    ),
    Entry(
        "dpm_solver_2s",
        "DPM-Solver 2S",
        Singlestep(algorithm="dpmsolver", order=2),
        2,
        _2S + _NOISE_FORM,
        _NOISE + "singlestep, order 2",
    ),
    Entry(
        "dpm_solver_3s",
        "DPM-Solver 3S",
        Singlestep(algorithm="dpmsolver", order=3),
        2,
        _3S + _NOISE_FORM,
        _NOISE + "singlestep, order 3",
    ),
    Entry(
        "dpm_solver_adaptive_12",
        "DPM-Solver adaptive 12",
        Adaptive(algorithm="dpmsolver", order=2),
        None,
        _ADAPTIVE_12 + _NOISE_FORM,
        _NOISE + "adaptive, DPM-Solver-12",
    ),
    Entry(
        "dpm_solver_adaptive_23",
        "DPM-Solver adaptive 23",
        Adaptive(algorithm="dpmsolver", order=3),
        None,
        _ADAPTIVE_23 + _NOISE_FORM,
        _NOISE + "adaptive, DPM-Solver-23",
    ),
    Entry(
        "sde_dpm_solver++_2m",
        "SDE-DPM-Solver++ 2M",
        Multistep(order=2, eta=1.0),
        2,
        _SDE_2M,
        _IMAGE + _SDE + "multistep, order 2",
        short=True,
    ),
    Entry(
        "sde_dpm_solver++_3m",
        "SDE-DPM-Solver++ 3M",
        Multistep(order=3, solver_type="taylor", eta=1.0),
        2,
        _SDE_3M,
        _IMAGE + _SDE + _K_3M,
    ),
    Entry(
        "sde_dpm_solver++_2s",
        "SDE-DPM-Solver++ 2S",
        Singlestep(order=2, eta=1.0),
        2,
        _SDE_2S,
        _IMAGE + _SDE + _K_2S,
    ),
    Entry(
        "dpm_solver++_er_sde",
        "DPM-Solver++ ER-SDE",
        ErSde(),
        2,
        _ER_SDE,
        _ER + "order 3",
        short=True,
    ),
    Entry(
        "dpm_solver++_2s_ancestral",
        "DPM-Solver++ 2S ancestral",
        Ancestral(),
        2,
        _2S_ANCESTRAL,
        _IMAGE + "singlestep, order 2, in k-diffusion's ancestral form",
    ),
    Entry(
        "dpm_solver++_2m_cfg_pp",
        "DPM-Solver++ 2M CFG++",
        Multistep(order=2, cfg_pp=True),
        None,
        _2M_CFG_PP,
        _IMAGE + "multistep, order 2" + _CFG_PP,
        short=True,
    ),
    Entry(
        "dpm_solver++_3m_cfg_pp",
        "DPM-Solver++ 3M CFG++",
        Multistep(order=3, cfg_pp=True),
        None,
        "As 2M CFG++, with the published third-order formula.",
        _IMAGE + "multistep, order 3" + _CFG_PP,
    ),
    Entry(
        "sde_dpm_solver++_2m_cfg_pp",
        "SDE-DPM-Solver++ 2M CFG++",
        Multistep(order=2, eta=1.0, cfg_pp=True),
        None,
        "2M CFG++ with fresh noise in each step.",
        _IMAGE + _SDE + "multistep, order 2" + _CFG_PP,
    ),
    Entry(
        "sde_dpm_solver++_3m_cfg_pp",
        "SDE-DPM-Solver++ 3M CFG++",
        Multistep(order=3, solver_type="taylor", eta=1.0, cfg_pp=True),
        None,
        "3M CFG++ with fresh noise in each step.",
        _IMAGE + _SDE + _K_3M + _CFG_PP,
    ),
    Entry(
        "dpm_solver++_er_sde_cfg_pp",
        "DPM-Solver++ ER-SDE CFG++",
        ErSde(cfg_pp=True),
        None,
        "ER-SDE with CFG++ guidance: set CFG low, 1 to 2.",
        _ER + "order 3" + _CFG_PP,
    ),
    Entry(
        "dpm_solver++_2s_ancestral_cfg_pp",
        "DPM-Solver++ 2S ancestral CFG++",
        Ancestral(cfg_pp=True),
        None,
        "2S ancestral with CFG++ guidance: set CFG low, 1 to 2.",
        _IMAGE + "singlestep, order 2, in k-diffusion's ancestral form" + _CFG_PP,
    ),
    Entry(
        "sde_dpm_solver_2m",
        "SDE-DPM-Solver 2M",
        Multistep(algorithm="dpmsolver", order=2, eta=1.0),
        2,
        _SDE_2M + _NOISE_FORM + _MORE_STEPS,
        _NOISE + _SDE + "multistep, order 2",
    ),
    Entry(
        "sde_dpm_solver_2s",
        "SDE-DPM-Solver 2S",
        Singlestep(algorithm="dpmsolver", order=2, eta=1.0),
        2,
        _SDE_2S + _NOISE_FORM + _MORE_STEPS,
        _NOISE + _SDE + _K_2S,
    ),
)
