"""The schedulers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import k_diffusion.sampling


@dataclass
class Scheduler:
    name: str
    label: str
    function: Callable[..., Any] | None
    default_rho: float = -1
    need_inner_model: bool = False
    aliases: list[str] | None = None


def _uniform(n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any) -> Any:
    return inner_model.get_sigmas(n).to(device)


schedulers = [
    Scheduler("automatic", "Automatic", None),
    Scheduler("uniform", "Uniform", _uniform, need_inner_model=True),
    Scheduler("karras", "Karras", k_diffusion.sampling.get_sigmas_karras, default_rho=7.0),
    Scheduler("beta", "Beta", None, aliases=["exact"]),  # as an extension might call one
    Scheduler("align_your_steps_11", "Align Your Steps 11", None),
]
schedulers_map = {
    key: scheduler for scheduler in schedulers for key in (scheduler.name, scheduler.label)
}
