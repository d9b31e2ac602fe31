"""The score network of galaxygrad in PyTorch: an MLP mixer on patches, with the time as a plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from erta_bench.galaxy._weights import read_leaves
from erta_framework.errors import InputError

BESIDE_BLOCKS, IN_BLOCK = 7, 12
"""Arrays of a file outside the blocks, and of each block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """Sizes of a network.

    Attributes:
        channels: Channels of a picture.
        side: Pixels along each side of it.
        patch: Pixels along each side of a patch.
        hidden: Features of a patch.
        mix_patches: Width of the layer that mixes patches.
        mix_hidden: Width of the layer that mixes features.
        blocks: Number of blocks.
    """

    channels: int = 1
    side: int = 32
    patch: int = 4
    hidden: int = 64
    mix_patches: int = 512
    mix_hidden: int = 512
    blocks: int = 4


class MixerBlock(nn.Module):
    """Mixes patches, then features, each with a hidden layer of its own (arXiv 2105.01601)."""

    def __init__(self, patches: int, hidden: int, mix_patches: int, mix_hidden: int) -> None:
        super().__init__()
        self.patch_mixer = make_mixer(patches, mix_patches)
        self.hidden_mixer = make_mixer(hidden, mix_hidden)
        self.norm1 = nn.LayerNorm((hidden, patches))
        self.norm2 = nn.LayerNorm((patches, hidden))

    def forward(self, y: Tensor) -> Tensor:
        """`[B, hidden, patches]` to the same shape."""
        y = y + self.patch_mixer(self.norm1(y))
        y = y.transpose(1, 2)
        y = y + self.hidden_mixer(self.norm2(y))
        return y.transpose(1, 2)


def make_mixer(size: int, width: int) -> nn.Sequential:
    """Two layers with a ReLU between them."""
    return nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, size))


class ScoreNet(nn.Module):
    """Predicts the score of noised pictures at a time of the variance-preserving SDE.

    The SDE is `dx = -x / 2 dt + dw` (arXiv 2011.13456, eq. 11 with a constant beta of 1) for times
    from 0 to `t1`. The modules stand in the order of the arrays in a file.

    Args:
        config: Sizes.

    Example:
        >>> ScoreNet(ScoreConfig(side=8))(torch.zeros(2, 1, 8, 8), torch.ones(2)).shape
        torch.Size([2, 1, 8, 8])
    """

    t1: Tensor

    def __init__(self, config: ScoreConfig) -> None:
        super().__init__()
        self.config = config
        patches = (config.side // config.patch) ** 2
        size = config.patch
        self.conv_in = nn.Conv2d(config.channels + 1, config.hidden, size, stride=size)
        self.conv_out = nn.ConvTranspose2d(config.hidden, config.channels, size, stride=size)
        widths = (config.mix_patches, config.mix_hidden)
        self.blocks = nn.ModuleList(
            MixerBlock(patches, config.hidden, *widths) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm((config.hidden, patches))
        self.register_buffer("t1", torch.tensor(10.0))

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        """Score `[B, C, H, W]` at latents `x` of that shape and times `[B]` of the SDE."""
        plane = (times / self.t1).to(x.dtype).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[-2:])
        y = self.conv_in(torch.cat([x, plane], dim=1))
        shape = y.shape[-2:]
        y = y.flatten(2)
        for block in self.blocks:
            y = block(y)
        score: Tensor = self.conv_out(self.norm(y).unflatten(2, shape))
        return score


def load_score_net(path: Path) -> ScoreNet:
    """The network in an equinox file, in float32 and in evaluation mode.

    Raises:
        InputError: The arrays are not those of such a network.
    """
    leaves = read_leaves(path)
    network = ScoreNet(find_config(leaves, path))
    own = network.state_dict()
    arrays = [leaf.float() for leaf in leaves]
    arrays[2] = as_torch_kernel(arrays[2])
    arrays = [arrays[-1], *arrays[:-1]]  # PyTorch has the end of time, a buffer, first
    for (name, wanted), array in zip(own.items(), arrays, strict=True):
        if wanted.numel() != array.numel():
            raise InputError(
                f"{path}: {name} has the shape {tuple(array.shape)}, expected "
                f"{tuple(wanted.shape)}; give a file of a ScoreNet"
            )
    network.load_state_dict(
        {key: array.reshape(own[key].shape) for key, array in zip(own, arrays, strict=True)}
    )
    return network.eval().requires_grad_(False)


def as_torch_kernel(kernel: Tensor) -> Tensor:
    """A kernel of equinox's transposed convolution `[out, in, H, W]` as PyTorch has it.

    Equinox correlates the dilated input with the kernel as it is, where PyTorch turns it round.
    """
    return kernel.transpose(0, 1).flip(-2, -1)


def find_config(leaves: Sequence[Tensor], path: Path) -> ScoreConfig:
    """Read the sizes of a network off its arrays.

    Raises:
        InputError: The number of arrays, or the first of them, is not that of such a network.
    """
    blocks, rest = divmod(len(leaves) - BESIDE_BLOCKS, IN_BLOCK)
    if blocks < 1 or rest or leaves[0].ndim != 4 or leaves[4].ndim != 2 or leaves[8].ndim != 2:
        raise InputError(
            f"{path} holds {len(leaves)} arrays, a ScoreNet has {BESIDE_BLOCKS} and {IN_BLOCK} a "
            "block; give a file of a ScoreNet"
        )
    hidden, channels, patch = leaves[0].shape[:3]
    return ScoreConfig(
        channels=channels - 1,
        side=math.isqrt(leaves[4].shape[1]) * patch,
        patch=patch,
        hidden=hidden,
        mix_patches=leaves[4].shape[0],
        mix_hidden=leaves[8].shape[0],
        blocks=blocks,
    )
