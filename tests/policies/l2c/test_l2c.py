"""L2C without training: the losses of the profile, the greedy choice, and the work that is left."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random

import pytest
import torch

from erta_framework import Engine, NoGuidance, Policy, Profile, hookimpl
from erta_framework.config import build_policies, options_of
from erta_framework.errors import BudgetError, PolicyError, ProfileMismatchError
from erta_framework.modules import KEEP, ReuseKept
from erta_framework.testing import AlternateSteps, BlockFlow
from erta_policies.l2c import L2C, L2CProfiler, choose_resting
from module_plans import plan, request, sample, visits

STEPS = 10
PATHS = [f"blocks.{k}.{part}" for k in range(3) for part in ("attn", "mlp")]
INNER = [path + (".qkv" if path.endswith("attn") else ".up") for path in PATHS]


def run(*policies, network=None, steps=STEPS, guidance=None):
    given = request(steps=steps)
    return sample(*policies, network=network, given=given, guidance=guidance or NoGuidance())


@pytest.fixture(scope="module")
def profile():
    return run(L2CProfiler()).emitted[0]


def make(profile, work, **options):
    return L2C(profile=profile, budget={"work": work}, **options)


# ---------------------------------------------------------------------------- the profile
class Watch(Policy):
    """Remembers what was predicted at each step."""

    seen: list

    @hookimpl(wrapper=True)
    def forward(self, step, call):
        output = yield
        self.seen.append(output.clone())
        return output


@pytest.mark.parametrize("index", [1, 5, 9])
def test_the_loss_is_that_of_one_module_at_rest(profile, index):
    found = profile.statistics["error"] / profile.statistics["rows"]
    assert found[::2].abs().max() == 0
    for place, path in enumerate(PATHS):

        def rest(step, call, path=path):
            now = step.index == index
            return {p: ReuseKept() if now and p.path == path else KEEP for p in call.sites}

        cached, plain = Watch(seen=[]), Watch(seen=[])
        run(cached, plan(rest, "attention", "mlp"))
        run(plain)
        reused, full = (one.seen[index].flatten(1) for one in (cached, plain))
        loss = ((reused - full).square().sum(1) / full.square().sum(1)).mean()
        assert found[index, place].item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-9)


def test_the_calibrated_run_is_the_uncached_one():
    found = run(L2CProfiler())
    assert torch.equal(found.sample, run().sample)
    assert found.trace.trial_calls == STEPS // 2 * 6
    assert found.trace.network_calls == STEPS


def test_profiles_of_batches_and_branches_add_up(profile):
    merged = Profile.merge([profile, profile])
    assert torch.equal(merged.statistics["error"], 2 * profile.statistics["error"])
    a, b = make(profile, 8.0), make(merged, 8.0)
    assert a.find_resting() == b.find_resting()


def test_shares_are_those_of_the_network(profile):
    shares = profile.statistics["shares"]
    assert profile.fingerprint["places"].split(",") == PATHS
    found = run(plan(lambda step, call: {}, "attention", "mlp")).trace
    assert found.work == 2 * STEPS
    for place, path in enumerate(PATHS):

        def rest(step, call, path=path):
            if step.index == 0:
                return dict.fromkeys(call.sites, KEEP)
            return {p: ReuseKept() for p in call.sites if p.path == path}

        less = run(plan(rest, "attention", "mlp")).trace.work
        assert shares[place].item() == pytest.approx((2 * STEPS - less) / 2 / (STEPS - 1))


# ----------------------------------------------------------------------------- the choice
@pytest.mark.parametrize("seed", range(6))
def test_with_equal_shares_the_greedy_choice_is_the_best(seed):
    draw = random.Random(seed)
    errors = [[draw.random() for _ in range(3)] for _ in range(6)]
    shares = [0.25] * 3
    for count in range(10):
        chosen = choose_resting(errors, shares, 6 - 0.25 * count)
        pairs = [(k, place) for k in (1, 3, 5) for place in range(3)]
        best = min(
            sum(errors[k][place] for k, place in subset)
            for subset in itertools.combinations(pairs, count)
        )
        found = sum(errors[k][place] for k, own in enumerate(chosen) for place in own)
        assert found == pytest.approx(best)
        assert not any(chosen[::2])


@pytest.mark.parametrize("seed", range(10))
def test_the_work_is_kept_and_nothing_rests_without_need(seed):
    draw = random.Random(seed)
    errors = [[draw.random() for _ in range(5)] for _ in range(9)]
    shares = [draw.uniform(0.02, 0.2) for _ in range(5)]
    least = 9 - 4 * sum(shares)
    for work in (least, 0.5 * (least + 9), 8.9, 9.0):
        chosen = choose_resting(errors, shares, work)
        saved = [shares[place] for own in chosen for place in own]
        assert 9 - sum(saved) <= work + 1e-6
        assert all(9 - sum(saved) + one > work - 1e-6 for one in saved)
    with pytest.raises(BudgetError, match="ask for more") as caught:
        choose_resting(errors, shares, least - 0.01)
    assert caught.value.least == pytest.approx(least)
    assert choose_resting(errors, shares, caught.value.least)
    sent = copy.copy(caught.value)  # as process pools hand errors on
    assert (str(sent), sent.least) == (str(caught.value), caught.value.least)


def test_a_dear_module_goes_before_a_cheap_one_of_equal_error():
    errors = [[0.0, 0.0], [0.5, 0.5]]
    assert choose_resting(errors, [0.1, 0.4], 1.7) == [set(), {1}]
    # and one alone is not kept beside it where it is not needed
    assert choose_resting([[0.0, 0.0], [0.1, 0.5]], [0.1, 0.4], 1.6) == [set(), {1}]


# ------------------------------------------------------------------------------ the policy
@pytest.mark.parametrize("work", [10.0, 9.0, 8.0, 7.0])
def test_the_work_of_a_run_is_the_one_that_was_chosen(profile, work):
    policy, network = make(profile, work), BlockFlow()
    counts = visits(network, *INNER)
    found = run(policy, network=network)
    assert work - 0.2 < found.trace.work / 2 <= work + 1e-6
    resting = policy.find_resting()
    expected = [STEPS - sum(path in own for own in resting) for path in PATHS]
    assert [*counts.values()] == expected
    if work == STEPS:
        assert torch.equal(found.sample, run().sample)
    else:
        assert found.trace.module_bytes > 0


def test_the_choice_is_better_than_its_opposite(profile):
    full, work = run().sample, 8.0
    errors = profile.statistics["error"]
    worst = 1.0 / errors.clamp_min(1e-12)
    opposite = dataclasses.replace(
        profile, statistics={**profile.statistics, "error": worst * (errors > 0)}
    )
    good, bad = (run(make(one, work)) for one in (profile, opposite))
    assert bad.trace.work == pytest.approx(good.trace.work, rel=0.03)
    assert (good.sample - full).norm() < 0.5 * (bad.sample - full).norm()


def test_an_older_output_than_that_of_the_pair_is_not_reused(profile):
    # steps 1, 3, 5, 7 are left out, so that only step 9 could reuse, and 8 has run
    found = run(AlternateSteps(), make(profile, 6.5))
    ran = {c.index: sum(k[0] for k in c.sites.values()) for c in found.trace.calls() if c.sites}
    assert {index for index, count in ran.items() if count < 6} <= {9}


def test_a_network_without_these_modules_is_refused(profile):
    policy = make(profile, 7.0)
    with pytest.raises(ProfileMismatchError, match=r"has blocks\.2\.(attn|mlp), which this"):
        run(policy, network=BlockFlow(depth=2))


@pytest.mark.parametrize(
    ("budget", "message"),
    [(None, "no budget"), ({"calls": 5}, "give one in work"), ({"work": 0.5}, "at least 1")],
)
def test_a_budget_is_in_work(budget, message):
    with pytest.raises(PolicyError, match=message):
        L2C(profile="somewhere", budget=budget)


def test_what_is_missing_is_said_when_the_engine_is_built(profile):
    with pytest.raises(PolicyError, match=r"needs profile="):
        Engine([L2C(budget={"work": 5})])
    with pytest.raises(BudgetError, match="ask for more"):
        Engine([make(profile, 2.0)])
    with pytest.raises(ProfileMismatchError, match="num_steps"):
        run(make(profile, 7.0), steps=8)


def test_a_configuration_says_the_same(profile, tmp_path):
    file = tmp_path / "l2c.safetensors"
    profile.save(file)
    (policy,) = build_policies([{"l2c": {"profile": str(file), "budget": {"work": 8}}}])
    (again,) = build_policies([{"l2c": options_of(policy)}])
    assert policy.find_resting() == again.find_resting() == make(profile, 8.0).find_resting()
    assert isinstance(policy.calibrator(), L2CProfiler)
