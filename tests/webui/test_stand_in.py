"""Our modules for webui, against a substitute for its modules, loaded as the hosts load them."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from k_diffusion import sampling

from dpm_solver_nodes.hosts.own_models import fingerprint
from dpm_solver_nodes.lab.calibration import files
from dpm_solver_nodes.samplers import Calibration, NoiseSchedule, RectifiedFlow, VarianceExploding
from dpm_solver_nodes.samplers.catalog import CATALOG
from dpm_solver_nodes.samplers.sample import (
    sample_adaptive,
    sample_calibrated,
    sample_multistep,
    sample_recommended,
    sample_singlestep,
)
from dpm_solver_nodes.samplers.schedules.networks import DiscreteSchedule
from dpm_solver_nodes.samplers.solvers.fitted import Fitted, exact_weights
from dpm_solver_nodes.samplers.solvers.recommended_lists import recommended_sigmas
from dpm_solver_nodes.tests.support.mixture import Mixture, difference

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "dpm_solver_samplers.py"
STAND_IN = ROOT / "tests" / "support" / "webui_standin"
ROUNDING = 2e-5  # of float32, over some steps of numbers up to 60
HOSTS_OWN = ["DPM++ 2M", "Euler"]


def label(id_: str) -> str:
    entry = next(entry for entry in CATALOG if entry.id == id_)
    form, *rest = entry.label.split()
    return f"{form}({'-'.join(rest).strip('()')})"


TWO_M, ADAPTIVE = label("dpm_solver++_2m"), label("dpm_solver++_adaptive_23")
SDE_2M, SDE_3M = label("sde_dpm_solver++_2m"), label("sde_dpm_solver++_3m")
NAMES = [label(entry.id) for entry in CATALOG]
FIXED = [label(entry.id) for entry in CATALOG if not entry.adaptive]
HIDDEN = [label(entry.id) for entry in CATALOG if not entry.short]


# torchsde compares the hosts' float32 ends with the same ones as floats.
pytestmark = pytest.mark.filterwarnings("ignore:Should have")


# --- models as the hosts wrap them ---------------------------------------------------------------


def diffusion_table() -> torch.Tensor:
    """Stable Diffusion's."""
    schedule = DiscreteSchedule.scaled_linear()
    return schedule.sigma(torch.arange(1, 1001, dtype=torch.float64) / 1000).float()


def flow_table(shift: float = 3.0) -> torch.Tensor:
    times = torch.arange(1, 1001) / 1000
    return shift * times / (1 + (shift - 1) * times)


class AddsDiffusionNoise:
    """A host's model of noise: the part that says how it is added."""

    def noise_scaling(self, sigma: Any, noise: Any, image: Any, max_denoise: bool = False) -> Any:
        return sigma * noise + image


class AddsFlowNoise:
    def noise_scaling(self, sigma: Any, noise: Any, image: Any, max_denoise: bool = False) -> Any:
        return sigma * noise + (1.0 - sigma) * image


