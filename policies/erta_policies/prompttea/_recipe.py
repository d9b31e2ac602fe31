"""`PromptTea`: the paper as a recipe of a rule, a prompt's threshold and a substituted branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from erta_framework import Policy, Profiler
from erta_framework.errors import MissingProfileError, PolicyError
from erta_policies.adapters import LastStep, WarmUp
from erta_policies.constants import read_published
from erta_policies.prompttea._profilers import RegressionProfiler
from erta_policies.prompttea._prompts import Half, Tokens
from erta_policies.prompttea._rule import PromptTeaRule
from erta_policies.prompttea._substitute import BranchSubstitute
from erta_policies.prompttea._threshold import PromptThreshold
from erta_policies.shared import ProfileSource, Signal

NOTHING: Mapping[str, Any] = {"networks": [{"name": ""}], "first": 1, "last": 0, "tokens": "valid"}
"""Constants where a model has none."""


class PromptTea(Policy):
    """PromptTea (arXiv 2507.06739) as a recipe.

    In call order: `BranchSubstitute` where there is a codebook, `WarmUp`, `LastStep`, and for each
    network a `PromptTeaRule`, inside a `PromptThreshold` where there are reference embeddings. The
    authors' reference prompts are not published, so that without `references` the published fixed
    threshold is used.

    Attributes:
        model: Name of published constants, see `erta_policies.constants.models("prompttea")`.
        profile: File or profile of a `RegressionProfiler`, instead of a published regression.
        threshold: The fixed threshold; by default the published one of each network.
        references: File or profile of a `PromptProfiler`: a threshold for each prompt instead.
        low: Threshold of the most complex prompts; by default the published one of each network.
        high: Threshold of the simplest.
        sharpness: As in `PromptThreshold`, like the next three.
        tokens: Which tokens an embedding is the mean of; by default as published for the model.
        half: Which half of a batched pair of branches holds the prompts.
        each_sample: Whether each sample of a batch follows its own threshold; by default the
            smallest serves all.
        codebook: File or profile of a `CodebookProfiler`, instead of the published codebook.
        codebook_threshold: tau of the codebook; by default the published one.
        substitute: Whether one branch may replace the other; by default where there is a
            codebook. Batched guidance and guidance with one branch need False.
        branch: The branch that may be skipped.
        stands_in: The branch whose residual is used instead; it has the prompts.
        counting: As in `BranchSubstitute`.
        signal: As in `PromptTeaRule`.
        first: Steps at the start that are computed; by default the model's, else 1.
        last: Steps at the end that are computed; by default the model's, else 0.
        allow: Fingerprint fields of the profiles that may differ from the run.

    Raises:
        PolicyError: Not exactly one of `model` and `profile` is given, two settings contradict
            each other, or one is out of range.

    Example:
        >>> [part.name for part in PromptTea(model="wan2.1-t2v-14b").parts()]
        ['branch_substitute', 'warm_up', 'prompt_tea_rule']
    """

    model: str | None = None
    profile: ProfileSource | None = None
    threshold: float | None = None
    references: ProfileSource | None = None
    low: float | None = None
    high: float | None = None
    sharpness: float | None = None
    tokens: Tokens | None = None
    half: Half | None = None
    each_sample: bool | None = None
    codebook: ProfileSource | None = None
    codebook_threshold: float | None = None
    substitute: bool | None = None
    branch: str = "uncond"
    stands_in: str = "cond"
    counting: Literal["computed", "script"] = "computed"
    signal: Signal | None = None
    first: int | None = None
    last: int | None = None
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.model is None) == (self.profile is None):
            given = "neither" if self.model is None else "both"
            lacking = MissingProfileError if self.model is None else PolicyError
            raise lacking(
                f"PromptTea got {given} model and profile; give model=<published> or profile=<file "
                "of `erta calibrate --policy prompttea`>"
            )
        if self.threshold is not None and self.references is not None:
            raise PolicyError(
                f"PromptTea got threshold={self.threshold}, which is fixed, and references, which "
                "set one for each prompt (low and high bound it); drop one of them"
            )
        if (self.first is not None and self.first < 1) or (self.last is not None and self.last < 0):
            raise PolicyError(
                f"PromptTea has first={self.first} and last={self.last}; they must be at least 1 "
                "and 0"
            )
        self.parts()

    @cached_property
    def _published(self) -> Mapping[str, Any]:
        return NOTHING if self.model is None else read_published("prompttea", self.model)

    def calibrator(self) -> Profiler | None:
        return RegressionProfiler(signal=self.signal or "timestep_projection")

    def parts(self) -> Sequence[Policy]:
        facts = self._published
        found: list[Policy] = []
        has = self.codebook is not None or "codebook" in facts
        if has if self.substitute is None else self.substitute:
            found.append(self._substitute())
        first = self.first if self.first is not None else facts["first"]
        last = self.last if self.last is not None else facts["last"]
        found.append(WarmUp(steps=first))
        if last:
            found.append(LastStep(steps=last))
        return (*found, *(self._decider(entry) for entry in facts["networks"]))

    def _substitute(self) -> BranchSubstitute:
        if self.codebook is None and self.model is None:
            raise PolicyError(
                "PromptTea got substitute=True and no codebook; give codebook=<file of `erta "
                "calibrate --policy branch_substitute`>"
            )
        return BranchSubstitute(
            model=self.model if self.codebook is None else None,
            profile=self.codebook,
            threshold=self.codebook_threshold,
            branch=self.branch,
            stands_in=self.stands_in,
            counting=self.counting,
            allow=self.allow,
        )

    def _decider(self, entry: Mapping[str, Any]) -> Policy:
        """The rule of one network, with the threshold of the prompt around it if there is one."""
        rule = PromptTeaRule(
            model=self.model,
            profile=self.profile,
            threshold=self.threshold,
            signal=self.signal,
            network=entry["name"] or None,
            allow=self.allow,
        )
        if self.references is None:
            return rule
        low, high = entry.get("range", (None, None))
        low = self.low if self.low is not None else low
        high = self.high if self.high is not None else high
        if low is None or high is None:
            raise PolicyError(
                f"PromptTea got references, but low={self.low} and high={self.high}; give both "
                "bounds of the threshold, none were published"
            )
        return PromptThreshold(
            policy=rule,
            references=self.references,
            low=low,
            high=high,
            sharpness=self.sharpness or entry.get("sharpness", 50.0),
            tokens=self.tokens or self._published["tokens"],
            branch=None if self.half is not None else self.stands_in,
            half=self.half,
            each_sample=self.each_sample,
            allow=self.allow,
        )
