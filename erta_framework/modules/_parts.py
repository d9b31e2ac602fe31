"""`Parts`: one network call as `assign` sees it."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from erta_framework.errors import PolicyError
from erta_framework.modules._actions import Of
from erta_framework.modules._cell import INPUT, Cell, read_tensors
from erta_framework.modules._cells import FEATURE
from erta_framework.modules._costs import Measurement
from erta_framework.modules._places import Place
from erta_framework.session import Evaluations, Site, Stamp, StateStore, get_stamp, make_site

S = TypeVar("S")
Agree = Callable[[Tensor, str], Tensor]
"""The largest of each value over ranks that share a sample; the second argument says where."""


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """One network call that will run, with the places that one policy owns in it.

    Attributes:
        x: The network's input, `[B, C, ...]`, or that of the samples that run, `[R, C, ...]`.
        site: Network and guidance branch.
        index: The step.
        sites: The places of this policy, in the order in which the network runs them.
        batch: Samples of the whole batch, B.
        rows: Places of the samples in the batch, where only some run; None for all.
        row_branches: Branches that the rows of a batched call belong to, in chunks of equal size;
            empty where a call is one branch.
        depth: How many outputs the policy keeps.
        cells: What each place keeps.
        states: The policies' own state.
        costs: What the modules of the network cost; None before its first call on such latents.
        agree: Makes a value the same on all ranks that share a sample; None where none do.
    """

    x: Tensor
    site: Site
    index: int
    sites: tuple[Place, ...]
    batch: int
    rows: tuple[int, ...] | None
    row_branches: tuple[str, ...]
    depth: int
    cells: Mapping[Place, Cell]
    states: StateStore
    costs: Measurement | None = None
    agree: Agree | None = None
    _seen: dict[Place, Evaluations] = field(default_factory=dict, repr=False)  # asked several times
    _alike: dict[object, tuple[tuple[Stamp, ...], ...]] = field(default_factory=dict, repr=False)

    @property
    def branch(self) -> str:
        """Name of the guidance branch."""
        return self.site.branch

    @property
    def model(self) -> str:
        """Name of the network within the pipeline."""
        return self.site.model

    @property
    def share(self) -> float | None:
        """The share of the network's FLOPs that the places cost together; None if not known."""
        if self.costs is None:
            return None
        known = self.costs.flops
        idle = {path for place in self.sites for path in place.modules if path in known}
        return self.costs.count_idle(idle) / self.costs.total

    def kept(self, place: Place) -> Evaluations:
        """What a place keeps of the samples that run, newest first."""
        found = self._seen.get(place)
        if found is None:
            found = self._seen[place] = self._cell(place).kept(self.batch, self.rows)
        return found

    def features(self, place: Place) -> Sequence[Tensor]:
        """The tensors of its own that the policy kept last at a place; empty if there are none."""
        kept = self.kept(place)
        return read_tensors(kept[0], FEATURE, 0) if kept else ()

    def newest(self, place: Place, of: Of = "output") -> Sequence[Tensor]:
        """The tensors of the newest kept output or residual, of all visits; empty without one.

        An input that is kept beside it is none of them.
        """
        kept = self.kept(place)
        named = kept[0].tensors.items() if kept else ()
        return [tensor for name, tensor in named if name.startswith(f"{of}.")]

    def kept_input(self, place: Place) -> Tensor | None:
        """The input that was kept beside the newest output, of the samples that run."""
        kept = self.kept(place)
        found = read_tensors(kept[0], INPUT, 0) if kept else []
        return found[0] if found else None

    def agree_each(self, values: Tensor, where: str) -> list[float]:
        """Values that decide, such as one for each sample, as numbers; read back from the device.

        Ranks that share a sample must decide alike, so each is the largest of all of them there; a
        policy that reads every value so declares `agrees_inside=True` in its traits.

        Args:
            values: `[N]`; ranks that share samples have as many.
            where: What is decided, for messages.
        """
        found: list[float] = (values if self.agree is None else self.agree(values, where)).tolist()
        return found

    def age(self, place: Place) -> int | None:
        """Steps since the output of a place was kept; None if it never was.

        Of the sample that waits longest, where they differ. Steps count whether the network ran in
        them or not.
        """
        stamps = self.stamps(place)
        return self.index - min([stamp[0] for stamp in stamps[0]]) if stamps else None

    def stamps(self, place: Place) -> tuple[tuple[Stamp, ...], ...]:
        """Step, sigma and timestep of every kept output, newest first, for each sample.

        Places that were kept at one step share one answer, so it can be compared by identity.
        """
        stamp = self._cell(place).stamp
        if stamp is not None:
            alike = self._alike.get(stamp)
            if alike is None:
                alike = self._alike[stamp] = ((stamp,) * self.width,)
            return alike
        kept, rows = self.kept(place), range(self.width)
        times = tuple([(e.index, e.sigma, e.time, e.stamps) for e in kept])
        alike = self._alike.get(times)
        if alike is None:
            alike = self._alike[times] = tuple(
                tuple(stamp for row in rows if (stamp := get_stamp(evaluation, row)) is not None)
                for evaluation in kept
            )
        return alike

    def forget(self, place: Place) -> None:
        """Drop what a place keeps of all samples, once the policy knows that it is not needed."""
        self._cell(place).forget()
        self._seen.pop(place, None)

    def state_of(self, policy: object, factory: Callable[[], S]) -> S:
        """This policy's own state for this branch; `factory` makes it once."""
        return self.states.get(policy, (MODULES, self.site), factory)

    def site_of(self, place: Place) -> Site:
        """The key of a place in this branch."""
        return make_site(self.site.model, self.site.branch, place.path)

    def _cell(self, place: Place) -> Cell:
        try:
            return self.cells[place]
        except KeyError:
            raise PolicyError(
                f"a policy asked what {place} keeps, which it does not select; ask for places of "
                "call.sites only"
            ) from None

    @property
    def width(self) -> int:
        """How many samples run."""
        return self.batch if self.rows is None else len(self.rows)


MODULES = "modules"
"""Capability of drivers that can run a network without some of its modules."""


def check_sites(
    assigned: Mapping[Place, object], own: Container[Place], owner: Callable[[], str]
) -> None:
    """Refuse a plan with places that its policy does not own.

    Raises:
        PolicyError: Names the place.
    """
    for place in assigned:
        if place not in own:
            raise PolicyError(
                f"{owner()} assigned an action to {place}, which it does not select; a plan has "
                "places of call.sites only"
            )


def spell_steps(kept: Sequence[object]) -> str:
    """How many outputs are kept, in words."""
    return f"{len(kept)} output{'' if len(kept) == 1 else 's'}"
