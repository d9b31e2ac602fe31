"""`SurrogateTable`: the surrogates of the blocks of a network, fitted to a profile."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from torch import Tensor

from erta_framework import Profile, SessionInfo
from erta_framework.errors import ProfileError
from erta_policies.shared._change_profiler import read_quantile
from erta_policies.shared._channel_affine import PairMoments, fit_line
from erta_policies.shared._module_profiler import read_rows
from erta_policies.shared._profiles import refuse_unsolvable
from erta_policies.shared._surrogate_fit import ChangeMoments, fit_ridge
from erta_policies.shared._surrogate_profile import LINE, OWN, find_bucket
from erta_policies.shared._surrogates import (
    ResidualReuse,
    RidgeResidual,
    Surrogate,
    SurrogateName,
    make_affine,
)


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
