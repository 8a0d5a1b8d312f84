"""Run by test_models.py inside a host's Python: python inside_models.py COMFYUI PACK

Every kind of `model_sampling` the host has, around an exact denoiser. The pack's results are compared
with the converged solution of the kind's ODE; what was measured is printed as JSON, and judged there.

Two ways into the pack: through the host's KSampler, guider and ModelPatcher, which compute in float32,
for few calls; through the host's KSAMPLER alone, in float64, for the order of convergence.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import inside  # type: ignore[import-not-found]
import numpy as np
from scipy.integrate import solve_ivp

PACK = sys.argv[2]
inside.boot()

import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.model_sampling  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models_base  # noqa: E402
import torch  # noqa: E402
from comfy.model_base import ModelType  # noqa: E402
from comfy_extras.nodes_model_advanced import LCM, ModelSamplingDiscreteDistilled  # noqa: E402

SHAPE = (4, 2, 2, 2)
CALLS = (10, 20, 40)
MANY_CALLS = (500, 2000)  # no long steps (see long_steps.py); groups of 3 end with one of 2
TOLERANCES = (0.05, 0.005, 0.0005)
CPU = torch.device("cpu")


# --- the host's kinds ----------------------------------------------------------------------------


def of_type(name: str, **settings: float) -> Any:
    """What the host makes for a ModelType; None where it doesn't have it yet."""
    if not hasattr(ModelType, name):
        return None
    if "noise_scale" in settings and not hasattr(
        comfy.model_sampling.ModelSamplingDiscreteFlow, "set_noise_scale"
    ):
        return None
    return inside.sampling(getattr(ModelType, name), **settings)


def of_classes(levels: type, prediction: type, **settings: float) -> Any:
    """What the host's ModelSampling... nodes put together."""
    both = type("ModelSamplingAdvanced", (levels, prediction), {})
    return both(SimpleNamespace(sampling_settings=settings))


HOST = comfy.model_sampling
KINDS: dict[str, Any] = {
    "eps": of_type("EPS"),
    "v": of_type("V_PREDICTION"),
    "v, zero terminal SNR": of_type("V_PREDICTION", zsnr=True),
    "v ddpm, zero terminal SNR": of_type("V_PREDICTION_DDPM", zsnr=True),
    "x0": of_classes(HOST.ModelSamplingDiscrete, HOST.X0),
    "image to image": of_type("IMG_TO_IMG"),
    "lcm": of_classes(ModelSamplingDiscreteDistilled, LCM),
    "edm": of_type("EDM", sigma_min=0.002, sigma_max=80.0, sigma_data=0.5),
    "edm, v": of_type("V_PREDICTION_EDM"),
    "edm, discrete": of_classes(HOST.ModelSamplingDiscreteEDM, HOST.EPS),
    "continuous v": of_type("V_PREDICTION_CONTINUOUS", sigma_min=0.03, sigma_max=500.0),
    "cascade": of_type("STABLE_CASCADE"),
    "cascade, shift 2": of_type("STABLE_CASCADE", shift=2.0),
    "cosmos": of_type("FLOW_COSMOS", sigma_min=0.002, sigma_max=80.0),
    "flow": of_type("FLOW"),
    "flow, shift 1.73, multiplier 1": of_type("FLOW", shift=1.73, multiplier=1.0),
    "flow, shift 3": of_type("FLOW", shift=3.0),
    "flow, shift 13": of_type("FLOW", shift=13.0),
    "flow, shift 3, noise scale 1.1": of_type("FLOW", shift=3.0, noise_scale=1.1),
    "flow, shift 3, noise scale 8": of_type("FLOW", shift=3.0, noise_scale=8.0),
    "flux": of_type("FLUX"),
}


