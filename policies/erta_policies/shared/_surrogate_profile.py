"""The profile that surrogates of blocks are fitted to, and how it is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field

from torch import Tensor

from erta_framework.calibration import Entry, ProfileKind
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.modules import Select
from erta_policies.shared._change_profiler import BINS, count_bins
from erta_policies.shared._channel_affine import PairMoments
from erta_policies.shared._drift import to_sums
from erta_policies.shared._module_profiler import ModuleProfiler, Seen
from erta_policies.shared._surrogate_fit import ChangeMoments

STREAMS = 2
"""Most streams that a block may have."""
LINE = ("x", "xx", "y", "yy", "xy")
OWN = ("rows", "longest")
"""What the fingerprint has beside that of every run."""


def list_entries(stream: int) -> dict[str, Entry]:
    """What is kept of one stream of the blocks."""
    width = "CD"[stream]
    optional = stream > 0
    square = Entry(shape=f"b P K {width} {width}", least=None, optional=optional)
    line = Entry(shape=f"b P K {width}", least=None, optional=optional)
    return {
        f"gram.{stream}": square,
        f"cross.{stream}": square,
        f"pairs.{stream}": Entry(shape="b P K", counts=True, optional=optional),
        f"moves.{stream}": Entry(shape=f"b P K {BINS}", counts=True, optional=optional),
        **{f"{name}.{stream}": line for name in LINE},
    }


KIND = ProfileKind(
    "block_surrogates",
    {
        "samples": Entry(shape="b P K", counts=True),
        **{name: entry for k in range(STREAMS) for name, entry in list_entries(k).items()},
    },
    facts=("branches", *OWN),
)


class SurrogateProfiler(ModuleProfiler):
    """Watches blocks over full runs, and keeps the sums to which surrogates are fitted.

    Of every block it compares steps that are 1 to `longest` apart: how its input moved, dH, and how
    what it adds to it changed, dR. It sums dH'dH and dH'dR for the ridge fit, and the moments of
    stale and fresh residual for a line each channel, for every stream of the block. Of neighbouring
    steps it counts the root mean square of dH in each sample. The sums are of channels by channels:
    two matrices for each block, stream, branch and bucket.

    Source: ours, for the surrogates of FastCache (arXiv 2505.20353), whose fit was not published.

    Attributes:
        blocks: Which blocks; by default all of the trunk.
        buckets: Parts of the steps with sums of their own, of equal length.
        longest: Most steps between the two of a pair: how long a block may be reused.

    Raises:
        PolicyError: A setting is out of range.
        CapabilityError: A block has more streams than can be told apart.

    Example:
        >>> SurrogateProfiler(buckets=4).find_period(49, 50)
        3
    """

    kind = KIND
    of = "residual"
    takes_inputs = True

    blocks: Select = field(default_factory=lambda: Select(kind=("block",)))
    buckets: int = 1
    longest: int = 3

    def __post_init__(self) -> None:
        if self.buckets < 1 or self.longest < 1:
            raise PolicyError(
                f"SurrogateProfiler has buckets={self.buckets} and longest={self.longest}; both "
                "must be at least 1"
            )
        if self.blocks.kind != ("block",) or self.blocks.span:
            raise PolicyError(f"SurrogateProfiler watches single blocks, and not {self.blocks}")

    @property
    def selects(self) -> Sequence[Select]:
        """The blocks."""
        return (self.blocks,)

    @property
    def window(self) -> int:
        """The steps of the pairs."""
        return self.longest

    def facts(self) -> Mapping[str, str]:
        """What the sums depend on beside the run."""
        return {"longest": str(self.longest)}

    def find_period(self, index: int, num_steps: int) -> int:
        """The bucket of a step."""
        return find_bucket(index, num_steps, self.buckets)

    def measure(self, now: Seen, before: Sequence[Seen]) -> Mapping[str, Tensor]:
        """What a block at one step adds to the sums of each of its streams."""
        if len(now.outputs) > STREAMS:
            raise CapabilityError(
                f"{now.place} has {len(now.outputs)} streams; a surrogate profile holds sums of up "
                f"to {STREAMS}"
            )
        sums: dict[str, Tensor] = {}
        for stream, residual in enumerate(now.outputs):
            for older in before:
                apart = now.index - older.index
                if apart > self.longest:
                    continue
                moved = to_sums(now.inputs[stream]) - to_sums(older.inputs[stream])
                found = measure_pair(moved, residual, older.outputs[stream])
                if apart == 1:
                    sizes = moved.flatten(1).square().mean(dim=1).sqrt()
                    found["moves"] = count_bins(sizes)
                for name, value in found.items():
                    own = f"{name}.{stream}"
                    sums[own] = sums[own] + value if own in sums else value
        return sums


def measure_pair(moved: Tensor, fresh: Tensor, stale: Tensor) -> dict[str, Tensor]:
    """The sums of one pair of steps: of changes, and of the residuals themselves."""
    change = ChangeMoments.of(moved, to_sums(fresh) - to_sums(stale))
    line = PairMoments.of(stale, fresh, dim=-1)
    return {
        "gram": change.gram,
        "cross": change.cross,
        "pairs": line.count,
        **{name: getattr(line, name) for name in LINE},
    }


def find_bucket(index: int, num_steps: int, buckets: int) -> int:
    """The bucket of a step, of so many of equal length.

    Example:
        >>> [find_bucket(k, 5, 2) for k in range(5)]
        [0, 0, 0, 1, 1]
    """
    return min(index * buckets // num_steps, buckets - 1)
