"""What rules look at: magnitudes and changes of tensors, probes, grids, and how noise is mixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from erta_framework import Call, Needs, SessionInfo, Traits
from erta_framework.errors import PolicyError
from erta_framework.plugins import choose_unit

Mixing = Literal["flow", "variance_preserving"]


# --------------------------------------------------------------------------------- probes
def probe_capability(depth: int) -> frozenset[str]:
    """What a policy requires to read the hidden states after `depth` blocks at the trunk seam."""
    return frozenset({f"signal:probe:{depth}"})


def make_probe_traits(depth: int, per_sample: bool, each_branch: bool = True) -> Traits:
    """What a rule says of itself that decides on the hidden states after `depth` blocks."""
    return Traits(
        requires=probe_capability(depth),
        memory=Needs(evaluations=1),
        decides=choose_unit(per_sample, each_branch),
    )


def read_probe(call: Call, depth: int) -> Tensor:
    """Hidden states after `depth` blocks, `[B, tokens, D]`; these blocks run once a call."""
    return call.feature(f"probe:{depth}")


def check_probe_depth(depth: int, owner: str) -> None:
    """Refuse a probe before the first block.

    Raises:
        PolicyError: The depth is less than 1.
    """
    if depth < 1:
        raise PolicyError(f"the depth of {owner} is {depth}, it must be at least 1 block")


def check_probe_rule(depth: int, threshold: float, owner: str) -> None:
    """Refuse a probe before the first block, and a threshold that is no bound.

    Raises:
        PolicyError: The depth is less than 1, or the threshold is below 0 or NaN.
    """
    check_probe_depth(depth, owner)
    if not threshold >= 0.0:
        raise PolicyError(f"the threshold of {owner} is {threshold}, below 0")


# -------------------------------------------------------------------------------- latents
def grid_dims(shape: Sequence[int], channel_dim: int) -> tuple[int, ...]:
    """The dimensions that are neither batch nor channels: frames, height, width.

    Packed tokens `[B, L, C]` have none: their order is known to the pipeline alone.

    Args:
        shape: Shape of the latents.
        channel_dim: Dimension of the channels.

    Example:
        >>> grid_dims((1, 16, 21, 60, 104), 1), grid_dims((1, 4096, 64), 2)
        ((2, 3, 4), ())
    """
    if len(shape) == 3 and channel_dim == 2:
        return ()
    return tuple(d for d in range(1, len(shape)) if d != channel_dim)


def read_mixing(session: SessionInfo) -> Mixing:
    """How latents are mixed from clean part and noise, as the schedule of a request shows.

    `"flow"` where the driver integrates velocities, or where no sigma is above 1 and the network's
    timestep is a multiple of sigma; else `"variance_preserving"`.
    """
    if "velocity" in session.capabilities:
        return "flow"
    if "epsilon" in session.capabilities or max(session.sigmas) > 1.0:
        return "variance_preserving"
    unit = session.times[0] / session.sigmas[0] if session.sigmas[0] else 0.0
    near = 0.01 * max(session.times)  # schedulers round their timesteps
    pairs = zip(session.sigmas, session.times, strict=False)
    flow = all(abs(unit * sigma - time) <= near for sigma, time in pairs)
    return "flow" if flow else "variance_preserving"
