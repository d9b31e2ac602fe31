"""`PAB`: attention outputs are reused for a few steps, by kind and within a range of timesteps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from erta_framework import Policy, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.modules import KEEP, Action, Kind, Parts, Place, ReuseKept, Select, Selection

TEMPORAL = re.compile(r"temporal|motion")
"""Lists of blocks whose attention is along time, by their names."""
FIRST_BLOCKS = "0:5"


class PAB(Policy):
    """Pyramid Attention Broadcast: reuses attention outputs, those that change least the longest.

    Within a window of timesteps an attention runs at every n-th step, with n the range of its kind,
    and its output is reused at the steps between. Outside of the window it runs at every step.
    The block adds the reused output with the gate of the current step. MLPs can be broadcast too:
    one that runs at a listed timestep is reused for the next `mlp_skip` steps.

    Attention is temporal in lists of blocks with `temporal` or `motion` in their name; any other
    self-attention is spatial, also where it is over frames and places at once. Cross-attention
    reads another sequence.

    Source: PAB, arXiv 2408.12588; settings from VideoSys (NUS-HPC-AI-Lab/VideoSys,
    `core/pab/pab_mgr.py`). It counts calls of each module; here steps count, so that a rule that
    leaves out steps can stand beside it.

    Attributes:
        spatial: Range of spatial attention: one step in so many runs. None leaves it alone.
        temporal: Range of temporal attention.
        cross: Range of cross-attention.
        window: Timesteps between which outputs are reused, both excluded, in the network's unit.
            (100, 800) is that of diffusers.
        mlp_times: Timesteps at which MLPs are kept. Each must be one of the schedule, rounded.
        mlp_skip: For how many steps after that an MLP is reused; 2 as published.
        mlp_depth: Which MLPs, as in `Select`; the first five blocks as published.

    Raises:
        PolicyError: Nothing is broadcast, or a setting is out of range.

    Example:
        >>> PAB(spatial=2, cross=6).selects[0].kind
        ('attention', 'cross')
    """

    spatial: int | None = None
    temporal: int | None = None
    cross: int | None = None
    window: tuple[float, float] = (100.0, 800.0)
    mlp_times: tuple[float, ...] = ()
    mlp_skip: int = 2
    mlp_depth: str = FIRST_BLOCKS

    traits = Traits(static=True, seams=frozenset({Seam.MODULE}))

    def __post_init__(self) -> None:
        ranges = {n: getattr(self, n) for n in ("spatial", "temporal", "cross")}
        given = {name: number for name, number in ranges.items() if number is not None}
        if not given and not self.mlp_times:
            raise PolicyError(
                "PAB broadcasts nothing; give a range, such as spatial=2, temporal=4 or cross=6, "
                "or mlp_times"
            )
        for name, number in given.items():
            if number < 1:
                raise PolicyError(f"{name} of PAB is {number}, it must be at least 1")
        if self.mlp_skip < 1:
            raise PolicyError(f"mlp_skip of PAB is {self.mlp_skip}, it must be at least 1")
        low, high = self.window
        if not low < high:
            raise PolicyError(f"window of PAB is {self.window}; the lower timestep comes first")
        self.selects  # noqa: B018 - refuses a depth that cannot be read

    @property
    def selects(self) -> Sequence[Selection]:
        """Attention of the kinds that have a range, and MLPs where they are broadcast."""
        kinds: tuple[Kind, ...] = ()
        if self.spatial is not None or self.temporal is not None:
            kinds = ("attention",)
        if self.cross is not None:
            kinds = (*kinds, "cross")
        attention = (Select(kind=kinds),) if kinds else ()
        mlps = (Select(kind=("mlp",), depth=self.mlp_depth),) if self.mlp_times else ()
        return (*attention, *mlps)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        listed = find_listed(self.mlp_times, session.times)
        session.state_of(self, lambda: listed)

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        session = step.session
        done = step.index - session.first
        low, high = self.window
        inside = low < step.interval.time < high
        listed: tuple[int, ...] = session.state_of(self, tuple)
        held = next((i for i in reversed(listed) if i <= step.index <= i + self.mlp_skip), None)
        plan: dict[Place, Action] = {}
        for place in call.sites:
            if place.kind == "mlp":
                newest = held
            else:
                reach = self._range_of(place)
                newest = None if reach is None else step.index - (done % reach if inside else 0)
            if newest is None:
                continue
            age = call.age(place)
            due = age is None or step.index - age < newest
            plan[place] = KEEP if due else ReuseKept()
        return plan

    def _range_of(self, place: Place) -> int | None:
        """The range of an attention; None where its kind is left alone."""
        if place.kind == "cross":
            return self.cross
        return self.temporal if TEMPORAL.search(place.stack) else self.spatial


def find_listed(times: Sequence[float], schedule: Sequence[float]) -> tuple[int, ...]:
    """The steps at some timesteps, which are those of the schedule, rounded; in rising order.

    Raises:
        PolicyError: A timestep is none of the schedule.

    Example:
        >>> find_listed((676, 788), (900.0, 788.2, 676.4, 500.0))
        (1, 2)
    """
    rounded = [round(time) for time in schedule]
    missing = [time for time in times if round(time) not in rounded]
    if missing:
        raise PolicyError(
            f"mlp_times of PAB has {missing[0]:g}, which is no timestep of this schedule "
            f"({', '.join(map(str, rounded))}); give some of these"
        )
    return tuple(sorted(rounded.index(round(time)) for time in times))
