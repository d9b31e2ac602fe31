"""`At`: schedules and forecasts on modules."""

from __future__ import annotations

import pytest
import torch

from erta_framework import NoGuidance, Policy, Reuse, Traits, hookimpl
from erta_framework.config import build_policies, options_of
from erta_framework.errors import ConfigError, PolicyError
from erta_framework.modules import KEEP, Cut, Keep, ReuseKept, Select
from erta_framework.testing import AlternateSteps, BlockFlow
from erta_policies.at import At
from erta_policies.easycache import EasyCache
from erta_policies.ertacache import SkipPolicy
from erta_policies.forecast import Forecaster
from erta_policies.taylorseer import RefreshInterval
from module_plans import STEPS, every, plan, sample, visits

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
    assert kept_steps(at(when=SkipPolicy(steps=(0, 2, 3)))) == [0, 2, 3, 5]


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
