"""`MeanCacheProfiler`: the cost of every edge at every span, measured on full trajectories."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_framework import Call, Profile, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_policies.meancache._path import KIND
from erta_policies.shared import RunProfiler, require_computed


@dataclass(slots=True)
class EdgeCostSums:
    """Sums of one request, and the newest latents of its trajectory.

    Attributes:
        cost: Sum over samples of each edge's cost, `[spans, T, longest]`.
        way: Sigma and latents of the newest nodes, by step; only what later edges need.
        last: The newest node.
    """

    cost: Tensor
    way: dict[int, tuple[float, Tensor]] = field(default_factory=dict)
    last: int = 0

    def add(self, sigma: float, x: Tensor) -> None:
        """Measure every edge that ends at the next node, and forget what no edge needs."""
        most, _, longest = self.cost.shape
        self.last += 1
        self.way[self.last] = (sigma, x.to(torch.promote_types(x.dtype, torch.float32)))
        for start in range(max(0, self.last - longest), self.last):
            self.cost[:, start, self.last - start - 1] += self._edge(start, most)
        self.way.pop(self.last - longest - most, None)

    def _edge(self, start: int, most: int) -> Tensor:
        """Summed cost of the edge from `start` to the newest node at each span, `[spans]`."""
        true, ahead = self._mean(start, self.last), self._mean(start, start + 1)
        length = self.way[self.last][0] - self.way[start][0]
        costs = []
        for span in range(1, most + 1):
            guess = ahead
            # a span of 1 corrects nothing: the mean over one Euler step is its velocity
            if 1 < span <= start:
                earlier = start - span
                window = self.way[start][0] - self.way[earlier][0]
                bend = self._mean(earlier, start) - self._mean(earlier, earlier + 1)
                guess = ahead + length / window * bend
            costs.append((true - guess).abs().flatten(1).mean(1).sum())
        return torch.stack(costs).to(self.cost.dtype)

    def _mean(self, start: int, end: int) -> Tensor:
        """Mean velocity between two nodes; of neighbours it is the velocity that was integrated."""
        (sigma, x), (later, y) = self.way[start], self.way[end]
        return (y - x) / (later - sigma)


class MeanCacheProfiler(RunProfiler):
    """Observes full trajectories and sums the cost of every edge of a MeanCache path.

    For steps i < j and a span K the cost is the mean magnitude of u(i..j) minus its estimate
    v_i + (sigma_j - sigma_i) * (u(i-K..i) - v_{i-K}) / (sigma_i - sigma_{i-K}), with u(a..b) the
    mean velocity (x_b - x_a) / (sigma_b - sigma_a). Under Euler steps v_i is u(i..i+1), so that the
    latents alone are measured, after guidance, and an edge of one step costs exactly 0. Profiles
    of batches merge by adding; planning needs no further network call.

    Source: trajectory-stability scheduling of MeanCache, arXiv 2601.19961, from secondary sources.
    The norm is not known; the mean magnitude is ours, and so is taking velocities from the latents.

    Attributes:
        longest: Longest edge in steps; 8 is the longest of the released tables.
        spans: Largest K.

    Raises:
        PolicyError: A setting is less than 1, or a step was reused.
        InputError: The trajectory does not start at step 0.

    Example:
        >>> Sampler([MeanCacheProfiler()]).calibrate(model, prompts)  # doctest: +SKIP
    """

    kind = KIND

    traits = Traits(
        requires=frozenset({"velocity", "first_order"}),
        seams=frozenset({Seam.LATENT}),
        reads_latents=True,
        deterministic=True,
    )
    longest: int = 8
    spans: int = 6

    def __post_init__(self) -> None:
        if self.longest < 1 or self.spans < 1:
            raise PolicyError(
                f"MeanCacheProfiler has longest {self.longest} and spans {self.spans}; both must "
                "be at least 1"
            )

    def _measured(self, session: SessionInfo) -> EdgeCostSums:
        wide = torch.float32 if session.device.type == "mps" else torch.float64
        shape = (self.spans, session.num_steps, self.longest)
        return session.state_of(
            self, lambda: EdgeCostSums(torch.zeros(shape, dtype=wide, device=session.device))
        )

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        require_computed(self, step, call)
        measured = self._measured(step.session)
        if not measured.way:
            # batched guidance repeats the latents
            x = call.x[: step.session.shape[0]].clone()
            wide = torch.promote_types(x.dtype, torch.float32)
            measured.way[0] = (step.interval.start, x.to(wide))
        return output

    @hookimpl
    def post_step(self, step: Step, sample: Tensor) -> None:
        measured = self._measured(step.session)
        before = measured.way[measured.last][1]
        if sample.shape != before.shape:
            raise PolicyError(
                f"{type(self).__name__} compares latents before and after a step; at step "
                f"{step.index} they are {tuple(before.shape)} and {tuple(sample.shape)}: the "
                "network of this pipeline is given something else than its latents"
            )
        measured.add(step.interval.end, sample.clone())

    def summarise(self, session: SessionInfo) -> Profile | None:
        measured = self._measured(session)
        if measured.last != session.num_steps:
            return None
        return self.emit(session, {"cost": measured.cost.double().cpu()})
