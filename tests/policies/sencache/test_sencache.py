"""SenCache, arXiv 2602.24208: the rule."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework import (
    CFG,
    Engine,
    FlowEuler,
    Interval,
    NoGuidance,
    Profile,
    Request,
    SamplingLoop,
    SessionInfo,
)
from erta_framework.errors import PolicyError, ProfileError, ProfileMismatchError
from erta_framework.testing import GaussianMixtureFlow, toy_profile
from erta_policies.adapters import WarmUp
from erta_policies.constants import models, read_published
from erta_policies.easycache import EasyCache
from erta_policies.sencache import SenCache, Sensitivities, SensitivityProfiler, scale_tolerance
from erta_policies.sencache._sensitivity import score_change

STEPS = 30
SHAPE = (3, 2, 4, 4)
ROOT = math.sqrt(math.prod(SHAPE))


def toy() -> GaussianMixtureFlow:
    return GaussianMixtureFlow(SHAPE)


def request(batch: int = 4, steps: int = STEPS, seed: int = 5) -> Request:
    generator = torch.Generator().manual_seed(seed)
    # samples of different difficulty: some start far from both components
    scale = torch.linspace(0.3, 3.0, batch).reshape(-1, 1, 1, 1, 1)
    return Request(
        latents=scale * torch.randn(batch, *SHAPE, generator=generator),
        cond=toy().encode([f"prompt {k}" for k in range(batch)]),
        uncond=toy().encode([""] * batch),
        schedule=FlowEuler().schedule(steps),
        model=toy().fingerprint(),
    )


def only(whole: Request, k: int) -> Request:
    part = slice(k, k + 1)
    assert whole.uncond is not None
    return replace(
        whole, latents=whole.latents[part], cond=whole.cond[part], uncond=whole.uncond[part]
    )


def sample(policies: list[Any], given: Request, guidance: Any = None, network: Any = None):
    loop = SamplingLoop(Engine(policies), FlowEuler(), guidance or NoGuidance())
    return loop.run(network or toy(), given)


def calibrated(seed: int = 1, steps: int = STEPS) -> Profile:
    (profile,) = sample([SensitivityProfiler()], request(6, steps, seed=seed)).emitted
    return profile


PROFILE = calibrated()


def tight(**settings: Any) -> SenCache:
    chosen = {"eps_start": 0.05, "eps_main": 0.3, "max_skips": 4, **settings}
    return SenCache(**{"profile": PROFILE, **chosen})


def literal(given: Request, policy: SenCache) -> tuple[list[int], Tensor]:
    """The published rule for one sample and one branch, written down plainly.

    Source: arXiv 2602.24208 and the scripts of vita-epfl/SenCache, as a list of steps: a score from
    the last computed step, two tolerances, a bounded run, sensitivities of the nearest tabulated
    timestep at the reference.
    """
    table = Sensitivities.of(PROFILE)
    network, x, schedule = toy(), given.latents, given.schedule
    x_c = residual = jx = jt = t_c = None
    skipped, computed, root = 0, [], math.sqrt(x[0].numel())
    for i in range(schedule.num_steps):
        t = schedule.times[i]
        skip = False
        if x_c is not None:
            s = jx * float((x - x_c).norm()) + jt * root * abs(t - t_c)
            eps = policy.eps_start if i < round(0.2 * schedule.num_steps) else policy.eps_main
            skip = s < eps * root and skipped < policy.max_skips
        if skip:
            skipped += 1
            v = x + residual
        else:
            skipped = 0
            v = network(x, torch.full((1,), t), given.cond)
            residual, x_c, t_c = v - x, x, t
            nearest = min(range(len(table.times)), key=lambda k: abs(table.times[k] - t))
            jx, jt = table.jx[nearest], table.jt[nearest]
            computed.append(i)
        x = x + (schedule.sigmas[i + 1] - schedule.sigmas[i]) * v
    return computed, x


# -------------------------------------------------------------------------------- the score
@pytest.mark.parametrize(
    ("shape", "published_factor"),
    [
        ((16, 21, 60, 104), 1447.978),
        ((14, 16, 60, 90), 1099.818),
        ((21, 16, 24, 128), 1015.969),
    ],
)
def test_the_published_factors_are_square_roots(shape, published_factor):
    """The scripts multiply eps by a number that is the root of a latent's number of elements.

    Source: the constants of Wan2.1 480p with 81 frames, CogVideoX1.5 with 49 frames and LTX-Video
    with 161 frames in vita-epfl/SenCache @4bf419b.
    """
    assert scale_tolerance(1.0, shape) == pytest.approx(published_factor, abs=5e-4)
    assert scale_tolerance(0.07, shape) == pytest.approx(0.07 * published_factor, rel=1e-6)


def test_the_score_against_its_tolerance_does_not_depend_on_the_resolution():
    """For white noise of one strength as the movement, S / tolerance is the same at any size."""
    generator = torch.Generator().manual_seed(0)
    ratios = []
    for side in (16, 32, 64, 128):
        shape = (4, side, side)
        moved = float((0.1 * torch.randn(shape, generator=generator)).norm())
        ratios.append(score_change(0.7, 0.002, moved, -25.0, shape) / scale_tolerance(0.3, shape))
    assert ratios == pytest.approx([(0.7 * 0.1 + 0.002 * 25.0) / 0.3] * 4, rel=0.03)


def test_the_nearest_tabulated_time_counts():
    table = Sensitivities((1000.0, 600.0, 100.0), (1.0, 2.0, 3.0), (0.1, 0.2, 0.3))
    told = (1200.0, 801.0, 799.0, 351.0, 350.0, 0.0)
    assert [table.near(t)[0] for t in told] == [1.0, 1.0, 2.0, 2.0, 2.0, 3.0]


# --------------------------------------------------------------------------------- the rule
@pytest.mark.parametrize("eps", [(0.0, 0.0), (0.02, 0.1), (0.05, 0.3), (0.5, 2.0)])
def test_it_is_the_published_rule_for_every_sample(eps):
    policy = tight(eps_start=eps[0], eps_main=eps[1])
    whole = request()
    together = sample([policy], whole)
    plans = []
    for k in range(4):
        computed, x = literal(only(whole, k), policy)
        alone = sample([policy], only(whole, k))
        assert list(alone.trace.computed_steps) == computed
        assert torch.allclose(alone.sample, x, atol=1e-6)
        steps = [call.index for call in together.trace.calls() if call.computed_for(k)]
        assert steps == computed
        assert torch.allclose(together.sample[k : k + 1], x, atol=1e-5)
        plans.append(tuple(computed))
    if eps == (0.05, 0.3):
        assert len(set(plans)) > 1, "the samples should differ"


def test_without_masks_the_first_sample_decides_for_all():
    policy, whole = tight(per_sample=False), request()
    first, _ = literal(only(whole, 0), policy)
    assert list(sample([policy], whole).trace.computed_steps) == first


@pytest.mark.parametrize("guidance", [NoGuidance(), CFG(scale=2.0), CFG(scale=2.0, batched=True)])
def test_no_tolerance_is_the_plain_loop(guidance):
    given = request()
    plain = sample([], given, guidance)
    ours = sample([tight(eps_start=0.0, eps_main=0.0)], given, guidance)
    assert torch.equal(plain.sample, ours.sample)
    assert ours.trace.network_calls == plain.trace.network_calls
    none_allowed = sample([tight(eps_start=9e9, eps_main=9e9, max_skips=0)], given, guidance)
    assert torch.equal(plain.sample, none_allowed.sample)


@pytest.mark.parametrize(
    ("settings", "computed"),
    [
        ({"max_skips": 10**6}, (0,)),
        ({"max_skips": 10**6, "first": 2, "last": 3}, (0, 1, 27, 28, 29)),
        ({"max_skips": 10**6, "first": 0.1, "last": 0.05}, (0, 1, 2, 28, 29)),
        ({"max_skips": 4}, (0, 5, 10, 15, 20, 25)),
    ],
)
def test_without_a_limit_only_forced_steps_are_computed(settings, computed):
    policy = tight(eps_start=math.inf, eps_main=math.inf, **settings)
    assert sample([policy], request()).trace.computed_steps == computed


def test_the_first_part_has_its_own_tolerance():
    strict = sample([tight(eps_start=0.0, eps_main=9e9, max_skips=10**6)], request())
    assert strict.trace.computed_steps == tuple(range(6))
    half = sample([tight(eps_start=0.0, eps_main=9e9, max_skips=10**6, start=0.5)], request())
    assert half.trace.computed_steps == tuple(range(15))


def test_the_reference_is_where_the_network_ran_whoever_decided():
    """Steps that an adapter forced count as references: the movement is measured from the last."""
    policy = tight(eps_start=9e9, eps_main=9e9, max_skips=2)
    run = sample([WarmUp(steps=4), policy], request())
    assert run.trace.computed_steps == (0, 1, 2, 3, *range(6, STEPS, 3))


def test_the_bound_holds_where_the_network_is_linear():
    """On v = a x + b t the score of every reused step is the true change or more."""
    a, b = -0.8, 0.004

    def linear(x: Tensor, time: Tensor, _: Tensor) -> Tensor:
        return a * x + b * time.reshape(-1, 1, 1, 1, 1)

    (profile,) = sample([SensitivityProfiler()], request(), network=linear).emitted
    table = Sensitivities.of(profile)
    assert table.jx == pytest.approx([abs(a)] * (STEPS - 1), rel=1e-3)
    assert table.jt == pytest.approx([abs(b)] * (STEPS - 1), rel=1e-3)
    seen: list[tuple[float, float]] = []

    class Watches(SenCache):
        def _scores(self, step, x, reference):
            scores = super()._scores(step, x, reference)
            then = torch.tensor(reference.times)
            now = torch.full_like(then, step.interval.time)
            change = linear(x, now, x) - linear(reference.latents, then, x)
            seen.extend(zip(change.flatten(1).norm(dim=1).tolist(), scores, strict=True))
            return scores

    policy = Watches(profile=profile, eps_start=0.2, eps_main=0.5, max_skips=8)
    run = sample([policy], request(), network=linear)
    assert len(run.trace.computed_steps) < STEPS
    assert len(seen) > 20
    assert all(change <= bound * 1.001 for change, bound in seen)


def test_cond_decides_for_the_step_and_each_branch_may():
    given = request(1)
    shared = sample([tight()], given, CFG(scale=2.0))
    by_branch = {
        name: [c.index for c in shared.trace.calls() if c.computed and c.branch == name]
        for name in ("cond", "uncond")
    }
    assert by_branch["cond"] == by_branch["uncond"] == list(shared.trace.computed_steps)
    assert shared.trace.network_calls == 2 * len(shared.trace.computed_steps) < 2 * STEPS
    apart = sample([tight(each_branch=True)], given, CFG(scale=2.0))
    # both look at the same latents, so that they agree as long as both began together
    assert apart.trace.computed_steps == shared.trace.computed_steps
    half = CFG(scale=2.0, start=0.3, stop=1.0)
    late = sample([tight(each_branch=True)], given, half)
    first_uncond = next(c for c in late.trace.calls() if c.branch == "uncond")
    assert (first_uncond.index, first_uncond.reason) == (9, "cold")


def session(policy: SenCache, steps: int = 6):
    info = SessionInfo(
        sigmas=tuple(1 - i / steps for i in range(steps + 1)),
        times=tuple(1000 * (1 - i / steps) for i in range(steps)),
        shape=(1, *SHAPE),
        dtype=torch.float32,
        device=torch.device("cpu"),
        branches=("cond", "uncond"),
        model=toy().fingerprint(),
    )
    return Engine([policy]).session(info)


def test_a_switch_of_networks_drops_the_reference():
    policy = tight(eps_start=9e9, eps_main=9e9, max_skips=10**6)
    x, ran = torch.ones(1, *SHAPE), []
    with session(policy) as running:
        for index in range(6):
            name = "high" if index < 3 else "low"
            start, end = 1 - index / 6, 1 - (index + 1) / 6
            running.begin(Interval(index, start, end, 1000 * start, 1000 * end))
            for branch in ("cond", "uncond"):
                running.forward(
                    x,
                    lambda: ran.append(index) or 2 * x,  # noqa: B023
                    branch=branch,
                    model=name,
                )
            running.settle()
            running.end(x)
    assert ran == [0, 0, 3, 3]
    assert {c.reason for c in running.trace.calls() if c.index == 3} == {"cold"}


def test_branches_that_change_places_are_told_apart_by_name():
    """Whoever is asked first decides; its reference must be that of its own evaluation."""
    policy = tight(eps_start=9e9, eps_main=9e9, max_skips=10**6)
    x = torch.ones(1, *SHAPE)
    with session(policy) as running:
        for index in range(6):
            start, end = 1 - index / 6, 1 - (index + 1) / 6
            running.begin(Interval(index, start, end, 1000 * start, 1000 * end))
            order = ("cond", "uncond") if index < 3 else ("uncond", "cond")
            for branch in order:
                running.forward(x, lambda: 2 * x, branch=branch)
            running.settle()
            running.end(x)
    reasons = [(c.index, c.branch, c.reason) for c in running.trace.calls() if c.computed]
    assert reasons == [
        (0, "cond", "cold"),
        (0, "uncond", "cold"),
        (3, "uncond", "no reference"),
        (3, "cond", "no reference"),
    ]


# ---------------------------------------------------------------------- profiles and settings
@pytest.mark.parametrize("steps", [17, 60])
def test_the_profile_serves_other_numbers_of_steps_and_sizes(steps):
    given = request(2, steps)
    larger = torch.randn(2, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    for one in (given, replace(given, latents=larger)):
        run = sample([tight()], one, CFG(scale=3.0))
        assert 1 < len(run.trace.computed_steps) < steps


def test_another_unit_of_time_or_another_network_is_refused():
    solver = FlowEuler(time_scale=1.0)
    loop = SamplingLoop(Engine([tight()]), solver, NoGuidance())
    with pytest.raises(ProfileMismatchError, match=r"are 1000 at sigma 1, .* gets 1 there"):
        loop.run(toy(), replace(request(), schedule=solver.schedule(STEPS)))
    other = {**toy().fingerprint(), "config": "another"}
    with pytest.raises(ProfileMismatchError, match=r"model\.config"):
        sample([tight()], replace(request(), model=other))
    sample([tight(allow=("model.config",))], replace(request(), model=other))


def test_published_tolerances_are_those_of_the_scripts():
    """Source: argument defaults and README commands of vita-epfl/SenCache @4bf419b."""
    assert set(models("sencache")) == {
        "wan2.1",
        "wan2.1-t2v-1.3b",
        "cogvideox1.5",
        "ltx-video-0.9.1",
    }
    policy = SenCache(profile=PROFILE, model="ltx-video-0.9.1")
    assert [policy.tolerance(i, 50) for i in (0, 9, 10, 49)] == [0.01, 0.01, 0.7, 0.7]
    assert [policy.explain_forced(i, 50) for i in (0, 1, 48, 49)] == [
        "first steps",
        None,
        None,
        "last steps",
    ]
    assert policy.setting("max_skips") == 4
    assert "no licence file" in read_published("sencache", "wan2.1")["license"]
    assert SenCache(profile=PROFILE, model="wan2.1", eps_main=0.2).tolerance(40, 50) == 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs the sensitivities.*`erta calibrate --policy sencache`"),
        ({"model": "wan2.1"}, "those of 'wan2.1' do not ship; measure them"),
        ({"profile": PROFILE, "model": "sora"}, "no constants of sencache .*`erta calibrate"),
        ({"profile": PROFILE, "eps_main": -1.0}, "eps_main=-1"),
        ({"profile": PROFILE, "eps_start": math.nan}, "eps_start=nan"),
        ({"profile": PROFILE, "max_skips": -1}, "max_skips=-1"),
        ({"profile": PROFILE, "start": 1.5}, "start=1.5"),
    ],
)
def test_wrong_settings_are_refused_when_it_is_made(settings, message):
    with pytest.raises(PolicyError, match=message):
        SenCache(**settings)


def test_a_profile_of_another_kind_or_of_nothing_is_refused(tmp_path):
    empty = replace(
        PROFILE, statistics={name: 0 * value for name, value in PROFILE.statistics.items()}
    )
    with pytest.raises(ProfileError, match="holds no sensitivities"):
        Engine([SenCache(profile=empty)])
    with pytest.raises(ProfileError, match="needs a profile of kind 'sensitivity_profiler'"):
        Engine([SenCache(profile=replace(PROFILE, kind="mag_cache_profiler"))])
    saved = PROFILE.save(tmp_path / "p.safetensors")
    assert sample([tight(profile=str(saved))], request()).trace.computed_steps == (
        sample([tight()], request()).trace.computed_steps
    )


def test_it_stands_beside_another_rule_and_reads_the_reference_of_both():
    policies = [EasyCache(threshold=0.0, warmup=1), tight()]
    run = sample(policies, request())
    assert run.trace.reused_calls == 0, "the first rule answers every step"


def test_a_toy_profile_is_enough_for_an_engine():
    assert "decide" in Engine([SenCache(profile=toy_profile(SensitivityProfiler()))]).active