class Wrap:
    """k-diffusion's denoiser, as AUTOMATIC1111 has it: times are fractions of the table's places."""

    predictor: Any

    def __init__(self, sigmas: torch.Tensor, sd_model: Any, flow: bool) -> None:
        self.sigmas, self.inner_model = sigmas, sd_model
        if flow:
            sd_model.model = SimpleNamespace(model_sampling=AddsFlowNoise())

    def get_sigmas(self, n: int) -> torch.Tensor:
        places = torch.linspace(len(self.sigmas) - 1, 0, n).round().long()
        return torch.cat([self.sigmas[places], torch.zeros(1)])

    def sigma_to_t(self, sigma: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(self.sigmas, sigma).float()

    def nearest(self, sigma: torch.Tensor) -> torch.Tensor:
        return (sigma.log() - self.sigmas.log()[:, None]).abs().argmin(0)


class ForgeWrap(Wrap):
    """Forge's stand-in for it: times of diffusion models are whole numbers."""

    def __init__(self, sigmas: torch.Tensor, sd_model: Any, flow: bool) -> None:
        self.sigmas, self.inner_model = sigmas, sd_model
        self.predictor = AddsFlowNoise() if flow else AddsDiffusionNoise()
        sd_model.forge_objects = SimpleNamespace(unet=SimpleNamespace(model_options={}))

    def sigma_to_t(self, sigma: torch.Tensor) -> torch.Tensor:
        return sigma if isinstance(self.predictor, AddsFlowNoise) else self.nearest(sigma)


class ReForgeWrap(Wrap):
    """reForge's: k-diffusion's, and for flows a denoiser of its own, which samples at any time."""

    def __init__(self, sigmas: torch.Tensor, sd_model: Any, flow: bool) -> None:
        self.sigmas, self.inner_model = sigmas, sd_model
        if flow:
            self.model_sampling = AddsFlowNoise()
        patched = SimpleNamespace(model=SimpleNamespace(model_sampling=AddsDiffusionNoise()))
        patched.model_options = {}
        sd_model.forge_objects = SimpleNamespace(unet=patched)

    def sigma_to_t(self, sigma: torch.Tensor) -> torch.Tensor:
        flow = hasattr(self, "model_sampling")
        return self.nearest(sigma) if flow else super().sigma_to_t(sigma)


WRAPS: dict[str, type[Wrap]] = {"Forge": ForgeWrap, "AUTOMATIC1111": Wrap, "reForge": ReForgeWrap}


class Model:
    """The loaded model, with the mixture's exact denoiser.

    Args:
        prediction: Forge's word for it, of which "const" is a flow.
        host: a key of WRAPS.
    """

    shape = (4, 4, 4)

    def __init__(self, prediction: str = "epsilon", host: str = "Forge") -> None:
        flow = prediction == "const"
        self.is_sd1 = not flow or host == "reForge"
        self.schedule: NoiseSchedule = RectifiedFlow() if flow else VarianceExploding()
        self.mixture = Mixture(self.schedule, dtype=torch.float32)
        self.model_wrap = WRAPS[host](flow_table() if flow else diffusion_table(), self, flow)

    @property
    def calls(self) -> int:
        return len(self.mixture.sigmas)

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.mixture(x, sigma)

    def without_prompt(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The denoiser of a single wide component, of mean 0.2."""
        sigma = sigma[:, None, None, None]
        alpha = self.schedule.alpha(float(sigma[0]))
        return 0.2 + alpha * (x - alpha * 0.2) / (alpha**2 + sigma**2)

    def noised(self, x: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.schedule.alpha(float(sigma)) * x + sigma * noise


KINDS = {
    f"{host} {prediction}": (prediction, host)
    for host in WRAPS
    for prediction in ("epsilon", "v_prediction", "const")
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


# --- the host ------------------------------------------------------------------------------------


class Host:
    """The stand-in: its modules, as the script will find them."""

    sd_samplers: Any
    sd_schedulers: Any
    processing: Any
    script_callbacks: Any
    shared: Any
    paths: Any

    def __init__(self, models: Path) -> None:
        for name in self.__annotations__:
            setattr(self, name, importlib.import_module(f"modules.{name}"))
        self.paths.models_path = str(models)
        self.use(Model())

    def use(self, model: Model) -> Model:
        self.shared.sd_model = model
        return model

    def load(self) -> None:
        """Run the script as both hosts do; sys.path is as before afterwards, as in AUTOMATIC1111."""
        before = sys.path
        for name in ("before_ui", "app_started", "cfg_denoiser", "cfg_denoised"):
            getattr(self.script_callbacks, name).clear()
        sys.path = [str(ROOT), *sys.path]
        try:
            spec = importlib.util.spec_from_file_location(SCRIPT.name, SCRIPT)
            assert spec is not None and spec.loader is not None
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
        finally:
            sys.path = before
        for callback in self.script_callbacks.before_ui:
            callback()

    def run(self, name: str, **settings: Any) -> tuple[torch.Tensor, Any]:
        """The latents of a job, and the job."""
        self.shared.total_steps_shown.clear()
        p = self.processing.Processing(name, **settings)
        return self.processing.process(p), p

    @property
    def listed(self) -> list[str]:
        return [data.name for data in self.sd_samplers.samplers]


def _forget() -> None:
    ours = ("modules", "gradio", "dpm_solver_webui")
    for name in [name for name in sys.modules if name.split(".")[0] in ours]:
        del sys.modules[name]


@pytest.fixture
def empty_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Before our script is loaded."""
    _forget()
    monkeypatch.syspath_prepend(STAND_IN)
    yield Host(tmp_path)
    _forget()


@pytest.fixture
def host(empty_host: Host) -> Host:
    empty_host.load()
    return empty_host


# --- lists ---------------------------------------------------------------------------------------


def test_every_sampler_and_spacing_comes_once_and_after_the_hosts(host: Host) -> None:
    schedulers = [scheduler.name for scheduler in host.sd_schedulers.schedulers]
    first = host.sd_samplers.all_samplers_map[TWO_M]
    for _ in range(2):
        assert host.listed == HOSTS_OWN + NAMES
        assert schedulers[:5] == ["automatic", "uniform", "karras", "beta", "align_your_steps_11"]
        assert schedulers[5:] == [
            "dpm_solver_log_snr",
            "dpm_solver_time_uniform",
            "dpm_solver_time_quadratic",
            "dpm_solver_recommended",
        ]
        host.load()
    data = host.sd_samplers.all_samplers_map[TWO_M]
    assert data is not first, "a reload replaces"
    assert data in host.sd_samplers.all_samplers
    assert set(host.sd_samplers.all_samplers_map) == set(host.listed)
    assert len(host.script_callbacks.before_ui) == 1


def test_a_list_of_all_schedulers_and_those_to_hide_are_kept(empty_host: Host) -> None:
    """Forge Neo's: settings and presets offer all, and the panel those that are not hidden."""
    module = empty_host.sd_schedulers
    module.all_schedulers = list(module.schedulers)
    empty_host.shared.opts.data["hide_schedulers"] = ["DPM-Solver log-SNR", "Karras"]
    for _ in range(2):
        empty_host.load()
        ours = [one.name for one in module.all_schedulers[5:]]
        assert ours == [
            "dpm_solver_log_snr",
            "dpm_solver_time_uniform",
            "dpm_solver_time_quadratic",
            "dpm_solver_recommended",
        ]
        assert [one.name for one in module.schedulers[5:]] == ours[1:]
    _, p = empty_host.run(TWO_M, steps=5)  # "Automatic" stands for it all the same
    assert p.extra_generation_params["Schedule type"] == "DPM-Solver log-SNR"


class App:
    """The host's web server, as far as our script uses it."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}

    def get(self, path: str) -> Any:
        return lambda answer: self.answers.setdefault(path, answer)


def test_the_page_is_told_what_to_hide_and_the_host_hides_nothing(host: Host) -> None:
    app = App()
    for callback in host.script_callbacks.app_started:
        callback(None, app)
    assert app.answers["/dpm_solver/hidden_samplers"]() == HIDDEN
    assert host.shared.opts.dpm_solver_show_all_samplers is False
    assert set(HIDDEN) < set(host.listed)
    _, p = host.run(HIDDEN[0], steps=5)
    assert host.processing.infotext(p)["Sampler"] == HIDDEN[0]


def test_loading_leaves_no_generic_name_behind(host: Host) -> None:
    assert sys.modules["dpm_solver_webui"].__file__ == str(ROOT / "__init__.py")
    generic = {"nodes", "samplers", "hosts", "lab", "scripts"}
    here = [sys.modules[name] for name in generic & sys.modules.keys()]
    assert not [module for module in here if str(ROOT) in str(getattr(module, "__file__", ""))]


def test_no_schedulers_name_can_be_split_off_a_name(host: Host) -> None:
    split = host.sd_samplers.get_sampler_and_scheduler
    assert split("DPM++ 2M Karras", None) == (
        "DPM++ 2M",
        "Karras",
    )  # so that the next line means it
    for name in NAMES:
        assert " " not in name
        assert split(name, "Automatic") == (name, "Automatic")
        for scheduler in host.sd_schedulers.schedulers:
            assert split(f"{name} {scheduler.label}", None) == (name, scheduler.label)


def test_a_name_that_was_looked_for_before_loading_is_found_after(empty_host: Host) -> None:
    assert empty_host.sd_samplers.get_sampler_and_scheduler(TWO_M, None)[0] == "DPM++ 2M"
    empty_host.load()
    assert empty_host.sd_samplers.get_sampler_and_scheduler(TWO_M, None)[0] == TWO_M


@pytest.mark.parametrize(
    "lacking",
    [
        ["sd_schedulers"],  # AUTOMATIC1111 before 1.9, early Forge Classic
        ["sd_schedulers", "sd_samplers_kdiffusion"],  # SD.Next
    ],
)
def test_a_host_that_cannot_be_served_gets_one_sentence(
    empty_host: Host,
    lacking: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys.modules["modules"], "__path__", [])
    for module in lacking:
        monkeypatch.delattr(sys.modules["modules"], module)
        monkeypatch.delitem(sys.modules, f"modules.{module}")
    before = empty_host.listed
    empty_host.load()
    assert empty_host.listed == before
    assert not empty_host.script_callbacks.before_ui
    [record] = caplog.records
    assert record.exc_info is None
    assert f"cannot import name '{lacking[-1]}'" in record.getMessage()
    assert "use AUTOMATIC1111 1.9 or newer, Forge, reForge or Forge Neo." in record.getMessage()


def test_a_fault_of_our_own_is_not_taken_for_the_hosts(
    empty_host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="safetensors"):
        empty_host.load()


# --- sampling ------------------------------------------------------------------------------------


@every_kind
def test_steps_in_the_panel_are_model_calls(host: Host, kind: tuple[str, str]) -> None:
    for name in FIXED:
        model = host.use(Model(*kind))
        latents, p = host.run(name, steps=9)
        assert model.calls == 9, name
        assert host.shared.total_steps_shown == list(range(9)), name
        assert p.sampler.model_wrap_cfg.steps_seen == list(range(9)), name
        assert latents.isfinite().all(), name
        if not name.startswith("SDE-DPM-Solver("):  # for 50 steps or more
            assert latents.abs().max() < 10, name
        image = torch.zeros(1, 4, 4, 4)
        host.run(name, steps=9, init_latent=image, denoising_strength=0.5)
        assert model.calls == 9 + 5, name  # int(0.5 * 9) + 1, as with the host's own
        assert host.shared.state.sampling_steps == 5


@every_kind
@pytest.mark.parametrize("steps", [9, 20])
def test_image_to_image_starts_where_so_much_of_the_time_is_left(
    host: Host, kind: tuple[str, str], steps: int
) -> None:
    model = host.use(Model(*kind))
    settings = {"init_latent": torch.zeros(1, 4, 4, 4), "denoising_strength": 0.5}
    host.run(label("dpm_solver++_recommended"), steps=steps, **settings)
    taken = int(0.5 * steps) + 1
    assert model.calls == taken
    table = model.model_wrap.sigmas
    expected = float(table[round(len(table) * taken / steps) - 1])
    assert model.mixture.sigmas[0] == pytest.approx(expected, rel=0.01)


@every_kind
def test_it_is_the_same_sampler_as_in_a_script(host: Host, kind: tuple[str, str]) -> None:
    model = host.use(Model(*kind))
    noise = torch.randn(model.shape, generator=torch.Generator().manual_seed(1))[None]
    lowered = {"lower_long_steps": True}  # as hosts set it

    def plain(sampler: Any, sigmas: torch.Tensor, **settings: Any) -> torch.Tensor:
        settings = {"schedule": model.schedule, "disable": True, **settings}
        result: torch.Tensor = sampler(model.mixture, noise * sigmas[0], sigmas, **settings)
        return result

    sigmas = model.model_wrap.get_sigmas(12)
    for id_, sampler, settings in (
        ("dpm_solver++_2m", sample_multistep, {"variable": "log_sigma", **lowered}),
        ("dpm_solver_3m", sample_multistep, {"algorithm": "dpmsolver", "order": 3, **lowered}),
        ("dpm_solver++_3s", sample_singlestep, {"order": 3, **lowered}),
        ("dpm_solver++_recommended", sample_recommended, {}),
    ):
        latents, _ = host.run(label(id_), steps=12, scheduler="Uniform")
        assert difference(latents, plain(sampler, sigmas, **settings)) < ROUNDING
    latents, _ = host.run(ADAPTIVE, steps=12, scheduler="Uniform")
    known = type(model.schedule)(float(model.model_wrap.sigmas[0]))
    assert difference(latents, plain(sample_adaptive, sigmas, schedule=known)) < ROUNDING


@pytest.mark.parametrize(
    ("ours", "theirs", "eta", "s_noise", "settings"),
    [
        (TWO_M, sampling.sample_dpmpp_2m, None, None, {}),
        (SDE_2M, sampling.sample_dpmpp_2m_sde, 0.7, 1.1, {"solver_type": "midpoint"}),
        (SDE_3M, sampling.sample_dpmpp_3m_sde, 1.0, 0.9, {}),
    ],
)
def test_it_is_k_diffusions_with_the_hosts_noise(
    host: Host, ours: str, theirs: Any, eta: float, s_noise: float, settings: dict[str, Any]
) -> None:
    model, seeds = host.shared.sd_model, (1, 5)
    host.shared.opts.data.update(dpm_solver_lower_order_final="off", s_noise=s_noise)
    latents, _ = host.run(ours, steps=15, seeds=seeds, scheduler="Karras", eta=eta)
    ends = (float(model.model_wrap.sigmas[place]) for place in (0, -1))
    sigmas = sampling.get_sigmas_karras(15, *ends)
    noise = torch.stack(
        [torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
    if eta is not None:
        tree = sampling.BrownianTreeNoiseSampler(noise, sigmas[-2], sigmas[0], seed=list(seeds))
        settings = {"eta": eta, "s_noise": s_noise, "noise_sampler": tree, **settings}
    expected = theirs(model.mixture, noise * sigmas[0], sigmas, disable=True, **settings)
    assert difference(latents, expected) < ROUNDING


def test_the_hosts_sigma_range_is_that_of_the_noise(host: Host) -> None:
    host.shared.opts.data.update(dpm_solver_lower_order_final="off")
    whole, _ = host.run(SDE_2M, steps=12)
    host.shared.opts.data.update(s_tmin=1000.0)
    nowhere, _ = host.run(SDE_2M, steps=12)
    without, _ = host.run(SDE_2M, steps=12, eta=0.0)
    assert torch.equal(nowhere, without)
    host.shared.opts.data.update(s_tmin=0.5, s_tmax=5.0)
    part, _ = host.run(SDE_2M, steps=12)
    assert difference(part, whole) > ROUNDING < difference(part, without)


def test_an_image_of_a_batch_is_the_single_image_of_its_seed(host: Host) -> None:
    for name in NAMES:
        batch, _ = host.run(name, steps=12, seeds=(1, 2, 3))
        single, _ = host.run(name, steps=12, seeds=(3,))
        # The adaptive one goes by the worst image: each is within its tolerance of the true one.
        within = 0.1 if "adaptive" in name else ROUNDING
        assert difference(batch[2], single[0]) < within, name


def test_eta_and_noise_go_where_they_mean_something(host: Host) -> None:
    ode, p = host.run(TWO_M, steps=12, eta=0.0)
    assert not {"Eta", "Sigma noise"} & p.extra_generation_params.keys()
    other, _ = host.run(TWO_M, steps=12, eta=1.0)
    assert torch.equal(ode, other)
    without, p = host.run(SDE_2M, steps=12, eta=0.0)
    assert p.extra_generation_params["Eta"] == 0.0
    full, p = host.run(SDE_2M, steps=12)
    # A 1 is written too: pasting must undo a user's own value.
    assert (p.extra_generation_params["Eta"], p.extra_generation_params["Sigma noise"]) == (
        1.0,
        1.0,
    )
    assert difference(without, full) > 0.01


# --- CFG++ ---------------------------------------------------------------------------------------

CFG_PP = [label(entry.id) for entry in CATALOG if entry.cfg_pp]
TWO_M_CFG_PP = label("dpm_solver++_2m_cfg_pp")
LOOKS = "sampler_post_cfg_function"


def plain_twin(name: str) -> str:
    return name.replace("-CFG++", "")


@every_kind
def test_cfg_pp_is_the_same_sampler_as_in_a_script(host: Host, kind: tuple[str, str]) -> None:
    model, seeds, scale = host.use(Model(*kind)), (1, 5, 2), 1.4
    noise = torch.stack(
        [torch.randn(model.shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
    sigmas = model.model_wrap.get_sigmas(12)
    without: list[torch.Tensor] = []

    def guided(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        without.append(model.without_prompt(x, sigma))
        return without[-1] + scale * (model.mixture(x, sigma) - without[-1])

    for order, name in ((2, TWO_M_CFG_PP), (3, label("dpm_solver++_3m_cfg_pp"))):
        latents, _ = host.run(name, steps=12, scheduler="Uniform", seeds=seeds, cfg_scale=scale)
        expected = sample_multistep(
            guided,
            noise * sigmas[0],
            sigmas,
            disable=True,
            order=order,
            variable="log_sigma" if order == 2 else "log_snr",
            lower_long_steps=True,
            schedule=model.schedule,
            unconditional=lambda: without[-1],
        )
        assert difference(latents, expected) < ROUNDING, name
        plain, _ = host.run(plain_twin(name), seeds=seeds, steps=12, cfg_scale=scale)
        assert difference(latents, plain) > 0.1


def test_at_a_cfg_of_1_a_host_without_a_prediction_runs_the_plain_sampler(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    for name in CFG_PP:
        caplog.clear()
        guided, _ = host.run(name, steps=10, cfg_scale=1.0)
        plain, _ = host.run(plain_twin(name), steps=10, cfg_scale=1.0)
        assert difference(guided, plain) < ROUNDING, name
        [message] = [record.getMessage() for record in caplog.records]
        assert "at a CFG of 1 this program leaves out" in message and "1.01" in message
        host.run(name, steps=10, cfg_scale=1.01)
        assert len(caplog.records) == 1
    host.use(Model(host="AUTOMATIC1111"))  # which predicts it at any CFG
    caplog.clear()
    guided, _ = host.run(TWO_M_CFG_PP, steps=10, cfg_scale=1.0)
    above, _ = host.run(TWO_M_CFG_PP, steps=10, cfg_scale=1.001)
    plain, _ = host.run(TWO_M, steps=10, cfg_scale=1.0)
    assert difference(guided, above) < 0.05 < difference(guided, plain)
    assert not caplog.records


@every_kind
def test_steps_that_skip_the_negative_prompt_are_plain(host: Host, kind: tuple[str, str]) -> None:
    def of(name: str, skip: float) -> torch.Tensor:
        host.use(Model(*kind))
        host.shared.opts.data["skip_early_cond"] = skip
        latents, _ = host.run(name, steps=10, cfg_scale=1.5)
        return latents

    for name in (TWO_M_CFG_PP, label("dpm_solver++_er_sde_cfg_pp")):
        assert difference(of(name, 2.0), of(plain_twin(name), 2.0)) < ROUNDING
        some, none = of(name, 0.35), of(name, 0.0)
        assert difference(some, none) > ROUNDING < difference(some, of(name, 2.0))


@pytest.mark.parametrize("end", ["result", "interrupt", "error"])
@pytest.mark.parametrize("forge", ["Forge", "reForge"])
def test_a_forge_model_is_left_as_it_was(host: Host, forge: str, end: str) -> None:
    model, seen = host.use(Model(host=forge)), []
    unet = model.forge_objects.unet  # type: ignore[attr-defined]

    def look(args: Any) -> torch.Tensor:
        seen.append(args["sigma"])
        guided: torch.Tensor = args["denoised"]
        return guided

    unet.model_options = before = {LOOKS: [look], "other": 1}
    denoise = model.denoise

    def cut_short(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        assert len(unet.model_options[LOOKS]) == 2
        if model.calls == 3 and end == "interrupt":
            raise importlib.import_module("modules.sd_samplers_common").InterruptedException
        if model.calls == 3 and end == "error":
            raise RuntimeError("out of memory")
        return denoise(x, sigma)

    model.denoise = cut_short  # type: ignore[method-assign]
    if end == "error":
        with pytest.raises(RuntimeError, match="out of memory"):
            host.run(TWO_M_CFG_PP, steps=8, cfg_scale=1.5)
    else:
        host.run(TWO_M_CFG_PP, steps=8, cfg_scale=1.5)
    assert len(seen) == model.calls == (8 if end == "result" else 3)
    assert unet.model_options is before and before == {LOOKS: [look], "other": 1}
    model.denoise = denoise  # type: ignore[method-assign]
    host.run(TWO_M, steps=8, cfg_scale=1.5)
    assert importlib.import_module("dpm_solver_webui.hosts.webui.guidance")._reader is None


def test_the_refiners_predictions_are_read_from_the_refiner(host: Host) -> None:
    first, refiner = Model(), Model()
    denoise = first.denoise

    def change_model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        if first.calls == 4:
            host.use(refiner)
        return denoise(x, sigma)

    host.use(first)
    usual, _ = host.run(TWO_M_CFG_PP, steps=8, cfg_scale=1.5)
    first.mixture.sigmas.clear()
    first.denoise = change_model  # type: ignore[method-assign]
    changed, _ = host.run(TWO_M_CFG_PP, steps=8, cfg_scale=1.5)
    assert (first.calls, refiner.calls) == (5, 3)
    assert torch.equal(usual, changed)


@pytest.mark.parametrize("lacking", ["on_cfg_denoiser", "on_cfg_denoised"])
def test_a_host_without_the_callbacks_gets_all_others_and_one_line(
    empty_host: Host,
    lacking: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delattr(empty_host.script_callbacks, lacking)
    empty_host.load()
    assert empty_host.listed == HOSTS_OWN + [name for name in NAMES if name not in CFG_PP]
    [message] = [record.getMessage() for record in caplog.records]
    assert "CFG++ samplers are left out" in message
    empty_host.run(TWO_M, steps=5)


def test_a_host_that_never_calls_back_is_told_in_a_sentence(host: Host) -> None:
    host.script_callbacks.cfg_denoiser.clear()
    with pytest.raises(ValueError, match=r"this program does not give it: take a sampler without"):
        host.run(TWO_M_CFG_PP, steps=5, cfg_scale=1.5)


# --- settings ------------------------------------------------------------------------------------

CHANGED = {
    "rtol": 0.002,
    "atol": 0.0005,
    "max_calls": 20,
    "solver_type": "taylor",
    "lower_order_final": "off",
    "grouping": "fixed",
}


@pytest.mark.parametrize(
    ("id_", "parameters"),
    [
        ("dpm_solver++_2m", {"solver_type", "lower_order_final"}),
        ("dpm_solver++_3m_exact", {"lower_order_final"}),
        ("dpm_solver++_3s", {"solver_type", "grouping"}),
        ("dpm_solver++_adaptive_23", {"rtol", "atol", "max_calls", "solver_type"}),
        ("sde_dpm_solver++_2m", {"solver_type", "lower_order_final"}),
        ("dpm_solver++_recommended", set()),
    ],
)
def test_settings_count_and_pasting_a_text_brings_them_back(
    host: Host, id_: str, parameters: set[str]
) -> None:
    opts = host.shared.opts
    assert {info.section for info in opts.data_labels.values()} == {("dpm_solver", "DPM-Solver")}
    keys = {
        f"dpm_solver_{parameter}"
        for parameter in (*CHANGED, "show_all_samplers", "use_calibrations")
    }
    assert keys == opts.data_labels.keys()
    usual, _ = host.run(label(id_), steps=8)
    for parameter, value in CHANGED.items():
        opts.data[f"dpm_solver_{parameter}"] = value
    changed, p = host.run(label(id_), steps=8)
    assert torch.equal(usual, changed) == (not parameters)
    text = host.processing.infotext(p)
    for parameter in CHANGED:
        opts.data[f"dpm_solver_{parameter}"] = opts.data_labels[f"dpm_solver_{parameter}"].default
    overrides = host.processing.paste(text)
    assert overrides == {f"dpm_solver_{name}": CHANGED[name] for name in parameters}
    opts.data.update(overrides)
    again, _ = host.run(text["Sampler"], steps=int(text["Steps"]), scheduler=text["Schedule type"])
    assert torch.equal(again, changed)


def test_a_reload_keeps_what_the_user_set(host: Host) -> None:
    host.shared.opts.data["dpm_solver_rtol"] = 0.01
    host.load()
    assert host.shared.opts.dpm_solver_rtol == 0.01


# --- progress and interruption -------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 10, 200])
@every_kind
def test_adaptive_is_shown_as_the_panels_steps(
    host: Host, kind: tuple[str, str], steps: int
) -> None:
    model = host.use(Model(*kind))
    _, p = host.run(ADAPTIVE, steps=steps, scheduler="DPM-Solver log-SNR")
    assert host.shared.total_steps_shown == list(range(steps))
    seen = p.sampler.model_wrap_cfg.steps_seen  # by these prompts change and the refiner comes
    assert len(seen) == model.calls
    assert seen == sorted(seen)
    assert seen[0] == 0 and seen[-1] < steps
    assert steps < 10 or len(set(seen)) >= 5


@every_kind
def test_the_text_says_how_many_calls_an_adaptive_run_took(
    host: Host, kind: tuple[str, str]
) -> None:
    took = "DPM-Solver model calls"
    model = host.use(Model(*kind))
    _, p = host.run(ADAPTIVE, steps=7)
    assert host.processing.infotext(p)[took] == str(model.calls)
    first = model.calls
    p.is_hr_pass = True
    host.processing.process(p)
    text = host.processing.infotext(p)
    assert (text[took], text[f"Hires {took}"]) == (str(first), str(model.calls - first))
    for name in FIXED:
        assert took not in host.run(name, steps=7)[1].extra_generation_params


@pytest.mark.parametrize("button", ["interrupted", "skipped"])
def test_interrupt_and_skip_end_it_within_one_model_call(host: Host, button: str) -> None:
    for name in NAMES:
        model = host.use(Model())
        denoise = model.denoise

        def pressed(
            x: torch.Tensor, sigma: torch.Tensor, model: Model = model, denoise: Any = denoise
        ) -> torch.Tensor:
            setattr(host.shared.state, button, model.calls == 3)
            result: torch.Tensor = denoise(x, sigma)
            return result

        model.denoise = pressed  # type: ignore[method-assign]
        latents, p = host.run(name, steps=12)
        setattr(host.shared.state, button, False)
        assert model.calls == 4, name
        if "adaptive" in name:
            assert p.extra_generation_params["DPM-Solver model calls"] == 4, name
        assert latents is p.sampler.last_latent, name


# --- schedules -----------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize(
    "name", ["log-SNR", "uniform time", "quadratic time", "recommended"], ids=str.split
)
def test_schedulers_give_one_more_sigma_than_steps(
    host: Host, kind: tuple[str, str], name: str
) -> None:
    wrap = Model(*kind).model_wrap
    scheduler = host.sd_schedulers.schedulers_map[f"DPM-Solver {name}"]
    ends = {"sigma_min": wrap.sigmas[0].item(), "sigma_max": wrap.sigmas[-1].item()}
    for n in (0, 1, 2, 3, 10, 40):
        sigmas = scheduler.function(n=n, **ends, inner_model=wrap, device="cpu")
        assert sigmas.shape == (n + 1,)
        assert sigmas.dtype == torch.float32
        assert sigmas[-1] == 0.0
        assert (sigmas.diff() < 0).all()
        if n:
            assert sigmas[0] == pytest.approx(ends["sigma_max"], rel=1e-6)
        if n > 2 and name != "recommended":
            assert sigmas[-2] == pytest.approx(ends["sigma_min"], rel=1e-6)
    own = scheduler.function(n=10, sigma_min=0.1, sigma_max=0.8, inner_model=wrap, device="cpu")
    assert own[0] == pytest.approx(0.8)
    assert (own.diff() < 0).all()


def test_recommended_sigmas_are_the_models_own_where_the_host_rounds_its_time(host: Host) -> None:
    function = host.sd_schedulers.schedulers_map["dpm_solver_recommended"].function
    for kind in KINDS.values():
        model = Model(*kind)
        table = model.model_wrap.sigmas
        ends = table[0].item(), table[-1].item()
        sigmas = function(10, *ends, model.model_wrap, "cpu")
        expected = recommended_sigmas(model.schedule, ends[1], ends[0], 10)
        nearest = [float(table[(table.log() - math.log(s)).abs().argmin()]) for s in expected[1:-1]]
        rounds = kind[1] == "Forge" and kind[0] != "const"
        inner = nearest if rounds else expected[1:-1]
        assert sigmas.tolist() == pytest.approx([ends[1], *inner, 0.0], rel=1e-4)
        rounded = all(sigma in table for sigma in sigmas[1:-2])
        assert rounded == rounds, kind


def test_a_model_that_may_be_a_flow_or_not_is_refused_in_a_sentence(host: Host) -> None:
    model = host.use(Model("const"))
    del model.model_wrap.predictor
    for scheduler in ("Karras", "DPM-Solver recommended", "Automatic"):
        with pytest.raises(ValueError, match="can't tell whether this model is a flow or a diff"):
            host.run(TWO_M, steps=5, scheduler=scheduler)
    assert model.calls == 0
    model.model_wrap.sigmas = model.model_wrap.sigmas * 10  # a flow's end at 1
    model.model_wrap.predictor = AddsFlowNoise()
    with pytest.raises(
        ValueError, match=r"from its largest sigma, 10, and how it adds noise: take one"
    ):
        host.run(TWO_M, steps=5)


@pytest.mark.parametrize("prediction", ["epsilon", "const"])
def test_even_spacing_in_time_is_the_tables(host: Host, prediction: str) -> None:
    wrap = Model(prediction).model_wrap
    function = host.sd_schedulers.schedulers_map["dpm_solver_time_uniform"].function
    sigmas = function(10, wrap.sigmas[0].item(), wrap.sigmas[-1].item(), wrap, "cpu")
    places = [round(999 * i / 9) for i in range(9, -1, -1)]
    assert sigmas[:-1].tolist() == pytest.approx(wrap.sigmas[places].tolist(), rel=1e-5)


# --- calibrated solvers --------------------------------------------------------------------------

CALIBRATED = "DPM-Solver(calibrated-My_cat_karras)"


def calibration(model: Model, calls: int = 6, fitted: Fitted = Fitted()) -> Calibration:  # noqa: B008
    schedule = model.schedule
    table = model.model_wrap.sigmas
    sigmas = recommended_sigmas(schedule, float(table[-1]), float(table[0]), calls)
    steps = tuple(exact_weights(schedule, sigmas[: i + 2], 2) for i in range(calls))
    kind = "flow" if isinstance(schedule, RectifiedFlow) else "diffusion"
    return Calibration(kind, tuple(sigmas), steps, fitted)


def save(host: Host, found: Calibration, name: str = "My cat karras") -> Path:
    path = Path(host.paths.models_path) / "dpm_solver" / f"{name}.safetensors"
    path.unlink(missing_ok=True)
    files.save([found], path)
    host.load()
    return path


@every_kind
def test_a_calibration_is_a_sampler_with_its_own_sigmas(host: Host, kind: tuple[str, str]) -> None:
    model = host.use(Model(*kind))
    found = calibration(model)
    save(host, found)
    assert host.listed == [*HOSTS_OWN, *NAMES, CALIBRATED]
    split = host.sd_samplers.get_sampler_and_scheduler
    assert split(CALIBRATED, "Automatic") == (CALIBRATED, "Automatic")
    latents, p = host.run(CALIBRATED, steps=6, scheduler="Karras")
    assert model.calls == 6
    assert p.extra_generation_params["Schedule type"] == "Automatic"
    noise = torch.randn(model.shape, generator=torch.Generator().manual_seed(1))[None]
    sigmas = torch.tensor(found.sigmas)
    expected = sample_calibrated(
        model.mixture, noise * sigmas[0], sigmas, disable=True, calibration=found
    )
    assert difference(latents, expected) < ROUNDING
    _, _ = host.run(
        CALIBRATED, steps=6, init_latent=torch.zeros(1, 4, 4, 4), denoising_strength=0.5
    )
    assert model.calls == 12 + 4
    assert host.shared.total_steps_shown == list(range(4))


class Network(torch.nn.Sequential):
    """Weights of a model; another seed, other weights."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))


@pytest.mark.parametrize("program", ["Forge", "AUTOMATIC1111"])
def test_recommended_takes_a_calibration_of_this_very_model(host: Host, program: str) -> None:
    """For its steps and about its CFG, unless it is switched off; the image's text says so."""
    model: Any = host.use(Model("epsilon", program))
    network: Any = Network()
    if program == "Forge":
        unet = model.model_wrap.inner_model.forge_objects.unet
        unet.model = SimpleNamespace(diffusion_model=network)
    else:
        model.model = SimpleNamespace(diffusion_model=network)
    own = fingerprint(dict(network.named_parameters()), {})
    fitted = Fitted("BaseModel", errors={"calibrated": 0.1}, fingerprint=own, guidance=7.0)
    found = calibration(model, fitted=fitted)
    path = save(host, found)
    path.with_name("link.safetensors").symlink_to(path.with_name("gone"))
    key, name = "DPM-Solver calibration", "My cat karras"

    def taken(**settings: Any) -> bool:
        settings = {"steps": 6, "cfg_scale": 7.0, **settings}
        latents, p = host.run(label("dpm_solver++_recommended"), **settings)
        if p.extra_generation_params.get(key) != name:
            return False
        calibrated, _ = host.run(CALIBRATED, **settings)
        return torch.equal(latents, calibrated)

    assert taken() and taken(cfg_scale=8.9) and taken(cfg_scale=5.0)
    assert not taken(cfg_scale=9.2)
    assert not taken(steps=7)
    assert not taken(scheduler="Karras")
    assert not taken(init_latent=torch.zeros(1, 4, 4, 4), denoising_strength=0.5)
    host.shared.opts.data["dpm_solver_use_calibrations"] = False
    assert not taken()
    host.shared.opts.data["dpm_solver_use_calibrations"] = True
    if program == "Forge":
        unet.lora_patches = {"a LoRA": {}}
        assert not taken()
        unet.lora_patches = {}
    else:
        network[0].network_current_names = (("a LoRA", 1.0),)
        assert not taken()
        network[0].network_current_names = ()
    assert taken()
    with torch.no_grad():
        network[1].weight.mul_(1.5)  # another model
    assert not taken()


def test_what_does_not_fit_a_calibration_is_said_in_a_sentence(host: Host) -> None:
    model = host.shared.sd_model
    path = save(host, calibration(model))
    with pytest.raises(ValueError, match="set Sampling steps to 6"):
        host.run(CALIBRATED, steps=20)
    host.shared.opts.data["img2img_fix_steps"] = True
    with pytest.raises(ValueError, match="exactly as many steps as the slider says"):
        host.run(CALIBRATED, steps=6, init_latent=torch.zeros(1, 4, 4, 4))
    host.use(Model("const"))
    with pytest.raises(ValueError, match="made for a noise- or v-prediction model"):
        host.run(CALIBRATED, steps=6)
    host.use(model)
    save(host, calibration(model, fitted=Fitted(model="SDXL")))
    with pytest.raises(
        ValueError, match="of the type SDXL, and the loaded one is of the type Base"
    ):
        host.run(CALIBRATED, steps=6)
    model.model_wrap.sigmas = model.model_wrap.sigmas * 2
    save(host, calibration(Model()))
    with pytest.raises(ValueError, match=r"starts at sigma 14\.61, and the loaded model at 29\.2"):
        host.run(CALIBRATED, steps=6)
    path.write_bytes(b"nothing of the kind")  # since it was listed
    with pytest.raises(ValueError, match="no calibration that can be used"):
        host.run(CALIBRATED, steps=6)


def test_a_file_that_cannot_be_used_is_no_sampler_and_the_log_says_why(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    good = save(host, calibration(host.shared.sd_model))
    content = good.read_bytes()
    damaged = {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "large": content + bytes(1 << 20),
        "other format": content.replace(b"dpm_solver_calibration", b"dpm_solver_calibratiom"),
        "caf\udce9": content[:100],
        "later version": content.replace(b'"version":"2"', b'"version":"9"'),
    }
    for name, changed in damaged.items():
        good.with_name(f"{name}.safetensors").write_bytes(changed)
    good.with_name("link.safetensors").symlink_to(good.with_name("gone"))
    good.with_name("folder.safetensors").mkdir()
    caplog.clear()
    host.load()
    assert host.listed == [*HOSTS_OWN, *NAMES, CALIBRATED]
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == len({*damaged, "link", "folder"})
    for name in (*damaged, "link", "folder"):
        shown = name.encode("utf-8", "backslashreplace").decode()
        assert sum(f"{shown}.safetensors" in line for line in lines) == 1, name
    for line in lines:
        assert "\n" not in line
        line.encode()


def test_a_calibration_that_was_stopped_is_called_unmeasured(host: Host) -> None:
    model, stopped = host.shared.sd_model, Fitted(stopped=True)
    save(host, calibration(model, fitted=stopped), "cat_unmeasured_2")  # as Calibrate calls them
    path = save(host, calibration(model, fitted=stopped), "dog")  # and as a user may
    path.with_name("bird_unmeasured.safetensors").write_bytes(path.read_bytes())
    host.load()
    assert host.listed[len(HOSTS_OWN + NAMES) :] == [
        f"DPM-Solver(calibrated-{name}_unmeasured{number})"
        for name, number in (("bird", ""), ("cat", "_2"), ("dog", ""))
    ]


NAMED = {
    "a_b": "a_b",
    "A B": "A_B_2",  # the host finds names by lower case, too
    "a  b": "a_b_3",
    "a b": "a_b_4",
    "a, b": "a_b_5",
    "one,two,three": "one_two_three",
    "line\nbreak": "line_break",
    "caf\udce9": "caf",  # its bytes are no UTF-8
    "größer (v2) #1": "größer_(v2)_#1",
}
"""A file's name -> its sampler's, in parentheses."""


def test_each_file_is_a_sampler_of_its_own_whatever_its_name(host: Host) -> None:
    model = host.shared.sd_model
    calls = dict(zip(NAMED, range(5, 30), strict=False))
    for name in NAMED:
        save(host, calibration(model, calls[name]), name)
    listed = host.listed[len(HOSTS_OWN + NAMES) :]
    assert sorted(listed) == sorted(f"DPM-Solver(calibrated-{name})" for name in NAMED.values())
    assert len({name.lower() for name in listed}) == len(listed)
    for file, label_ in NAMED.items():
        name = f"DPM-Solver(calibrated-{label_})"
        name.encode()
        [field] = next(csv.reader([name], skipinitialspace=True))  # as X/Y/Z plot reads its values
        text = host.processing.infotext(host.run(field, steps=calls[file])[1])
        assert text["Sampler"] == name
