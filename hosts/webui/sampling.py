"""The samplers as functions that webui can call.

The host passes the arguments that it finds by name in a function's signature. So the signatures are
written out, and the panel's eta and noise reach only the samplers that use them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ...samplers.catalog import Entry
from ...samplers.integrate import Callback, Denoiser
from ...samplers.noise import NoiseSampler
from ...samplers.sample import sample
from ...samplers.solvers.fitted import Calibrated
from . import own_models
from .guidance import GuidanceReader, tell_if_unguided
from .model import WebuiModel
from .settings import chosen

Sampler = Callable[..., torch.Tensor]

CALIBRATION = "DPM-Solver calibration"
"""Name in the text of an image that DPM++ (recommended) made with a calibration; permanent."""

CALLS, CALLS_HIRES = "DPM-Solver model calls", "Hires DPM-Solver model calls"
"""Names in the text of an image that an adaptive sampler made; permanent."""


def function_of(entry: Entry) -> Sampler:
    """The function for an entry of the catalogue."""

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
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        noise_sampler: NoiseSampler | None = None,
    ) -> torch.Tensor:
        # The host does not write a 1, and pasting such a text would keep the value of the user.
        write(model, {"Eta": eta, "Sigma noise": s_noise})
        arguments = (model, x, sigmas, extra_args, callback, disable, noise_sampler)
        return run(entry, *arguments, eta=eta, s_noise=s_noise, s_tmin=s_tmin, s_tmax=s_tmax)

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
    """Run an entry on the host's denoiser, with the settings page's values and the model's noise."""
    settings = chosen(entry.options)
    write(model, {setting.infotext: setting.value for setting in settings})
    values: dict[str, Any] = {setting.parameter: setting.value for setting in settings}
    host_model = WebuiModel(model.inner_model)
    schedule = host_model.schedule
    options = replace(entry.options, **values | noise).on(schedule)
    found = own_models.calibration(options, model, x, sigmas, extra_args or {})
    if found is not None:
        name, one = found
        write(model, {CALIBRATION: name})
        options = Calibrated(calibration=one)
        sigmas = sigmas.new_tensor([float(sigmas[0]), *one.sigmas[1:]])
    else:
        options, sigmas = host_model.sized(options, x, sigmas)
    if entry.adaptive:
        paced = Paced(model, callback)
        model, callback = paced, paced.report
    unconditional = None
    if entry.cfg_pp:
        tell_if_unguided(entry.label, extra_args or {})
        model = GuidanceReader(model)
        unconditional = model.unconditional
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
        unconditional=unconditional,
    )


def write(model: Any, text: Mapping[str, Any]) -> None:
    """Add to the text of the images being made: all settings of the run, and its model calls."""
    processing = getattr(model, "p", None)
    if processing is not None:
        processing.extra_generation_params.update(text)


class Paced:
    """Reports an adaptive run to the host as the panel's number of steps.

    The host counts model calls. An adaptive run takes more: the progress bars would overflow, and the
    refiner and prompt changes would come too early. So each step of the panel is reported once, when
    the run reaches it. The image's text says how many calls the run took.
    """

    def __init__(self, model: Denoiser, callback: Callback | None) -> None:
        self.model: Any = model
        self.callback = callback
        self.calls = 0
        self.reported = -1

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **extra_args: Any) -> torch.Tensor:
        # The first step is reported at the first call, however little progress that makes.
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
