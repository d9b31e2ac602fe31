"""ProCache: published plans and ratios, the method against a loop by hand, budgets and profiles."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from erta_framework import Engine, FlowEuler, NoGuidance, Profile, SamplingLoop
from erta_framework.calibration import calibrate
from erta_framework.config import build_policies, options_of
from erta_framework.errors import PolicyError, ProfileError, ProfileMismatchError
from erta_framework.modules import Select
from erta_framework.testing import AlternateSteps, BlockFlow
from erta_policies.procache import PRESETS, ProCache, ProCacheProfiler, TokenRatio, plan_toca
from erta_policies.shared import PlanFamily, StepPlan, TokenScore
from module_plans import STEPS, request, sample, visits

PLAIN = sample()


# -------------------------------------------------------------------------- what is published
def test_the_ratios_are_those_of_the_released_ports():
    for k in range(50):
        for layer in range(28):
            left = 49 - k
            dit = 0.07 * (3 - 4 * left / 50) * (0.8 + 0.4 * layer / 27) * 2.5
            found = PRESETS["dit-xl-2"].ratio.part(k, 50, layer, 28, "mlp")
            assert found == pytest.approx(min(1.0, max(0.0, dit)))
            assert PRESETS["dit-xl-2"].ratio.part(k, 50, layer, 28, "attention") == 0.0
    for k in range(20):
        for layer in range(28):
            shared = 0.30 * (1.9 - 1.8 * k / 20) * (1.6 - 1.2 * layer / 27)
            ratio = PRESETS["pixart-alpha"].ratio
            for kind, factor in (("mlp", 1.6), ("cross", 0.6)):
                wanted = min(1.0, max(0.0, shared * factor))
                assert ratio.part(k, 20, layer, 28, kind) == pytest.approx(wanted)


def test_the_first_refreshes_of_dit_refresh_nothing():
    preset = PRESETS["dit-xl-2"]
    selecting = [k for k, state in enumerate(preset.plan.states) if state == "S"]
    parts = [preset.ratio.part(k, 50, 24, 28, "mlp") for k in selecting]
    assert selecting[:3] == [2, 6, 10]
    percent = [0, 0, 0, 4.0, 10.5, 17.0, 23.5, 28.3, 33.2, 38.0]
    assert [100 * part for part in parts] == pytest.approx(percent, abs=0.06)


@pytest.mark.parametrize(
    ("interval", "full"),
    [
        (3, [0, 5, 9, 13, 19, 22, 25, 28, 31, *range(33, 50, 2)]),
        (4, [0, 1, 9, 14, 21, 25, 29, 33, 35, 37, 39, 43, 46, 49]),
        (5, [0, 1, 19, 24, 29, 35, 37, 39, 41, 45, 49]),
    ],
)
def test_toca_is_full_at_the_steps_that_its_code_gives(interval, full):
    plan = plan_toca(50, interval)
    assert list(plan.full) == full
    assert plan.count("c") == 0
    assert PRESETS[f"toca-{interval}"].plan == plan
    duca = PRESETS[f"duca-{interval}"].plan
    assert list(duca.full) == full
    gaps = ["".join(rest) for rest in duca.states.split("F")]
    assert all(gap == ("cS" * len(gap))[: len(gap)] for gap in gaps)
    assert len(plan_toca(50, 2).full) == 26


# ------------------------------------------------------------------------------ the method
def run_by_hand(plan, ratio, first_deep):
    """ProCache on the toy, written out: kept outputs before the gate, tokens by norm and age."""
    network, given = BlockFlow(), request()
    x, grid = given.latents, given.schedule
    kept, ages = {}, {}
    for k, state in enumerate(plan):
        sigma = grid.sigmas[k]
        tokens = (x - given.cond.reshape(2, 3, 1, 1, 1)).flatten(2).transpose(1, 2)
        shifted = tokens
        gate, hidden = 0.5 + sigma, network.embed(tokens)
        for depth, block in enumerate(network.blocks):
            for name in ("attn", "mlp"):
                module, place = getattr(block, name), (depth, name)
                normed = functional.layer_norm(hidden, hidden.shape[-1:])
                if state == "F":
                    kept[place], ages[place] = module(normed), torch.zeros(2, 32)
                elif state == "S" and name == "mlp" and depth >= first_deep:
                    norms = kept[place].norm(dim=-1)
                    score = norms / norms.norm(dim=1, keepdim=True) + 0.25 * ages[place] / 4
                    ages[place] = ages[place] + 1
                    kept[place] = kept[place].clone()
                    for row in range(2):
                        best = score[row].topk(int(ratio * 32)).indices
                        kept[place][row, best] = module(normed[row : row + 1, best])[0]
                        ages[place][row, best] = 0
                hidden = hidden + gate * kept[place]
        velocity = (shifted + network.head(hidden)).transpose(1, 2).reshape(x.shape)
        x = x + (grid.sigmas[k + 1] - sigma) * velocity
    return x


@pytest.mark.parametrize("plan", ["FcScSF", "FSSSSS", "FcccFc", "FSFSSc"])
@pytest.mark.parametrize("depth", [0.0, 0.67])
def test_samples_are_those_of_a_loop_by_hand(plan, depth):
    rule = ProCache(plan=plan, depth=depth, ratio=TokenRatio(base=0.3))
    found = sample(rule, guidance=NoGuidance()).sample
    wanted = run_by_hand(plan, 0.3, first_deep=round(3 * depth))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_plan_of_full_steps_changes_no_bit():
    assert torch.equal(sample(ProCache(plan="F" * STEPS)).sample, PLAIN.sample)


def test_refreshing_every_token_of_what_is_selected_changes_no_bit():
    everything = {"ratio": TokenRatio(base=1.0), "depth": 0.0, "sites": Select(kind=("mlp",))}
    assert torch.equal(sample(ProCache(plan="FSSSSS", **everything)).sample, PLAIN.sample)


def test_modules_run_as_the_plan_says():
    network, sizes = BlockFlow(), []
    paths = [f"blocks.{k}.{part}" for k in range(3) for part in ("attn.qkv", "mlp.up")]
    counts = visits(network, *paths)
    network.blocks[2].mlp.up.register_forward_pre_hook(lambda _, g: sizes.append(g[0].shape[1]))
    rule = ProCache(plan="FcScSF", ratio=TokenRatio(base=0.25))
    found = sample(rule, network=network, guidance=NoGuidance())
    assert counts == {path: 4 if path == "blocks.2.mlp.up" else 2 for path in paths}
    assert sizes == [32, 8, 8, 32]
    assert found.trace.network_calls == STEPS


def test_a_sample_does_not_depend_on_those_beside_it():
    rule = ProCache(plan="FcScSF", depth=0.0)
    both = sample(rule).sample
    given = request()
    alone = request(1)
    object.__setattr__(alone, "latents", given.latents[1:])
    object.__setattr__(alone, "cond", given.cond[1:])
    object.__setattr__(alone, "uncond", given.uncond[1:])
    torch.testing.assert_close(sample(rule, given=alone).sample, both[1:], rtol=1e-5, atol=1e-5)


def test_beside_a_rule_that_leaves_out_steps_modules_run_at_the_next_one():
    network = BlockFlow()
    counts = visits(network, "blocks.0.attn.qkv")
    sample(
        AlternateSteps(), ProCache(plan="FccFcc"), network=network, guidance=NoGuidance()
    )  # steps 1 and 3 are left out, so that step 4 makes up for step 3
    assert counts == {"blocks.0.attn.qkv": 2}


# ---------------------------------------------------------------------------------- budgets
@pytest.mark.parametrize("work", [2.5, 3.0, 3.6])
@pytest.mark.parametrize("select", [False, True])
def test_a_budget_of_work_is_kept_and_nearly_used(work, select):
    rule = ProCache(budget={"work": work}, shortest=0, select=select, depth=0.0)
    trace = sample(rule).trace
    spent = trace.work / 4  # two branches of two samples
    assert spent <= work + 1e-6
    assert spent > work - 1.0
    assert trace.network_calls == 2 * STEPS


def test_a_budget_of_calls_is_the_number_of_full_steps():
    for calls in (2, 3):
        (plan, *_) = ProCache(budget={"calls": calls}).list_plans(STEPS)
        assert plan == PlanFamily(STEPS, calls).gradual.with_select()
    (plan, *_) = ProCache(budget={"speedup": 3.0}).list_plans(50)
    assert len(plan.full) == 16


def test_what_no_plan_can_do_is_refused():
    with pytest.raises(PolicyError, match="from 2 to 3 full steps are possible"):
        sample(ProCache(budget={"calls": 5}))
    with pytest.raises(PolicyError, match="there are at least 2; give a larger budget"):
        sample(ProCache(budget={"calls": 1}))
    with pytest.raises(PolicyError, match="the cheapest of its plans costs"):
        sample(ProCache(budget={"work": 1.1}))
    with pytest.raises(PolicyError, match="a plan of 4 steps, this run has 6"):
        sample(ProCache(plan="FcFc"))
    with pytest.raises(PolicyError, match="a plan of 50 steps, this run has 6"):
        sample(ProCache(preset="dit-xl-2"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no plan; give a plan"),
        ({"plan": "Fc", "preset": "dit-xl-2"}, "plan and preset"),
        ({"plan": "Fc", "budget": {"calls": 2}}, "plan and budget"),
        ({"preset": "dit-xl"}, "did you mean 'dit-xl-2'"),
        ({"plan": "cF"}, "begins with 'c'"),
        ({"plan": "Fc", "depth": 1.5}, "depth of ProCache is 1.5"),
        ({"plan": "Fc", "sites": Select(kind=("block",))}, "selects block"),
        ({"budget": {"psnr": 30.0}}, "calls, speedup or work"),
        ({"budget": {"calls": 2}, "shortest": 3, "longest": 2}, "gaps of ProCache"),
        ({"plan": "Fc", "ratio": TokenRatio(mlp=0.0), "score": None, "depth": -1.0}, "depth"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, said):
    with pytest.raises(PolicyError, match=said):
        ProCache(**options)
    with pytest.raises(PolicyError, match="token ratio"):
        TokenRatio(base=-0.1)


def test_a_configuration_says_the_same():
    spec = {
        "plan": "(Fc)x3",
        "ratio": {"base": 0.4, "step_weight": 0.5},
        "score": {"spread": 0.5, "cell": 2, "grid": [8, 4]},
    }
    (built,) = build_policies([{"procache": spec}])
    assert built.score == TokenScore(spread=0.5, cell=2, grid=(8, 4))
    assert built.ratio == TokenRatio(base=0.4, step_weight=0.5)
    assert options_of(built)["plan"] == "(Fc)x3"
    assert sample(built).sample.isfinite().all()


# --------------------------------------------------------------------------------- profiles
def make_profile(profiler, batch=2, network=None):
    def run(current):
        loop = SamplingLoop(Engine([current]), FlowEuler(), NoGuidance())
        return [loop.run(network or BlockFlow(), request(batch)).emitted[0]]

    return calibrate(profiler, run)


def test_the_plan_that_ends_nearest_to_the_full_run_is_chosen():
    profiler = ProCacheProfiler(full=(3, 2), shortest=0)
    profile = make_profile(profiler)
    plans = profiler.list_plans(STEPS)
    assert len(plans) == len(PlanFamily(STEPS, 3, 0).segments) + len(
        PlanFamily(STEPS, 2, 0).segments
    )
    full = sample(guidance=NoGuidance()).sample.flatten(1).double()
    errors = []
    for plan in plans:  # in closed loop, as a request runs it
        found = sample(ProCache(plan=plan.states), guidance=NoGuidance()).sample.flatten(1)
        errors.append(float(((found.double() - full).norm(dim=1) / full.norm(dim=1)).sum()))
    torch.testing.assert_close(
        profile.statistics["error"], torch.tensor(errors, dtype=torch.float64)
    )
    best = plans[errors.index(min(errors))]
    assert ProCache(profile=profile, select=False).list_plans(STEPS)[0] == best
    assert ProCache(profile=profile).list_plans(STEPS)[0] == best.with_select()
    two = [error for plan, error in zip(plans, errors, strict=True) if len(plan.full) == 2]
    (plan, *_) = ProCache(profile=profile, budget={"calls": 2}, select=False).list_plans(STEPS)
    assert errors[plans.index(plan)] == min(two)
    assert profiler.count_rounds(STEPS) == 1 + len(plans)
    assert "gaps that never grow" in profile.provenance["family"]


def test_a_profile_is_a_file_that_holds_for_its_run(tmp_path):
    profile = make_profile(ProCacheProfiler(full=(2,)))
    path = tmp_path / "plans.safetensors"
    profile.save(path)
    rule = ProCache(profile=path, budget={"work": 4.0})
    assert sample(rule, guidance=NoGuidance()).sample.isfinite().all()
    with pytest.raises(ProfileMismatchError, match="guidance"):
        sample(rule)
    with pytest.raises(PolicyError, match="its profile have at least 2"):
        ProCache(profile=profile, budget={"calls": 1}).list_plans(STEPS)


def test_profiles_of_batches_add_up_and_those_of_other_plans_are_refused():
    profile = make_profile(ProCacheProfiler(full=(2,)))
    both = Profile.merge([profile, profile])
    assert both.samples == 4
    choices = [ProCache(profile=p).list_plans(STEPS)[0] for p in (profile, both)]
    assert choices[0] == choices[1]
    other = make_profile(
        ProCacheProfiler(full=(3,), shortest=0, most=len(profile.statistics["error"]))
    )
    with pytest.raises(ProfileError, match="scored the same plans"):
        ProCache(profile=Profile.merge([profile, other])).list_plans(STEPS)


def test_another_measure_takes_a_subclass():
    class Farthest(ProCacheProfiler):
        def measure(self, cached, full):
            return (cached - full).abs().flatten(1).amax(dim=1)

    profile = make_profile(Farthest(full=(2,)))
    assert not torch.equal(
        profile.statistics["error"], make_profile(ProCacheProfiler(full=(2,))).statistics["error"]
    )


@pytest.mark.parametrize("options", [{"most": 0}, {"full": ()}, {"shortest": 3, "longest": 1}])
def test_a_profiler_of_nothing_is_refused(options):
    with pytest.raises(PolicyError, match="give at least one number of full steps"):
        ProCacheProfiler(**options)


def test_the_policy_names_its_profiler():
    assert ProCache(plan="Fc").calibrator() is None
    found = ProCache(budget={"calls": 3}, longest=5).calibrator()
    assert isinstance(found, ProCacheProfiler)
    assert (found.full, found.longest) == ((3,), 5)
    assert StepPlan.evenly(9, 3) in ProCacheProfiler().list_plans(9)
