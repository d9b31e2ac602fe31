"""shapes-flux: diffusers' `FluxTransformer2DModel`, and how it runs inside `FluxPipeline`."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import diffusers
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from erta_bench.shapes_image._accuracy import measure_shares
from erta_bench.shapes_image._model import TEXT_DIM, ShapesImage, read_images
from erta_framework.sampling import FlowAdamsBashforth2
from erta_integrations.diffusers.bundled import PipelineModel
from erta_integrations.shapes_wan.data import SIZE


class ShapesFlux(ShapesImage):
    """A FLUX transformer over images in 2 x 2 patches; predicts the velocity `noise - image`.

    Example:
        >>> ShapesFlux().encode(["a red circle left"]).shape
        torch.Size([1, 4, 64])
    """

    name = "shapes-flux"
    network_class = "FluxTransformer2DModel"
    prediction = "velocity"
    config: ClassVar[dict[str, Any]] = {
        "patch_size": 1,
        "in_channels": 12,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 32,
        "num_attention_heads": 4,
        "joint_attention_dim": TEXT_DIM,
        "pooled_projection_dim": TEXT_DIM,
        "guidance_embeds": False,
        "axes_dims_rope": (8, 12, 12),
    }

    def __init__(self) -> None:
        super().__init__()
        self.transformer = FluxTransformer2DModel(**self.config)

    @classmethod
    def pipeline_model(cls) -> PipelineModel:
        """Inside `FluxPipeline`."""
        return FLUX

    def forward(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        """Velocity `[B, 3, H, W]` at latents `x` and timestep `[B]` in [0, 1000]."""
        height, width = x.shape[2] // 2, x.shape[3] // 2
        velocity: Tensor = self.transformer(
            pack_patches(x),
            timestep=timestep / 1000,
            encoder_hidden_states=embeds,
            pooled_projections=pool_words(embeds),
            img_ids=make_image_ids(height, width).to(x),
            txt_ids=torch.zeros(embeds.shape[1], 3).to(x),
            return_dict=False,
        )[0]
        return unpack_patches(velocity, height, width)


def pack_patches(x: Tensor) -> Tensor:
    """Images `[B, C, H, W]` as tokens `[B, H/2 * W/2, C * 4]`, in the order of `FluxPipeline`."""
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * 4)


def unpack_patches(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens `[B, height * width, C * 4]` as images `[B, C, 2 * height, 2 * width]`.

    Example:
        >>> x = torch.arange(48.0).reshape(1, 3, 4, 4)
        >>> torch.equal(unpack_patches(pack_patches(x), 2, 2), x)
        True
    """
    batch, _, features = tokens.shape
    parts = tokens.reshape(batch, height, width, features // 4, 2, 2)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(batch, features // 4, 2 * height, 2 * width)


def make_image_ids(height: int, width: int) -> Tensor:
    """Positions of the tokens, `[height * width, 3]`: 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()


def pool_words(embeds: Tensor) -> Tensor:
    """One vector a prompt, `[B, 64]`: the mean of its words."""
    return embeds.mean(dim=1)


SHIFT = 3.0
FLOW: dict[str, Any] = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": SHIFT,
}
SHIFTED = math.log(SHIFT)
"""`FluxPipeline` computes the logarithm of a shift from two settings; both are set to this."""


def make_flux_dpmpp() -> Any:
    """DPM-Solver++ 2M on the sigmas of the other schedulers, whatever the size of the image."""
    dynamic = {"use_dynamic_shifting": True, "time_shift_type": "exponential"}
    made = diffusers.DPMSolverMultistepScheduler(**FLOW, **dynamic)
    made.register_to_config(base_shift=SHIFTED, max_shift=SHIFTED)
    return made


def make_pooled_arguments(embeds: Tensor, negative: Tensor) -> dict[str, Tensor]:
    """One vector a prompt, which `FluxPipeline` asks for as well."""
    return {
        "pooled_prompt_embeds": pool_words(embeds),
        "negative_pooled_prompt_embeds": pool_words(negative),
    }


FLUX = PipelineModel(
    name=ShapesFlux.name,
    kind=ShapesFlux,
    pipeline="FluxPipeline",
    network="transformer",
    settings=dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    schedulers={
        "flow_euler": partial(diffusers.FlowMatchEulerDiscreteScheduler, shift=SHIFT),
        "unipc": partial(diffusers.UniPCMultistepScheduler, **FLOW),
        "dpmpp": make_flux_dpmpp,
    },
    grid=f"shift {SHIFT:g}",
    samples=lambda output: unpack_patches(read_images(output), SIZE // 2, SIZE // 2),
    solver=FlowAdamsBashforth2(shift=SHIFT),
    shown=measure_shares,
    guidance="true_cfg_scale",
    arguments=make_pooled_arguments,
    parts=(
        r"^transformer_blocks\.\d+\.(attn|ff|ff_context)$",
        r"^single_transformer_blocks\.\d+\.(attn|proj_mlp)$",
    ),
)