def is_flow(model_sampling: Any) -> bool:
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def process(model_sampling: Any, sigma: float) -> tuple[float, float]:
    """How the host makes a state at sigma: the weights of the image and of the noise."""
    level = torch.tensor([sigma], dtype=torch.float64)
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    return (
        model_sampling.noise_scaling(level, zero.clone(), one).item(),
        model_sampling.noise_scaling(level, one.clone(), zero).item(),
    )


def start_noise(model_sampling: Any, sigma: float) -> float:
    """The weight of the noise where sampling starts, which from sigma_max the host makes larger."""
    level = torch.tensor([sigma], dtype=torch.float64)
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    whole = math.isclose(sigma, float(model_sampling.sigma_max), rel_tol=1e-5)
    return model_sampling.noise_scaling(level, one, zero, whole).item()


# --- the exact denoiser --------------------------------------------------------------------------

_random = np.random.default_rng(5)
MEANS = _random.standard_normal((5, math.prod(SHAPE[1:])))
LOG_WEIGHTS = np.log(_random.dirichlet(np.full(len(MEANS), 3.0)))
STD = 0.5
NOISE = torch.from_numpy(_random.standard_normal(SHAPE)).float()


def denoise(x: np.ndarray, alpha: float, noise: float) -> np.ndarray:
    """The posterior mean of x0 in x = alpha x0 + noise * N(0, 1), x0 from a mixture of Gaussians.

    Args:
        x: [batch, MEANS.shape[1]], float64.
    """
    variance = (alpha * STD) ** 2 + noise**2
    # Up to what all components share, - |x - alpha mean|^2 / (2 variance)
    evidence = LOG_WEIGHTS + (x @ MEANS.T - 0.5 * alpha * SQUARES) * (alpha / variance)
    weights = np.exp(evidence - evidence.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    pull = alpha * STD**2 / variance
    return weights @ MEANS * (1.0 - alpha * pull) + x * pull


SQUARES = (MEANS**2).sum(1)


class Kind:
    """One of KINDS, with the network that its denoiser is, and the converged solutions of its ODE."""

    def __init__(self, model_sampling: Any) -> None:
        self.model_sampling = model_sampling
        self.flow = is_flow(model_sampling)
        self.at = cache(self._at)

    def _at(self, sigma: float) -> tuple[float, ...]:
        """At sigma: the state's weights, the input's scale, and denoised = a x + b output."""
        level = torch.tensor([sigma], dtype=torch.float64)
        one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        return (
            *process(self.model_sampling, sigma),
            self.model_sampling.calculate_input(level, one).item(),
            self.model_sampling.calculate_denoised(level, zero, one).item(),
            self.model_sampling.calculate_denoised(level, one, zero).item(),
        )

    def network(self, scaled: torch.Tensor, sigma: float) -> torch.Tensor:
        """The output that the host turns into the exact denoised, float64."""
        alpha, noise, scale, of_state, of_output = self.at(sigma)
        x = scaled.double().flatten(1).numpy() / scale
        output = (denoise(x, alpha, noise) - of_state * x) / of_output
        return torch.from_numpy(output).reshape(scaled.shape)

    def solution(self, start: float, end: float) -> torch.Tensor:
        """At end, from the host's pure noise at start, float64. Kinds share it where they can."""
        scale = start_noise(self.model_sampling, start)
        key = (self.flow, scale, start, end)
        if key not in _solutions:
            last = end or 1e-6
            x = NOISE.double().flatten(1).numpy()

            def derivative(log_sigma: float, flat: np.ndarray) -> np.ndarray:
                """dx / d log sigma = x - denoised, on flows too."""
                state = flat.reshape(x.shape)
                weights = process(self.model_sampling, math.exp(log_sigma))
                return (state - denoise(state, *weights)).ravel()

            solved = solve_ivp(
                derivative,
                (math.log(start), math.log(last)),
                scale * x.ravel(),
                "DOP853",
                rtol=1e-12,
                atol=1e-12,
            )
            x = solved.y[:, -1].reshape(x.shape)
            x = x if end else denoise(x, *process(self.model_sampling, last))
            _solutions[key] = torch.from_numpy(x).reshape(SHAPE)
        return _solutions[key]


_solutions: dict[tuple[float, ...], torch.Tensor] = {}


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


# --- through the host ----------------------------------------------------------------------------


class Network(torch.nn.Module):
    """Stands where the host has its U-Net. It takes sigma itself, not the host's rounded time."""

    dtype = torch.float32

    def __init__(self, device: object = None, operations: object = None, **_: object) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.kind: Kind

    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, transformer_options: Any, **_: object
    ) -> torch.Tensor:
        return self.kind.network(x, transformer_options["sigmas"][0].item()).to(x.dtype)


