"""`Profile`: what calibration measured, as mergeable sums with a fingerprint, in one file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from erta_framework.calibration._fingerprint import make_fingerprint
from erta_framework.errors import ProfileError, ProfileMismatchError
from erta_framework.session import SessionInfo

SCHEMA = "erta_framework.profile/1"
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
        """Write one safetensors file, replacing an older one atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        metadata = {
            "schema": SCHEMA,
            "kind": self.kind,
            "samples": str(self.samples),
            "fingerprint": json.dumps(dict(self.fingerprint), sort_keys=True),
            "provenance": json.dumps(dict(self.provenance), sort_keys=True),
            "digest": self.digest,
        }
        # cloned, because safetensors refuses tensors that share memory
        tensors = {name: value.cpu().clone() for name, value in self.statistics.items()}
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        try:
            save_file(tensors, partial, metadata=metadata)
            partial.chmod(0o644)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile file.

        Raises:
            ProfileError: No such file, not a profile, truncated, another schema, or changed
                since it was written.
        """
        path = Path(path)
        if not path.is_file():
            raise ProfileError(f"no profile at {path}; make one with `erta calibrate`")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                statistics = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ProfileError(
                f"{path} is not a readable safetensors file ({error}); it may be truncated, "
                "calibrate again"
            ) from error
        if metadata.get("schema") != SCHEMA:
            raise ProfileError(
                f"{path} has schema {metadata.get('schema')!r}, this version reads {SCHEMA!r}; "
                "it is no profile, or one of another version: calibrate again"
            )
        try:
            profile = cls(
                kind=metadata["kind"],
                fingerprint=_read_facts(metadata["fingerprint"]),
                statistics=statistics,
                samples=int(metadata["samples"]),
                provenance=_read_facts(metadata["provenance"]),
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


def _read_facts(text: str) -> dict[str, str]:
    facts = json.loads(text)
    if not isinstance(facts, dict) or not all(isinstance(value, str) for value in facts.values()):
        raise ValueError(f"expected a mapping of strings, got {text[:80]}")
    return facts


def _hash_profile(profile: Profile) -> str:
    sha = hashlib.sha256()
    facts = [profile.kind, profile.samples, sorted(profile.fingerprint.items())]
    sha.update(json.dumps(facts).encode())
    for name in sorted(profile.statistics):
        tensor = profile.statistics[name].cpu().contiguous()
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:32]
