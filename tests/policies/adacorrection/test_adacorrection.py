"""AdaCorrection: weights, blends, what is kept, what it costs, and around which policies."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from erta_framework import Engine, NoGuidance, hookimpl
from erta_framework.config import build_policies, options_of
from erta_framework.errors import PolicyError
from erta_framework.modules import Ask, Keep, ReuseKept, Select, Tokens
from erta_framework.plugins import flatten
from erta_framework.testing import AlternateSteps, BlockFlow
from erta_policies.adacorrection import AdaCorrection, measure_offset, measure_paper_offset
from erta_policies.adacorrection._weights import Offsets, weigh
from erta_policies.at import At
from erta_policies.clusca import ClusCa
from erta_policies.fastcache import DriftGate
from erta_policies.forecast import Forecaster
from erta_policies.freqca import FreqCa
from erta_policies.h2cache import FirstBlockGate
from erta_policies.pab import PAB
from erta_policies.precisecache import BlockCache
from erta_policies.shared import measure_drift, measure_spread_drift
from erta_policies.taylorseer import FORA, RefreshInterval, TaylorSeer
from module_plans import Plan, request, sample, visits

STEPS = 10
INNER = [f"blocks.{k}.{part}" for k in range(3) for part in ("attn.qkv", "mlp.up")]
PARTS = Select(kind=("attention", "mlp"))
BLOCKS = Select(kind=("block",))


def at(interval=3, sites=PARTS, **options):
    return At(sites=sites, when=RefreshInterval(interval=interval, first=1), **options)


def run(policy, network=None, batch=2, **options):
    given = request(batch=batch, steps=STEPS)
    return sample(policy, network=network, given=given, guidance=NoGuidance(), **options)


HOSTS = {
    "at": at(),
    "residuals": at(sites=BLOCKS, of="residual"),
    "forecasts": at(what=Forecaster(order=1, basis="taylor", over="index", what="output")),
    "fora": FORA(interval=3, level="modules"),
    "taylorseer": TaylorSeer(interval=3, level="modules"),
    "pab": PAB(spatial=3, window=(-1.0, 2000.0)),
    "bands": FreqCa(interval=3, first=2, level="blocks"),
    "ranked": BlockCache(skip_ratio=0.5, length=2),
}


# --------------------------------------------------------------------------- the formulas
def test_the_offset_is_the_squares_of_both_drifts():
    torch.manual_seed(0)
    kept, now = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    a, b = measure_drift(now, kept), measure_spread_drift(now, kept)
    torch.testing.assert_close(measure_offset(now, kept, 2.5), a**2 + 2.5 * b**2)
    torch.testing.assert_close(measure_offset(now, kept, 0.0), a**2)
    alone = torch.cat([measure_offset(now[k : k + 1], kept[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(measure_offset(now, kept), alone)


def test_the_published_offset_is_that_of_the_text():
    torch.manual_seed(0)
    kept, now = torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    moved = (now - kept).square().sum(-1).sqrt().mean()
    spread = now.var(-1, unbiased=False).sqrt().mean()
    expected = moved**2 + 0.5 * spread
    torch.testing.assert_close(measure_paper_offset(now, kept, 0.5)[0], expected)
    still = torch.ones(1, 2, 4)
    assert measure_paper_offset(still, still).item() == pytest.approx(1e-6)


def test_weights_saturate_trust_and_distrust():
    found = weigh(torch.tensor([0.0, 0.5, 1.0, 3.0, math.inf, math.nan]), 2.0, 1.5)
    assert found.tolist() == [0.0, 0.375, 0.75, 1.0, 1.0, 1.0]
    assert weigh(torch.tensor([0.0, 5.0]), math.nan, 1.0).tolist() == [0.0, 0.0]
    # nothing moved at any step, and the reference is infinite as well
    references = torch.tensor([0.0, 0.0, math.inf])
    found = weigh(torch.tensor([0.0, 1.0, math.inf]), references, 1.0)
    assert found.tolist() == [0.0, 1.0, 1.0]
    assert weigh(torch.tensor([math.inf, math.nan]), 1.0, 0.0).tolist() == [0.0, 0.0]


def test_the_reference_is_the_median_of_each_sample():
    offsets = Offsets()
    assert math.isnan(offsets.find_median(None))
    offsets.add(torch.tensor([1.0, 10.0]), None, 2)
    offsets.add(torch.tensor([30.0]), (1,), 2)
    offsets.add(torch.tensor([3.0, 20.0]), None, 2)
    assert offsets.find_median(None).tolist() == [1.0, 20.0]
    assert offsets.find_median((1,)).tolist() == [20.0]


# ----------------------------------------------------------------------------- saturation
@pytest.mark.parametrize("host", HOSTS, ids=str)
@pytest.mark.parametrize("mode", ["relative", "paper"])
def test_without_weight_it_is_the_policy_inside(host, mode):
    alone, network = BlockFlow(), BlockFlow()
    counts = visits(alone, *INNER), visits(network, *INNER)
    expected = run(HOSTS[host], alone)
    found = run(AdaCorrection(policy=HOSTS[host], gamma=0.0, mode=mode), network)
    assert torch.equal(found.sample, expected.sample)
    if mode == "relative":
        assert counts[0] == counts[1]
        assert found.trace.work == expected.trace.work
    else:  # which has no short cut
        assert found.trace.work == STEPS * 2


@pytest.mark.parametrize("host", HOSTS, ids=str)
def test_with_full_weight_it_is_the_network(host):
    network = BlockFlow()
    counts = visits(network, *INNER)
    policy = AdaCorrection(policy=HOSTS[host], gamma=1e9, reference=1e-30)
    found = run(policy, network)
    expected = sample(given=request(steps=STEPS), guidance=NoGuidance())
    assert torch.equal(found.sample, expected.sample)
    assert set(counts.values()) == {STEPS}
    assert found.trace.work == STEPS * 2


class Unit(nn.Module):
    """Gives hidden states a channel variance of 1 in front of every block."""

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred * 1.01 / centred.var(-1, unbiased=False, keepdim=True).sqrt()


def test_the_published_method_is_the_uncached_network_where_states_have_unit_variance():
    def build():
        network = BlockFlow()
        for block in network.blocks:
            unit = Unit()
            block.register_forward_pre_hook(
                lambda module, args, unit=unit: (unit(args[0]), *args[1:])
            )
        return network

    host = at(sites=BLOCKS, of="residual")
    given = {"given": request(steps=STEPS), "guidance": NoGuidance()}
    uncached = sample(network=build(), **given)
    assert not torch.equal(sample(host, network=build(), **given).sample, uncached.sample)
    found = sample(AdaCorrection(policy=host, mode="paper"), network=build(), **given)
    assert torch.equal(found.sample, uncached.sample)
    assert found.trace.work == STEPS * 2  # and saves nothing
    # nor does it elsewhere
    less = sample(AdaCorrection(policy=host, mode="paper", gamma=1e-3), network=build(), **given)
    assert not torch.equal(less.sample, uncached.sample)
    assert less.trace.work == STEPS * 2


# --------------------------------------------------------------------------- between the two
def test_a_blend_is_of_what_the_policy_reuses_and_of_what_runs():
    seen = []

    class Watching(Plan):
        def keeps_inputs(self):
            return True

    def answer(visit):
        if visit.age is None:
            return visit.run(keep="output")
        return visit.reuse(ReuseKept())

    host = Watching(
        selected=(Select(kind=("mlp",), depth="0:1"),),
        make=lambda step, call: dict.fromkeys(call.sites, Ask(answer)),
    )
    policy = AdaCorrection(policy=host, reference=10.0, low=0.0, high=1.0)
    network = BlockFlow()
    mlp = network.blocks[0].mlp

    def watch(module, args, output):
        seen.append((args[0].clone(), output.clone(), mlp.forward(args[0])))

    mlp.register_forward_hook(watch)
    run(policy, network)
    assert len(seen) == STEPS
    (x, kept, _), *rest = seen
    used = []
    for now, output, _ in rest:
        fresh = plain_mlp(mlp, now)
        weights = (measure_offset(now, x) / 10.0).clamp(0, 1)[:, None, None]
        torch.testing.assert_close(output, (1 - weights) * kept + weights * fresh)
        used += weights.flatten().tolist()
        x, kept = now, fresh  # what ran is kept
    assert 0 < min(used) < max(used)


def plain_mlp(mlp, x):
    """The module without a gate."""
    return type(mlp).forward(mlp, x)


@pytest.mark.parametrize("host", ["at", "residuals", "forecasts"])
def test_more_weight_costs_more_and_work_is_what_ran(host):
    works = []
    for gamma in (0.0, 0.2, 1.0, 50.0):
        network = BlockFlow()
        counts = visits(network, *INNER)
        found = run(AdaCorrection(policy=HOSTS[host], gamma=gamma), network)
        works.append(found.trace.work)
        assert work_of(counts) == pytest.approx(found.trace.work / 2)
    assert works == sorted(works)
    assert works[0] < works[-1]


def work_of(counts):
    """Steps' worth of FLOPs from independent counts of the modules."""
    given, flops = request(steps=STEPS), {}
    plain = BlockFlow()
    counter = FlopCounterMode(display=False)
    before = {}

    def begin(path):
        return lambda *_: before.__setitem__(path, counter.get_total_flops())

    def end(path):
        def hook(*_):
            flops[path] = counter.get_total_flops() - before[path]

        return hook

    for k in range(3):
        for part in ("attn", "mlp"):
            module = plain.get_submodule(f"blocks.{k}.{part}")
            module.register_forward_pre_hook(begin(f"blocks.{k}.{part}"))
            module.register_forward_hook(end(f"blocks.{k}.{part}"))
    with counter:
        plain(given.latents, torch.full((2,), 500.0), given.cond)
    total = counter.get_total_flops()
    ran = {path.rpartition(".")[0]: count for path, count in counts.items()}
    saved = sum(flops[path] * (STEPS - count) for path, count in ran.items())
    return STEPS - saved / total


