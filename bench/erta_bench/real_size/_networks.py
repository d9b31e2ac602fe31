"""Networks of published sizes, with random weights, and requests of published sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch

LATENT = 8
"""Pixels a latent stands for along each side; what pipelines assume without a VAE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RealNetwork:
    """A network of a published size, and what a request of it is.

    Attributes:
        name: Name of the row.
        pipeline: Class of the pipeline in diffusers.
        network: Class of the network in diffusers.
        config: Sizes of the network.
        embeds: Shapes of the embeddings that a request gives, without the batch.
        request: Other arguments of a request.
        branches: Network calls a step.
        shift: Of the flow scheduler.
    """

    name: str
    pipeline: str
    network: str
    config: Mapping[str, Any]
    embeds: Mapping[str, tuple[int, ...]]
    request: Mapping[str, Any]
    branches: int
    shift: float = 3.0

    def build(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The pipeline around a network of random weights, made on the device itself."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                torch.manual_seed(0)
                network = getattr(diffusers, self.network)(**self.config)
        finally:
            torch.set_default_dtype(before)
        kind = getattr(diffusers, self.pipeline)
        expected, _ = kind._get_signature_keys(kind)
        given = {
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=self.shift),
            "transformer": network.eval().requires_grad_(False),
        }
        pipe = kind(**{**dict.fromkeys(expected), **given})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def make_request(self, device: torch.device, dtype: torch.dtype, steps: int) -> dict[str, Any]:
        """The arguments of one request, from the same noise and embeddings every time."""
        generator = torch.Generator().manual_seed(1)
        embeds = {
            name: torch.randn(1, *shape, generator=generator).to(device, dtype)
            for name, shape in self.embeds.items()
        }
        return {
            **embeds,
            **self.request,
            "num_inference_steps": steps,
            "generator": torch.Generator().manual_seed(0),
            "output_type": "latent",
        }


WAN = RealNetwork(
    name="wan2.1-1.3b",
    pipeline="WanPipeline",
    network="WanTransformer3DModel",
    config={
        "patch_size": (1, 2, 2),
        "num_attention_heads": 12,
        "attention_head_dim": 128,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": 8960,
        "num_layers": 30,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
    },
    embeds={"prompt_embeds": (512, 4096), "negative_prompt_embeds": (512, 4096)},
    request={"height": 480, "width": 832, "num_frames": 81, "guidance_scale": 5.0},
    branches=2,
)
FLUX = RealNetwork(
    name="flux.1",
    pipeline="FluxPipeline",
    network="FluxTransformer2DModel",
    config={
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
    },
    embeds={"prompt_embeds": (512, 4096), "pooled_prompt_embeds": (768,)},
    request={"height": 1024, "width": 1024, "guidance_scale": 3.5},
    branches=1,
)
NETWORKS: Mapping[str, RealNetwork] = {network.name: network for network in (WAN, FLUX)}
"""Sizes as in the config.json of `Wan-AI/Wan2.1-T2V-1.3B-Diffusers` and `FLUX.1-dev`."""


def shrink(network: RealNetwork) -> RealNetwork:
    """The same network with few and narrow layers and small requests, to try the script itself.

    Example:
        >>> shrink(NETWORKS["flux.1"]).config["num_layers"]
        2
    """
    few: dict[str, Any] = {"num_layers": 2, "num_attention_heads": 2}
    if network is WAN:
        few |= {"attention_head_dim": 12, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32}
        embeds: dict[str, tuple[int, ...]] = {name: (4, 16) for name in network.embeds}
        size = {"height": 32, "width": 32, "num_frames": 5}
    else:
        few |= {"num_single_layers": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 8)}
        few |= {"joint_attention_dim": 16, "pooled_projection_dim": 8}
        embeds = {"prompt_embeds": (4, 16), "pooled_prompt_embeds": (8,)}
        size = {"height": 64, "width": 64}
    return replace(
        network,
        name=f"{network.name}, tiny",
        config={**network.config, **few},
        embeds=embeds,
        request={**network.request, **size},
    )
