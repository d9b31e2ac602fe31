"""FEB-Cache: the table, what it assigns, and the calibration on the cached trajectories."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erta_framework import CFG, Engine, FlowEuler, NoGuidance, SamplingLoop
from erta_framework.config import build_policies, options_of
from erta_framework.errors import PolicyError, ProfileMismatchError
from erta_framework.modules import Select
from erta_framework.testing import AlternateSteps, BlockFlow, toy_profile
from erta_framework.testing._setup import BLOCKS
from erta_policies.at import At
from erta_policies.ertacache import SkipPolicy
from erta_policies.febcache import (
    PUBLISHED,
    FEBCache,
    FEBCacheProfiler,
    ModuleTable,
    Search,
    StateTable,
    read_table,
)
from erta_policies.febcache._profiler import measure_error
from erta_policies.febcache._statistics import choose_state, find_table_work
from erta_policies.noise_scale import NoiseScale
from erta_policies.shared import StepPlan
from module_plans import sample, visits

tables = st.text("NBAM", min_size=0, max_size=29).map(lambda rest: StateTable("N" + rest))


# ------------------------------------------------------------------------- the table
def test_the_published_table():
    states = PUBLISHED.states
    assert (len(states), states.count("N"), states.count("B")) == (50, 34, 16)
    assert [k for k, state in enumerate(states) if state == "B"][:9] == list(range(22, 40, 2))
    assert max(map(len, states.split("N"))) == 3
    assert states[40:43] == "BBB"
    assert 1 / PUBLISHED.find_work(0.4, 0.6, 1.0) == pytest.approx(1.47, abs=0.01)


@given(tables)
def test_a_table_is_two_plans(table):
    assert StateTable.of_plans(table.attention, table.mlp) == table
    for state, attention, mlp in zip(
        table.states, table.attention.states, table.mlp.states, strict=True
    ):
        assert state == {"FF": "N", "cc": "B", "cF": "A", "Fc": "M"}[attention + mlp]


@given(tables, st.floats(0, 0.5), st.floats(0, 0.5))
def test_work_is_what_the_states_leave(table, attention, mlp):
    saved = table.attention.count("c") * attention + table.mlp.count("c") * mlp
    found = table.find_work(attention, mlp, attention + mlp)
    assert found == pytest.approx(1 - saved / len(table), abs=1e-12)


@pytest.mark.parametrize("text", ["", "BN", "NX", "nb"])
def test_what_is_no_table_is_refused(text):
    with pytest.raises(PolicyError, match="write for each step N"):
        StateTable(text)


def test_plans_that_make_no_table_are_refused():
    with pytest.raises(PolicyError, match="plan of 2 steps and the MLPs one of 3"):
        StateTable.of_plans(StepPlan("Fc"), StepPlan("Fcc"))
    with pytest.raises(PolicyError, match="refreshes tokens"):
        StateTable.of_plans(StepPlan("FS"), StepPlan("Fc"))


# ------------------------------------------------------------------------- the policy
def reference(table):
    """The same with two policies, one for the attention and one for the MLPs."""
    return [
        At(sites=Select(kind=kinds), when=SkipPolicy(steps=plan.full))
        for kinds, plan in ((("attention", "cross"), table.attention), (("mlp",), table.mlp))
    ]


@pytest.mark.parametrize("text", ["NNNNNN", "NBNBNB", "NAMBAM", "NBBBBB", "NMANAM"])
def test_it_is_a_schedule_for_the_attention_and_one_for_the_mlps(text):
    table, network = StateTable(text), BlockFlow()
    counts = visits(network, "blocks.1.attn.qkv", "blocks.1.mlp.up")
    result = sample(ModuleTable(table=text), network=network)
    assert counts == {
        "blocks.1.attn.qkv": 2 * table.attention.count("F"),
        "blocks.1.mlp.up": 2 * table.mlp.count("F"),
    }
    assert torch.equal(result.sample, sample(*reference(table)).sample)
    assert torch.equal(result.sample, sample().sample) is (text == "NNNNNN")


def test_beside_a_rule_modules_catch_up():
    counted = BlockFlow()
    counts = visits(counted, "blocks.0.attn.qkv")
    sample(AlternateSteps(), ModuleTable(table="NBBNBB"), network=counted, guidance=NoGuidance())
    assert counts["blocks.0.attn.qkv"] == 2  # steps 0 and 4: steps 1 and 3 were left out


def test_the_depth_window_moves_from_the_last_blocks_to_the_first():
    network = BlockFlow(depth=4)
    paths = [f"blocks.{k}.mlp.up" for k in range(4)]
    counts = visits(network, *paths)
    sample(ModuleTable(table="NBBBBB", window=1), network=network, guidance=NoGuidance())
    # 0.6 * 6 = 3.6: the last block may reuse in steps 1 to 3, the first one in 4 and 5
    assert [counts[path] for path in paths] == [4, 6, 6, 3]


def test_a_window_of_all_blocks_restricts_nothing():
    whole = sample(ModuleTable(table="NBABMB"), network=BlockFlow(depth=4)).sample
    wide = sample(ModuleTable(table="NBABMB", window=4), network=BlockFlow(depth=4)).sample
    assert torch.equal(whole, wide)


@pytest.mark.parametrize("options", [{}, {"table": "NB", "profile": "p.safetensors"}])
def test_exactly_one_source_of_the_table(options):
    with pytest.raises(PolicyError, match="give exactly one of table"):
        Engine([FEBCache(**options)])


def test_a_table_for_other_steps_is_refused():
    with pytest.raises(PolicyError, match="plan of 50 steps, this run has 6"):
        sample(FEBCache(table="published"))


def test_a_window_out_of_range_is_refused():
    with pytest.raises(PolicyError, match="window of module_table is 0"):
        FEBCache(table="NB", window=0)


def test_the_recipe_scales_the_noise_by_the_published_curve_or_not_at_all():
    parts = FEBCache(table="NBNBNB").parts()
    assert [type(part) for part in parts] == [ModuleTable, NoiseScale]
    assert parts[1].factors(50) == NoiseScale().factors(50)
    bare = FEBCache(table="NBNBNB", noise=None)
    assert [type(part) for part in bare.parts()] == [ModuleTable]
    assert torch.equal(sample(bare).sample, sample(ModuleTable(table="NBNBNB")).sample)
    assert not torch.equal(sample(bare).sample, sample(FEBCache(table="NBNBNB")).sample)


def test_two_recipes_share_no_part():
    first, second = FEBCache(table="NB"), FEBCache(table="NB")
    assert first.noise is not second.noise


def test_it_is_configured():
    given = {"febcache": {"table": "NBNA", "window": 3, "noise": {"noise_scale": {"scale": 0.99}}}}
    (policy,) = build_policies([given])
    assert (policy.table, policy.window, policy.noise.scale) == ("NBNA", 3, 0.99)
    assert options_of(policy)["table"] == "NBNA"
    with pytest.raises(PolicyError, match="write for each step N"):
        build_policies([{"febcache": {"table": "BB"}}])


# ------------------------------------------------------------------------- the criteria
def test_the_published_criterion_accepts_a_wrong_direction_of_the_right_length():
    full = torch.randn(4, 3, 5)
    turned = full.flip(-1)
    assert float(measure_error(full, turned, "norm").max()) < 1e-6
    assert float(measure_error(full, turned, "l2").min()) > 0.1


@given(st.floats(0.0, 3.0))
def test_of_a_prediction_of_another_length_both_see_the_same(factor):
    full = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))
    for metric in ("norm", "l2"):
        error = measure_error(full, factor * full, metric)
        torch.testing.assert_close(error, torch.full((3,), abs(1 - factor)), atol=1e-5, rtol=1e-5)


def test_a_prediction_of_zeros_has_no_error_against_itself():
    zeros = torch.zeros(2, 3)
    assert measure_error(zeros, zeros, "l2").tolist() == [0.0, 0.0]


def test_half_of_the_rows_decide():
    assert choose_state(8, both=4, one=4, late=False) == "B"
    assert choose_state(8, both=3, one=4, late=False) == "M"
    assert choose_state(8, both=3, one=4, late=True) == "A"
    assert choose_state(8, both=3, one=3, late=True) == "N"
    assert choose_state(0, both=0, one=0, late=False) == "N"


# ------------------------------------------------------------------------- the calibration
@pytest.fixture(scope="module")
def profile():
    return toy_profile(FEBCacheProfiler(budget={"speedup": 1 / 0.6}), seeds=(11,))


@pytest.mark.parametrize("metric", ["norm", "l2"])
@pytest.mark.parametrize("scale", [0.02, 0.1, 0.4])
def test_the_loop_is_closed(metric, scale):
    """A run under the found table is the trajectory that the calibration walked, bit for bit."""
    profiler = FEBCacheProfiler(metric=metric, search=Search(scale=scale))
    loop = SamplingLoop(Engine([profiler]), FlowEuler(), CFG(scale=2.0))
    request = BLOCKS.request(seed=5)
    walked = loop.run(BLOCKS.toy(), request)
    table = read_table(walked.emitted[0])
    run = sample(ModuleTable(table=table.states), network=BLOCKS.toy(), given=request)
    assert torch.equal(walked.sample, run.sample)
    assert walked.trace.work == pytest.approx(run.trace.work)
    counted = find_table_work(walked.emitted[0]) * 2 * len(table) * 2
    assert run.trace.work == pytest.approx(counted)


def test_a_tolerance_of_nothing_reuses_nothing_and_a_large_one_everything():
    for scale, found in ((1e-9, "N" * 10), (1e9, "N" + "B" * 9)):
        profiler = FEBCacheProfiler(search=Search(scale=scale), rounds=1, tolerance=1.0)
        assert read_table(toy_profile(profiler, seeds=(3,))).states == found


def test_the_single_candidate_is_the_mlps_first_and_the_attention_later():
    always = FEBCacheProfiler(metric="l2", search=Search(scale=0.3), rounds=1, tolerance=1.0)
    table = read_table(toy_profile(always, seeds=(3,)))
    assert set(table.states[:6]) <= set("NBM")
    assert set(table.states[6:]) <= set("NBA")


def test_it_tries_on_the_latents_of_the_run_and_counts_what_it_tries():
    profiler = FEBCacheProfiler(search=Search(scale=1e9))
    loop = SamplingLoop(Engine([profiler]), FlowEuler(), CFG(scale=2.0))
    trace = loop.run(BLOCKS.toy(), BLOCKS.request()).trace
    assert trace.network_calls == 20
    assert trace.trial_calls == 2 * 9  # without reuse and with both, by the first branch


def test_the_search_finds_the_work(profile):
    assert find_table_work(profile) == pytest.approx(0.6, abs=0.1)
    assert profile.provenance["metric"] == "norm"


@given(wanted=st.floats(0.1, 0.9), steepness=st.floats(0.3, 3.0), middle=st.floats(1e-4, 10.0))
def test_the_search_closes_in_on_any_falling_curve(wanted, steepness, middle):
    search = Search()
    for _ in range(40):
        work = 1 / (1 + (search.scale / middle) ** steepness)
        search = search.narrow(work, wanted)
    assert search.gap < 0.01
    best = 1 / (1 + (search.best / middle) ** steepness)
    assert abs(best - wanted) == pytest.approx(search.gap)
    assert search.low < search.scale < (math.inf if search.high is None else search.high)


def test_less_work_than_there_can_be_is_refused():
    with pytest.raises(
        PolicyError, match=r"work of 1.00 network calls in 10 steps, but .* leave 1\.1"
    ):
        toy_profile(FEBCacheProfiler(budget={"work": 1.0}), seeds=(1,))


@pytest.mark.parametrize(
    "options",
    [
        {"budget": None},
        {"budget": {"calls": 20}},
        {"budget": {"speedup": math.nan}},
        {"metric": "l1"},
        {"late": 1.5},
        {"rounds": 0},
        {"tolerance": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(PolicyError, match=next(iter(options))):
        FEBCacheProfiler(**options)


def test_a_profile_moves_and_knows_its_run(profile, tmp_path):
    path = profile.save(tmp_path / "table.safetensors")
    policy = FEBCache(profile=str(path), noise=None)
    expected = sample(
        ModuleTable(table=read_table(profile).states), network=BLOCKS.toy(), given=BLOCKS.request()
    )
    loop = SamplingLoop(Engine([policy]), FlowEuler(), CFG(scale=2.0))
    assert torch.equal(loop.run(BLOCKS.toy(), BLOCKS.request()).sample, expected.sample)
    with pytest.raises(ProfileMismatchError, match="guidance"):
        SamplingLoop(Engine([policy]), FlowEuler(), CFG(scale=3.0)).run(
            BLOCKS.toy(), BLOCKS.request()
        )
    assert policy.calibrator().find_share(50) == pytest.approx(1 / 1.5)
