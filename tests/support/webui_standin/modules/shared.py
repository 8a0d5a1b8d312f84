"""What everything shares."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from modules.options import Options

FORGE = True
opts = Options(eta_ancestral=1.0, s_noise=1.0, s_tmin=0.0, s_tmax=0.0, img2img_fix_steps=False)
opts.data["skip_early_cond"] = 0.0
state = SimpleNamespace(interrupted=False, skipped=False, sampling_step=0, sampling_steps=0)
total_steps_shown: list[int] = []
"""The progress bar of the whole job: one entry per update."""

sd_model: Any = None
