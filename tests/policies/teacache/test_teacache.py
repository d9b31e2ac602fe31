"""TeaCache in requests: on a toy flow, and at the trunk seam of tiny pipelines."""

from __future__ import annotations

import functools
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from erta_framework import (
    CFG,
    Call,
    Engine,
    FlowEuler,
    NoGuidance,
    Policy,
    Profile,
    Request,
    Result,
    SamplingLoop,
    Step,
    hookimpl,
)
from erta_framework.errors import CapabilityError, InputError, PolicyError, ProfileMismatchError
from erta_framework.testing import GaussianMixtureFlow
from erta_policies.teacache import TeaCache, TeaCacheProfiler, TeaCacheRule, TeaCacheSchedule
from erta_policies.teacache._polynomial import fit_polynomial

SHAPE = (3, 2, 4, 4)
LINE = (1.0, 0.0)
"""The predicted change is the signal's."""


def request(steps: int = 20, batch: int = 2, seed: int = 3) -> Request:
    toy = GaussianMixtureFlow(SHAPE)
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.3, 3.0, batch).reshape(-1, 1, 1, 1, 1)
    return Request(
        latents=scale * torch.randn(batch, *SHAPE, generator=generator),
        cond=toy.encode([f"prompt {k}" for k in range(batch)]),
        uncond=toy.encode([""] * batch),
        schedule=FlowEuler().schedule(steps),
    )


def sample(policies: list[Policy], given: Request, guidance: Any = None, network: Any = None):
    loop = SamplingLoop(Engine(policies), FlowEuler(), guidance or NoGuidance())
    return loop.run(network or GaussianMixtureFlow(SHAPE), given)


def on_latents(**options: Any) -> TeaCache:
    return TeaCache(signal="latents", **{"coefficients": LINE, "threshold": 0.1, **options})


def literal(
    given: Request, coefficients: tuple[float, ...], threshold: float, first: int, last: int
) -> tuple[list[int], Tensor]:
    """The published step list on one signal, the latents, written down plainly.

    Source: the `forward` of TeaCache4FLUX/teacache_flux.py, with `should_calc`, the accumulated
    distance, the previous modulated input and the previous residual.
    """
    network, schedule = GaussianMixtureFlow(SHAPE), given.schedule
    rescale = np.poly1d(coefficients)
    x, accumulated = given.latents, 0.0
    previous = residual = None
    computed = []
    for cnt in range(schedule.num_steps):
        if cnt < first or cnt >= schedule.num_steps - last:
            should_calc, accumulated = True, 0.0
        else:
            moved = (x - previous).abs().mean() / previous.abs().mean()
            accumulated += rescale(moved.item())
            should_calc = not accumulated < threshold
            if should_calc:
                accumulated = 0.0
        previous = x
        if should_calc:
            v = network(x, torch.full((x.shape[0],), schedule.times[cnt]), given.cond)
            residual = v - x
            computed.append(cnt)
        else:
            v = x + residual
        x = x + (schedule.sigmas[cnt + 1] - schedule.sigmas[cnt]) * v
    return computed, x


# ---------------------------------------------------------------------- what is computed
@pytest.mark.parametrize(
    ("coefficients", "threshold", "first", "last"),
    [
        (LINE, 0.1, 1, 1),
        (LINE, 0.2, 5, 0),
        ((498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861), 0.6, 1, 1),
        ((-40.0, 3.0, 0.01), 0.2, 2, 1),  # negative for larger differences: the sum falls
    ],
)
def test_the_steps_and_latents_of_the_published_loop(
    coefficients: tuple[float, ...], threshold: float, first: int, last: int
) -> None:
    given = request()
    computed, expected = literal(given, coefficients, threshold, first, last)
    policy = on_latents(
        coefficients=coefficients, threshold=threshold, first=first, last=last, per_sample=False
    )
    toy = GaussianMixtureFlow(SHAPE)
    result = sample([policy], given, network=toy)
    assert list(result.trace.computed_steps) == computed
    assert toy.calls == len(computed)
    assert 3 < len(computed) < 20
    assert torch.allclose(result.sample, expected, atol=1e-5)


def test_nothing_skipped_is_bit_identical() -> None:
    given = request()
    full = sample([], given, CFG(scale=2.0))
    for policy in (on_latents(threshold=0.0), on_latents(first=20)):
        made = sample([policy], given, CFG(scale=2.0))
        assert torch.equal(made.sample, full.sample)
        assert made.trace.reused_calls == 0


