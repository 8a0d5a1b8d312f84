"""The lab's nodes that compare samplers."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from .. import candidates as lines
from .. import compare, guiding
from . import inputs

CANDIDATES = io.Custom("DPM_SOLVER_CANDIDATES")
DEFAULT_CANDIDATES = """euler karras
dpmpp_2m karras
dpm_solver++_2m dpm_solver_log_snr
dpm_solver++_3m_exact dpm_solver_log_snr
dpm_solver++_recommended dpm_solver_recommended"""


class DPMSolver_Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Compare",
            display_name="Solver Compare",
            category=inputs.LAB_CATEGORY,
            description="Which sampler is closest on your own model? Runs each candidate from the "
            "same noise at several numbers of model calls, and measures how far it is from the "
            "converged image. Gives a plot, a grid of the images, and a table. It says beforehand how "
            "many model calls that takes. Connect a guider, or model, positive and negative.",
            search_aliases=[
                "solver compare",
                "sampler comparison",
                "compare samplers",
                "benchmark",
                "xy plot",
                "convergence",
            ],
            inputs=[
                io.Latent.Input(
                    "latent_image",
                    tooltip="What to start from, as for a sampler: an empty latent of the size you "
                    "use. A batch gives steadier numbers: errors are averaged over its images.",
                ),
                inputs.noise_seed(
                    0xFFFFFFFFFFFFFFFF,
                    "The seed of the noise that every candidate starts from. Keep it fixed, so that "
                    "the reference is kept between runs. Try another seed before you trust a small "
                    "lead.",
                ),
                io.String.Input(
                    "candidates",
                    default=DEFAULT_CANDIDATES,
                    multiline=True,
                    tooltip="One candidate per line: a sampler and a scheduler by their names in "
                    "KSampler's menus, such as: dpmpp_2m karras. A line that says only "
                    "calibrated adds the saved calibrations that fit the model. What follows a # in "
                    "a line is ignored.",
                ),
                io.String.Input(
                    "calls",
                    default="5, 8, 10, 15, 20, 25",
                    tooltip="Numbers of model calls to compare at, separated by commas. A sampler "
                    "that calls the model twice in a step gets half the steps, so that all have the "
                    "same cost. At most 120 runs: candidates times numbers of calls.",
                ),
                io.Int.Input(
                    "reference_calls",
                    default=200,
                    min=10,
                    max=10000,
                    tooltip="Model calls for the converged image, from which errors are measured. "
                    "Take eight times your largest number of calls, such as 200 for 25; half of that "
                    "will do where errors stay above 0.005.",
                ),
                inputs.cfg("Guidance with model, positive and negative, as in KSampler."),
                *inputs.guider_or_model(
                    model="The model to sample with, if no guider is connected.",
                    positive="The prompt, if no guider is connected.",
                    negative="The negative prompt, if no guider is connected; an empty one will do.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the images of the grid. Without it the grid shows small "
                    "previews. Plot and table are the same, as errors are measured in the latent.",
                ),
                CANDIDATES.Input(
                    "more_candidates",
                    optional=True,
                    tooltip="Samplers with settings of their own, from Solver Candidate nodes.",
                ),
                io.Sampler.Input(
                    "reference_sampler",
                    optional=True,
                    tooltip="Makes the converged image instead of dpm_solver++_3m_exact. Stochastic "
                    "and CFG++ samplers converge to another image: to compare them, connect one of "
                    "them.",
                ),
                io.Sigmas.Input(
                    "reference_sigmas",
                    optional=True,
                    tooltip="The list of sigmas for the converged image, for example one that starts "
                    "later, for image to image. reference_calls then has no effect.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="",
                    optional=True,
                    tooltip="Saves the result in ComfyUI's output folder under this name, such as "
                    "which_sampler/my_model: a PNG with the plot, the figures and, with a VAE, the "
                    "images, and a CSV. Both hold the settings, but no prompts and no folders, and "
                    "are made to be shared. Empty: nothing is saved.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="Error against model calls."),
                io.Image.Output(display_name="grid", tooltip="The images, with labels."),
                io.String.Output(display_name="table", tooltip="The errors as aligned text."),
                io.String.Output(
                    display_name="csv", tooltip="One line per run, for a spreadsheet."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        latent_image: dict[str, Any],
        noise_seed: int,
        candidates: str,
        calls: str,
        reference_calls: int,
        cfg: float,
        guider: Any = None,
        model: Any = None,
        positive: Any = None,
        negative: Any = None,
        vae: Any = None,
        more_candidates: Any = None,
        reference_sampler: Any = None,
        reference_sigmas: Any = None,
        filename_prefix: str = "",
        **_: Any,
    ) -> io.NodeOutput:
        used = guiding.guider_of(guider, model, positive, negative, cfg)
        *outputs, shown = compare.solver_compare(
            guiding.Bench(used, latent_image, noise_seed),
            candidates,
            more_candidates or (),
            calls,
            reference_calls,
            vae=vae,
            reference_sampler=reference_sampler,
            reference_sigmas=reference_sigmas,
            filename_prefix=filename_prefix,
            node_id=cls.hidden.unique_id,
        )
        return io.NodeOutput(*outputs, ui={"images": shown} if shown else None)


class DPMSolver_Candidate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolver_Candidate",
            display_name="Solver Candidate",
            category=inputs.LAB_CATEGORY,
            description="A sampler with settings of its own for Solver Compare. To compare several, "
            "connect candidates of one to previous of the next.",
            search_aliases=["solver candidate", "compare samplers"],
            inputs=[
                io.Sampler.Input("sampler", tooltip="The sampler, from any node that makes one."),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="karras",
                    tooltip="Chooses the sigmas, at each number of model calls. karras is good on "
                    "Stable Diffusion; dpm_solver_log_snr from 15 calls up. Has no effect if sigmas "
                    "is connected.",
                ),
                io.String.Input(
                    "label",
                    default="",
                    tooltip="Its name in plot, grid and table. Empty: sampler and scheduler.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Exactly this list of sigmas, instead of the scheduler. The candidate is "
                    "then run once, and is one point in the plot.",
                ),
                CANDIDATES.Input(
                    "previous",
                    optional=True,
                    tooltip="Candidates of another Solver Candidate, to which this one is added.",
                ),
            ],
            outputs=[
                CANDIDATES.Output(
                    display_name="candidates", tooltip="For Solver Compare's more_candidates."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        sampler: Any,
        scheduler: str,
        label: str,
        sigmas: Any = None,
        previous: Any = None,
        **_: Any,
    ) -> io.NodeOutput:
        entry = lines.entry(label, sampler, scheduler, sigmas)
        return io.NodeOutput([*(previous or ()), entry])
