"""The spectral-evolution-aware filter: a Wiener filter that follows the noise level."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from erta_framework import SessionInfo
from erta_policies.parts.grid import grid_dims

Mixing = Literal["flow", "variance_preserving"]
EDGE = 1e-6
"""How near to 0 and 1 a part of the mixture may come; of the released code."""


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


def sea_filtered(
    x: Tensor, signal: float, noise: float, power: float = 3.0, channel_dim: int = 1
) -> Tensor:
    """The latents filtered along every axis of their grid, in float32 and of the shape of `x`.

    The gain of the grid is the product of those of its axes; each has mean 1, and so has the
    product, which keeps changes comparable over the steps.

    Args:
        x: Latents, `[B, C, ...]`, or with the channels elsewhere.
        signal: As in `axis_gain`, and so are the two that follow.
        noise: Factor of the noise.
        power: Exponent of the spectrum.
        channel_dim: Dimension of the channels, which is not filtered, nor is the batch.

    Example:
        >>> x = torch.ones(1, 2, 4, 4)
        >>> bool(sea_filtered(x, 0.5, 0.5).std() < 1e-6)  # what does not vary passes
        True
    """
    axes = grid_dims(x.shape, channel_dim)
    spectrum = torch.fft.rfftn(x.float(), dim=axes)  # real latents: half of the last axis is enough
    for axis in axes:
        gain = axis_gain(x.shape[axis], signal, noise, power)[: spectrum.shape[axis]]
        shape = [-1 if d == axis else 1 for d in range(x.ndim)]
        spectrum = spectrum * gain.to(x.device).reshape(shape)
    filtered: Tensor = torch.fft.irfftn(spectrum, s=[x.shape[axis] for axis in axes], dim=axes)
    return filtered


def mixing_of(session: SessionInfo) -> Mixing:
    """How the latents of a request are mixed, told from its schedule.

    `"flow"` where the driver integrates velocities, or where no sigma is above 1 and the network
    is told a multiple of it; else `"variance_preserving"`.
    """
    if "velocity" in session.capabilities:
        return "flow"
    if "epsilon" in session.capabilities or max(session.sigmas) > 1.0:
        return "variance_preserving"
    unit = session.times[0] / session.sigmas[0] if session.sigmas[0] else 0.0
    near = 0.01 * max(session.times)  # schedulers round what they tell
    told = zip(session.sigmas, session.times, strict=False)
    flow = all(abs(unit * sigma - time) <= near for sigma, time in told)
    return "flow" if flow else "variance_preserving"


def mixing_at(sigma: float, mixing: Mixing, levels: bool = False) -> tuple[float, float]:
    """Factors of the clean part and of the noise in the latents at `sigma`.

    Args:
        sigma: Where the trajectory is.
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
