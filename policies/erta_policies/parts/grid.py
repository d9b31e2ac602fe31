"""Which dimensions of latents are their grid."""

from __future__ import annotations

from collections.abc import Sequence


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
