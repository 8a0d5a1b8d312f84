"""The scheduler for diffusers: its runs are those of the samplers, its interface is diffusers' own."""

from __future__ import annotations

import itertools
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from dpm_solver_nodes.hosts.diffusers import DPMSolverScheduler
from dpm_solver_nodes.lab.calibration import files
from dpm_solver_nodes.samplers import (
    Calibration,
    DiscreteSchedule,
    FlowSchedule,
    NetworkDenoiser,
)
from dpm_solver_nodes.samplers.catalog import CATALOG, entry
from dpm_solver_nodes.samplers.grid import Grid
from dpm_solver_nodes.samplers.plan import Weights
from dpm_solver_nodes.samplers.sample import sample
from dpm_solver_nodes.samplers.solvers.recommended_parts import part_of

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
RUNNABLE = [one.id for one in CATALOG if not (one.adaptive or one.cfg_pp or "ancestral" in one.id)]
FEW = (
    "dpm_solver++_recommended",
    "dpm_solver++_2m",
    "dpm_solver++_3m_exact",
    "sde_dpm_solver++_2m",
)
STEPS, SEED = 7, 3
SHAPE = (2, 3, 16, 16)


@cache
def unet() -> Any:
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return network.double().eval()


@cache
def transformer() -> Any:
    torch.manual_seed(0)
    network = diffusers.SD3Transformer2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
    )
    return network.double().eval()


