"""`FastCache`: blocks that have hardly changed are replaced, and static tokens left out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from erta_framework import Policy
from erta_framework.errors import PolicyError
from erta_policies.fastcache._drift_gate import DriftGate
from erta_policies.fastcache._token_split import TokenSplit
from erta_policies.shared import ProfileSource, SurrogateName


class FastCache(Policy):
    """Replaces blocks whose input has hardly changed, and may run MLPs on moving tokens alone.

    FastCache, arXiv 2505.20353 (NoakLiu/FastCache-xDiT), as a recipe of `DriftGate` for blocks and
    of `TokenSplit` for tokens, which is off by default. What is published and what is ours is said
    in these. Merging of tokens, which the repository added later, is left out.

    Attributes:
        threshold: Relative drift of a block's input up to which it is replaced, 0.05 as released.
        surrogate: What stands in for a block: `residual`, `affine` or `ridge`.
        profile: From `SurrogateProfiler`, for the latter two.
        per_sample: Whether every sample of a batch decides for itself. With `motion` it must be
            False.
        motion: Of `TokenSplit`, published as 0.1; None for no split.
        gate: A `DriftGate` with other settings, instead of the ones above.
        allow: Fields of the profile's fingerprint that may differ from the run's.

    Raises:
        PolicyError: Settings exclude each other, or one is out of range.

    Example:
        >>> [part.name for part in FastCache(motion=0.1, per_sample=False).parts()]
        ['drift_gate', 'token_split']
    """

    threshold: float = 0.05
    surrogate: SurrogateName = "residual"
    profile: ProfileSource | None = None
    per_sample: bool = True
    motion: float | None = None
    gate: DriftGate | None = None
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        own = (self.threshold, self.surrogate, self.profile, self.per_sample, self.allow)
        if self.gate is not None and own != (0.05, "residual", None, True, ()):
            raise PolicyError(
                f"FastCache got {self.gate!r}, which has its own threshold, surrogate, profile, "
                "per_sample and allow; set them there"
            )
        if self.motion is not None and self._gate.per_sample:
            raise PolicyError(
                f"FastCache got motion={self.motion} and per_sample=True: blocks that run on some "
                "samples cannot hold MLPs that run on some tokens; give per_sample=False"
            )

    def parts(self) -> Sequence[Policy]:
        """The gate of blocks, and the split of tokens if there is one."""
        split = () if self.motion is None else (TokenSplit(motion=self.motion),)
        return (self._gate, *split)

    @cached_property
    def _gate(self) -> DriftGate:
        return self.gate or DriftGate(
            threshold=self.threshold,
            surrogate=self.surrogate,
            profile=self.profile,
            per_sample=self.per_sample,
            allow=self.allow,
        )
