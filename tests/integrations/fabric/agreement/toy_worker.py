"""Scenarios with a toy network whose every call is a collective, so that disagreement hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from processes import RANK, counted, main
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from erta_framework import (
    CFG,
    Compute,
    Engine,
    FlowEuler,
    Needs,
    Policy,
    Request,
    Result,
    Reuse,
    SamplingLoop,
    Seam,
    Traits,
    hookimpl,
)
from erta_framework.config import build_policies
from erta_framework.errors import ErtaError, NonFiniteError
from erta_framework.modules import Ask, ReuseKept, Select
from erta_framework.testing import BlockFlow
from erta_integrations.fabric.agreement import (
    Agreement,
    CFGParallel,
    SamePlan,
    add_agreement,
    find_group,
)
from erta_policies.ertacache import SkipPolicy, TimestepAdjuster


class Net:
    """A row's output depends on that row alone; with a group, every call waits for all of it."""

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.calls = 0

    def __call__(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        self.calls += 1
        if self.group is not None:
            seen = torch.tensor(float(x.shape[0]))
            dist.all_reduce(seen, group=self.group)
            assert seen == x.shape[0] * self.group.size()  # the same rows on every rank
        ones = (-1, *[1] * (x.ndim - 1))
        time_ = (timestep / 1000.0).reshape(ones)
        return 0.5 * x - 0.125 * x * x.abs() + embeds.reshape(ones) * (1.0 + time_)


class Wants(Policy):
    """Wants to reuse what its table says, which may differ between ranks."""

    table: Mapping[int, Any]
    scope: Mapping[int, str]
    asked: list[int]

    @hookimpl
    def decide(self, step, call):
        self.asked.append(step.index)
        scope = self.scope.get(step.index, "step")
        if step.index not in self.table:
            return Compute("wanted", scope)
        return Reuse("wanted", scope, self.table[step.index])

    traits = Traits(decides="branch", memory=Needs(evaluations=1))


class SampleWants(Wants):
    """The same, sample by sample."""

    traits = Traits(decides="sample", memory=Needs(evaluations=1))


def wants(steps: Sequence[int] | Mapping[int, Any], scope: Any = None) -> Wants:
    table = steps if isinstance(steps, Mapping) else dict.fromkeys(steps)
    masked = any(mask is not None for mask in table.values())
    return (SampleWants if masked else Wants)(table=table, scope=scope or {}, asked=[])


class Breaks(Policy):
    """Gives an infinite output on the listed steps when they are reused."""

    steps: tuple[int, ...] = ()

    @hookimpl
    def forward(self, step, call):
        if call.reused and step.index in self.steps:
            return torch.full_like(call.x, torch.inf)
        return None


def run(
    policies: Any,
    *,
    steps: int = 8,
    guidance: Any = None,
    group: Any = None,
    batch: int = 3,
    network: Callable[[Any], Net] = Net,
) -> tuple[Result, Net]:
    net = network(group)
    solver = FlowEuler()
    request = Request(
        latents=torch.randn(batch, 2, 3, generator=torch.Generator().manual_seed(3)),
        cond=torch.linspace(-1.0, 1.0, batch)[:, None],
        uncond=torch.linspace(0.5, 0.25, batch)[:, None],
        schedule=solver.schedule(steps),
        request_id="toy",
    )
    return SamplingLoop(Engine(policies), solver, guidance).run(net, request), net


def world() -> Any:
    return dist.group.WORLD


class AsksInside(Policy):
    """Runs a module where its value is at least 1, which may differ between ranks."""

    values: Mapping[int, float]
    traits = Traits(seams=frozenset({Seam.MODULE}), agrees_inside=True)

    @property
    def selects(self):
        return (Select(kind=("attention",)),)

    @hookimpl
    def assign(self, step, call):
        return dict.fromkeys(call.sites, Ask(self.visit))

    def visit(self, visit):
        value = torch.tensor([0.0, self.values.get(visit.step.index, 0.0)])
        if visit.kept and visit.agree(value) < 1.0:
            return visit.reuse(ReuseKept())
        return visit.run(keep="output")


def run_inside(policies: Any, group: Any = None) -> tuple[Result, list[int]]:
    """A network whose attention waits for all ranks where it runs; the steps at which it did."""
    network, solver, ran = BlockFlow(), FlowEuler(), []

    def wait(*_: Any) -> None:
        ran.append(1)
        if group is not None:
            dist.all_reduce(torch.ones(1), group=group)

    for block in network.blocks:
        block.attn.qkv.register_forward_pre_hook(wait)
    request = Request(
        latents=torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(3)),
        cond=torch.ones(2, 3),
        uncond=torch.zeros(2, 3),
        schedule=solver.schedule(6),
        request_id="toy",
    )
    steps: list[int] = []

    def note(step: Any) -> None:
        steps.extend([step.index] * bool(ran))
        ran.clear()

    result = SamplingLoop(Engine(policies), solver).run(network, request, observe=note)
    return result, steps


