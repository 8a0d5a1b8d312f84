"""webui: the samplers as functions that the host can call.

It passes arguments by the names it finds in a function's signature, so that these are written out:
the panel's eta and noise reach the samplers that have a use for them, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ...samplers.catalog import Entry
from ...samplers.integrate import Callback, Denoiser
from ...samplers.noise import NoiseSampler
from ...samplers.sample import sample
from .model import WebuiModel
from .settings import chosen

Sampler = Callable[..., torch.Tensor]

CALLS, CALLS_HIRES = "DPM-Solver model calls", "Hires DPM-Solver model calls"
"""In the text of an image that was made adaptively; permanent."""


def function_of(entry: Entry) -> Sampler:
    """The function of an entry of the catalogue."""

    def sample_ode(
        model: Any,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,
    ) -> torch.Tensor:
        return run(entry, model, x, sigmas, extra_args, callback, disable)

    def sample_sde(
        model: Any,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,
        eta: float = 1.0,
        s_noise: float = 1.0,
        noise_sampler: NoiseSampler | None = None,
    ) -> torch.Tensor:
        # The host leaves out a 1, and pasting its text would then leave the user's own value.
        write(model, {"Eta": eta, "Sigma noise": s_noise})
        arguments = (model, x, sigmas, extra_args, callback, disable, noise_sampler)
        return run(entry, *arguments, eta=eta, s_noise=s_noise)

    return sample_sde if entry.stochastic else sample_ode


def run(
    entry: Entry,
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: Mapping[str, Any] | None,
    callback: Callback | None,
    disable: bool | None,
    noise_sampler: NoiseSampler | None = None,
    **noise: float,
) -> torch.Tensor:
    """Run an entry on the host's denoiser, with what its settings page says and its model is."""
    settings = chosen(entry.options)
    write(model, {setting.infotext: setting.value for setting in settings})
    values: dict[str, Any] = {setting.parameter: setting.value for setting in settings}
    schedule = WebuiModel(model.inner_model).schedule
    options = replace(entry.options, **values | noise).on(schedule)
    if entry.adaptive:
        paced = Paced(model, callback)
        model, callback = paced, paced.report
    return sample(
        options,
        model,
        x,
        sigmas,
        extra_args,
        callback,
        disable,
        noise_sampler=noise_sampler,
        schedule=schedule,
    )


def write(model: Any, text: Mapping[str, Any]) -> None:
    """Add to the text of the images being made: all that a run depends on, and what it took."""
    processing = getattr(model, "p", None)
    if processing is not None:
        processing.extra_generation_params.update(text)


class Paced:
    """Shows the host an adaptive run as the panel's number of steps.

    The host counts calls: its bars would overflow, and the refiner and changes of prompt come far too
    early. Here each step of the panel is reported once, and begins when the run has come that far.
    The image's text says how many calls it took.
    """

    def __init__(self, model: Denoiser, callback: Callback | None) -> None:
        self.model: Any = model
        self.callback = callback
        self.calls = 0
        self.reported = -1

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **extra_args: Any) -> torch.Tensor:
        # The first step's number comes with the first call, however short the way it made.
        self.model.step = self.reported + 1 if self.reported > 0 else 0
        denoised: torch.Tensor = self.model(x, sigma, **extra_args)
        self.calls += 1
        hires = getattr(getattr(self.model, "p", None), "is_hr_pass", False)
        write(self.model, {CALLS_HIRES if hires else CALLS: self.calls})
        return denoised

    def report(self, state: Mapping[str, Any]) -> None:
        for i in range(self.reported + 1, state["i"] + 1):
            self.reported = i
            if self.callback is not None:
                self.callback({**state, "i": i})
