"""A checkpoint file in Stable Diffusion 1.5's format with random weights.

The text encoder and the VAE have SD 1.5's full shapes; the UNet is reduced to two levels of 320
channels with one residual block each, which the host still takes for SD 1.5.  About 450 MB, made
once and kept in the cache folder.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dpm_solver_nodes.tools.server import cached

SEED = 151
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def checkpoint() -> Path:
    """The file's path; written at the first call."""
    return cached(f"sd15-random-{SEED}.safetensors", _write)


def _write(path: Path) -> None:
    shapes = [*_prefixed("model.diffusion_model.", unet())]
    shapes += _prefixed("cond_stage_model.transformer.text_model.", clip())
    shapes += _prefixed("first_stage_model.", vae())
    header, end = {}, 0
    for key, shape in shapes:
        begin, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": (begin, end)}
    head = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for index, (key, shape) in enumerate(shapes):
            file.write(_values(index, key, shape).astype(np.float16).tobytes())


def _values(index: int, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Scales that keep activations near one: 1 / sqrt(fan in), norms one, biases zero."""
    if len(shape) == 1:
        return np.full(shape, float(key.endswith(".weight")))
    scale = 0.02 if "embedding" in key else math.prod(shape[1:]) ** -0.5
    if key.endswith("diffusion_model.out.2.weight"):
        scale /= 10  # predicted noise well below one, whatever the guidance makes of it
    noise = np.random.default_rng([SEED, index]).standard_normal(shape, dtype=np.float32)
    return noise * np.float32(scale)


# --- shapes --------------------------------------------------------------------------------------


def _prefixed(prefix: str, shapes: Shapes) -> Shapes:
    for key, shape in shapes:
        yield prefix + key, shape


def _layer(name: str, *shape: int, bias: bool = True) -> Shapes:
    """A linear layer (out, in), a convolution (out, in, k, k) or a norm (channels,)."""
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def unet(channels: int = 320, context: int = 768) -> Shapes:
    emb = 4 * channels
    yield from _layer("time_embed.0", emb, channels)
    yield from _layer("time_embed.2", emb, emb)
    yield from _layer("input_blocks.0.0", channels, 4, 3, 3)
    blocks = ["input_blocks.1", "input_blocks.3", "middle_block"]
    blocks += [f"output_blocks.{i}" for i in range(4)]
    for block in blocks:
        wide = 2 * channels if block.startswith("output") else channels  # with the skip's channels
        yield from _prefixed(f"{block}.0.", _unet_residual(wide, channels, emb))
        yield from _prefixed(f"{block}.1.", _unet_transformer(channels, context))
    yield from _prefixed("middle_block.2.", _unet_residual(channels, channels, emb))
    yield from _layer("input_blocks.2.0.op", channels, channels, 3, 3)  # down
    yield from _layer("output_blocks.1.2.conv", channels, channels, 3, 3)  # up
    yield from _layer("out.0", channels)
    yield from _layer("out.2", 4, channels, 3, 3)


def _unet_residual(wide: int, channels: int, emb: int) -> Shapes:
    yield from _layer("in_layers.0", wide)
    yield from _layer("in_layers.2", channels, wide, 3, 3)
    yield from _layer("emb_layers.1", channels, emb)
    yield from _layer("out_layers.0", channels)
    yield from _layer("out_layers.3", channels, channels, 3, 3)
    if wide != channels:
        yield from _layer("skip_connection", channels, wide, 1, 1)


def _unet_transformer(channels: int, context: int) -> Shapes:
    yield from _layer("norm", channels)
    yield from _layer("proj_in", channels, channels, 1, 1)
    yield from _layer("proj_out", channels, channels, 1, 1)
    block = "transformer_blocks.0"
    for attention, source in (("attn1", channels), ("attn2", context)):
        yield from _layer(f"{block}.{attention}.to_q", channels, channels, bias=False)
        yield from _layer(f"{block}.{attention}.to_k", channels, source, bias=False)
        yield from _layer(f"{block}.{attention}.to_v", channels, source, bias=False)
        yield from _layer(f"{block}.{attention}.to_out.0", channels, channels)
    yield from _layer(f"{block}.ff.net.0.proj", 8 * channels, channels)
    yield from _layer(f"{block}.ff.net.2", channels, 4 * channels)
    for i in (1, 2, 3):
        yield from _layer(f"{block}.norm{i}", channels)


def clip(width: int = 768, layers: int = 12) -> Shapes:
    yield "embeddings.token_embedding.weight", (49408, width)
    yield "embeddings.position_embedding.weight", (77, width)
    for i in range(layers):
        layer = f"encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _layer(f"{layer}.self_attn.{name}", width, width)
        yield from _layer(f"{layer}.mlp.fc1", 4 * width, width)
        yield from _layer(f"{layer}.mlp.fc2", width, 4 * width)
        yield from _layer(f"{layer}.layer_norm1", width)
        yield from _layer(f"{layer}.layer_norm2", width)
    yield from _layer("final_layer_norm", width)


def vae() -> Shapes:
    widths = (128, 256, 512, 512)
    yield from _layer("quant_conv", 8, 8, 1, 1)
    yield from _layer("post_quant_conv", 4, 4, 1, 1)
    yield from _layer("encoder.conv_in", 128, 3, 3, 3)
    yield from _layer("encoder.conv_out", 8, 512, 3, 3)
    yield from _layer("decoder.conv_in", 512, 4, 3, 3)
    yield from _layer("decoder.conv_out", 3, 128, 3, 3)
    yield from _layer("encoder.norm_out", 512)
    yield from _layer("decoder.norm_out", 128)
    for half in ("encoder", "decoder"):
        yield from _prefixed(f"{half}.mid.block_1.", _vae_residual(512, 512))
        yield from _prefixed(f"{half}.mid.block_2.", _vae_residual(512, 512))
        yield from _layer(f"{half}.mid.attn_1.norm", 512)
        for name in ("q", "k", "v", "proj_out"):
            yield from _layer(f"{half}.mid.attn_1.{name}", 512, 512, 1, 1)
    for level, width in enumerate(widths):
        below = widths[max(level - 1, 0)]
        above = widths[min(level + 1, 3)]
        for i in range(2):
            source = width if i else below
            yield from _prefixed(f"encoder.down.{level}.block.{i}.", _vae_residual(source, width))
        for i in range(3):
            source = width if i else above
            yield from _prefixed(f"decoder.up.{level}.block.{i}.", _vae_residual(source, width))
        if level < 3:
            yield from _layer(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
        if level > 0:
            yield from _layer(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)


def _vae_residual(source: int, width: int) -> Shapes:
    yield from _layer("norm1", source)
    yield from _layer("conv1", width, source, 3, 3)
    yield from _layer("norm2", width)
    yield from _layer("conv2", width, width, 3, 3)
    if source != width:
        yield from _layer("nin_shortcut", width, source, 1, 1)