class Config(comfy.supported_models_base.BASE):
    """What the host wants to know of a model before it builds one."""

    unet_config: dict[str, Any] = {}
    unet_extra_config: dict[str, Any] = {}
    supported_inference_dtypes = [torch.float32]
    memory_usage_factor = 0.01


def patcher(kind: Kind) -> Any:
    config = Config({})
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, ModelType.EPS, unet_model=Network)
    model.diffusion_model.kind = kind
    model = comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)
    model.add_object_patch("model_sampling", kind.model_sampling)
    return model


POSITIVE = [[torch.zeros(1, 1, 1), {}]]


def through_the_host(
    model: Any, sampler: Any, sigmas: torch.Tensor, noise: torch.Tensor = NOISE
) -> torch.Tensor:
    """The host's guider, which computes in float32."""
    return comfy.sample.sample_custom(
        *(model, noise, 1.0, sampler, sigmas, POSITIVE, [], torch.zeros(SHAPE)),
        disable_pbar=True,
        seed=0,
    )


class Guider:
    """What the host's KSAMPLER needs of a guider, in float64."""

    def __init__(self, kind: Kind, model: Any) -> None:
        self.kind = kind
        self.model_patcher = model
        self.inner_model = SimpleNamespace(model_sampling=kind.model_sampling)
        self.cfg = 1.0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        host = self.kind.model_sampling
        output = self.kind.network(host.calculate_input(sigma, x), sigma[0].item())
        return host.calculate_denoised(sigma, output, x)


def in_float64(kind: Kind, model: Any, sampler: Any, sigmas: torch.Tensor) -> torch.Tensor:
    """The host's KSAMPLER, which scales the noise before and the result after."""
    guider, latent = Guider(kind, model), torch.zeros(SHAPE, dtype=torch.float64)
    return sampler.sample(guider, sigmas, {"seed": 0}, None, NOISE.double(), latent, None, True)


# --- what is measured ----------------------------------------------------------------------------

TWO_M, THREE_M_EXACT, THREE_S_FIXED = "dpm_solver++_2m", "dpm_solver++_3m_exact", "3s, fixed"
SAMPLERS = (TWO_M, THREE_M_EXACT, "dpm_solver++_2s", THREE_S_FIXED, "dpm_solver_2m")
ADAPTIVE = ("dpm_solver++_adaptive_12", "dpm_solver++_adaptive_23")
LOG_SNR, TIME_QUADRATIC = "dpm_solver_log_snr", "dpm_solver_time_quadratic"
ALL_ORDERS = ("v, zero terminal SNR", "flow, shift 3")
"""Kinds on which the order of every sampler is taken; on the others, of the most demanding."""

RIVALS = ("eps", "edm", "flow, shift 3")
"""Kinds on which what Calibrate measures against is compared with the menus."""

HOST_PACK, CATALOG = inside.load_pack(PACK, "/custom_nodes/dpm-solver-nodes")
ENTRIES = {entry.id: entry for entry in CATALOG.CATALOG}
ORDERS = {name: entry.order for name, entry in ENTRIES.items()} | {THREE_S_FIXED: 3}


