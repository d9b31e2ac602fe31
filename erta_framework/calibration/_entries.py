"""What the tensors of a profile must satisfy: one declaration a kind, checked where it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from erta_framework.calibration._periods import find_period
from erta_framework.calibration._profile import Profile
from erta_framework.errors import ProfileError

STEPS, BRANCHES = "T", "b"
"""Sizes that the fingerprint of a profile names; any other letter is a size of its own."""
Monotone = Literal["weak", "strict"]
AGAIN = "calibrate again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one tensor of a profile must satisfy.

    Attributes:
        shape: Sizes in order, such as `"b T T C"`: `b` the branches and `T` the steps of the
            fingerprint, `T+1` the ends of the steps, a number, or a letter of your own, which is
            the same size wherever the kind has it. Empty for a single number.
        least: Smallest value that is possible; None if every value is.
        most: Largest value that is possible.
        part_of: Name of an entry of counts that no value exceeds, `[b, T]` for `[b, T, T]`.
        counts: Whether the values are whole numbers.
        monotone: `"weak"` if the values only rise or only fall, as a sigma grid does, `"strict"` if
            no two neighbours are equal either.
        finite: Whether infinities are refused, and NaN; with `least`, NaN always is.
        optional: Whether it may be missing, as in profiles of earlier versions.
        dtype: Type of the values.
    """

    shape: str
    least: float | None = 0.0
    most: float | None = None
    part_of: str = ""
    counts: bool = False
    monotone: Monotone | None = None
    finite: bool = True
    optional: bool = False
    dtype: torch.dtype = torch.float64


@dataclass(frozen=True, slots=True)
class StepSeries:
    """Changes from step to step, which must not recur with a short period.

    They do where another cache skipped steps while the profile was made: the network then answers
    with an older output, the change is none, and every n-th step pays for it.

    Attributes:
        entry: An entry `[.., T]`, or `[.., T, T]` by pair of steps.
        over: Entry of the counts that it is divided by, `[.., T]`.
        about: Value of no change.
    """

    entry: str
    over: str
    about: float = 0.0


@dataclass(frozen=True, slots=True)
class ProfileKind:
    """The profiles of one profiler: their name, and what their tensors must satisfy.

    Attributes:
        name: Kind of the profiles, `Profile.kind`.
        entries: The tensors by name; a profile may hold others beside them.
        series: The changes in which the period of another cache would show.
        facts: Fields that the fingerprint must have beside those of every run.

    Example:
        >>> kind = ProfileKind("toy", {"ratio": Entry(shape="T")})
        >>> broken = {"ratio": torch.tensor([1.0, float("nan")], dtype=torch.float64)}
        >>> kind.check(Profile("toy", {"num_steps": "2"}, broken, samples=1))
        Traceback (most recent call last):
            ...
        erta_framework.errors.ProfileError: 'ratio' of this toy profile is nan at step 1, ...
    """

    name: str
    entries: Mapping[str, Entry]
    series: StepSeries | None = None
    facts: Sequence[str] = ()

    def check(self, profile: Profile) -> Profile:
        """The profile, if its tensors are what this kind of profile holds.

        Raises:
            ProfileError: Names the entry, the place, the value and what it must be.
        """
        absent = [name for name in self.facts if name not in profile.fingerprint]
        if absent:
            raise ProfileError(
                f"the fingerprint of this {profile.kind} profile has no {', '.join(absent)}, "
                f"it has {', '.join(profile.fingerprint) or 'nothing'}; {AGAIN}"
            )
        sizes = self._read_sizes(profile)
        for name, entry in self.entries.items():
            value = profile.statistics.get(name)
            if value is None:
                if not entry.optional:
                    raise ProfileError(
                        f"this {profile.kind} profile has no {name!r}, it holds "
                        f"{', '.join(sorted(profile.statistics)) or 'nothing'}; {AGAIN}"
                    )
                continue
            where = f"{name!r} of this {profile.kind} profile"
            _check_form(where, value, entry, sizes)
            branches = profile.fingerprint.get("branches", "").split(",")
            _check_values(where, value, entry, branches)
            if entry.part_of:
                _check_part(where, value, profile.statistics[entry.part_of], entry, branches)
        if self.series is not None:
            _check_series(self.series, profile)
        return profile

    def _read_sizes(self, profile: Profile) -> dict[str, int]:
        """The sizes that the fingerprint names, as far as the entries have them."""
        words = {word for entry in self.entries.values() for word in entry.shape.split()}
        sizes: dict[str, int] = {}
        if words & {STEPS, f"{STEPS}+1"}:
            sizes = {STEPS: profile.num_steps, f"{STEPS}+1": profile.num_steps + 1}
        if BRANCHES in words:
            sizes[BRANCHES] = len(profile.fingerprint.get("branches", "").split(","))
        return sizes


