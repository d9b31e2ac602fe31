"""Budgets beside policies, what is chosen without any, plans that fall short, and short forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from erta_framework import Sampler
from erta_framework.budgets import forecast, promise
from erta_framework.config import build_policy, build_run
from erta_framework.errors import (
    CapabilityError,
    ConfigError,
    ErtaError,
    InputError,
    PolicyError,
    UnusedWarning,
)
from erta_framework.plugins import (
    NetworkFacts,
    PipelineFacts,
    describe_policy,
    list_budgeted,
    load_chooser,
)
from erta_framework.session import CallTrace, explain_reason
from erta_framework.testing import GaussianMixtureFlow
from erta_policies.automatic import choose, list_known, recognise
from erta_policies.constants import models
from erta_policies.easycache import EasyCache
from erta_policies.ertacache import SkipPolicy
from erta_policies.meancache import MeanCache
from erta_policies.spectrum import Spectrum
from erta_policies.taylorseer import RefreshInterval, TaylorSeer

WAN = {"num_layers": 30, "num_attention_heads": 12, "in_channels": 16}
BOTH = frozenset({"latent", "trunk"})


def facts(kind: str, pipeline: str, config: dict[str, object], *names: str) -> PipelineFacts:
    network = NetworkFacts(kind, config, BOTH)
    return PipelineFacts(pipeline, {"transformer": network}, names, num_steps=50)


# ------------------------------------------------------------------------ budgets
@pytest.mark.parametrize(
    ("budget", "calls"), [({"speedup": 2}, 10), ({"calls": 7}, 7), ({"quality": "low"}, 5)]
)
def test_a_budget_beside_nothing_chooses_a_rule_without_a_profile(budget, calls):
    model = GaussianMixtureFlow()
    sampler = Sampler(num_steps=20, **budget)
    trace = sampler.sample(model, ["one"]).traces[0]
    assert len(trace.computed_steps) == calls
    run = build_run({"steps": 20, **budget})
    assert forecast(run.policies, 20).calls == calls


def test_a_budget_goes_to_the_first_policy_that_takes_one():
    policies = [EasyCache(), TaylorSeer()]
    assert Sampler(policies, num_steps=20, calls=6).policies[1].plan(20).calls == 6
    run = build_run({"policies": ["easycache", {"taylorseer": {"order": 2}}], "calls": 6})
    assert run.policies[1].plan(20).calls == 6
    assert run.policies[1].order == 2


def test_what_takes_no_budget_is_named():
    with pytest.raises(PolicyError, match=r"speedup=2 was asked of easy_cache.*taylorseer"):
        Sampler([EasyCache()], speedup=2)
    with pytest.raises(ConfigError, match="give one of the two"):
        build_run({"policies": [{"taylorseer": {"budget": {"calls": 4}}}], "calls": 6})
    with pytest.raises(PolicyError, match="no quality 'best'"):
        build_run({"quality": "best"})
    with pytest.raises(PolicyError, match="needs a profile"):
        build_run({"policies": ["taylorseer"], "quality": "high"})
    with pytest.raises(InputError, match="a sampler has no speed;"):
        Sampler(speed=2)
    with pytest.raises(CapabilityError, match="4 steps of Sampler are too few"):
        Sampler(num_steps=4, speedup=2)


def test_a_plan_that_falls_short_says_so_and_who_does_not():
    short = Spectrum(budget={"calls": 28})
    assert short.plan(50).calls == 27
    said = promise([short], 50)
    assert "asked 28 calls, got 27: no setting of spectrum makes 28 of 50; exactly 28 make" in said
    assert "taylorseer" in said.partition("exactly")[2]
    assert "asked" not in promise([Spectrum(budget={"calls": 20})], 50)


def test_policies_that_say_so_make_exactly_the_calls_that_they_plan():
    short = {}
    for name in list_budgeted(exact=True):
        for calls in (4, 7, 13, 22):
            try:
                policy = build_policy({name: {"budget": {"calls": calls}}}, where="test")
                made = forecast([policy], 24).calls
            except ErtaError:  # it needs a profile, or forces more steps
                continue
            if made != calls:
                short[name] = (calls, made)
    assert short == {}


# ------------------------------------------------------------------------ what is chosen
def test_every_known_model_has_constants_that_ship():
    for known in list_known():
        for method, name in known.constants.items():
            if method != "meancache":
                assert name in models(method)
            else:
                MeanCache(model=name, calls=25)


def test_a_name_alone_decides_nothing_and_a_configuration_may():
    wan = facts("WanTransformer3DModel", "WanPipeline", WAN)
    found = recognise(wan)
    assert found is not None
    assert found.model.model == "wan2.1-t2v-1.3b"
    small = {**WAN, "num_layers": 2}
    named = facts("WanTransformer3DModel", "WanPipeline", small, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    assert recognise(named) is None


def test_models_that_share_a_configuration_are_told_apart_by_name():
    config = {"num_layers": 40, "num_attention_heads": 40, "in_channels": 36}
    kind, pipeline = "WanTransformer3DModel", "WanImageToVideoPipeline"
    assert recognise(facts(kind, pipeline, config)) is None
    cached = "/root/hub/models--Wan-AI--Wan2.1-I2V-14B-720P-Diffusers/snapshots/0123/transformer"
    found = recognise(facts(kind, pipeline, config, cached))
    assert found is not None
    assert found.model.model == "wan2.1-i2v-14b-720p"


def test_a_released_table_only_where_it_fits():
    choose = load_chooser()
    qwen = facts("QwenImageTransformer2DModel", "QwenImagePipeline", {"num_layers": 60})
    for budget, calls in (({}, 25), ({"calls": 10}, 10), ({"speedup": 2}, 25)):
        (policy,) = choose(qwen, budget).policies
        assert isinstance(policy, MeanCache)
        assert policy.plan(50).calls == calls
    for calls in (12, 19):
        every, _ = choose(qwen, {"calls": calls}).policies
        assert isinstance(every, RefreshInterval)
        assert every.plan(50).computed == SkipPolicy(evenly=calls).plan(50).computed
    choice = choose(PipelineFacts(qwen.pipeline, qwen.networks, num_steps=30, seam="latent"), {})
    assert isinstance(choice.policies[0], RefreshInterval)
    assert "seam='latent' was asked for" in choice.why


def test_models_of_a_few_steps_are_refused_by_what_shows_it():
    choose = load_chooser()
    flux = {"num_layers": 19, "guidance_embeds": False}
    for one, sign in (
        (facts("FluxTransformer2DModel", "FluxPipeline", flux), "guidance_embeds"),
        (facts("X", "P", {}, "owner/SDXL-Turbo"), "'turbo' in the name"),
        (PipelineFacts("P", scheduler="LCMScheduler"), "its LCMScheduler"),
        (PipelineFacts("P", distilled=True), "is_distilled"),
        (PipelineFacts("P", {"unet": NetworkFacts("U", adapters=("lcm-lora",))}), "the adapter"),
    ):
        with pytest.raises(CapabilityError, match=sign):
            choose(one, {})


# ------------------------------------------------------------------------ what is shown
def test_short_forms():
    samples = Sampler([TaylorSeer()], num_steps=12, calls=6).sample(GaussianMixtureFlow(), ["one"])
    assert repr(samples.traces[0]).startswith("Trace(batch-0: 12 network calls, 12 reused, 6 of 12")
    assert len(repr(samples)) < 120
    strip = samples._repr_html_()
    assert strip.count("<span") == 12
    assert "nothing cached yet (cold)" in strip
    assert describe_policy(TaylorSeer(order=2)) == "TaylorSeer(order=2)"


def test_a_reason_from_outside_is_escaped():
    trace = Sampler(num_steps=2).sample(GaussianMixtureFlow(), ["one"]).traces[0]
    trace.request_id = "<script>"
    assert "<script>" not in trace._repr_html_()


@pytest.mark.parametrize(
    ("reason", "computed", "said"),
    [
        ("error 0.0421 < 0.0700", False, "error below the threshold"),
        ("predicted change 0.09", True, "predicted change above the threshold"),
        ("cold", True, "nothing cached yet"),
        ("3 reused in a row", True, "3 reused in a row"),
        ("mine", False, "mine"),
    ],
)
def test_reasons_in_plain_words(reason, computed, said):
    assert explain_reason(CallTrace(0, "all", "net", computed, reason, 0, 0.0)) == said


def test_a_run_in_which_nothing_was_reused_warns():
    sampler = Sampler([EasyCache(threshold=0.0, warmup=1)], num_steps=6)
    with pytest.warns(UnusedWarning, match="nothing was reused in 1 batches, although easy_cache"):
        sampler.sample(GaussianMixtureFlow(), ["one"])
    assert torch.isfinite(Sampler(num_steps=3).sample(GaussianMixtureFlow(), ["one"]).samples).all()


@pytest.mark.parametrize("budget", [{"speedup": {"a": 1}}, {"calls": "five"}, {"calls": True}])
def test_a_budget_that_is_no_number_is_refused(budget: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match="it must be a number"):
        choose(PipelineFacts("MyPipeline"), budget)
