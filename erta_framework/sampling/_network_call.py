"""One network call of the own loop: a denoiser, latents, a timestep and a branch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_framework.errors import ProtocolError
from erta_framework.sampling.guidance import Branch
from erta_framework.session import (
    PROMPT,
    PROMPT_MASK,
    NetworkSignal,
    as_tokens,
    find_text_tokens,
)

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A network: latents `[B, C, ...]`, times `[B]` and a condition to a prediction `[B, C, ...]`."""


@dataclass(frozen=True, slots=True, eq=False)
class DenoiserCall:
    """What the own loop offers of one network call.

    Attributes:
        denoiser: The network.
        x: Its latents, `[B, C, ...]`.
        timestep: The timestep that it is given for every sample.
        branch: The branch, with its condition.
        signals: Signals of the network beside the text, by name.
        undivided: Empty: a condition is cut along the batch.
    """

    denoiser: Denoiser
    x: Tensor
    timestep: float
    branch: Branch
    signals: Mapping[str, NetworkSignal] = field(default_factory=dict)
    undivided: str = ""

    def run(self) -> Tensor:
        """The prediction, `[B, C, ...]`, in the type of the latents.

        Raises:
            ProtocolError: The network returned no tensor, or another shape than the latents'.
        """
        return call_denoiser(self.denoiser, self.x, self.timestep, self.branch)

    def run_rows(self, rows: Tensor) -> Tensor:
        """The prediction for some samples, `[R, C, ...]`."""
        x, branch = self.x.index_select(0, rows), self.branch.select(rows)
        return call_denoiser(self.denoiser, x, self.timestep, branch)

    def run_at(self, x: Tensor, timestep: float | None) -> Tensor:
        """The prediction for other latents or at another timestep."""
        at = self.timestep if timestep is None else timestep
        return call_denoiser(self.denoiser, x, at, self.branch)

    def offers(self, name: str) -> bool:
        """Whether it is the text or a signal of the network."""
        return name in (PROMPT, PROMPT_MASK) or name in self.signals

    def signal(self, name: str) -> Tensor:
        """The text embeddings, which of them hold text, or a signal of the network."""
        condition = self.branch.condition
        if name in self.signals:
            return self.signals[name](self.x, as_times(self.x, self.timestep), condition)
        return {PROMPT: as_tokens, PROMPT_MASK: find_text_tokens}[name](condition)

    def keep(self, x: Tensor, output: Tensor) -> None:
        """The residual is kept."""
        return None


def call_denoiser(denoiser: Denoiser, x: Tensor, timestep: float, branch: Branch) -> Tensor:
    """Run a network on one branch; the prediction in the type of the latents.

    Raises:
        ProtocolError: The network returned no tensor, or another shape than that of the latents.
    """
    output = denoiser(x, as_times(x, timestep), branch.condition)
    if not isinstance(output, Tensor) or output.shape != x.shape:
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ProtocolError(
            f"the network returned {given} for latents of {tuple(x.shape)} in branch "
            f"{branch.name!r}; it must return one tensor of the shape of the latents"
        )
    return output if output.dtype == x.dtype else output.to(x.dtype)


def as_times(x: Tensor, timestep: float) -> Tensor:
    """The timestep for every sample, `[B]`."""
    return torch.full((x.shape[0],), timestep, dtype=torch.float32, device=x.device)
