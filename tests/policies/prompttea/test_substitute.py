"""One branch stands in for another: the published counts, the bookkeeping and the refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework import CFG, Engine, FlowEuler, NoGuidance, Policy, Request, Result, SamplingLoop
from erta_framework.errors import CapabilityError, PolicyError, ProfileError
from erta_framework.sampling.guidance import Branch
from erta_framework.testing import GaussianMixtureFlow, toy_profile
from erta_framework.testing._setup import FLOW
from erta_policies.adapters import MaxConsecutive, WarmUp
from erta_policies.constants import read_published
from erta_policies.easycache import EasyCache
from erta_policies.ertacache import SkipPolicy
from erta_policies.forecast import Forecaster
from erta_policies.prompttea import BranchSubstitute, CodebookProfiler
from erta_policies.prompttea._codebook import (
    find_real_steps,
    load_published_codebook,
    read_codebook,
)
from erta_policies.teacache import TeaCacheRule

SHAPE = (3, 2, 4, 4)
FLAT = (0.2,) * 10


def request(steps: int = 10, batch: int = 2, seed: int = 3) -> Request:
    toy = GaussianMixtureFlow(SHAPE)
    generator = torch.Generator().manual_seed(seed)
    return Request(
        latents=torch.randn(batch, *SHAPE, generator=generator),
        cond=toy.encode([f"prompt {k}" for k in range(batch)]),
        uncond=toy.encode([""] * batch),
        schedule=FlowEuler().schedule(steps),
    )


def sample(policies: list[Policy], given: Request, guidance: Any = None) -> Result:
    toy = GaussianMixtureFlow(SHAPE)
    loop = SamplingLoop(Engine(policies), FlowEuler(), guidance or CFG(scale=2.0))
    result = loop.run(toy, given)
    assert toy.calls == result.trace.network_calls
    return result


def computed(result: Result, branch: str) -> list[int]:
    return [c.index for c in result.trace.calls() if c.branch == branch and c.computed]


# ------------------------------------------------------------------------ published codebooks
GOLDEN = {
    "wan2.1-t2v-14b": (27, [*range(11), *range(12, 29, 2), *range(31, 50, 3)]),
    "wan2.2-t2v-a14b": (33, [*range(26), *range(27, 40, 2)]),
    "cogvideox1.5-5b": (33, [*range(17), *range(18, 49, 2)]),
}
"""How often the second branch really runs where every step is computed; derived, not published."""


@pytest.mark.parametrize("model", GOLDEN)
def test_published_codebooks_run_the_second_branch_so_often(model: str) -> None:
    count, steps = GOLDEN[model]
    book = load_published_codebook(model)
    assert book.threshold is not None
    assert find_real_steps(book.values, book.threshold) == tuple(steps)
    assert len(steps) == count
    result = sample([BranchSubstitute(model=model)], request(steps=len(book.values), batch=1))
    assert computed(result, "uncond") == steps
    assert computed(result, "cond") == list(range(len(book.values)))
    assert result.trace.network_calls == len(book.values) + count
    reasons = {c.reason.partition(",")[0] for c in result.trace.calls() if not c.computed}
    assert reasons == {"cond stands in"}


def test_the_published_numbers_are_where_they_were_read() -> None:
    found = read_published("prompttea", "wan2.1-t2v-14b")
    assert found["license"].startswith("Apache-2.0")
    assert (found["repository"], found["revision"]) == ("zishen-ucap/PromptTea", "131828f")
    ends = {"wan2.1-t2v-14b": (0.255, 0.0125), "wan2.2-t2v-a14b": (0.122, 0.0312)}
    for model, (first, last) in {**ends, "cogvideox1.5-5b": (0.328, 0.01495)}.items():
        values = load_published_codebook(model).values
        assert values[0] == pytest.approx(first, abs=6e-4)
        assert values[-1] == pytest.approx(last, abs=6e-5)
    with pytest.raises(PolicyError, match="no codebook was published for 'hunyuanvideo'"):
        Engine([BranchSubstitute(model="hunyuanvideo")])
    with pytest.raises(PolicyError, match=r"'mochi' \(there are: cogvideox1.5-5b, hunyuanvideo"):
        Engine([BranchSubstitute(model="mochi")])


# --------------------------------------------------------------------------- what is answered
def literal(
    given: Request, every: int, book: tuple[float, ...], tau: float, script: bool
) -> Tensor:
    """DynCFGCache over a schedule that computes every n-th step, written down plainly.

    Residuals are kept for each branch, the conditional one stands in for the other, and what it
    gives is kept as the other's. With `script` the sum is started anew as the Wan 2.1 script does.
    """
    network, schedule = GaussianMixtureFlow(SHAPE), given.schedule
    assert given.uncond is not None
    x, total, last = given.latents, 0.0, schedule.num_steps - 1
    cond = uncond = torch.zeros_like(x)
    for i in range(schedule.num_steps):
        time = torch.full((x.shape[0],), schedule.times[i])
        compute = i % every == 0 or i == last
        due = True
        if script or compute:
            total += book[i]
            due = i == 0 or total >= tau
        if compute:
            cond = network(x, time, given.cond) - x
            uncond = (network(x, time, given.uncond) - x) if due else cond
        if due and (compute or script):
            total = 0.0
        v = (x + uncond) + 2.0 * ((x + cond) - (x + uncond))
        x = x + (schedule.sigmas[i + 1] - schedule.sigmas[i]) * v
    return x


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("counting", ["computed", "script"])
def test_the_latents_of_the_plain_loop(every: int, counting: Any) -> None:
    given, book = request(steps=12), tuple(0.05 * (1 + k % 4) for k in range(12))
    policy = BranchSubstitute(codebook=book, threshold=0.22, counting=counting)
    result = sample([policy, SkipPolicy(every=every)], given)
    expected = literal(given, every, book, 0.22, counting == "script")
    assert torch.allclose(result.sample, expected, atol=2e-5)
    assert len(computed(result, "uncond")) < len(computed(result, "cond"))


def test_the_script_loses_a_refresh_that_falls_on_a_reused_step() -> None:
    # due at every second step, which are the reused ones
    rule = SkipPolicy(every=2)
    ours = sample([BranchSubstitute(codebook=FLAT, threshold=0.4), rule], request())
    theirs = sample(
        [BranchSubstitute(codebook=FLAT, threshold=0.4, counting="script"), rule], request()
    )
    assert computed(ours, "cond") == computed(theirs, "cond") == [0, 2, 4, 6, 8, 9]
    assert computed(ours, "uncond") == [0, 4, 8]
    assert computed(theirs, "uncond") == [0, 2, 4, 6, 8]


def test_reused_steps_go_on_with_what_stood_in_until_the_branch_ran() -> None:
    rule = SkipPolicy(every=3)
    result = sample([BranchSubstitute(codebook=FLAT, threshold=0.4), rule], request())
    sources = {
        c.index: (c.source_branch, c.source) for c in result.trace.calls() if c.branch == "uncond"
    }
    assert sources[3] == sources[4] == sources[5] == ("cond", 3)
    assert sources[6] == (None, None)
    assert sources[7] == sources[8] == (None, 6)
    assert sources[9] == ("cond", 9)


def test_at_the_latent_seam_guidance_is_off_where_a_branch_stands_in() -> None:
    """Both branches have the same input there, so that one is given the other's output."""

    class Watched(CFG):
        def combine(self, outputs):  # type: ignore[no-untyped-def]
            apart.append(float((outputs["cond"] - outputs["uncond"]).abs().max()))
            return super().combine(outputs)

    apart: list[float] = []
    policy = BranchSubstitute(codebook=FLAT, threshold=0.5)
    result = sample([policy], request(), Watched(scale=2.0))
    real = set(computed(result, "uncond"))
    assert real == {0, 3, 6, 9}
    assert all((gap > 1e-3) == (index in real) for index, gap in enumerate(apart))
    assert max(gap for index, gap in enumerate(apart) if index not in real) < 1e-5


