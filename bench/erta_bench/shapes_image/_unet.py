"""shapes-unet: diffusers' `UNet2DConditionModel`, inside `StableDiffusionPipeline`."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import diffusers
from diffusers import UNet2DConditionModel
from torch import Tensor

from erta_bench.shapes_image._accuracy import measure_shares
from erta_bench.shapes_image._model import TEXT_DIM, ShapesImage, read_images
from erta_framework.sampling import DDIM
from erta_integrations.diffusers.bundled import PipelineModel
from erta_integrations.shapes_wan.data import SIZE


class ShapesUNet(ShapesImage):
    """Stable Diffusion's kind of UNet; predicts the noise in `sqrt(abar) x0 + sqrt(1-abar) noise`.

    Example:
        >>> ShapesUNet().latent_shape
        (3, 16, 16)
    """

    name = "shapes-unet"
    network_class = "UNet2DConditionModel"
    prediction = "epsilon"
    config: ClassVar[dict[str, Any]] = {
        "sample_size": SIZE,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": TEXT_DIM,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
    }

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(**self.config)

    @classmethod
    def pipeline_model(cls) -> PipelineModel:
        """Inside `StableDiffusionPipeline`."""
        return UNET

    def forward(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        """Noise `[B, 3, H, W]` at latents `x` and timestep `[B]` in [0, 999]."""
        noise: Tensor = self.unet(x, timestep, embeds, return_dict=False)[0]
        return noise


NOISE: dict[str, Any] = {
    "num_train_timesteps": DDIM().train_steps,
    "beta_start": DDIM().beta_start,
    "beta_end": DDIM().beta_end,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
    "steps_offset": 1,  # unused with this spacing; the pipeline warns about anything else
}


WITHOUT = ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
UNET = PipelineModel(
    name=ShapesUNet.name,
    kind=ShapesUNet,
    pipeline="StableDiffusionPipeline",
    network="unet",
    settings={**dict.fromkeys(WITHOUT), "requires_safety_checker": False},
    schedulers={
        "ddim": partial(diffusers.DDIMScheduler, **NOISE, clip_sample=False, set_alpha_to_one=True),
        "unipc": partial(diffusers.UniPCMultistepScheduler, **NOISE),
        "dpmpp": partial(diffusers.DPMSolverMultistepScheduler, **NOISE),
        "heun": partial(diffusers.HeunDiscreteScheduler, **NOISE),
    },
    grid="scaled-linear betas, trailing",
    samples=read_images,
    solver=DDIM(),
    shown=measure_shares,
    batched=True,
)