@torch.no_grad()
def predict(kind: str, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What the network of this kind says: a UNet, or a transformer for flows."""
    if kind != "flow_prediction":
        return unet()(z, t).sample
    text = torch.linspace(-1.0, 1.0, 8, dtype=z.dtype)
    return transformer()(
        z, text.expand(len(z), 4, 8), text.expand(len(z), 8), t.expand(len(z)).to(z.dtype)
    )[0]


def noise() -> torch.Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def scheduler(kind: str, sampler: str, **more: Any) -> DPMSolverScheduler:
    if kind == "flow_prediction":
        return DPMSolverScheduler.from_config(FLOW.config, sampler=sampler, **more)
    return DPMSolverScheduler(prediction_type=kind, sampler=sampler, **SD, **more)


def by_the_scheduler(
    one: Any, kind: str, z: torch.Tensor, first: int = 0, begin: bool = True
) -> torch.Tensor:
    """The loop of diffusers' pipelines."""
    generator = torch.Generator().manual_seed(SEED)
    if begin:
        one.set_begin_index(first)
    for t in one.timesteps[first:]:
        output = predict(kind, z, t)
        z = one.step(output, t, z, generator=generator, return_dict=False)[0]
    return z


PREDICTIONS = {
    "epsilon": "noise",
    "v_prediction": "v",
    "sample": "x0",
    "flow_prediction": "flow",
}


def by_the_sampler(
    kind: str, sampler: str, z: torch.Tensor, sigmas: torch.Tensor, **settings: Any
) -> torch.Tensor:
    """The same run by the pack's function for scripts."""
    flow = kind == "flow_prediction"
    table = diffusers.DPMSolverMultistepScheduler(**SD).alphas_cumprod  # in float32
    training: Any = FlowSchedule(3.0) if flow else DiscreteSchedule.from_alphas_cumprod(table)
    model = NetworkDenoiser(
        partial(predict, kind),
        training,
        prediction=PREDICTIONS[kind],
        time_scale=1000.0 if flow else 1.0,
    )
    scale = training.state(sigmas.double()[0])[0]
    options = entry(sampler).options
    x = z / scale
    result = sample(
        options.on(model.schedule),
        model,
        x,
        sigmas,
        {"seed": SEED},
        disable=True,
        schedule=model.schedule,
    )
    return result * training.state(sigmas.double()[-1:])[0]


def close(a: torch.Tensor, b: torch.Tensor, within: float = 1e-5) -> bool:
    """diffusers' times and sigmas are float32."""
    return float((a - b).abs().max()) <= within * float(b.abs().max())


kinds = pytest.mark.parametrize("kind", PREDICTIONS)


@kinds
@pytest.mark.parametrize("sampler", FEW)
def test_a_run_is_the_samplers(sampler: str, kind: str) -> None:
    one = scheduler(kind, sampler)
    one.set_timesteps(STEPS)
    assert len(one.timesteps) == len(one.sigmas) - 1 == one.num_inference_steps == STEPS
    result = by_the_scheduler(one, kind, noise())
    expected = by_the_sampler(kind, sampler, noise(), one.sigmas)
    assert close(result, expected)
    assert not close(result, noise(), 0.1)


@pytest.mark.parametrize("sampler", [name for name in RUNNABLE if name not in FEW])
def test_every_sampler_that_can_run_does(sampler: str) -> None:
    one = scheduler("epsilon", sampler)
    one.set_timesteps(STEPS)
    assert close(
        by_the_scheduler(one, "epsilon", noise()),
        by_the_sampler("epsilon", sampler, noise(), one.sigmas),
    )


@kinds
@pytest.mark.parametrize("sampler", ["dpm_solver++_recommended", "sde_dpm_solver++_2m"])
def test_a_run_may_start_late_as_image_to_image_does(sampler: str, kind: str) -> None:
    one = scheduler(kind, sampler)
    for begin in (True, False):  # pipelines that set no begin_index are found by their time
        one.set_timesteps(STEPS)
        image, first = 0.3 * noise().roll(1, -1), 3
        z = one.add_noise(image, noise(), one.timesteps[first : first + 1])
        result = by_the_scheduler(one, kind, z, first, begin)
        assert close(result, by_the_sampler(kind, sampler, z, one.sigmas[first:]))


PIPELINES = {
    "epsilon": diffusers.StableDiffusionImg2ImgPipeline,
    "v_prediction": diffusers.StableDiffusionXLImg2ImgPipeline,
    "flow_prediction": diffusers.FluxImg2ImgPipeline,
}


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("kind", PIPELINES)
def test_a_pipelines_strength_brings_a_list_for_its_start(kind: str, strength: float) -> None:
    """By the pipeline's own choice of times: it starts with that part of the model's time left."""
    one = scheduler(kind, "dpm_solver++_recommended")
    one.set_timesteps(20)
    pipeline = SimpleNamespace(scheduler=one)
    times, kept = PIPELINES[kind].get_timesteps(pipeline, 20, strength, device=None)
    assert len(times) == kept == round(20 * strength) and len(one.timesteps) == 20
    shifted = 3.0 * strength / (1.0 + 2.0 * strength)
    left = 1000.0 * shifted if kind == "flow_prediction" else 1000.0 * strength - 1.0
    assert float(times[0]) == pytest.approx(left)
    z = one.add_noise(0.3 * noise().roll(1, -1), noise(), times[:1])
    result = z
    for t in times:
        result = one.step(predict(kind, result, t), t, result, return_dict=False)[0]
    sigmas = one.sigmas[-kept - 1 :]
    part = part_of(Grid.of(sigmas.double(), one._schedule))
    assert part is not None and part.later
    assert close(result, by_the_sampler(kind, "dpm_solver++_recommended", z, sigmas))


def test_a_refiner_goes_on_where_the_base_model_stopped() -> None:
    """SDXL's denoising_start is no strength: the list stays that of the whole run."""
    one = scheduler("epsilon", "dpm_solver++_recommended")
    one.set_timesteps(20)
    whole = one.timesteps.clone()
    pipeline = SimpleNamespace(scheduler=one)
    times, _ = diffusers.StableDiffusionXLImg2ImgPipeline.get_timesteps(
        pipeline, 20, 0.3, device=None, denoising_start=float(999 - whole[12]) / 1000.0
    )
    assert torch.equal(one.timesteps, whole) and torch.equal(times, whole[12:])


def test_2m_as_published_is_diffusers_own() -> None:
    theirs = diffusers.DPMSolverMultistepScheduler(lower_order_final=False, **SD)
    ours = DPMSolverScheduler.from_config(
        theirs.config, sampler="dpm_solver++_2m", settings={"lower_order_final": "off"}
    )
    for one in (theirs, ours):
        one.set_timesteps(STEPS)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    own, other = (by_the_scheduler(one, "epsilon", noise()) for one in (ours, theirs))
    assert close(own, other)


def test_order_1_on_a_flow_is_diffusers_euler() -> None:
    ours = scheduler("flow_prediction", "dpm_solver++_2m", settings={"order": 1})
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_config(FLOW.config)
    for one in (theirs, ours):
        one.set_timesteps(STEPS)
    assert ours.timesteps.tolist() == pytest.approx(theirs.timesteps.tolist(), abs=1e-3)
    own, other = (by_the_scheduler(one, "flow_prediction", noise()) for one in (ours, theirs))
    assert close(own, other)


def test_noise_is_that_of_the_images_seed_in_any_batch() -> None:
    one = scheduler("epsilon", "sde_dpm_solver++_2m")

    def run(generator: Any, z: torch.Tensor) -> torch.Tensor:
        one.set_timesteps(STEPS)
        for t in one.timesteps:
            z = one.step(predict("epsilon", z, t), t, z, generator=generator).prev_sample
        return z

    def of(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    both = run([of(5), of(6)], noise())
    assert close(run([of(6)], noise()[1:]), both[1:], 1e-9)
    assert not close(run(of(7), noise()), both, 1e-2)


def test_noise_may_be_handed_in() -> None:
    z, given, results = noise(), noise().flip(0), []
    for s_noise in (1.0, 0.0):
        one = scheduler("epsilon", "sde_dpm_solver++_2m", settings={"s_noise": s_noise})
        one.set_timesteps(STEPS)
        t = one.timesteps[0]
        output = predict("epsilon", z, t)
        results.append(one.step(output, t, z, variance_noise=given).prev_sample)
    added = (results[0] - results[1]) / given
    assert float(added.std() / added.mean()) < 1e-9 < float(added.mean())


# the interface


def configs() -> dict[str, Any]:
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return {
        "ddpm": diffusers.DDPMScheduler(),
        "ddim": diffusers.DDIMScheduler(**SD, timestep_spacing="trailing"),
        "pndm": diffusers.PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1),
        "euler karras": diffusers.EulerDiscreteScheduler(**SD, use_karras_sigmas=True),
        "zero snr": diffusers.DDIMScheduler(
            **SD, rescale_betas_zero_snr=True, prediction_type="v_prediction"
        ),
        "unipc flow": diffusers.UniPCMultistepScheduler(**flow),
        "flow": FLOW,
    }


@pytest.mark.parametrize("name", configs())
def test_any_config_makes_one(name: str, tmp_path: Path) -> None:
    given = configs()[name]
    for sampler in FEW:
        one = DPMSolverScheduler.from_config(given.config, sampler=sampler)
        one.set_timesteps(STEPS)
        assert (one.sigmas[1:] < one.sigmas[:-1]).all() and one.sigmas[-1] == 0.0
        assert one.order == 1 and len(one) == 1000 and one.init_noise_sigma == 1.0
        z = noise()
        assert one.scale_model_input(z, one.timesteps[0]) is z
        for t in one.timesteps:
            z = one.step(0.1 * z, t, z).prev_sample
        assert z.isfinite().all()
    one.save_pretrained(tmp_path)
    again = DPMSolverScheduler.from_pretrained(tmp_path)
    again.set_timesteps(STEPS)
    assert again.config.sampler == FEW[-1] and again.flow == one.flow
    assert torch.equal(again.sigmas, one.sigmas)


@pytest.mark.parametrize("shift_type", ["exponential", "linear"])
def test_dynamic_shifting_moves_the_list(shift_type: str) -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=shift_type
    )
    one = DPMSolverScheduler.from_config(theirs.config, sampler="dpm_solver++_2m")
    with pytest.raises(ValueError, match=r"^mu [^\n]+\.$"):
        one.set_timesteps(STEPS)
    for each in (one, theirs):
        each.set_timesteps(STEPS, mu=0.9)
    assert one.sigmas.tolist() == pytest.approx(theirs.sigmas.tolist(), abs=1e-6)
    by_time = DPMSolverScheduler.from_config(theirs.config, spacing="time_uniform")
    lists = []
    for mu in (0.5, 1.5):
        by_time.set_timesteps(STEPS, mu=mu)
        lists.append(by_time.sigmas)
    assert (lists[1] > lists[0])[1:-1].all()


