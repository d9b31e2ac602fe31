"""Every allowed combination of the registered policies runs, and refused ones say why."""

from __future__ import annotations

from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch

from erta_framework import CFG, Engine, FlowEuler, Policy, Profile, Reuse, Seam, Traits, hookimpl
from erta_framework import compatibility as composition
from erta_framework.cli import main
from erta_framework.compatibility import (
    PLACES,
    Composer,
    Overview,
    Role,
    collect_specimens,
    find_role,
    make_overview,
)
from erta_framework.compatibility._specimens import list_variants
from erta_framework.errors import ErtaError, PolicyError
from erta_framework.modules import Select
from erta_framework.plugins import policies
from erta_framework.sampling import _loop as loop
from erta_framework.sampling.solvers import DDIM, FlowAdamsBashforth2
from erta_framework.testing import BlockFlow, GaussianMixtureFlow, ToySetup, toy_profile
from erta_policies.adapters import WarmUp
from erta_policies.at import At
from erta_policies.budcache import BudCacheProfiler
from erta_policies.cachequant import FeatureProfiler
from erta_policies.easycache import EasyCache
from erta_policies.ertacache import ErrorLinearizer, ERTACache, ResidualProfiler, TimestepAdjuster
from erta_policies.forecast import Forecaster, MeanVelocity
from erta_policies.meancache import AverageVelocity, MeanCacheSchedule

SETUP = ToySetup(
    toy=partial(GaussianMixtureFlow, (2, 2)),
    solver=FlowEuler(),
    guidance=CFG(scale=2.0),
    num_steps=8,
)
EAGER = {"threshold": 0.5, "warmup": 2}
SETTINGS = {
    "easycache": EAGER,
    "sencache": {"eps_start": 0.5, "eps_main": 0.5},
    "prompt_threshold": {"policy": EasyCache(**EAGER), "low": 0.4, "high": 0.6},
    "every_branch_agrees": {"policy": EasyCache(**EAGER)},
    "edge_velocity": {"schedule": MeanCacheSchedule(fresh=(0, 1, 2, 4, 7), spans=(0, 0, 2, 2))},
    "lfcache": {"alpha": 1.0},
    "centered_steps": {"center": 3},
}
MORE_OF_PIPELINES = ("reused", "model.seam", "model.component", "model.network")
"""Fields of the fingerprint that a pipeline has, and a toy not."""
OFFERED = loop.list_capabilities(SETUP.solver)
CATALOGUE = policies(only=())
CLASSES = {name: CATALOGUE.load(name) for name in CATALOGUE.names()}
RULES = [name for name, cls in CLASSES.items() if find_role(cls) is Role.WHEN]


def settings(width):
    """`SETTINGS`, with reference embeddings of this width."""
    directions = torch.eye(2, width, dtype=torch.float64)
    statistics = {"directions": directions, "samples": torch.ones(2, dtype=torch.float64)}
    references = Profile("prompt_profiler", {"tokens": "valid"}, statistics, samples=2)
    more = {"references": references, "allow": ("model.class", "model.network", "model.config")}
    features = features_of_blocks()
    # of another toy, but for the number of steps
    other = tuple(set(features.fingerprint) - {"num_steps", "rows", "of"})
    grouped = {"profile": features, "interval": 3, "allow": (*other, *MORE_OF_PIPELINES)}
    steps = toy_profile(BudCacheProfiler(budget={"calls": 4}, iterations=0, climbs=0), setup=SETUP)
    other = tuple(set(steps.fingerprint) - {"num_steps"})
    return {
        **SETTINGS,
        "prompt_threshold": {**SETTINGS["prompt_threshold"], **more},
        "budcache": {"profile": steps, "allow": (*other, *MORE_OF_PIPELINES)},
        "grouped_steps": grouped,
    }


@cache
def features_of_blocks():
    """A profile of what a span of blocks adds, which the toy without blocks cannot give."""
    span = Select(kind=("block",), span=True)
    setup = ToySetup(toy=BlockFlow, solver=FlowEuler(), guidance=CFG(scale=2.0), num_steps=8)
    return toy_profile(FeatureProfiler(sites=span, interval=3), setup=setup, seeds=(11,))


