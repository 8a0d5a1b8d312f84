"""webui: calibrated solvers, from files in the folder `dpm_solver` among the host's models.

DPM-Solver Calibrate in ComfyUI makes them. Each is a sampler that brings its own sigmas.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from modules import paths, sd_samplers_kdiffusion

from ...lab.calibration import files
from ...samplers.integrate import Callback
from ...samplers.log import LOG
from ...samplers.sample import sample
from ...samplers.solvers.fitted import Calibrated
from .model import WebuiModel

FOLDER, PATTERN = "dpm_solver", "*.safetensors"


def calibrations() -> dict[str, Path]:
    """The calibration files that can be used, by the name of their sampler.

    Each file has a name of its own, whatever the host does with names: a file whose name needs no
    change keeps it, and others that would be called the same are numbered. A file that can't be used
    is left out, and the log says why.
    """
    labels: dict[Path, str] = {}
    for path in sorted((Path(paths.models_path) / FOLDER).glob(PATTERN)):
        try:
            labels[path] = label_of(path, files.load(path).fitted.stopped)
        except ValueError as error:
            LOG.warning("No sampler is made of a calibration: %s", error)
    found: dict[str, Path] = {}
    taken: set[str] = set()
    for path in sorted(labels, key=lambda path: labels[path] != path.stem):
        label, number = labels[path], 2
        while label.casefold() in taken:  # the host finds samplers by lower case, too
            label, number = f"{labels[path]}_{number}", number + 1
        taken.add(label.casefold())
        found[f"DPM-Solver(calibrated-{label})"] = path
    return dict(sorted(found.items()))


def label_of(path: Path, stopped: bool) -> str:
    """A file's name as part of a sampler's, which says if the calibration was stopped unmeasured.

    It holds no space, before which the host splits off a schedule type, no comma, at which X/Y/Z plot
    splits its values, and nothing that can't be printed or encoded.
    """
    kept = (char if char.isprintable() and char != "," else " " for char in path.stem)
    label = "_".join("".join(kept).split())
    return label + files.UNMEASURED if stopped and files.UNMEASURED not in label else label


class CalibratedSampler(sd_samplers_kdiffusion.KDiffusionSampler):
    """The host's sampler of a calibration.

    Args:
        name: in the panel.
        path: its file, read anew for each run.

    Raises:
        ValueError: the file is damaged.
    """

    def __init__(self, name: str, path: Path, sd_model: Any) -> None:
        self.name, self.calibration = name, files.load(path)
        super().__init__(self._sample, sd_model)

    def get_sigmas(self, p: Any, steps: int) -> torch.Tensor:
        """The calibration's own, whatever the panel's schedule; image to image takes the last of them.

        Raises:
            ValueError: another number of steps is asked for, or the file was made for another kind of
                model, which is known only now: reForge may have changed it.
        """
        WebuiModel(self.model_wrap).check(self.calibration, self.name)
        calls = self.calibration.calls
        if steps != calls:
            raise ValueError(
                f"{self.name} is made for {calls} steps, and {steps} are asked for: set Sampling "
                f"steps to {calls}, or take another sampler, as for the hires pass and where image to "
                "image is set to do exactly as many steps as the slider says."
            )
        if not p.is_hr_pass:  # in the image's text: no schedule of the panel's
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
