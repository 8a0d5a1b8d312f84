"""Calibrated solvers in webui, from files in the folder `dpm_solver` among the host's models.

DPM-Solver Calibrate in ComfyUI makes the files. Each is a sampler with its own sigmas.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from modules import sd_samplers_kdiffusion

from ...lab.calibration import files, texts
from ...samplers.integrate import Callback
from ...samplers.log import LOG
from ...samplers.sample import sample
from ...samplers.solvers.fitted import Calibrated
from .model import WebuiModel
from .own_models import calibration_files


def calibrations() -> dict[str, Path]:
    """Sampler's name -> its calibration file, for all files that can be used.

    The names stay different even as the host compares them: a file whose name is valid keeps it, and
    others that would get the same name are numbered. A file that can't be used is left out, and the
    log says why.
    """
    labels: dict[Path, str] = {}
    for path in calibration_files():
        try:
            usable = texts.solvers(files.load(path))
            if usable:
                labels[path] = label_of(path, usable[0].fitted.stopped)
        except ValueError as error:
            LOG.warning("A calibration is not among the samplers: %s", error)
    found: dict[str, Path] = {}
    taken: set[str] = set()
    for path in sorted(labels, key=lambda path: labels[path] != path.stem):
        label, number = labels[path], 2
        while (
            label.casefold() in taken
        ):  # the host also finds samplers by their names in lower case
            label, number = f"{labels[path]}_{number}", number + 1
        taken.add(label.casefold())
        found[f"DPM-Solver(calibrated-{label})"] = path
    return dict(sorted(found.items()))


def label_of(path: Path, stopped: bool) -> str:
    """A sampler's name made of its file's; it says if the calibration was stopped unmeasured.

    The name has no space, where the host would split off a schedule type, no comma, where X/Y/Z plot
    splits its values, and no character that can't be printed or encoded.
    """
    kept = (char if char.isprintable() and char != "," else " " for char in path.stem)
    label = "_".join("".join(kept).split())
    return label + files.UNMEASURED if stopped and files.UNMEASURED not in label else label


class CalibratedSampler(sd_samplers_kdiffusion.KDiffusionSampler):
    """The host's sampler of a calibration.

    Args:
        name: its name in the panel.
        path: its file, which is read again for each run.

    Raises:
        ValueError: the file is damaged.
    """

    def __init__(self, name: str, path: Path, sd_model: Any) -> None:
        self.name, self.calibrations = name, texts.solvers(files.load(path))
        super().__init__(self._sample, sd_model)

    def get_sigmas(self, p: Any, steps: int) -> torch.Tensor:
        """The calibration's sigmas, whatever the panel's schedule; in image to image the last ones.

        Raises:
            ValueError: the panel has another number of steps, or the file was made for another kind of
                model; reForge may change the model after the samplers are registered.
        """
        by_calls = {one.calls: one for one in reversed(self.calibrations)}
        calls = " or ".join(map(str, sorted(by_calls)))
        if steps not in by_calls:
            WebuiModel(self.model_wrap).check(self.calibrations[0], self.name)
            raise ValueError(
                f"{self.name} is made for {calls} steps, and {steps} are asked for: set Sampling "
                f"steps to {calls}, or take another sampler, as for the hires pass and where image to "
                "image is set to do exactly as many steps as the slider says."
            )
        self.calibration = by_calls[steps]
        WebuiModel(self.model_wrap).check(self.calibration, self.name)
        if not p.is_hr_pass:  # the image's text names no schedule of the panel
            p.extra_generation_params["Schedule type"] = "Automatic"
        return torch.tensor(self.calibration.sigmas, dtype=torch.float32)

    def _sample(
        self,
        model: Any,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,
    ) -> torch.Tensor:
        settings = Calibrated(calibration=self.calibration)
        schedule = WebuiModel(model.inner_model).schedule
        return sample(settings, model, x, sigmas, extra_args, callback, disable, schedule=schedule)