@cache
def on_the_toy(vary=()):
    calibrate = partial(toy_profile, setup=SETUP, seeds=(11,))
    found = collect_specimens(calibrate, settings=settings(2), vary=vary, catalogue=CATALOGUE)
    # the toy's latents have no height and width to split
    found.groups[Role.CORRECTION].pop("band_forecast transform=dct", None)
    return SimpleNamespace(absent=found.absent, composer=Composer(found.groups))


def runs(world, rule):
    """Run every allowed combination of a rule; how many there were."""
    composer, ran = world.composer, 0
    request, full = SETUP.request(), SETUP.run(Engine([]), SETUP.request())
    alone = composer.engines[frozenset({(Role.WHEN, rule)})]
    decided = decisions(SETUP.run(alone, request).trace)
    for one in composer.combinations(OFFERED):
        if one.names[Role.WHEN] != rule or not one.allowed:
            continue
        toy = SETUP.toy()
        result = SETUP.run(one.engine, request, toy)
        trace = result.trace
        assert result.sample.isfinite().all(), str(one)
        assert toy.calls == trace.network_calls + trace.trial_calls, str(one)
        if alone.traits.static:
            assert decisions(trace) == decided, str(one)
            assert trace.network_calls == sum(computed for *_, computed in decided), str(one)
        reused = trace.network_samples < full.trace.network_samples
        if reused or not one.engine.traits.corrects_computed:
            assert torch.equal(result.sample, full.sample) != reused, str(one)
        ran += 1
    return ran


def decisions(trace):
    """Step, branch and whether the network ran, of every call."""
    return [(call.index, call.branch, call.computed) for call in trace.calls()]


def unserved(world, rule):
    """Why a rule cannot run on the toy at all; None if it can."""
    alone = frozenset({(Role.WHEN, rule)})
    conflicts = world.composer.conflicts(OFFERED)
    return world.absent.get(rule) or conflicts.get(alone)


@pytest.mark.parametrize("rule", RULES)
def test_every_allowed_combination_runs_on_the_toy(rule):
    world = on_the_toy()
    reason = unserved(world, rule)
    if reason is not None:
        # the toy offers no signals of its own; those rules run at the trunk seam below
        assert "requires signal:" in reason or "decides for tokens" in reason
        return
    assert runs(world, rule) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_every_choice_of_what_stands_in_and_of_the_correction_runs_on_the_toy(rule):
    world = on_the_toy((Role.WHAT, Role.CORRECTION))
    assert unserved(world, rule) is not None or runs(world, rule) > 40


@pytest.mark.parametrize(
    ("solver", "seam"),
    [
        (FlowEuler(), Seam.LATENT),
        (FlowEuler(), Seam.TRUNK),
        (FlowAdamsBashforth2(), Seam.LATENT),
        (DDIM(), Seam.LATENT),
    ],
    ids=["euler", "euler-trunk", "ab2", "ddim"],
)
def test_refused_combinations_are_refused_for_that_reason(solver, seam):
    composer = on_the_toy().composer
    conflicts = composer.conflicts(solver.capabilities, driver="the toy", seam=seam)
    for culprits, reason in conflicts.items():
        with pytest.raises(ErtaError) as raised:
            served(composer, culprits, solver.capabilities, seam)
        assert str(raised.value) == reason
    refused = [
        one
        for one in composer.combinations(solver.capabilities, driver="the toy", seam=seam)
        if not one.allowed
    ]
    assert refused
    for one in refused:
        held = frozenset(one.names.items())
        assert one.reason in {why for culprits, why in conflicts.items() if culprits <= held}
        with pytest.raises(ErtaError):
            served(composer, held, solver.capabilities, seam)


def served(composer, chosen, capabilities, seam):
    ordered = sorted(chosen, key=lambda one: PLACES.index(one[0]))
    policies = [composer.groups[role][name] for role, name in ordered]
    Engine(policies).check(capabilities, "the toy", seam)


def names_of(conflicts):
    return {frozenset(name for _, name in culprits) for culprits in conflicts}


