"""`Policy`, the base of every plugin, and recipes made of several."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, dataclass_transform

from erta_framework._deprecated import refuse_renamed_members
from erta_framework.errors import PolicyError
from erta_framework.plugins._traits import Traits

if TYPE_CHECKING:
    from erta_framework.calibration import Profile, SampleWith, Solution
    from erta_framework.modules import Selection


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False)
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """Base of every plugin; a subclass is a frozen, keyword-only dataclass by itself.

    A policy holds settings only. What changes during a request lives in
    `call.state_of(self, factory)` or `session.state_of(self, factory)` and is dropped with the
    session. Two policies are never equal, so one engine may hold two with the same settings. The
    fields of the dataclass are the options in a configuration. To override a member below, define a
    class attribute, a field or a property of the same name.

    Example:
        >>> from erta_framework import Reuse, hookimpl
        >>> class EveryOther(Policy):
        ...     period: int = 2
        ...
        ...     @hookimpl
        ...     def decide(self, step):
        ...         return Reuse("period") if step.index % self.period else None
        >>> EveryOther(period=3)
        EveryOther(period=3)
    """

    @property
    def traits(self) -> Traits:
        """What the engine must know before anything runs."""
        return Traits()

    @property
    def selects(self) -> Sequence[Selection]:
        """The places inside a network that this policy owns, and answers for in `assign`."""
        return ()

    def keeps(self) -> int:
        """How many outputs of each of these places are kept; they are what costs memory."""
        return 1

    def keeps_inputs(self) -> bool:
        """Whether an input is kept beside each of these outputs, by `visit.keep_input`."""
        return False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_renamed_members(cls)
        dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)

    @property
    def name(self) -> str:
        """Name in traces and errors: the class name in snake case."""
        return to_snake_case(type(self).__name__)

    def parts(self) -> Sequence[Policy]:
        """The parts of a recipe, in call order; for any other policy, the policy itself."""
        return (self,)

    def calibrator(self) -> Profiler | None:
        """The profiler that makes this policy's `profile`, if it needs one."""
        return None

    def prepare(self) -> None:
        """Check settings and load files; called when an engine is built.

        Raises:
            ErtaError: Something is missing or does not fit.
        """


class Profiler(Policy):
    """A policy that observes a full run and emits a `Profile` from `on_session_end`.

    Example:
        >>> class CountSteps(Profiler):
        ...     @hookimpl
        ...     def on_session_end(self, session, error):
        ...         return None if error else Profile(...)  # doctest: +SKIP
    """

    @property
    def calibration_copies(self) -> int:
        """Copies of each sample in a calibration batch; the batch is repeated as a whole.

        A profiler that compares a cached run with the full one has them side by side this way.
        """
        return 1

    @property
    def calibration_prompts(self) -> tuple[str, ...]:
        """The only prompts that this profiler can use; empty where any will do."""
        return ()

    @property
    def substeps(self) -> int:
        """Steps of the exact solution for each step, if this profiler wants one; else 0."""
        return 0

    def with_solution(self, solution: Solution) -> Profiler:
        """This profiler with the exact solution of its samples, see `substeps`."""
        return self

    @property
    def tries_before(self) -> bool:
        """Whether `begin` wants to sample before the first round."""
        return False

    def begin(self, sample: SampleWith) -> Profiler:
        """The profiler of the first round, after runs that choose its settings; see `tries_before`.

        Args:
            sample: The calibration samples under policies, `[N, C, ...]` at the end of the run.
        """
        return self

    @property
    def tries_out(self) -> bool:
        """Whether `finish` wants to sample with the profile."""
        return False

    def finish(self, profile: Profile, sample: SampleWith) -> Profile:
        """The profile after its last round, tried out and made better; see `tries_out`.

        Args:
            profile: What the last round gave, merged.
            sample: The calibration samples under policies, `[N, C, ...]` at the end of the run.
        """
        return profile

    def next_profiler(self, profile: Profile) -> Profiler | None:
        """The profiler that calibration runs next on the same samples, if it takes another round.

        Args:
            profile: What this profiler emitted, merged.
        """
        return None


def to_snake_case(name: str) -> str:
    """`EveryOther` as `every_other`, `ABCache` as `ab_cache`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def flatten(policies: Sequence[Policy], where: str = "policies") -> tuple[Policy, ...]:
    """Expand recipes into their parts, keeping the listed order.

    Raises:
        PolicyError: An entry is a class or no policy at all, or stands twice in the list.
    """
    return tuple(part for part, _ in flatten_owned(policies, where))


def flatten_owned(
    policies: Sequence[Policy], where: str = "policies"
) -> tuple[tuple[Policy, Policy], ...]:
    """The same, each part with the listed policy that it belongs to.

    Raises:
        PolicyError: As `flatten`.
    """
    if isinstance(policies, Policy) or not isinstance(policies, Iterable):
        raise PolicyError(f"{where} is {policies!r}, not a list; write [{policies!r}]")
    flat: list[tuple[Policy, Policy]] = []
    for position, policy in enumerate(policies):
        if isinstance(policy, type) and issubclass(policy, Policy):
            raise PolicyError(
                f"{where}[{position}] is the class {policy.__name__}, not an instance; "
                f"write {policy.__name__}(...)"
            )
        if not isinstance(policy, Policy):
            raise PolicyError(
                f"{where}[{position}] is {policy!r} of type {type(policy).__name__}; "
                "a policy derives from erta_framework.Policy"
            )
        parts = tuple(policy.parts())
        for part in parts:  # a recipe may list itself beside others
            inner = (part,) if part is policy else flatten((part,), f"{policy.name}.parts")
            flat.extend((each, policy) for each in inner)
    for policy, _ in flat:
        if sum(policy is other for other, _ in flat) > 1:
            raise PolicyError(
                f"the same object {policy!r} stands twice in the policies; make a second one"
            )
    return tuple(flat)


def find_owners(policies: Sequence[Policy]) -> tuple[Policy, ...]:
    """The policies, and those that they hold in their fields: all that may keep state."""
    found: dict[int, Policy] = {}
    queue: list[object] = list(policies)
    while queue:
        one = queue.pop()
        if isinstance(one, Policy):
            if id(one) not in found:
                found[id(one)] = one
                queue.extend(getattr(one, field.name, None) for field in dataclasses.fields(one))
        elif isinstance(one, tuple | list):
            queue.extend(one)
        elif isinstance(one, Mapping):
            queue.extend(one.values())
    return tuple(found.values())