def test_every_sample_has_its_own_weight_and_memory():
    together = run(AdaCorrection(policy=at(), gamma=0.3))
    for row in range(2):
        given = request(steps=STEPS)
        alone = {"latents": given.latents[row : row + 1], "cond": given.cond[row : row + 1]}
        one = dataclasses.replace(given, uncond=given.uncond[:1], **alone)
        found = sample(AdaCorrection(policy=at(), gamma=0.3), given=one, guidance=NoGuidance())
        torch.testing.assert_close(found.sample[0], together.sample[row], rtol=1e-4, atol=1e-4)


def test_blended_residuals_are_the_blend_of_outputs():
    # both are added to the same input, so that it does not matter which of them is blended
    torch.manual_seed(0)
    x, stale, fresh = (torch.randn(2, 3, 4, dtype=torch.float64) for _ in range(3))
    w = torch.tensor([0.3, 0.6], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(
        x + (1 - w) * stale + w * (fresh - x), (1 - w) * (x + stale) + w * fresh
    )


def test_inputs_are_memory():
    trace = run(AdaCorrection(policy=at())).trace
    assert trace.module_bytes == trace.state_bytes == 2 * run(at()).trace.module_bytes
    deep = HOSTS["forecasts"]
    assert run(AdaCorrection(policy=deep)).trace.module_bytes == 2 * run(deep).trace.module_bytes


def test_a_span_is_weighed_by_the_input_of_the_network():
    span = at(sites=Select(kind=("block",), span=True))
    network = BlockFlow()
    counts = visits(network, *INNER)
    found = run(AdaCorrection(policy=span, gamma=0.0), network)
    assert set(counts.values()) == {4}
    assert torch.equal(found.sample, run(span).sample)
    full = run(AdaCorrection(policy=span, reference=1e-30))
    assert torch.equal(
        full.sample, sample(given=request(steps=STEPS), guidance=NoGuidance()).sample
    )
    between = run(AdaCorrection(policy=span, reference=1.0, low=0.0, high=1.0))
    assert not torch.equal(between.sample, full.sample)
    assert between.trace.work == 2 * STEPS


def test_beside_a_rule_that_leaves_out_steps_it_stays_exact():
    policies = AlternateSteps(), AdaCorrection(policy=at(), reference=1e-30)
    given = {"given": request(steps=STEPS), "guidance": NoGuidance()}
    expected = sample(AlternateSteps(), **given)
    assert torch.equal(sample(*policies, **given).sample, expected.sample)


# ---------------------------------------------------------------------- recipes and refusals
def test_a_recipe_is_its_one_part():
    policy = AdaCorrection(policy=FORA(interval=4, level="modules"), gamma=0.5)
    (part,) = flatten([policy])
    assert isinstance(part.policy, At)
    assert part.gamma == 0.5
    (again,) = flatten([part])
    assert again is part
    assert Engine([policy]).selecting[0].keeps_inputs()


def test_a_configuration_says_the_same():
    at_written = {
        "sites": {"kind": ["attention", "mlp"]},
        "when": {"refresh_interval": {"interval": 3, "first": 1}},
    }
    (policy,) = build_policies([{"adacorrection": {"policy": {"at": at_written}, "gamma": 0.5}}])
    assert isinstance(policy.policy, At)
    (again,) = build_policies([{"adacorrection": options_of(policy)}])
    assert repr(again) == repr(policy)
    assert torch.equal(run(again).sample, run(AdaCorrection(policy=at(), gamma=0.5)).sample)


def test_traits_are_those_of_the_policy_inside():
    assert not AdaCorrection(policy=at()).traits.static
    assert AdaCorrection(policy=at()).traits.agrees_inside

    class Alone(Plan):
        pass

    host = Alone(make=lambda step, call: {}, selected=(PARTS,))
    assert not AdaCorrection(policy=host).traits.agrees_inside


class Voting(Plan):
    @hookimpl
    def decide(self, step):
        return None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": RefreshInterval(interval=2)}, "answer for places"),
        ({"policy": Voting(make=dict)}, "answer for places"),
        ({"policy": FORA(interval=2)}, "stands for several"),
        ({"policy": at(), "gamma": -1.0}, "gamma=-1"),
        ({"policy": at(), "spread": math.nan}, "spread=nan"),
        ({"policy": at(), "low": 0.5, "high": 0.4}, "low=0.5 and high=0.4"),
        ({"policy": at(), "high": 1.5}, "high=1.5"),
        ({"policy": at(), "mode": "other"}, "mode of adacorrection is 'other'"),
        ({"policy": at(), "reference": 0.0}, "reference=0"),
        ({"policy": at(), "reference": 1.0, "mode": "paper"}, "mode='paper'"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(PolicyError, match=message):
        AdaCorrection(**options)


def host_of(make, *selected):
    return Plan(make=make, selected=selected or (PARTS,))


def keep_features(visit):
    """Keeps the output as a tensor of its own, and gives it at every later step."""
    if not visit.features:
        output = visit.run()
        visit.keep(output)
        return output
    return visit.features[0]


def keep_output(visit):
    return visit.run(keep="output") if visit.age is None else visit.reuse(ReuseKept())


def test_a_policy_that_keeps_tensors_of_its_own_renews_them():
    host = host_of(lambda step, call: dict.fromkeys(call.sites, Ask(keep_features)))
    expected = sample(given=request(steps=STEPS), guidance=NoGuidance())
    found = run(AdaCorrection(policy=host, reference=1e-30))
    assert torch.equal(found.sample, expected.sample)
    assert found.trace.work == 2 * STEPS
    # and as one that keeps outputs
    kept = host_of(lambda step, call: dict.fromkeys(call.sites, Ask(keep_output)))
    same = run(AdaCorrection(policy=kept, reference=0.5), batch=1)
    again = run(AdaCorrection(policy=host, reference=0.5), batch=1)
    assert torch.equal(same.sample, again.sample)
    assert 1 < again.trace.work < STEPS
    assert again.trace.work == same.trace.work


def test_fastcache_is_corrected_where_it_decides_for_all_samples():
    gate = DriftGate(threshold=9.0, per_sample=False)
    expected = sample(given=request(steps=STEPS), guidance=NoGuidance())
    assert not torch.equal(run(gate).sample, expected.sample)
    unweighed = run(AdaCorrection(policy=gate, gamma=0.0))
    assert torch.equal(unweighed.sample, run(gate).sample)
    assert unweighed.trace.work == run(gate).trace.work
    found = run(AdaCorrection(policy=gate, reference=1e-30))
    assert torch.equal(found.sample, expected.sample)
    assert found.trace.work == 2 * STEPS
    between = run(AdaCorrection(policy=gate, reference=0.5)).trace.work
    assert unweighed.trace.work < between < 2 * STEPS


def test_fastcache_that_runs_a_block_on_some_samples_is_refused():
    messages = []
    for threshold in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3):  # at some the two samples differ
        try:
            run(AdaCorrection(policy=DriftGate(threshold=threshold), gamma=0.0))
        except PolicyError as error:
            messages.append(str(error))
    assert messages
    assert all("per_sample=False" in message for message in messages)


def test_what_it_cannot_correct_is_refused():
    def in_part(step, call):
        def answer(visit):
            if visit.age is None:
                return visit.run(keep="output")
            return visit.run_tokens(torch.tensor([0]), visit.kept[0].example)

        return dict.fromkeys(call.sites, Ask(answer))

    def tokens(step, call):
        if step.index == 0:
            return dict.fromkeys(call.sites, Keep())
        return dict.fromkeys(call.sites, Tokens(torch.tensor([0])))

    with pytest.raises(PolicyError, match=r"assigned Tokens to blocks\.0\.mlp"):
        run(AdaCorrection(policy=host_of(tokens, Select(kind=("mlp",)))))
    with pytest.raises(PolicyError, match=r"ran blocks\.0\.mlp in part"):
        run(AdaCorrection(policy=host_of(in_part, Select(kind=("mlp",)))))
    with pytest.raises(PolicyError, match=r"ran blocks\.0\.mlp in part"):
        run(AdaCorrection(policy=ClusCa(sites=PARTS, interval=3, clusters=4)))
    own = host_of(lambda step, call: dict.fromkeys(call.sites, Ask(keep_features)))
    with pytest.raises(PolicyError, match="keeps tensors of its own"):
        run(AdaCorrection(policy=own, mode="paper"))
    with pytest.raises(PolicyError, match="about other places"):
        run(AdaCorrection(policy=FirstBlockGate(threshold=0.5)))
    residual_span = at(sites=Select(kind=("block",), span=True), of="residual")
    with pytest.raises(PolicyError, match="asks for a residual of"):
        run(AdaCorrection(policy=residual_span))
