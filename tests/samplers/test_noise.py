"""The default noise: a Brownian path in the log-SNR for each image, fixed by its seed alone."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torchsde import BrownianInterval

from dpm_solver_nodes.benchmarks.overhead import Alive
from dpm_solver_nodes.samplers import (
    NoiseSchedule,
    RectifiedFlow,
    VarianceExploding,
    sample_multistep,
    sample_singlestep,
)
from dpm_solver_nodes.samplers.noise import RESOLUTION, BrownianNoise
from dpm_solver_nodes.samplers.schedules.sigma_lists import log_snr
from dpm_solver_nodes.tests.support.mixture import Sampler, difference

VE, FLOW = VarianceExploding(), RectifiedFlow()
SIGMAS = (10.0, 4.0, 1.0, 0.5, 0.1)
PLAIN: dict[str, Sampler] = {
    "multistep": partial(sample_multistep, disable=True, eta=1.0),
    "singlestep": partial(sample_singlestep, disable=True, eta=1.0),
}
FLOAT32 = 8 * torch.finfo(torch.float32).eps  # of a sum of some increments of about 1
NUMBERS = 20_000

either = pytest.mark.parametrize("sampler", PLAIN.values(), ids=PLAIN)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def noise_of(
    seed: Any,
    shape: tuple[int, ...] = (1, 64),
    schedule: NoiseSchedule = VE,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> BrownianNoise:
    return BrownianNoise(torch.zeros(shape, dtype=dtype), schedule, seed, **settings)


def increment(noise: BrownianNoise, sigma: float, sigma_next: float) -> torch.Tensor:
    """What the path does in between, of which the noise is the normalised form."""
    time = RESOLUTION * abs(noise.time(sigma_next) - noise.time(sigma))
    return noise(sigma, sigma_next) * math.sqrt(time)


@cache
def large(seed: int) -> torch.Tensor:
    """The noise of some intervals that follow each other, one row each."""
    noise = noise_of(seed, (1, NUMBERS))
    return torch.cat([noise(a, b) for a, b in itertools.pairwise(SIGMAS)])


def model(x: torch.Tensor, sigma: torch.Tensor, seed: Any = None) -> torch.Tensor:
    return 0.5 * torch.tanh(x)


def sampled(sampler: Sampler, seed: Any, x: torch.Tensor, **settings: Any) -> torch.Tensor:
    return sampler(model, x, SIGMAS, {"seed": seed}, **settings)


# a path per image


@either
@pytest.mark.parametrize("batch", [2, 5])
def test_an_images_noise_does_not_depend_on_the_size_of_the_batch(
    batch: int, sampler: Sampler
) -> None:
    x = torch.full((batch, 3, 4), 10.0)
    together = sampled(sampler, 7, x)
    fewer = sampled(sampler, 7, x[: batch - 1])
    assert torch.equal(together[:-1], fewer)
    assert len({image.sum().item() for image in together}) == batch


@either
def test_image_k_of_a_list_of_seeds_is_the_single_image_of_its_seed(sampler: Sampler) -> None:
    seeds = [3, 2**64 - 1, 3]
    x = torch.full((3, 4, 4), 10.0)
    together = sampled(sampler, seeds, x)
    for k, seed in enumerate(seeds):
        assert torch.equal(together[k : k + 1], sampled(sampler, seed, x[:1]))
    assert torch.equal(together, sampled(sampler, tuple(seeds), x))


@pytest.mark.parametrize("seeds", [[], [1], [1, 2, 3]])
@either
def test_a_list_of_seeds_has_one_for_each_image(sampler: Sampler, seeds: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"^seed holds {len(seeds)} .* 2 images: "):
        sampled(sampler, seeds, torch.ones(2, 4))


def test_images_of_neighbouring_seeds_are_all_different() -> None:
    # as they would not be if image k had the seed of the first plus k
    noises = [image for seed in range(4) for image in noise_of(seed, (4, 64))(4.0, 1.0)]
    assert all(difference(a, b) > 1.0 for a, b in itertools.combinations(noises, 2))


# a Brownian path


@pytest.mark.parametrize("schedule", [VE, FLOW], ids=["ve", "flow"])
def test_the_same_seed_is_the_same_path_at_any_number_of_steps(schedule: NoiseSchedule) -> None:
    ends = (0.99, 0.01)
    whole = increment(noise_of(5, schedule=schedule), *ends)
    for steps in (2, 3, 7, 30):
        noise = noise_of(5, schedule=schedule)
        pairs = itertools.pairwise(log_snr(schedule, *ends, steps))
        total = torch.stack([increment(noise, a, b) for a, b in pairs]).sum(0)
        assert difference(total, whole) < FLOAT32
        assert difference(total, increment(noise_of(6, schedule=schedule), *ends)) > 0.01


@pytest.mark.parametrize("seeds", [7, [7, 2**64 - 1]], ids=["one", "one each"])
def test_the_paths_are_those_of_torchsde(seeds: Any) -> None:
    """Version 1.0 drew them with it, so that images keep their noise."""
    noise, shape = noise_of(seeds, (2, 3, 5)), (3, 5)
    words = [7, 7 | 1 << 64] if seeds == 7 else seeds
    paths = [
        BrownianInterval(
            -1.0,
            1.0,
            size=shape,
            dtype=torch.float32,
            entropy=entropy,
            tol=RESOLUTION,
            halfway_tree=True,
        )
        for entropy in words
    ]
    sigmas = [1e9, *np.geomspace(80.0, 1e-3, 12).tolist(), 1e-3 * (1.0 - 1e-5), 1e-9, 0.0]
    for sigma, sigma_next in itertools.combinations(sigmas, 2):
        start, end = noise.time(sigma), noise.time(sigma_next)
        if start == end:
            continue
        drawn = torch.stack([path(start * RESOLUTION, end * RESOLUTION) for path in paths])
        expected = drawn / math.sqrt((end - start) * RESOLUTION)
        # Of a short interval what is left of its parent's increment, and of the rounding in that.
        assert difference(noise(sigma, sigma_next), expected) < 16 * FLOAT32 / math.sqrt(
            (end - start) * RESOLUTION
        )


def test_the_path_does_not_depend_on_the_order_of_queries() -> None:
    pairs = list(itertools.pairwise(SIGMAS))
    forwards, backwards = noise_of(5), noise_of(5)
    there = {pair: forwards(*pair) for pair in pairs}
    back = {pair: backwards(*pair) for pair in reversed(pairs)}
    assert all(torch.equal(there[pair], back[pair]) for pair in pairs)
    assert torch.equal(forwards(*pairs[0]), there[pairs[0]])


def test_both_schedules_see_the_same_path_at_the_same_log_snr() -> None:
    flow, ve = noise_of(5, schedule=FLOW), noise_of(5)
    assert difference(flow(0.8, 0.5), ve(4.0, 1.0)) < FLOAT32


def test_backwards_the_noise_is_the_opposite() -> None:
    noise = noise_of(5)
    assert torch.equal(noise(1.0, 4.0), -noise(4.0, 1.0))


@pytest.mark.parametrize(
    ("sigma", "sigma_next"), [(1e4, 1e-3), (14.6, 9.0), (1.0, 0.9999), (0.03, 0.0)]
)
def test_noise_has_unit_variance_and_no_mean(sigma: float, sigma_next: float) -> None:
    noise = noise_of(1, (1, NUMBERS))(sigma, sigma_next)
    bound = 5.0 / math.sqrt(NUMBERS)
    assert abs(noise.mean().item()) < bound
    assert abs(noise.square().mean().item() - 1.0) < bound * math.sqrt(2.0)
    assert abs(noise.pow(4).mean().item() - 3.0) < bound * math.sqrt(96.0)


def test_noise_of_intervals_apart_of_images_and_of_seeds_is_independent() -> None:
    images = noise_of(1, (3, NUMBERS))(*SIGMAS[:2])
    rows = torch.cat([large(1), large(2), images[1:], noise_of(-1, (1, NUMBERS))(*SIGMAS[:2])])
    correlations = rows.corrcoef() - torch.eye(len(rows))
    assert correlations.abs().max().item() < 5.0 / math.sqrt(NUMBERS)


# seeds


def test_seeds_are_64_bits_of_which_negative_ones_wrap() -> None:
    query = (4.0, 1.0)
    seeds = (0, 1, 2**31, 2**32, 2**32 + 1, 2**63, 2**64 - 1)
    noises = [noise_of(seed)(*query) for seed in seeds]
    assert all(difference(a, b) > 1.0 for a, b in itertools.combinations(noises, 2))
    assert torch.equal(noise_of(-1)(*query), noises[-1])
    assert torch.equal(noise_of(2**64 + 1)(*query), noises[1])


@pytest.mark.parametrize("kind", [np.int64, np.uint64, torch.tensor])
def test_a_seed_may_be_any_kind_of_whole_number(kind: Callable[[int], Any]) -> None:
    assert torch.equal(noise_of(kind(12))(4.0, 1.0), noise_of(12)(4.0, 1.0))


@either
@pytest.mark.parametrize("extra_args", [None, {}, {"seed": None}])
def test_without_a_seed_noise_follows_torchs_own(
    extra_args: dict[str, Any] | None, sampler: Sampler
) -> None:
    def run(manual_seed: int) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(manual_seed)
            return sampler(model, torch.ones(2, 4), SIGMAS, extra_args)

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))
    with torch.random.fork_rng():  # and runs after each other differ
        torch.manual_seed(3)
        first = sampler(model, torch.ones(2, 4), SIGMAS, extra_args)
        assert not torch.equal(first, sampler(model, torch.ones(2, 4), SIGMAS, extra_args))


@either
def test_a_seed_leaves_torchs_own_generator_alone(sampler: Sampler) -> None:
    before = torch.get_rng_state()
    sampled(sampler, 3, torch.ones(2, 4))
    assert torch.equal(torch.get_rng_state(), before)


# the ends of the interval


EXTREMES = {
    VE: (1e30, 1e5, 1e5 - 1e-3, 14.6, 1.0, 1.0 - 1e-9, 1.0 - 2e-9, 1e-8, 1e-30, 0.0),
    FLOW: (1.0, 1.0 - 1e-9, 1.0 - 1e-5, 0.999, 0.5, 0.5 - 1e-12, 1e-8, 1e-30, 0.0),
}


@pytest.mark.parametrize("schedule", EXTREMES, ids=["ve", "flow"])
@pytest.mark.parametrize("rising", [False, True])
def test_any_interval_has_noise_of_unit_variance_without_a_warning(
    rising: bool, schedule: NoiseSchedule
) -> None:
    noise = noise_of(1, (1, 2000), schedule)
    sigmas = EXTREMES[schedule][:: -1 if rising else 1]
    for sigma, sigma_next in itertools.combinations_with_replacement(sigmas, 2):
        drawn = noise(sigma, sigma_next)
        bound = 5.0 * math.sqrt(2.0 / 2000)
        assert abs(drawn.square().mean().item() - 1.0) < bound, (sigma, sigma_next)


@either
def test_extreme_sigmas_are_sampled_without_a_warning(sampler: Sampler) -> None:
    for schedule, x in ((VE, 1e5), (FLOW, 1.0)):
        sigmas = [sigma for sigma in EXTREMES[schedule] if not 0.0 < sigma < 1e-9 and sigma < 1e9]
        result = sampler(model, torch.full((1, 8), x), sigmas, {"seed": 1}, schedule=schedule)
        assert result.isfinite().all()


# shapes, precisions, devices


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 4), (2, 4, 3, 3), (2, 4, 2, 3, 3)], ids=len)
@either
def test_latents_of_any_rank_have_noise(shape: tuple[int, ...], sampler: Sampler) -> None:
    result = sampled(sampler, 1, torch.ones(shape))
    assert result.shape == shape
    without = sampled(sampler, 1, torch.ones(shape), s_noise=0.0)
    assert (result != without).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_path_is_the_same_in_every_precision(dtype: torch.dtype) -> None:
    noise = noise_of(1, dtype=dtype)(4.0, 1.0)
    assert noise.dtype == dtype
    assert torch.equal(noise, noise_of(1)(4.0, 1.0).to(dtype))


@pytest.mark.parametrize(("option", "device"), [("cpu", "cpu"), ("gpu", "meta")])
def test_the_device_option_says_where_noise_is_drawn(option: Any, device: str) -> None:
    noise = BrownianNoise(torch.zeros(2, 4, device="meta"), VE, 1, option)
    assert noise.drawn_on == torch.device(device)


@either
def test_where_x_is_on_the_cpu_both_options_are_one(sampler: Sampler) -> None:
    x = torch.ones(2, 4)
    assert torch.equal(sampled(sampler, 1, x, noise_device="gpu"), sampled(sampler, 1, x))


@either
def test_noise_never_waits_for_the_device(sampler: Sampler) -> None:
    # the meta device refuses whatever would
    x = torch.empty(2, 4, device="meta")
    assert sampled(sampler, 1, x).device.type == "meta"


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")


@cuda
def test_cpu_and_gpu_have_the_same_noise() -> None:
    x = torch.zeros(2, 4, 8, 8)
    on_gpu = BrownianNoise(x.cuda(), VE, 3)(4.0, 1.0)
    assert on_gpu.device.type == "cuda"
    assert torch.equal(on_gpu.cpu(), BrownianNoise(x, VE, 3)(4.0, 1.0))


@cuda
def test_noise_drawn_on_the_gpu_is_a_path_of_its_own() -> None:
    x = torch.zeros(2, NUMBERS, device="cuda")
    noise = BrownianNoise(x, VE, 3, "gpu")(4.0, 1.0)
    assert noise.device.type == "cuda"
    assert torch.equal(noise, BrownianNoise(x, VE, 3, "gpu")(4.0, 1.0))
    assert torch.equal(noise[:1], BrownianNoise(x[:1], VE, 3, "gpu")(4.0, 1.0))
    assert not torch.equal(noise, BrownianNoise(x, VE, 3)(4.0, 1.0))
    assert abs(noise.square().mean().item() - 1.0) < 5.0 / math.sqrt(NUMBERS)


# memory


@pytest.mark.parametrize("batch", [1, 6])
def test_no_latents_are_kept_and_few_are_made(batch: int) -> None:
    x = torch.zeros(batch, 4, 32, 32)
    noise = BrownianNoise(x, VE, 3)
    for pair in itertools.pairwise(np.geomspace(80.0, 1e-3, 30).tolist()):
        with Alive() as alive:
            drawn = noise(*pair)
            assert alive.now() == x.nbytes == drawn.nbytes
            assert alive.peak <= x.nbytes + 4 * x[0].nbytes
            del drawn
            assert alive.now() == 0


# a noise sampler of the caller's, and none


@either
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_callers_noise_sampler_gets_scalars_like_x(device: str, sampler: Sampler) -> None:
    x = torch.ones(2, 4, dtype=torch.float64, device=device)
    seen: list[torch.Tensor] = []

    def noise_sampler(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        seen.extend((sigma, sigma_next))
        return torch.zeros_like(x)

    sampler(model, x, SIGMAS, noise_sampler=noise_sampler)
    assert len(seen) == 2 * (len(SIGMAS) - 1)
    for sigma in seen:
        assert (sigma.shape, sigma.dtype, sigma.device) == ((), x.dtype, x.device)
