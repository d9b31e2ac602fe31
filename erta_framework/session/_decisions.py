"""What a policy decides: run the network, or reuse earlier evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from erta_framework.errors import PolicyError


@dataclass(frozen=True, slots=True)
class Compute:
    """The decision to run the network.

    Attributes:
        reason: A few words for the trace.
        scope: `"step"` shares the decision with the other branches of this step; `"branch"`
            keeps it to this call, for policies whose traits say `decides="branch"`.
    """

    reason: str
    scope: str = "step"


@dataclass(frozen=True, slots=True)
class Reuse:
    """The decision to predict from the cache, without running the network.

    Attributes:
        reason: A few words for the trace.
        scope: As in `Compute`.
        mask: Which samples of the batch are reused, `[B]` booleans; the network runs on the
            others only. None reuses the whole batch. A tensor is read back to the host here. Only
            policies whose traits say `decides="sample"` may give one.
        branch: Another branch whose history is used instead of the call's own. It needs the scope
            `"branch"`.
        positions: On tokens, the positions whose keys and values are reused, `[B, L]` booleans; the
            network runs on the others. Policies that give them declare `serves={"tokens"}`.
        first_layer: On tokens, the layers below this one run on every position.

    Raises:
        PolicyError: The mask does not hold booleans, or `branch` is given with scope `"step"`.

    Example:
        >>> Reuse("small change", mask=torch.tensor([0.1, 0.9]) < 0.5).mask
        (True, False)
    """

    reason: str
    scope: str = "step"
    mask: Sequence[bool] | Tensor | None = None
    branch: str | None = None
    positions: Tensor | None = field(default=None, compare=False, repr=False)
    first_layer: int = 0

    def __post_init__(self) -> None:
        if self.branch is not None and self.scope != "branch":
            raise PolicyError(
                f"Reuse({self.reason!r}) takes the history of branch {self.branch!r} for every "
                'branch of the step, itself among them; give scope="branch"'
            )
        given = self.mask
        if given is None:
            return
        values = given.tolist() if isinstance(given, Tensor) else list(given)
        if not isinstance(values, list) or not all(isinstance(value, bool) for value in values):
            kind = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else given
            raise PolicyError(
                f"the mask of Reuse({self.reason!r}) is {kind}; give one boolean a sample, [B]"
            )
        object.__setattr__(self, "mask", tuple(values))


Decision = Compute | Reuse


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one branch in this step, as `adjust_interval` sees it.

    Attributes:
        decision: What was decided.
        output: The prediction that guidance will combine.
        computed: Whether the network ran.
        source: Step whose evaluation a reused output was made from; else None.
    """

    decision: Decision
    output: Tensor
    computed: bool
    source: int | None