def test_nothing_left_out_is_bit_identical() -> None:
    given = request()
    full = sample([], given)
    made = sample([BranchSubstitute(codebook=FLAT, threshold=0.2)], given)
    assert torch.equal(made.sample, full.sample)
    assert made.trace.reused_calls == 0


def test_limits_listed_before_it_overrule_it_and_those_after_do_not() -> None:
    policy = BranchSubstitute(codebook=FLAT, threshold=9.0)
    assert computed(sample([policy, WarmUp(steps=4)], request()), "uncond") == [0]
    policy = BranchSubstitute(codebook=FLAT, threshold=9.0)
    assert computed(sample([WarmUp(steps=4), policy], request()), "uncond") == [0, 1, 2, 3]
    policy = BranchSubstitute(codebook=FLAT, threshold=9.0)
    limited = sample([MaxConsecutive(steps=2), policy], request())
    assert computed(limited, "uncond") == [0, 3, 6, 9]


def test_a_codebook_of_other_steps_is_stretched_and_the_trace_says_so() -> None:
    policy = BranchSubstitute(codebook=(0.3, 0.1), threshold=0.35)
    result = sample([policy], request())
    # 0.3 for the first half, 0.1 for the second: 0, then 2 (0.6), 4 (0.6), 8 (0.4)
    assert computed(result, "uncond") == [0, 2, 4, 8]
    reasons = [c.reason for c in result.trace.calls() if not c.computed]
    assert all(reason.endswith("codebook of 2 steps") for reason in reasons)


def test_the_guidance_interval_leaves_the_other_steps_alone() -> None:
    policy = BranchSubstitute(codebook=FLAT, threshold=0.5)
    result = sample([policy], request(), CFG(scale=2.0, start=0.3, stop=0.8))
    assert computed(result, "cond") == list(range(10))
    assert computed(result, "uncond") == [3, 6]


