"""The published schedules, step by step, and our general one."""

from __future__ import annotations

import pytest

from erta_framework.errors import PolicyError
from erta_policies.fastercache import PRESETS, AttentionExtrapolation, CfgCache, FasterCache

# by the counter of the released scripts: attention is reused, its weight; the branch is left out,
# growth of low and high frequencies
SCRIPTS = {
    "open-sora-1.2": (
        lambda c: c > 7 and c % 2 == 0,
        lambda c: 0.9 * (c - 7) / 20,
        lambda c: c > 11 and c % 5 != 0,
        lambda c: (1.15 if c <= 25 else 1.0, 1.15 if c >= 20 else 1.0),
        (5, 10),
    ),
    "open-sora-plan-1.1": (
        lambda c: c >= 45 and c % 3 != 0,
        lambda c: 0.3,
        lambda c: c >= 40 and c % 6 != 0,
        lambda c: (1.1 if c <= 130 else 1.0, 1.2 if c > 130 else 1.0),
        (40, 39),
    ),
    "latte": (
        lambda c: c >= 16 and c % 2 == 0,
        lambda c: 0.5,
        lambda c: c >= 18 and c % 5 != 0,
        lambda c: (1.1 if c < 45 else 1.0, 1.1 if c >= 45 else 1.0),
        (13, 16),
    ),
    "cogvideox": (
        lambda c: c >= 18 and c % 3 != 0,
        lambda c: 0.3,
        lambda c: c >= 18 and c % 5 != 0,
        lambda c: (1.1 if c <= 40 else 1.0, 1.1 if c >= 30 else 1.0),
        (15, 16),
    ),
    "mochi": (
        lambda c: c >= 20 and c % 2 == 0,
        lambda c: max(0.5, c / 63),
        lambda c: c >= 22 and c % 5 != 0 and c != 63,
        lambda c: (1.15 if c <= 50 else 1.0, 1.25 if c >= 30 else 1.0),
        (5, 20),
    ),
    "vchitect-2.0": (
        lambda c: c > 30 and c % 2 == 0,
        lambda c: 0.0,
        lambda c: c > 30 and c % 5 != 0,
        lambda c: (1.05 if c < 80 else 1.0, 1.1 if c > 60 else 1.0),
        (0, 0),
    ),
}
STEPS = {
    "open-sora-1.2": 30,
    "open-sora-plan-1.1": 150,
    "latte": 50,
    "cogvideox": 50,
    "mochi": 64,
    "vchitect-2.0": 100,
}
# steps, from 0, at which both parts together run attention from the first reuse on, and at which
# both branches run from the first step without one
GOLDEN = {
    "open-sora-1.2": (
        [8, 10, 12, 14, 16, 18, 19, 20, 22, 24, 26, 28, 29],
        [14, 19, 24, 29],
    ),
    "open-sora-plan-1.1": (list(range(47, 150, 3)), [*range(41, 150, 6)]),
    "latte": (
        sorted({*range(16, 50, 2), 19, 29, 39, 49}),
        [*range(19, 50, 5)],
    ),
    "cogvideox": (
        sorted({*range(20, 50, 3), *range(19, 50, 5)}),
        [*range(19, 50, 5)],
    ),
    "mochi": (sorted({*range(21, 64, 2), 30, 40, 50, 60}), [25, 30, 35, 40, 45, 50, 55, 60, 63]),
    "vchitect-2.0": (
        sorted({*range(32, 100, 2), *range(39, 100, 10)}),
        [*range(34, 100, 5)],
    ),
}


def base(name):
    return 0 if name == "mochi" else 1


