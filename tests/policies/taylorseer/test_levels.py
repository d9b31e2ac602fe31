"""TaylorSeer, HiCache and FORA at the level of modules: published schedules and tables."""

from __future__ import annotations

import math

import pytest
import torch

from erta_framework import NoGuidance
from erta_framework.config import build_policies, options_of
from erta_framework.errors import ConfigError, PolicyError
from erta_framework.modules import Select
from erta_framework.testing import BlockFlow
from erta_policies.at import At
from erta_policies.ertacache import SkipPolicy
from erta_policies.taylorseer import FORA, HiCache, TaylorSeer
from module_plans import request, sample, visits

SCHEDULES = [
    # computed of 50 steps: TaylorSeer's release, with interval and first steps
    (TaylorSeer(interval=6, level="modules"), [0, 1, 2, 8, 14, 20, 26, 32, 38, 44]),
    (TaylorSeer(interval=5, first=1, level="modules"), [*range(0, 50, 5)]),
    (TaylorSeer(interval=4, level="modules"), [0, 1, 2, *range(6, 50, 4)]),
    (
        TaylorSeer(interval=5, schedule="diffusers", level="modules"),
        [0, 1, 2, 4, *range(9, 50, 5)],
    ),
    (HiCache(interval=3, level="modules"), [0, 1, 2, *range(5, 50, 3)]),
    # FORA's index counts down
    (FORA(interval=3, level="modules"), [0, *range(1, 50, 3)]),
    (FORA(interval=5, counting="up", level="modules"), [*range(0, 50, 5)]),
]


@pytest.mark.parametrize(("recipe", "computed"), SCHEDULES)
def test_modules_run_at_the_published_steps(recipe, computed):
    network = BlockFlow()
    ran = visits(network, "blocks.0.attn.qkv", "blocks.2.mlp.down")
    calls = visits(network, "head")
    found = sample(recipe, network=network, given=request(steps=50), guidance=NoGuidance())
    assert calls == {"head": 50}
    assert set(ran.values()) == {len(computed)}
    kept = [call.index for call in found.trace.calls() if call.sites["mlp"][0]]
    assert kept == computed


class Table(torch.nn.Module):
    """A module behind TaylorSeer's table of differences, as its release keeps it.

    Written from the published description: level j + 1 is the change of level j over the distance
    of two computed steps, from step `first - 1` on; a forecast is sum_j D_j k^j / j!.
    """

    def __init__(self, module, steps, order, first, factor):
        super().__init__()
        self.module, self.steps, self.order, self.first = module, steps, order, first
        self.factor, self.levels, self.last, self.step = factor, [], 0, -1

    def forward(self, *args):
        self.step += 1
        if self.step not in self.steps:
            k = self.step - self.last
            return sum(self.factor(j, k) * level for j, level in enumerate(self.levels))
        levels = [self.module(*args)]
        if self.levels and self.step > self.first - 2:
            for j in range(min(self.order, len(self.levels))):
                levels.append((levels[j] - self.levels[j]) / (self.step - self.last))
        self.levels, self.last = levels, self.step
        return levels[0]


def power(j, k):
    return k**j / math.factorial(j)


def hermite(j, k, scale=0.5):
    """`scale^j H_j(scale k) / j!` of arXiv 2508.16984, with the first three H written out."""
    x = scale * k
    return scale**j * (1.0, 2 * x, 4 * x * x - 2)[j] / math.factorial(j) if j else 1.0


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(("cls", "factor"), [(TaylorSeer, power), (HiCache, hermite)])
def test_every_module_is_forecast_by_its_own_published_table(cls, factor, order):
    recipe = cls(interval=3, first=2, order=order, level="modules")
    given = request(steps=14)
    found = sample(recipe, given=given, guidance=NoGuidance())
    network = BlockFlow()
    steps = recipe.parts()[0].when.plan(14).computed
    for block in network.blocks:
        block.attn = Table(block.attn, steps, order, 2, factor)
        block.mlp = Table(block.mlp, steps, order, 2, factor)
    expected = sample(network=network, given=given, guidance=NoGuidance())
    torch.testing.assert_close(found.sample, expected.sample, rtol=1e-4, atol=1e-4)
    plain = sample(given=given, guidance=NoGuidance())
    assert (plain.sample - expected.sample).abs().max() > 1e-3


def test_fora_is_the_forecast_of_order_0():
    given = request(steps=12)
    fora = FORA(interval=4, counting="up", level="modules")
    seer = TaylorSeer(interval=4, first=1, order=0, level="modules")
    one, other = sample(fora, given=given), sample(seer, given=given)
    assert torch.equal(one.sample, other.sample)
    # one output of 3 attentions and 3 MLPs, 2 branches, 2 samples of 32 tokens of width 8
    assert one.trace.module_bytes == 6 * 2 * 2 * 32 * 8 * 4


def test_gates_are_those_of_the_current_step():
    """A module is in front of the gate; the output of a block is behind it."""
    given = request(steps=8)
    modules = sample(FORA(interval=4, level="modules"), given=given)
    blocks = sample(FORA(interval=4, level="modules", sites=Select(kind=("block",))), given=given)
    assert not torch.allclose(modules.sample, blocks.sample)


def test_some_modules_only():
    network = BlockFlow()
    ran = visits(network, "blocks.0.attn.qkv", "blocks.1.attn.qkv", "blocks.1.mlp.up")
    sites = Select(kind=("attention",), depth="1:")
    sample(
        FORA(interval=3, counting="up", level="modules", sites=sites),
        network=network,
        given=request(steps=6),
        guidance=NoGuidance(),
    )
    assert ran == {"blocks.0.attn.qkv": 6, "blocks.1.attn.qkv": 2, "blocks.1.mlp.up": 6}


def test_beside_a_step_rule_the_network_is_left_out_as_well():
    rule = SkipPolicy(steps=(0, 1, 3, 4, 8, 9))
    found = sample(rule, TaylorSeer(interval=4, first=1, level="modules"), given=request(steps=10))
    assert found.trace.computed_steps == (0, 1, 3, 4, 8, 9)
    kept = [c.index for c in found.trace.calls() if c.sites and c.sites["mlp"][0]]
    assert sorted({*kept}) == [0, 4, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "blocks"}, "no level 'blocks'; it is 'output' or 'modules'"),
        ({"sites": Select(kind=("mlp",))}, r"got sites=Select.*give level='modules'"),
        ({"level": "modules", "budget": {"calls": 5}}, "at every step; give interval"),
    ],
)
@pytest.mark.parametrize("cls", [TaylorSeer, HiCache, FORA])
def test_settings_of_the_other_level_are_refused(cls, options, message):
    with pytest.raises(PolicyError, match=message):
        cls(**options)


def test_a_configuration_says_the_same():
    written = {"interval": 4, "level": "modules", "sites": {"kind": ["mlp"], "depth": "1:"}}
    for name, cls in (("taylorseer", TaylorSeer), ("hicache", HiCache), ("fora", FORA)):
        (policy,) = build_policies([{name: written}])
        assert isinstance(policy, cls)
        (part,) = policy.parts()
        assert isinstance(part, At)
        assert part.sites == Select(kind=("mlp",), depth="1:")
        (again,) = build_policies([{name: options_of(policy)}])
        assert repr(again) == repr(policy)
    with pytest.raises(ConfigError, match="blocks"):
        build_policies([{"fora": {"level": "blocks"}}])
