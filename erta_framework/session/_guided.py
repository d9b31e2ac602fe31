"""`Guided`: the prediction of a step after guidance, as the solver will get it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from erta_framework.errors import PolicyError

GUIDED = "guided"
"""Capability of drivers that hand over the guided prediction of each step before the solver gets
it, and know how clean sample and noise mix in the latents; see `Guided`."""


@dataclass(frozen=True, slots=True, eq=False)
class Guided:
    """The prediction of a step after guidance, with what relates it to the latents.

    The latents are `alpha * clean + level * noise`, as the solver sees them.

    Attributes:
        x: The latents, `[B, C, ...]`.
        prediction: What guidance made of the branches, of the shape of `x`. A network that learns
            a variance has further channels behind the first C.
        alpha: Factor of the clean sample in the latents.
        level: Factor of the noise.
    """

    x: Tensor
    prediction: Tensor
    alpha: float
    level: float


def check_adjusted(
    guided: Guided, output: object, owner: Callable[[str], str], where: Callable[[], str]
) -> Tensor:
    """The adjusted prediction, if it can take the place of the guided one.

    Raises:
        PolicyError: It is no tensor, or not of the shape, type and device of the guided one.
    """
    given = guided.prediction
    if output is given:
        return given
    if not isinstance(output, Tensor):
        found = type(output).__name__
    elif (output.shape, output.dtype, output.device) != (given.shape, given.dtype, given.device):
        found = f"{tuple(output.shape)} {output.dtype} on {output.device}"
    else:
        return output
    raise PolicyError(
        f"{owner('adjust_prediction')} returned {found} from adjust_prediction {where()}, expected "
        f"{tuple(given.shape)} {given.dtype} on {given.device}"
    )
