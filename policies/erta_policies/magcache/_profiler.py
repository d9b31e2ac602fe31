"""`MagCacheProfiler`: the ratio of the residual's magnitudes from step to step."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from erta_framework import Call, Profile, Seam, SessionInfo, Step, hookimpl
from erta_policies.magcache._tables import KIND
from erta_policies.shared import RunProfiler, order_branches, read_reference, require_computed

SUMS = ("ratio", "square", "cosine")


@dataclass(slots=True)
class RatioSums:
    """Running sums of one branch, and its residual of the step before.

    Attributes:
        samples: Samples seen at each step, `[T]`.
        ratio: Sum of each sample's mean ratio.
        square: Sum of each sample's mean squared ratio.
        cosine: Sum of each sample's mean cosine distance.
        index: Step of the residual that is held.
        residual: That residual, channels last.
    """

    samples: Tensor
    ratio: Tensor
    square: Tensor
    cosine: Tensor
    index: int = -1
    residual: Tensor | None = None

    @classmethod
    def empty(cls, num_steps: int, device: torch.device) -> RatioSums:
        """Sums of nothing."""
        wide = torch.float32 if device.type == "mps" else torch.float64
        samples, ratio, square, cosine = torch.zeros(4, num_steps, dtype=wide, device=device)
        return cls(samples, ratio, square, cosine)

    def add(self, index: int, residual: Tensor) -> None:
        """Compare the residual of a step with that of the step before, token by token."""
        before = self.residual if self.index == index - 1 else None
        self.index, self.residual = index, residual
        if before is None or before.shape != residual.shape:
            return
        size, old = residual.norm(dim=-1), before.norm(dim=-1)
        ratio = (size / (old + 1e-8)).flatten(1)
        product = (residual * before).sum(dim=-1)
        cosine = 1.0 - product / (size * old).clamp_min(1e-8)
        self.samples[index] += residual.shape[0]
        self.ratio[index] += ratio.mean(dim=1).sum()
        self.square[index] += (ratio**2).mean(dim=1).sum()
        self.cosine[index] += cosine.flatten(1).mean(dim=1).sum()


class MagCacheProfiler(RunProfiler):
    """Observes full runs and sums up the ratio of residual magnitudes of neighbouring steps.

    For every branch and step: the norm over channels of each token's residual, divided by that at
    the step before, averaged over tokens. The squares and the cosine distance are kept beside it,
    as the published calibration prints their spread. One prompt is what the authors use; more are
    averaged, and profiles of batches merge by adding. At the latent seam every pixel of the latents
    is a token. Nothing is emitted for a trajectory that failed or did not reach its last step.

    Source: MagCache, arXiv 2506.09045, and its calibration scripts; sums instead of one run are
    ours.

    Raises:
        PolicyError: A step was reused.
        InputError: The trajectory does not start at step 0.

    Example:
        >>> Sampler([MagCacheProfiler()]).calibrate(model, prompts)  # doctest: +SKIP
    """

    kind = KIND

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        require_computed(self, step, call)
        branches = step.session.state_of(self, dict[str, RatioSums])
        if call.branch not in branches:
            branches[call.branch] = RatioSums.empty(step.num_steps, call.x.device)
        channels = step.session.channel_dim if call.seam is Seam.LATENT else -1
        reference = read_reference(step, call)
        residual = (call.compute() - reference).movedim(channels, -1).float()
        branches[call.branch].add(step.index, residual)
        return output

    def summarise(self, session: SessionInfo) -> Profile | None:
        seen = session.state_of(self, dict[str, RatioSums])
        last = session.num_steps - 1
        if not any(sums.index == last for sums in seen.values()):
            return None
        empty = RatioSums.empty(session.num_steps, session.device)
        branches = order_branches(session, seen, empty)
        statistics = {
            name: torch.stack([getattr(sums, name) for sums in branches.values()]).double().cpu()
            for name in ("samples", *SUMS)
        }
        return self.emit(session, statistics, {"branches": ",".join(branches)})
