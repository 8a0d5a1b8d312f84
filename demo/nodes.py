"""The demo's ComfyUI nodes: the models, what they draw, and latents from and to pictures."""

from __future__ import annotations

import torch
from comfy_api.latest import ComfyExtension, io
from torch.nn import functional

from . import emoji, network
from .emoji import class_context

CATEGORY = "sampling/DPM-Solver demo"


def parse_digits(text: str) -> list[int | None]:
    """The classes named by ``"7"``, ``"0, 1, 2"`` or nothing (``[None]``, no class)."""
    if not text.strip():
        return [None]
    labels: list[int | None] = []
    for part in text.split(","):
        name = part.strip()
        if name not in {str(digit) for digit in range(network.CLASSES)}:
            raise ValueError(
                f"'{name}' is not a digit: write one from 0 to 9, several with commas between "
                "them, or nothing for no class."
            )
        labels.append(int(name))
    return labels


def parse_emoji(text: str) -> list[int | None]:
    """The classes named by ``"cat"``, ``"cat, heart"`` or nothing (``[None]``, no class)."""
    if not text.strip():
        return [None]
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in emoji.CLASSES:
            raise ValueError(
                f"'{name}' is no emoji of this model: write one of {', '.join(emoji.CLASSES)}, "
                "several with commas between them, or nothing for no class."
            )
    return [emoji.CLASSES.index(name) for name in names]


class DemoModel(io.ComfyNode):
    """Loads the digit model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolverDemo_Model",
            display_name="DPM-Solver Demo Model",
            category=CATEGORY,
            description=(
                "A tiny diffusion model of handwritten digits, trained on scikit-learn's 1797 "
                "scans. It draws with every sampler in a second on a CPU, so samplers can be "
                "compared without a checkpoint. Use an Empty Latent Image of 128x128, "
                "DPM-Solver Demo Digit as positive and (left empty) as negative, and a cfg of "
                "about 2."
            ),
            inputs=[],
            outputs=[io.Model.Output(tooltip="The digit model, ready for any sampler.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from .model import load_model

        return io.NodeOutput(load_model("digits"))


class DemoDigit(io.ComfyNode):
    """Says which digit to draw."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolverDemo_Digit",
            display_name="DPM-Solver Demo Digit",
            category=CATEGORY,
            description=(
                "The digit that the demo model is to draw: the counterpart of a text prompt. "
                "Leave it empty for the negative side."
            ),
            inputs=[
                io.String.Input(
                    "digit",
                    default="3",
                    tooltip=(
                        "One digit from 0 to 9, or several with commas between them (0,1,2,3) to "
                        "give each image of the batch its own; a shorter list starts again from "
                        "its beginning. Empty: no digit in particular."
                    ),
                )
            ],
            outputs=[
                io.Conditioning.Output(tooltip="The digit, for the demo model's sampler only.")
            ],
        )

    @classmethod
    def execute(cls, digit: str) -> io.NodeOutput:
        # The class rows take the place of a text's embedding: the host's own machinery repeats
        # them over the batch and joins positive and negative into one call.
        return io.NodeOutput([[network.class_context(parse_digits(digit)), {}]])


