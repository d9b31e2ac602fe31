"""`SeaCacheRule`: a skip rule on the change of the filtered latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from erta_framework import Call, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import CapabilityError, PolicyError
from erta_policies.seacache._filter import apply_sea_filter, mixing_at
from erta_policies.shared import ChangeRule, Mixing, Signal, grid_dims, read_mixing


class SeaCacheRule(ChangeRule):
    """Reuses while the filtered latents have changed by less than `threshold`.

    The latents of every step pass a Wiener filter for their noise level. It keeps what is picture
    at that level: coarse structure early, detail later. The relative L1 changes from step to step
    are summed since the last computed step. It needs neither calibration nor signals of the
    network. The latents are the same in all guidance branches, so one decides for the step.

    Source: SeaCache, arXiv 2602.18993, and the repository jiwoogit/SeaCache, which filter the
    modulated input of the first block; the latents instead are the choice of diffusers' SeaCache
    hooks, and so is the default threshold. Deciding for each sample is ours, and so is reading from
    the schedule how latents and noise are mixed.

    Attributes:
        threshold: delta, the summed change at which the network runs again.
        power: Exponent of the power spectrum; published are 3 for videos and 2 for images.
        mixing: `"flow"` for `(1 - sigma) * clean + sigma * noise`, or `"variance_preserving"`; by
            default read from the schedule.
        per_sample: Decide for each sample of a batch; else the means run over the whole batch.

    Raises:
        PolicyError: A setting is out of range.
        CapabilityError: At the start of a request, for packed tokens, which have no grid, or sigmas
            above 1 with `mixing="flow"`.

    Example:
        >>> SeaCacheRule(threshold=0.2, power=2.0)
        SeaCacheRule(threshold=0.2, power=2.0, mixing=None, per_sample=True)
    """

    @property
    def traits(self) -> Traits:
        return replace(super().traits, seams=frozenset({Seam.LATENT}))

    threshold: float = 0.25
    power: float = 3.0
    mixing: Mixing | None = None
    per_sample: bool = True

    def __post_init__(self) -> None:
        if not self.threshold >= 0.0:
            raise PolicyError(f"the threshold of SeaCache is {self.threshold}, it must be >= 0")
        if not 0.0 < self.power < math.inf:
            raise PolicyError(f"the power of SeaCache is {self.power}, it must be above 0")

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if not grid_dims(session.shape, session.channel_dim):
            raise CapabilityError(
                f"{self!r} filters latents along their grid, and this request has latents of "
                f"{tuple(session.shape)} with the channels at {session.channel_dim}, which have "
                "none; use a pipeline without packed tokens, or another rule such as easycache"
            )
        if self.mixing == "flow" and max(session.sigmas) > 1.0:
            raise CapabilityError(
                f"{self!r} takes the latents as a flow's, but sigma begins at "
                f"{max(session.sigmas):g}, above 1; use mixing='variance_preserving'"
            )

    @property
    def watched_signal(self) -> Signal:
        """The latents."""
        return "latents"

    @property
    def effective_threshold(self) -> float:
        """The threshold."""
        return self.threshold

    @property
    def decides_each_branch(self) -> bool:
        """The latents are the same in all branches: the first one decides."""
        return False

    def observe_signal(self, step: Step, call: Call) -> Tensor:
        """The latents of a call, filtered for its noise level, in float32."""
        session = step.session
        mixing = self.mixing if self.mixing is not None else read_mixing(session)
        levels = max(session.sigmas) <= 1.0
        signal, noise = mixing_at(step.interval.start, mixing, levels)
        return apply_sea_filter(call.x, signal, noise, self.power, session.channel_dim)

    def predict_changes(self, step: Step, differences: Sequence[float]) -> tuple[list[float], str]:
        return list(differences), ""
