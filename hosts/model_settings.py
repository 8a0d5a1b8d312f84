"""What follows for a sampler's settings from the model's schedule, the same in every host."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..samplers import NoiseSchedule, RectifiedFlow


def with_model_settings(
    function: Callable[..., Any], settings: Mapping[str, Any], schedule: NoiseSchedule
) -> dict[str, Any]:
    """The settings of one of `samplers.sample_*`, with those that follow from the model's schedule.

    These are the schedule itself and, where the solver can, lowering of long steps on flows and with
    noise.
    """
    own = inspect.signature(function).parameters
    settings = {**settings, "schedule": schedule}
    if "lower_long_steps" in own:
        stochastic = settings.get("eta", own["eta"].default) != 0.0
        settings["lower_long_steps"] = stochastic or isinstance(schedule, RectifiedFlow)
    return settings
