"""`TeaCacheProfiler`: how the output's change follows from the signal's change."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from erta_framework import Call, Policy, Profile, SessionInfo, Step, hookimpl
from erta_framework.profile import fingerprint_of
from erta_policies.parts import relative_l1
from erta_policies.parts.changes import Memory, Signal, read, required
from erta_policies.parts.profiles import require_full, require_whole
from erta_policies.teacache.polynomial import BINS, DEGREE, KIND, binned

Target = Literal["output", "residual"]


@dataclass(slots=True)
class Sums:
    """Running sums of one branch of one request, in float64 on the host.

    Attributes:
        samples: Pairs of neighbouring steps seen, by the later step, `[T]`.
        distance: Sum of their signal changes, `[T]`.
        powers: Sums of the signal change's powers 0 to 8.
        products: Sums of the output change times its powers 0 to 4.
        squares: Sum of the squared output change.
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
    signal: Memory = field(default_factory=Memory)
    target: Tensor | None = None

    @classmethod
    def empty(cls, num_steps: int) -> Sums:
        """Sums of nothing."""
        sizes = ((num_steps,), (num_steps,), (2 * DEGREE + 1,), (DEGREE + 1,), (), (BINS,))
        samples, distance, powers, products, squares, bins = (
            torch.zeros(size, dtype=torch.float64) for size in sizes
        )
        return cls(samples, distance, powers, products, squares, bins)

    def add(self, index: int, signal: Tensor, target: Tensor, per_sample: bool) -> None:
        """Compare a step with the one before."""
        moved, before = self.signal.moved(index, signal, per_sample), self.target
        self.target = target
        if moved is None or before is None or before.shape != target.shape:
            return
        d, y = (v.double().cpu() for v in (moved, relative_l1(target, before, per_sample)))
        valid = d.isfinite() & y.isfinite()
        d, y = d[valid], y[valid]
        rising = d.unsqueeze(0) ** torch.arange(2 * DEGREE + 1, dtype=torch.float64).unsqueeze(1)
        self.samples[index] += len(d)
        self.distance[index] += d.sum()
        self.powers += rising.sum(dim=1)
        self.products += (rising[: DEGREE + 1] * y).sum(dim=1)
        self.squares += (y**2).sum()
        self.bins += binned(d)


class TeaCacheProfiler(Policy):
    """Observes full runs and sums up what TeaCache's polynomial is fitted to.

    For every two neighbouring steps of a run it takes the relative L1 change of the signal and that
    of the output, over all steps, prompts and branches together, and keeps the sums from which
    `numpy.polyfit(change of signal, change of output, 4)` can be computed. The output is that of
    the seam: of the block stack at the trunk seam, of the network at the latent seam. Profiles of
    batches merge by adding. Nothing is emitted for a trajectory that failed or did not reach its
    last step.

    Source: TeaCache, arXiv 2411.19108, whose authors use 70 prompts of T2V-CompBench; the authors
    name the degree and the pairs in issues of ali-vilab/TeaCache. Sums instead of pairs, the range
    of the differences and their mean at each step are ours.

    Attributes:
        signal: Whose change is measured; `"latents"` is ours.
        target: Whose change it is to predict.
        per_sample: One pair a sample; else one pair a batch, whose means run over all samples.

    Raises:
        PolicyError: A step was reused.
        InputError: The trajectory does not start at step 0.

    Example:
        >>> TeaCacheProfiler(signal="timestep_embedding").requires
        frozenset({'signal:timestep_embedding'})
    """

    signal: Signal = "modulated_input"
    target: Target = "output"
    per_sample: bool = True

    @property
    def requires(self) -> frozenset[str]:
        """The signal."""
        return required(self.signal)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require_whole(self, session)

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        signal = read(self.signal, call)
        output = yield
        require_full(self, step, call)
        branches = step.session.state_of(self, dict[str, Sums])
        if call.branch not in branches:
            branches[call.branch] = Sums.empty(step.num_steps)
        raw = call.compute()
        target = (raw - call.x) if self.target == "residual" else raw.clone()
        alone = self.per_sample and signal.shape[0] == call.x.shape[0]
        branches[call.branch].add(step.index, signal, target, alone)
        return output

    @hookimpl
    def on_session_end(self, session: SessionInfo, error: BaseException | None) -> Profile | None:
        branches = session.state_of(self, dict[str, Sums])
        last = session.num_steps - 1
        if error is not None or not any(sums.signal.index == last for sums in branches.values()):
            return None
        names = session.branches or tuple(branches)
        none = Sums.empty(session.num_steps)
        ordered = [branches.get(name, none) for name in names]
        facts = {"branches": ",".join(names), "signal": self.signal, "target": self.target}
        return Profile(
            kind=KIND,
            fingerprint={**fingerprint_of(session), **facts},
            statistics={
                name: torch.stack([getattr(sums, name) for sums in ordered])
                for name in ("samples", "distance", "powers", "products", "squares", "bins")
            },
            samples=session.shape[0],
        )