def test_sigmas_of_the_caller_count_and_a_pipelines_default_does_not() -> None:
    one = scheduler("flow_prediction", "dpm_solver++_recommended")
    one.set_timesteps(STEPS)
    own = one.sigmas
    even = [1.0 - i / STEPS for i in range(STEPS)]
    one.set_timesteps(STEPS, sigmas=even)
    assert torch.equal(one.sigmas, own)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_config(FLOW.config)
    for each, sigmas in ((one, [1.0, 0.7, 0.2]), (scheduler("flow_prediction", FEW[1]), even)):
        for which in (each, theirs):
            which.set_timesteps(sigmas=sigmas)
        assert each.sigmas.tolist() == pytest.approx(theirs.sigmas.tolist(), abs=1e-6)
    one = scheduler("epsilon", "dpm_solver++_2m")
    one.set_timesteps(sigmas=[14.6, 3.0, 0.5, 0.0])
    assert one.sigmas.tolist() == pytest.approx([14.6, 3.0, 0.5, 0.0])
    one.set_timesteps(timesteps=[900, 500, 100])
    assert one.timesteps.tolist() == [900.0, 500.0, 100.0]


def test_a_calibration_runs_on_its_own_list(tmp_path: Path) -> None:
    sigmas = (14.614, 6.0, 2.0, 0.5, 0.0)
    widths = [after - before for before, after in itertools.pairwise(sigmas)]
    steps = [Weights(1.0, (widths[0],))]
    steps += [Weights(1.0, (1.4 * width, -0.4 * width)) for width in widths[1:]]
    calibration = Calibration("diffusion", sigmas, tuple(steps))
    path = tmp_path / "mine.safetensors"
    files.save([calibration], path)
    one = scheduler("epsilon", str(path))
    one.set_timesteps(4)
    assert one.sigmas.tolist() == pytest.approx(list(sigmas))
    assert by_the_scheduler(one, "epsilon", noise()).isfinite().all()
    with pytest.raises(ValueError, match=r"4 steps, and 5 [^\n]+\.$"):
        one.set_timesteps(5)
    flow = scheduler("flow_prediction", str(path))
    with pytest.raises(ValueError, match=r"calibration [^\n]+\.$"):
        flow.set_timesteps(4)


