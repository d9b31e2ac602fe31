"""`BlockGroup`: blocks in a row that run, or are replaced, together in one network call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from erta_framework.errors import CapabilityError
from erta_framework.modules import PASS, Action, Ask, Place, Visit
from erta_policies.shared import SurrogateTable


class BlockGroup:
    """Blocks in a row that run together, or are replaced together, in one network call.

    At the last of them are kept what entered the first one and what they added, tensor by tensor of
    the output.

    Args:
        places: The blocks, in the order of execution.
        table: What stands in for them.
        decide: Of each sample of the call, whether they are replaced; asked at the first one.

    Attributes:
        entered: The tensors that entered the first block, by name.
    """

    def __init__(
        self,
        places: Sequence[Place],
        table: SurrogateTable,
        decide: Callable[[BlockGroup, Visit], Sequence[bool]],
    ) -> None:
        self.places, self._table, self._decide = places, table, decide
        self.entered: Mapping[str, Tensor] = {}
        self._order: tuple[str, ...] = ()
        self._reuse: Sequence[bool] = ()

    @property
    def last(self) -> Place:
        """Where the group keeps what it keeps."""
        return self.places[-1]

    def plan(self) -> Mapping[Place, Action]:
        """What is assigned to the blocks."""
        plan: dict[Place, Action] = dict.fromkeys(self.places, Ask(run_block))
        plan[self.last] = Ask(self._answer)
        plan[self.places[0]] = Ask(self._enter)
        return plan

    def _enter(self, visit: Visit) -> Any:
        """The first block: decide for all of them."""
        self.entered = visit.streams
        self._reuse = self._decide(self, visit)
        if visit.place is self.last:
            return self._answer(visit)
        if all(self._reuse):
            for place in self.places[1:-1]:
                visit.assign(place, PASS)
            return visit.build(list(visit.continued.values()))
        output = visit.run()
        self._order = tuple(visit.name_streams(output))
        return output

    def _answer(self, visit: Visit) -> Any:
        """The last block: what they give together."""
        if all(self._reuse):
            return visit.build(self._stand_in(visit))
        if any(self._reuse):
            return self._mix(visit)
        output = visit.run()
        after = visit.name_streams(output)
        if self._order and self._order != tuple(after):
            raise CapabilityError(
                f"{self.places[0]} returns the streams {', '.join(self._order)}, and {visit.place} "
                f"returns {', '.join(after)}; they are no group: give group=1"
            )
        before = [self._find_entered(name, tensor, visit) for name, tensor in after.items()]
        visit.keep(*before, *[y - x for x, y in zip(before, after.values(), strict=True)])
        return output

    def _stand_in(self, visit: Visit) -> list[Tensor]:
        """What the surrogates give, in the order of the output."""
        streams, features = visit.continued, visit.features
        entered, residuals = features[: len(streams)], features[len(streams) :]
        found, step = [], visit.step
        for k, now in enumerate(streams.values()):
            replace = self._table.find(visit.place.path, k, step.index, step.num_steps)
            found.append(replace(now, entered[k], residuals[k]))
        return found

    def _mix(self, visit: Visit) -> Any:
        """The block runs on some samples, and is replaced for the others."""
        rows = [row for row, reused in enumerate(self._reuse) if not reused]
        whole, now = self._stand_in(visit), list(visit.continued.values())
        fresh = visit.run_rows(rows)
        index = torch.tensor(rows, device=now[0].device)
        before = [x.index_select(0, index) for x in now]
        visit.keep(*before, *[y - x for x, y in zip(before, fresh, strict=True)], of=rows)
        return visit.build([w.index_copy(0, index, f) for w, f in zip(whole, fresh, strict=True)])

    def _find_entered(self, name: str, output: Tensor, visit: Visit) -> Tensor:
        """What entered the group of the stream that an output continues.

        Raises:
            CapabilityError: No such stream did, so that the blocks have no residual.
        """
        if name not in self.entered or self.entered[name].shape != output.shape:
            shapes = ", ".join(f"{each} {tuple(x.shape)}" for each, x in self.entered.items())
            raise CapabilityError(
                f"{visit.place} returns {name} {tuple(output.shape)}, and {shapes} entered "
                f"{self.places[0]}, so it has no residual; select other blocks"
            )
        return self.entered[name]


def run_block(visit: Visit) -> Any:
    """A block inside of a group runs, unless its group says otherwise."""
    return visit.run()