class DemoEmojiModel(io.ComfyNode):
    """Loads the emoji model, as a flow or predicting noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolverDemo_EmojiModel",
            display_name="DPM-Solver Demo Emoji Model",
            category=CATEGORY,
            description=(
                "A small diffusion model of emoji in colour. It draws with every sampler in seconds "
                "on a CPU, so samplers can be compared without a checkpoint. Use an Empty Latent "
                "Image of 256x256, DPM-Solver Demo Emoji as positive and (left empty) as negative, "
                "and a cfg of about 3."
            ),
            inputs=[
                io.Combo.Input(
                    "process",
                    options=["flow", "noise"],
                    default="flow",
                    tooltip=(
                        "'flow': a flow model with shift 3, as SD3. 'noise': it predicts noise on "
                        "Stable Diffusion's schedule. The network is the same."
                    ),
                )
            ],
            outputs=[io.Model.Output(tooltip="The emoji model, ready for any sampler.")],
        )

    @classmethod
    def execute(cls, process: str) -> io.NodeOutput:
        from .model import load_model

        return io.NodeOutput(load_model(f"emoji, {process}"))


class DemoEmoji(io.ComfyNode):
    """Says which emoji to draw."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolverDemo_Emoji",
            display_name="DPM-Solver Demo Emoji",
            category=CATEGORY,
            description=(
                "The emoji that the demo's colour model is to draw: the counterpart of a text "
                "prompt. Leave it empty for the negative side."
            ),
            inputs=[
                io.String.Input(
                    "emoji",
                    default="cat",
                    tooltip=(
                        f"One of {', '.join(emoji.CLASSES)}, or several with commas between them "
                        "to give each image of the batch its own; a shorter list starts again from "
                        "its beginning. Empty: nothing in particular."
                    ),
                )
            ],
            outputs=[
                io.Conditioning.Output(tooltip="The emoji, for the emoji model's sampler only.")
            ],
        )

    @classmethod
    def execute(cls, emoji: str) -> io.NodeOutput:
        return io.NodeOutput([[class_context(parse_emoji(emoji)), {}]])


class DemoDecode(io.ComfyNode):
    """Turns a demo model's latent, of one channel or three, into a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolverDemo_Decode",
            display_name="DPM-Solver Demo Decode",
            category=CATEGORY,
            description="Turns a demo model's latent into a picture, in a VAE's place.",
            inputs=[
                io.Latent.Input("samples", tooltip="What a sampler made with a demo model."),
                io.Int.Input(
                    "scale",
                    default=8,
                    min=1,
                    max=64,
                    tooltip=(
                        "How many times larger the picture is than the latent. 8 turns 16x16 into "
                        "128x128, the size that Empty Latent Image asked for."
                    ),
                ),
                io.Combo.Input(
                    "method",
                    options=["nearest", "bicubic"],
                    default="nearest",
                    tooltip=(
                        "How to enlarge: 'nearest' shows the model's own pixels as squares, "
                        "'bicubic' smooths them."
                    ),
                ),
            ],
            outputs=[io.Image.Output(tooltip="The digits, white ink on black, or the emoji.")],
        )

    @classmethod
    def execute(cls, samples: dict, scale: int, method: str) -> io.NodeOutput:
        latent = samples["samples"]
        if latent.ndim != 4 or latent.shape[1] not in (1, 3):
            raise ValueError(
                "Demo Decode shows the demo models' latents, [batch, 1 or 3, height, width], not a "
                f"latent of shape {list(latent.shape)}: connect a sampler that ran a demo model."
            )
        picture = latent.float().cpu()
        if scale > 1:
            picture = functional.interpolate(picture, scale_factor=scale, mode=method)
        picture = ((picture + 1.0) / 2.0).clamp(0.0, 1.0)
        # [batch, 1 or 3, height, width] -> the host's images, [batch, height, width, 3]
        return io.NodeOutput(picture.movedim(1, -1).expand(-1, -1, -1, 3).contiguous())


class DemoEncode(io.ComfyNode):
    """Turns a picture into the digit model's latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DPMSolverDemo_Encode",
            display_name="DPM-Solver Demo Encode",
            category=CATEGORY,
            description="Turns a picture into the digit model's latent, in a VAE's place.",
            inputs=[
                io.Image.Input(
                    "pixels",
                    tooltip="White ink on black, 128x128: squares of 8x8 pixels become one.",
                )
            ],
            outputs=[io.Latent.Output(tooltip="For a sampler that runs the digit model.")],
        )

    @classmethod
    def execute(cls, pixels: torch.Tensor) -> io.NodeOutput:
        # The host's images, [batch, height, width, 3] -> [batch, 1, height / 8, width / 8]
        grey = pixels.mean(-1)[:, None]
        return io.NodeOutput({"samples": functional.avg_pool2d(grey, 8) * 2.0 - 1.0})


class DemoExtension(ComfyExtension):
    """The package as the host's V3 API loads it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [DemoModel, DemoDigit, DemoEmojiModel, DemoEmoji, DemoDecode, DemoEncode]
