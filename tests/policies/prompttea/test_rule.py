"""PromptTea's regression: published numbers, the fit, the rule on a toy and in tiny pipelines."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from erta_framework import (
    CFG,
    Engine,
    FlowEuler,
    NoGuidance,
    Policy,
    Profile,
    Request,
    Result,
    SamplingLoop,
)
from erta_framework.errors import CapabilityError, PolicyError, ProfileError, ProfileMismatchError
from erta_framework.plugins import flatten
from erta_framework.testing import GaussianMixtureFlow, toy_profile
from erta_policies.constants import models
from erta_policies.prompttea import (
    BranchSubstitute,
    PromptTea,
    PromptTeaRule,
    PromptThreshold,
    RegressionProfiler,
)
from erta_policies.prompttea._regression import (
    Regression,
    explain_variance,
    fit_regression,
    load_published_regression,
)
from erta_policies.shared._change_profiler import ChangeSums
from erta_policies.teacache import TeaCacheRule

SHAPE = (3, 2, 4, 4)
PLANE = (0.0, 1.0, *(0.0,) * 10)
"""The predicted change is the signal's."""


def request(steps: int = 20, batch: int = 2, seed: int = 3) -> Request:
    toy = GaussianMixtureFlow(SHAPE)
    generator = torch.Generator().manual_seed(seed)
    return Request(
        latents=torch.randn(batch, *SHAPE, generator=generator),
        cond=toy.encode([f"prompt {k}" for k in range(batch)]),
        uncond=toy.encode([""] * batch),
        schedule=FlowEuler().schedule(steps),
    )


def sample(policies: list[Policy], given: Request, guidance: Any = None) -> Result:
    loop = SamplingLoop(Engine(policies), FlowEuler(), guidance or NoGuidance())
    return loop.run(GaussianMixtureFlow(SHAPE), given)


# -------------------------------------------------------------------------- published numbers
def test_published_regressions_are_those_of_the_repository() -> None:
    """The seven digits that were read, at the places that the feature order gives them."""
    wan = load_published_regression("wan2.1-t2v-14b", None)
    assert wan.intercept == pytest.approx(1.1037525)
    assert wan.coefficients == pytest.approx(
        [
            *(0, -51.35488, -0.1296775, 1206.7644, 0.00768878, 1.1298661, -3876.1081),
            *(-0.000203359, -9.9233097, -0.0189046633, -636.17685, 2.0273753e-06),
        ],
        rel=1e-5,
    )
    hunyuan = load_published_regression("hunyuanvideo", None)
    assert hunyuan.intercept == pytest.approx(-0.0152607174)
    assert hunyuan.coefficients[10:] == pytest.approx((1979.6396, 9.033684e-08), rel=1e-6)
    high, low = (
        load_published_regression("wan2.2-t2v-a14b", name)
        for name in ("transformer", "transformer_2")
    )
    assert (high.intercept, low.intercept) == pytest.approx((0.18351357, -5.0126751), rel=1e-6)
    thresholds = {"wan2.1-t2v-14b": 0.2, "hunyuanvideo": 0.15, "cogvideox1.5-5b": 0.2}
    assert set(models("prompttea")) == {*thresholds, "wan2.2-t2v-a14b"}
    for model, threshold in thresholds.items():
        assert PromptTeaRule(model=model).effective_threshold == threshold
    assert (high.threshold, low.threshold) == (0.5, 0.4)
    assert (high.steps, wan.steps, wan.signal) == (40, 50, "timestep_projection")
    assert hunyuan.signal == "timestep_embedding"


def test_the_value_is_the_written_out_sum() -> None:
    found = load_published_regression("cogvideox1.5-5b", None)
    x, t, a = 0.03, 17.0, found.coefficients
    features = [1, x, t, x**2, t**2, x * t, x**3, t**3, x**2 * t, x * t**2, x**4, t**4]
    expected = found.intercept + sum(c * f for c, f in zip(a, features, strict=True))
    assert found.change(x, t) == pytest.approx(expected, rel=1e-12)
    assert found.change(math.inf, t) == math.inf


def test_two_networks_need_a_name_each() -> None:
    with pytest.raises(PolicyError, match="each of its networks transformer, transformer_2"):
        Engine([PromptTeaRule(model="wan2.2-t2v-a14b")])
    rules = [
        p for p in flatten([PromptTea(model="wan2.2-t2v-a14b")]) if isinstance(p, PromptTeaRule)
    ]
    assert [rule.effective_threshold for rule in rules] == [0.5, 0.4]


