"""`PromptThreshold`: a skip rule whose threshold follows from the prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from erta_framework import (
    Call,
    Compute,
    Decision,
    Policy,
    Profile,
    Profiler,
    Reuse,
    SessionInfo,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.calibration import fingerprint_of
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.plugins import HOOKS
from erta_policies.parts.around import AroundRule, asked
from erta_policies.parts.profiles import loaded
from erta_policies.prompttea import prompts
from erta_policies.prompttea.profilers import PromptProfiler

FOLLOWED = ("on_session_start", "decide", "forward")
"""Hooks of a rule that it is asked for with its new threshold."""


@dataclass(slots=True)
class Tuned:
    """The rules of one request: one for each threshold, and which of them each sample follows.

    Attributes:
        rules: By threshold, rising; empty until the prompts were seen.
        choice: Threshold of each sample, or one for the whole batch.
        called: Branches called so far.
    """

    rules: dict[float, Policy] = field(default_factory=dict)
    choice: tuple[float, ...] = ()
    called: list[str] = field(default_factory=list)


class PromptThreshold(AroundRule):
    """Sets the threshold of a skip rule from the prompt, once a request: complex prompts skip less.

    The mean text embedding of a prompt is compared with those of simple and of complex reference
    prompts. With s and c the mean cosine similarities, rho = c / (s + c + 1e-6) and
    w = 1 / (1 + exp(-sharpness (rho - 1/2))), the threshold is `w * low + (1 - w) * high`.

    Any skip rule with a setting `threshold` may stand inside. In a batch the smallest threshold
    serves all samples; or each has its own with `each_sample`, and the rule is asked for each.

    Source: PromptTea, arXiv 2507.06739, and the repository zishen-ucap/PromptTea. Rules other than
    PromptTea's and whatever concerns batches are ours, as are the reference prompts, see
    `PromptProfiler`; on each rule `low` and `high` are to be chosen anew.

    Attributes:
        policy: The skip rule.
        references: File or profile of a `PromptProfiler`, made with this run's text encoder.
        low: Threshold of the most complex prompts.
        high: Threshold of the simplest.
        sharpness: k, how steeply the threshold falls from one to the other around rho = 1/2.
        tokens: Take the mean over the tokens that hold text, as published for Wan, or over padding
            as well, as published for HunyuanVideo and CogVideoX.
        branch: The branch with the prompts; by default the one that is called first.
        half: Which half of a batched pair of branches holds the prompts; by default all rows.
        each_sample: Whether each sample of a batch follows its own threshold; by default where the
            rule decides for each sample.
        allow: Fingerprint fields of the references that may differ from the run.

    Raises:
        PolicyError: The policy is no single skip rule with a threshold, or a setting is out of
            range.
        CapabilityError: The run has no such branch.

    Example:
        >>> PromptThreshold(  # doctest: +SKIP
        ...     policy=PromptTeaRule(model="hunyuanvideo"), references="prompts.safetensors",
        ...     low=0.09, high=0.17, sharpness=200.0, tokens="all",
        ... )
    """

    references: str | Path | Profile
    low: float
    high: float
    sharpness: float = 50.0
    tokens: prompts.Tokens = "valid"
    branch: str | None = None
    half: prompts.Half | None = None
    each_sample: bool | None = None
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = {each.name for each in dataclasses.fields(self.policy)}
        other = [h for h in HOOKS if hasattr(type(self.policy), h) and h not in FOLLOWED]
        if "threshold" not in fields or other:
            why = f"also answers {', '.join(other)}" if other else "has no setting threshold"
            raise PolicyError(
                f"PromptThreshold got {self.policy!r}, which {why}; give it a skip rule that "
                "decides by a threshold, and list the others beside it"
            )
        if not 0.0 <= self.low <= self.high or not self.sharpness > 0.0:
            raise PolicyError(
                f"PromptThreshold has low {self.low}, high {self.high} and sharpness "
                f"{self.sharpness}; they must be 0 <= low <= high and above 0"
            )

    @cached_property
    def _references(self) -> Profile:
        return loaded(self, self.references, (prompts.KIND,))

    @property
    def _apart(self) -> bool:
        return (
            self.policy.traits.decides == "sample" if self.each_sample is None else self.each_sample
        )

    @property
    def traits(self) -> Traits:
        own = self.policy.traits
        return replace(
            own,
            requires=own.requires | prompts.REQUIRED,
            decides="sample" if self._apart else own.decides,
            static=False,  # the threshold is known once the prompt is
        )

    def calibrator(self) -> Profiler | None:
        return PromptProfiler(tokens=self.tokens, branch=self.branch, half=self.half)

    def prepare(self) -> None:
        made = self._references.fingerprint["tokens"]
        if made != self.tokens:
            raise PolicyError(
                f"PromptThreshold averages {self.tokens} tokens, its references were averaged over "
                f"{made}; embed them again with PromptProfiler(tokens={self.tokens!r})"
            )
        _ = self.traits
        self._with(self.low).prepare()

    @cached_property
    def _rule(self) -> Policy:
        """The rule with its profile loaded, which is not to be read again for each request."""
        held = getattr(self.policy, "profile", None)
        if not isinstance(held, str | Path):
            return self.policy
        return changed(self.policy, profile=Profile.load(held))

    def _with(self, threshold: float) -> Policy:
        return changed(self._rule, threshold=threshold)

    # ------------------------------------------------------------------ the hooks
    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        run = set(fingerprint_of(session)) - set(prompts.IDENTITY)
        self._references.require(session, {*run, "tokens", *self.allow})
        if session.branches and self.branch not in (None, *session.branches):
            raise CapabilityError(self._elsewhere(session.branches))

    def _elsewhere(self, branches: Sequence[str]) -> str:
        return (
            f"PromptThreshold looks for the prompts in branch {self.branch!r}, but the branches of "
            f"this run are {', '.join(branches)}; name one with branch=..., or with half=... where "
            "one call evaluates both"
        )

    def _tuned(self, step: Step, call: Call) -> Tuned:
        """The rules of this request, made at the first call of the branch with the prompts."""
        tuned = step.session.state_of(self, Tuned)
        if call.rows is not None or call.branch in tuned.called:
            return tuned
        tuned.called.append(call.branch)
        if tuned.rules or self.branch not in (None, call.branch):
            return tuned
        embedded = prompts.pooled(call, self.tokens, self.half)
        rhos = prompts.complexity(embedded, self._references)
        found = [prompts.threshold(r, self.low, self.high, self.sharpness) for r in rhos]
        own = self._apart and len(found) == call.x.shape[0]
        tuned.choice = tuple(found) if own else (min(found),)
        for threshold in sorted(set(tuned.choice)):
            rule = tuned.rules[threshold] = self._with(threshold)
            step.session.adopt(rule)
            rule.prepare()
            if hasattr(rule, "on_session_start"):
                asked(rule, "on_session_start", session=step.session)
        return tuned

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision | None:
        tuned = self._tuned(step, call)
        if not tuned.rules:
            raise CapabilityError(self._elsewhere(tuned.called))
        answers = {
            threshold: asked(rule, "decide", step=step, call=call)
            for threshold, rule in tuned.rules.items()
        }
        return chosen(answers, tuned.choice, call.x.shape[0])

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        rules = [r for r in self._tuned(step, call).rules.values() if hasattr(r, "forward")]
        return (yield from through([asked(r, "forward", step=step, call=call) for r in rules]))


def changed(policy: Policy, **settings: Any) -> Policy:
    """The policy with other settings."""
    return dataclasses.replace(policy, **settings)


def chosen(
    answers: dict[float, Decision | None], choice: Sequence[float], batch: int
) -> Decision | None:
    """The decision that follows each sample's own threshold.

    Args:
        answers: What the rule said at each threshold.
        choice: Threshold of each sample, or one for all.
        batch: Number of samples.
    """
    if any(answer is None for answer in answers.values()):
        return None
    smallest = answers[min(choice)]
    assert smallest is not None
    reason = f"{smallest.reason}, threshold {min(choice):.3f}"
    if len(answers) == 1:
        return dataclasses.replace(smallest, reason=reason)
    keep = [keeps(answers[choice[row]], row) for row in range(batch)]
    reason = f"{reason} to {max(choice):.3f}"
    if all(keep):
        return Reuse(reason, smallest.scope)
    return Reuse(reason, smallest.scope, keep) if any(keep) else Compute(reason, smallest.scope)


def keeps(answer: Decision | None, row: int) -> bool:
    """Whether a decision reuses one sample."""
    if not isinstance(answer, Reuse):
        return False
    return True if answer.mask is None else bool(answer.mask[row])


def through(
    wrappers: Sequence[Generator[None, Tensor, Tensor]],
) -> Generator[None, Tensor, Tensor]:
    """One wrapper made of several, the first the outermost."""
    if not wrappers:
        return (yield)
    first, rest = wrappers[0], wrappers[1:]
    next(first)
    output = yield from through(rest)
    try:
        first.send(output)
    except StopIteration as stop:
        found: Tensor = stop.value
        return found
    raise PolicyError("a wrapper of forward yielded twice")
