"""What follows for a sampler's settings from the model's schedule, the same in every host."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..samplers import NoiseSchedule


def with_model_settings(
    function: Callable[..., Any], settings: Mapping[str, Any], schedule: NoiseSchedule
) -> dict[str, Any]:
    """The settings of one of `samplers.sample_*`, with those that follow from the model's schedule.

    These are the schedule itself and, where the solver can, lowering of long steps: hosts' lists have
    such steps.
    """
    lowers = "lower_long_steps" in inspect.signature(function).parameters
    return {**({"lower_long_steps": True} if lowers else {}), **settings, "schedule": schedule}
