"""The threshold from the prompt: its formula, the references, batches, and any rule inside."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework import (
    CFG,
    Engine,
    FlowEuler,
    Policy,
    Profile,
    Request,
    Result,
    Reuse,
    Sampler,
    SamplingLoop,
    Step,
    hookimpl,
)
from erta_framework.errors import CapabilityError, PolicyError, ProfileError, ProfileMismatchError
from erta_framework.session import find_text_tokens
from erta_framework.testing import GaussianMixtureFlow
from erta_policies.easycache import EasyCache
from erta_policies.ertacache import ERTACache, ResidualProfiler, SkipPolicy
from erta_policies.prompttea import PromptProfiler, PromptTeaRule, PromptThreshold
from erta_policies.prompttea._prompts import (
    COMPLEX,
    SIMPLE,
    interpolate_threshold,
    measure_complexity,
)
from erta_policies.teacache import TeaCacheRule

WIDTH = 4
FREE = ("model.class", "model.config", "model.network")
LINE = (1.0, 0.0)


class Prompted(GaussianMixtureFlow):
    """A toy whose prompts are embedded as directions between `simple` and `complex`."""

    def encode(self, prompts):  # type: ignore[no-untyped-def]
        found = []
        for prompt in prompts:
            part = float(prompt or "0")
            angle = part * math.pi / 2
            found.append([0.3 * math.cos(angle), 0.3 * math.sin(angle), 0.0, 0.0])
        return torch.tensor(found)


SHAPE = (WIDTH, 3, 3)


def references(**facts: str) -> Profile:
    """Simple prompts point along the first axis, complex ones along the second."""
    sums = torch.zeros(2, WIDTH, dtype=torch.float64)
    sums[0, 0], sums[1, 1] = 6.0, 7.0
    statistics = {"directions": sums, "samples": torch.tensor([6.0, 7.0], dtype=torch.float64)}
    return Profile("prompt_profiler", {"tokens": "valid", **facts}, statistics, samples=13)


def request(*prompts: str, steps: int = 16) -> Request:
    toy = Prompted(SHAPE)
    generator = torch.Generator().manual_seed(4)
    one = torch.randn(1, *SHAPE, generator=generator)
    return Request(
        latents=one.repeat(len(prompts), 1, 1, 1),
        cond=toy.encode(prompts),
        uncond=toy.encode([""] * len(prompts)),
        schedule=FlowEuler().schedule(steps),
    )


def around(rule: Policy, **options: Any) -> PromptThreshold:
    chosen = {
        "low": 0.06,
        "high": 0.4,
        "sharpness": 20.0,
        "references": references(),
        "allow": FREE,
    }
    return PromptThreshold(policy=rule, **{**chosen, **options})


def sample(policies: list[Policy], given: Request, guidance: Any = None) -> Result:
    toy = Prompted(SHAPE)
    result = SamplingLoop(Engine(policies), FlowEuler(), guidance or CFG(scale=1.5)).run(toy, given)
    assert toy.calls == result.trace.network_calls
    return result


# --------------------------------------------------------------------------------- formulas
@pytest.mark.parametrize(
    ("rho", "low", "high", "sharpness", "expected"),
    [
        (0.48, 0.09, 0.23, 50.0, 0.192),
        (0.50, 0.09, 0.23, 50.0, 0.160),
        (0.52, 0.09, 0.23, 50.0, 0.128),
        (0.49, 0.09, 0.17, 200.0, 0.161),
        (0.50, 0.09, 0.17, 200.0, 0.130),
        (0.51, 0.09, 0.17, 200.0, 0.100),
    ],
)
def test_thresholds_of_the_published_settings(
    rho: float, low: float, high: float, sharpness: float, expected: float
) -> None:
    """Derived from the published numbers for Wan 2.1 and HunyuanVideo."""
    assert interpolate_threshold(rho, low, high, sharpness) == pytest.approx(expected, abs=6e-4)
    weight = 1 / (1 + math.exp(-sharpness * (rho - 0.5)))
    exact = weight * low + (1 - weight) * high
    assert interpolate_threshold(rho, low, high, sharpness) == pytest.approx(exact, rel=1e-12)


def test_the_threshold_cannot_overflow_and_stays_between_its_bounds() -> None:
    assert interpolate_threshold(0.0, 0.1, 0.2, 1e6) == 0.2
    assert interpolate_threshold(1.0, 0.1, 0.2, 1e6) == pytest.approx(0.1)


def test_rho_is_that_of_mean_cosines_over_the_references() -> None:
    generator = torch.Generator().manual_seed(2)
    simple, hard, prompt = (torch.rand(n, 8, generator=generator) for n in (6, 7, 3))
    unit = torch.nn.functional.normalize
    statistics = {
        "directions": torch.stack([unit(simple).sum(0), unit(hard).sum(0)]).double(),
        "samples": torch.tensor([6.0, 7.0], dtype=torch.float64),
    }
    profile = Profile("prompt_profiler", {"tokens": "all"}, statistics, samples=13)
    cosine = torch.nn.functional.cosine_similarity
    s = torch.stack([cosine(p, simple).mean() for p in prompt])
    c = torch.stack([cosine(p, hard).mean() for p in prompt])
    expected = (c / (s + c + 1e-6)).tolist()
    assert measure_complexity(prompt, profile) == pytest.approx(expected, rel=1e-5)


def test_our_reference_prompts_are_six_and_seven() -> None:
    assert (len(set(SIMPLE)), len(set(COMPLEX))) == (6, 7)
    assert max(map(len, SIMPLE)) < min(map(len, COMPLEX))


def test_text_is_where_the_mask_says_so_else_where_it_is_not_zero() -> None:
    embedded = torch.tensor([[[1.0, 0.0], [2.0, 1.0], [0.0, 0.0]]])
    assert find_text_tokens(embedded).tolist() == [[True, True, False]]
    assert find_text_tokens(embedded, torch.tensor([[1, 0, 0]])).tolist() == [[True, False, False]]
    assert find_text_tokens(embedded, torch.tensor([[0.0, 0.0, -1e4]])).tolist() == [
        [True, True, False]
    ]
    assert find_text_tokens(embedded, torch.tensor([[True, False, True]])).tolist() == [
        [True, False, True]
    ]


# ------------------------------------------------------------------------------------ rules
RULES = [
    TeaCacheRule(coefficients=LINE, signal="latents", per_sample=False, threshold=9.0),
    PromptTeaRule(coefficients=(0.0, 1.0, *(0.0,) * 10), signal="latents", threshold=9.0),
    EasyCache(warmup=2, per_sample=False),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("prompt", ["0.1", "0.5", "0.9"])
def test_it_is_the_rule_with_the_threshold_of_the_prompt(rule: Any, prompt: str) -> None:
    angle = float(prompt) * math.pi / 2
    rho = math.sin(angle) / (math.sin(angle) + math.cos(angle))
    fixed = dataclasses.replace(rule, threshold=interpolate_threshold(rho, 0.06, 0.4, 20.0))
    given = request(prompt)
    one, other = sample([around(rule)], given), sample([fixed], given)
    assert torch.equal(one.sample, other.sample)
    assert one.trace.computed_steps == other.trace.computed_steps
    assert one.trace.reused_calls > 0


def test_complex_prompts_compute_more() -> None:
    counts = [
        sample([around(RULES[0])], request(prompt)).trace.network_calls
        for prompt in ("0.1", "0.5", "0.9")
    ]
    assert counts == sorted(counts)
    assert len(set(counts)) == 3


def test_the_smallest_threshold_serves_a_batch_unless_each_has_its_own() -> None:
    alone = {p: sample([around(RULES[0])], request(p)).trace for p in ("0.1", "0.9")}
    given = request("0.1", "0.9")
    # the latents are alike, so that only thresholds differ
    together = sample([around(RULES[0])], given).trace
    assert together.calls_for(0) == together.calls_for(1)
    assert all("threshold" in c.reason for c in together.calls() if c.index > 0)
    rule = TeaCacheRule(coefficients=LINE, signal="latents", threshold=9.0)
    each = sample([around(rule)], given).trace
    assert [each.calls_for(0), each.calls_for(1)] == [alone[p].network_calls for p in alone]
    assert each.calls_for(0) < each.calls_for(1)
    explicit = sample([around(RULES[0], each_sample=True)], given).trace
    assert explicit.calls_for(0) < explicit.calls_for(1)


def test_the_prompt_is_that_of_the_named_branch_or_half() -> None:
    given = request("0.9")
    first = sample([around(RULES[0])], given)
    named = sample([around(RULES[0], branch="cond")], given)
    assert torch.equal(first.sample, named.sample)
    other = sample([around(RULES[0], branch="uncond")], given).trace
    assert other.network_calls < first.trace.network_calls  # the empty prompt is a simple one
    batched = CFG(scale=1.5, batched=True)
    half = sample([around(RULES[0], half="first")], given, batched).trace
    whole = sample([around(RULES[0])], given, batched).trace
    wrong = sample([around(RULES[0], half="second")], given, batched).trace
    assert half.network_calls == whole.network_calls  # the smallest of both is the prompt's
    assert wrong.network_calls < half.network_calls


def test_each_request_has_its_own_threshold() -> None:
    engine = Engine([around(RULES[0])])
    loop = SamplingLoop(engine, FlowEuler(), CFG(scale=1.5))
    expected = {p: sample([around(RULES[0])], request(p)) for p in ("0.1", "0.9")}
    for prompt in ("0.1", "0.9", "0.1"):
        made = loop.run(Prompted(SHAPE), request(prompt))
        assert torch.equal(made.sample, expected[prompt].sample)


def test_a_static_rule_becomes_one_that_follows_the_prompt() -> None:
    profile = sample([ResidualProfiler()], request("0.5")).emitted[0]
    rule = SkipPolicy(profile=profile, threshold=0.1)
    policy = around(rule, low=0.01, high=0.5)
    assert rule.traits.static
    assert not policy.traits.static
    counts = [sample([policy], request(p)).trace.network_calls for p in ("0.1", "0.9")]
    assert counts[0] < counts[1]


# --------------------------------------------------------------------------------- refusals
def test_rules_without_a_threshold_are_refused() -> None:
    class Ends(Policy):
        threshold: float = 0.1

        @hookimpl
        def decide(self, step: Step) -> Reuse:
            return Reuse("never asked")

        @hookimpl
        def post_step(self, sample: Tensor) -> None:
            """Something else."""

    with pytest.raises(PolicyError, match="has no setting threshold"):
        around(NoThreshold())
    with pytest.raises(PolicyError, match="also answers post_step"):
        around(Ends())
    with pytest.raises(PolicyError, match="stands for several policies"):
        around(ERTACache(profile="p", calls=3))
    with pytest.raises(PolicyError, match=r"low 0\.5, high 0\.1"):
        around(RULES[0], low=0.5, high=0.1)
    with pytest.raises(PolicyError, match=r"sharpness 0\.0"):
        around(RULES[0], sharpness=0.0)


class NoThreshold(Policy):
    """Decides by nothing."""

    @hookimpl
    def decide(self) -> Reuse:
        return Reuse("always")


def test_references_must_be_those_of_this_run() -> None:
    with pytest.raises(PolicyError, match="averages all tokens, its references were averaged over"):
        Engine([around(RULES[0], tokens="all")])
    wide = references()
    wide.statistics["directions"] = torch.zeros(2, 9, dtype=torch.float64)  # type: ignore[index]
    with pytest.raises(ProfileError, match="embedded in 9 dimensions, this run's prompts have 4"):
        sample([around(RULES[0], references=wide)], request("0.5"))
    lone = references()
    lone.statistics["samples"][1] = 0
    with pytest.raises(ProfileError, match="6 simple and 0 complex"):
        sample([around(RULES[0], references=lone)], request("0.5"))
    other = references(**{"model.config": "another"})
    with pytest.raises(ProfileMismatchError, match=r"model\.config: profile 'another'"):
        sample([around(RULES[0], references=other, allow=())], request("0.5"))
    with pytest.raises(
        CapabilityError, match=r"branch 'positive', but the branches .* cond, uncond"
    ):
        sample([around(RULES[0], branch="positive")], request("0.5"))


# ------------------------------------------------------------------------------ calibration
def test_references_are_embedded_through_the_sampler_and_merge() -> None:
    model = Prompted(SHAPE)
    profiler = PromptProfiler(simple=("0.0", "0.2"), complex=("0.8", "0.9", "1.0"))
    sampler = Sampler(num_steps=1, guidance=CFG(scale=1.5), batch_size=2)
    profile = sampler.calibrate(model, profiler.calibration_prompts, profiler=profiler)
    unit = torch.nn.functional.normalize(model.encode(profiler.calibration_prompts).double(), dim=1)
    expected = torch.stack([unit[:2].sum(0), unit[2:].sum(0)])
    assert torch.allclose(profile.statistics["directions"], expected, atol=1e-6)
    assert profile.statistics["samples"].tolist() == [2.0, 3.0]
    assert {"num_steps", "guidance", "sigma_grid"}.isdisjoint(profile.fingerprint)
    policy = PromptThreshold(policy=RULES[0], references=profile, low=0.02, high=0.4)
    sampled = Sampler([policy], num_steps=12, guidance=CFG(scale=2.0))
    counts = [sampled.sample(model, [p]).network_calls for p in ("0.1", "0.9")]
    assert counts[0] < counts[1]


def test_prompts_of_neither_set_are_refused() -> None:
    profiler = PromptProfiler(simple=("0.0",), complex=("1.0",))
    sampler = Sampler(num_steps=1, guidance=CFG(scale=1.5))
    with pytest.raises(PolicyError, match=r"this request has '0\.5', which is in neither set"):
        sampler.calibrate(Prompted(SHAPE), ["0.5"], profiler=profiler)
    with pytest.raises(PolicyError, match="this request has no prompts"):
        sample([profiler], request("0.0"))
    with pytest.raises(PolicyError, match="1 of them in both"):
        PromptProfiler(simple=("a",), complex=("a", "b"))
    batched = Sampler(num_steps=1, guidance=CFG(scale=1.5, batched=True))
    with pytest.raises(CapabilityError, match="give half='first' or 'second'"):
        batched.calibrate(Prompted(SHAPE), ["0.0"], profiler=profiler)
    halved = PromptProfiler(simple=("0.0",), complex=("1.0",), half="first")
    made = batched.calibrate(Prompted(SHAPE), ["0.0", "1.0"], profiler=halved)
    assert made.statistics["samples"].tolist() == [1.0, 1.0]