def test_other_numbers_of_steps_stretch_the_index_and_say_so() -> None:
    found = load_published_regression("wan2.1-t2v-14b", None)
    assert [found.position(i, 50) for i in (0, 7, 49)] == [0.0, 7.0, 49.0]
    assert [found.position(i, 25) for i in (0, 12, 24)] == pytest.approx([0.0, 24.5, 49.0])
    assert "stretched from 25 steps to 50" in found.doubts([0.01], [0.1], 25)
    assert found.doubts([0.01], [0.1], 50) == ""
    assert found.doubts([0.01], [-0.1], 50) == ", regression below 0"
    inside = replace(found, low=0.005, high=0.02)
    assert inside.doubts([0.03], [0.1], 50) == ", outside the calibrated range"
    assert Regression(PLANE, 0.0, 0, "latents").position(3, 7) == 3.0


# ------------------------------------------------------------------------------------ the fit
def profile_of(rows: list[tuple[int, float, float]], steps: int) -> Profile:
    """The profile that these triples of step, signal change and output change would have made."""
    sums = ChangeSums.empty(steps, by_step=True)
    for index, d, y in rows:
        sums.signal.index, sums.signal.signal = index - 1, torch.ones(1, 1, dtype=torch.float64)
        sums.target = torch.ones(1, 1, dtype=torch.float64)
        now = torch.full((1, 1), 1 + d, dtype=torch.float64)
        sums.add(index, now, torch.full((1, 1), 1 + y, dtype=torch.float64), per_sample=True)
    names = ("samples", "distance", "powers", "products", "squares", "bins")
    facts = {"signal": "latents", "num_steps": str(steps)}
    statistics = {name: getattr(sums, name).unsqueeze(0) for name in names}
    return Profile("regression_profiler", facts, statistics, samples=1)


def scattered(steps: int, many: int) -> list[tuple[int, float, float]]:
    random = np.random.default_rng(5)
    rows = []
    for _ in range(many):
        i, d = int(random.integers(1, steps)), float(random.uniform(0.01, 0.2))
        y = 0.4 * d + 0.002 * i - 3e-5 * i**2 + 0.9 * d**2 + 0.01 * d * i
        rows.append((i, d, y + float(random.normal(0, 0.003))))
    return rows


def test_the_fit_is_the_least_squares_one() -> None:
    rows = scattered(30, 400)
    found = fit_regression(profile_of(rows, 30))
    t, x, y = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    columns = [x**0, x, t, x**2, t**2, x * t, x**3, t**3, x**2 * t, x * t**2, x**4, t**4]
    scale = [np.abs(c).max() for c in columns]
    matrix = np.stack([c / s for c, s in zip(columns, scale, strict=True)], axis=1)
    solution, *_ = np.linalg.lstsq(matrix, y, rcond=None)
    expected = matrix @ solution
    # float32 of the signal changes leaves seven digits of the pairs
    made = np.array([found.change(d, i) for i, d, _ in rows])
    assert np.abs(made - expected).max() < 2e-5
    r2 = 1 - ((y - expected) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert explain_variance(profile_of(rows, 30)) == pytest.approx(r2, abs=1e-4)
    low, high = min(d for _, d, _ in rows), max(d for _, d, _ in rows)
    assert found.low <= low < 1.13 * found.low
    assert high <= found.high < 1.13 * high


def test_sums_merge_to_the_fit_of_all_pairs() -> None:
    rows = scattered(12, 200)
    whole = profile_of(rows, 12)
    parts = [profile_of(rows[:70], 12), profile_of(rows[70:], 12)]
    merged = Profile.merge(parts)
    for name, value in whole.statistics.items():
        assert torch.allclose(merged.statistics[name], value, rtol=1e-12), name
    one, other = fit_regression(whole), fit_regression(merged)
    assert other.change(0.1, 5.0) == pytest.approx(one.change(0.1, 5.0), rel=1e-6)


def test_a_few_pairs_fix_no_regression() -> None:
    with pytest.raises(ProfileError, match="12 pairs of steps do not fix"):
        fit_regression(profile_of(scattered(8, 12), 8))


def test_a_signal_that_depends_on_the_step_alone_is_fitted_too() -> None:
    # one point a step: the coefficients are not unique, the predictions are
    rows = [(i, 0.02 + 0.001 * i, 0.05 + 0.002 * i) for i in range(1, 20)] * 3
    found = fit_regression(profile_of(rows, 20))
    assert [found.change(d, i) for i, d, _ in rows] == pytest.approx(
        [y for *_, y in rows], abs=1e-6
    )


# ----------------------------------------------------------------------------------- the rule
@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.3])
def test_a_regression_that_is_a_line_decides_as_teacache(threshold: float) -> None:
    given = request()
    ours = PromptTeaRule(coefficients=PLANE, threshold=threshold, signal="latents")
    theirs = TeaCacheRule(
        coefficients=(1.0, 0.0), threshold=threshold, signal="latents", per_sample=False
    )
    one, other = sample([ours], given), sample([theirs], given)
    assert torch.equal(one.sample, other.sample)
    assert one.trace.computed_steps == other.trace.computed_steps
    assert 1 < len(one.trace.computed_steps) < 20


