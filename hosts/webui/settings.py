"""Settings for which webui's panel has no field, on a section of its settings page."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from modules import options, shared

from ...samplers.options import SOLVER_TYPES, Options
from ...samplers.solvers.multistep import LOWER_ORDER_FINAL
from ...samplers.solvers.singlestep import GROUPINGS

SECTION = {"section": ("dpm_solver", "DPM-Solver"), "category_id": "sd"}
"""Our section, beside the host's for sampler parameters."""

SHOW_ALL = "dpm_solver_show_all_samplers"
"""The option that `javascript/dpm_solver_menus.js` reads; permanent, as the user's file holds it."""


USE_CALIBRATIONS = "dpm_solver_use_calibrations"
"""The option of `own_models.py`; permanent, too."""


@dataclass(frozen=True)
class Setting:
    """A setting on the page.

    Attributes:
        parameter: the keyword of `samplers.sample_*` that it sets.
        default: its default, which also gives its type.
        label, info: texts on the page.
        infotext: its name in an image's text, from which pasting restores it; permanent.
        choices: its values, or empty if it is a slider.
        bounds: the slider's minimum, maximum and step.
    """

    parameter: str
    default: str | int | float
    label: str
    info: str
    infotext: str
    choices: tuple[str, ...] = ()
    bounds: tuple[float, float, float] = (0.0, 1.0, 0.01)

    @property
    def key(self) -> str:
        """Its name among the host's options; permanent, as the user's file holds it."""
        return f"dpm_solver_{self.parameter}"

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of its component on the page."""
        if self.choices:
            return {"choices": list(self.choices)}
        return dict(zip(("minimum", "maximum", "step"), self.bounds, strict=True))

    @property
    def value(self) -> str | int | float:
        """Its value: the user's, or that of an override for this run."""
        return type(self.default)(getattr(shared.opts, self.key, self.default))


SETTINGS = (
    Setting(
        "rtol",
        0.05,
        "Adaptive samplers: tolerance",
        "half of it is closer to the converged image, and takes about a third more model calls",
        "DPM-Solver tolerance",
        bounds=(0.001, 0.2, 0.001),
    ),
    Setting(
        "atol",
        0.0078,
        "Adaptive samplers: tolerance for values near zero",
        "the larger of the two tolerances counts; 0.0078 is one level of 8-bit colour",
        "DPM-Solver absolute tolerance",
        bounds=(0.0001, 0.05, 0.0001),
    ),
    Setting(
        "max_calls",
        500,
        "Adaptive samplers: most model calls",
        "if they run short, the run is finished in the calls that are left",
        "DPM-Solver most calls",
        bounds=(10, 1000, 10),
    ),
    Setting(
        "solver_type",
        "dpmsolver",
        "Formula of 2M, 3M, 2S, 3S and adaptive",
        "dpmsolver, elsewhere called midpoint, is the papers' first choice; taylor, elsewhere called "
        "heun, and exact differ from it in large steps",
        "DPM-Solver type",
        choices=SOLVER_TYPES,
    ),
    Setting(
        "lower_order_final",
        "auto",
        "2M and 3M: lower order in the last steps",
        "steadier with few steps; auto does it for 3M below 10 steps",
        "DPM-Solver lower order at the end",
        choices=LOWER_ORDER_FINAL,
    ),
    Setting(
        "grouping",
        "fast",
        "2S and 3S: grouping of the steps",
        "fast, as published, ends in shorter groups; fixed keeps groups of 2 or 3 to the end",
        "DPM-Solver grouping",
        choices=GROUPINGS,
    ),
)


def add_settings() -> None:
    """Put the settings among the host's options, where a reload finds them again."""
    import gradio  # only the page needs it

    for setting in SETTINGS:
        component = gradio.Radio if setting.choices else gradio.Slider
        option = options.OptionInfo(
            setting.default,
            setting.label,
            component,
            setting.arguments,
            infotext=setting.infotext,
            **SECTION,
        )
        shared.opts.add_option(setting.key, option.info(setting.info))
    option = options.OptionInfo(False, "Show all samplers in the panel", **SECTION)
    about = "off: those that most people need; the others are valid all the same"
    shared.opts.add_option(SHOW_ALL, option.info(about))
    option = options.OptionInfo(True, "Recommended: run a calibration of the model", **SECTION)
    about = "if there is one for the number of steps and a CFG within 30 %; the log says so"
    shared.opts.add_option(USE_CALIBRATIONS, option.info(about))


def switched_on(key: str) -> bool:
    """An option that is on or off."""
    return bool(getattr(shared.opts, key, True))


def chosen(options: Options) -> list[Setting]:
    """The page's settings that a sampler has, if its entry leaves them at their default."""
    open_ = {
        field.name for field in fields(options) if getattr(options, field.name) == field.default
    }
    return [setting for setting in SETTINGS if setting.parameter in open_]
