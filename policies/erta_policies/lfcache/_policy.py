"""`LFCache`: a skip rule on the low frequencies of a trial forward."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from erta_framework import (
    Call,
    Compute,
    Decision,
    Needs,
    Policy,
    Reuse,
    Seam,
    SessionInfo,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.plugins import choose_unit
from erta_framework.session import RESIZED, TRIAL
from erta_policies.lfcache._lowpass import (
    MOST_AXES,
    Down,
    low_frequencies,
    shrink,
    shrink_sizes,
    spectrum_norms,
)
from erta_policies.shared import Accumulator, grid_dims


@dataclass(slots=True)
class TrialMemory:
    """The trials of one network in a request, as far as later steps need them.

    Attributes:
        index: Step of the newest trial.
        newest: Its low frequencies.
        full: For each sample, those of the step when it was last computed.
        sums: Differences of neighbouring steps since each sample was computed.
        largest: Largest difference of each sample so far.
    """

    index: int = -1
    newest: Tensor | None = None
    full: Tensor | None = None
    sums: Accumulator = field(default_factory=Accumulator)
    largest: list[float] = field(default_factory=list)

    def keep(self, index: int, now: Tensor) -> None:
        """Remember the trial of a step."""
        self.index, self.newest = index, now

    def accumulated(self, index: int, now: Tensor, computed: Sequence[int]) -> list[float] | None:
        """Sums of the adjacent differences; None if the step before had no trial.

        Args:
            index: This step.
            now: Low frequencies of its trial.
            computed: Step at which each sample was last computed.
        """
        before = self.newest if self.index == index - 1 else None
        self.keep(index, now)
        if before is None or before.shape != now.shape:
            self.largest = []
            return None
        differences: list[float] = spectrum_norms(now - before).tolist()
        self._largest(differences)
        return self.sums.add(index, computed, differences)

    def since_full(self, index: int, now: Tensor, computed: Sequence[int]) -> list[float] | None:
        """Differences from the step when each sample was last computed; None if not known."""
        before, at = self.newest, self.index
        self.keep(index, now)
        if before is None or at != index - 1 or before.shape != now.shape:
            self.full, self.largest = None, []
            return None
        fresh = [row for row, step in enumerate(computed) if step == at]
        if self.full is None:
            self.full = before.clone()
        elif fresh:
            rows = torch.tensor(fresh, device=now.device)
            self.full = self.full.index_copy(0, rows, before.index_select(0, rows))
        differences: list[float] = spectrum_norms(now - self.full).tolist()
        self._largest(differences)
        return differences

    def _largest(self, differences: Sequence[float]) -> None:
        known = self.largest if len(self.largest) == len(differences) else [0.0] * len(differences)
        self.largest = [max(pair) for pair in zip(known, differences, strict=True)]


class LFCache(Policy):
    """Reuses while the low frequencies of a cheap trial forward have hardly changed.

    Every step but the last begins with a trial: the network runs on small latents. The L2
    differences between the low frequencies of neighbouring trials are summed since the last
    computed step. A step is reused while the sum stays below `alpha` times the largest difference
    of the request so far. The first two steps compute. Trials cost network time; the trace counts
    them as `trial_calls`.

    Source: the step-level part of PreciseCache, arXiv 2603.00976, from secondary sources; no code
    was released. The paper's are alpha 0.5 (Base) and 0.7 (Turbo), the factors 2, 4, 4 for videos
    and the radius of a fifth. It does not describe the following, which are ours: the running
    maximum, the means over cells, that one branch decides for the step, that the last step
    computes, and a decision for each sample.

    Attributes:
        alpha: Part of the largest difference that the sum may reach.
        factors: By how much a trial's latents are smaller in frames, height and width; images use
            the last two.
        reference: `"adjacent"` sums differences of neighbouring steps; `"last_full"` takes the
            difference from the last computed step, without a sum.
        down: How latents are shrunk: `"area"` is the mean over cells, `"nearest"` one place of
            each.
        multiple: Height and width of a trial are multiples of this: the network's patch size, or 8
            for a U-Net.
        per_sample: Decide for each sample of a batch; else one sample that must be computed
            computes all.

    Raises:
        PolicyError: A setting is out of range.
        CapabilityError: At attach, where the driver runs no trials or not on smaller latents; at
            the start of a request, for latents without a grid.

    Example:
        >>> sorted(LFCache(alpha=0.7).traits.requires)
        ['trial', 'trial:resized']
    """

    alpha: float = 0.5
    factors: tuple[int, int, int] = (2, 4, 4)
    reference: Literal["adjacent", "last_full"] = "adjacent"
    down: Down = "area"
    multiple: int = 2
    per_sample: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise PolicyError(
                f"alpha of LFCache is {self.alpha}, outside [0, 1]; above 1 the first steps, which "
                "give its scale, would be reused"
            )
        if len(self.factors) != MOST_AXES or min(self.factors) < 1 or self.multiple < 1:
            raise PolicyError(
                f"LFCache has factors {self.factors} and multiple {self.multiple}; give three "
                "factors for frames, height and width, and a multiple, each at least 1"
            )

    @property
    def traits(self) -> Traits:
        return Traits(
            requires=frozenset({TRIAL, RESIZED}),
            seams=frozenset({Seam.LATENT}),
            reads_latents=True,
            memory=Needs(evaluations=1),
            decides=choose_unit(self.per_sample),
        )

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        axes = len(grid_dims(session.shape, session.channel_dim))
        if not 1 <= axes <= MOST_AXES:
            raise CapabilityError(
                f"{self!r} makes latents smaller along their grid, and this request has latents of "
                f"{tuple(session.shape)} with the channels at {session.channel_dim}, which have "
                "none of one to three axes; use another rule such as easycache"
            )

    def trial(self, step: Step, call: Call) -> Tensor:
        """Low frequencies of the network's output on smaller latents, `[B, ..., bins]`."""
        channels = step.session.channel_dim
        dims = grid_dims(call.x.shape, channels)
        sizes = shrink_sizes([call.x.shape[d] for d in dims], self.factors, self.multiple)
        answer = call.trial(shrink(call.x, sizes, channels, self.down))
        return low_frequencies(answer, channels)

    def _trials(self, step: Step, call: Call) -> TrialMemory:
        shared = step.session.state_of(self, dict[str, TrialMemory])
        return shared.setdefault(call.model, TrialMemory())

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        if step.index == step.num_steps - 1:
            return Compute("last step")
        trials, now = self._trials(step, call), self.trial(step, call)
        computed = call.history[0].steps(call.x.shape[0])
        if self.reference == "adjacent":
            changes = trials.accumulated(step.index, now, computed)
        else:
            changes = trials.since_full(step.index, now, computed)
        if changes is None:
            return Compute("no trial of the step before")
        pairs = list(zip(changes, trials.largest, strict=True))
        reason = "low-frequency change " + f"{max(c / m if m else 1.0 for c, m in pairs):.4f}"
        mask = tuple(change < self.alpha * largest for change, largest in pairs)
        if all(mask):
            return Reuse(reason)
        return Reuse(reason, mask=mask) if self.per_sample and any(mask) else Compute(reason)

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        # a step that was computed without asking is what the next one is compared with
        if call.rows is None and step.index < step.num_steps - 1:
            trials = self._trials(step, call)
            if trials.index != step.index:
                trials.keep(step.index, self.trial(step, call))
        return (yield)