def test_the_step_index_counts() -> None:
    # the prediction is the step's index, whatever the signal
    steps = PromptTeaRule(
        coefficients=(0.0, 0.0, 1.0, *(0.0,) * 9), threshold=6.0, signal="latents"
    )
    # 1 + 2 < 6, + 3 computes at 3; 4 < 6, 4 + 5 computes at 5; from then on every step does
    assert sample([steps], request(10)).trace.computed_steps == (0, 3, 5, 6, 7, 8, 9)
    halved = replace_steps(steps, 19)
    assert sample([halved], request(10)).trace.computed_steps == (0, 2, 3, 4, 5, 6, 7, 8, 9)
    reasons = [c.reason for c in sample([halved], request(10)).trace.calls()]
    assert all("from 10 steps to 19" in reason for reason in reasons[1:])


def replace_steps(rule: PromptTeaRule, steps: int) -> PromptTeaRule:
    return PromptTeaRule(
        coefficients=rule.coefficients, threshold=rule.threshold, signal="latents", steps=steps
    )


def test_a_threshold_of_zero_is_bit_identical() -> None:
    given = request()
    full = sample([], given, CFG(scale=2.0))
    rule = PromptTeaRule(coefficients=PLANE, threshold=0.0, signal="latents")
    made = sample([rule], given, CFG(scale=2.0))
    assert torch.equal(made.sample, full.sample)
    assert made.trace.reused_calls == 0


def test_a_profile_is_checked_but_may_serve_other_numbers_of_steps() -> None:
    profile = toy_profile(RegressionProfiler(signal="latents"))
    rule = PromptTeaRule(
        profile=profile,
        threshold=0.1,
        allow=("model.class", "model.config", "latent_shape", "guidance", "branches"),
    )
    assert rule.source.steps == 10
    assert rule.source.signal == "latents"
    assert 0 < sample([rule], request(14)).trace.reused_calls < 14
    with pytest.raises(ProfileMismatchError, match="guidance: profile"):
        sample([PromptTeaRule(profile=profile, threshold=0.1)], request(10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no regression"),
        ({"model": "hunyuanvideo", "coefficients": PLANE}, "model and coefficients"),
        ({"coefficients": (1.0, 2.0)}, "2 coefficients, its regression has 12"),
        ({"coefficients": PLANE, "threshold": -0.1}, "threshold of PromptTea is -0.1"),
        ({"coefficients": PLANE, "steps": -1}, "steps=-1"),
    ],
)
def test_impossible_rules_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        PromptTeaRule(**options)


def test_settings_that_do_not_fit_together_are_refused_with_the_engine() -> None:
    with pytest.raises(PolicyError, match="needs threshold"):
        Engine([PromptTeaRule(coefficients=PLANE, signal="latents")])
    with pytest.raises(PolicyError, match=r"'latents', but its regression is for"):
        Engine([PromptTeaRule(model="hunyuanvideo", signal="latents")])
    with pytest.raises(CapabilityError, match="use a network that offers this signal"):
        sample([PromptTeaRule(model="hunyuanvideo")], request())


# --------------------------------------------------------------------------------- the recipe
def test_the_recipe_lists_what_the_paper_does() -> None:
    parts = flatten([PromptTea(model="wan2.1-t2v-14b")])
    assert [p.name for p in parts] == ["branch_substitute", "warm_up", "prompt_tea_rule"]
    assert isinstance(parts[0], BranchSubstitute)
    assert parts[0].effective_threshold == 0.02
    hunyuan = flatten([PromptTea(model="hunyuanvideo")])
    assert [p.name for p in hunyuan] == ["warm_up", "last_step", "prompt_tea_rule"]
    two = flatten(
        [PromptTea(model="wan2.2-t2v-a14b", substitute=False, references="p.safetensors")]
    )
    rules = [p for p in two if isinstance(p, PromptThreshold)]
    assert [(p.low, p.high, p.sharpness, p.tokens) for p in rules] == [
        (0.3, 0.5, 50, "valid"),
        (0.2, 0.4, 50, "valid"),
    ]
    cog = PromptTea(model="cogvideox1.5-5b", references="p.safetensors", half="second")
    (threshold,) = (p for p in flatten([cog]) if isinstance(p, PromptThreshold))
    assert (threshold.low, threshold.high, threshold.tokens) == (0.2, 0.3, "all")
    assert (threshold.branch, threshold.half) == (None, "second")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither model and profile"),
        ({"model": "hunyuanvideo", "profile": "p"}, "both model and profile"),
        ({"model": "hunyuanvideo", "threshold": 0.1, "references": "p"}, "drop one of them"),
        ({"model": "hunyuanvideo", "first": 0}, "first=0"),
        ({"profile": "p", "references": "p"}, "give both bounds"),
        ({"profile": "p", "substitute": True}, "no codebook"),
        ({"model": "mochi"}, "no constants of prompttea were published for 'mochi'"),
    ],
)
def test_impossible_recipes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        PromptTea(**options)