def sampler(name: str, **settings: Any) -> Any:
    """A SAMPLER as the host makes it for its menu, or as the pack's nodes make one."""
    if name == THREE_S_FIXED:
        return HOST_PACK.sampler(CATALOG.Singlestep(order=3, grouping="fixed"))
    if settings:
        return HOST_PACK.sampler(replace(ENTRIES[name].options, **settings))
    return comfy.samplers.sampler_object(name)


def scheduled(kind: Kind, scheduler: str, calls: int) -> torch.Tensor:
    """A list of the menu; the distilled kind's ends at its own last level, 0.13, far above zero."""
    sigmas = comfy.samplers.calculate_sigmas(kind.model_sampling, scheduler, calls)
    return sigmas[:-1] if isinstance(kind.model_sampling, LCM) else sigmas


def expected(kind: Kind, sigmas: torch.Tensor) -> torch.Tensor:
    """What the host returns of the converged solution."""
    solution = kind.solution(sigmas[0].item(), sigmas[-1].item())
    return kind.model_sampling.inverse_noise_scaling(sigmas[-1:].double(), solution)


def error(kind: Kind, model: Any, sampler: Any, sigmas: torch.Tensor) -> float:
    result = in_float64(kind, model, sampler, sigmas.double())
    assert result.dtype == torch.float64
    return distance(result, expected(kind, sigmas))


def even_in_time(kind: Kind, calls: int) -> torch.Tensor:
    """A flow's sigmas, float64, even in the host's time from 0.99 to 0.02."""
    times = torch.linspace(0.99, 0.02, calls + 1, dtype=torch.float64)
    return kind.model_sampling.sigma(times * getattr(kind.model_sampling, "multiplier", 1.0))


def above_zero(kind: Kind, calls: int) -> torch.Tensor:
    """Even in log-SNR from sigma_max, a flow's 1, to sigma_min."""
    return inside.listed(HOST_PACK, kind.model_sampling, "logSNR", calls, final_zero=False)


def order(
    kind: Kind, model: Any, name: str, sigmas: Callable[[Kind, int], torch.Tensor]
) -> tuple[float, float]:
    few, many = (error(kind, model, sampler(name), sigmas(kind, n)) for n in MANY_CALLS)
    return math.log(few / many) / math.log(MANY_CALLS[1] / MANY_CALLS[0]), many


def through_ksampler(kind: Kind, model: Any, name: str, calls: int) -> float:
    """As a KSampler node runs it; the host computes in float32."""
    sigmas = scheduled(kind, LOG_SNR, calls)
    result = comfy.sample.sample(
        *(model, NOISE, calls, 1.0, name, LOG_SNR, POSITIVE, [], torch.zeros(SHAPE)),
        last_step=len(sigmas) - 1,
        disable_pbar=True,
        seed=0,
    )
    return distance(result, expected(kind, sigmas))


