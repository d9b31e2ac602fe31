"""shapes-flux and shapes-unet: two small trained image models of other architectures.

`ShapesFlux` is diffusers' `FluxTransformer2DModel` and predicts the flow-matching velocity;
`ShapesUNet` is its `UNet2DConditionModel` and predicts the noise of a variance-preserving process.
They exist so that what holds for `shapes-wan` can be checked on networks that it was not found on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from erta_bench.shapes_image.data import VOCABULARY, all_prompts, tokenize
from erta_integrations.diffusers.bundled import InPipeline, PipelineModel
from erta_integrations.shapes_wan.data import SIZE

FOLDER = Path(__file__).parent / "weights"
TEXT_DIM = 64
M = TypeVar("M", bound="ShapesImage")


class ShapesImage(InPipeline):
    """A word embedding and what both image models share, over `[B, 3, 16, 16]` pixels."""

    name: ClassVar[str]
    network_class: ClassVar[str]
    prediction: ClassVar[str]
    config: ClassVar[dict[str, Any]]

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(VOCABULARY), TEXT_DIM)
        self.weights_hash = "untrained"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of one sample: (channels, height, width)."""
        return (3, SIZE, SIZE)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings `[B, 4, 64]`; padding words, hence the empty prompt, are zero.

        Raises:
            InputError: A prompt has a word outside the vocabulary.
        """
        return self.embed(tokenize(prompts).to(self.words.weight.device))

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings `[B, 4, 64]` of word indices `[B, 4]`."""
        embedded: Tensor = self.words(tokens)
        return embedded * (tokens > 0).unsqueeze(-1)

    def demo_prompts(self) -> tuple[list[str], list[str]]:
        """Prompts to calibrate on (24) and held-out prompts (48); they share none."""
        prompts = all_prompts()
        order = torch.randperm(72, generator=torch.Generator().manual_seed(0)).tolist()
        shuffled = [prompts[k] for k in order]
        return shuffled[:24], shuffled[24:]

    def fingerprint(self) -> dict[str, str]:
        """Network class, hash of its configuration and of its weights file."""
        config = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:16]
        return {"network": self.network_class, "config": config, "weights": self.weights_hash}


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
        from erta_bench.shapes_image.pipeline import FLUX

        return FLUX

    def forward(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        """Velocity `[B, 3, H, W]` at latents `x` and timestep `[B]` in [0, 1000]."""
        height, width = x.shape[2] // 2, x.shape[3] // 2
        velocity: Tensor = self.transformer(
            packed(x),
            timestep=timestep / 1000,
            encoder_hidden_states=embeds,
            pooled_projections=pooled(embeds),
            img_ids=image_ids(height, width).to(x),
            txt_ids=torch.zeros(embeds.shape[1], 3).to(x),
            return_dict=False,
        )[0]
        return unpacked(velocity, height, width)


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
        from erta_bench.shapes_image.pipeline import UNET

        return UNET

    def forward(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        """Noise `[B, 3, H, W]` at latents `x` and timestep `[B]` in [0, 999]."""
        noise: Tensor = self.unet(x, timestep, embeds, return_dict=False)[0]
        return noise


# ------------------------------------------------------------------------------- patches
def packed(x: Tensor) -> Tensor:
    """Images `[B, C, H, W]` as tokens `[B, H/2 * W/2, C * 4]`, in the order of `FluxPipeline`."""
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * 4)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens `[B, height * width, C * 4]` as images `[B, C, 2 * height, 2 * width]`.

    Example:
        >>> x = torch.arange(48.0).reshape(1, 3, 4, 4)
        >>> torch.equal(unpacked(packed(x), 2, 2), x)
        True
    """
    batch, _, features = tokens.shape
    parts = tokens.reshape(batch, height, width, features // 4, 2, 2)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(batch, features // 4, 2 * height, 2 * width)


def image_ids(height: int, width: int) -> Tensor:
    """Positions of the tokens, `[height * width, 3]`: 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()


def pooled(embeds: Tensor) -> Tensor:
    """One vector a prompt, `[B, 64]`: the mean of its words."""
    return embeds.mean(dim=1)


# --------------------------------------------------------------------------------- files
def weights_file(model: type[ShapesImage]) -> Path:
    """Where the weights of a model ship."""
    return FOLDER / f"{model.name}.safetensors"


def save_weights(model: ShapesImage, path: Path, metadata: dict[str, str]) -> None:
    """Write the weights as half precision safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, path, metadata={**metadata, "network": json.dumps(model.config)})
    path.chmod(0o644)


def load_model(model: type[M], path: Path | None = None) -> M:
    """A trained model in float32, in evaluation mode, from a file; never from the network.

    Raises:
        FileNotFoundError: There is no weights file.
    """
    found = path if path is not None else weights_file(model)
    if not found.is_file():
        raise FileNotFoundError(
            f"no weights of {model.name} at {found}; train them with "
            f"`python -m erta_bench.shapes_image.train {model.name}`"
        )
    made = model()
    with safe_open(found, framework="pt") as file:
        made.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    made.weights_hash = hashlib.sha256(found.read_bytes()).hexdigest()[:16]
    return made.eval().requires_grad_(False)
