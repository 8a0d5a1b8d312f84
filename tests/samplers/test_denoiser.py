"""Raw networks made of the exact denoiser, wrapped again: every schedule and prediction type."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from dpm_solver_nodes.samplers import (
    RectifiedFlow,
    VarianceExploding,
    sample_adaptive,
    sample_multistep,
    sample_recommended,
    sample_singlestep,
)
from dpm_solver_nodes.samplers.denoiser import PREDICTIONS, NetworkDenoiser, join
from dpm_solver_nodes.samplers.schedules.networks import (
    ContinuousCosine,
    ContinuousLinear,
    DiscreteSchedule,
    FlowSchedule,
    TrainingSchedule,
)
from dpm_solver_nodes.tests.support.mixture import (
    Mixture,
    cases,
    component_std,
    difference,
    start,
    tensors,
)

TOLERANCE = 1e-10
LINEAR_BETAS = np.linspace(1e-4, 0.02, 1000)
BETAS = np.array([0.01, 0.05, 0.02, 0.3, 0.1, 0.6])  # any array, and not even
SHORT = np.linspace(1e-3, 0.2, 50)

# How each network was trained, written apart from the code: what it was told -> alpha of its state.


Curve = Callable[[Any], Any]
"""A function of a number or of an array."""


def discrete(betas: np.ndarray) -> Curve:
    log_alphas = 0.5 * np.log(np.cumprod(1.0 - betas))
    return lambda label: np.exp(np.interp(label, np.arange(len(betas)), log_alphas))


def scaled_linear_betas() -> np.ndarray:
    return np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2


def cosine_betas() -> np.ndarray:
    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = [alpha_bar((i + 1) / 1000) / alpha_bar(i / 1000) for i in range(1000)]
    return np.minimum(1.0 - np.array(ratios), 0.999)


def cosine_alpha(t: Any) -> Any:
    return np.cos((t + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)


@dataclass(frozen=True)
class Trained:
    training: TrainingSchedule
    alpha: Curve
    std: Curve = field(default=lambda alpha: np.sqrt(1.0 - np.square(alpha)))
    time_scale: float = 1.0

    @property
    def flow(self) -> bool:
        return isinstance(self.training, FlowSchedule)


TRAINED = {
    "linear": Trained(DiscreteSchedule.linear(), discrete(LINEAR_BETAS)),
    "scaled_linear": Trained(DiscreteSchedule.scaled_linear(), discrete(scaled_linear_betas())),
    "cosine": Trained(DiscreteSchedule.cosine(), discrete(cosine_betas())),
    "betas": Trained(DiscreteSchedule.from_betas(torch.tensor(BETAS)), discrete(BETAS)),
    "alphas_cumprod": Trained(
        DiscreteSchedule.from_alphas_cumprod(np.cumprod(1.0 - SHORT).tolist()),
        discrete(SHORT),
        time_scale=1000 / 50,
    ),
    "continuous linear": Trained(
        ContinuousLinear(), lambda t: np.exp(-0.25 * t**2 * 19.9 - 0.05 * t), time_scale=999.0
    ),
    "continuous cosine": Trained(ContinuousCosine(), cosine_alpha),
    "flow": Trained(
        FlowSchedule(t_start=0.999),
        lambda sigma: 1.0 - sigma,
        lambda alpha: 1.0 - alpha,
        time_scale=1000.0,
    ),
}
each_training = pytest.mark.parametrize("trained", TRAINED.values(), ids=TRAINED)
each_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
SCALED_LINEAR = TRAINED["scaled_linear"]

OUTPUTS: dict[str, Callable[..., torch.Tensor]] = {
    "noise": lambda alpha, std, x0, noise: noise,
    "x0": lambda alpha, std, x0, noise: x0,
    "v": lambda alpha, std, x0, noise: alpha * noise - std * x0,
    "score": lambda alpha, std, x0, noise: -noise / std,
    "flow": lambda alpha, std, x0, noise: noise - x0,
}


class Network:
    """The exact denoiser as a raw network, which sees its own state and its own time alone.

    A condition is a weight for the mixture's means: 1 leaves the mixture as it is, 0 has one mean, 0.
    """

    def __init__(self, trained: Trained, prediction: str) -> None:
        self.trained, self.prediction = trained, prediction
        self.labels: list[torch.Tensor] = []
        self.batches: list[int] = []

    def __call__(
        self, z: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert t.shape == (len(z),)
        self.labels.append(t)
        self.batches.append(len(z))
        rows = range(len(z))
        weights = [1.0] * len(z) if condition is None else condition.flatten().tolist()
        return torch.cat([self.image(z[i : i + 1], t[i].item(), weights[i]) for i in rows])

    def image(self, z: torch.Tensor, label: float, weight: float) -> torch.Tensor:
        alpha = float(self.trained.alpha(label / self.trained.time_scale))
        std = float(self.trained.std(alpha))
        # In sigma space: z itself for flows, z / alpha for the others.
        x, sigma = (z, std) if self.trained.flow else (z / alpha, std / alpha)
        x0 = conditional(self.trained, weight)(x, x.new_full((1,), sigma))
        return OUTPUTS[self.prediction](alpha, std, x0, (z - alpha * x0) / std)


def exact(trained: Trained) -> Mixture:
    return Mixture(RectifiedFlow() if trained.flow else VarianceExploding())


def conditional(trained: Trained, weight: float) -> Mixture:
    mixture = exact(trained)
    mixture.means = weight * mixture.means
    return mixture


def wrap(trained: Trained, prediction: str = "noise", **settings: Any) -> NetworkDenoiser:
    network = Network(trained, prediction)
    return NetworkDenoiser(
        network,
        trained.training,
        prediction=prediction,
        time_scale=trained.time_scale,
        **settings,
    )


def state(sigma: float) -> torch.Tensor:
    return start() / 14.6 * sigma + 0.3


def at(sigma: float, batch: int = 3) -> torch.Tensor:
    return torch.full((batch,), sigma, dtype=torch.float64)


# the denoiser is the exact one


@each_prediction
@each_training
def test_denoiser_is_the_exact_one_at_every_sigma(trained: Trained, prediction: str) -> None:
    model = wrap(trained, prediction)
    oracle = exact(trained)
    for sigma in model.sigmas(24, "logSNR", final_zero=False).tolist():
        x = state(sigma)
        error = difference(model(x, at(sigma)), oracle(x, at(sigma)))
        assert error <= TOLERANCE * max(1.0, sigma), f"off by {error:.1e} at sigma {sigma}"


def test_flow_at_sigma_1() -> None:
    trained = Trained(FlowSchedule(), TRAINED["flow"].alpha, TRAINED["flow"].std, 1000.0)
    for prediction in ("x0", "v", "flow"):
        model = wrap(trained, prediction)
        assert model.sigmas(5)[0] == 1.0
        assert difference(model(state(1.0), at(1.0)), exact(trained)(state(1.0), at(1.0))) <= 1e-13
        result = sample_multistep(
            model, state(1.0), model.sigmas(10), schedule=model.schedule, disable=True
        )
        oracle = exact(trained)
        expected = sample_multistep(
            oracle, state(1.0), model.sigmas(10), schedule=RectifiedFlow(), disable=True
        )
        assert difference(result, expected) <= TOLERANCE


RUNS = [
    *((sampler, name) for sampler in (sample_multistep, sample_singlestep) for name in PREDICTIONS),
    *((sample_adaptive, name) for name in ("noise", "flow")),  # of many calls
]


@pytest.mark.parametrize(("sampler", "prediction"), RUNS)
@each_training
def test_runs_are_those_of_the_exact_denoiser(
    trained: Trained, prediction: str, sampler: Callable[..., torch.Tensor]
) -> None:
    model, oracle = wrap(trained, prediction), exact(trained)
    sigmas = model.sigmas(9)
    x = state(sigmas[0].item())
    settings: dict[str, Any] = {"order": 3, "schedule": model.schedule, "disable": True}
    result = sampler(model, x, sigmas, **settings)
    assert difference(result, sampler(oracle, x, sigmas, **settings)) <= 1e-9
    calls = len(model.network.batches)  # type: ignore[attr-defined]
    assert calls == len(oracle.sigmas)
    assert sampler is sample_adaptive or calls == 9


def test_images_of_a_batch_may_differ_in_sigma() -> None:
    model = wrap(SCALED_LINEAR)
    sigma = torch.tensor([10.0, 1.0, 0.1], dtype=torch.float64)
    each = [exact(SCALED_LINEAR)(start()[i : i + 1], sigma[i : i + 1]) for i in range(3)]
    assert difference(model(start(), sigma), torch.cat(each)) <= TOLERANCE


# the authors' grids and results (their schedule is scaled_linear, in float64)


@pytest.mark.parametrize("spacing", ["logSNR", "time_uniform", "time_quadratic"])
def test_sigmas_are_the_authors(spacing: str) -> None:
    model = wrap(SCALED_LINEAR)
    grids = [c for c in cases() if c["skip_type"] == spacing and c["method"] == "multistep"]
    assert grids
    for case in grids:
        zero = case["denoise_to_zero"]
        sigmas = model.sigmas(case["nfe"], spacing, final_zero=zero)
        assert sigmas.tolist() == pytest.approx(case["sigmas"], rel=1e-9), case["id"]


def test_results_are_the_authors() -> None:
    some = [c for c in cases() if c["method"] == "multistep" and c["order"] == 2][::8]
    assert len(some) > 10
    for case in some:
        model = wrap(SCALED_LINEAR)
        sigmas = model.sigmas(case["nfe"], case["skip_type"], final_zero=case["denoise_to_zero"])
        settings = {name: case[name] for name in ("algorithm", "order", "solver_type")}
        settings["lower_order_final"] = "auto" if case["lower_order_final"] else "off"
        result = sample_multistep(model, start(), sigmas, disable=True, **settings)
        assert difference(result, tensors()[case["id"]]) <= 1e-8, case["id"]


# schedules


@each_training
def test_times_and_sigmas_are_inverse(trained: Trained) -> None:
    training = trained.training
    t = torch.linspace(training.t_end, training.t_start, 997, dtype=torch.float64)
    sigma = training.sigma(t)
    assert (sigma.diff() > 0.0).all()
    assert difference(training.time(sigma), t) <= 1e-12
    assert training.sigma(training.time(sigma)).tolist() == pytest.approx(sigma.tolist(), rel=1e-9)
    again = training.time(sigma.float())
    assert again.dtype == torch.float32
    assert difference(again.double(), t) <= 2e-6


@each_training
def test_state_is_the_trained_one(trained: Trained) -> None:
    sigma = trained.training.sigma(torch.linspace(0.2, 0.9, 30, dtype=torch.float64))
    scale, alpha, std = trained.training.state(sigma)
    label = trained.training.label(sigma)
    assert alpha.tolist() == pytest.approx(trained.alpha(label.numpy()).tolist(), rel=1e-9)
    assert std.tolist() == pytest.approx((scale * sigma).tolist(), rel=1e-12)
    if not trained.flow:
        assert (alpha.square() + std.square()).tolist() == pytest.approx([1.0] * 30, abs=1e-12)


@each_training
def test_times_out_of_range_are_clamped(trained: Trained) -> None:
    training = trained.training
    time = training.time(torch.tensor([0.0, 1e9], dtype=torch.float64))
    lowest = training.t_end if isinstance(training, DiscreteSchedule) else 0.0
    assert time.tolist() == pytest.approx([lowest, 1.0], abs=1e-8)
    model = wrap(trained, "x0")
    model(start(), torch.tensor([0.0, 1e-9, 1e-7], dtype=torch.float64))
    labels = model.network.labels[0]  # type: ignore[attr-defined]
    assert labels.tolist() == pytest.approx([0.0] * 3, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("linear", DiscreteSchedule.linear()),
        ("scaled_linear", DiscreteSchedule.scaled_linear(beta_start=1e-4, beta_end=0.02)),
        ("squaredcos_cap_v2", DiscreteSchedule.cosine()),
    ],
)
def test_discrete_schedules_are_diffusers(name: str, schedule: DiscreteSchedule) -> None:
    theirs = DDPMScheduler(1000, beta_schedule=name).alphas_cumprod
    ours = (2.0 * schedule.log_alphas).exp()
    assert ours.tolist() == pytest.approx(theirs.tolist(), rel=2e-4)  # theirs is float32
    from_theirs = DiscreteSchedule.from_alphas_cumprod(theirs)
    assert from_theirs.log_alphas.dtype == torch.float64
    assert difference(from_theirs.log_alphas, 0.5 * theirs.double().log()) == 0.0


def test_discrete_times_are_the_authors() -> None:
    """t_i = (i + 1) / N, log alpha linear between, and (t - 1 / N) * 1000 for the network."""
    schedule = DiscreteSchedule.linear()
    alphas_cumprod = np.cumprod(1.0 - LINEAR_BETAS)
    log_alphas = 0.5 * np.log(alphas_cumprod)
    for t, log_alpha in [
        (1.0, log_alphas[999]),
        (0.001, log_alphas[0]),
        (0.5, log_alphas[499]),
        (0.5004, 0.6 * log_alphas[499] + 0.4 * log_alphas[500]),
    ]:
        sigma = math.sqrt(math.exp(-2.0 * log_alpha) - 1.0)
        assert schedule.sigma_at(t) == pytest.approx(sigma, rel=1e-10)
        label = schedule.label(torch.tensor(sigma, dtype=torch.float64))
        assert label.item() == pytest.approx((t - 0.001) * 1000, abs=1e-9)


def test_ends_are_the_authors() -> None:
    linear, cosine = ContinuousLinear(), ContinuousCosine()
    assert linear.sigma_at(1.0) == pytest.approx(math.sqrt(math.exp(10.05) - 1.0))
    assert cosine.sigma_at(cosine.t_start) == pytest.approx(118.84, rel=1e-3)
    lambdas = -np.log(np.sqrt(1.0 / np.cumprod(1.0 - cosine_betas()) - 1.0))
    assert lambdas[-1] < -9.0
    levels = int((lambdas >= -5.1).sum())
    assert 990 < levels < 1000
    assert DiscreteSchedule.cosine().t_start == levels / 1000
    assert DiscreteSchedule.linear().t_start == 1.0


def test_zero_terminal_snr() -> None:
    """A last beta of 1 has no finite sigma: sampling starts before, and the numbers stay."""
    betas = [*LINEAR_BETAS[:-1], 1.0]
    alphas_cumprod = np.cumprod(1.0 - np.array(betas))
    assert alphas_cumprod[-1] == 0.0
    for schedule in (
        DiscreteSchedule.from_betas(betas),
        DiscreteSchedule.from_alphas_cumprod(torch.tensor(alphas_cumprod)),
    ):
        assert schedule.t_start == 1.0
        sigma = math.sqrt(1.0 / alphas_cumprod[998] - 1.0)
        assert schedule.sigma_at(1.0) == pytest.approx(sigma)
        assert schedule.label(torch.tensor([sigma, 1e6])).tolist() == pytest.approx([998, 998])


def test_shift_moves_the_steps_and_not_the_labels() -> None:
    shifted, plain = FlowSchedule(shift=3.0), FlowSchedule()
    assert shifted.sigma_at(0.5) == pytest.approx(0.75)
    sigma = torch.tensor([0.2, 0.75])
    assert torch.equal(shifted.label(sigma), plain.label(sigma))
    assert shifted.time(sigma).tolist() == pytest.approx([0.2 / 2.6, 0.5])


@each_training
@pytest.mark.parametrize("spacing", ["logSNR", "time_uniform", "time_quadratic"])
def test_sigmas_fall_in_as_many_steps_as_said(spacing: str, trained: Trained) -> None:
    model = wrap(trained)
    for steps in (1, 2, 3, 20):
        for zero in (True, False):
            sigmas = model.sigmas(steps, spacing, final_zero=zero)
            assert sigmas.shape == (steps + 1,)
            assert (sigmas.diff() < 0.0).all()
            assert sigmas[0] == trained.training.sigma_at(trained.training.t_start)
            last = 0.0 if zero else model.schedule.sigma_min
            assert sigmas[-1].item() == pytest.approx(last, rel=1e-12)


@each_training
def test_the_recommended_list_falls_to_0_and_depends_on_the_size(trained: Trained) -> None:
    model = wrap(trained)
    for steps in (1, 2, 3, 12, 100):
        sigmas = model.sigmas(steps, "recommended")
        assert sigmas.shape == (steps + 1,)
        assert (sigmas.diff() < 0.0).all()
        assert sigmas[0] == trained.training.sigma_at(trained.training.t_start)
        assert sigmas[-1] == 0.0
    assert (sigmas != model.sigmas(100, "recommended", positions=8 * 8)).any()


def test_a_script_gets_the_recommended_sampler() -> None:
    """Closer than DPM++ 2M on the list in log-SNR, from the same noise."""
    model = wrap(SCALED_LINEAR)
    settings: dict[str, Any] = {"schedule": model.schedule, "disable": True}
    x = state(model.sigmas(1)[0].item())
    solution = sample_multistep(model, x, model.sigmas(400), order=3, **settings)
    sigmas = model.sigmas(10, "recommended", positions=x[0, 0].numel())
    ours = difference(sample_recommended(model, x, sigmas, **settings), solution)
    assert ours < 0.5 * difference(
        sample_multistep(model, x, model.sigmas(10), order=2, **settings), solution
    )


# what the network is told


def test_numbers_and_integers() -> None:
    model = wrap(SCALED_LINEAR, integer_times=True)
    for sigma in model.sigmas(7)[:-1].tolist():
        model(start(), at(sigma))
    labels = torch.stack(model.network.labels)  # type: ignore[attr-defined]
    assert labels.dtype == torch.int64
    assert labels[0].tolist() == [999] * 3
    assert labels[-1].tolist() == [0] * 3
    between = wrap(SCALED_LINEAR)
    for sigma in between.sigmas(7)[:-1].tolist():
        between(start(), at(sigma))
    numbers = torch.stack(between.network.labels)  # type: ignore[attr-defined]
    assert numbers.dtype == torch.float64
    assert ((numbers % 1.0 > 0.5) & (numbers % 1.0 < 0.99)).any()  # rounded is not cut off
    assert labels.tolist() == numbers.round().tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_the_networks_and_the_rest_stays(dtype: torch.dtype) -> None:
    seen: list[torch.Tensor] = []

    def network(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.extend((z, t))
        return 0.5 * z

    model = NetworkDenoiser(network, DiscreteSchedule.linear(), dtype=dtype)
    for precision in (torch.float32, torch.float64, torch.float16):
        seen.clear()
        x, sigma = start().to(precision), at(2.0).to(precision)
        denoised = model(x, sigma)
        assert denoised.dtype == torch.promote_types(precision, torch.float32)
        assert [tensor.dtype for tensor in seen] == [dtype, torch.float32]
        # x0 = x - sigma * noise, with noise = 0.5 z = 0.5 x / sqrt(1 + sigma^2)
        expected = start() * (1.0 - 2.0 * 0.5 / math.sqrt(5.0))
        assert difference(denoised.double(), expected) <= 60 * 2 * torch.finfo(dtype).eps + 0.05 * (
            precision == torch.float16
        )


def test_a_network_in_higher_precision_changes_nothing() -> None:
    model = NetworkDenoiser(lambda z, t: z.double(), DiscreteSchedule.linear())
    assert model(start().float(), at(2.0).float()).dtype == torch.float32


def test_extra_args_reach_the_network_and_the_seed_does_not() -> None:
    got: dict[str, Any] = {}

    def network(z: torch.Tensor, t: torch.Tensor, **extra_args: Any) -> torch.Tensor:
        got.update(extra_args)
        return z

    model = NetworkDenoiser(network, DiscreteSchedule.linear())
    extra_args = {"seed": 3, "control": "edges"}
    sample_multistep(model, start(), model.sigmas(2), extra_args, disable=True)
    assert got == {"control": "edges"}


# guidance


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 2.0, 7.5])
@each_prediction
def test_classifier_free_guidance_is_the_combination(prediction: str, guidance: float) -> None:
    for trained in (SCALED_LINEAR, TRAINED["flow"]):
        condition, nothing = rows(1.0, 0.4, -0.3), rows(0.0)
        guided = {"condition": condition, "unconditional": nothing, "guidance": guidance}
        model = wrap(trained, prediction, **guided)
        for sigma in (0.9, 0.3, 0.05):
            x = state(sigma)
            one = torch.cat(
                [
                    conditional(trained, weight)(x[i : i + 1], at(sigma, 1))
                    for i, weight in enumerate(condition.flatten().tolist())
                ]
            )
            none = conditional(trained, 0.0)(x, at(sigma))
            expected = none + guidance * (one - none)
            assert difference(model(x, at(sigma)), expected) <= TOLERANCE
            assert difference(model.last_unconditional(), none) <= TOLERANCE
        assert model.network.batches == [6] * 3  # type: ignore[attr-defined]


def test_guided_run_is_that_of_the_combination_in_as_many_calls() -> None:
    model = wrap(SCALED_LINEAR, condition=rows(1.0), unconditional=rows(0.0), guidance=3.0)

    def by_hand(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        one, none = conditional(SCALED_LINEAR, 1.0), conditional(SCALED_LINEAR, 0.0)
        return 3.0 * one(x, sigma) - 2.0 * none(x, sigma)

    sigmas = model.sigmas(12)
    result = sample_multistep(model, start(), sigmas, disable=True)
    assert difference(result, sample_multistep(by_hand, start(), sigmas, disable=True)) <= 1e-9
    assert model.network.batches == [6] * 12  # type: ignore[attr-defined]


def test_guidance_1_calls_the_condition_alone_unless_asked() -> None:
    guided: dict[str, Any] = {"condition": rows(1.0), "unconditional": rows(0.0)}
    model = wrap(SCALED_LINEAR, **guided)
    alone = model(start(), at(2.0))
    assert model.network.batches == [3]  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="keep_unconditional=True"):
        model.last_unconditional()
    keeping = wrap(SCALED_LINEAR, keep_unconditional=True, **guided)
    assert difference(keeping(start(), at(2.0)), alone) <= 1e-13
    assert keeping.network.batches == [6]  # type: ignore[attr-defined]
    expected = conditional(SCALED_LINEAR, 0.0)(start(), at(2.0))
    assert difference(keeping.last_unconditional(), expected) <= TOLERANCE
    keeping.keep_unconditional = False
    keeping(start(), at(2.0))
    with pytest.raises(RuntimeError, match="The last call made no unconditional"):
        keeping.last_unconditional()


def test_unguided_networks_are_their_own_unconditional() -> None:
    model = wrap(SCALED_LINEAR)
    with pytest.raises(RuntimeError, match="no unconditional prediction"):
        model.last_unconditional()
    assert torch.equal(model(start(), at(2.0)), model.last_unconditional())


def test_conditions_may_be_nested() -> None:
    seen: list[Any] = []

    def network(z: torch.Tensor, t: torch.Tensor, condition: Any) -> torch.Tensor:
        seen.append(condition)
        return z

    def condition(value: float) -> dict[str, Any]:
        tokens = torch.full((3, 7, 2), value)
        return {"tokens": tokens, "more": [rows(value), (rows(value, 8.0, 9.0), "text", None)]}

    model = NetworkDenoiser(
        network,
        DiscreteSchedule.linear(),
        condition=condition(1.0),
        unconditional=condition(0.0),
        guidance=2.0,
    )
    model(start(), at(1.0))
    assert list(seen[0]) == ["tokens", "more"]
    assert seen[0]["tokens"][:, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    one, (each, text, none) = seen[0]["more"]
    assert one.flatten().tolist() == [0, 0, 0, 1, 1, 1]
    assert each.flatten().tolist() == [0, 8, 9, 1, 8, 9]
    assert (text, none) == ("text", None)


def log_prob(z: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """log p(condition | z) up to a constant, and weaker at a larger time."""
    distance = (z - condition).flatten(1).square().sum(1)
    return -0.01 * distance - t * z.flatten(1).sum(1) * 1e-5


def log_prob_gradient(z: torch.Tensor, t: float, condition: torch.Tensor) -> torch.Tensor:
    return -0.02 * (z - condition) - 1e-5 * t


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@each_prediction
def test_classifier_guidance_is_its_gradient(prediction: str, inference: bool) -> None:
    for trained in (SCALED_LINEAR, TRAINED["continuous linear"], TRAINED["flow"]):
        for sigma in (0.9, 0.3, 0.05):
            # The authors' noise + std * scale * gradient in their state, in terms of x0.
            alpha = 1.0 - sigma if trained.flow else 1.0 / math.hypot(1.0, sigma)
            std = sigma if trained.flow else alpha * sigma
            with torch.inference_mode(inference), torch.no_grad():
                wanted = rows(0.5).reshape(1, 1, 1, 1) + 0.0  # made in the sampler's mode
                model = wrap(
                    trained, prediction, classifier=log_prob, condition=wanted, guidance=4.0
                )
                x = state(sigma) + 0.0
                denoised = model(x, at(sigma))
            z = x if trained.flow else alpha * x
            t = model.network.labels[0][0].item()  # type: ignore[attr-defined]
            gradient = log_prob_gradient(z, t, wanted)
            plain = exact(trained)(x, at(sigma))
            noise = (z - alpha * plain) / std - 4.0 * std * gradient
            assert difference(denoised, (z - std * noise) / alpha) <= TOLERANCE
            assert difference(model.last_unconditional(), plain) <= TOLERANCE
            assert model.network.batches == [3]  # type: ignore[attr-defined]
            assert not denoised.requires_grad


def test_the_right_classifier_gives_the_posterior() -> None:
    """Of one Gaussian N(0, s^2) and an observation y = x0 + noise, every number is known."""
    spread, error, sigma = 0.3**2, 0.2**2, 0.7
    assert component_std() ** 2 == pytest.approx(spread)
    alpha = 1.0 / math.hypot(1.0, sigma)
    std = alpha * sigma
    gain = alpha * spread / (alpha**2 * spread + std**2)
    rest = spread - gain * alpha * spread

    def classifier(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -(y - gain * z).square().flatten(1).sum(1) / (2.0 * (rest + error))

    y = tensors()["means"][:1].reshape(1, 4, 4, 4)
    model = NetworkDenoiser(
        lambda z, t: gain * z,
        DiscreteSchedule.linear(),
        prediction="x0",
        classifier=classifier,
        condition=y,
    )
    x = state(sigma)
    mean = gain * alpha * x
    expected = mean + rest / (rest + error) * (y - mean)
    assert difference(model(x, at(sigma)), expected) <= 1e-12


def test_classifier_guides_nothing_at_a_flows_1() -> None:
    trained = Trained(FlowSchedule(), TRAINED["flow"].alpha, TRAINED["flow"].std, 1000.0)
    guided: dict[str, Any] = {"classifier": log_prob, "condition": torch.zeros(1, 1, 1, 1)}
    model = wrap(trained, "flow", **guided, guidance=5.0)
    assert torch.equal(model(start(), at(1.0)), wrap(trained, "flow")(start(), at(1.0)))


# where to start


def test_noise_of_an_image_depends_on_the_seed_and_its_place_alone() -> None:
    model = wrap(SCALED_LINEAR)
    batch = model.noise((4, 3, 8, 8), seed=7)
    assert batch.dtype == torch.float32
    assert torch.equal(batch[:2], model.noise((2, 3, 8, 8), seed=7))
    assert not torch.equal(batch[0], batch[1])
    assert torch.equal(batch[1:], model.noise((3, 3, 8, 8), seed=8))
    double = model.noise((4, 3, 8, 8), seed=7, dtype=torch.float64)
    assert difference(double.float(), batch) <= 1e-5
    many = model.noise((1, 1, 200, 200), seed=0)
    assert many.std().item() == pytest.approx(model.sigmas(5)[0].item(), rel=0.02)
    assert model.noise((1, 1, 200, 200), seed=0, sigma=2.0).std().item() == pytest.approx(
        2.0, rel=0.02
    )


# mistakes


def network(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return z


LINEAR = DiscreteSchedule.linear()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"training": "linear"}, "training must be a training schedule"),
        ({"prediction": "epsilon"}, "noise, x0, v, score, flow, not 'epsilon'"),
        ({"guidance": math.nan, "condition": 1, "unconditional": 0}, "guidance must be a finite"),
        ({"time_scale": 0.0}, "time_scale must be a number above 0, not 0.0"),
        ({"dtype": torch.int64}, "dtype must be a floating-point one"),
        ({"classifier": network, "condition": 1, "unconditional": 0}, "two ways of guidance"),
        ({"unconditional": 0}, "given without condition"),
        ({"guidance": 7.5}, "guidance = 7.5 has nothing to guide with"),
        ({"guidance": 7.5, "condition": 1}, "guidance = 7.5 has nothing to guide with"),
        ({"keep_unconditional": True, "condition": 1}, "keep_unconditional needs"),
        ({"training": FlowSchedule()}, "'noise' does not determine x0 at sigma = 1"),
        ({"training": FlowSchedule(), "prediction": "score"}, "t_start below 1"),
    ],
)
def test_settings_that_do_not_fit_are_said_in_one_sentence(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        NetworkDenoiser(network, **{"training": LINEAR} | arguments)
    assert str(error.value).count(". ") == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiscreteSchedule.from_betas([0.1]), "at least two levels"),
        (lambda: DiscreteSchedule.from_betas(torch.full((2, 3), 0.1)), r"of shape \(2, 3\)"),
        (lambda: DiscreteSchedule.from_betas([0.1, 0.0, 0.2]), "between 0 and 1"),
        (lambda: DiscreteSchedule.from_betas([0.1, math.nan]), "between 0 and 1"),
        (lambda: DiscreteSchedule.from_betas([]), "at least two levels"),
        (lambda: DiscreteSchedule.from_alphas_cumprod(LINEAR_BETAS), "must fall all the way"),
        (lambda: DiscreteSchedule.from_alphas_cumprod([0.9, 0.5, -0.1]), "must fall all the way"),
        (lambda: DiscreteSchedule.from_alphas_cumprod([1.0, 0.5]), "must fall all the way"),
        (lambda: DiscreteSchedule.from_alphas_cumprod([1e-6, 1e-7]), "Fewer than two levels"),
        (lambda: ContinuousLinear(t_end=0.0), "0 < t_end < t_start <= 1"),
        (lambda: ContinuousLinear(beta_0=3.0, beta_1=2.0), "beta_0 must be at least 0"),
        (lambda: ContinuousCosine(t_start=1.0), "its sigma is infinite"),
        (lambda: ContinuousCosine(s=-1.0), "s of ContinuousCosine"),
        (lambda: FlowSchedule(shift=0.0), "shift of FlowSchedule"),
        (lambda: NetworkDenoiser(network, LINEAR).sigmas(0), "at least 1, not 0"),
        (lambda: NetworkDenoiser(network, LINEAR).sigmas(5, "karras"), "recommended, not"),
    ],
)
def test_schedules_that_cannot_be_are_said_in_one_sentence(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert str(error.value).count(". ") == 0


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda z, t: (z,), r"returned tuple, not a tensor.*\.sample"),
        (lambda z, t: torch.cat([z, z], 1), r"\(3, 8, 4, 4\) for inputs of shape \(3, 4, 4, 4\)"),
    ],
)
def test_outputs_of_the_wrong_kind(output: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkDenoiser(output, LINEAR)(start(), at(1.0))


@pytest.mark.parametrize(
    "classifier",
    [lambda z, t, c: z.sum(), lambda z, t, c: z.detach().flatten(1).sum(1)],
    ids=["one number", "no gradient"],
)
def test_classifiers_of_the_wrong_kind(classifier: Callable[..., torch.Tensor]) -> None:
    model = NetworkDenoiser(network, LINEAR, classifier=classifier)
    with pytest.raises(ValueError, match="log probabilities of shape"):
        model(start(), at(1.0))


@pytest.mark.parametrize(
    ("condition", "nothing", "message"),
    [
        (torch.zeros(2, 5), torch.zeros(2, 5), "beside a batch of 3"),
        (torch.tensor(1.0), torch.tensor(0.0), "beside a batch of 3"),
        (torch.zeros(1, 77, 4), torch.zeros(1, 154, 4), "only the first number may differ"),
        ({"a": torch.zeros(1, 2)}, {"b": torch.zeros(1, 2)}, "built differently"),
        ([torch.zeros(1, 2)], [], "built differently"),
        (torch.zeros(1, 2), None, "built differently"),
        ({"text": "a"}, {"text": "b"}, "built differently"),
    ],
)
def test_conditions_that_do_not_fit(condition: Any, nothing: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        join((nothing, condition), 3)


# a real network


@pytest.mark.slow
def test_a_real_unet_end_to_end() -> None:
    from diffusers import UNet2DModel  # takes many seconds, which the other tests need not wait for

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=4,
    ).eval()

    def predict(z: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return unet(z, t, class_labels=label).sample

    alphas_cumprod = DDPMScheduler(1000).alphas_cumprod
    model = NetworkDenoiser(
        predict,
        DiscreteSchedule.from_alphas_cumprod(alphas_cumprod),
        condition=torch.tensor([1, 2]),
        unconditional=torch.tensor([0]),
        guidance=2.0,
        integer_times=True,
    )
    x = model.noise((2, 3, 8, 8), seed=0)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            images = sample_multistep(
                model, x, model.sigmas(5), schedule=model.schedule, disable=True
            )
        assert images.shape == x.shape
        assert images.isfinite().all()
    # The first call, by hand, in the network's own terms.
    sigma = model.sigmas(5)[0].item()
    alpha = alphas_cumprod[999].sqrt().item()
    std = (1.0 - alpha**2) ** 0.5
    z = alpha * x
    with torch.no_grad():
        denoised = model(x, x.new_full((2,), sigma))
        one, none = (predict(z, torch.tensor(999), torch.tensor(c)) for c in ([1, 2], [0, 0]))
    noise = none + 2.0 * (one - none)
    assert difference(denoised, (z - std * noise) / alpha) <= 2e-4
    assert denoised.std() > 1.0