def _check_form(where: str, value: Tensor, entry: Entry, sizes: dict[str, int]) -> None:
    """Refuse another type or shape; learns the sizes of letters that are new."""
    if value.dtype != entry.dtype:
        raise ProfileError(f"{where} is {value.dtype}, it must be {entry.dtype}; {AGAIN}")
    words = entry.shape.split()
    fits = value.ndim == len(words)
    for word, size in zip(words, value.shape, strict=False):
        wanted = int(word) if word.isdigit() else sizes.setdefault(word, max(size, 1))
        fits = fits and size == wanted
    if not fits:
        known = ", ".join(f"{word} = {sizes[word]}" for word in words if word in sizes)
        raise ProfileError(
            f"{where} has shape {list(value.shape)}, it must be [{', '.join(words)}]"
            + (f" with {known}" if known else "")
            + f"; {AGAIN}"
        )


def _check_values(where: str, value: Tensor, entry: Entry, branches: list[str]) -> None:
    """Refuse values that sums of this kind cannot have."""
    checks: list[tuple[str, Tensor]] = []
    if entry.finite:
        checks.append(("it must be a finite number", ~value.isfinite()))
    if entry.least is not None:
        checks.append((f"it must be at least {entry.least:g}", ~(value >= entry.least)))
    if entry.most is not None:
        checks.append((f"it must be at most {entry.most:g}", value > entry.most))
    if entry.counts:
        checks.append(("it must be a whole number", value != value.round()))
    for rule, wrong in checks:
        if bool(wrong.any()):
            raise ProfileError(_say(where, value, wrong, entry, branches, rule))
    if entry.monotone is not None:
        rises = value.diff(dim=-1)
        turns = bool((rises > 0).any()) and bool((rises < 0).any())
        if turns or (entry.monotone == "strict" and bool((rises == 0).any())):
            raise ProfileError(
                f"{where} rises at some steps and falls or stays at others, it must be monotone: "
                f"{[float(f'{number:.4g}') for number in value.flatten().tolist()[:8]]}...; {AGAIN}"
            )


def _check_part(
    where: str, value: Tensor, counts: Tensor, entry: Entry, branches: list[str]
) -> None:
    """Refuse a sum of shares that exceeds the number of what was summed."""
    most = counts if counts.ndim == value.ndim else counts.unsqueeze(-2)
    wrong = value > most * (1 + 1e-6) + 1e-6  # sums of rounded ones
    if bool(wrong.any()):
        rule = f"it must not exceed the count in {entry.part_of!r}"
        raise ProfileError(_say(where, value, wrong, entry, branches, rule))


def _say(
    where: str, value: Tensor, wrong: Tensor, entry: Entry, branches: list[str], rule: str
) -> str:
    """What to say of the first wrong value: its place in words, the value and the rule."""
    place = wrong.nonzero()[0].tolist()
    words = []
    for word, index in zip(entry.shape.split(), place, strict=True):
        name = {STEPS: "step", f"{STEPS}+1": "step"}.get(word, word)
        words.append(f"branch {branches[index]!r}" if word == BRANCHES else f"{name} {index}")
    number = value[tuple(place)].item()
    at = f" at {', '.join(words)}" if words else ""
    return f"{where} is {number:g}{at}, {rule}; {AGAIN}"


def _check_series(series: StepSeries, profile: Profile) -> None:
    """Refuse changes that recur with a period, which are those of another cache."""
    sums, counts = profile.statistics[series.entry], profile.statistics[series.over]
    if sums.ndim > counts.ndim:  # by pair of steps: those of neighbours, `[.., T - 1]`
        sums, counts = sums.diagonal(offset=1, dim1=-2, dim2=-1), counts[..., 1:]
    changes = (sums / counts - series.about).abs()
    for row in changes.reshape(-1, changes.shape[-1]).tolist():
        period = find_period(row)
        if period is not None:
            raise ProfileError(
                f"{series.entry!r} of this {profile.kind} profile recurs every {period} steps: "
                "another cache skipped the steps between while it was made, so it does not show "
                "the network; switch every cache off and calibrate again"
            )
