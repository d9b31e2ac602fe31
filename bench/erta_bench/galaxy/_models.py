"""Networks of galaxygrad as models of the own loop: as a flow, and as predicted noise."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import ClassVar

import torch
from torch import Tensor, nn

from erta_bench.galaxy._network import ScoreNet, load_score_net
from erta_bench.galaxy._weights import find_weights
from erta_framework.sampling import FlowAdamsBashforth2, FlowEuler, NoGuidance, Solver
from erta_framework.sampling.networks import make_empty_condition
from erta_framework.sampling.solvers import (
    AdamsBashforth2,
    ComposedSolver,
    ContinuousVP,
    DPMSolverPP2M,
    Euler,
    FlowSolver,
    Integrator,
    Karras,
    Parametrisation,
)

LAST_TIME = 10.0
"""Time at which the SDE of these networks ends, and beta times which the flow's noise is pure."""
PROCESS = ContinuousVP(beta_min=LAST_TIME, beta_max=LAST_TIME, time_scale=LAST_TIME)
"""Beta is 1 for times up to 10, hence 10 for times up to 1; the network's timestep is the time."""
MOST_NOISE = math.sqrt(math.expm1(LAST_TIME))
"""Ratio of noise and clean part at the last time."""
LEAST_NOISE = 0.02
STRETCH = 0.1
"""The networks see `log(1 + brightness) / 0.1`."""
CALIBRATION, HELD_OUT = 64, 64
INTEGRATORS: Mapping[str, Integrator] = {
    "euler": Euler(),
    "ab2": AdamsBashforth2(),
    "dpmpp": DPMSolverPP2M(),
}


class Galaxy(nn.Module):
    """What both forms share: a score network without a condition; prompts only name samples.

    Args:
        network: The score network.
        name: Of the network, for the fingerprint.
        weights_hash: Of its weight file.
    """

    prediction: ClassVar[str]
    guidance: ClassVar[NoGuidance] = NoGuidance()

    def __init__(self, network: ScoreNet, name: str = "", weights_hash: str = "untrained") -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.weights_hash = weights_hash

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of one sample: (channels, height, width)."""
        config = self.network.config
        return (config.channels, config.side, config.side)

    def solvers(self) -> Mapping[str, Solver]:
        """Solvers by name; the first is that of a full run."""
        raise NotImplementedError

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """An empty condition `[B, 0]`."""
        return make_empty_condition(len(prompts))

    def demo_prompts(self) -> tuple[list[str], list[str]]:
        """Names of samples to calibrate on (64) and to measure (64); only their seeds matter."""
        names = [f"galaxy {number}" for number in range(CALIBRATION + HELD_OUT)]
        return names[:CALIBRATION], names[CALIBRATION:]

    def fingerprint(self) -> dict[str, str]:
        """Network with its form, hash of its sizes and of its weight file."""
        config = hashlib.sha256(repr(asdict(self.network.config)).encode()).hexdigest()[:16]
        return {
            "network": f"ScoreNet of galaxygrad, {self.prediction}",
            "config": config,
            "weights": self.weights_hash,
        }

    def predict_noise(self, x: Tensor, times: Tensor) -> Tensor:
        """The noise in variance-preserving latents `x` at times `[B]` of the SDE.

        The score is the noise over `-level`.
        """
        level = (-torch.expm1(-times)).sqrt().reshape(-1, 1, 1, 1)
        score: Tensor = self.network(x, times)
        return -level * score


class GalaxyNoise(Galaxy):
    """Predicts the noise in `alpha * clean + level * noise`, on the grid of Karras et al.

    Example:
        >>> from erta_bench.galaxy import ScoreConfig, ScoreNet
        >>> GalaxyNoise(ScoreNet(ScoreConfig(side=8))).latent_shape
        (1, 8, 8)
    """

    prediction = "epsilon"

    def solvers(self) -> Mapping[str, Solver]:
        """Euler, which is DDIM, Adams-Bashforth and DPM-Solver++ 2M, all on the same grid."""
        form = Parametrisation(process=PROCESS, prediction="epsilon")
        grid = Karras(sigma_max=MOST_NOISE, sigma_min=LEAST_NOISE)
        return {
            name: ComposedSolver(form=form, grid=grid, integrator=integrator)
            for name, integrator in INTEGRATORS.items()
        }

    def forward(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        """Noise `[B, C, H, W]` at latents `x` and times `[B]` of the SDE, up to 10."""
        return self.predict_noise(x, timestep)


class GalaxyFlow(Galaxy):
    """Predicts the velocity `noise - clean` of a rectified flow, `(1 - s) * clean + s * noise`.

    Latents of the flow are those of the SDE times a number. The ratio of noise and clean part is
    `s / (1 - s)`; at more noise than the SDE ends with, the network is asked at its end.

    Example:
        >>> from erta_bench.galaxy import ScoreConfig, ScoreNet
        >>> GalaxyFlow(ScoreNet(ScoreConfig(side=8))).solvers()["euler"]
        FlowEuler(shift=3.0, time_scale=1000.0)
    """

    prediction = "velocity"

    def solvers(self) -> Mapping[str, Solver]:
        """Euler, Adams-Bashforth and DPM-Solver++ 2M on the grid with shift 3."""
        return {
            "euler": FlowEuler(),
            "ab2": FlowAdamsBashforth2(),
            "dpmpp": FlowSolver(integrator="dpmpp_2m"),
        }

    def forward(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        """Velocity `[B, C, H, W]` at latents `x` and timesteps `[B]`, which are `1000 * s`."""
        s = timestep.to(torch.float64).reshape(-1, 1, 1, 1) / 1000
        ratio = (s / (1 - s)).clamp(max=MOST_NOISE)
        alpha = (1 + ratio.square()).rsqrt()
        scaled = (x / (s.square() + (1 - s).square()).sqrt()).to(x.dtype)
        noise = self.predict_noise(scaled, ratio.square().log1p().flatten().to(x.dtype))
        clean = (scaled - (ratio * alpha).to(x.dtype) * noise) / alpha.to(x.dtype)
        return noise - clean


def load_flow(name: str) -> GalaxyFlow:
    """A network of `FILES` as a flow.

    Raises:
        InputError: There is no such network.
        MissingExtraError: galaxygrad is not installed.
    """
    return GalaxyFlow(*_read(name))


def load_noise(name: str) -> GalaxyNoise:
    """A network of `FILES` that predicts noise.

    Raises:
        InputError: There is no such network.
        MissingExtraError: galaxygrad is not installed.
    """
    network, called, digest = _read(name)
    return GalaxyNoise(network, f"{called}-noise", digest)


def _read(name: str) -> tuple[ScoreNet, str, str]:
    path = find_weights(name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return load_score_net(path), f"galaxy-{name}", digest