# ------------------------------------------------------------------------------ real networks
pytest.importorskip("diffusers")
import erta_framework as erta  # noqa: E402
from tiny_pipelines import FAMILIES  # noqa: E402


def run_steps(name: str, policies: list[Policy], steps: int, **options: Any) -> Any:
    family, pipe = FAMILIES[name], FAMILIES[name].build()
    with erta.attach(pipe, policies, seam="trunk", **options) as run:
        latents = family.run(pipe, steps=steps)
    return latents, run, pipe


def changes_of(pipe: Any, steps: int, part: str = "") -> list[float]:
    """Relative L1 change of Wan's time projection, from its own modules."""
    pipe.scheduler.set_timesteps(steps)
    network = getattr(pipe, part or "transformer")
    embedder = network.condition_embedder
    with torch.no_grad():
        projected: list[Tensor] = [
            embedder.time_proj(
                embedder.act_fn(embedder.time_embedder(embedder.timesteps_proj(t.reshape(1))))
            )
            for t in pipe.scheduler.timesteps
        ]
    pairs = zip(projected[1:], projected, strict=False)
    return [0.0, *(((b - a).abs().mean() / a.abs().mean()).item() for b, a in pairs)]


@pytest.mark.parametrize("steps", [12, 50])
def test_wan_computes_what_its_own_projection_gives(steps: int) -> None:
    """The published rule on this pipeline's own projection; Wan's weights are not here."""
    policy = PromptTea(model="wan2.1-t2v-14b", substitute=False, threshold=0.4)
    _, run, pipe = run_steps("wan-euler", [policy], steps)
    (trace,) = run.traces
    regression = load_published_regression("wan2.1-t2v-14b", None)
    total, computed = 0.0, [0]
    for i, d in enumerate(changes_of(pipe, steps)):
        if i == 0:
            continue
        total += regression.change(d, i * 49 / (steps - 1))
        if not total < 0.4:
            total = 0.0
            computed.append(i)
    assert list(trace.computed_steps) == computed
    assert all(len({call.computed for call in step.calls}) == 1 for step in trace.steps)
    # random weights move the projection so far that most published predictions are below 0
    assert len(computed) > 5 or steps == 12


def test_each_network_of_two_follows_its_own_regression_and_starts_anew() -> None:
    policy = PromptTea(model="wan2.2-t2v-a14b", substitute=False, threshold=0.5)
    _, run, pipe = run_steps("wan22", [policy], 8)
    (trace,) = run.traces
    by_network = {
        name: [c for c in trace.calls() if c.model == name and c.branch == "cond"]
        for name in ("transformer", "transformer_2")
    }
    assert all(by_network.values())
    for name, calls in by_network.items():
        regression, changes = (
            load_published_regression("wan2.2-t2v-a14b", name),
            changes_of(pipe, 8, name),
        )
        total = 0.0
        for place, call in enumerate(calls):
            total += (
                0.0 if place == 0 else regression.change(changes[call.index], call.index * 39 / 7)
            )
            expected = place == 0 or not total < 0.5
            total = 0.0 if expected else total
            assert call.computed == expected, (name, call.index)
        assert calls[0].computed


def test_hunyuan_watches_the_time_embedding_without_text_and_guidance() -> None:
    family, pipe = FAMILIES["hunyuan-video"], FAMILIES["hunyuan-video"].build()
    seen: list[Tensor] = []
    module = pipe.transformer.time_text_embed.timestep_embedder
    handle = module.register_forward_hook(lambda _, __, out: seen.append(out.clone()))
    rule = PromptTeaRule(coefficients=PLANE, threshold=2.0, signal="timestep_embedding")
    with erta.attach(pipe, [rule], seam="trunk") as run:
        family.run(pipe, steps=8)
    handle.remove()
    total, computed = 0.0, [0]
    for i in range(1, 8):
        before = seen[i - 1]
        total += ((seen[i] - before).abs().mean() / before.abs().mean()).item()
        if not total < 2.0:
            total = 0.0
            computed.append(i)
    assert list(run.traces[0].computed_steps) == computed
    assert 1 < len(computed) < 8
