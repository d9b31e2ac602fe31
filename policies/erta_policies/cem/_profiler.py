"""`CEMProfiler`: how much the output changes over gaps of up to nine steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_framework import Call, Profile, Seam, SessionInfo, Step, hookimpl
from erta_framework.calibration import Entry, ProfileKind
from erta_framework.errors import PolicyError
from erta_policies.shared import RunProfiler, require_computed

KIND = ProfileKind(
    "cem_profiler", {"change": Entry(shape="L T"), "rows": Entry(shape="T", counts=True)}
)


@dataclass(slots=True)
class ChangeSums:
    """Sums of one run, and the newest outputs of each branch.

    Attributes:
        change: Sum over rows of the change over a gap of C steps that ends at t, `[L, T]`.
        rows: Rows that were compared at each step, `[T]`.
        newest: Unit vectors of the newest outputs, by branch, the newest last.
        last: The newest step.
    """

    change: Tensor
    rows: Tensor
    newest: dict[str, deque[Tensor]] = field(default_factory=dict)
    last: int = -1

    def add(self, index: int, branch: str, output: Tensor) -> None:
        """Compare an output `[B, D]` with those before it."""
        unit = torch.nn.functional.normalize(output, dim=1)
        before = self.newest.setdefault(branch, deque(maxlen=len(self.change)))
        for gap, old in enumerate(reversed(before), start=1):
            self.change[gap - 1, index] += (1 - (unit * old).sum(dim=1)).clamp(min=0).sum()
        self.rows[index] += len(unit)
        before.append(unit)
        self.last = index


class CEMProfiler(RunProfiler):
    """Observes full runs, and sums how much the output changes over 1 to `longest` steps.

    The change is one minus the cosine of both outputs. At the trunk seam an output is the mean of
    its tokens, as published; at the latent seam, where a token has few channels, it is the whole
    output, which is ours. So are sums over all branches, where the paper measures the conditional
    one, and checks that no other cache was on.

    Source: CEM, arXiv 2512.23258, and its code at ffa2a61.

    Attributes:
        longest: Longest gap that is measured.

    Raises:
        PolicyError: The longest gap is less than 1 step, or a step was reused.
        InputError: The run does not start at step 0.

    Example:
        >>> Sampler([CEMProfiler()]).calibrate(model, prompts)  # doctest: +SKIP
    """

    kind = KIND
    longest: int = 9

    def __post_init__(self) -> None:
        if self.longest < 1:
            raise PolicyError(f"CEMProfiler(longest={self.longest}): it must be at least 1 step")

    def _sums(self, session: SessionInfo) -> ChangeSums:
        wide = torch.float32 if session.device.type == "mps" else torch.float64
        shape = (self.longest + 1, session.num_steps)

        def make() -> ChangeSums:
            change = torch.zeros(shape, dtype=wide, device=session.device)
            return ChangeSums(change[:-1], change[-1])

        return session.state_of(self, make)

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        require_computed(self, step, call)
        sums = self._sums(step.session)
        seen = call.compute().to(sums.change.dtype)
        tokens = call.seam is not Seam.LATENT and seen.ndim > 2
        rows = seen.flatten(1, -2).mean(dim=1) if tokens else seen.flatten(1)
        sums.add(step.index, call.branch, rows)
        return output

    def summarise(self, session: SessionInfo) -> Profile | None:
        sums = self._sums(session)
        if sums.last != session.num_steps - 1:
            return None
        return self.emit(
            session, {"change": sums.change.double().cpu(), "rows": sums.rows.double().cpu()}
        )
