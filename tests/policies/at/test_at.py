"""`At`: schedules and forecasts on modules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erta_framework import NoGuidance, Policy, Reuse, Traits, hookimpl
from erta_framework.config import build_policies, options_of
from erta_framework.errors import ConfigError, PolicyError
from erta_framework.modules import KEEP, Cut, Keep, ReuseKept, Select
from erta_framework.testing import AlternateSteps, BlockFlow
from erta_policies.at import At
from erta_policies.at._policy import count_calls
from erta_policies.easycache import EasyCache
from erta_policies.ertacache import SkipPolicy
from erta_policies.forecast import Forecaster
from erta_policies.taylorseer import RefreshInterval
from module_plans import STEPS, every, plan, request, sample, visits

SITES = Select(kind=("attention", "mlp"))


def at(interval=2, first=1, **options):
    options.setdefault("sites", SITES)
    options.setdefault("when", RefreshInterval(interval=interval, first=first))
    return At(**options)


def kept_steps(*policies):
    """The steps at which the first attention really ran."""
    network, steps = BlockFlow(), []
    counts = visits(network, "blocks.0.attn.qkv")

    class Watch(Policy):
        @hookimpl
        def post_step(self, step):
            if counts["blocks.0.attn.qkv"]:
                steps.append(step.index)
            counts["blocks.0.attn.qkv"] = 0

    sample(Watch(), *policies, network=network, guidance=NoGuidance())
    return steps


@pytest.mark.parametrize("interval", [1, 2, 3, 4])
@pytest.mark.parametrize("counting", ["release", "diffusers", "fora"])
def test_modules_run_at_the_steps_of_the_schedule(interval, counting):
    when = RefreshInterval(interval=interval, first=2, counting=counting)
    assert kept_steps(at(when=when)) == sorted({0, *when.computed_steps(STEPS)})


def test_any_schedule_with_a_plan_serves():
    assert kept_steps(at(when=SkipPolicy(steps=(0, 2, 3, 5)))) == [0, 2, 3, 5]


def test_a_step_that_a_rule_leaves_out_is_made_up_for_at_the_next_one():
    # steps 1 and 3 are left out; the schedule wants 0, 3: the modules run at 0 and 4
    assert kept_steps(AlternateSteps(), at(interval=3)) == [0, 4]


def test_max_age_runs_what_the_schedule_would_not():
    assert kept_steps(at(interval=9)) == [0]
    assert kept_steps(at(interval=9, max_age=2)) == [0, 2, 4]
    assert kept_steps(AlternateSteps(), at(interval=9, max_age=3)) == [0, 4]


def test_it_is_the_reuse_of_its_steps():
    found = sample(at(interval=2))
    assert torch.equal(found.sample, sample(plan(every(2), "attention", "mlp")).sample)


@pytest.mark.parametrize("over", ["index", "sigma"])
@pytest.mark.parametrize(("basis", "order"), [("taylor", 1), ("newton", 2), ("hermite", 2)])
def test_a_forecast_continues_the_steps_at_which_outputs_were_kept(basis, order, over):
    what = Forecaster(basis=basis, order=order, over=over)
    when = RefreshInterval(interval=3, first=1)

    def make(step, call):
        weights = {}
        for place in call.sites:
            stamps = [level[0] for level in call.stamps(place)]
            if step.index in when.computed_steps(STEPS):
                weights[place] = KEEP
                continue
            nodes = [float(s[0] if over == "index" else s[1]) for s in stamps]
            ends = (step.index, step.index + 1)
            if over == "sigma":
                ends = (step.interval.start, step.interval.end)
            weights[place] = ReuseKept(what.weights(nodes, *map(float, ends)))
        return weights

    found = sample(at(when=when, what=what))
    expected = sample(plan(make, "attention", "mlp", keeps=order + 1))
    assert torch.equal(found.sample, expected.sample)
    assert found.trace.module_bytes == 2 * 6 * min(order + 1, 2) * 2 * 32 * 8 * 4


def test_residuals_of_blocks():
    found = sample(at(interval=2, sites=Select(kind=("block",)), of="residual"))
    same = sample(plan(every(2, Keep("residual")), "block"))
    assert torch.equal(found.sample, same.sample)


class Rowwise(Policy):
    """Sample 0 computes at steps 0, 2 and 4, sample 1 at 0, 3 and 4."""

    traits = Traits(decides="sample")

    @hookimpl
    def decide(self, step, call):
        own = [step.index in (0, 2, 4), step.index in (0, 3, 4)]
        return Reuse("rows", mask=[not computes for computes in own])


def test_samples_of_different_ages_are_forecast_each_from_its_own_steps():
    seen, answers = {}, []

    class Watch(At):
        @hookimpl
        def assign(self, step, call):
            found = super().assign(step, call)
            seen[step.index] = (call.rows, call.stamps(call.sites[0]), found[call.sites[0]])
            answers.append([e.tensors["output.0.0"] for e in call.kept(call.sites[0])])
            return found

    network, outputs = BlockFlow(), []
    network.blocks[0].attn.register_forward_hook(lambda _, __, out: outputs.append(out))
    what = Forecaster(basis="taylor", order=1, over="index")
    policy = Watch(sites=SITES, when=SkipPolicy(steps=(0, 2)), what=what)
    sample(Rowwise(), policy, network=network, guidance=NoGuidance())
    rows, stamps, action = seen[4]
    assert rows is None
    assert [[stamp[0] for stamp in level] for level in stamps] == [[2, 3], [0, 0]]
    assert action.weights[0] == pytest.approx((2.0, -1.0))
    assert action.weights[1] == pytest.approx((4 / 3, -1 / 3))
    newest, before = answers[3]
    table = torch.tensor(action.weights).reshape(2, 2, 1, 1)
    expected = newest * table[:, 0] + before * table[:, 1]
    torch.testing.assert_close(outputs[3], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"when": EasyCache(threshold=0.1)}, "whose steps are not known before sampling"),
        ({"max_age": 0}, "max_age of at is 0"),
        ({"of": "residual", "what": Forecaster(what="output")}, "give both the same"),
        ({"what": Forecaster(what="x0")}, "give both the same"),
        ({"what": Forecaster(basis="adams")}, "give basis='newton'"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(PolicyError, match=message):
        at(**options)


YAML = [
    {
        "at": {
            "sites": {"kind": ["attention"], "depth": "1:"},
            "when": {"refresh_interval": {"interval": 2, "first": 1}},
        }
    },
    {
        "at": {
            "sites": {"kind": ["mlp"]},
            "when": {"refresh_interval": {"interval": 3}},
            "what": {"forecaster": {"order": 1, "basis": "taylor", "over": "index"}},
            "max_age": 8,
        }
    },
    {"at": {"sites": {"branch": 1}, "when": {"refresh_interval": {"interval": 2}}}},
]


def test_a_configuration_says_the_same():
    first, second, third = build_policies(YAML)
    assert first.sites == Select(kind=("attention",), depth="1:")
    assert first.when.interval == 2
    assert second.what.order == 1
    assert second.max_age == 8
    assert third.sites == Cut(branch=1)
    for policy in (first, second, third):
        (again,) = build_policies([{"at": options_of(policy)}])
        assert repr(again) == repr(policy)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({"kind": ["attn"]}, "attn"),
        ({"kinds": ["mlp"]}, "kinds"),
        ("mlp", "mlp"),
    ],
)
def test_a_configuration_that_is_wrong_names_the_place(sites, message):
    with pytest.raises(ConfigError, match=message):
        build_policies([{"at": {"sites": sites, "when": {"refresh_interval": {"interval": 2}}}}])


# ------------------------------------------------------------------------- budgets of work
def work_of(*policies, steps=STEPS):
    trace = sample(*policies, given=request(steps=steps)).trace
    return trace.work * steps / (trace.batch * 2 * steps)


@pytest.mark.parametrize("kinds", [("attention",), ("attention", "mlp"), ("block",)])
def test_a_budget_of_work_is_kept_by_the_whole_network(kinds):
    steps, sites = 20, Select(kind=kinds)
    share = 1.0 - work_of(at(sites=sites, interval=99), steps=steps) / steps
    share *= steps / (steps - 1)  # all but one step leave the modules out
    least = steps * (1.0 - share) + share
    for work in (least, (least + steps) / 2, steps):
        when = RefreshInterval(budget={"work": work + 1e-6}, first=1)
        made = work_of(at(sites=sites, when=when), steps=steps)
        assert made <= work + 1e-5
        # the shortest interval that keeps it: one more call of the modules would not fit
        shorter = [work_of(at(sites=sites, interval=n), steps=steps) for n in range(1, steps + 1)]
        assert made == pytest.approx(max(w for w in shorter if w <= work + 1e-5))


def test_a_budget_of_work_below_the_rest_of_the_network_is_refused():
    when = RefreshInterval(budget={"work": 1}, first=1)
    with pytest.raises(PolicyError, match=r"rest of the network.*costs .* of a call; give more"):
        sample(at(sites=Select(kind=("attention",)), when=when))


def test_a_budget_of_work_has_no_other_reason_to_run():
    when = RefreshInterval(budget={"work": 3}, first=1)
    with pytest.raises(PolicyError, match=r"max_age=2 and when=.*give one of the two"):
        at(when=when, max_age=2)


@given(steps=st.integers(1, 60), share=st.floats(0.01, 1.0), part=st.floats(0.0, 1.0))
def test_calls_of_a_budget_of_work_are_the_most_that_fit(steps, share, part):
    least = steps * (1.0 - share) + share
    work = least + part * (steps - least)
    calls = count_calls(work, steps, share, "at")
    assert 1 <= calls <= steps
    assert steps * (1.0 - share) + calls * share <= work + 1e-6
    assert calls == steps or steps * (1.0 - share) + (calls + 1) * share > work - 1e-6
