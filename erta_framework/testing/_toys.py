"""Toy denoisers whose prediction is known in closed form: what a test can compare with exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.sampling import DDIM
from erta_framework.testing._toy import Toy, as_broadcastable, widen


class AffineFlow(Toy):
    """Flow-matching velocity of Gaussian data, affine in the latents.

    Data is x0 ~ N(mu, std^2) in every element, mu = mean + condition, the noise is n ~ N(0, 1) and
    x = (1 - sigma) * x0 + sigma * n. Then with m = (1 - sigma) * mu and
    var = (1 - sigma)^2 * std^2 + sigma^2 the velocity is

        E[n - x0 | x] = -mu + (sigma - (1 - sigma) * std^2) / var * (x - m).

    Args:
        latent_shape: Shape of one sample, `(C, ...)`.
        mean: Mean of the data under the empty condition.
        std: Standard deviation of the data.
        time_scale: The network's timestep is `time_scale * sigma`.

    Example:
        >>> flow = AffineFlow((1,), mean=2.0, std=0.5)
        >>> flow.predict(torch.zeros(1, 1), 1.0, flow.encode([""]))
        tensor([[-2.]])
    """

    def __init__(
        self,
        latent_shape: Sequence[int] = (3, 2, 4, 4),
        *,
        mean: float = 0.3,
        std: float = 0.5,
        time_scale: float = 1000.0,
    ) -> None:
        super().__init__(latent_shape, std=std)
        self.mean, self.std, self.time_scale = mean, std, time_scale

    def settings(self) -> Mapping[str, object]:
        """Mean, standard deviation and time scale."""
        return {"mean": self.mean, "std": self.std, "time_scale": self.time_scale}

    def sigma_of(self, timestep: Tensor) -> Tensor:
        """`timestep / time_scale`."""
        return timestep / self.time_scale

    def _predict(self, x: Tensor, sigma: Tensor, shift: Tensor) -> Tensor:
        return predict_gaussian_velocity(x, sigma, self.mean + shift, self.std)

    def trajectory(self, x: Tensor, start: float, sigma: float, embeds: Tensor) -> Tensor:
        """Where the exact flow from latents `x` at sigma `start` passes `sigma`.

        x(sigma) = m_sigma + sqrt(var_sigma / var_start) * (x(start) - m_start). Under
        classifier-free guidance it is exact for the condition `uncond + scale * (cond - uncond)`,
        since the velocity is affine in mu.
        """
        mu = self.mean + as_broadcastable(embeds, x).to(widen(x.dtype))

        def variance(level: float) -> float:
            return (1 - level) ** 2 * self.std**2 + level**2

        growth = math.sqrt(variance(sigma) / variance(start))
        return ((1 - sigma) * mu + growth * (x - (1 - start) * mu)).to(x.dtype)


class GaussianMixtureFlow(Toy):
    """Flow-matching velocity of a mixture of Gaussians: smooth, but not affine.

    A whole sample is drawn from component k, N(means[k] + condition, stds[k]^2) in every element.
    The velocity is the mean of the components' velocities under their responsibilities, computed
    as a softmax of log densities, so that sigma may be 0 or 1.

    Args:
        latent_shape: Shape of one sample, `(C, ...)`.
        means: Mean of each component under the empty condition.
        stds: Standard deviation of each.
        weights: Probability of each, equal by default.
        time_scale: The network's timestep is `time_scale * sigma`.

    Raises:
        InputError: The lists do not have one entry a component, or a std or weight is not above 0.

    Example:
        >>> GaussianMixtureFlow((4,)).latent_shape
        (4,)
    """

    def __init__(
        self,
        latent_shape: Sequence[int] = (3, 2, 4, 4),
        *,
        means: Sequence[float] = (-0.8, 0.1, 0.9),
        stds: Sequence[float] = (0.4, 0.6, 0.5),
        weights: Sequence[float] | None = None,
        time_scale: float = 1000.0,
    ) -> None:
        super().__init__(latent_shape)
        self.means, self.stds = tuple(means), tuple(stds)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self.means)
        self.time_scale = time_scale
        if not self.means or not len(self.means) == len(self.stds) == len(self.weights):
            raise InputError(
                f"GaussianMixtureFlow got {len(self.means)} means, {len(self.stds)} stds and "
                f"{len(self.weights)} weights; give one of each a component"
            )
        if not all(value > 0 for value in (*self.stds, *self.weights)):
            raise InputError("GaussianMixtureFlow: every std and weight must be above 0")

    def settings(self) -> Mapping[str, object]:
        """Components and time scale."""
        return {
            "means": self.means,
            "stds": self.stds,
            "weights": self.weights,
            "time_scale": self.time_scale,
        }

    def sigma_of(self, timestep: Tensor) -> Tensor:
        """`timestep / time_scale`."""
        return timestep / self.time_scale

    def _predict(self, x: Tensor, sigma: Tensor, shift: Tensor) -> Tensor:
        share = self._responsibilities(x, sigma, shift)
        velocity = torch.zeros_like(x)
        for k, (mean, std) in enumerate(zip(self.means, self.stds, strict=True)):
            part = share[:, k].reshape(-1, *[1] * (x.ndim - 1))
            velocity = velocity + part * predict_gaussian_velocity(x, sigma, mean + shift, std)
        return velocity

    def _responsibilities(self, x: Tensor, sigma: Tensor, shift: Tensor) -> Tensor:
        """Posterior probability of each component, `[B, K]`."""
        logs = []
        for mean, std, weight in zip(self.means, self.stds, self.weights, strict=True):
            variance = (1 - sigma) ** 2 * std**2 + sigma**2
            distance = (x - (1 - sigma) * (mean + shift)) ** 2 / variance + variance.log()
            logs.append(math.log(weight) - 0.5 * distance.flatten(1).sum(dim=1))
        return torch.stack(logs, dim=1).softmax(dim=1)


class GaussianEpsilon(Toy):
    """Noise prediction of Gaussian data for `DDIM`, affine in the latents.

    Latents are variance preserving: with z = x * sqrt(1 + sigma^2) = x0 + sigma * n and
    x0 ~ N(mu, std^2), mu = mean + condition, the prediction is
    E[n | x] = sigma / (std^2 + sigma^2) * (z - mu).

    Args:
        latent_shape: Shape of one sample, `(C, ...)`.
        mean: Mean of the data under the empty condition.
        std: Standard deviation of the data.
        solver: Its training timesteps are those of the network.

    Example:
        >>> GaussianEpsilon((1,)).predict(torch.zeros(1, 1), 1.0, torch.zeros(1, 1))
        tensor([[-0.2400]])
    """

    def __init__(
        self,
        latent_shape: Sequence[int] = (3, 2, 4, 4),
        *,
        mean: float = 0.3,
        std: float = 0.5,
        solver: DDIM | None = None,
    ) -> None:
        super().__init__(latent_shape, std=std)
        self.mean, self.std = mean, std
        self.solver = solver if solver is not None else DDIM()
        levels = self.solver.schedule(self.solver.train_steps).sigmas[:-1]
        self._logs = torch.tensor(levels[::-1], dtype=torch.float64).log()

    def settings(self) -> Mapping[str, object]:
        """Mean, standard deviation and solver."""
        return {"mean": self.mean, "std": self.std, "solver": self.solver}

    def sigma_of(self, timestep: Tensor) -> Tensor:
        """Sigma of a training time, interpolated linearly in log sigma, as `DDIM.time_of`."""
        logs = self._logs.to(timestep.device)
        left = timestep.floor().clamp(0, len(logs) - 2).long()
        part = timestep.double() - left
        return (logs[left] + part * (logs[left + 1] - logs[left])).exp().to(timestep.dtype)

    def _predict(self, x: Tensor, sigma: Tensor, shift: Tensor) -> Tensor:
        centred = x * (1 + sigma**2).sqrt() - (self.mean + shift)
        return sigma / (self.std**2 + sigma**2) * centred

    def trajectory(self, x: Tensor, start: float, sigma: float, embeds: Tensor) -> Tensor:
        """Where the exact flow from latents `x` at sigma `start` passes `sigma`."""
        mu = self.mean + as_broadcastable(embeds, x).to(widen(x.dtype))
        growth = math.sqrt((self.std**2 + sigma**2) / (self.std**2 + start**2))
        z = mu + growth * (x * math.sqrt(1 + start**2) - mu)
        return (z / math.sqrt(1 + sigma**2)).to(x.dtype)


def predict_gaussian_velocity(x: Tensor, sigma: Tensor, mu: Tensor, std: float) -> Tensor:
    """E[n - x0 | x] for x0 ~ N(mu, std^2), n ~ N(0, 1) and x = (1 - sigma) * x0 + sigma * n."""
    variance = (1 - sigma) ** 2 * std**2 + sigma**2
    return (sigma - (1 - sigma) * std**2) / variance * (x - (1 - sigma) * mu) - mu
