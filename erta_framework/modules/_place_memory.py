"""`PlaceMemory`: what one place keeps, and lends to the network, in a network call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor

from erta_framework.errors import PolicyError
from erta_framework.modules._actions import Action, ReuseKept
from erta_framework.modules._actions import Tokens as TokensAction
from erta_framework.modules._cells import get_version, is_written, name_tensors, read_tensors
from erta_framework.modules._module_call import ModuleCall
from erta_framework.modules._parts import Parts
from erta_framework.modules._places import Place
from erta_framework.modules._weighting import sum_kept
from erta_framework.session import Evaluation, Evaluations, Step


class PlaceMemory:
    """What one owned place keeps, and lends to the network, in the calls of a branch.

    Args:
        place: The place.
        modules: Its modules, in the order of execution; the last gives the output.
        owner: Names the policy that owns it.

    Attributes:
        parts: The call as its owner sees it.
        step: The step.
        action: What was assigned; None runs it.
        fresh: What is to be kept of each visit.
        of: What `fresh` is.
        kept_rows: The samples that `fresh` is of; None for all.
    """

    __slots__ = (
        "_lent",
        "action",
        "fresh",
        "kept_rows",
        "members",
        "of",
        "output",
        "owner",
        "parts",
        "place",
        "step",
    )

    parts: Parts
    step: Step

    def __init__(self, place: Place, modules: Sequence[ModuleCall], owner: str) -> None:
        self.place, self.members, self.output = place, modules[:-1], modules[-1]
        self.owner = owner
        self.action: Action | None = None
        self.fresh: list[list[Tensor]] = []
        self.of: str = "output"
        self.kept_rows: tuple[int, ...] | None = None
        self._lent: list[tuple[Tensor, int | None]] = []

    def begin(self, parts: Parts, step: Step) -> None:
        """Begin another network call, as its owner sees it."""
        self.parts, self.step, self.kept_rows = parts, step, parts.rows
        self.action, self.of = None, "output"
        if self.fresh:
            self.fresh = []
        if self._lent:
            self._lent = []

    @property
    def kept(self) -> Evaluations:
        """What is kept, newest first."""
        return self.parts.kept(self.place)

    def refuse(self, what: str, why: str) -> NoReturn:
        """Refuse what was assigned.

        Raises:
            PolicyError: Names owner, place, branch and step.
        """
        raise PolicyError(
            f"{self.owner} {what} {self.place} in branch {self.parts.branch!r} of "
            f"{self.parts.model!r} at step {self.step.index}, but {why}"
        )

    def combine(self, action: ReuseKept, visit: int) -> list[Tensor]:
        """The weighted sum of what is kept of one visit, tensor by tensor."""
        levels = [self.read(e, action.of, visit) for e in self.kept[: action.depth]]
        made = sum_kept(levels, action.weights)
        if action.rest is not None:
            after = [level[1:] for level in levels[: len(action.rest)]]
            made = [*made[:1], *sum_kept(after, action.rest)]
        if action.then is not None:
            return [action.then(tensor) for tensor in made]
        return [
            self.lend(tensor) if tensor is newest else tensor
            for tensor, newest in zip(made, levels[0], strict=True)
        ]

    def newest(self, visit: int) -> list[Tensor]:
        """The newest kept output of one visit."""
        return self.read(self.kept[0], "output", visit)

    def read(self, evaluation: Evaluation, of: str, visit: int) -> list[Tensor]:
        """The kept tensors of one visit.

        Raises:
            PolicyError: Fewer visits were kept.
        """
        found = read_tensors(evaluation, of, visit)
        if not found:
            self.refuse(f"reuses visit {visit} of", "it was visited less often when it was kept")
        return found

    def remember(self, tensors: list[Tensor]) -> None:
        """Keep the output of a visit once the network has run."""
        copies = self.output.learned.copies or any(t.is_inference() for t in tensors)
        kept = [tensor.clone() for tensor in tensors] if copies else tensors
        self.fresh.append(kept)
        if not copies:
            self._lent += [(tensor, get_version(tensor)) for tensor in tensors]

    def lend(self, tensor: Tensor) -> Tensor:
        """A kept tensor for the network to use; a copy where it may be written into."""
        version = get_version(tensor)
        if version is None or self.output.learned.copies:
            return tensor.clone()
        self._lent.append((tensor, version))
        return tensor

    # ----------------------------------------------------------------------- the end
    def close(self) -> None:
        """Keep what ran, now that the whole network has run.

        Where the network wrote into a tensor that is kept, that is not what the module returned any
        more: the place forgets it, and keeps copies from then on.
        """
        parts, site = self.parts, self.parts.site_of(self.place)
        for tensor, version in self._lent:
            if is_written(tensor, version):
                self.output.learned.copies = True
                parts.cells.forget(parts.depth, site)
                return
        if not self.fresh:
            return
        tensors = name_tensors(self.of, self.fresh)
        cells, interval = parts.cells, self.step.interval
        if isinstance(self.action, TokensAction):
            cells.replace(parts.depth, site, tensors)
        else:
            cells.keep(parts.depth, site, interval, tensors, parts.batch, self.kept_rows)
