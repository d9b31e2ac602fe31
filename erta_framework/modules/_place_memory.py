"""`PlaceMemory`: what one place keeps, and lends to the network, in a network call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor

from erta_framework.errors import PolicyError
from erta_framework.modules._actions import Action, ReuseKept
from erta_framework.modules._actions import Tokens as TokensAction
from erta_framework.modules._cell import Cell, read_tensors
from erta_framework.modules._module_call import ModuleCall
from erta_framework.modules._parts import Parts
from erta_framework.modules._places import Place
from erta_framework.modules._weighting import sum_kept
from erta_framework.session import Evaluation, Evaluations, Stamp, Step


class PlaceMemory:
    """What one owned place keeps, and lends to the network, in the calls of a branch.

    Args:
        place: The place.
        modules: Its modules, in the order of execution; the last gives the output.
        owner: Names the policy that owns it.
        cell: What it keeps.

    Attributes:
        parts: The call as its owner sees it.
        step: The step.
        action: What was assigned; None runs it.
        fresh: What is to be kept of each visit.
        of: What `fresh` is.
        before: Inputs that are to be kept beside it.
        kept_rows: The samples that `fresh` is of; None for all.
    """

    __slots__ = (
        "_lent",
        "action",
        "before",
        "cell",
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

    def __init__(self, place: Place, modules: Sequence[ModuleCall], owner: str, cell: Cell) -> None:
        self.place, self.members, self.output = place, modules[:-1], modules[-1]
        self.owner, self.cell = owner, cell
        self.action: Action | None = None
        self.fresh: list[list[Tensor]] = []
        self.before: list[Tensor] = []
        self.of: str = "output"
        self.kept_rows: tuple[int, ...] | None = None
        self._lent: list[tuple[Tensor, int]] = []

    def rest(self) -> None:
        """Nothing is assigned: it runs."""
        self.action, self.of, self.kept_rows = None, "output", self.parts.rows

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
        then = action.then
        if then is not None:
            changes = then if isinstance(then, tuple) else (then,) * len(made)
            if len(changes) != len(made):
                who = f"changes {len(changes)} tensors of"
                self.refuse(who, f"its {action.of} is {len(made)}; give one change for each")
            return [change(tensor) for change, tensor in zip(changes, made, strict=True)]
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
        self.fresh.append(self.guard(tensors))

    def guard(self, tensors: list[Tensor]) -> list[Tensor]:
        """Tensors that are to be kept; copies where the network may write into them."""
        lent: list[tuple[Tensor, int]] = []
        copies = self.output.learned.copies
        try:
            for tensor in tensors:
                lent.append((tensor, tensor._version))
        except RuntimeError:  # made in inference mode, where nobody counts what is written
            copies = True
        if copies:
            return [tensor.clone() for tensor in tensors]
        self._lent += lent
        return tensors

    def lend(self, tensor: Tensor) -> Tensor:
        """A kept tensor for the network to use; a copy where it may be written into."""
        if not self.output.learned.copies:
            try:
                self._lent.append((tensor, tensor._version))
                return tensor
            except RuntimeError:  # as above
                pass
        return tensor.clone()

    # ----------------------------------------------------------------------- the end
    def close(self, stamp: Stamp) -> None:
        """Keep what ran, now that the whole network has run.

        Where the network wrote into a tensor that is kept, that is not what the module returned any
        more: the place forgets it, and keeps copies from then on.

        Args:
            stamp: Step, sigma and timestep.
        """
        for tensor, version in self._lent:
            if tensor._version != version:
                self.output.learned.copies = True
                self.cell.forget()
                return
        if not self.fresh:
            return
        if isinstance(self.action, TokensAction):
            self.cell.replace(self.of, self.fresh, self.kept_rows)
            return
        before, running = self.before, self.parts.rows
        if before and self.kept_rows is not None and self.kept_rows != running:
            places = range(self.parts.batch) if running is None else running
            before = take_rows(before, [places.index(row) for row in self.kept_rows])
        self.cell.keep(stamp, self.of, self.fresh, self.parts.batch, self.kept_rows, before)


def take_rows(tensors: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
    """Some samples of each tensor."""
    return [tensor[list(rows)] for tensor in tensors]