def rivals_off(kind: Kind, model: Any, calls: int) -> dict[str, float]:
    """How far the solvers that Calibrate measures against are from the same ones of the menus."""
    calibrate = sys.modules[HOST_PACK.__name__.replace("sampling", "calibrate")]
    host_model = HOST_PACK.ComfyModel(kind.model_sampling)
    rivals = calibrate._rivals(host_model, SimpleNamespace(schedule=host_model.schedule), calls)
    found = {}
    for name, menu, scheduler in (
        (calibrate.RECOMMENDED, "dpm_solver++_recommended", "dpm_solver_recommended"),
        (calibrate.KARRAS_2M, TWO_M, "karras"),
    ):

        def run(
            model: Any, x: torch.Tensor, *_: Any, extra_args: Any, name: str = name, **__: Any
        ) -> torch.Tensor:
            def denoise(x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
                denoised: torch.Tensor = model(x, sigma, **extra_args)
                return denoised

            result: torch.Tensor = rivals[name](denoise, x)
            return result

        sigmas = comfy.samplers.calculate_sigmas(kind.model_sampling, scheduler, calls)
        own, menus = (
            in_float64(kind, model, one, sigmas.double())
            for one in (comfy.samplers.KSAMPLER(run), sampler(menu))
        )
        found[name] = distance(own, menus)
    return found


def measure(name: str) -> dict[str, Any]:
    kind = Kind(KINDS[name])
    model = patcher(kind)
    lists = {(s, LOG_SNR) for s in SAMPLERS}
    lists.add((TWO_M, TIME_QUADRATIC))
    # "normal" ends flows with a step many times as long as the one before.
    lists |= {
        (TWO_M, scheduler) for scheduler in (("simple", "normal") if kind.flow else ("karras",))
    }
    thorough = name in ALL_ORDERS
    found: dict[str, Any] = {
        "ends": [float(kind.model_sampling.sigma_max), float(kind.model_sampling.sigma_min)],
        "through the host": {
            s: [through_ksampler(kind, model, s, n) for n in CALLS] for s in SAMPLERS[:2]
        },
        "few calls": {
            f"{s}, {scheduler}": [
                error(kind, model, sampler(s), scheduled(kind, scheduler, n)) for n in CALLS
            ]
            for s, scheduler in sorted(lists)
        },
        "orders": {
            s: (ORDERS[s], *order(kind, model, s, even_in_time if kind.flow else above_zero))
            for s in (SAMPLERS if thorough else (THREE_M_EXACT,))
        },
        "adaptive": {
            s: [
                error(kind, model, sampler(s, rtol=rtol, atol=0.156 * rtol), above_zero(kind, 10))
                for rtol in TOLERANCES
            ]
            for s in (ADAPTIVE if thorough else ADAPTIVE[-1:])
        },
    }
    if name in RIVALS:
        found["rivals"] = rivals_off(kind, model, 8)
    if kind.flow and thorough:
        found["orders from 1"] = {s: order(kind, model, s, above_zero) for s in SAMPLERS}
    return found


def refusals() -> dict[str, str]:
    """What the host says of IMG_TO_IMG_FLOW: entry or scheduler -> message."""
    kind = Kind(of_type("IMG_TO_IMG_FLOW"))
    model = patcher(kind)
    pairs = [(name, "simple") for name in ENTRIES]
    pairs += [("euler", name) for name in HOST_PACK.SCHEDULER_NAMES]
    said = {}
    for name, scheduler in pairs:
        try:
            comfy.sample.sample(
                *(model, NOISE, 4, 1.0, name, scheduler, POSITIVE, [], torch.zeros(SHAPE)),
                disable_pbar=True,
                seed=0,
            )
            said[f"{name}, {scheduler}"] = ""
        except ValueError as raised:
            said[f"{name}, {scheduler}"] = str(raised)
    return said


def noise_scales() -> dict[str, bool]:
    """Whether all that a noise scale changes is the start: the same as so much more noise.

    Of the samplers on a list: the adaptive ones may weigh their error by it.
    """
    scaled = KINDS["flow, shift 3, noise scale 1.1"]
    if scaled is None:
        return {}
    plain = Kind(KINDS["flow, shift 3"])
    with_scale = Kind(scaled)
    with_scale.network = plain.network  # type: ignore[method-assign]
    sigmas = scheduled(plain, LOG_SNR, 6)
    equal = {}
    for name, entry in ENTRIES.items():
        if not (entry.stochastic or entry.adaptive):
            results = (
                through_the_host(patcher(kind), sampler(name), sigmas, noise)
                for kind, noise in ((with_scale, NOISE), (plain, 1.1 * NOISE))
            )
            equal[name] = torch.equal(*results)
    return equal


torch.set_num_threads(1)
print(
    json.dumps(
        {
            "kinds": {name: measure(name) for name, kind in KINDS.items() if kind is not None},
            "missing": [name for name, kind in KINDS.items() if kind is None],
            "refusals": refusals(),
            "noise scales": noise_scales(),
        }
    )
)
