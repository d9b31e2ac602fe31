"""`RegressionProfiler` and `CodebookProfiler`: what PromptTea measures on full runs."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_framework import Call, Profile, SessionInfo, Step, hookimpl
from erta_framework.errors import CapabilityError
from erta_policies.prompttea import _codebook as codebook
from erta_policies.prompttea import _regression as regression
from erta_policies.shared import (
    ChangeProfiler,
    RunProfiler,
    Signal,
    read_reference,
    relative_l1,
    require_computed,
)


class RegressionProfiler(ChangeProfiler):
    """Observes full runs and sums what PromptTea's regression is fitted to.

    For every two neighbouring steps it takes the relative L1 change of the signal and that of the
    output, and keeps the sums of their powers and products for each step apart, so that the normal
    equations over signal change and step index follow. Profiles of batches merge by adding.
    Nothing is emitted for a trajectory that failed or did not reach its last step.

    Source: PromptTea, arXiv 2507.06739, whose code holds the fitted numbers and not how they were
    measured; that the output is the network's (at the trunk seam, the block stack's), and the
    sums, are ours.

    Attributes:
        signal: Whose change is measured; `"latents"` is ours.
        target: Whose change it is to predict.
        per_sample: One pair a sample; else one pair a batch, whose means run over all samples.
        network: Name of the network to observe, in a pipeline of two; by default every one.

    Raises:
        PolicyError: A step was reused.
        InputError: The trajectory does not start at step 0.

    Example:
        >>> RegressionProfiler().traits.requires
        frozenset({'signal:timestep_projection'})
    """

    by_step = True
    kind = regression.KIND
    signal: Signal = "timestep_projection"
    network: str | None = None

    def concerns(self, call: Call) -> bool:
        """Only calls of its network."""
        return regression.is_network(self.network, call.model)


@dataclass(slots=True)
class BranchPair:
    """Residuals of the two branches in the newest step, and the sums over steps.

    Attributes:
        difference: Sum over samples of the relative L1 difference at each step, `[T]`.
        samples: Samples seen at each step, `[T]`.
        index: The newest step.
        residuals: By branch.
    """

    difference: Tensor
    samples: Tensor
    index: int = -1
    residuals: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def empty(cls, num_steps: int) -> BranchPair:
        """Nothing seen yet."""
        difference, samples = torch.zeros(2, num_steps, dtype=torch.float64)
        return cls(difference, samples)


class CodebookProfiler(RunProfiler):
    """Observes full runs and sums how far the second branch's residual is from the first's.

    For every step it takes `mean |R_branch - R_stands_in| / mean |R_stands_in|` of the residuals,
    output minus input of the seam. Profiles of batches merge by adding. Nothing is emitted for a
    trajectory that failed or did not reach its last step.

    Source: the codebook of PromptTea, arXiv 2507.06739. Neither code nor abstract says how its
    numbers were measured. This definition is our guess; its values behave like the published ones.

    Attributes:
        branch: The branch that may be skipped.
        stands_in: The branch whose residual is used instead.

    Raises:
        PolicyError: A step was reused.
        InputError: The trajectory does not start at step 0.
        CapabilityError: The run does not call both branches.

    Example:
        >>> Sampler([CodebookProfiler()]).calibrate(model, prompts)  # doctest: +SKIP
    """

    kind = codebook.KIND

    branch: str = "uncond"
    stands_in: str = "cond"

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        super().on_session_start(session)
        if session.branches and not {self.branch, self.stands_in} <= set(session.branches):
            raise CapabilityError(self._apart(", ".join(session.branches)))

    def _apart(self, branches: str) -> str:
        return (
            f"{self!r} compares two branches of each step, the run has {branches}; calibrate with "
            "guidance in two calls a step, or name its branches"
        )

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        require_computed(self, step, call)
        pair = step.session.state_of(self, lambda: BranchPair.empty(step.num_steps))
        if pair.index != step.index:
            pair.index = step.index
            pair.residuals.clear()
        if call.branch in (self.branch, self.stands_in):
            pair.residuals[call.branch] = call.compute() - read_reference(step, call)
        if len(pair.residuals) == 2:
            other, own = pair.residuals[self.branch], pair.residuals[self.stands_in]
            found = relative_l1(other, own).double().cpu()
            found = found[found.isfinite()]
            pair.difference[step.index] += found.sum()
            pair.samples[step.index] += len(found)
            pair.residuals.clear()
        return output

    def summarise(self, session: SessionInfo) -> Profile | None:
        pair = session.state_of(self, lambda: BranchPair.empty(session.num_steps))
        if pair.index != session.num_steps - 1:
            return None
        if not bool(pair.samples.any()):
            raise CapabilityError(self._apart("never called both in one step"))
        statistics = {"difference": pair.difference, "samples": pair.samples}
        return self.emit(session, statistics, {"branches": f"{self.stands_in},{self.branch}"})
