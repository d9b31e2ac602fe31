"""What a row of the comparison is: how to sample, and the setting that meets an amount of work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Spec = str | Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Stands in a contender's settings for a value that is known only when it runs."""

    what: str


BUDGET = Placeholder("budget")
"""The work of each branch in network calls; for a schedule of whole steps, its calls."""
SOLVED = Placeholder("solved")
"""The value that is searched for, so that the work comes out."""
RATIOS = Placeholder("ratios")
"""Magnitude ratios, from diffusers' own calibration."""
PARTS = Placeholder("parts")
"""Patterns of the names of the model's attentions and feed-forwards."""


@dataclass(frozen=True, slots=True, eq=False)
class ListedSteps(Placeholder):
    """Stands for a list of computed steps that was published, by number of calls.

    A number of calls that has none gets one between the nearest two, see `choose_steps`.

    Attributes:
        num_steps: Steps of the run that the lists are for.
        lists: The lists, as text such as `"0-8,10,13"`.
    """

    num_steps: int
    lists: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedBy:
    """Stands for the profile that a profiler makes; rows with the same one share it.

    Attributes:
        profiler: Name of the profiler.
        options: Its settings; where `BUDGET` is among them, each number of calls has its own.
        seam: Where it is calibrated; empty for the contender's own seam.
        steps: Steps that it is calibrated with; 0 for those of the run.
        samples: Samples that it is calibrated on; 0 for all.
    """

    profiler: str
    options: tuple[tuple[str, Any], ...] = ()
    seam: str = ""
    steps: int = 0
    samples: int = 0

    @property
    def budgeted(self) -> bool:
        """Whether it depends on the number of calls."""
        found: list[object] = []
        fill(self.options, found.append)
        return BUDGET in found


def calibrate_with(
    profiler: str, seam: str = "", steps: int = 0, samples: int = 0, **options: Any
) -> CalibratedBy:
    """Stand for a profile of a profiler with these options, at this seam and number of steps.

    Example:
        >>> calibrate_with("teacache_profiler", signal="latents").options
        (('signal', 'latents'),)
    """
    return CalibratedBy(profiler, tuple(options.items()), seam, steps, samples)


@dataclass(frozen=True, slots=True)
class SearchRange:
    """Where the value of `SOLVED` is looked for; work falls as it rises, unless it is `rising`.

    Attributes:
        low, high: Ends of the range.
        whole: Whether it is a whole number, such as an interval.
        rising: Whether work rises with it.
    """

    low: float
    high: float
    whole: bool = False
    rising: bool = False


