"""The profile that surrogates of blocks are fitted to, and how it is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from itertools import count

from torch import Tensor

from erta_framework import Profile, SessionInfo
from erta_framework.calibration import Entry, ProfileKind
from erta_framework.errors import CapabilityError, PolicyError, ProfileError
from erta_framework.modules import Select
from erta_policies.shared._change_profiler import BINS, count_bins, read_quantile
from erta_policies.shared._channel_affine import PairMoments, fit_line
from erta_policies.shared._drift import to_sums
from erta_policies.shared._module_profiler import ModuleProfiler, Seen, read_rows
from erta_policies.shared._profiles import refuse_unsolvable
from erta_policies.shared._surrogates import (
    ChangeMoments,
    ResidualReuse,
    RidgeResidual,
    Surrogate,
    SurrogateName,
    fit_ridge,
    make_affine,
)

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


class SurrogateTable:
    """The surrogates of the blocks of a network, fitted to a profile when they are first needed.

    The sums of all branches are one: a block is the same in each.

    Args:
        profile: From `SurrogateProfiler`; None, which only `residual` may have.
        name: Which surrogate.
        ridge: The penalty of the ridge fit, relative to the mean square of a channel.
        rank: Largest rank of the ridge fit; None for no limit.
    """

    def __init__(
        self, profile: Profile | None, name: SurrogateName, ridge: float, rank: int | None
    ) -> None:
        self.profile, self.name, self.ridge, self.rank = profile, name, ridge, rank
        self.rows = {} if profile is None else dict(zip(read_rows(profile), count(), strict=False))
        self._fitted: dict[tuple[int, int, int], Surrogate] = {}
        self._reuse = ResidualReuse()

    @property
    def buckets(self) -> int:
        """Parts of the steps with fits of their own."""
        return 1 if self.profile is None else self.profile.statistics["samples"].shape[2]

    def require(self, session: SessionInfo, allow: Sequence[str]) -> None:
        """Refuse a run that the profile was not calibrated for.

        Raises:
            ProfileMismatchError: Names every field that differs.
        """
        if self.profile is not None:
            self.profile.require(session, (*allow, *OWN))

    def find_row(self, path: str) -> int:
        """The row of a block in the sums.

        Raises:
            ProfileError: The profile has none for it.
        """
        if path not in self.rows:
            raise ProfileError(
                f"{self.profile!r} has no sums of {path}, it has those of {', '.join(self.rows)}; "
                "calibrate on these blocks, or select those"
            )
        return self.rows[path]

    def find(self, path: str, stream: int, index: int, num_steps: int) -> Surrogate:
        """The surrogate of one stream of a block at a step.

        Raises:
            ProfileError: The profile has no sums of it, or they cannot be solved.
        """
        if self.name == "residual" or self.profile is None:
            return self._reuse
        key = (self.find_row(path), stream, find_bucket(index, num_steps, self.buckets))
        if key not in self._fitted:
            with refuse_unsolvable(self.profile):
                self._fitted[key] = self._fit(*key)
        return self._fitted[key]

    def _fit(self, row: int, stream: int, bucket: int) -> Surrogate:
        if self.name == "ridge":
            changes = self.sum_changes(row, stream, bucket)
            return RidgeResidual(fit_ridge(changes, self.ridge, self.rank))
        sums = {name: self._sum(f"{name}.{stream}", row)[bucket] for name in LINE}
        pairs = self._sum(f"pairs.{stream}", row)[bucket]
        return make_affine(fit_line(PairMoments(pairs, **sums)), "the affine surrogate")

    def sum_changes(self, row: int, stream: int, bucket: int | None = None) -> ChangeMoments:
        """The moments of a block, of one bucket or of all."""
        part = slice(None) if bucket is None else slice(bucket, bucket + 1)
        gram, cross = (
            self._sum(f"{name}.{stream}", row)[part].sum(dim=0) for name in ("gram", "cross")
        )
        return ChangeMoments(gram, cross)

    def find_innovation(self, path: str, stream: int, quantile: float) -> float:
        """A quantile of how far the input of a block moves in a step, mean square an element."""
        moves = self._sum(f"moves.{stream}", self.find_row(path)).sum(dim=0)
        return read_quantile(moves, quantile) ** 2

    def count_dimensions(self, path: str, stream: int) -> float:
        """How many directions of its channels the input of a block moves in."""
        return self.sum_changes(self.find_row(path), stream).dimensions

    def _sum(self, name: str, row: int) -> Tensor:
        """One statistic of a block over all branches, `[K, ...]`.

        Raises:
            ProfileError: The profile does not have it.
        """
        assert self.profile is not None
        if name not in self.profile.statistics:
            raise ProfileError(
                f"{self.profile!r} has no {name!r}, so its blocks had fewer streams than those of "
                "this network; calibrate for it"
            )
        total: Tensor = self.profile.statistics[name][:, row].sum(dim=0)
        return total