def inside() -> dict[str, Any]:
    """Ranks that measure different values inside the network run the same modules."""
    mine = {2: 1.5} if RANK == 0 else {4: 2.0}
    policies = add_agreement([AsksInside(values=mine)], world(), timeout=10)
    result, steps = run_inside(policies, world())
    alone, _ = run_inside([AsksInside(values={2: 1.5, 4: 2.0})])
    unsure, broken = run_inside(
        add_agreement([AsksInside(values={3: torch.nan} if RANK else {})], world(), timeout=10),
        world(),
    )
    when = {"refresh_interval": {"interval": 2, "first": 1}}
    static = build_policies([{"at": {"sites": {"kind": ["attention"]}, "when": when}}])
    before = counted.get("all_reduce", 0)
    planned, ran = run_inside(add_agreement(static, world()))
    return {
        "steps": steps,
        "votes": policies[0].ledger.votes,
        "sample": result.sample,
        "alone": alone.sample,
        "broken": broken,
        "finite": bool(unsure.sample.isfinite().all()),
        "static": ran,
        "static_sent": counted.get("all_reduce", 0) - before,
        "static_sample": planned.sample,
    }


def decisions() -> dict[str, Any]:
    """Ranks that want different steps; the same steps without any rank to ask, alone."""
    judge = wants([2, 3, 5] if RANK == 0 else [2, 4, 5])
    policies = add_agreement([judge], world(), timeout=10)
    before = counted.get("all_reduce", 0)
    result, net = run(policies, group=world())
    spent = counted["all_reduce"] - before - net.calls
    alone, _ = run([SkipPolicy(steps=(0, 1, 3, 4, 6, 7))])
    agreement = policies[0]
    assert isinstance(agreement, Agreement)
    return {
        "computed": result.trace.computed_steps,
        "reasons": [call.reason for call in result.trace.calls()],
        "asked": judge.asked,
        "beyond_the_network": spent,
        "votes": agreement.ledger.votes,
        "handshakes": agreement.ledger.handshakes,
        "bytes": agreement.ledger.bytes,
        "sample": result.sample,
        "alone": alone.sample,
    }


def static() -> dict[str, Any]:
    """A static schedule is compared at both ends of a request, and sends nothing in between."""
    policies = [SkipPolicy(every=2), TimestepAdjuster(phi=(0.9,) * 8)]
    added = add_agreement(policies, world(), timeout=10)
    plan = added[0]
    assert isinstance(plan, SamePlan)
    before = counted.get("all_reduce", 0)
    watch = Watch(seen=[])
    result, net = run([*added, watch], group=world())
    alone, _ = run(policies)
    again, _ = run(added)
    return {
        "rest": added[1:] == policies,
        "beyond_the_network": counted["all_reduce"] - before - net.calls - 2 * 2,
        "at_each_step": [now - before for now in watch.seen],
        "gathered": counted.get("all_gather", 0),
        "handshakes": plan.ledger.handshakes,
        "bytes": plan.ledger.bytes,
        "computed": result.trace.computed_steps,
        "identical": torch.equal(result.sample, alone.sample)
        and torch.equal(again.sample, alone.sample),
    }


