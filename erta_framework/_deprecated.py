"""Names that were renamed: what is still understood, and what is refused with the new name."""

from __future__ import annotations

from collections.abc import Mapping

from erta_framework.errors import PolicyError

RENAMED_MEMBERS: Mapping[str, str] = {
    "requires": "traits = Traits(requires=...)",
    "static": "traits = Traits(static=...)",
    "seams": "traits = Traits(seams=...)",
    "needs": "traits = Traits(memory=Needs(...))",
    "per_sample": 'traits = Traits(decides="sample")',
    "per_branch": "traits = Traits(reads_peers=True)",
    "revises": "traits = Traits(sees_every_branch=True)",
    "agrees": "traits = Traits(collective=True)",
    "corrects_computed": "traits = Traits(corrects_computed=True)",
    "reads_latents": "traits = Traits(reads_latents=True)",
    "copies": "calibration_copies of Profiler",
    "following": "next_profiler of Profiler",
}
"""Members of policies until 0.1, and what says the same since 0.2."""


def refuse_renamed_members(cls: type) -> None:
    """Refuse a policy class that declares something by a name that nobody reads any more.

    Settings, which are annotated, may have any name.

    Raises:
        PolicyError: Names the member and what replaces it.
    """
    for name, new in RENAMED_MEMBERS.items():
        if name in vars(cls) and name not in vars(cls).get("__annotations__", {}):
            raise PolicyError(
                f"{cls.__name__} declares {name!r}, which nothing reads since 0.2; "
                f"write {new} instead"
            )
