"""`Correction`: the base of what `At` does to a reused tensor before the network gets it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from erta_framework import Policy, SessionInfo
from erta_framework.modules import Of, Parts, Place


class Correction(Policy):
    """Base of policies that change what `At` reuses; what is kept stays as it is.

    Source: ours.
    """

    def check_session(self, session: SessionInfo) -> None:
        """Refuse a run that it does not fit; by default none."""

    def correct(
        self, index: int, call: Parts, place: Place, of: Of
    ) -> tuple[Callable[[Tensor], Tensor], ...]:
        """What becomes of each tensor of a place that is reused at a step.

        Args:
            index: The step.
            call: The network call.
            place: The place.
            of: What of it is reused, `output` or `residual`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it corrects")
