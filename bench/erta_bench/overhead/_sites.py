"""What a visit of a place inside a network costs: microseconds beside the same network untouched.

The modules do nothing, so that only the gates are left to measure. Every kind of plan is measured
in turn with the untouched network, so that all see the same disturbances. Seconds are those of the
processor: what other programs do on the machine meanwhile counts less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from rich.progress import track
from torch import Tensor, nn

from erta_bench.core import Bench, Row
from erta_framework.modules import KEEP, Action, Parts, Place, ReuseKept, Select
from erta_framework.plugins import Engine, Policy, Traits, hookimpl
from erta_framework.sampling import FlowEuler, Request, SamplingLoop
from erta_framework.sampling.guidance import NoGuidance
from erta_framework.session import Seam, Step
from erta_policies.at import At
from erta_policies.taylorseer import RefreshInterval

COLUMNS = {
    "name": "plan",
    "places": "places",
    "us_per_visit": "us a visit",
    "us_per_visit_least": "least",
    "us_all_told": "all told",
    "us_all_told_least": "least",
    "times_bare": "times a module",
    "us_a_request": "once a request",
    "us_bare": "a module",
}
SHAPE = (1, 4, 2, 2)


class IdleAttention(nn.Linear):
    """A module that does nothing, and is found as an attention."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


class IdleBlock(nn.Module):
    """A block of one such module."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = IdleAttention(1, 1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        output: Tensor = self.attn(hidden_states)
        return output


class IdleNetwork(nn.Module):
    """Blocks that do nothing, one after the other; times itself.

    Attributes:
        seconds: Seconds inside, over all calls.
    """

    def __init__(self, places: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([IdleBlock() for _ in range(places)])
        self.seconds = 0.0

    def forward(self, x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        hidden = x
        started = time.process_time()
        for block in self.blocks:
            hidden = block(hidden)
        vars(self)["seconds"] += time.process_time() - started
        # the one product of the network, so that its modules have a cost that can be measured
        return hidden + 0.0 * (hidden[..., 0, :1].flatten(1) @ hidden[..., 0, :1].flatten(1).T)[0]


class SamePlan(Policy):
    """Keeps every place at the first step; afterwards assigns the same to each, or nothing."""

    then: Action | None = None

    traits = Traits(static=True, seams=frozenset({Seam.MODULE}))

    @property
    def selects(self) -> tuple[Select, ...]:
        return (Select(kind=("attention",)),)

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        action = KEEP if step.index == 0 else self.then
        return {} if action is None else dict.fromkeys(call.sites, action)


PLANS: Mapping[str, Callable[[], list[Policy]]] = {
    "nobody selected": list,
    "selected, no action": lambda: [SamePlan()],
    "keep": lambda: [SamePlan(then=KEEP)],
    "reuse": lambda: [SamePlan(then=ReuseKept())],
    "at, every third step": lambda: [
        At(sites=Select(kind=("attention",)), when=RefreshInterval(interval=3))
    ],
}


def measure_sites(
    *,
    places: int = 228,
    steps: int = 20,
    repeats: int = 30,
    progress: bool = False,
    command: str = "sites",
) -> Bench:
    """Measure what gates add to a visit of a module.

    Args:
        places: Modules that are selected; 228 are those of a large video model.
        steps: Steps of a run.
        repeats: Runs of each plan; the median counts.
        progress: Show a progress bar.
        command: Named in the result.

    Returns:
        Rows `name, us_per_visit, us_all_told`: what a visit takes more than without gates inside
        the network call, and with everything around it: asking the policy, setting the plan,
        keeping and reporting. `us_a_request` is what a place takes once, at the beginning, and
        `us_bare` the module itself.
    """
    found: dict[str, list[SiteTimes]] = {name: [] for name in ("bare", *PLANS)}
    network = IdleNetwork(places).eval()
    runs = {name: make_run(network, make(), steps) for name, make in PLANS.items()}
    bare = make_run(network, [], steps)
    for run in (bare, *runs.values()):
        run()  # whatever happens once a process
    for _ in track(range(repeats), "measuring", disable=not progress):
        found["bare"].append(bare())
        for name, run in runs.items():
            found[name].append(run())
    rows = [make_row(name, found[name], found["bare"], places, steps) for name in PLANS]
    return Bench(command, rows, COLUMNS, {"steps": steps, "repeats": repeats})


@dataclass(frozen=True, slots=True)
class SiteTimes:
    """Processor seconds of one run.

    Attributes:
        inside: Inside the network, from the second step on.
        told: Of the steps from the second one on.
        request: Of everything else: finding places, putting up gates, the first step.
    """

    inside: float
    told: float
    request: float


def make_run(network: IdleNetwork, policies: list[Policy], steps: int) -> Callable[[], SiteTimes]:
    """A run that says where its time went."""
    loop = SamplingLoop(Engine(policies), FlowEuler(), NoGuidance())
    request = Request(
        latents=torch.ones(SHAPE),
        cond=torch.ones(1, 1),
        uncond=None,
        schedule=FlowEuler().schedule(steps),
    )

    def run() -> SiteTimes:
        ended: list[float] = []

        def note_step(_: object) -> None:
            if not ended:
                network.seconds = 0.0
            ended.append(time.process_time())

        started = time.process_time()
        loop.run(network, request, observe=note_step)
        told = ended[-1] - ended[0]
        return SiteTimes(network.seconds, told, time.process_time() - started - told)

    return run


def make_row(
    name: str, runs: list[SiteTimes], bare: list[SiteTimes], places: int, steps: int
) -> Row:
    """One plan: the median of the differences, and the difference of the fastest runs."""
    each, once = 1e6 / (places * (steps - 1)), 1e6 / places

    def differ(read: Callable[[SiteTimes], float], scale: float) -> tuple[float, float]:
        own, plain = [read(run) for run in runs], [read(run) for run in bare]
        middle = median(a - b for a, b in zip(own, plain, strict=True))
        return middle * scale, (min(own) - min(plain)) * scale

    inside, inside_least = differ(lambda run: run.inside, each)
    told, told_least = differ(lambda run: run.told, each)
    request, _ = differ(lambda run: run.request, once)
    return {
        "name": name,
        "places": places,
        "us_per_visit": inside,
        "us_per_visit_least": inside_least,
        "us_all_told": told,
        "us_all_told_least": told_least,
        "us_a_request": request,
        "us_bare": median(run.inside for run in bare) * each,
        "times_bare": told / (median(run.inside for run in bare) * each),
        "repeats": len(runs),
    }
