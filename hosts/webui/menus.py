"""Our samplers and schedulers in the panel of webui: AUTOMATIC1111 (1.9 or newer) and Forge."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from modules import (
    script_callbacks,
    sd_samplers,
    sd_samplers_common,
    sd_samplers_kdiffusion,
    sd_schedulers,
    shared,
)

from ...samplers.catalog import CATALOG, Entry
from ...samplers.solvers.recommended import Recommended
from ..model import RECOMMENDED
from . import guidance
from .calibrated import CalibratedSampler, calibrations
from .model import scheduler
from .sampling import function_of
from .settings import add_settings

HIDDEN_SAMPLERS = "/dpm_solver/hidden_samplers"
"""Where `javascript/dpm_solver_menus.js` asks for the samplers that the panel hides by default."""

MARK = "dpm_solver"
"""Marks ours: a sampler has it among its options, and a scheduler's name begins with it."""

SCHEDULERS = {
    "dpm_solver_log_snr": ("DPM-Solver log-SNR", "logSNR"),
    "dpm_solver_time_uniform": ("DPM-Solver uniform time", "time_uniform"),
    "dpm_solver_time_quadratic": ("DPM-Solver quadratic time", "time_quadratic"),
    "dpm_solver_recommended": ("DPM-Solver recommended", RECOMMENDED),
}
"""Name -> label in the panel, and spacing. Names and labels are permanent: images' texts hold them."""

AUTOMATIC = "dpm_solver_log_snr"
"""The scheduler that "Automatic" stands for: the papers' own, and right on flows too."""


def register() -> None:
    """Add our samplers, schedulers and settings to the host's; replace those of an earlier call."""
    _register_samplers()
    _register_schedulers()
    guidance.register()
    script_callbacks.on_before_ui(add_settings)  # it is called even without a page
    script_callbacks.on_app_started(_register_routes)


def label_of(entry: Entry) -> str:
    """A sampler's name in the panel: "DPM-Solver++(2M)", as the papers write it.

    If a name ends in a space and any scheduler's label, the host splits it and runs another sampler.
    So there is no space in it.
    """
    form, *rest = entry.label.split()
    return f"{form}({'-'.join(rest).strip('()')})"


def _register_routes(_page: Any, app: Any) -> None:
    """Have the host's web server tell its page which samplers to hide."""

    @app.get(HIDDEN_SAMPLERS)
    def hidden_samplers() -> list[str]:
        return [label_of(entry) for entry in _offered() if not entry.short]


def _offered() -> list[Entry]:
    return [entry for entry in CATALOG if guidance.readable() or not entry.cfg_pp]


def _register_samplers() -> None:
    ours = [_sampler_data(entry) for entry in _offered()]
    ours += [
        sd_samplers_common.SamplerData(
            name, partial(CalibratedSampler, name, path), [], {MARK: name}
        )
        for name, path in calibrations().items()
    ]
    # In place: the host's other lists are the same objects.
    every, by_name = sd_samplers.all_samplers, sd_samplers.all_samplers_map
    every[:] = [data for data in every if MARK not in data.options] + ours
    for name in [name for name, data in by_name.items() if MARK in data.options]:
        del by_name[name]
    by_name.update({data.name: data for data in ours})
    sd_samplers.set_samplers()
    find = sd_samplers.get_sampler_and_scheduler
    if hasattr(find, "cache_clear"):  # it may hold that ours don't exist; not every fork has it
        find.cache_clear()


def _sampler_data(entry: Entry) -> Any:
    recommended = isinstance(entry.options, Recommended)
    options: dict[str, Any] = {
        MARK: entry.id,
        "scheduler": "dpm_solver_recommended" if recommended else AUTOMATIC,
    }
    if entry.stochastic:
        options["brownian_noise"] = True
    return sd_samplers_common.SamplerData(label_of(entry), _constructor(entry), [], options)


def _constructor(entry: Entry) -> Callable[[Any], Any]:
    function = function_of(entry)

    def construct(sd_model: Any) -> Any:
        sampler = sd_samplers_kdiffusion.KDiffusionSampler(function, sd_model)
        if entry.stochastic:
            # The host knows these only for its own functions.
            sampler.extra_params = ["s_noise", "s_tmin", "s_tmax"]
        return sampler

    return construct


def _register_schedulers() -> None:
    ours = [
        sd_schedulers.Scheduler(name, label, scheduler(spacing), need_inner_model=True)
        for name, (label, spacing) in SCHEDULERS.items()
    ]
    hidden = getattr(shared.opts, "hide_schedulers", ())  # a setting of Forge Neo's
    shown = [new for new in ours if new.label not in hidden]
    every = getattr(sd_schedulers, "all_schedulers", [])  # Forge Neo's: its settings and presets
    for listed, new in ((sd_schedulers.schedulers, shown), (every, ours)):
        listed[:] = [other for other in listed if not other.name.startswith(MARK)] + new
    # Hidden ones too: "Automatic" may stand for one.
    by_name = sd_schedulers.schedulers_map
    for name in [name for name, other in by_name.items() if other.name.startswith(MARK)]:
        del by_name[name]
    by_name.update({name: new for new in ours for name in (new.name, new.label)})
