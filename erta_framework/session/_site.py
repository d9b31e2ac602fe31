"""`Site`: a place at which policies decide, and the seam that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache


class Seam(StrEnum):
    """What a reused step skips.

    `LATENT` is the whole network, latents in and prediction out. `TRUNK` is the block stack only:
    embedders and head still run. `MODULE` is a selected submodule.
    """

    LATENT = "latent"
    TRUNK = "trunk"
    MODULE = "module"

    __hash__ = str.__hash__  # that of an enum is written in Python, and sets hold a seam


TRUNK = "trunk"
"""Path of the block stack as one piece."""


@dataclass(frozen=True, slots=True)
class Site:
    """A place at which a network call may be reused: the key of histories and state.

    Attributes:
        model: Name of the network within the pipeline; two-network pipelines have two.
        branch: Guidance branch, such as `"cond"`.
        path: Place inside the network: `""` is the whole network, `"trunk"` the block stack,
            anything else a submodule.

    Example:
        >>> Site("transformer", "cond").seam, Site("transformer", "cond", "blocks.3").seam
        (<Seam.LATENT: 'latent'>, <Seam.MODULE: 'module'>)
    """

    model: str = "model"
    branch: str = "cond"
    path: str = ""
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.model, self.branch, self.path)))

    def __hash__(self) -> int:
        return self._hash  # looked up several times a call

    @property
    def seam(self) -> Seam:
        """The seam that this place belongs to."""
        if not self.path:
            return Seam.LATENT
        return Seam.TRUNK if self.path == TRUNK else Seam.MODULE

    def __str__(self) -> str:
        inside = f", {self.path}" if self.path else ""
        return f"branch {self.branch!r} of {self.model!r}{inside}"


@lru_cache(maxsize=1024)
def make_site(model: str, branch: str, path: str = "") -> Site:
    """The site of these names, made once: a loop needs the same ones at every step."""
    return Site(model, branch, path)
