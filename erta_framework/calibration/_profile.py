"""`Profile`: what calibration measured, as mergeable sums with a fingerprint, in one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from erta_framework.calibration._fingerprint import make_fingerprint
from erta_framework.calibration._profile_file import (
    read_facts,
    read_profile_file,
    read_samples,
    write_profile_file,
)
from erta_framework.calibration._references import find_file, refuse_reference
from erta_framework.errors import ProfileError, ProfileMismatchError
from erta_framework.session import SessionInfo

MEASURED = "measured."
"""Begins the names of statistics that are no sums, but measured on the finished sums."""


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """Calibration statistics of one kind, for one model, grid and guidance.

    Attributes:
        kind: Name of the profiler that emitted it, such as `"my_profiler"`.
        fingerprint: Facts of the run, from `make_fingerprint`.
        statistics: Sums over samples; two profiles merge by adding them.
        samples: Number of samples in the sums.
        provenance: Where it comes from: hash of the prompts, seeds, versions, date.

    Example:
        >>> profile = Profile.load("wan.safetensors")  # doctest: +SKIP
        >>> profile.samples  # doctest: +SKIP
        16
    """

    kind: str
    fingerprint: Mapping[str, str]
    statistics: Mapping[str, Tensor]
    samples: int
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Profile {self.kind} {self.digest[:8]}, {self.samples} samples>"

    @property
    def digest(self) -> str:
        """Hash of everything but the provenance: equal digests plan and correct alike."""
        return _hash_profile(self)

    @property
    def num_steps(self) -> int:
        """Number of steps of the run that it was calibrated for.

        Raises:
            ProfileError: The fingerprint has none.
        """
        text = self.fingerprint.get("num_steps", "nothing")
        if not (text.isascii() and text.isdigit() and len(text) < 8 and int(text) > 0):
            raise ProfileError(
                f"the fingerprint of this {self.kind} profile has {text[:40]!r} as num_steps, not "
                "a number of steps; calibrate again"
            )
        return int(text)

    def require(self, session: SessionInfo, allow: Collection[str] = ()) -> None:
        """Refuse a run that the profile was not calibrated for.

        Args:
            session: The run.
            allow: Fingerprint fields that may differ.

        Raises:
            ProfileMismatchError: Names every field that differs as profile / run.
        """
        run = make_fingerprint(session)
        # a driver that learns branches as they come has none to compare yet
        accepted = set(allow) if session.branches else {*allow, "branches"}
        names = sorted(set(run) | set(self.fingerprint))
        wrong = [
            f"  {name}: profile {self.fingerprint.get(name, 'nothing')!r} / "
            f"run {run.get(name, 'nothing')!r}"
            for name in names
            if self.fingerprint.get(name) != run.get(name) and name not in accepted
        ]
        if wrong:
            raise ProfileMismatchError(
                f"this {self.kind} profile was calibrated for another run:\n"
                + "\n".join(wrong)
                + "\ncalibrate for this run, or accept a difference by name with allow=[...]"
            )

    def require_kind(self, kind: str, wanted_by: str) -> None:
        """Refuse a profile that another profiler emitted.

        Raises:
            ProfileError: Names both kinds.
        """
        if self.kind != kind:
            raise ProfileError(
                f"{wanted_by} needs a profile of kind {kind!r}, got one of kind {self.kind!r}; "
                f"calibrate with the policy that will use it"
            )

    # ---------------------------------------------------------------- merge
    @staticmethod
    def merge(profiles: Sequence[Profile]) -> Profile:
        """Add the sums of profiles that were made apart (batches, ranks, machines).

        Raises:
            ProfileMismatchError: Kind, fingerprint or statistics differ; names what.
            ProfileError: There is nothing to merge, or what was measured on one of them would not
                hold for all.
        """
        if not profiles:
            raise ProfileError("nothing to merge: no profile was given or emitted")
        first = profiles[0]
        for position, other in enumerate(profiles[1:], start=2):
            _require_alike(first, other, position)
        statistics = {
            name: torch.stack([p.statistics[name] for p in profiles]).sum(dim=0)
            for name in first.statistics
        }
        provenance: dict[str, str] = {}
        for profile in profiles:
            for key, value in profile.provenance.items():
                known = provenance.setdefault(key, value)
                if value not in known.split("; "):
                    provenance[key] = f"{known}; {value}"
        return replace(
            first,
            statistics=statistics,
            samples=sum(profile.samples for profile in profiles),
            provenance=provenance,
        )

    def with_provenance(self, **facts: str) -> Profile:
        """A copy with these facts added to its provenance."""
        return replace(self, provenance={**self.provenance, **facts})

    # ----------------------------------------------------------------- file
    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, replacing an older one atomically.

        Raises:
            InputError: The path is a reference to a store of profiles.
        """
        refuse_reference(path)
        metadata = {
            "kind": self.kind,
            "samples": str(self.samples),
            "fingerprint": json.dumps(dict(self.fingerprint), sort_keys=True),
            "provenance": json.dumps(dict(self.provenance), sort_keys=True),
            "digest": self.digest,
        }
        write_profile_file(Path(path), self.statistics, metadata)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile file. Its tensors are checked by the policy that reads it.

        Args:
            path: The file, or a reference such as `"hf:owner/name"` or `"hf:owner/name@v1"`.

        Raises:
            ProfileError: No such file, not a profile, truncated, another schema, or changed
                since it was written.
            InputError: It is no reference, though it begins like one.
        """
        path = find_file(path)
        if not path.is_file():
            raise ProfileError(f"no profile at {path}; make one with `erta calibrate`")
        metadata, statistics = read_profile_file(path)
        try:
            profile = cls(
                kind=metadata["kind"],
                fingerprint=read_facts(metadata["fingerprint"]),
                statistics=statistics,
                samples=read_samples(metadata["samples"]),
                provenance=read_facts(metadata["provenance"]),
            )
        except (KeyError, ValueError) as error:
            raise ProfileError(
                f"{path} has broken metadata ({error!r}); calibrate again"
            ) from error
        if profile.digest != metadata.get("digest"):
            raise ProfileError(
                f"{path} was changed after it was written: digest {profile.digest} computed / "
                f"{metadata.get('digest')} stored; calibrate again or fetch it again"
            )
        return profile


def _require_alike(first: Profile, other: Profile, position: int) -> None:
    differing = [
        f"  {name}: first {first.fingerprint.get(name, 'nothing')!r} / "
        f"number {position} {other.fingerprint.get(name, 'nothing')!r}"
        for name in sorted(set(first.fingerprint) | set(other.fingerprint))
        if first.fingerprint.get(name) != other.fingerprint.get(name)
    ]
    for profile in (first, other):
        if any(name.startswith(MEASURED) for name in profile.statistics):
            raise ProfileError(
                f"{profile!r} holds plans that were measured on it, which say nothing of a merged "
                "profile; merge those it was measured from, then measure again with `erta plan "
                "--measure`"
            )
    if first.kind != other.kind:
        differing.append(f"  kind: first {first.kind!r} / number {position} {other.kind!r}")
    shapes = [
        {k: (tuple(v.shape), str(v.dtype)) for k, v in p.statistics.items()} for p in (first, other)
    ]
    if shapes[0] != shapes[1]:
        differing.append(f"  statistics: first {shapes[0]} / number {position} {shapes[1]}")
    if differing:
        raise ProfileMismatchError(
            "these profiles do not describe the same run:\n" + "\n".join(differing)
        )


def _hash_profile(profile: Profile) -> str:
    sha = hashlib.sha256()
    facts = [profile.kind, profile.samples, sorted(profile.fingerprint.items())]
    sha.update(json.dumps(facts).encode())
    for name in sorted(profile.statistics):
        tensor = profile.statistics[name].cpu().contiguous()
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:32]
