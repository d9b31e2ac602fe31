"""`PromptThreshold`: sets the threshold of a skip rule from the prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from erta_framework import (
    Call,
    Decision,
    Policy,
    Profile,
    Profiler,
    SessionInfo,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.calibration import make_fingerprint
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.plugins import HOOKS
from erta_policies.prompttea import _prompts as prompts
from erta_policies.prompttea._prompt_profiler import PromptProfiler
from erta_policies.prompttea._tuned_rules import (
    TunedRules,
    merge_decisions,
    nest_wrappers,
    replace_settings,
)
from erta_policies.shared import RuleWrapper, call_hook, load_profile

FOLLOWED = ("on_session_start", "decide", "forward")
"""Hooks that are called on the rule with its new threshold."""


class PromptThreshold(RuleWrapper):
    """Sets the threshold of a skip rule from the prompt, once a request: complex prompts skip less.

    The mean text embedding of a prompt is compared with those of simple and of complex reference
    prompts. With s and c the mean cosine similarities, rho = c / (s + c + 1e-6) and
    w = 1 / (1 + exp(-sharpness (rho - 1/2))), the threshold is `w * low + (1 - w) * high`.

    It works with any skip rule that has a setting `threshold`. In a batch the smallest threshold
    serves all samples. With `each_sample` each has its own, and the rule decides for each of them.

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
        return load_profile(self, self.references, (prompts.KIND,))

    @property
    def _apart(self) -> bool:
        if self.each_sample is not None:
            return self.each_sample
        return self.policy.traits.decides == "sample"

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
        return replace_settings(self.policy, profile=Profile.load(held))

    def _with(self, threshold: float) -> Policy:
        return replace_settings(self._rule, threshold=threshold)

    # ------------------------------------------------------------------ the hooks
    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        run = set(make_fingerprint(session)) - set(prompts.IDENTITY)
        self._references.require(session, {*run, "tokens", *self.allow})
        if session.branches and self.branch not in (None, *session.branches):
            raise CapabilityError(self._elsewhere(session.branches))

    def _elsewhere(self, branches: Sequence[str]) -> str:
        return (
            f"PromptThreshold looks for the prompts in branch {self.branch!r}, but the branches of "
            f"this run are {', '.join(branches)}; name one with branch=..., or with half=... where "
            "one call evaluates both"
        )

    def _tuned(self, step: Step, call: Call) -> TunedRules:
        """The rules of this request, made at the first call of the branch with the prompts."""
        tuned = step.session.state_of(self, TunedRules)
        if call.rows is not None or call.branch in tuned.called:
            return tuned
        tuned.called.append(call.branch)
        if tuned.rules or self.branch not in (None, call.branch):
            return tuned
        embedded = prompts.pool_embedding(call, self.tokens, self.half)
        rhos = prompts.measure_complexity(embedded, self._references)
        found = [
            prompts.interpolate_threshold(r, self.low, self.high, self.sharpness) for r in rhos
        ]
        own = self._apart and len(found) == call.x.shape[0]
        tuned.choice = tuple(found) if own else (min(found),)
        for threshold in sorted(set(tuned.choice)):
            rule = tuned.rules[threshold] = self._with(threshold)
            step.session.adopt(rule)
            rule.prepare()
            if hasattr(rule, "on_session_start"):
                call_hook(rule, "on_session_start", session=step.session)
        return tuned

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision | None:
        tuned = self._tuned(step, call)
        if not tuned.rules:
            raise CapabilityError(self._elsewhere(tuned.called))
        answers = {
            threshold: call_hook(rule, "decide", step=step, call=call)
            for threshold, rule in tuned.rules.items()
        }
        return merge_decisions(answers, tuned.choice, call.x.shape[0])

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        rules = [r for r in self._tuned(step, call).rules.values() if hasattr(r, "forward")]
        return (
            yield from nest_wrappers([call_hook(r, "forward", step=step, call=call) for r in rules])
        )
