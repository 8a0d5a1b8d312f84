"""The demo's emoji model without ComfyUI: its file, its two predictions, and what it draws."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch

from dpm_solver_nodes.demo import emoji, network, recognise

SIZE_LIMIT = 10_000_000
PER_CLASS = 10


Model = TypeVar("Model", bound=torch.nn.Module)


def trained(model: Model) -> Model:
    model.load_state_dict(network.read_weights(emoji.WEIGHTS))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def noise_model() -> emoji.NoisePrediction:
    return trained(emoji.NoisePrediction())


@pytest.fixture(scope="module")
def flow_model() -> emoji.FlowPrediction:
    return trained(emoji.FlowPrediction())


def test_the_file_is_small_and_says_where_it_comes_from() -> None:
    assert emoji.WEIGHTS.stat().st_size <= SIZE_LIMIT
    metadata = network.read_metadata(emoji.WEIGHTS)
    assert "emoji-datasource-google 16.0.0" in metadata["data"]
    assert "Apache License 2.0" in metadata["data_licence"]
    assert "CC BY 4.0" in metadata["data_licence"]


def test_signal_and_noise_are_those_of_s() -> None:
    s = torch.tensor([0.0, 0.03, 1.0, 15.0, torch.inf])
    alpha, sigma = (scale.flatten() for scale in emoji.signal_and_noise(s.log()))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(5))
    torch.testing.assert_close((sigma / alpha)[1:4], s[1:4])
    assert (alpha[0], sigma[0], alpha[4], sigma[4]) == (1.0, 0.0, 0.0, 1.0)


def test_both_predictions_see_the_same_picture(
    noise_model: emoji.NoisePrediction, flow_model: emoji.FlowPrediction
) -> None:
    """At the same noise over signal, from its own scale of the input, each gives the same x0."""
    times = torch.tensor([5, 300, 700, 999])
    s = network.schedule_sigmas()[times].float()[:, None, None, None]
    z = torch.randn(4, 3, 32, 32) * (1.0 + s)
    context = emoji.class_context([0, 3, 5, None])
    from_noise = z - s * noise_model(z / (s**2 + 1.0).sqrt(), times, context)
    t = s / (1.0 + s)
    x = (1.0 - t) * z
    from_flow = x - t * flow_model(x, 1000.0 * t.flatten(), context)
    torch.testing.assert_close(from_noise, from_flow, rtol=1e-3, atol=2e-3)


def test_a_flow_starts_from_pure_noise(flow_model: emoji.FlowPrediction) -> None:
    noise, context = torch.randn(2, 3, 32, 32), emoji.class_context([1, 2])
    start = flow_model(noise, torch.tensor([1000.0, 1000.0]), context)
    near = flow_model(noise, torch.tensor([999.9, 999.9]), context)
    assert start.isfinite().all()
    torch.testing.assert_close(start, near, rtol=0.0, atol=0.05)


def test_no_class_is_a_row_of_zeros(flow_model: emoji.FlowPrediction) -> None:
    x, times = torch.randn(2, 3, 32, 32), torch.tensor([600.0, 600.0])
    none = flow_model(x, times, emoji.class_context([None, None]))
    torch.testing.assert_close(flow_model(x, times), none)
    asked = flow_model(x, times, emoji.class_context([0, None]))
    assert not torch.allclose(asked[0], none[0], atol=1e-3)
    torch.testing.assert_close(asked[1], none[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "context_shape", "message"),
    [
        ((1, 4, 32, 32), None, "shape .batch, 3, height, width."),
        ((1, 3, 33, 32), None, "multiples of 32 pixels"),
        ((1, 3, 32, 32), (1, 77, 768), "DPM-Solver Demo Emoji node"),
    ],
)
def test_wrong_inputs_are_told_in_one_sentence(
    flow_model: emoji.FlowPrediction,
    shape: tuple[int, ...],
    context_shape: tuple[int, ...] | None,
    message: str,
) -> None:
    context = None if context_shape is None else torch.zeros(context_shape)
    with pytest.raises(ValueError, match=message):
        flow_model(torch.zeros(shape), torch.tensor([1.0]), context)


def test_a_classifier_of_real_emoji_reads_what_was_asked_for() -> None:
    shares = recognise.read(recognise.load_classifier(), emoji.load(), PER_CLASS)
    print(f"{shares.mean():.0%} of the drawings read as asked for")  # pytest -s
    assert shares.mean() >= 0.9, dict(zip(emoji.CLASSES, shares.tolist(), strict=True))
