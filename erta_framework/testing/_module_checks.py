"""Checks of policies that own places inside a network; others pass them as they are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import field, replace

import torch
from torch import Tensor, nn

from erta_framework.errors import ConflictError, InputError
from erta_framework.modules import ModuleRun, ModuleSeam, PlaceFinder
from erta_framework.plugins import Engine, Policy, Profiler, Traits, flatten, hookimpl
from erta_framework.sampling import Request
from erta_framework.session import Call, Decision, Reuse, Step, make_site
from erta_framework.testing._compare import fail
from erta_framework.testing._setup import (
    BLOCKS,
    AlternateSteps,
    make_engine,
)


class Rowwise(Policy):
    """Reuses some samples at some steps; nothing else stands beside the policy that is checked."""

    traits = Traits(decides="sample")
    steps: tuple[frozenset[int], ...] = field(default_factory=tuple)

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        return Reuse("rows", mask=[step.index not in own for own in self.steps])


def selects_places(policy: Policy) -> bool:
    """Whether a policy, or a part of it, owns places inside a network."""
    return bool(Engine([policy]).selecting)


def take_parts(policy: Policy) -> list[Policy]:
    """Copies of the parts of a policy that own places; its rules for whole steps stay out."""
    return [part for part in flatten([copy.deepcopy(policy)]) if part.selects]


def check_reuse_at_equal_input_is_equal(policy: Policy) -> None:
    """On the same input at every step, reused modules give what running them would.

    Kept outputs and forecasts of a constant are that constant, and a residual is added once.
    """
    if not selects_places(policy):
        return
    toy, outputs = BLOCKS.toy(), []
    assert isinstance(toy, nn.Module)
    engine, request = Engine(take_parts(policy)), BLOCKS.request(seed=50)
    time = torch.full((2,), 500.0)
    owners = engine.own_places("model", toy, PlaceFinder())
    plain = toy(request.latents, time, request.cond)
    with (
        ModuleSeam({"model": toy}, {"model": owners}) as seam,
        BLOCKS.session(engine, request) as session,
    ):
        run, site = ModuleRun(seam, session), make_site("model", "cond")

        def call() -> Tensor:
            found: Tensor = toy(request.latents, time, request.cond)
            return found

        for index in range(request.schedule.num_steps):
            session.begin(request.schedule.interval(index))
            outputs.append(run.run("model", site, request.latents, call))
            session.forward(request.latents, lambda: outputs[-1])
            session.settle()
            session.end(request.latents)
    for index, output in enumerate(outputs):
        gap = float((output - plain).abs().max())
        if not gap <= 1e-4 * float(plain.abs().max()):
            fail(
                policy,
                f"on the same input as in step 0, step {index} differs by up to {gap:.3g}",
                "let weights add up to 1, reuse the quantity that is kept, and let no phantom out",
            )


def check_nothing_is_left_on_modules(policy: Policy) -> None:
    """After a request, and after one that failed, the modules of the network are as they were."""
    if not selects_places(policy):
        return
    for failing in (False, True):
        toy = BLOCKS.toy()
        assert isinstance(toy, nn.Module)
        before = capture_modules(toy)
        request, engine = BLOCKS.request(seed=51), make_engine(policy)
        if failing:
            broken = replace(request, uncond=request.cond[:, :2])  # two channels of three
            with suppress(InputError):
                BLOCKS.run(engine, broken, toy)
        else:
            BLOCKS.run(engine, request, toy)
        changed = sorted(p for p, held in capture_modules(toy).items() if held != before[p])
        if changed:
            fail(
                policy,
                f"a request that {'failed' if failing else 'ended'} left something on {changed[0]}",
                "change no modules: assign actions to places",
            )


def capture_modules(network: nn.Module) -> Mapping[str, frozenset[str]]:
    """Names of the attributes on every module."""
    return {path: frozenset(vars(module)) for path, module in network.named_modules()}


def check_places_have_one_owner(policy: Policy) -> None:
    """Two copies of a policy would own the same places: that is refused."""
    if not selects_places(policy):
        return
    engine = Engine([copy.deepcopy(policy), copy.deepcopy(policy)])
    try:
        engine.own_places("model", BLOCKS.toy(), PlaceFinder())
    except ConflictError:
        return
    fail(policy, "an engine took two copies of it", "select the same places for equal settings")


def check_places_are_assigned(policy: Policy) -> None:
    """Every place that a policy owns is assigned an action in the course of a request."""
    if not selects_places(policy):
        return
    trace = BLOCKS.run(make_engine(policy), BLOCKS.request(seed=52)).trace
    for owner, paths in trace.unassigned.items():
        fail(
            policy,
            f"{owner} owns {', '.join(paths)} and never assigned an action to it",
            "select only what is assigned, or assign KEEP",
        )


def check_modules_beside_a_step_rule(policy: Policy) -> None:
    """Where a step rule leaves out steps, places get older, and the samples stay finite.

    Left out for a profiler, which observes full runs.
    """
    if not selects_places(policy) or isinstance(policy, Profiler):
        return
    engine = Engine([AlternateSteps(), policy])
    result = BLOCKS.run(engine, BLOCKS.request(seed=53))
    if not bool(result.sample.isfinite().all()):
        fail(policy, "beside a step rule the samples are not finite", "count ages, not calls")
    skipped = [call for call in result.trace.calls() if not call.computed and call.sites]
    if skipped:
        fail(policy, "it was asked on a reused step", "assign is called where the network runs")


def check_rows_of_modules(policy: Policy) -> None:
    """Where only some samples of a batch run, each gets what it gets alone.

    Left out for a policy whose plan differs between the two: it decides for the batch by the sample
    that waits longest; and for a profiler, which observes full runs.
    """
    if not selects_places(policy) or isinstance(policy, Profiler):
        return
    whole = BLOCKS.request(seed=54)
    last = whole.schedule.num_steps - 1
    steps = frozenset({0, 3, 4, last})
    together = run_rows(policy, whole, (steps, steps))
    for row in range(2):
        alone = run_rows(policy, select_row(whole, row), (steps,))
        gap = float((together[row] - alone[0]).abs().max())
        if not gap <= 1e-3 * float(alone.abs().max()):
            fail(
                policy,
                f"sample {row} of a batch differs by up to {gap:.3g} from the same sample alone",
                "keep what belongs to a sample in its row",
            )


def run_rows(policy: Policy, request: Request, steps: tuple[frozenset[int], ...]) -> Tensor:
    """The samples of a request whose samples compute at steps of their own."""
    rule = Rowwise(steps=steps)
    return BLOCKS.run(Engine([rule, *take_parts(policy)]), request).sample


def select_row(request: Request, row: int) -> Request:
    """One sample of a request."""
    assert request.uncond is not None
    part = slice(row, row + 1)
    return replace(
        request,
        latents=request.latents[part],
        cond=request.cond[part],
        uncond=request.uncond[part],
    )


MODULE_CHECKS = (
    check_reuse_at_equal_input_is_equal,
    check_nothing_is_left_on_modules,
    check_places_have_one_owner,
    check_places_are_assigned,
    check_modules_beside_a_step_rule,
    check_rows_of_modules,
)
