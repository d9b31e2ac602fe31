"""SeaCache's spectral-evolution-aware filter: a Wiener filter that follows the noise level.

The idea: at each noise level only some frequencies of the latents hold more picture than noise. The
filter keeps these, so that a change of the filtered latents is a change of the picture.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from erta_policies.shared import Mixing, grid_dims

EDGE = 1e-6
"""How near a factor of the mixture may come to 0 and 1, as in the released code."""


def axis_gain(size: int, signal: float, noise: float, power: float = 3.0) -> Tensor:
    """Gain of the filter at the frequencies of one axis, `[size]`, with mean 1.

    Latents are `signal * clean + noise * white`, and the power of the clean part falls with
    frequency as `f^-power`. The best linear estimate of the clean part from the latents has the
    gain `signal / (signal^2 + noise^2 * f^power)`.

    Args:
        size: Number of places along the axis.
        signal: Factor of the clean part.
        noise: Factor of the noise.
        power: Exponent of the spectrum.

    Example:
        >>> axis_gain(4, 0.5, 0.5)
        tensor([1.0368, 1.0208, 0.9216, 1.0208])
    """
    frequencies = torch.fft.fftfreq(size, dtype=torch.float64).abs()
    gain: Tensor = signal / (signal**2 + noise**2 * frequencies**power)
    return (gain / gain.mean()).float()


def apply_sea_filter(
    x: Tensor, signal: float, noise: float, power: float = 3.0, channel_dim: int = 1
) -> Tensor:
    """Filter latents along every axis of their grid; float32, of the shape of `x`.

    The gain at a frequency of the grid is the product of the gains of its axes. Each axis has mean
    gain 1, and so has the product; changes therefore stay comparable over the steps.

    Args:
        x: Latents, `[B, C, ...]`, or with the channels elsewhere.
        signal: As in `axis_gain`, and so are the two that follow.
        noise: Factor of the noise.
        power: Exponent of the spectrum.
        channel_dim: Dimension of the channels, which is not filtered, nor is the batch.

    Example:
        >>> x = torch.ones(1, 2, 4, 4)
        >>> bool(apply_sea_filter(x, 0.5, 0.5).std() < 1e-6)  # what does not vary passes
        True
    """
    axes = grid_dims(x.shape, channel_dim)
    # of real latents half of the last axis is enough: [..., size // 2 + 1] there
    spectrum = torch.fft.rfftn(x.float(), dim=axes)
    for axis in axes:
        gain = axis_gain(x.shape[axis], signal, noise, power)[: spectrum.shape[axis]]
        shape = [-1 if d == axis else 1 for d in range(x.ndim)]
        spectrum = spectrum * gain.to(x.device).reshape(shape)
    filtered: Tensor = torch.fft.irfftn(spectrum, s=[x.shape[axis] for axis in axes], dim=axes)
    return filtered


def mixing_at(sigma: float, mixing: Mixing, levels: bool = False) -> tuple[float, float]:
    """Factors of the clean part and of the noise in the latents at `sigma`.

    Args:
        sigma: Noise level of the latents.
        mixing: `"flow"` is `1 - sigma` and `sigma`; `"variance_preserving"` is scaled so that their
            squares sum to 1.
        levels: Whether sigma of a variance-preserving schedule is the noise's factor itself; else
            it is the ratio of the two.

    Example:
        >>> mixing_at(0.25, "flow"), mixing_at(0.6, "variance_preserving", levels=True)
        ((0.75, 0.25), (0.8, 0.6))
    """
    if mixing == "flow":
        noise = min(max(sigma, EDGE), 1.0 - EDGE)
        return 1.0 - noise, noise
    noise = sigma if levels else sigma / math.hypot(1.0, sigma)
    noise = min(max(noise, EDGE), math.sqrt(1.0 - EDGE**2))
    return math.sqrt(1.0 - noise**2), noise