def test_samples_of_a_batch_decide_alone() -> None:
    given = request(batch=4)
    together = sample([on_latents()], given)
    counts = set()
    for k in range(4):
        part = slice(k, k + 1)
        assert given.uncond is not None
        single = replace(
            given, latents=given.latents[part], cond=given.cond[part], uncond=given.uncond[part]
        )
        alone = sample([on_latents()], single)
        assert alone.trace.calls_for(0) == together.trace.calls_for(k)
        assert torch.equal(alone.sample[0], together.sample[k])
        counts.add(together.trace.calls_for(k))
    assert len(counts) > 1
    whole = sample([on_latents(per_sample=False)], given).trace
    assert len({whole.calls_for(k) for k in range(4)}) == 1


def test_each_branch_decides_for_itself_unless_told_otherwise() -> None:
    given, guidance = request(), CFG(scale=2.0)
    apart = sample([Spied(signal_scale=(1.0, 3.0))], given, guidance).trace
    steps = {
        name: [c.index for c in apart.calls() if c.branch == name and c.computed]
        for name in ("cond", "uncond")
    }
    assert steps["cond"] != steps["uncond"]
    shared = sample([Spied(signal_scale=(1.0, 3.0), each_branch=False)], given, guidance).trace
    assert all(len({call.computed for call in step.calls}) == 1 for step in shared.steps)
    assert list(shared.computed_steps) == steps["cond"]


class Spied(TeaCacheRule):
    """TeaCache on a signal that moves more in one branch than in the other."""

    signal_scale: tuple[float, float] = (1.0, 1.0)
    coefficients: tuple[float, ...] | None = LINE
    threshold: float | None = 0.25
    signal: Any = "latents"

    def _memory(self, step: Step, call: Call) -> Any:
        memory = super()._memory(step, call)
        factor = self.signal_scale[call.branch == "uncond"]

        class Stretched:
            index = property(lambda _: memory.index)
            changes = memory.changes
            keep = staticmethod(memory.keep)
            ahead: ClassVar[list[list[float]]] = []
            looked = True

            @staticmethod
            def measure_change(index: int, now: Tensor, alone: bool) -> Tensor | None:
                found = memory.measure_change(index, now, alone)
                return None if found is None else factor * found

        return Stretched()


def test_a_reason_says_what_is_doubtful() -> None:
    falling = on_latents(coefficients=(-1.0, 0.0), threshold=0.1)
    reasons = [c.reason for c in sample([falling], request(batch=1)).trace.calls()]
    assert reasons[0] == "cold"
    assert any(r.endswith(", polynomial below 0") for r in reasons)
    # with a falling sum nothing is ever computed again but the last step
    assert list(sample([falling], request(batch=1)).trace.computed_steps) == [0, 19]
    clamped = on_latents(coefficients=(-1.0, 0.0), threshold=0.0, clamp_nonnegative=True)
    assert sample([clamped], request(batch=1)).trace.reused_calls == 0
    upright = on_latents(coefficients=(-1.0, 0.0), threshold=0.1, absolute=True)
    assert list(sample([upright], request(batch=1)).trace.computed_steps) == list(
        sample([on_latents()], request(batch=1)).trace.computed_steps
    )


def test_a_signal_of_zeros_computes() -> None:
    given = request(batch=1)
    still = replace(given, latents=torch.zeros_like(given.latents))
    trace = sample([on_latents(threshold=1e6)], still).trace
    assert list(trace.computed_steps)[:2] == [0, 1]  # nothing to divide by at step 1
    assert trace.reused_calls > 0