def test_what_conflicts_follows_from_what_is_declared():
    composer = on_the_toy().composer
    samples = {"easycache", "every_branch_agrees"}
    euler = names_of(composer.conflicts(FlowEuler().capabilities))
    assert {frozenset({rule, "timestep_adjuster"}) for rule in samples} <= euler
    assert not {frozenset({name}) for name in ("forecaster", "average_velocity")} & euler
    higher = names_of(composer.conflicts(FlowAdamsBashforth2().capabilities))
    assert {frozenset({n}) for n in ("timestep_adjuster", "mean_velocity")} <= higher
    noise = names_of(composer.conflicts(DDIM().capabilities))
    assert frozenset({"average_velocity"}) in noise
    assert frozenset({"timestep_adjuster"}) not in noise
    trunk = names_of(composer.conflicts(FlowEuler().capabilities, seam=Seam.TRUNK))
    latent = ("average_velocity", "edge_velocity", "every_branch_agrees")
    assert {frozenset({name}) for name in latent} <= trunk
    everything = on_the_toy((Role.WHAT,)).composer
    found = names_of(everything.conflicts(FlowEuler().capabilities, seam=Seam.TRUNK))
    assert frozenset({"forecaster what=x0"}) in found


def test_a_conflict_is_as_small_as_it_can_be():
    for conflicts in (
        on_the_toy().composer.conflicts(solver.capabilities)
        for solver in (FlowEuler(), FlowAdamsBashforth2(), DDIM())
    ):
        keys = list(conflicts)
        assert not any(a < b for a in keys for b in keys)


# ----------------------------------------------------------------------------- roles
def test_roles_follow_from_hooks():
    assert find_role(EasyCache) is Role.WHEN
    assert find_role(Forecaster) is find_role(AverageVelocity) is Role.WHAT
    assert find_role(MeanVelocity) is Role.WHAT
    assert find_role(ErrorLinearizer) is Role.CORRECTION
    assert find_role(TimestepAdjuster) is Role.TIME
    assert find_role(WarmUp) is Role.LIMIT
    assert find_role(ResidualProfiler) is Role.OBSERVER
    assert find_role(ERTACache) is Role.RECIPE
    assert find_role(At) is Role.INSIDE
    assert find_role(CLASSES["noise_scale"]) is Role.GUIDED


def test_every_registered_policy_has_a_role_and_none_is_lost():
    world = on_the_toy()
    placed = {name for group in world.composer.groups.values() for name in group}
    for name, cls in CLASSES.items():
        role = find_role(cls)
        assert role is not None, name
        assert (name in placed) == (role in PLACES and name not in world.absent), name


def test_a_policy_that_nobody_registered_is_combined_as_well():
    class Odd(Policy):
        """Reuses odd steps."""

        traits = Traits(static=True)

        @hookimpl
        def decide(self, step):
            return Reuse("odd") if step.index % 2 else None

    groups = {Role.WHEN: {"odd": Odd()}, Role.WHAT: {"line": Forecaster()}}
    made = Composer(groups).combinations(frozenset())
    assert [str(one) for one in made] == ["odd", "odd + line"]
    assert all(one.allowed for one in made)


def test_other_choices_of_a_setting_are_found_by_its_type():
    labels = [label for label, _ in list_variants(Forecaster)]
    assert labels == [
        "over=index",
        "what=residual",
        "what=x0",
        "what=reused",
        "basis=taylor",
        "basis=hermite",
        "basis=adams",
    ]


def test_the_overview_counts_what_the_combinations_say():
    world = on_the_toy()
    found = Overview(world.composer, world.absent)
    assert {driver.name for driver in found.drivers} == {
        "flow_euler",
        "flow_ab2",
        "ddim",
        "trunk seam",
    }
    for driver in found.drivers:
        made = found.composer.combinations(driver.capabilities, seam=driver.seam)
        assert found.counts(driver) == (sum(one.allowed for one in made), len(made))
    rows = {name: cells for _, name, cells in found.rows()}
    assert rows["timestep_adjuster"] == [True, False, True, True]
    assert rows["average_velocity"] == [True, False, False, False]
    pairs = {frozenset(names): where for names, where, _ in found.refused()}
    assert pairs[frozenset({"easycache", "timestep_adjuster"})] == [
        "flow_euler",
        "ddim",
        "trunk seam",
    ]