def test_every_preset_is_tested():
    assert set(SCRIPTS) == set(STEPS) == set(GOLDEN) == set(PRESETS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_branch_is_left_out_where_the_script_does(name):
    _, _, skips, weights, (_, kept_from) = SCRIPTS[name]
    plan = CfgCache(preset=name).plan_branches(STEPS[name])
    counters = range(base(name), base(name) + STEPS[name])
    assert list(plan.skips) == [skips(c) for c in counters]
    assert list(plan.weights) == [weights(c) for c in counters]
    assert plan.kept_from == kept_from - base(name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_attention_alone_is_reused_where_the_script_does(name):
    reuses, weight, _, _, (kept_from, _) = SCRIPTS[name]
    plan = AttentionExtrapolation(preset=name).plan_modules(STEPS[name])
    counters = range(base(name), base(name) + STEPS[name])
    assert plan.kept_from == kept_from - base(name)
    for counter, found in zip(counters, plan.weights, strict=True):
        assert found == (pytest.approx(weight(counter)) if reuses(counter) else None)


def simulate(name):
    """The scripts with their guard: a cache of one branch does not serve two."""
    reuses, weight, skips, _, _ = SCRIPTS[name]
    found, cached = [], 2
    for counter in range(base(name), base(name) + STEPS[name]):
        branches = 1 if skips(counter) else 2
        if reuses(counter) and cached >= branches:
            found.append(weight(counter))
        else:
            found.append(None)
            cached = branches
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_together_a_cache_of_one_branch_does_not_serve_two(name):
    _, attention = FasterCache(preset=name).parts()
    found = attention.plan_modules(STEPS[name]).weights
    expected = simulate(name)
    assert [w is None for w in found] == [w is None for w in expected]
    assert [w for w in found if w is not None] == pytest.approx(
        [w for w in expected if w is not None]
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_schedules_are_these(name):
    cfg, attention = FasterCache(preset=name).parts()
    weights = attention.plan_modules(STEPS[name]).weights
    skips = cfg.plan_branches(STEPS[name]).skips
    first = next(k for k, w in enumerate(weights) if w is not None)
    runs = [k for k, w in enumerate(weights) if w is None and k > first]
    full = [k for k, skipped in enumerate(skips) if not skipped and k > skips.index(True)]
    assert (runs, full) == GOLDEN[name]


@pytest.mark.parametrize("steps", [3, 10, 28, 50])
def test_the_general_rule_goes_by_parts_of_the_steps(steps):
    cfg, attention = FasterCache().parts()
    plan = cfg.plan_branches(steps)
    start = -(-steps // 3)
    assert not any(plan.skips[:start])
    assert not plan.skips[-1]
    assert all(plan.skips[k] == (k % 5 != 0) for k in range(start, steps - 1))
    for index, (low, high) in enumerate(plan.weights):
        assert low == (1.1 if 10 * index < 8 * steps else 1.0)
        assert high == (1.1 if 10 * index > 7 * steps else 1.0)
    weights = attention.plan_modules(steps).weights
    assert all(w is None for w in weights[:start])
    assert weights[-1] is None
    assert all(0.0 <= w <= 0.5 for w in weights if w is not None)


def test_the_newest_full_step_is_known_at_every_step():
    plan = CfgCache(period=3, start=0.0).plan_branches(8)
    assert plan.skips == (False, True, True, False, True, True, False, False)
    assert plan.newest == (0, 0, 0, 3, 3, 3, 6, 7)


def test_bands_are_apart_only_where_they_will_grow_apart():
    alike = CfgCache(period=3, start=0.0, low_until=1.0, high_from=0.0).plan_branches(12)
    assert not any(alike.splits)
    assert not any(CfgCache(period=3, start=0.0, bands=False).plan_branches(12).splits)
    early = CfgCache(period=3, start=0.0, low_until=0.5, high_from=1.0).plan_branches(12)
    # low ones grow at 1, 2, 4 and 5
    assert [k for k, split in enumerate(early.splits) if split] == [0, 1, 3, 4]


@pytest.mark.parametrize("policy", [CfgCache, AttentionExtrapolation, FasterCache])
def test_settings_that_do_not_fit_are_refused(policy):
    with pytest.raises(PolicyError, match=r"preset of .* is 'sora'; it is one of open-sora-1.2"):
        policy(preset="sora")
    with pytest.raises(PolicyError, match=r"got start=0.5 beside preset='latte'"):
        policy(preset="latte", start=0.5)
    with pytest.raises(PolicyError, match=r"start of .* is 2.0, it must be from 0 to 1"):
        policy(start=2.0)


def test_a_preset_is_for_its_number_of_steps():
    with pytest.raises(PolicyError, match="published for 50 steps, this run has 40; run 50 steps"):
        CfgCache(preset="latte").plan_branches(40)
    with pytest.raises(PolicyError, match="published for 50 steps, this run has 40"):
        AttentionExtrapolation(preset="latte").plan_modules(40)


def test_outputs_are_kept_as_far_back_as_they_are_used():
    kept = {name: AttentionExtrapolation(preset=name).keeps() for name in PRESETS}
    assert kept == dict.fromkeys(PRESETS, 2) | {"vchitect-2.0": 1}
    assert AttentionExtrapolation(most=0.0).keeps() == 1