def test_half_precision_states_keep_their_precision_and_thresholding_is_applied() -> None:
    one = scheduler("epsilon", "dpm_solver++_2m", thresholding=True)
    one.set_timesteps(STEPS)
    z = noise().to(torch.bfloat16)
    for t in one.timesteps:
        z = one.step(0.5 * z, t, z).prev_sample
        assert z.dtype == torch.bfloat16
    assert z.abs().max() <= 1.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampler": "dpm_solver++_adaptive_23"}, "chooses its steps"),
        ({"sampler": "dpm_solver++_2m_cfg_pp"}, "without the prompt"),
        ({"sampler": "dpmpp_2m"}, "dpm_solver\\+\\+_2m"),
        ({"sampler": "nowhere.safetensors"}, "nowhere"),
        ({"settings": {"orders": 3}}, "only"),
        ({"sampler": "dpm_solver++_2m", "settings": {"order": 7}}, "order"),
        ({"spacing": "karras"}, "spacing"),
        ({"prediction_type": "score"}, "prediction_type"),
    ],
)
def test_what_it_cannot_do_is_refused_when_it_is_made(settings: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, OSError), match=words) as raised:
        DPMSolverScheduler(**settings)
    assert "\n" not in str(raised.value)


def test_2s_ancestral_and_other_kinds_of_models_are_refused() -> None:
    one = scheduler("epsilon", "dpm_solver++_2s_ancestral")
    with pytest.raises(ValueError, match=r"between the steps [^\n]+\.$"):
        one.set_timesteps(STEPS)
    for other in (diffusers.EDMEulerScheduler(), diffusers.CogVideoXDDIMScheduler()):
        with pytest.raises(ValueError, match=r"keep the pipeline's own scheduler\.$"):
            DPMSolverScheduler.from_config(other.config)
    mochi = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    with pytest.raises(ValueError, match=r"keep the pipeline's own scheduler\.$"):
        DPMSolverScheduler.from_config(mochi.config)


def test_a_config_of_nothing_but_defaults_keeps_the_models_noise() -> None:
    """diffusers drops what is another scheduler's default, and ours may be another."""
    for theirs in (diffusers.LCMScheduler(), diffusers.HeunDiscreteScheduler()):
        one = DPMSolverScheduler.from_config(theirs.config)
        for key in ("beta_schedule", "beta_start", "beta_end", "prediction_type"):
            assert one.config[key] == theirs.config[key]


def test_a_config_that_does_not_say_its_noise_is_refused() -> None:
    theirs = diffusers.LTXEulerAncestralRFScheduler().config
    with pytest.raises(ValueError, match=r"does not say which noise [^\n]+ for a flow model\.$"):
        DPMSolverScheduler.from_config(theirs)
    one = DPMSolverScheduler.from_config(theirs, prediction_type="flow_prediction", shift=1.0)
    assert one.flow


def test_a_run_that_is_over_says_so() -> None:
    one = scheduler("epsilon", "dpm_solver++_2m")
    one.set_timesteps(2)
    by_the_scheduler(one, "epsilon", noise())
    with pytest.raises(ValueError, match=r"no step left[^\n]+\.$"):
        one.step(noise(), 0, noise())
    with pytest.raises(ValueError, match=r"num_inference_steps[^\n]+\.$"):
        one.set_timesteps(0)


def test_without_diffusers_the_import_says_what_is_missing() -> None:
    code = "import sys; sys.modules['diffusers'] = None; import dpm_solver_nodes.hosts.diffusers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith(
        "ImportError: DPMSolverScheduler needs diffusers"
    )


def test_in_a_pipeline_of_diffusers() -> None:
    pipeline = diffusers.DDPMPipeline(unet().float(), diffusers.DDPMScheduler())
    pipeline.scheduler = DPMSolverScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    images = [
        pipeline(
            batch_size=1,
            generator=torch.Generator().manual_seed(0),
            num_inference_steps=5,
            output_type="np",
        ).images
        for _ in range(2)
    ]
    unet().double()
    assert images[0].shape == (1, 16, 16, 3)
    assert (images[0] == images[1]).all()
