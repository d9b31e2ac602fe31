"""What `Sampler` needs of a model, and per-sample noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class TextModel(Protocol):
    """A text-conditioned denoiser: encodes prompts and predicts at latents and times.

    `latent_shape` is the shape of one sample without the batch, such as `(C, F, H, W)`;
    `fingerprint()` gives facts that identify the network; profiles are checked against them. A
    model may state what it predicts in an attribute `prediction`: `"velocity"`, `"epsilon"`,
    `"sample"` or `"v_prediction"`. A solver that does not integrate that is then refused.
    """

    @property
    def latent_shape(self) -> tuple[int, ...]: ...

    def fingerprint(self) -> Mapping[str, str]: ...

    def encode(self, prompts: Sequence[str]) -> Tensor: ...

    def __call__(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor: ...


def sample_noise(
    shape: Sequence[int], seeds: Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Gaussian noise `[B, *shape]`, one generator a sample, so it depends on its seed alone.

    Example:
        >>> torch.equal(sample_noise((2,), [5, 6])[1], sample_noise((2,), [6])[0])
        True
    """
    rows = [
        torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=dtype)
        for seed in seeds
    ]
    return torch.stack(rows)