class Watch(Policy):
    """Notes how many reductions there were when each step began."""

    seen: list[int]
    traits = Traits(static=True)

    @hookimpl
    def pre_step(self):
        self.seen.append(counted.get("all_reduce", 0))


class Pretends(Wants):
    """Declares itself static, and decides by its table, which differs between ranks."""

    traits = Traits(static=True, memory=Needs(evaluations=1))


def pretends(steps: Sequence[int]) -> Pretends:
    # a mapping is of no plain type: what it holds is not known before sampling
    return Pretends(table=dict.fromkeys(steps), scope={}, asked=[])


def plans() -> dict[str, Any]:
    """Ranks with other static plans are told at the start, with both plans."""
    listed = SkipPolicy(every=2) if RANK == 0 else SkipPolicy(steps=(0, 3, 5))
    phi = TimestepAdjuster(phi=(0.9 if RANK == 0 else 0.8,) * 8)
    voting = [SkipPolicy(every=2)] if RANK == 0 else [wants([2, 3])]
    some = [SkipPolicy(every=2)] if RANK == 0 else []
    return {
        "schedule": refused([listed]),
        "settings": refused([phi]),
        "voting": refused(voting),
        "none": refused(some),
        "steps": refused([SkipPolicy(every=2)], steps=6 + RANK),
    }


def pretenders() -> dict[str, Any]:
    """A policy that is static in name only: as many calls on both ranks, and other numbers."""
    net = dist.new_group([0, 1], timeout=timedelta(seconds=2))
    found = {}
    for name, reused in {"as_many": ([3], [5]), "fewer": ([], [3, 5])}.items():
        started = time.monotonic()
        added = add_agreement([pretends(reused[RANK])], world(), timeout=30)
        try:
            run(added, group=net)
        except ErtaError as error:
            found[name] = {
                "error": str(error),
                "kind": type(error).__name__,
                "seconds": time.monotonic() - started,
            }
    return found


def branches() -> dict[str, Any]:
    """Two branches on every rank: one vote a step, or one a branch where some rank asks for it."""
    judge = wants([2, 3, 4, 5], {3: "branch"} if RANK == 1 else {})
    policies = add_agreement([judge], world(), timeout=10)
    result, _ = run(policies, guidance=CFG(scale=2.0), group=world())
    return {
        "votes": policies[0].ledger.votes,
        "asked": judge.asked,
        "computed": result.trace.computed_steps,
    }


def masks() -> dict[str, Any]:
    """A sample is reused only where every rank would."""
    tables = (
        {2: (True, True, False), 3: (True, False, True), 4: (False, True, True), 5: None},
        {2: (True, False, True), 3: (True, False, True), 4: (True, False, False), 6: None},
    )
    policies = add_agreement([wants(tables[RANK])], world(), timeout=10)
    result, net = run(policies, group=world())
    both = {2: (True, False, False), 3: (True, False, True)}
    alone, _ = run([wants(both)])
    return {
        "rows": {str(call.index): call.rows for call in result.trace.calls()},
        "calls": net.calls,
        "votes": policies[0].ledger.votes,
        "sample": result.sample,
        "alone": alone.sample,
    }


def nonfinite() -> dict[str, Any]:
    """One rank's reused output is broken: every rank raises at the next decision."""
    broken = Breaks(steps=(3,) if RANK == 1 else ())
    said = refused([broken, wants([3])])
    at_the_end = Breaks(steps=(7,) if RANK == 1 else ())
    result, net = run(add_agreement([at_the_end, wants([7])], world(), timeout=10), group=world())
    try:
        result.trace.raise_if_nonfinite()
        last = ""
    except NonFiniteError as error:
        last = str(error)
    return {**said, "last": last, "calls": net.calls}


