"""`TokenRatio`: which part of its tokens a module refreshes, by step and depth."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from erta_framework.errors import PolicyError
from erta_framework.modules import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRatio:
    """The part of its tokens that a module refreshes in a step, in [0, 1].

    `base * (1 + step_weight * (1 - 2 i/T)) * (1 + layer_weight * (1 - 2 l/(L-1))) * kind`, cut to
    [0, 1]. i is the index of the step, from the end where `from_end`; l is the depth of the block.

    Source: the form is that of ToCa's code and of both released ports of ProCache, which have the
    depth 27 written in. The defaults, one part of 0.2 at every step, are ours.

    Attributes:
        base: The ratio without slopes.
        step_weight: Slope over the steps.
        layer_weight: Slope over the depth.
        mlp: Factor of MLPs.
        cross: Factor of cross-attention.
        from_end: Whether i counts the steps that are left, as in code that counts down.

    Raises:
        PolicyError: A number is not finite, or one that must not be is negative.

    Example:
        >>> TokenRatio(base=0.3, mlp=2.0).part(0, 50, 21, 28, "mlp")
        0.6
    """

    base: float = 0.2
    step_weight: float = 0.0
    layer_weight: float = 0.0
    mlp: float = 1.0
    cross: float = 1.0
    from_end: bool = False

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            least = -math.inf if name.endswith("weight") else 0.0
            if not math.isfinite(value) or value < least:
                raise PolicyError(f"{name} of a token ratio is {value}; give a number from 0 on")

    def part(self, index: int, num_steps: int, depth: int, depths: int, kind: Kind) -> float:
        """The part of the tokens.

        Args:
            index: The step, T of them are `num_steps`.
            num_steps: T.
            depth: Depth of the block, from 0.
            depths: How many there are, L.
            kind: `mlp` or `cross`; anything else refreshes nothing.
        """
        factor = {"mlp": self.mlp, "cross": self.cross}.get(kind, 0.0)
        place = num_steps - 1 - index if self.from_end else index
        over_steps = 1.0 + self.step_weight * (1.0 - 2.0 * place / num_steps)
        over_depth = 1.0 + self.layer_weight * (1.0 - 2.0 * depth / max(1, depths - 1))
        return min(1.0, max(0.0, self.base * over_steps * over_depth * factor))
