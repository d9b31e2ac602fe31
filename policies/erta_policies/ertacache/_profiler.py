"""`ResidualProfiler`: the error of reusing every residual at every later step."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from erta_framework import Call, Profile, SessionInfo, Step, hookimpl
from erta_policies.ertacache._statistics import KIND, MOMENTS
from erta_policies.shared import (
    PairMoments,
    RunProfiler,
    order_branches,
    read_reference,
    require_computed,
)

PAIRS = ("ratio", "phi_velocity", "phi_difference", "distance", "velocity")


class PairSums:
    """Running sums of one branch of one request, and its trajectory so far.

    One trajectory is held at a time, `num_steps` residuals and outputs; it is dropped with the
    session.
    """

    def __init__(self, num_steps: int, channels: int, device: torch.device) -> None:
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.channels = channels
        self.samples = torch.zeros(num_steps, dtype=wide, device=device)
        self.elements = torch.zeros(num_steps, dtype=wide, device=device)
        self.pairs = {
            k: torch.zeros(num_steps, num_steps, dtype=wide, device=device) for k in PAIRS
        }
        self.regression = {
            k: torch.zeros(num_steps, num_steps, channels, dtype=wide, device=device)
            for k in MOMENTS
        }
        self._earlier: list[tuple[int, Tensor, Tensor]] = []
        self._before: tuple[int, Tensor, dict[int, Tensor]] | None = None

    def add(self, index: int, x: Tensor, v: Tensor) -> None:
        """Compare the residual of step `index` with every earlier one of this trajectory.

        Args:
            index: The step.
            x: What residuals are taken against, `[B, C, ...]`; see `read_reference`.
            v: The network's output.
        """
        x, v = to_channels(x), to_channels(v)
        residual = v - x
        size_v = mean_norm(v)
        self._finish_difference(index, v)
        errors = {}
        for source, earlier, velocity in self._earlier:
            error = earlier - residual
            reused = x + earlier
            errors[source] = mean_norm(error)
            self.pairs["distance"][source, index] += errors[source].sum()
            self.pairs["velocity"][source, index] += (velocity - v).square().mean(dim=(1, 2)).sum()
            self.pairs["ratio"][source, index] += relative_error(earlier, residual).sum()
            self.pairs["phi_velocity"][source, index] += sum_phi(errors[source], size_v)
            found = PairMoments.of(reused, error, dim=1)
            for name, value in zip(
                MOMENTS, (found.x, found.xx, found.y, found.yy, found.xy), strict=True
            ):
                self.regression[name][source, index] += value
        self.samples[index] += x.shape[0]
        self.elements[index] += x.shape[0] * x.shape[2]
        self._earlier.append((index, residual, v))
        self._before = (index, v, errors)

    def _finish_difference(self, index: int, v: Tensor) -> None:
        # phi's "difference" form of step i needs v at i + 1
        if self._before is None or self._before[0] != index - 1:
            return
        before, v_before, errors = self._before
        size = mean_norm(v_before - v)
        for source, error in errors.items():
            self.pairs["phi_difference"][source, before] += sum_phi(error, size)


def to_channels(value: Tensor) -> Tensor:
    """Latents `[B, C, ...]` as float32 `[B, C, N]`, N places a channel."""
    return value.reshape(*value.shape[:2], -1).float()


def mean_norm(value: Tensor) -> Tensor:
    """Mean absolute value of each sample, `[B]`."""
    return value.abs().mean(dim=(1, 2))


def relative_error(reused: Tensor, true: Tensor) -> Tensor:
    """`||reused - true||_1 / ||true||_1` of each sample, `[B]`.

    The norm is kept away from 0, so that sums stay finite; `relative_l1` is infinite there.
    """
    return mean_norm(reused - true) / mean_norm(true).clamp(min=1e-8)


def sum_phi(error: Tensor, size: Tensor) -> Tensor:
    """Sum over samples of `clip(1 - error / size, 0, 1)`."""
    return (1 - error / size.clamp(min=1e-8)).clamp(0, 1).sum()


class ResidualProfiler(RunProfiler):
    """Observes full runs and sums the error of every possible reuse.

    For each branch and each pair of steps (j, i) it sums the relative L1 error of reusing residual
    j at step i, both forms of phi, the moments of the affine error fit, and how far residuals and
    velocities are apart, from which errors of forecasts follow. So one profile serves every
    threshold, number of calls and planner: planning needs no further network call.
    Only the trajectory of the current batch is held, two latents a step and branch; profiles of
    batches merge by adding. The network's own outputs are logged, whatever other policies make of
    them. Nothing is emitted for a trajectory that failed or stopped before its last step.

    Source: ERTACache, arXiv 2508.21091, offline policy and error rectification; keeping all pairs
    instead of those of one schedule is ours.

    Raises:
        PolicyError: A step was reused, or other ranks evaluate some of the branches.
        InputError: The trajectory does not start at step 0.

    Example:
        >>> Sampler([ResidualProfiler()]).calibrate(model, prompts)  # doctest: +SKIP
    """

    kind = KIND

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        require_computed(self, step, call)
        sums = step.session.state_of(self, dict[str, PairSums])
        channel_dim = step.session.channel_dim
        reference = read_reference(step, call)
        x, v = (value.movedim(channel_dim, 1) for value in (reference, call.compute()))
        if call.branch not in sums:
            sums[call.branch] = PairSums(step.num_steps, x.shape[1], x.device)
        sums[call.branch].add(step.index, x, v)
        return output

    def summarise(self, session: SessionInfo) -> Profile | None:
        seen = session.state_of(self, dict[str, PairSums])
        if not any(bool(sums.samples[-1]) for sums in seen.values()):
            return None
        empty = PairSums(session.num_steps, next(iter(seen.values())).channels, session.device)
        branches = order_branches(session, seen, empty)
        ordered = list(branches.values())
        statistics = {
            "samples": torch.stack([sums.samples for sums in ordered]),
            "elements": torch.stack([sums.elements for sums in ordered]),
            "sigma": torch.tensor(session.sigmas, dtype=torch.float64) * session.shape[0],
        }
        for name in PAIRS:
            statistics[name] = torch.stack([sums.pairs[name] for sums in ordered])
        for name in MOMENTS:
            statistics[name] = torch.stack([sums.regression[name] for sums in ordered])
        found = {name: value.double().cpu() for name, value in statistics.items()}
        return self.emit(session, found, {"branches": ",".join(branches)})
