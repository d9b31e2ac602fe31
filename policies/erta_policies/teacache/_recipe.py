"""`TeaCache`: the rule, with the steps that it always computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from erta_framework import Policy
from erta_framework.errors import PolicyError
from erta_policies.adapters import LastStep, WarmUp
from erta_policies.teacache._rule import TeaCacheRule
from erta_policies.teacache._settings import Source


class TeaCache(TeaCacheRule):
    """TeaCache (arXiv 2411.19108) as a recipe: `WarmUp` + `LastStep` + `TeaCacheRule`.

    Published code computes the first and the last step; Wan's retention mode (the models whose name
    ends in `retention`) the first five and not the last, HiDream the first tenth and not the last.

    Attributes:
        model: As in `TeaCacheRule`, like all that follow but the last two.
        coefficients: A polynomial of your own instead, highest power first.
        profile: File or profile of a `TeaCacheProfiler` instead.
        threshold: Predicted change at which the network runs again.
        signal: Whose change is measured.
        absolute: Whether to take the polynomial's magnitude.
        clamp_nonnegative: Whether values below 0 count as 0.
        each_branch: Whether every branch decides for itself.
        per_sample: Decide for each sample of a batch.
        allow: Fingerprint fields of the profile that may differ from the run.
        first: Steps at the start that are computed; by default the model's, else 1.
        last: Steps at the end that are computed; by default the model's, else 1.

    Raises:
        PolicyError: As `TeaCacheRule`, or `first` or `last` is out of range.

    Example:
        >>> policy = TeaCache(model="wan2.1-t2v-14b", threshold=0.2)
        >>> [part.name for part in policy.parts()]
        ['warm_up', 'last_step', 'tea_cache_rule']
    """

    first: int | None = None
    last: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.first is not None and self.first < 1) or (self.last is not None and self.last < 0):
            raise PolicyError(
                f"TeaCache has first={self.first} and last={self.last}; they must be at least "
                "1 and 0"
            )

    def parts(self) -> Sequence[Policy]:
        fields = [field.name for field in dataclasses.fields(TeaCacheRule)]
        rule = TeaCacheRule(**{name: getattr(self, name) for name in fields})
        warm, end = make_forced_steps(self.source, self.first, self.last)
        return (warm, rule) if end is None else (warm, end, rule)


def make_forced_steps(
    source: Source, first: int | None, last: int | None
) -> tuple[WarmUp, LastStep | None]:
    """The adapters that force the first and last steps to compute."""
    start = first if first is not None else source.first
    warm = WarmUp(fraction=start) if isinstance(start, float) else WarmUp(steps=start)
    end = last if last is not None else source.last
    return warm, LastStep(steps=end) if end else None
