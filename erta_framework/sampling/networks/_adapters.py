"""Adapters of networks. They nest: each takes a network and returns one.

The loop calls `network(x, times, condition)` with latents `[B, C, ...]`, timesteps `[B]` in float32
and a condition, and takes one tensor of the shape of the latents. What differs is mended here, at
the border, so that the loop, the solvers and the policies know one form only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.sampling._network_call import Denoiser
from erta_framework.sampling.solvers import Parametrisation, Prediction, Process


def drop_condition(network: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
    """A network without a condition, `network(x, times)`; the loop's condition is dropped.

    Sample it with `NoGuidance`, and give `make_empty_condition` to the request.

    Example:
        >>> network = drop_condition(lambda x, times: 2 * x)
        >>> network(torch.ones(1, 1), torch.ones(1), make_empty_condition(1))
        tensor([[2.]])
    """

    def denoise(x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        return network(x, times)

    return denoise


def make_empty_condition(batch: int, device: torch.device | str | None = None) -> Tensor:
    """The condition of samples that have none: `[B, 0]`, one empty row a sample."""
    return torch.zeros(batch, 0, device=device)


def reverse_time(
    network: Denoiser, *, time_scale: float = 1000.0, network_scale: float = 1.0
) -> Denoiser:
    """A flow network that was trained from noise at time 0 to data at time 1.

    It predicts `data - noise` at time `t = 1 - sigma`; the loop wants `noise - data` at sigma.

    Args:
        network: Predicts `data - noise`.
        time_scale: That of the solver.
        network_scale: The network's timestep is `network_scale * t`.
    """

    def denoise(x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        return -network(x, network_scale * (1 - times / time_scale), condition)

    return denoise


def precondition_edm(network: Denoiser, *, sigma_data: float = 0.5) -> Denoiser:
    """The denoiser around a raw network F of EDM (arXiv 2206.00364, eq. 7 and table 1).

    `c_skip * x + c_out * F(c_in * x, log(sigma) / 4, condition)`: it predicts the clean sample at
    timestep sigma, as `EDMSolver` expects. Networks that do this themselves need no adapter.

    Args:
        network: F, which sees scaled latents and `log(sigma) / 4`.
        sigma_data: Standard deviation of the training data.

    Raises:
        InputError: `sigma_data` is not positive.
    """
    if not sigma_data > 0:
        raise InputError(f"sigma_data is {sigma_data}, it must be positive")

    def denoise(x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        sigma = as_column(times, x)
        total = sigma**2 + sigma_data**2
        output = network(x / total.sqrt(), times.log() / 4, condition)
        return (sigma_data**2 / total) * x + (sigma * sigma_data / total.sqrt()) * output

    return denoise


def convert_prediction(
    network: Denoiser,
    process: Process,
    *,
    given: Prediction | Literal["score"],
    wanted: Prediction,
) -> Denoiser:
    """A network whose output is converted into another prediction of the same process.

    Solvers take every prediction of their process; convert where a policy requires another one,
    or where the network predicts the score, which is `-noise / level`. What a policy caches is then
    the converted output.

    Args:
        network: Predicts `given`.
        process: That of the solver.
        given: What the network predicts.
        wanted: What the solver expects.

    Raises:
        InputError: Networks of this process do not predict `given` or `wanted`.
    """
    source = None if given == "score" else Parametrisation(process=process, prediction=given)
    target = Parametrisation(process=process, prediction=wanted)

    def denoise(x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        output = network(x, times, condition)
        sigma = process.sigma_at(as_column(times, x))
        if source is None:
            alpha, level = process.scales(sigma)
            noise = -level * output
            return target.predict(x, (x - level * noise) / alpha, noise, sigma)
        clean, noise = source.clean(x, output, sigma), source.noise(x, output, sigma)
        return target.predict(x, clean, noise, sigma)

    return denoise


def as_column(times: Tensor, x: Tensor) -> Tensor:
    """Timesteps `[B]` as `[B, 1, ...]`, at least in float32, to broadcast with latents."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return times.to(dtype).reshape(-1, *[1] * (x.ndim - 1))