def mismatch() -> dict[str, Any]:
    """Ranks that run other schedules, or other batches, are told so at once."""
    steps = refused([wants([3])], steps=6 + RANK)
    rows = refused([wants([3])], batch=2 + RANK)
    return {"steps": steps["error"], "rows": rows["error"]}


def bad_mask() -> dict[str, Any]:
    """A mask of the wrong length is the policy's fault, and leaves no rank waiting."""
    return refused([wants({2: (True,)})])


def refused(policies: list[Policy], **options: Any) -> dict[str, Any]:
    try:
        run(add_agreement(policies, world(), timeout=10), group=world(), **options)
    except ErtaError as error:
        return {"error": str(error), "kind": type(error).__name__}
    raise AssertionError("nothing was refused")


def cfg_parallel() -> dict[str, Any]:
    """One branch a rank; static and decided while sampling, against both branches on one rank."""
    found: dict[str, Any] = {}
    group = world()
    guidance = CFGParallel(CFG(scale=3.0), group, timeout=10)
    # the two ranks see other branches, so that what they want differs
    judge = wants([2, 3, 5] if RANK == 0 else [2, 4, 5])
    adjuster = TimestepAdjuster(phi=(0.9,) * 8)
    for name, policies in {
        "full": [],
        "static": [SkipPolicy(every=2), adjuster],
        "dynamic": [judge, adjuster],
    }.items():
        added = add_agreement(policies, group, timeout=10)
        result, net = run(added, guidance=guidance)
        replay = SkipPolicy(steps=result.trace.computed_steps)
        same = [] if name == "full" else [replay, adjuster]
        alone, _ = run(same, guidance=CFG(scale=3.0))
        found |= {f"{name}": result.sample, f"{name}_alone": alone.sample}
        found[f"{name}_calls"] = net.calls
        found[f"{name}_computed"] = result.trace.computed_steps
        found[f"{name}_branches"] = sorted({call.branch for call in result.trace.calls()})
    found["exchanges"] = guidance.ledger.exchanges
    found["repr"] = repr(guidance)
    return found


def cfg_refused() -> dict[str, Any]:
    """What cannot be divided is refused when the guidance is made."""
    said = []
    for cfg, group in [
        (CFG(stop=0.5), world()),
        (CFG(batched=True), world()),
        (CFG(), None),
    ]:
        try:
            CFGParallel(cfg, group)
        except ErtaError as error:
            said.append(str(error))
    return {"said": said}


def groups() -> dict[str, Any]:
    """Groups of meshes of two processes."""
    line = init_device_mesh("cpu", (2,), mesh_dim_names=("context",))
    grid = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "context"))
    found = {
        "line": find_group(line),
        "own": find_group(line, timeout=7),
        "named": find_group(grid, "context"),
        "both": find_group(grid, ("data", "context")),
        "data": find_group(grid, "data"),
        "ranks": find_group([0, 1]),
        "group": find_group(world()),
    }
    said = []
    for source, dims in [(grid, ()), (grid, "tensor"), ("world", ()), ([1 - RANK], ())]:
        try:
            find_group(source, dims)
        except ErtaError as error:
            said.append(str(error))
    ranks = {name: dist.get_process_group_ranks(group) for name, group in found.items()}
    return {"ranks": ranks, "same": found["group"] is world(), "said": said}


class Stops(Policy):
    """Does something terrible at step 3 of one rank."""

    victim: int
    deed: Any

    @hookimpl
    def decide(self, step):
        if self.victim == RANK and step.index == 3:
            self.deed()
        return None


