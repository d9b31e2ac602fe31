"""`MagCacheProfiler`: how the residual's magnitude changes from step to step."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from erta_framework import Call, Profile, Profiler, Seam, SessionInfo, Step, hookimpl
from erta_framework.calibration import fingerprint_of
from erta_policies.magcache.tables import KIND
from erta_policies.parts.profiles import require_full, require_whole

SUMS = ("ratio", "square", "cosine")


@dataclass(slots=True)
class Sums:
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
    def empty(cls, num_steps: int, device: torch.device) -> Sums:
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


class MagCacheProfiler(Profiler):
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

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require_whole(self, session)

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        require_full(self, step, call)
        branches = step.session.state_of(self, dict[str, Sums])
        if call.branch not in branches:
            branches[call.branch] = Sums.empty(step.num_steps, call.x.device)
        channels = step.session.channel_dim if call.seam is Seam.LATENT else -1
        residual = (call.compute() - call.x).movedim(channels, -1).float()
        branches[call.branch].add(step.index, residual)
        return output

    @hookimpl
    def on_session_end(self, session: SessionInfo, error: BaseException | None) -> Profile | None:
        branches = session.state_of(self, dict[str, Sums])
        last = session.num_steps - 1
        if error is not None or not any(sums.index == last for sums in branches.values()):
            return None
        names = session.branches or tuple(branches)
        none = Sums.empty(session.num_steps, session.device)
        ordered = [branches.get(name, none) for name in names]
        statistics = {
            name: torch.stack([getattr(sums, name) for sums in ordered]).double().cpu()
            for name in ("samples", *SUMS)
        }
        return Profile(
            kind=KIND,
            fingerprint={**fingerprint_of(session), "branches": ",".join(names)},
            statistics=statistics,
            samples=session.shape[0],
        )
