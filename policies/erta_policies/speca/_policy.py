"""`SpeCa`: modules are forecast until the last block says that the forecast is too far off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from erta_framework import Policy, Seam, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.modules import (
    KEEP,
    SKIP,
    Action,
    Ask,
    Keep,
    Parts,
    Place,
    ReuseKept,
    Select,
    Visit,
    list_tensors,
)
from erta_policies.at import divide_places, weigh_kept
from erta_policies.forecast import Forecaster

MODULES = Select(kind=("attention", "cross", "mlp"), depth=":-1")
LAST = Select(kind=("block",), pick="-1")
EPS = 1e-10


@dataclass(slots=True)
class Verified:
    """What the newest verification of a branch has found.

    Attributes:
        index: Its step; -1 before the first.
        errors: The error of each sample, `[R]`.
    """

    index: int = -1
    errors: Tensor | None = None


class SpeCa(Policy):
    """Forecasts the modules of the network, and lets the last block verify the forecast.

    At a full step everything runs. After it come steps at which the output of every attention,
    cross-attention and MLP is TaylorSeer's forecast. Once `least` such steps have passed, the last
    block really runs, on the input that the forecasts led to, and its output is compared with its
    own forecast. Where the error is above a threshold, the *next* step is full: verification acts
    one step late. The threshold falls along the schedule,
    `max(threshold * decay^((k + 1) / T), floor)` at step k of T.

    The forecast is used also where it was verified, as in the released code. Steps are counted by
    age, so that a rule that leaves out whole steps can stand beside it. Every branch verifies for
    itself, and of several samples the worst counts.

    Source: SpeCa, arXiv 2509.11628, after its released code for DiT (`cal_type`). Ours: the first
    steps are all full, while there the second one is forecast, since a full step is always followed
    by a forecast; and what the last block adds is forecast as one, with the gates of its last run,
    instead of its attention and its MLP.

    Attributes:
        threshold: Largest error at the start of the schedule.
        decay: What is left of it at the end, as a factor.
        floor: Smallest threshold, 0.01 as released.
        least: Forecast steps that are not verified, after every full step.
        most: Forecast steps after which a step is full.
        first: Steps at the start that are full.
        order: Highest difference of the forecast.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> SpeCa(threshold=0.5, decay=0.04).find_limit(24, 50)
        0.1
    """

    threshold: float = 0.1
    decay: float = 0.01
    floor: float = 0.01
    least: int = 1
    most: int = 5
    first: int = 3
    order: int = 2

    traits = Traits(seams=frozenset({Seam.MODULE}), agrees_inside=True)

    def __post_init__(self) -> None:
        if not (self.threshold >= 0 and 0 < self.decay <= 1 and self.floor >= 0):
            raise PolicyError(
                f"SpeCa has threshold={self.threshold:g}, decay={self.decay:g} and floor="
                f"{self.floor:g}; thresholds are 0 or more, and the decay lies within 0 and 1"
            )
        if not 1 <= self.least <= self.most or self.first < 1:
            raise PolicyError(
                f"SpeCa has least={self.least}, most={self.most} and first={self.first}; all are "
                "1 or more, and least is at most most"
            )
        _ = self._forecast  # checks the order

    @property
    def _forecast(self) -> Forecaster:
        return Forecaster(basis="taylor", order=self.order, over="index", what="output")

    @property
    def selects(self) -> Sequence[Select]:
        """The modules of all blocks but the last, and the last block."""
        return (MODULES, LAST)

    def keeps(self) -> int:
        """As many outputs as the forecast continues."""
        return self.order + 1

    def find_limit(self, index: int, num_steps: int) -> float:
        """The largest error at a step."""
        left: float = self.decay ** ((index + 1) / num_steps)
        return max(self.threshold * left, self.floor)

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        *modules, last = call.sites
        own, feeding = divide_places(tuple(modules))
        verified = call.state_of(self, Verified)
        if self._is_full(step, call, last, verified):
            return {**dict.fromkeys(own, KEEP), last: Keep("residual")}
        forecast, what = {}, self._forecast
        for place in own:
            forecast[place] = ReuseKept(weigh_kept(what, step, call.stamps(place)))
        plan: dict[Place, Action] = {**forecast, **dict.fromkeys([p for p, _ in feeding], SKIP)}
        added = ReuseKept(weigh_kept(what, step, call.stamps(last)), of="residual")
        age = call.age(last)
        verifies = age is not None and age > self.least
        plan[last] = Ask(partial(self._verify, added, verified)) if verifies else added
        return plan

    def _is_full(self, step: Step, call: Parts, last: Place, verified: Verified) -> bool:
        """Whether everything runs at this step."""
        ages = [call.age(place) for place in (last, *divide_places(call.sites[:-1])[0])]
        age = ages[0]
        if age is None or None in ages or step.index - step.session.first < self.first:
            return True
        if age > self.most:
            return True
        if verified.errors is None or verified.index <= step.index - age:
            return False  # nothing was verified since everything ran
        read = call.agree_each(verified.errors, f"at {last} in step {step.index}")
        limit = self.find_limit(step.index, step.num_steps)
        return not all(error <= limit for error in read)  # NaN is too large

    def _verify(self, action: ReuseKept, verified: Verified, visit: Visit) -> Any:
        """Run the last block on the predicted input, and measure how far its forecast is off."""
        forecast, fresh = visit.reuse(action), visit.run()
        first = list_tensors(forecast)[0], list_tensors(fresh)[0]
        verified.index, verified.errors = visit.step.index, measure_error(*first)
        return forecast


def measure_error(forecast: Tensor, computed: Tensor) -> Tensor:
    """Mean relative error of every number of a sample, `[B]`.

    `mean |forecast - computed| / (|computed| + 1e-10)`, in float32.

    Example:
        >>> import torch
        >>> measure_error(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 3.0]]))
        tensor([0.2500])
    """
    off = (forecast.float() - computed.float()).abs()
    return (off / (computed.float().abs() + EPS)).flatten(1).mean(1)
