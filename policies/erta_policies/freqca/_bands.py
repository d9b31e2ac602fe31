"""`HighPass`: the high frequencies of tokens, or of a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from erta_framework.errors import PolicyError

Transform = Literal["fft", "dct"]


@dataclass(frozen=True, slots=True)
class HighPass:
    """The high frequencies along some dimensions: those above a part of the highest.

    `fft` takes the dimensions as one, in order, as tokens are. `dct` takes the last two of them as
    height and width. The transforms are linear, and the two bands add up to the tensor.

    Source: FreqCa's code (Tammytcl/FreqCa at e0a4bf3, `cache_functions/cache_utils.py`).

    Attributes:
        transform: `fft` as for Qwen-Image, `dct` as for FLUX.
        cutoff: Part of the highest frequency up to which a frequency is low.

    Raises:
        PolicyError: The cutoff is no part, or there is no such transform.

    Example:
        >>> HighPass("fft", 0.1)(torch.ones(1, 6, 2), (1,)).abs().max() < 1e-6
        tensor(True)
    """

    transform: Transform = "fft"
    cutoff: float = 0.1

    def __post_init__(self) -> None:
        if self.transform not in ("fft", "dct") or not 0.0 <= self.cutoff <= 1.0:
            raise PolicyError(
                f"a high-pass has transform {self.transform!r} and cutoff {self.cutoff}; give "
                "'fft' or 'dct', and a part of the highest frequency within 0 and 1"
            )

    def __call__(self, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        """The high frequencies, of the shape and type of `x`; in float32 at least inside.

        Args:
            x: Any tensor.
            dims: Dimensions of the tokens, or of the grid with width last.
        """
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        last = wide.movedim(dims, tuple(range(-len(dims), 0)))
        high = (
            self._filter_tokens(last, len(dims)) if self.transform == "fft" else self._filter(last)
        )
        return high.movedim(tuple(range(-len(dims), 0)), dims).to(x.dtype)

    def _filter_tokens(self, x: Tensor, count: int) -> Tensor:
        tokens = x.flatten(-count)
        # a real tensor has the same low part by the half spectrum
        frequencies = torch.fft.rfftfreq(tokens.shape[-1], device=x.device)
        high = frequencies > self.cutoff * frequencies.max()
        spectrum = torch.fft.rfft(tokens, dim=-1) * high
        kept: Tensor = torch.fft.irfft(spectrum, n=tokens.shape[-1], dim=-1)
        return kept.reshape(x.shape)

    def _filter(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down, across = (make_dct(n, x) for n in (height, width))
        rows = torch.arange(height, device=x.device, dtype=x.dtype)
        columns = torch.arange(width, device=x.device, dtype=x.dtype)
        distance = (rows[:, None] ** 2 + columns**2).sqrt()
        high = distance > self.cutoff * distance.max()
        spectrum = (down @ x @ across.mT) * high
        kept: Tensor = down.mT @ spectrum @ across
        return kept


def make_dct(size: int, like: Tensor) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of a side, `[n, n]`.

    Example:
        >>> (make_dct(4, torch.zeros(1)) @ make_dct(4, torch.zeros(1)).mT).round().diag()
        tensor([1., 1., 1., 1.])
    """
    place = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (place + 0.5) * place[:, None]) * math.sqrt(2.0 / size)
    matrix[0] /= math.sqrt(2.0)
    return matrix.to(like.device, like.dtype)