def ended(policy: Stops, group: Any, timeout: float) -> dict[str, Any]:
    """How the other rank ends."""
    started = time.monotonic()
    try:
        run(add_agreement([policy], group, timeout=timeout), group=group)
    except (ErtaError, RuntimeError) as error:
        return {
            "error": str(error),
            "kind": type(error).__name__,
            "notes": getattr(error, "__notes__", []),
            "seconds": time.monotonic() - started,
        }
    raise AssertionError("nobody noticed")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def unagreed() -> dict[str, Any]:
    """What becomes of ranks that decide differently without an agreement."""
    group = dist.new_group([0, 1], timeout=timedelta(seconds=2))
    try:
        run([wants([] if RANK == 0 else [3])], group=group)
        said = ""
    except RuntimeError as error:
        said = str(error)
    time.sleep(0 if RANK == 0 else 4)  # the other one waits for this rank
    return {"said": said}


def departures() -> dict[str, Any]:
    """Rank 0 is left alone: by a rank that hangs, a dead one, and one dead in the network.

    Three processes; every group is made first, by all of them.
    """
    made = [dist.new_group(ranks) for ranks in ([0, 1], [0, 1], [0, 2], [0, 2])]
    if RANK == 1:
        ended(Stops(victim=1, deed=give_up), made[0], timeout=1)
        ended(Stops(victim=1, deed=kill), made[1], timeout=10)
    if RANK == 2:
        run(add_agreement([wants([])], made[2], timeout=30), group=made[3], network=Dies)
    late = ended(Stops(victim=1, deed=give_up), made[0], timeout=1)
    dead = ended(Stops(victim=1, deed=kill), made[1], timeout=10)
    try:
        run(add_agreement([wants([])], made[2], timeout=10), group=made[3], network=Dies)
    except RuntimeError as error:
        inside = {"kind": type(error).__name__, "notes": error.__notes__}
        return {"late": late, "dead": dead, "inside": inside}
    raise AssertionError("nobody noticed")


def give_up() -> None:
    time.sleep(3)
    raise TimeoutError("this rank gave up as well")


class Dies(Net):
    """A network within which rank 2 is killed, so that rank 0 waits in a collective of it."""

    def __call__(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        if RANK == 2 and self.calls == 3:
            kill()
        return super().__call__(x, timestep, embeds)


def replicas() -> dict[str, Any]:
    """2 x 2: the ranks of one replica agree; replicas run different numbers of steps."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "context"))
    replica, shard = mesh.get_coordinate()
    group = find_group(mesh, "context", timeout=20)
    assert group is not None
    steps = 6 + 5 * replica
    judge = wants([2, 3, 5] if shard == 0 else [2, 4, 5])
    policies = add_agreement([judge], group, timeout=20)
    result, _ = run(policies, steps=steps, group=group)
    alone, _ = run([wants([2, 5])], steps=steps)
    return {
        "ranks": dist.get_process_group_ranks(group),
        "steps": steps,
        "computed": result.trace.computed_steps,
        "votes": policies[0].ledger.votes,
        "sample": result.sample,
        "alone": alone.sample,
    }


def cfg_context() -> dict[str, Any]:
    """2 x 2: two branches, each computed by two ranks together; all four agree."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("cfg", "context"))
    everyone = find_group(mesh, ("cfg", "context"), timeout=20)
    guidance = CFGParallel(CFG(scale=3.0), find_group(mesh, "cfg"), timeout=20)
    judge = wants({0: [2, 3, 5], 1: [2, 5], 2: [2, 4, 5], 3: [1, 2, 5]}[RANK])
    policies = add_agreement([judge], everyone, timeout=20)
    result, net = run(policies, guidance=guidance, group=mesh.get_group("context"))
    alone, _ = run([wants([2, 5])], guidance=CFG(scale=3.0))
    return {
        "computed": result.trace.computed_steps,
        "calls": net.calls,
        "sample": result.sample,
        "alone": alone.sample,
    }


if __name__ == "__main__":
    main(
        {
            scenario.__name__: scenario
            for scenario in (
                decisions,
                inside,
                static,
                plans,
                pretenders,
                branches,
                masks,
                nonfinite,
                mismatch,
                bad_mask,
                cfg_parallel,
                cfg_refused,
                groups,
                unagreed,
                departures,
                replicas,
                cfg_context,
            )
        }
    )
