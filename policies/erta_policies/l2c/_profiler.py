"""`L2CProfiler`: what it costs in error where one module rests, tried on the same latents."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from erta_framework import Call, Profile, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.calibration import Entry, ProfileKind
from erta_framework.errors import PolicyError
from erta_framework.modules import KEEP, SKIP, Action, Parts, Place, ReuseKept, Select
from erta_framework.session import PLANNED, TRIAL
from erta_policies.at import divide_places
from erta_policies.shared import RunProfiler, require_computed

SITES = (Select(kind=("attention", "cross", "mlp")),)
PLACES = "places"
"""The fact that names the modules; a policy compares it with the network itself."""
KIND = ProfileKind(
    "l2c_profiler",
    {
        "error": Entry(shape="T P"),
        "rows": Entry(shape="1", least=1.0, counts=True),
        "shares": Entry(shape="P", least=0.0),
        "calls": Entry(shape="1", least=1.0, counts=True),
    },
)
"""Sums over rows, a row being a sample in one guidance branch: `error` `[T, P]` of each of P
modules where it alone rests at a step, 0 at the steps at which all run, and `rows`. Sums over
batches: `shares`, what each module costs as a share of a network call, and `calls`."""


@dataclass(slots=True, eq=False)
class Tried:
    """What one request has given so far.

    Attributes:
        places: The modules, in the order of execution.
        shares: What each costs; empty before that is known.
        error: Sums of the errors, by step.
        rows: Rows that were tried at the first step that is tried.
    """

    places: tuple[Place, ...] = ()
    shares: list[float] = field(default_factory=list)
    error: dict[int, Tensor] = field(default_factory=dict)
    rows: int = 0


class L2CProfiler(RunProfiler):
    """Measures how far the prediction is off where one module rests, for `L2C`.

    Steps come in pairs. In the second step of each, every module in turn gives the output that it
    gave in the first, while all others run, and the prediction is compared with the full one: the
    loss of L2C with one router closed. The trajectory is the uncached one. It takes a network call
    for each module and each second step: 28 blocks of two modules make it 29 runs.

    Source: ours. L2C, arXiv 2406.01733, learns routers instead.

    Raises:
        PolicyError: What the modules cost cannot be measured in this network.
        InputError: The run does not start at step 0.

    Example:
        >>> Sampler().calibrate(model, prompts, profiler=L2CProfiler())  # doctest: +SKIP
    """

    kind = KIND
    traits = Traits(seams=frozenset({Seam.MODULE}), requires=frozenset({TRIAL, PLANNED}))
    selects = SITES

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        tried = step.session.state_of(self, Tried)
        tried.places = tuple(divide_places(call.sites)[0])
        costs = call.costs
        if not tried.shares and costs is not None:
            tried.shares = [
                costs.count_idle(path for path in place.modules if path in costs.flops)
                / costs.total
                for place in tried.places
            ]
        return dict.fromkeys(tried.places, KEEP)

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        tried, off = step.session.state_of(self, Tried), list[Tensor]()
        if step.index % 2:
            for place in tried.places:
                off.append(call.trial(plan=partial(rest_places, {place})))
        output = yield
        require_computed(self, step, call)
        if off:
            found = torch.stack([measure_loss(one, output).sum() for one in off]).double().cpu()
            tried.error[step.index] = tried.error.get(step.index, 0.0) + found
            tried.rows += output.shape[0] if step.index == 1 else 0
        return output

    def summarise(self, session: SessionInfo) -> Profile | None:
        tried, steps = session.state_of(self, Tried), range(session.num_steps)
        if any(k not in tried.error for k in steps if k % 2) or not tried.error:
            return None
        if not tried.shares:
            raise PolicyError(
                f"{self!r} needs what the modules cost, which could not be measured in this network"
            )
        nothing = torch.zeros(len(tried.places)).double()
        statistics = {
            "error": torch.stack([tried.error.get(k, nothing) for k in steps]),
            "rows": torch.tensor([tried.rows]).double(),
            "shares": torch.tensor(tried.shares).double(),
            "calls": torch.ones(1).double(),
        }
        names = ",".join(place.path for place in tried.places)
        return self.emit(session, statistics, {PLACES: names})


def rest_places(resting: set[Place], call: Parts) -> dict[Place, Action]:
    """A plan in which some modules give what they gave last, with those that only feed them."""
    own, feeding = divide_places(call.sites)
    plan: dict[Place, Action] = {p: ReuseKept() if p in resting else KEEP for p in own}
    plan.update((place, SKIP) for place, target in feeding if target in resting)
    return plan


def measure_loss(reused: Tensor, full: Tensor) -> Tensor:
    """The squared error of each row, relative to the square of the full prediction, `[B]`.

    Example:
        >>> import torch
        >>> measure_loss(torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
        tensor([0.2500])
    """
    a, b = reused.flatten(1).float(), full.flatten(1).float()
    loss: Tensor = (a - b).square().sum(1) / b.square().sum(1).clamp_min(
        torch.finfo(torch.float32).tiny
    )
    return loss
