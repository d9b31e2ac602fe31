"""Measuring sensitivities: on sampled trajectories, at noised clean latents, through pipelines."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from erta_framework import (
    CFG,
    Engine,
    FlowEuler,
    NoGuidance,
    Profile,
    Request,
    Sampler,
    SamplingLoop,
)
from erta_framework.errors import CapabilityError, InputError, PolicyError, ProfileMismatchError
from erta_framework.testing import AffineFlow, GaussianMixtureFlow
from erta_policies.ertacache import SkipPolicy
from erta_policies.sencache import SenCache, Sensitivities, SensitivityProfiler, measure_noised

SHAPE = (3, 2, 4, 4)
STEPS = 8


class Linear(AffineFlow):
    """v = A x + b t with a diagonal A; its sensitivities are known."""

    slope = torch.linspace(-0.9, 0.9, 4)
    drift = 0.003

    def __call__(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        self.calls += 1
        return self.slope * x + self.drift * timestep.reshape(-1, 1, 1, 1, 1)


def observed(network, guidance=None, steps: int = STEPS, batch: int = 2, seed: int = 3):
    given = Request(
        latents=torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed)),
        cond=network.encode([f"prompt {k}" for k in range(batch)]),
        uncond=network.encode([""] * batch),
        schedule=FlowEuler().schedule(steps),
        model=network.fingerprint(),
    )
    loop = SamplingLoop(Engine([SensitivityProfiler()]), FlowEuler(), guidance or NoGuidance())
    result = loop.run(network, given)
    (profile,) = result.emitted
    return profile, result, given


def test_a_linear_field_gives_back_its_numbers():
    profile, _, _ = observed(Linear(SHAPE))
    table = Sensitivities.of(profile)
    assert table.times == pytest.approx(FlowEuler().schedule(STEPS).times[: STEPS - 1])
    assert table.jt == pytest.approx([Linear.drift] * (STEPS - 1), rel=1e-3)
    assert all(0.3 <= jx <= 0.9 for jx in table.jx)


@pytest.mark.parametrize(
    ("guidance", "calls"), [(None, 1), (CFG(scale=2.0), 2), (CFG(scale=2.0, batched=True), 1)]
)
def test_it_costs_one_call_a_step_more_on_the_first_branch(guidance, calls):
    network = GaussianMixtureFlow(SHAPE)
    profile, result, given = observed(network, guidance)
    trace = result.trace
    assert trace.network_calls == calls * STEPS
    assert trace.trial_calls == STEPS - 1
    assert network.calls == calls * STEPS + STEPS - 1
    assert [call.trials for call in trace.calls() if call.trials] == [1] * (STEPS - 1)
    plain = SamplingLoop(Engine([]), FlowEuler(), guidance or NoGuidance())
    assert torch.equal(plain.run(GaussianMixtureFlow(SHAPE), given).sample, result.sample)
    copies = 2 if guidance is not None and guidance.batched else 1
    assert profile.statistics["samples"].tolist() == [2.0 * copies] * (STEPS - 1) + [0.0]


def test_one_reused_step_is_never_scored_below_its_true_change():
    """Along the calibrated trajectory, because both parts of the change are measured."""
    network = GaussianMixtureFlow(SHAPE)
    profile, _, given = observed(network, batch=1)
    table, x, schedule = Sensitivities.of(profile), given.latents, given.schedule
    root = math.sqrt(x[0].numel())
    for i in range(STEPS - 1):
        t, later = (torch.full((1,), schedule.times[k]) for k in (i, i + 1))
        v = network(x, t, given.cond)
        moved = x + (schedule.sigmas[i + 1] - schedule.sigmas[i]) * v
        change = float((network(moved, later, given.cond) - v).norm())
        bound = table.jx[i] * float((moved - x).norm()) + table.jt[i] * root * float(t - later)
        assert change <= bound * (1 + 1e-4)
        x = moved


def test_profiles_of_batches_add_up_and_give_the_mean():
    network = GaussianMixtureFlow(SHAPE)
    parts = [observed(network, batch=1, seed=seed)[0] for seed in (1, 2, 3)]
    merged = Profile.merge(parts)
    assert merged.samples == 3
    means = torch.stack([torch.tensor(Sensitivities.of(part).jx) for part in parts]).mean(0)
    assert Sensitivities.of(merged).jx == pytest.approx(means.tolist())
    assert Sensitivities.of(merged).times == pytest.approx(Sensitivities.of(parts[0]).times)


def test_it_refuses_reused_steps_single_steps_and_drivers_without_trials():
    network = GaussianMixtureFlow(SHAPE)
    _, _, given = observed(network)
    loop = SamplingLoop(Engine([SkipPolicy(every=2), SensitivityProfiler()]), FlowEuler())
    with pytest.raises(PolicyError, match="observes full runs"):
        loop.run(network, given)
    with pytest.raises(InputError, match="compares neighbouring steps, this run has 1"):
        observed(network, steps=1)


def test_a_run_that_fails_emits_nothing():
    class Fails(GaussianMixtureFlow):
        def __call__(self, x, timestep, embeds):
            if float(timestep[0]) < 400:
                raise RuntimeError("out of tape")
            return super().__call__(x, timestep, embeds)

    with pytest.raises(RuntimeError, match="out of tape"):
        observed(Fails(SHAPE))


def test_sampler_calibrates_what_the_policy_asks_for(tmp_path):
    network = GaussianMixtureFlow(SHAPE)
    sampler = Sampler(num_steps=STEPS, accelerator="cpu", batch_size=2)
    profiler = object.__new__(SenCache).calibrator()
    profile = sampler.calibrate(network, ["a", "b", "c"], profiler=profiler)
    assert (profile.kind, profile.samples) == ("sensitivity_profiler", 3)
    policy = SenCache(profile=profile.save(tmp_path / "s.safetensors"), eps_main=1.0)
    run = Sampler([policy], num_steps=12, accelerator="cpu").sample(network, ["d"])
    assert 2 <= run.network_calls < 24


# ------------------------------------------------------------------- noised clean latents
def test_noised_latents_give_back_a_linear_field_with_three_calls_a_step():
    network = Linear(SHAPE)
    clean = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    profile = measure_noised(network, clean, ["a", "b", "c"], num_steps=STEPS)
    assert network.calls == 3 * STEPS
    assert profile.provenance["network_calls"] == str(3 * STEPS)
    table = Sensitivities.of(profile)
    assert table.times == pytest.approx(FlowEuler().schedule(STEPS).times[:STEPS])
    assert table.jt == pytest.approx([Linear.drift] * STEPS, rel=1e-3)
    assert all(0.3 <= jx <= 0.9 for jx in table.jx)
    again = measure_noised(network, clean, ["a", "b", "c"], num_steps=STEPS)
    assert again.digest == profile.digest
    other = measure_noised(network, clean, ["a", "b", "c"], num_steps=STEPS, seed=1)
    assert other.digest != profile.digest


def test_both_kinds_of_states_serve_the_policy_but_do_not_merge():
    network = GaussianMixtureFlow(SHAPE)
    trajectory, _, given = observed(network)
    noised = measure_noised(network, torch.zeros(2, *SHAPE), ["a", "b"], num_steps=STEPS)
    for profile in (trajectory, noised):
        policy = SenCache(profile=profile, eps_start=1.0, eps_main=1.0)
        run = SamplingLoop(Engine([policy]), FlowEuler(), NoGuidance()).run(network, given)
        assert run.trace.reused_calls > 0
    with pytest.raises(ProfileMismatchError, match="states: first 'sampled trajectories'"):
        Profile.merge([trajectory, noised])


def test_noised_latents_need_a_prompt_each():
    with pytest.raises(InputError, match=r"clean latents \(2, 3, 2, 4, 4\) and 1 prompts"):
        measure_noised(GaussianMixtureFlow(SHAPE), torch.zeros(2, *SHAPE), ["a"])


# ------------------------------------------------------------------------------ pipelines
def pipeline_profile(name: str, steps: int = 6):
    from erta_integrations.diffusers import attach
    from tiny_pipelines import FAMILIES

    family = FAMILIES[name]
    pipe = family.build()
    plain = family.run(family.build(), steps)
    with attach(pipe, "sensitivity_profiler") as run:
        latents = family.run(pipe, steps)
    assert torch.equal(plain, latents)
    return family, pipe, run.profile(), run.traces[0]


@pytest.mark.parametrize(
    ("name", "trials"), [("wan-euler", 5), ("wan-i2v", 5), ("wan22", 4), ("flux", 5)]
)
def test_a_pipeline_is_calibrated_and_reused_at_both_seams(name, trials):
    pytest.importorskip("diffusers")
    from erta_integrations.diffusers import attach

    family, pipe, profile, trace = pipeline_profile(name)
    assert trace.trial_calls == trials, "one a step, but for the first of each network"
    assert int((profile.statistics["samples"] > 0).sum()) == trials
    policy = SenCache(profile=profile, eps_start=9e9, eps_main=9e9, max_skips=10**6)
    first = {"wan22": 2}.get(name, 1)
    numel = math.prod(int(n) for n in profile.fingerprint["latent_shape"].split("x"))
    noise = numel * 16 // 36 if name == "wan-i2v" else numel
    for seam in ("latent", "trunk"):
        with attach(pipe, [policy], seam=seam) as run:
            family.run(pipe, 9)
        found = run.traces[0]
        assert found.network_calls == first * family.calls
        reused = next(call for call in found.calls() if not call.computed)
        limit = 9e9 * math.sqrt(noise)
        assert reused.reason.endswith(f"of {limit:.4g}"), (seam, reused.reason)


def test_no_tolerance_leaves_a_pipeline_as_it_is_at_the_trunk_seam():
    pytest.importorskip("diffusers")
    from erta_integrations.diffusers import attach

    family, pipe, profile, _ = pipeline_profile("wan-euler")
    plain = family.run(family.build(), 6)
    with attach(pipe, [SenCache(profile=profile, eps_start=0.0, eps_main=0.0)], seam="trunk"):
        assert torch.equal(plain, family.run(pipe, 6))


def test_the_profiler_needs_the_latent_seam():
    pytest.importorskip("diffusers")
    from erta_integrations.diffusers import attach
    from tiny_pipelines import FAMILIES

    with pytest.raises(CapabilityError, match="works at the latent seam"):
        attach(FAMILIES["wan-euler"].build(), "sensitivity_profiler", seam="trunk")


def test_videos_of_the_reference_model_are_clean_latents():
    pytest.importorskip("diffusers")
    from erta_integrations.shapes_wan.data import random_scenes, render
    from erta_integrations.shapes_wan.model import load_model

    scenes = random_scenes(2, generator=torch.Generator().manual_seed(0))
    model = load_model()
    profile = measure_noised(model, render(scenes), scenes.prompts(), num_steps=3)
    table = Sensitivities.of(profile)
    assert len(table.times) == 3
    assert all(math.isfinite(value) and value > 0 for value in (*table.jx, *table.jt))
    sampler = Sampler([SenCache(profile=profile, eps_main=1.0)], num_steps=8, accelerator="cpu")
    assert sampler.sample(model, ["a red circle moving left"]).network_calls < 16
    assert replace(profile, samples=1).digest != profile.digest
