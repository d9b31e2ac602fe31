"""`ChangeProfiler`: the base of profilers that relate a signal's change to the output's change."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from erta_framework import Call, Profile, SessionInfo, Step, Traits, hookimpl
from erta_framework.calibration import Entry, ProfileKind, StepSeries
from erta_framework.errors import ProfileError
from erta_framework.metrics import relative_l1
from erta_framework.plugins import choose_unit
from erta_policies.shared._profiles import RunProfiler, order_branches, require_computed
from erta_policies.shared._signal_memory import Signal, SignalMemory, read_signal, signal_capability

Target = Literal["output", "residual"]
DEGREE = 4
"""Largest power of the signal's change that a fit may have."""
BINS, LOWEST, HIGHEST = 160, 1e-6, 1e2
"""Differences are counted in bins of equal ratio, so that their range merges like a sum."""


def make_change_kind(name: str, by_step: bool) -> ProfileKind:
    """The profiles of a `ChangeProfiler`, whose sums may be kept for each step apart."""
    each = "b T" if by_step else "b"
    entries = {
        "samples": Entry(shape="b T", counts=True),
        "distance": Entry(shape="b T"),
        "powers": Entry(shape=f"{each} {2 * DEGREE + 1}"),
        "products": Entry(shape=f"{each} {DEGREE + 1}"),
        "squares": Entry(shape=each),
        "bins": Entry(shape=f"b {BINS}", counts=True),
    }
    return ProfileKind(name, entries, StepSeries("distance", "samples"), ("branches", "signal"))


def count_bins(differences: Tensor) -> Tensor:
    """Count the differences that lie in each bin, `[BINS]`."""
    position = (differences.clamp(LOWEST, HIGHEST) / LOWEST).log() / math.log(HIGHEST / LOWEST)
    index = (position * BINS).floor().clamp(0, BINS - 1).long()
    return torch.bincount(index, minlength=BINS).double()


def read_calibrated_range(profile: Profile) -> tuple[float, float]:
    """Smallest and largest difference of a profile, to the width of a bin (12 %).

    Raises:
        ProfileError: It has none.
    """
    filled = profile.statistics["bins"].sum(dim=0).nonzero().flatten().tolist()
    if not filled:
        raise ProfileError(f"{profile!r} has counted no difference in 'bins'; calibrate again")
    step = math.log(HIGHEST / LOWEST) / BINS
    return LOWEST * math.exp(step * filled[0]), LOWEST * math.exp(step * (filled[-1] + 1))


def read_quantile(bins: Tensor, quantile: float) -> float:
    """A quantile of what `count_bins` counted, to half the width of a bin; NaN of nothing.

    Example:
        >>> bins = count_bins(torch.tensor([0.01, 0.1, 0.1]))
        >>> round(read_quantile(bins, 0.5), 2)
        0.11
    """
    total = bins.cumsum(dim=0)
    if not total[-1]:
        return math.nan
    place = int((total < quantile * total[-1]).sum())
    return LOWEST * math.exp((place + 0.5) * math.log(HIGHEST / LOWEST) / BINS)


@dataclass(slots=True)
class ChangeSums:
    """Running sums of one branch of one request, in float64 on the host.

    Attributes:
        samples: Pairs of neighbouring steps seen, by the later step, `[T]`.
        distance: Sum of their signal changes, `[T]`.
        powers: Sums of the signal change's powers 0 to 8, `[9]` or by step `[T, 9]`.
        products: Sums of the output change times its powers 0 to 4, `[5]` or `[T, 5]`.
        squares: Sum of the squared output change, `[]` or `[T]`.
        bins: How often the signal change lay in each bin.
        signal: The signal of the newest step.
        target: The output of the newest step.
    """

    samples: Tensor
    distance: Tensor
    powers: Tensor
    products: Tensor
    squares: Tensor
    bins: Tensor
    signal: SignalMemory = field(default_factory=SignalMemory)
    target: Tensor | None = None

    @classmethod
    def empty(cls, num_steps: int, by_step: bool = False) -> ChangeSums:
        """Sums of nothing."""
        each = (num_steps,) if by_step else ()
        sizes = (
            (num_steps,),
            (num_steps,),
            (*each, 2 * DEGREE + 1),
            (*each, DEGREE + 1),
            each,
            (BINS,),
        )
        samples, distance, powers, products, squares, bins = (
            torch.zeros(size, dtype=torch.float64) for size in sizes
        )
        return cls(samples, distance, powers, products, squares, bins)

    def add(self, index: int, signal: Tensor, target: Tensor, per_sample: bool) -> None:
        """Compare a step with the one before."""
        moved, before = self.signal.measure_change(index, signal, per_sample), self.target
        self.target = target
        if moved is None or before is None or before.shape != target.shape:
            return
        d, y = (v.double().cpu() for v in (moved, relative_l1(target, before, per_sample)))
        valid = d.isfinite() & y.isfinite()
        d, y = d[valid], y[valid]
        rising = d.unsqueeze(0) ** torch.arange(2 * DEGREE + 1, dtype=torch.float64).unsqueeze(1)
        self.samples[index] += len(d)
        self.distance[index] += d.sum()
        place: Any = index if self.squares.ndim else ...
        self.powers[place] += rising.sum(dim=1)
        self.products[place] += (rising[: DEGREE + 1] * y).sum(dim=1)
        self.squares[place] += (y**2).sum()
        self.bins += count_bins(d)


@dataclass(slots=True)
class ObservedRun:
    """The sums of each branch of one request, and the newest step."""

    branches: dict[str, ChangeSums] = field(default_factory=dict)
    newest: int = -1


class ChangeProfiler(RunProfiler):
    """Base of profilers that sum, over full runs, a signal's changes and the output's.

    For every two neighbouring steps it takes the relative L1 change of both, over all steps,
    prompts and branches together, and keeps the sums from which a polynomial can be fitted. A
    subclass has the settings `signal`, `target` and `per_sample`.

    Source: the calibration of TeaCache, arXiv 2411.19108; sums instead of pairs are ours.
    """

    by_step: ClassVar[bool] = False
    """Whether sums are kept for each step apart."""
    signal: Signal
    target: Target = "output"
    per_sample: bool = True

    @property
    def traits(self) -> Traits:
        return Traits(requires=signal_capability(self.signal), decides=choose_unit(self.per_sample))

    def concerns(self, call: Call) -> bool:
        """Whether it observes a call."""
        return True

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        observed = step.session.state_of(self, ObservedRun)
        if not self.concerns(call):
            observed.newest = step.index
            return (yield)
        signal = read_signal(self.signal, call)
        output = yield
        require_computed(self, step, call)
        observed.newest = step.index
        if call.branch not in observed.branches:
            observed.branches[call.branch] = ChangeSums.empty(step.num_steps, self.by_step)
        raw = call.compute()
        target = (raw - call.x) if self.target == "residual" else raw.clone()
        alone = self.per_sample and signal.shape[0] == call.x.shape[0]
        observed.branches[call.branch].add(step.index, signal, target, alone)
        return output

    def summarise(self, session: SessionInfo) -> Profile | None:
        observed = session.state_of(self, ObservedRun)
        if observed.newest != session.num_steps - 1:
            return None
        empty = ChangeSums.empty(session.num_steps, self.by_step)
        branches = order_branches(session, observed.branches, empty)
        statistics = {
            name: torch.stack([getattr(sums, name) for sums in branches.values()])
            for name in ("samples", "distance", "powers", "products", "squares", "bins")
        }
        facts = {"branches": ",".join(branches), "signal": self.signal, "target": self.target}
        return self.emit(session, statistics, facts)
