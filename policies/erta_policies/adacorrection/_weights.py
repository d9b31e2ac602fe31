"""The weights of fresh outputs: from offsets, a reference, and two short cuts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from erta_framework.errors import PolicyError
from erta_framework.modules import Parts
from erta_policies.adacorrection._offsets import measure_offset, measure_paper_offset

Mode = Literal["relative", "paper"]


@dataclass(slots=True)
class Offsets:
    """The offsets of one place at the steps at which its policy ran it by itself.

    Attributes:
        found: One tensor a step, `[B]`, NaN for samples that did not run.
    """

    found: list[Tensor] = field(default_factory=list)

    def add(self, offsets: Tensor, rows: Sequence[int] | None, batch: int) -> None:
        """Add those of a step, of all samples or of some.

        Args:
            offsets: Of the samples that ran.
            rows: The samples; None for all.
            batch: Samples of the whole batch.
        """
        if rows is None:
            self.found.append(offsets)
            return
        spread = offsets.new_full((batch,), torch.nan)
        spread[list(rows)] = offsets
        self.found.append(spread)

    def find_median(self, rows: Sequence[int] | None) -> Tensor | float:
        """The median of each sample, the lower of two; NaN where nothing is known of it."""
        if not self.found:
            return math.nan
        median: Tensor = torch.stack(self.found).nanmedian(dim=0).values
        return median if rows is None else median[list(rows)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How much of a fresh output is taken; the settings are those of `AdaCorrection`.

    Raises:
        PolicyError: A setting is out of range, or `mode="paper"` has a reference.
    """

    gamma: float
    spread: float
    low: float
    high: float
    reference: float | None
    mode: Mode

    def __post_init__(self) -> None:
        if not all(math.isfinite(n) and n >= 0 for n in (self.gamma, self.spread)):
            raise PolicyError(
                f"adacorrection has gamma={self.gamma:g} and spread={self.spread:g}; give numbers "
                "of 0 or more"
            )
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise PolicyError(
                f"adacorrection has low={self.low:g} and high={self.high:g}; they lie within 0 "
                "and 1, and low comes first"
            )
        if self.mode not in ("relative", "paper"):
            raise PolicyError(f"mode of adacorrection is {self.mode!r}; give 'relative' or 'paper'")
        if self.reference is not None and (self.mode == "paper" or not self.reference > 0):
            raise PolicyError(
                f"adacorrection got reference={self.reference:g} and mode={self.mode!r}; a "
                "reference is above 0, and the published formula has none"
            )

    def note(self, x: Tensor, kept: Tensor | None, offsets: Offsets, call: Parts) -> None:
        """Remember the offset at a step at which the policy inside ran the module by itself."""
        needed = self.mode == "relative" and self.reference is None
        if needed and kept is not None and kept.shape == x.shape:
            offsets.add(self._measure(x, kept, call), call.rows, call.batch)

    def find(self, x: Tensor, kept: Tensor | None, offsets: Offsets, call: Parts) -> Tensor:
        """The weight of each sample that runs; 1 where there is nothing to compare with."""
        if kept is None or kept.shape != x.shape:
            return torch.ones(call.width, device=x.device)
        found = self._measure(x, kept, call)
        if self.mode == "paper":
            return weigh(found, 1.0, self.gamma)
        known = self.reference if self.reference is not None else offsets.find_median(call.rows)
        return weigh(found, known, self.gamma)

    def bound(self, weights: Sequence[float]) -> list[float]:
        """The weights with the two short cuts; the published method has none."""
        if self.mode == "paper":
            return list(weights)
        bounded = [0.0 if weight < self.low else weight for weight in weights]
        return [1.0 if weight > self.high else weight for weight in bounded]

    def _measure(self, x: Tensor, kept: Tensor, call: Parts) -> Tensor:
        """S of each sample that runs; the largest where the input has no row for each."""
        measure = measure_paper_offset if self.mode == "paper" else measure_offset
        channels = -1 if x.ndim < 4 else 1  # of tokens, or of images and videos
        found = measure(x, kept, self.spread, channels)
        return found if found.shape[0] == call.width else found.max().expand(call.width)


def weigh(offsets: Tensor, reference: Tensor | float, gamma: float) -> Tensor:
    """Weights of the fresh output, `clip(gamma * S / S_ref, 0, 1)`.

    0 where nothing has changed, or where there is no reference yet and the policy is believed; 1
    where the offset is not a number, or infinite as the reference is.

    Args:
        offsets: S of each sample, `[R]`.
        reference: S_ref of each, or one; NaN where it is not known.
        gamma: The factor.

    Example:
        >>> weigh(torch.tensor([0.0, 1.0, 9.0]), 2.0, 1.0)
        tensor([0.0000, 0.5000, 1.0000])
    """
    if not gamma:
        return torch.zeros_like(offsets)
    against = torch.as_tensor(reference, dtype=offsets.dtype, device=offsets.device)
    found = (gamma * offsets / against).clamp(0.0, 1.0).nan_to_num(nan=1.0)
    return torch.where((offsets == 0) | against.isnan(), 0.0, found)
