"""`SmoothCacheProfiler`: how much the outputs of attention and MLPs change over a few steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field

import torch
from torch import Tensor

from erta_framework.calibration import Entry, ProfileKind
from erta_framework.errors import PolicyError
from erta_framework.modules import Place, Select, Selection
from erta_policies.shared import ROWS, SAMPLES, ModuleProfiler, Seen, relative_l1

KIND = ProfileKind(
    "smoothcache",
    {"errors": Entry(shape="b P T L"), SAMPLES: Entry(shape="b P T", counts=True)},
    facts=("branches", ROWS),
)


class SmoothCacheProfiler(ModuleProfiler):
    """Measures how much the output of each component changes over 1 to `lookback` steps.

    A component is all modules of one name, such as every `attn1`. For each step and each of the
    steps before it sums the relative L1 change `|earlier - now| / |now|` over the blocks and the
    samples. The profile fits any threshold.

    Source: SmoothCache, arXiv 2411.10510, as in its code (Roblox/SmoothCache,
    `calibration/calibration_helper.py`), which takes one change of the whole batch and one run.
    A change for each sample and sums over runs are ours.

    Attributes:
        lookback: L, the longest reuse that a schedule can have.
        sites: Which modules.

    Raises:
        PolicyError: The lookback is less than 1.

    Example:
        >>> SmoothCacheProfiler(lookback=2).keeps()
        3
    """

    kind = KIND
    lookback: int = 3
    sites: Select = field(default_factory=lambda: Select(kind=("attention", "cross", "mlp")))

    def __post_init__(self) -> None:
        if self.lookback < 1:
            raise PolicyError(
                f"lookback of SmoothCacheProfiler is {self.lookback}, it must be at least 1"
            )

    @property
    def selects(self) -> Sequence[Selection]:
        """The modules."""
        return (self.sites,)

    @property
    def window(self) -> int:
        return self.lookback

    def name_row(self, place: Place) -> str:
        return name_component(place)

    def measure(self, now: Seen, before: Sequence[Seen]) -> Mapping[str, Tensor]:
        errors = torch.zeros(self.lookback)
        for back, one in enumerate(before):
            changes = [
                relative_l1(split_samples(old, now.samples), split_samples(new, now.samples)).mean()
                for old, new in zip(one.outputs, now.outputs, strict=True)
            ]
            errors[back] = now.samples * torch.stack(changes).mean()
        return {"errors": errors}


def name_component(place: Place) -> str:
    """The component of a place: the last name of its path.

    Example:
        >>> name_component(Place("blocks.3.attn1", "attention", 3))
        'attn1'
    """
    return place.path.rpartition(".")[2]


def split_samples(tensor: Tensor, samples: int) -> Tensor:
    """A row for each sample, of a tensor whose first size is a multiple of their number."""
    return tensor.reshape(samples, -1) if tensor.shape[0] % samples == 0 else tensor.flatten()[None]
