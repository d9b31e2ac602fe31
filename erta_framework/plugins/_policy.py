"""`Policy`, the base of every plugin, and recipes made of several."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

from erta_framework.errors import PolicyError
from erta_framework.session import Needs, Seam

if TYPE_CHECKING:
    from erta_framework.calibration import Profile


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False)
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """Base of every plugin; a subclass is a frozen, keyword-only dataclass by itself.

    A policy holds settings only. What changes during a request lives in
    `call.state_of(self, factory)` or `session.state_of(self, factory)` and dies with the session.
    Two policies are never equal, so the same settings may stand twice in one engine. The
    dataclass is also the schema of the configuration.

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

    agrees: ClassVar[bool] = False
    """Whether this policy makes several ranks decide alike, so that none may compute alone."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)

    # A class attribute, a setting or a property of the same name overrides each of these.
    @property
    def requires(self) -> frozenset[str]:
        """Capabilities the driver must offer, such as `"first_order"`; checked before sampling."""
        return frozenset()

    @property
    def static(self) -> bool:
        """Whether every decision is known before the request, so that no value is read back."""
        return False

    @property
    def corrects_computed(self) -> bool:
        """Whether `forward` of this policy, wrapping, may also change freshly computed outputs."""
        return False

    @property
    def per_sample(self) -> bool:
        """Whether `decide` may answer `Reuse(mask=...)`, a decision of its own for each sample."""
        return False

    @property
    def reads_latents(self) -> bool:
        """Whether it looks at `call.x` itself, or at kept inputs.

        A network whose output has another shape than its latents offers no input to compare with,
        and is refused then; without this, its whole output is reused.
        """
        return self.needs().pairs

    @property
    def seams(self) -> frozenset[Seam]:
        """Where calls may be answered with it; a policy that integrates latents needs `LATENT`."""
        return frozenset(Seam)

    @property
    def per_branch(self) -> bool:
        """Whether `decide` asks for `call.peers()`, the other branches of the step."""
        return False

    @property
    def revises(self) -> bool:
        """Whether `decide`, a wrapper, is asked for every branch.

        A decision is shared by the branches of a step; this policy, and wrappers listed before it,
        then see it again for each further branch, with what the branches before were answered in
        `call.answers`.
        """
        return False

    @property
    def copies(self) -> int:
        """How often a batch that it calibrates on holds each sample, all after all; 1 by default.

        A profiler that compares a cached run with the full one has them side by side this way.
        """
        return 1

    @property
    def name(self) -> str:
        """Name in traces and errors: the class name in snake case."""
        return snake_case(type(self).__name__)

    def needs(self) -> Needs:
        """What this policy wants remembered of earlier evaluations; nothing by default."""
        return Needs()

    def parts(self) -> Sequence[Policy]:
        """The policies this one stands for, in call order; a recipe returns several."""
        return (self,)

    def calibrator(self) -> Policy | None:
        """The profiler that emits what this policy's `profile` needs, if it needs one."""
        return None

    @property
    def calibration_prompts(self) -> tuple[str, ...]:
        """The prompts that this profiler is to observe, where any others would be of no use."""
        return ()

    def following(self, profile: Profile) -> Policy | None:
        """The profiler that calibration runs next on the same samples, if it takes another round.

        Args:
            profile: What this profiler emitted, merged.
        """
        return None

    def prepare(self) -> None:
        """Check settings and load files; called when an engine is built.

        Raises:
            ErtaError: Something is missing or does not fit.
        """


def snake_case(name: str) -> str:
    """`EveryOther` as `every_other`, `ABCache` as `ab_cache`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def flatten(policies: Sequence[Policy], where: str = "policies") -> tuple[Policy, ...]:
    """Expand recipes into their parts, keeping the listed order.

    Raises:
        PolicyError: An entry is a class or no policy at all, or stands twice in the list.
    """
    if isinstance(policies, Policy) or not isinstance(policies, Iterable):
        raise PolicyError(f"{where} is {policies!r}, not a list; write [{policies!r}]")
    flat: list[Policy] = []
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
            flat.extend((part,) if part is policy else flatten((part,), f"{policy.name}.parts"))
    for policy in flat:
        if sum(policy is other for other in flat) > 1:
            raise PolicyError(
                f"the same object {policy!r} stands twice in the policies; make a second one"
            )
    return tuple(flat)
