"""`BranchSubstitute`: one guidance branch replaces another while they differ little."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from torch import Tensor

from erta_framework import (
    Call,
    Compute,
    Decision,
    Needs,
    Policy,
    Profile,
    Profiler,
    Reuse,
    SessionInfo,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.errors import CapabilityError, PolicyError
from erta_policies.prompttea._codebook import KIND, Codebook, load_published_codebook, read_codebook
from erta_policies.prompttea._profilers import CodebookProfiler
from erta_policies.shared import (
    Accumulator,
    load_profile,
    require_match,
    require_one_option,
    resolve_threshold,
)

OWN = ("branches",)
"""Fields of a profile's fingerprint that the policy checks itself."""


@dataclass(slots=True)
class SubstitutionMemory:
    """The substitutions of one branch so far.

    Attributes:
        differences: Sum of the codebook's values since the branch was last computed.
        total: The same sum as the published script counts it.
        newest: Step at which the other branch was last used instead.
    """

    differences: Accumulator = field(default_factory=Accumulator)
    total: float = 0.0
    newest: int = -1


class BranchSubstitute(Policy):
    """Skips one branch of a computed step and predicts it with the residual of another.

    When the rules listed after it compute a step, the first branch runs. The codebook says how far
    the second branch is from it at each step. While the sum of these values, since the second
    really ran, is below the threshold, the second's output is its own input plus the residual that
    the first has just computed. Later reused steps of the second use that residual until it really
    runs again. The trace counts such a call as reused and names the first branch as its
    `source_branch`; the history of the second branch holds only what really ran.

    The first branch decides for both, also under rules that decide for every branch. List it before
    the skip rule and before adapters such as `WarmUp`, so that their computed steps count as
    computed. At the trunk seam embedders and head still get each branch's own input. At the latent
    seam both branches have the same input, so the second gets the output of the first: guidance is
    off in that step. A per-sample decision that computes part of a batch computes both branches.
    Batched guidance evaluates both in one call of the network, and is refused.

    Source: DynCFGCache of PromptTea, arXiv 2507.06739, and the repository zishen-ucap/PromptTea.
    Using it without PromptTea's rule, the latent seam, and starting the sum again only when the
    branch really ran are ours.

    Attributes:
        model: Name of a published codebook, see `erta_policies.constants.models("prompttea")`.
        codebook: A difference for each step instead.
        profile: File or profile of a `CodebookProfiler` instead.
        threshold: tau, the difference at which the branch runs; by default the published one.
        branch: The branch that may be skipped.
        stands_in: The branch whose residual is used instead; it must be called before.
        counting: `"computed"` adds the values of computed steps and starts anew when the branch
            ran. `"script"` is what the published Wan 2.1 script does: it adds every step and starts
            anew when the sum is due, even if the step is reused, so that a refresh can be lost.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: Not exactly one of `model`, `codebook` and `profile` is given, there is no
            threshold, a setting is out of range, or the run calls the branches in the other order.
        CapabilityError: The run has no such branches, or evaluates them in one batched call.

    Example:
        >>> BranchSubstitute(model="wan2.1-t2v-14b").effective_threshold
        0.02
    """

    traits = Traits(
        static=True, decides="branch", sees_every_branch=True, memory=Needs(evaluations=1)
    )
    model: str | None = None
    codebook: tuple[float, ...] | None = None
    profile: str | Path | Profile | None = None
    threshold: float | None = None
    branch: str = "uncond"
    stands_in: str = "cond"
    counting: Literal["computed", "script"] = "computed"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        options = ("model=<published>", "codebook=<your own>", "profile=<file>")
        require_one_option(self, "BranchSubstitute", options, missing="no codebook")
        if self.codebook is not None and not (self.codebook and min(self.codebook) >= 0.0):
            raise PolicyError("the codebook of BranchSubstitute is a number >= 0 for each step")
        if self.threshold is not None and not self.threshold >= 0.0:
            raise PolicyError(
                f"the threshold of BranchSubstitute is {self.threshold}, it must be >= 0"
            )
        if self.branch == self.stands_in:
            raise PolicyError(f"branch {self.branch!r} cannot stand in for itself; name another")

    # ------------------------------------------------------------------ the settings
    @cached_property
    def _profile(self) -> Profile | None:
        return None if self.profile is None else load_profile(self, self.profile, (KIND,))

    @cached_property
    def source(self) -> Codebook:
        """The codebook, and the threshold that was published with it."""
        if self.model is not None:
            return load_published_codebook(self.model)
        if self.codebook is not None:
            return Codebook(self.codebook)
        assert self._profile is not None
        return read_codebook(self._profile)

    @property
    def effective_threshold(self) -> float:
        """The threshold that is used.

        Raises:
            PolicyError: There is none.
        """
        return resolve_threshold(self, self.source.threshold, "difference")

    def prepare(self) -> None:
        _ = self.source, self.effective_threshold
        if self._profile is not None:
            made = self._profile.fingerprint["branches"]
            if made != f"{self.stands_in},{self.branch}":
                raise PolicyError(
                    f"BranchSubstitute lets {self.stands_in!r} stand in for {self.branch!r}, its "
                    f"codebook compares {made}; calibrate with CodebookProfiler(branch=..., "
                    "stands_in=...)"
                )

    def calibrator(self) -> Profiler | None:
        return CodebookProfiler(branch=self.branch, stands_in=self.stands_in)

    # ------------------------------------------------------------------ the hooks
    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if self._profile is not None:
            require_match(self._profile, session, (*self.allow, *OWN))
        if session.divided:
            raise CapabilityError(
                "BranchSubstitute takes the residual of another branch, but here other ranks "
                "evaluate some of the branches (CFGParallel); remove one of them"
            )
        if session.branches:
            self._require_branches(session.branches)

    @hookimpl
    def pre_step(self, step: Step) -> None:
        called = step.session.state_of(self, list[str])
        # a driver that knows its branches was checked before; others show them in the first step
        if not step.session.branches and step.index == step.session.first + 1:
            self._require_branches(called)

    def _require_branches(self, names: list[str] | tuple[str, ...]) -> None:
        missing = [name for name in (self.stands_in, self.branch) if name not in names]
        if missing:
            raise CapabilityError(
                f"BranchSubstitute lets {self.stands_in!r} stand in for {self.branch!r}, but the "
                f"branches of this run are {', '.join(names)}; name two of them with branch=... "
                "and stands_in=..., or remove it where guidance has one branch, or evaluates both "
                "in one batched call"
            )

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        called = step.session.state_of(self, list[str])
        if call.branch not in called:
            called.append(call.branch)
        if call.branch == self.branch and self.stands_in not in call.answers:
            raise PolicyError(
                f"BranchSubstitute needs branch {self.stands_in!r} to be called before "
                f"{self.branch!r} in each step, here the order is {', '.join(called)}; exchange "
                "branch and stands_in, or remove it"
            )
        return (yield)

    @hookimpl(wrapper=True)
    def decide(self, step: Step, call: Call) -> Generator[None, Decision, Decision]:
        decision = yield
        if call.branch == self.stands_in:
            return replace(decision, scope="step")
        if call.branch != self.branch or self.stands_in not in call.answers:
            return decision
        lent = call.state_of(self, SubstitutionMemory)
        small, total = self._small(lent, decision, step, call)
        if isinstance(decision, Compute):
            if not small or not call.answers[self.stands_in].computed:
                return decision
            lent.newest = step.index
            steps = len(self.source.values)
            reason = f"{self.stands_in} stands in, difference {total:.4f}"
            if steps != step.num_steps:
                reason += f", codebook of {steps} steps"
            return Reuse(reason, "branch", branch=self.stands_in)
        if lent.newest > call.history[0].index:
            return replace(decision, scope="branch", branch=self.stands_in)
        return decision

    def _small(
        self, lent: SubstitutionMemory, decision: Decision, step: Step, call: Call
    ) -> tuple[bool, float]:
        """Whether the branches differ little enough at this step, and the sum that says so."""
        value = self.source.at(step.index, step.num_steps)
        if self.counting == "script":
            total = lent.total + value
            small = total < self.effective_threshold
            lent.total = total if small else 0.0
            return small, total
        if isinstance(decision, Reuse):
            return False, 0.0
        (total,) = lent.differences.add(step.index, (call.history[0].index,), [value])
        return total < self.effective_threshold, total