THRESHOLD = SearchRange(1e-3, 3.0)
"""A relative change, usually."""
TOLERANCE = SearchRange(1e-2, 100.0)
"""A root mean square change; this model's latents move further than those of large ones."""
PART = SearchRange(2e-2, 1.0)
"""Part of the largest difference so far."""
INTERVAL = SearchRange(1, 12, whole=True)
"""Every n-th step."""
STEPS = SearchRange(2, 50, whole=True, rising=True)
"""So many steps that are computed whole; at the most those of the run."""
WEIGHT = SearchRange(1e-3, 1e3, rising=True)
"""A factor of how much is computed afresh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One row for each number of calls.

    Attributes:
        name: Name in the table.
        group: `plain`, `policy`, `combination` or `other`.
        policies: Names and options of policies; their values may be placeholders.
        search: Where `SOLVED` is looked for; None where nothing is.
        seam: What a reused step leaves out.
        scheduler: Scheduler of plain steps; empty for that of the run.
        rival: Name of another project's cache instead of policies, see `bridge`.
        options: Settings of that cache; the values may be placeholders too.
        order: Network calls a step of a plain row's scheduler, one fewer at the last.
        on: A schedule; a plain row then steps on the sigmas that it computes at. The scheduler is
            `euler`, `unipc`, or `ab2` of the own loop.
        ours: Whether it is our own method, whole or in its decisive part.
        oracle: Whether profiles are made on the very samples that are measured.
        bound: Why its work has a bound, for where it does not reach what was asked for.
        learned: Where a solver is trained to end, `exact` or `full`; empty for no such solver. It
            runs in the own loop.
    """

    name: str
    group: str
    policies: tuple[Spec, ...] = ()
    search: SearchRange | None = None
    seam: str = "latent"
    scheduler: str = ""
    rival: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    order: int = 1
    on: Spec | None = None
    ours: bool = False
    oracle: bool = False
    bound: str = ""
    learned: Literal["", "exact", "full"] = ""

    @property
    def kind(self) -> str:
        """`ours`, `peer`, `composed`, `plain` or `oracle`.

        Recombinations of published parts, and plain solvers on a planned schedule's sigmas, count
        neither as peers nor as ours.
        """
        if self.oracle:
            return "oracle"
        if self.ours:
            return "ours"
        if self.group == "combination" or self.on is not None:
            return "composed"
        if self.learned:
            return "peer"
        return "plain" if self.group == "plain" else "peer"

    def steps(self, budget: float, full: int) -> int:
        """Steps of a run with this many network calls, where the full run has `full`."""
        if self.group != "plain":
            return full
        return int(budget) if self.order == 1 else (int(budget) + 1) // self.order

    @property
    def names(self) -> frozenset[str]:
        """Names of the policies in it, also within settings of others."""
        return frozenset(find_policy_names(list(self.policies)))


def find_policy_names(value: Any) -> Iterator[str]:
    """Names of policies in a list of specifications."""
    for spec in value:
        if isinstance(spec, str):
            yield spec
        else:
            yield from spec
            for options in spec.values():
                for held in options.values():
                    # a policy has settings, other mappings are settings
                    if isinstance(held, Mapping) and all(
                        isinstance(value, Mapping) for value in held.values()
                    ):
                        yield from find_policy_names([held])


# constructors of rows, each named after the group that it makes
def plain(name: str, scheduler: str = "", *, order: int = 1, on: Spec | None = None) -> Contender:
    """A row of as many steps as calls, nothing cached; with `on` on the sigmas of a schedule."""
    return Contender(name=name, group="plain", scheduler=scheduler, order=order, on=on)


def learned(name: str, target: Literal["exact", "full"]) -> Contender:
    """A row of a solver that is trained for its number of calls; see `erta_bench.learned`."""
    return Contender(name=name, group="plain", learned=target)


def policy(
    name: str,
    *specs: Spec,
    search: SearchRange | None = None,
    seam: str = "latent",
    bound: str = "",
) -> Contender:
    """A row of an installed policy as published, or as close as this model allows."""
    return Contender(
        name=name, group="policy", policies=specs, search=search, seam=seam, bound=bound
    )


def own(name: str, *specs: Spec, oracle: bool = False) -> Contender:
    """A row of our own method."""
    return Contender(name=name, group="policy", policies=specs, ours=True, oracle=oracle)


def mix(
    name: str, *specs: Spec, search: SearchRange | None = None, seam: str = "latent"
) -> Contender:
    """A row that combines parts of several methods."""
    return Contender(name=name, group="combination", policies=specs, search=search, seam=seam)


def other(name: str, rival: str, search: SearchRange = THRESHOLD, **options: Any) -> Contender:
    """A row of another project's cache."""
    return Contender(name=name, group="other", rival=rival, search=search, options=options)


def fill(value: Any, replacement: Callable[[Any], Any]) -> Any:
    """Settings with every placeholder replaced, at every depth.

    Args:
        value: Options, or a list of policies.
        replacement: Gives the value of a `Placeholder` or a `CalibratedBy`.
    """
    if isinstance(value, Placeholder | CalibratedBy):
        return replacement(value)
    if isinstance(value, Mapping):
        return {key: fill(held, replacement) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(fill(held, replacement) for held in value)
    return value
