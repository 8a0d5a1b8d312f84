"""The demo's digit model without ComfyUI: its file, its parts, and what it draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dpm_solver_nodes.demo import network

SEED = 20
PER_CLASS = 20
CALLS = 20
CFG = 2.0
SIZE_LIMIT = 6_000_000


@pytest.fixture(scope="module")
def digits() -> network.DigitNetwork:
    return network.load()


def karras_sigmas(calls: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """``calls`` falling sigmas and a final zero, spaced as Karras et al. (2022), equation 5."""
    ramp = torch.linspace(0, 1, calls, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()


def test_the_file_is_small_and_says_where_it_comes_from() -> None:
    assert network.WEIGHTS.stat().st_size <= SIZE_LIMIT
    metadata = network.read_metadata()
    assert int(metadata["seed"]) >= 0
    assert int(metadata["steps"]) > 0
    assert "load_digits" in metadata["data"]
    assert "CC BY 4.0" in metadata["data_licence"]


def test_the_file_fits_the_network() -> None:
    weights = network.read_weights()
    expected = network.DigitNetwork().state_dict()
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_the_schedule_is_stable_diffusions() -> None:
    sigmas = network.schedule_sigmas()
    assert len(sigmas) == 1000
    assert sigmas[0].item() == pytest.approx(0.029167, rel=1e-4)
    assert sigmas[-1].item() == pytest.approx(14.614646, rel=1e-6)


def test_signal_and_noise_follow_the_schedule(digits: network.DigitNetwork) -> None:
    times = torch.tensor([0.0, 1.0, 500.0, 998.0, 999.0])
    signal, noise = digits.signal_and_noise(times)
    assert signal.shape == noise.shape == (5, 1, 1, 1)
    torch.testing.assert_close(signal**2 + noise**2, torch.ones_like(signal))
    expected = network.schedule_sigmas()[times.long()].float()
    torch.testing.assert_close((noise / signal).flatten(), expected, rtol=1e-5, atol=0.0)
    between = digits.signal_and_noise(torch.tensor([500.25]))
    assert signal[2] > between[0] > digits.signal_and_noise(torch.tensor([501.0]))[0]


def test_the_null_class_is_a_row_of_zeros(digits: network.DigitNetwork) -> None:
    context = network.class_context([7, None])
    assert context.shape == (2, 1, network.CLASSES)
    assert context[0].sum() == context[0, 0, 7] == 1
    assert not context[1].any()
    x, times = torch.randn(2, 1, 16, 16), torch.tensor([400, 400])
    none = network.class_context([None, None])
    torch.testing.assert_close(digits(x, times), digits(x, times, none))
    assert not torch.allclose(digits(x, times)[0], digits(x, times, context)[0], atol=1e-3)
    with pytest.raises(ValueError, match="from 0 to 9, not 10"):
        network.class_context([10])


def test_an_image_does_not_depend_on_its_batch(digits: network.DigitNetwork) -> None:
    x, times = torch.randn(4, 1, 16, 16), torch.tensor([0, 300, 700, 999])
    context = network.class_context([0, 1, 2, None])
    together = digits(x, times, context)
    for i in range(4):
        alone = digits(x[i : i + 1], times[i : i + 1], context[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "context_shape", "message"),
    [
        ((1, 4, 16, 16), None, "shape .batch, 1, height, width."),
        ((1, 1, 2, 16, 16), None, "shape .batch, 1, height, width."),
        ((1, 1, 17, 16), None, "multiples of 32 pixels"),
        ((1, 1, 16, 16), (1, 77, 768), "DPM-Solver Demo Digit node"),
    ],
)
def test_wrong_inputs_are_told_in_one_sentence(
    digits: network.DigitNetwork,
    shape: tuple[int, ...],
    context_shape: tuple[int, ...] | None,
    message: str,
) -> None:
    context = None if context_shape is None else torch.zeros(context_shape)
    with pytest.raises(ValueError, match=message):
        digits(torch.zeros(shape), torch.tensor([1]), context)


def test_a_classifier_of_real_digits_reads_what_was_asked_for(
    digits: network.DigitNetwork,
) -> None:
    sampling = pytest.importorskip("k_diffusion.sampling")
    datasets = pytest.importorskip("sklearn.datasets")
    svm = pytest.importorskip("sklearn.svm")

    labels = list(range(network.CLASSES)) * PER_CLASS
    calls = 0
    denoiser = network.Denoiser(digits, labels, cfg=CFG)

    def model(x: Tensor, sigma: Tensor, **extra: object) -> Tensor:
        nonlocal calls
        calls += 1
        return denoiser(x, sigma, **extra)

    schedule = network.schedule_sigmas()
    sigmas = karras_sigmas(CALLS, schedule[0].item(), schedule[-1].item())
    generator = torch.Generator().manual_seed(SEED)
    size = network.IMAGE_SIZE
    start = torch.randn(len(labels), 1, size, size, generator=generator) * sigmas[0]
    with torch.inference_mode():
        drawn = sampling.sample_dpmpp_2m(model, start, sigmas, disable=True)
    assert calls == CALLS

    pixels, classes = datasets.load_digits(return_X_y=True)
    classifier = svm.SVC(gamma=0.001).fit(pixels, classes)  # scikit-learn's own example
    # Back to the data's scale: 8x8 cells of 0 to 16.
    cells = ((functional.avg_pool2d(drawn, 2) + 1.0) * 8.0).clamp(0.0, 16.0)
    read = classifier.predict(cells.flatten(1).double().numpy())
    right = int((torch.from_numpy(read) == torch.tensor(labels)).sum())
    print(f"the classifier read {right} of {len(labels)} digits as asked for")  # pytest -s
    assert right >= 0.9 * len(labels), f"read {right} of {len(labels)} digits as asked for"