def test_the_command_prints_the_overview(monkeypatch, capsys):
    world = on_the_toy()
    found = Overview(world.composer, {"nobody": "needs a friend"})
    monkeypatch.setattr(composition, "make_overview", lambda calibrate: found)
    with pytest.raises(SystemExit) as ended:
        main(["policies", "--combine"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not easycache + timestep_adjuster (flow_euler; ddim; trunk seam): easycache" in said
    assert "not combined, nobody: needs a friend" in said
    for _, name, _ in found.rows():
        assert name in said


def test_an_installed_policy_without_settings_is_left_out_by_name():
    found = make_overview(uncalibrated).absent
    assert found["magcache"] == "MagCacheProfiler() is not asked here"
    assert "edge_velocity" in found
    assert "skip_policy" not in found


# --------------------------------------------------------------------------- pipeline
def uncalibrated(profiler):
    raise PolicyError(f"{profiler!r} is not asked here")


@cache
def on_a_pipeline(calibrated, seam="latent"):
    pytest.importorskip("diffusers")
    import erta_framework as erta
    from erta_integrations.diffusers.network import find_trial_capabilities
    from erta_integrations.diffusers.pipeline import capabilities
    from erta_integrations.diffusers.trunk import discover, find_text_signals, find_trunk_signals
    from tiny_pipelines import FAMILIES

    family = FAMILIES["wan-euler"]
    pipe = family.build()
    offered = capabilities(pipe.scheduler)
    offered |= find_text_signals([pipe.transformer])
    if seam == "trunk":
        offered |= find_trunk_signals(pipe.transformer, discover(pipe.transformer))
    else:
        offered |= find_trial_capabilities({"transformer": pipe.transformer})

    def calibrate(profiler):
        copies = profiler.calibration_copies
        same = {
            "generator": [torch.Generator().manual_seed(0) for _ in range(copies)],
            **{name: torch.cat([value] * copies) for name, value in family.inputs(1).items()},
        }
        with erta.attach(pipe, [profiler], seam=seam) as run:
            family.run(pipe, steps=8, batch=copies, **same)
        return run.profile()

    given = settings(pipe.transformer.config.text_dim)
    found = collect_specimens(
        calibrate if calibrated else uncalibrated,
        settings=given if calibrated else {**given, "skip_policy": {"evenly": 5}},
        vary=(),
        catalogue=CATALOGUE,
    )
    return SimpleNamespace(
        absent=found.absent,
        composer=Composer(found.groups),
        capabilities=offered,
        seam=Seam(seam),
        run=lambda: family.run(pipe, steps=8),
        attach=partial(erta.attach, pipe, seam=seam),
        calls=family.calls,
    )


def runs_on_a_pipeline(world, rule):
    ran = 0
    for one in world.composer.combinations(world.capabilities, seam=world.seam):
        if one.names[Role.WHEN] != rule:
            continue
        if not one.allowed:
            with pytest.raises(ErtaError):
                world.attach([world.composer.groups[r][n] for r, n in one.names.items()])
            continue
        with world.attach(one.engine) as run:
            sample = world.run()
        (trace,) = run.traces
        assert sample.isfinite().all(), str(one)
        assert trace.network_calls == sum(call.computed for call in trace.calls()), str(one)
        if one.engine.traits.static and rule != "magcache":  # which decides for each branch
            assert trace.network_calls == world.calls * len(trace.computed_steps), str(one)
        ran += 1
    return ran


def test_whatever_stands_in_runs_on_a_pipeline():
    world = on_a_pipeline(calibrated=False)
    assert runs_on_a_pipeline(world, "skip_policy") >= 6


@pytest.mark.slow
@pytest.mark.parametrize("seam", ["latent", "trunk"])
@pytest.mark.parametrize("rule", RULES)
def test_every_allowed_combination_runs_on_a_pipeline(rule, seam):
    world = on_a_pipeline(calibrated=True, seam=seam)
    reason = world.absent.get(rule) or world.composer.conflicts(
        world.capabilities, seam=world.seam
    ).get(frozenset({(Role.WHEN, rule)}))
    if reason is not None:
        if "decides for tokens" in reason:
            return
        # signals are those of the block stack, and branches share their input outside of it
        assert "requires signal:" in reason if seam == "latent" else "latent seam" in reason
        return
    assert runs_on_a_pipeline(world, rule) >= 4
