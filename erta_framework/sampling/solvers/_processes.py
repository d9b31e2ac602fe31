"""Noise processes: how clean part and noise mix at each sigma, and the network's timestep there.

What sigma is depends on the process, as in the schedules of diffusers: the share of the noise
(flow), the ratio of noise and clean part (variance preserving), the noise itself (variance
exploding). In all three there is a factor `stretch` with which exact latents move on a line:

    stretch(sigma) * x = line in sigma, with slope `noise - clean` (flow) or `noise` (the others)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

from torch import Tensor

from erta_framework.sampling.solvers._protocol import Prediction, check_positive

Sigma = TypeVar("Sigma", float, Tensor)

VARIANCE_EXPLODING = "variance_exploding"
"""Capability: latents are `clean + sigma * noise`, so that predicted noise is dx/dsigma."""


class Process(Protocol):
    """How latents, clean part, noise and sigma relate. Processes are frozen dataclasses.

    `predictions` holds what networks of this process predict; the first one is the slope of the
    line on which stretched latents move, so steps use it as it is. `traits` are capabilities that
    policies need beside the prediction.
    """

    predictions: ClassVar[tuple[Prediction, ...]]
    traits: ClassVar[frozenset[str]]

    def scales(self, sigma: Sigma) -> tuple[Sigma, Sigma]:
        """`(alpha, level)` of `x = alpha * clean + level * noise`, of a number or elementwise."""
        ...

    def stretch(self, sigma: float) -> float:
        """The factor with which latents move on a line in sigma."""
        ...

    def slope(self, clean: Tensor, noise: Tensor) -> Tensor:
        """The slope of that line."""
        ...

    def noised(self, clean: Tensor | None, noise: Tensor, sigma: float) -> Tensor:
        """Latents at `sigma`; where sampling begins if `clean` is None."""
        ...

    def time_of(self, sigma: float) -> float:
        """The network's timestep at `sigma`."""
        ...

    def sigma_at(self, times: Tensor) -> Tensor:
        """Sigma at timesteps of the network, elementwise: the inverse of `time_of`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Flow matching: `x = (1 - sigma) * clean + sigma * noise`.

    Attributes:
        time_scale: The network's timestep is `time_scale * sigma`.

    Raises:
        InputError: The scale is not positive and finite.
    """

    time_scale: float = 1000.0
    predictions: ClassVar[tuple[Prediction, ...]] = ("velocity", "sample")
    traits: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_positive(time_scale=self.time_scale)

    def scales(self, sigma: Sigma) -> tuple[Sigma, Sigma]:
        """`(1 - sigma, sigma)`."""
        return 1 - sigma, sigma

    def stretch(self, sigma: float) -> float:
        """1: latents move on a line as they are."""
        return 1.0

    def slope(self, clean: Tensor, noise: Tensor) -> Tensor:
        """`noise - clean`, the velocity."""
        return noise - clean

    def noised(self, clean: Tensor | None, noise: Tensor, sigma: float) -> Tensor:
        """The noise itself, or a clean sample with noise mixed in."""
        return noise if clean is None else (1 - sigma) * clean + sigma * noise

    def time_of(self, sigma: float) -> float:
        """`time_scale * sigma`."""
        return self.time_scale * sigma

    def sigma_at(self, times: Tensor) -> Tensor:
        """`times / time_scale`."""
        return times / self.time_scale


@dataclass(frozen=True, slots=True, kw_only=True)
class VarianceExploding:
    """Variance exploding: `x = clean + sigma * noise`; the network's timestep is sigma itself.

    The form of arXiv 2011.13456 (VE SDE) and of EDM (arXiv 2206.00364).
    """

    predictions: ClassVar[tuple[Prediction, ...]] = ("epsilon", "sample")
    traits: ClassVar[frozenset[str]] = frozenset({VARIANCE_EXPLODING})

    def scales(self, sigma: Sigma) -> tuple[Sigma, Sigma]:
        """`(1, sigma)`."""
        return 1.0 + 0.0 * sigma, sigma

    def stretch(self, sigma: float) -> float:
        """1: latents move on a line as they are."""
        return 1.0

    def slope(self, clean: Tensor, noise: Tensor) -> Tensor:
        """The noise."""
        return noise

    def noised(self, clean: Tensor | None, noise: Tensor, sigma: float) -> Tensor:
        """`clean + sigma * noise`; without a clean sample `sigma * noise`."""
        return sigma * noise if clean is None else clean + sigma * noise

    def time_of(self, sigma: float) -> float:
        """`sigma`."""
        return sigma

    def sigma_at(self, times: Tensor) -> Tensor:
        """`times`."""
        return times
