"""`D2Cache`: masked tokens that are nearly certain run, and tokens that others attend to."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from erta_framework import Step
from erta_framework.errors import PolicyError
from erta_framework.session import Call
from erta_policies.shared import TokenRule, check_at_least


class D2Cache(TokenRule):
    """Runs on few masked tokens, on tokens that were just decoded, and on a nucleus of attention.

    Of the block's masked tokens, those with the highest product of confidence and density of known
    tokens around them run. Of all others, the tokens that hold the first `nucleus` of the attention
    run again. Gaps of up to `gap` between positions that run are filled.

    Source: after d2Cache (ICLR 2026), from a description of its code; not a port. That every block
    begins with a full run, and that attention is summed over all queries of the rollout, is ours.

    Attributes:
        masked: Masked tokens of the block that run.
        sigma: Width of the Gaussian in which known tokens count, in positions.
        nucleus: Share of the attention whose tokens run again.
        gap: Longest gap that is filled.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> D2Cache(masked=16).sigma
        10.0
    """

    signals: ClassVar[tuple[str, ...]] = (
        "masked",
        "in_block",
        "block_step",
        "known_for",
        "confidence",
        "attention",
    )

    masked: int = 32
    sigma: float = 10.0
    nucleus: float = 0.1
    gap: int = 4

    def __post_init__(self) -> None:
        check_at_least(self, 1, masked=self.masked)
        check_at_least(self, 0, gap=self.gap)
        if self.sigma <= 0 or not 0.0 <= self.nucleus <= 1.0:
            raise PolicyError(
                f"D2Cache has sigma {self.sigma} and nucleus {self.nucleus}; sigma is above 0, the "
                "nucleus lies in [0, 1]"
            )

    def choose_reused(self, step: Step, call: Call) -> Tensor:
        """All positions that neither run nor fill a gap."""
        masked, in_block = call.feature("masked"), call.feature("in_block")
        full = call.feature("block_step") == 0
        score = call.feature("confidence") * find_density(~masked, self.sigma)
        wanted = take_highest(score, masked & in_block, self.masked)
        wanted = wanted | (call.feature("known_for") == 1)
        if self.nucleus:
            attended = call.feature("attention").sum(1)
            wanted = wanted | take_nucleus(attended, ~masked & ~wanted, self.nucleus)
        if self.gap:
            wanted = fill_gaps(wanted, self.gap)
        return ~(wanted | full[:, None])

    def name_reason(self) -> str:
        """What runs."""
        return "all but certain masks and a nucleus"


def find_density(known: Tensor, sigma: float) -> Tensor:
    """Known tokens around each position, weighted by a Gaussian of their distance, `[B, L]`."""
    place = torch.arange(known.shape[1], device=known.device, dtype=torch.float32)
    weights = torch.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2))
    return known.float() @ weights


def take_highest(score: Tensor, among: Tensor, count: int) -> Tensor:
    """The `count` positions with the highest score, `[B, L]` booleans."""
    order = score.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return among & (order.argsort(1) < count)


def take_nucleus(mass: Tensor, among: Tensor, share: float) -> Tensor:
    """The fewest positions that hold `share` of the mass of all that are `among`, `[B, L]`."""
    mass = mass.masked_fill(~among, 0.0)
    order = mass.argsort(dim=1, descending=True, stable=True)
    sorted_mass = mass.gather(1, order)
    before = sorted_mass.cumsum(1) - sorted_mass
    inside = before < share * sorted_mass.sum(1, keepdim=True)
    return among & inside.gather(1, order.argsort(1))


def fill_gaps(wanted: Tensor, gap: int) -> Tensor:
    """`wanted` `[B, L]` with the gaps of up to `gap` positions between two wanted ones filled."""
    length = wanted.shape[1]
    place = torch.arange(length, device=wanted.device).expand_as(wanted)
    last = place.masked_fill(~wanted, -length).cummax(1).values
    following = place.masked_fill(~wanted, 2 * length).flip(1).cummin(1).values.flip(1)
    return wanted | (following - last - 1 <= gap)
