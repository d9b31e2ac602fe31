"""What PromptTea is calibrated with: the regression, the codebook and the reference prompts."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_framework import Call, Profile, Profiler, SessionInfo, Step, Traits, hookimpl
from erta_framework.calibration import fingerprint_of
from erta_framework.errors import CapabilityError, PolicyError
from erta_policies.parts import relative_l1
from erta_policies.parts.change_profiler import ChangeProfiler
from erta_policies.parts.changes import Signal
from erta_policies.parts.profiles import require_full, require_whole
from erta_policies.prompttea import codebook, prompts, regression


class RegressionProfiler(ChangeProfiler):
    """Observes full runs and sums up what PromptTea's regression is fitted to.

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
        >>> RegressionProfiler().requires
        frozenset({'signal:timestep_projection'})
    """

    by_step = True
    kind = regression.KIND
    signal: Signal = "timestep_projection"
    network: str | None = None

    def concerns(self, call: Call) -> bool:
        """Only calls of its network."""
        return regression.is_of(self.network, call.model)


@dataclass(slots=True)
class Pair:
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
    def empty(cls, num_steps: int) -> Pair:
        """Nothing seen yet."""
        difference, samples = torch.zeros(2, num_steps, dtype=torch.float64)
        return cls(difference, samples)


class CodebookProfiler(Profiler):
    """Observes full runs and sums up how far the second branch's residual is from the first's.

    For every step it takes `mean |R_branch - R_stands_in| / mean |R_stands_in|` of the residuals,
    output minus input of the seam. Profiles of batches merge by adding. Nothing is emitted for a
    trajectory that failed or did not reach its last step.

    Source: the codebook of PromptTea, arXiv 2507.06739. How its numbers were measured is in neither
    the code nor the abstract: this definition is our guess, whose values behave like the published.

    Attributes:
        branch: The branch that others may stand in for.
        stands_in: The branch that stands in.

    Raises:
        PolicyError: A step was reused.
        InputError: The trajectory does not start at step 0.
        CapabilityError: The run does not call both branches.

    Example:
        >>> Sampler([CodebookProfiler()]).calibrate(model, prompts)  # doctest: +SKIP
    """

    branch: str = "uncond"
    stands_in: str = "cond"

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require_whole(self, session)
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
        require_full(self, step, call)
        pair = step.session.state_of(self, lambda: Pair.empty(step.num_steps))
        if pair.index != step.index:
            pair.index = step.index
            pair.residuals.clear()
        if call.branch in (self.branch, self.stands_in):
            pair.residuals[call.branch] = call.compute() - call.x
        if len(pair.residuals) == 2:
            other, own = pair.residuals[self.branch], pair.residuals[self.stands_in]
            found = relative_l1(other, own).double().cpu()
            found = found[found.isfinite()]
            pair.difference[step.index] += found.sum()
            pair.samples[step.index] += len(found)
            pair.residuals.clear()
        return output

    @hookimpl
    def on_session_end(self, session: SessionInfo, error: BaseException | None) -> Profile | None:
        pair = session.state_of(self, lambda: Pair.empty(session.num_steps))
        if error is not None or pair.index != session.num_steps - 1:
            return None
        if not bool(pair.samples.any()):
            raise CapabilityError(self._apart("never called both in one step"))
        facts = {"branches": f"{self.stands_in},{self.branch}"}
        return Profile(
            kind=codebook.KIND,
            fingerprint={**fingerprint_of(session), **facts},
            statistics={"difference": pair.difference, "samples": pair.samples},
            samples=session.shape[0],
        )


@dataclass(slots=True)
class Directions:
    """Sums of unit embeddings of simple and of complex prompts `[2, D]`, and how many `[2]`."""

    sums: Tensor | None = None
    samples: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))


class PromptProfiler(Profiler):
    """Embeds reference prompts with the run's own text encoder, for `PromptThreshold`.

    Sample the reference prompts, one step is enough: the embeddings are read off the first call.
    The mean cosine similarity with a set of references needs the sum of their unit vectors only, so
    profiles merge by adding, and a prompt may be given any number of times.

    Source: PromptTea, arXiv 2507.06739, whose repository has the embeddings of 6 simple and 7
    complex prompts but not the prompts; these are ours.

    Attributes:
        simple: The prompts that count as simple.
        complex: The prompts that count as complex.
        tokens: As in `PromptThreshold`, like all that follow.
        branch: The branch with the prompts.
        half: Which half of a batched pair holds the prompts.

    Raises:
        PolicyError: A set is empty or they overlap, or a sampled prompt is in neither.

    Example:
        >>> len(PromptProfiler().calibration_prompts)
        13
    """

    simple: tuple[str, ...] = prompts.SIMPLE
    complex: tuple[str, ...] = prompts.COMPLEX
    tokens: prompts.Tokens = "valid"
    branch: str | None = None
    half: prompts.Half | None = None

    traits = Traits(requires=prompts.REQUIRED)

    def __post_init__(self) -> None:
        if not self.simple or not self.complex or set(self.simple) & set(self.complex):
            raise PolicyError(
                f"PromptProfiler has {len(self.simple)} simple and {len(self.complex)} complex "
                f"prompts, {len(set(self.simple) & set(self.complex))} of them in both; give at "
                "least one of each, and none twice"
            )

    @property
    def calibration_prompts(self) -> tuple[str, ...]:
        """Both sets."""
        return (*self.simple, *self.complex)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        unknown = [text for text in session.prompts if text not in self.calibration_prompts]
        if unknown or not session.prompts:
            said = f"{unknown[0]!r}, which is in neither set" if unknown else "no prompts"
            raise PolicyError(
                f"PromptProfiler embeds its simple and complex prompts, this request has {said}; "
                "calibrate with its calibration_prompts, or give simple=[...] and complex=[...]"
                + ("" if unknown else "; through attach, name them with run.prompts = [...]")
            )

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        found = step.session.state_of(self, Directions)
        if found.sums is None and self.branch in (None, call.branch) and call.rows is None:
            found.sums = self._summed(call, step.session.prompts, found.samples)
        return (yield)

    def _summed(self, call: Call, texts: tuple[str, ...], samples: Tensor) -> Tensor:
        embedded = prompts.pooled(call, self.tokens, self.half)
        if len(embedded) != len(texts):
            raise CapabilityError(
                f"PromptProfiler was told {len(texts)} prompts, branch {call.branch!r} has "
                f"{len(embedded)} embeddings; for batched guidance give half='first' or 'second'"
            )
        unit = torch.nn.functional.normalize(embedded, dim=-1).double().cpu()
        sums = torch.zeros(2, unit.shape[1], dtype=torch.float64)
        for text, direction in zip(texts, unit, strict=True):
            row = 0 if text in self.simple else 1
            sums[row] += direction
            samples[row] += 1
        return sums

    @hookimpl
    def on_session_end(self, session: SessionInfo, error: BaseException | None) -> Profile | None:
        found = session.state_of(self, Directions)
        if error is not None or found.sums is None:
            return None
        own = {k: v for k, v in fingerprint_of(session).items() if k in prompts.IDENTITY}
        return Profile(
            kind=prompts.KIND,
            fingerprint={**own, "tokens": self.tokens},
            statistics={"directions": found.sums, "samples": found.samples},
            samples=len(session.prompts),
        )