# ------------------------------------------------------------------------------- composition
@pytest.mark.parametrize(
    "rule",
    [
        EasyCache(threshold=0.3, warmup=2),
        TeaCacheRule(coefficients=(1.0, 0.0), threshold=0.2, signal="latents"),
        TeaCacheRule(coefficients=(1.0, 0.0), threshold=0.2, signal="latents", per_sample=False),
    ],
)
def test_any_rule_may_decide_behind_it(rule: Policy) -> None:
    """The first branch decides for both, also under rules that would ask each, and per sample."""
    given = request(steps=14)
    alone = sample([rule], given, CFG(scale=2.0, stop=0.0))
    result = sample([BranchSubstitute(codebook=(0.2,) * 14, threshold=0.5), rule], given)
    cond, uncond = computed(result, "cond"), computed(result, "uncond")
    assert set(uncond) < set(cond)
    assert len(alone.trace.steps) == 14
    assert result.sample.isfinite().all()
    samples = sum(len(c.rows or (0, 1)) for c in result.trace.calls() if c.computed)
    assert result.trace.network_samples == samples


def test_a_forecast_of_what_stands_in_is_what_stands_in() -> None:
    given = request()
    policy = BranchSubstitute(codebook=FLAT, threshold=0.5)
    plain = sample([policy], given)
    forecast = sample([policy, Forecaster(order=1, what="residual")], given)
    assert torch.allclose(plain.sample, forecast.sample, atol=1e-6)
    assert computed(plain, "uncond") == computed(forecast, "uncond")


# --------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no codebook"),
        ({"model": "wan2.1-t2v-14b", "codebook": FLAT}, "model and codebook"),
        ({"codebook": ()}, "a number >= 0 for each step"),
        ({"codebook": (0.1, -0.1)}, "a number >= 0 for each step"),
        ({"codebook": FLAT, "threshold": -1.0}, "threshold of BranchSubstitute is -1.0"),
        ({"codebook": FLAT, "threshold": 1.0, "branch": "cond"}, "cannot stand in for itself"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        BranchSubstitute(**options)


def test_a_threshold_is_needed() -> None:
    with pytest.raises(PolicyError, match="needs threshold"):
        Engine([BranchSubstitute(codebook=FLAT)])


@pytest.mark.parametrize(
    ("guidance", "branches"), [(NoGuidance(), "cond"), (CFG(batched=True), r"cond\+uncond")]
)
def test_guidance_without_two_calls_is_refused_before_the_first(
    guidance: Any, branches: str
) -> None:
    toy = GaussianMixtureFlow(SHAPE)
    policy = BranchSubstitute(codebook=FLAT, threshold=0.5)
    loop = SamplingLoop(Engine([policy]), FlowEuler(), guidance)
    with pytest.raises(
        CapabilityError, match=f"the branches of this run are {branches}; .*batched"
    ):
        loop.run(toy, request())
    assert toy.calls == 0


def test_the_branch_that_stands_in_is_called_first() -> None:
    class Reversed(CFG):
        def branches(self, *args: Any) -> tuple[Branch, ...]:
            return super().branches(*args)[::-1]

    toy = GaussianMixtureFlow(SHAPE)
    policy = BranchSubstitute(codebook=FLAT, threshold=0.5)
    loop = SamplingLoop(Engine([policy]), FlowEuler(), Reversed(scale=2.0))
    with pytest.raises(PolicyError, match=r"'cond' to be called before 'uncond'.*order is uncond"):
        loop.run(toy, request())
    assert toy.calls == 0


# ------------------------------------------------------------------------------ calibration
def test_the_profiler_measures_the_residuals_of_both_branches() -> None:
    profile = toy_profile(CodebookProfiler(), seeds=(11,))
    book = read_codebook(profile)
    assert len(book.values) == 10
    expected = []
    request_, toy = FLOW.request(seed=11), FLOW.toy()
    x = request_.latents
    for i in range(10):
        interval = request_.schedule.interval(i)
        time = torch.full((2,), interval.time)
        given = {
            "cond": toy(x, time, request_.cond) - x,
            "uncond": toy(x, time, request_.uncond) - x,
        }
        gap = (given["uncond"] - given["cond"]).abs().flatten(1).mean(1)
        expected.append((gap / given["cond"].abs().flatten(1).mean(1)).mean().item())
        v = FLOW.guidance.combine({name: x + r for name, r in given.items()})
        x = x + (interval.end - interval.start) * v
    assert book.values == pytest.approx(expected, rel=1e-4)
    twice = type(profile).merge([profile, profile])
    assert read_codebook(twice).values == pytest.approx(book.values, rel=1e-12)


def test_a_codebook_of_other_branches_or_with_gaps_is_refused() -> None:
    profile = toy_profile(CodebookProfiler())
    with pytest.raises(PolicyError, match="its codebook compares cond,uncond"):
        Engine([BranchSubstitute(profile=profile, threshold=1.0, branch="slg")])
    profile.statistics["samples"][4:6] = 0
    with pytest.raises(ProfileError, match=r"at steps \[4, 5\]"):
        Engine([BranchSubstitute(profile=profile, threshold=1.0)])
