"""`Toy`, the base of networks whose prediction is known in closed form."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from erta_framework.errors import InputError


class Toy(ABC):
    """Base of the toys: a network of `SamplingLoop` and a `TextModel` of `Sampler` at once.

    A deterministic function of latents, time and condition; rows of a batch do not see each other.
    It computes in float32 or wider and answers in the dtype of the latents. The condition `[B, C]`
    or `[B, 1]` shifts the mean of the data, channel by channel.

    Attributes:
        calls: How often it was called.
    """

    def __init__(self, latent_shape: Sequence[int], *, std: float | None = None) -> None:
        if std is not None and not std > 0:
            raise InputError(f"{type(self).__name__}(std={std}): it must be above 0")
        self._latent_shape = tuple(latent_shape)
        self.calls = 0

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one sample, `(C, ...)`; calls accept any other as well."""
        return self._latent_shape

    @abstractmethod
    def settings(self) -> Mapping[str, object]:
        """The numbers that define this toy."""

    def fingerprint(self) -> Mapping[str, str]:
        """Class and settings."""
        return {
            "class": type(self).__name__,
            "config": ", ".join(f"{key}={value}" for key, value in self.settings().items()),
        }

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts as shifts of the mean `[N, C]` in [-1, 1); the empty prompt is 0."""
        return torch.tensor([self._shift(prompt) for prompt in prompts], dtype=torch.float32)

    def _shift(self, prompt: str) -> list[float]:
        channels = range(self._latent_shape[0])
        if not prompt:
            return [0.0 for _ in channels]
        digests = [hashlib.sha256(f"{c}:{prompt}".encode()).digest() for c in channels]
        return [int.from_bytes(digest[:3], "big") / 2**23 - 1.0 for digest in digests]

    def __call__(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        """The prediction at latents `[B, C, ...]`, times `[B]` and condition `[B, C]`."""
        self.calls += 1
        return self.predict(x, self.sigma_of(timestep.to(widen(x.dtype))), embeds)

    def predict(self, x: Tensor, sigma: Tensor | float, embeds: Tensor) -> Tensor:
        """The prediction at `sigma`, one number or `[B]`; not counted as a call.

        Raises:
            InputError: The condition does not fit the latents.
        """
        dtype = widen(x.dtype)
        level = torch.as_tensor(sigma, dtype=dtype, device=x.device)
        level = level.reshape(-1, *[1] * (x.ndim - 1))
        return self._predict(x.to(dtype), level, as_broadcastable(embeds, x).to(dtype)).to(x.dtype)

    @abstractmethod
    def sigma_of(self, timestep: Tensor) -> Tensor:
        """Sigma of a timestep, elementwise."""

    @abstractmethod
    def _predict(self, x: Tensor, sigma: Tensor, shift: Tensor) -> Tensor:
        """The prediction; `sigma` is `[B or 1, 1, ...]`, `shift` `[B, C or 1, 1, ...]`."""


def widen(dtype: torch.dtype) -> torch.dtype:
    """The dtype a toy computes in: float32, or float64 for float64 latents."""
    return torch.promote_types(dtype, torch.float32)


def as_broadcastable(embeds: Tensor, x: Tensor) -> Tensor:
    """A condition `[B, C]` or `[B, 1]` as `[B, C, 1, ...]`, to broadcast with latents.

    Raises:
        InputError: Batch or channels do not fit; names both shapes.
    """
    fits = embeds.ndim == 2 and embeds.shape[0] == x.shape[0] and embeds.shape[1] in (1, x.shape[1])
    if not fits:
        raise InputError(
            f"a toy got a condition {tuple(embeds.shape)} for latents {tuple(x.shape)}; "
            f"give [{x.shape[0]}, {x.shape[1]}] or [{x.shape[0]}, 1], as encode() does"
        )
    return embeds.reshape(*embeds.shape, *[1] * (x.ndim - 2))
