"""What CFG-Cache keeps during a request."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from erta_policies.fastercache._bands import BranchDelta
from erta_policies.fastercache._schedules import GuidancePlan


@dataclass(slots=True)
class GuidanceMemory:
    """What one network keeps of its branches.

    Attributes:
        delta: Their difference at the newest step that computed both.
        cond: The conditional rows of the open step, where they were computed alone.
        skipped: The newest step without the unconditional branch.
    """

    delta: BranchDelta | None = None
    cond: Tensor | None = None
    skipped: int = -1


@dataclass(slots=True)
class GuidanceRun:
    """The plan of one request, and the branches that were called so far."""

    plan: GuidancePlan
    called: dict[str, None] = field(default_factory=dict)