def test_other_policies_may_force_steps_in_between() -> None:
    class Every(Policy):
        """Answers every fourth step before TeaCache is asked."""

        @hookimpl
        def decide(self, step: Step):
            from erta_framework import Compute

            return Compute("fourth") if step.index % 4 == 0 else None

    given = request(batch=1)
    trace = sample([Every(), on_latents(threshold=1e6)], given).trace
    assert list(trace.computed_steps) == [0, 4, 8, 12, 16, 19]
    assert "no signal of the step before" not in {c.reason for c in trace.calls()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "got no polynomial"),
        ({"model": "flux.1-dev", "coefficients": LINE}, "got model and coefficients"),
        ({"coefficients": (), "threshold": 0.1}, "no coefficients"),
        ({"coefficients": LINE, "threshold": -0.1}, "threshold of TeaCache is -0.1"),
        ({"coefficients": LINE, "threshold": 0.1, "first": 0}, "first=0"),
        ({"coefficients": LINE, "threshold": 0.1, "last": -1}, "last=-1"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        TeaCache(**options)


def test_settings_that_do_not_fit_together_are_refused_with_the_engine() -> None:
    with pytest.raises(PolicyError, match="needs threshold"):
        Engine([TeaCache(coefficients=LINE, signal="latents")])
    with pytest.raises(
        PolicyError, match=r"'latents', but its polynomial is for 'modulated_input'"
    ):
        Engine([TeaCache(model="flux.1-dev", signal="latents")])
    with pytest.raises(CapabilityError, match="signal:modulated_input"):
        sample([TeaCache(model="flux.1-dev")], request())


# ------------------------------------------------------------------------- calibration
class Pairs(Policy):
    """Writes down the plain pairs of changes, step by step."""

    pairs: list[tuple[float, float]]
    held: dict[str, tuple[Tensor, Tensor]]

    @hookimpl(wrapper=True)
    def forward(self, call: Call):
        output = yield
        now = (call.x.clone(), call.compute().clone())
        if call.branch in self.held:
            changes = [
                ((a - b).abs().flatten(1).mean(1) / b.abs().flatten(1).mean(1)).tolist()
                for a, b in zip(now, self.held[call.branch], strict=True)
            ]
            self.pairs.extend(zip(*changes, strict=True))
        self.held[call.branch] = now
        return output


@functools.cache
def calibrated(batch: int = 4) -> Profile:
    (profile,) = sample([TeaCacheProfiler(signal="latents")], request(batch=batch)).emitted
    return profile


def test_a_profile_fits_the_plain_pairs_of_a_run() -> None:
    given, guidance = request(batch=4), CFG(scale=2.0)
    spy = Pairs(pairs=[], held={})
    result: Result = sample([TeaCacheProfiler(signal="latents"), spy], given, guidance)
    (profile,) = result.emitted
    d, y = np.array(spy.pairs).T
    assert len(d) == 19 * 4 * 2
    expected = np.polyfit(d, y, 4)
    at = np.linspace(d.min(), d.max(), 50)
    assert np.polyval(fit_polynomial(profile), at) == pytest.approx(
        np.polyval(expected, at), rel=1e-6
    )
    assert np.array(fit_polynomial(profile)) == pytest.approx(expected, rel=1e-6)
    assert torch.equal(result.sample, sample([], given, guidance).sample)


def test_profiles_of_batches_merge_to_that_of_one() -> None:
    whole = request(batch=4)
    parts = []
    for part in (slice(0, 1), slice(1, 4)):
        half = replace(whole, latents=whole.latents[part], cond=whole.cond[part], uncond=None)
        parts.extend(sample([TeaCacheProfiler(signal="latents")], half).emitted)
    merged = Profile.merge(parts)
    assert merged.samples == calibrated().samples == 4
    assert fit_polynomial(merged) == pytest.approx(fit_polynomial(calibrated()), rel=1e-6)


def test_a_profile_serves_its_own_run_and_refuses_others() -> None:
    policy = TeaCache(profile=calibrated(), threshold=0.05)
    assert policy.source.signal == "latents"
    trace = sample([policy], request(seed=8)).trace
    assert 0 < trace.reused_calls < 20
    full = sample([TeaCache(profile=calibrated(), threshold=0.0)], request(batch=4)).trace
    assert not any("outside" in c.reason for c in full.calls())
    far = replace(request(seed=8), latents=1e-3 * request(seed=8).latents)
    reasons = {c.reason for c in sample([policy], far).trace.calls()}
    assert any("outside the calibrated range" in reason for reason in reasons)
    with pytest.raises(ProfileMismatchError, match="num_steps"):
        sample([policy], request(12))
    with pytest.raises(PolicyError, match="timestep_embedding"):
        Engine([TeaCache(profile=calibrated(), threshold=0.1, signal="timestep_embedding")])


def test_a_schedule_from_a_profile_is_known_beforehand() -> None:
    policy = TeaCacheSchedule(profile=calibrated(1), coefficients=LINE, threshold=0.1)
    # the profile holds the differences of this very sample, uncached
    measured = sample([TeaCacheProfiler(signal="latents")], request(batch=1)).emitted[0]
    differences = (measured.statistics["distance"][0]).tolist()
    assert policy.differences() == pytest.approx(differences)
    plan = policy.plan(20)
    total, expected = 0.0, [0]
    for i in range(1, 20):
        total += differences[i]
        if total >= 0.1 or i == 19:
            expected.append(i)
            total = 0.0
    assert list(plan.computed) == expected
    trace = sample([policy], request(batch=1)).trace
    assert tuple(trace.computed_steps) == plan.computed
    assert Engine([policy]).traits.static
    fits = TeaCacheSchedule(profile=calibrated(), threshold=0.2)
    assert 2 < len(fits.plan(20).computed) < 20
    with pytest.raises(PolicyError, match=r"'flux\.1-dev' is for the signal 'modulated_input'"):
        Engine([TeaCacheSchedule(profile=calibrated(), model="flux.1-dev")])
    with pytest.raises(PolicyError, match="threshold of TeaCache is -1"):
        TeaCacheSchedule(profile=calibrated(), threshold=-1.0)


def test_a_profiler_refuses_what_it_cannot_observe() -> None:
    with pytest.raises(PolicyError, match="observes full runs, but step"):
        sample([TeaCacheProfiler(signal="latents"), on_latents()], request())
    with pytest.raises(InputError, match="starts at step 2"):
        sample([TeaCacheProfiler(signal="latents")], replace(request(), first=2))
    # what `erta calibrate --policy NAME` asks, where only the latents are at hand
    for cls in (TeaCache, TeaCacheRule, TeaCacheSchedule):
        found = object.__new__(cls).calibrator()
        assert isinstance(found, TeaCacheProfiler)
        assert found.traits.requires == frozenset()
    chosen = TeaCache(profile="later.safetensors", threshold=0.1, signal="modulated_input")
    assert chosen.calibrator().traits.requires == {"signal:modulated_input"}


# ------------------------------------------------------------------ at the trunk seam
diffusers = pytest.importorskip("diffusers")
from erta_integrations.diffusers import attach  # noqa: E402
from tiny_pipelines import FAMILIES  # noqa: E402


def run_steps(name: str, policies: list[Policy], steps: int = 9, **changes: Any) -> Any:
    family, pipe = FAMILIES[name], FAMILIES[name].build()
    with attach(pipe, policies, seam="trunk") as run:
        latents = family.run(pipe, steps=steps, **changes)
    return latents, run


@pytest.mark.parametrize(
    ("name", "signal"),
    [
        ("flux", "modulated_input"),
        ("wan-euler", "timestep_embedding"),
        ("wan-euler", "timestep_projection"),
        ("cogvideox", "timestep_embedding"),
        ("hunyuan-video", "modulated_input"),
    ],
)
def test_a_threshold_of_zero_is_bit_identical_and_a_larger_one_skips(
    name: str, signal: Any
) -> None:
    plain = FAMILIES[name].run(FAMILIES[name].build(), steps=9)
    options: dict[str, Any] = {"coefficients": LINE, "signal": signal}
    still, run = run_steps(name, [TeaCache(threshold=0.0, **options)])
    assert torch.equal(still, plain)
    assert run.traces[0].reused_calls == 0
    made, run = run_steps(name, [TeaCache(threshold=1e9, **options)])
    assert run.traces[0].computed_steps == (0, 8)
    assert not torch.equal(made, plain)
    asked = {name for call in run.traces[0].calls() for name in call.signals}
    assert {name.removesuffix(":ahead") for name in asked} == {signal}


def embeddings(pipe: Any, times: Tensor) -> list[Tensor]:
    """What Wan's own modules make of each timestep."""
    embedder = pipe.transformer.condition_embedder
    with torch.no_grad():
        return [embedder.time_embedder(embedder.timesteps_proj(t.reshape(1))) for t in times]


@pytest.mark.parametrize("model", ["wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "wan2.1-i2v-480p"])
@pytest.mark.parametrize("retention", [False, True])
def test_wan_computes_what_its_own_embedding_gives(model: str, retention: bool) -> None:
    """The step list of TeaCache4Wan2.1/teacache_generate.py on this pipeline's own embedding.

    Wan's weights are not here, so the schedules behind the published latencies cannot be checked;
    that the rule and the published polynomials give a schedule is checked on random weights.
    """
    name = f"{model}-retention" if retention else model
    policy = TeaCache(model=name, threshold=0.2)
    _, run = run_steps("wan-euler", [policy], steps=12)
    (trace,) = run.traces
    pipe = FAMILIES["wan-euler"].build()
    pipe.scheduler.set_timesteps(12)
    signals = embeddings(pipe, pipe.scheduler.timesteps)
    if retention:
        with torch.no_grad():
            embedder = pipe.transformer.condition_embedder
            signals = [embedder.time_proj(embedder.act_fn(s)) for s in signals]
    rescale = np.poly1d(policy.source.coefficients)
    first, last, total, computed = (5, 0, 0.0, []) if retention else (1, 1, 0.0, [])
    for i, now in enumerate(signals):
        if i < first or i >= 12 - last:
            total = 0.0
            computed.append(i)
            continue
        d = ((now - signals[i - 1]).abs().mean() / signals[i - 1].abs().mean()).item()
        total += rescale(d)
        if not total < 0.2:
            total = 0.0
            computed.append(i)
    assert list(trace.computed_steps) == computed
    assert all(len({call.computed for call in step.calls}) == 1 for step in trace.steps)


def test_a_profile_of_one_wan_request_gives_the_schedule_that_would_be_measured() -> None:
    _, run = run_steps("wan-euler", [TeaCacheProfiler(signal="timestep_embedding")], steps=12)
    profile = run.profile()
    options: dict[str, Any] = {"coefficients": LINE, "threshold": 0.5}
    schedule = TeaCacheSchedule(profile=profile, **options)
    _, measured = run_steps(
        "wan-euler", [TeaCache(signal="timestep_embedding", **options)], steps=12, seed=5
    )
    expected = measured.traces[0].computed_steps
    assert 2 < len(expected) < 12
    assert schedule.plan(12).computed == expected
    latents, planned = run_steps("wan-euler", [schedule], steps=12)
    assert planned.traces[0].computed_steps == expected
    assert {name for call in planned.traces[0].calls() for name in call.signals} == set()
    assert latents.isfinite().all()


def test_flux_measures_the_input_of_its_first_attention() -> None:
    """The profile's differences are those of what a hook on the real attention sees."""
    pipe, family = FAMILIES["flux"].build(), FAMILIES["flux"]
    given: list[Tensor] = []
    attention = pipe.transformer.transformer_blocks[0].attn

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append((args[0] if args else kwargs["hidden_states"]).clone())

    handle = attention.register_forward_pre_hook(keep, with_kwargs=True)
    family.run(pipe, steps=8)
    handle.remove()
    expected = [((b - a).abs().mean() / a.abs().mean()).item() for a, b in pairwise(given)]
    _, run = run_steps("flux", [TeaCacheProfiler()], steps=8)
    profile = run.profile()
    assert profile.fingerprint["model.seam"] == "trunk"
    assert profile.statistics["distance"][0, 1:].tolist() == pytest.approx(expected, rel=1e-5)


def test_branches_of_wan_are_kept_apart_on_a_signal_of_the_latents() -> None:
    """Wan calls its network once a branch; each has its own signal, sum and residual."""
    options: dict[str, Any] = {"coefficients": LINE, "signal": "modulated_input"}
    _, run = run_steps("wan-euler", [TeaCache(threshold=0.3, **options)], steps=12)
    (trace,) = run.traces
    assert trace.reused_calls > 0
    for call in trace.calls():
        done = [c.index for c in trace.calls() if c.branch == call.branch and c.computed]
        if not call.computed:
            assert call.source == max(i for i in done if i < call.index)


def test_one_sample_that_must_be_computed_computes_the_batch_at_the_trunk() -> None:
    options: dict[str, Any] = {"coefficients": LINE, "signal": "modulated_input"}
    _, run = run_steps("flux", [TeaCache(threshold=0.3, **options)], steps=12, batch=2)
    (trace,) = run.traces
    assert trace.calls_for(0) == trace.calls_for(1) == len(trace.computed_steps)
    assert 2 < len(trace.computed_steps) < 12
    one = TeaCache(threshold=0.3, per_sample=False, **options)
    _, mean = run_steps("flux", [one], steps=12, batch=2)
    assert mean.traces[0].reused_calls > 0


def test_a_network_without_the_signal_is_refused() -> None:
    policy = TeaCache(model="wan2.1-t2v-1.3b-retention")
    with pytest.raises(CapabilityError, match=r"timestep_projection.*FluxTransformer2DModel"):
        attach(FAMILIES["flux"].build(), [policy], seam="trunk")
    with pytest.raises(CapabilityError, match="seam='trunk'"):
        attach(FAMILIES["wan-euler"].build(), [TeaCache(model="wan2.1-t2v-1.3b")])
