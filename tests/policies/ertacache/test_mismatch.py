"""Profiles that do not belong to the run, and exactness when nothing is skipped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from erta_framework import CFG, DDIM, Engine, FlowEuler, NoGuidance, Policy, Profile
from erta_framework.errors import PolicyError, ProfileError, ProfileMismatchError
from erta_policies.ertacache import (
    ErrorLinearizer,
    ERTACache,
    ReplayProfiler,
    SkipPolicy,
    TimestepAdjuster,
)

STEPS = 8
PARTS = [SkipPolicy, TimestepAdjuster, ErrorLinearizer]


def part(kind: type[Policy], profile: Any, **options: Any) -> Policy:
    if kind is SkipPolicy:
        options = {"calls": 4, **options}
    return kind(profile=profile, **options)


RUNS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "steps": ({"num_steps": 10}, ["num_steps: profile '8' / run '10'", "sigma_grid: profile"]),
    "grid": (
        {"sigmas": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]},
        ["sigma_grid: profile"],
    ),
    "shift": (
        {"solver": FlowEuler(shift=1.0)},
        [
            "solver: profile 'FlowEuler(shift=3.0, time_scale=1000.0)' / "
            "run 'FlowEuler(shift=1.0, time_scale=1000.0)'",
            "sigma_grid: profile",
        ],
    ),
    "solver": ({"solver": DDIM()}, ["solver: profile 'FlowEuler", "run 'DDIM("]),
    "scale": (
        {"guidance": CFG(scale=5.0)},
        ["guidance: profile 'CFG(scale=3.0", "run 'CFG(scale=5.0"],
    ),
    "guidance": (
        {"guidance": NoGuidance()},
        ["guidance: profile 'CFG(scale=3.0", "branches: profile 'cond,uncond' / run 'cond'"],
    ),
    "batched": (
        {"guidance": CFG(scale=3.0, batched=True)},
        ["branches: profile 'cond,uncond' / run 'cond+uncond'"],
    ),
    "network": (
        {"model": {"class": "Swirl", "config": "1f2e"}},
        ["model.config: profile 'nothing' / run '1f2e'"],
    ),
    "class": ({"model": {"class": "Other"}}, ["model.class: profile 'Swirl' / run 'Other'"]),
}


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("name", RUNS)
def test_a_profile_of_another_run_is_refused_before_any_call(
    world: SimpleNamespace, kind: type[Policy], name: str
) -> None:
    options, messages = RUNS[name]
    profile = world.calibrate(guidance=world.cfg)
    network = world.Swirl()
    with pytest.raises(ProfileMismatchError) as caught:
        world.run([part(kind, profile)], network=network, **{"guidance": world.cfg, **options})
    text = str(caught.value)
    assert all(message in text for message in messages), text
    assert "calibrate for this run, or accept a difference by name with allow=[...]" in text
    assert network.calls == 0


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(2, 2, 3, 4).double(), "dtype: profile 'float32' / run 'float64'"),
        (torch.zeros(2, 2, 3, 5), "latent_shape: profile '2x3x4' / run '2x3x5'"),
    ],
)
def test_other_latents_are_refused(
    world: SimpleNamespace, kind: type[Policy], latents: torch.Tensor, message: str
) -> None:
    profile = world.calibrate()
    with pytest.raises(ProfileMismatchError, match=message):
        world.run([part(kind, profile)], latents=latents)


def test_every_field_that_differs_is_named(world: SimpleNamespace) -> None:
    profile = world.calibrate(guidance=world.cfg, latents=world.noise().double())
    with pytest.raises(ProfileMismatchError) as caught:
        world.run([part(SkipPolicy, profile)], num_steps=5, model={"class": "Other"})
    fields = [
        line.split(":")[0].strip() for line in str(caught.value).splitlines() if " / " in line
    ]
    assert fields == [
        "branches", "dtype", "guidance", "model.class", "num_steps", "sigma_grid"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", PARTS)
def test_a_difference_may_be_allowed_by_name(world: SimpleNamespace, kind: type[Policy]) -> None:
    profile = world.calibrate(guidance=world.cfg)
    wider = CFG(scale=5.0)
    result = world.run([part(kind, profile, allow=("guidance",))], guidance=wider)
    assert result.sample.isfinite().all()
    with pytest.raises(ProfileMismatchError, match="guidance"):
        world.run([part(kind, profile, allow=("dtype",))], guidance=wider)


@pytest.mark.parametrize("kind", PARTS)
def test_the_number_of_steps_cannot_be_allowed(world: SimpleNamespace, kind: type[Policy]) -> None:
    profile = world.calibrate()
    policy = part(kind, profile, allow=("num_steps", "sigma_grid"))
    with pytest.raises(ProfileError, match="each of 8 steps, the run has 10; allow cannot bridge"):
        world.run([policy], num_steps=10)


def test_lines_for_missing_branches_or_channels_cannot_be_allowed(world: SimpleNamespace) -> None:
    profile = world.calibrate()
    policy = ErrorLinearizer(profile=profile, allow=("guidance", "branches"))
    with pytest.raises(ProfileError, match=r"branches cond .* run has cond, uncond"):
        world.run([policy], guidance=world.cfg)
    wide = world.noise(2, (5, 3, 4))
    policy = ErrorLinearizer(profile=profile, granularity="channel", allow=("latent_shape",))
    with pytest.raises(ProfileError, match="with 2 channels, the run has cond with 5"):
        world.run([policy, SkipPolicy(every=2)], latents=wide)
    scalar = ErrorLinearizer(profile=profile, allow=("latent_shape",))
    assert world.run([scalar, SkipPolicy(every=2)], latents=wide).sample.isfinite().all()


@pytest.mark.parametrize("kind", PARTS)
def test_files_that_are_no_profile_of_this_kind(
    world: SimpleNamespace, kind: type[Policy], tmp_path: Path
) -> None:
    with pytest.raises(ProfileError, match=r"no profile at .*; make one with `erta calibrate`"):
        Engine([part(kind, tmp_path / "gone.safetensors")])
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a profile")
    with pytest.raises(ProfileError, match="is not a readable safetensors file"):
        Engine([part(kind, str(broken))])
    whole = world.calibrate().save(tmp_path / "whole.safetensors")
    broken.write_bytes(whole.read_bytes()[:-64])
    with pytest.raises(ProfileError, match="is not a readable safetensors file"):
        Engine([part(kind, broken)])
    strange = Profile(kind="somebody_else", fingerprint={}, statistics={}, samples=1)
    with pytest.raises(ProfileError, match=f"{kind.__name__} needs a profile of kind 'residual_pr"):
        Engine([part(kind, strange)])


@pytest.mark.parametrize("kind", [TimestepAdjuster, ErrorLinearizer])
def test_a_replay_profile_serves_skip_policy_alone(
    world: SimpleNamespace, kind: type[Policy]
) -> None:
    (profile,) = world.run([ReplayProfiler(threshold=0.4)]).emitted
    with pytest.raises(ProfileError, match="needs a profile of kind 'residual_profiler', got one"):
        Engine([part(kind, profile)])


def test_a_profile_without_a_schedule(world: SimpleNamespace) -> None:
    with pytest.raises(PolicyError, match=r"needs budget=..., threshold=... or calls=... to read"):
        Engine([SkipPolicy(profile=world.calibrate())])


def test_a_saved_profile_plans_and_corrects_alike(world: SimpleNamespace, tmp_path: Path) -> None:
    profile = world.calibrate(guidance=world.cfg)
    file = profile.save(tmp_path / "p.safetensors")
    samples = [
        world.run([ERTACache(profile=source, calls=4, adjuster=True)], guidance=world.cfg).sample
        for source in (profile, file, str(file))
    ]
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(samples[0], samples[2])


# ------------------------------------------------------------------- exactness
@pytest.mark.parametrize("scale", [None, 3.0])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("granularity", ["scalar", "channel"])
@pytest.mark.parametrize("network_time", ["nominal", "actual"])
def test_all_steps_computed_is_the_plain_loop_bit_for_bit(
    world: SimpleNamespace, scale: float | None, batch: int, granularity: Any, network_time: Any
) -> None:
    latents = world.noise(batch)
    guidance = CFG(scale=scale) if scale else None
    policy = ERTACache(
        profile=world.calibrate(guidance=guidance),
        calls=STEPS,
        adjuster=TimestepAdjuster(network_time=network_time),
        linearizer=ErrorLinearizer(granularity=granularity),
    )
    network = world.Swirl()
    result = world.run([policy], latents=latents, guidance=guidance, network=network)
    assert torch.equal(result.sample, world.plain(latents, scale=scale)[0][-1])
    assert network.calls == STEPS * (2 if scale else 1)
    assert result.trace.reused_calls == 0


def test_fewer_calls_are_not_the_plain_loop(world: SimpleNamespace) -> None:
    latents = world.noise()
    policy = ERTACache(profile=world.calibrate(), calls=STEPS - 1)
    result = world.run([policy], latents=latents)
    assert result.trace.network_calls == STEPS - 1
    assert not torch.equal(result.sample, world.plain(latents)[0][-1])


def test_batches_do_not_see_each_other(world: SimpleNamespace) -> None:
    policy = ERTACache(profile=world.calibrate(), calls=4, adjuster=True)
    latents = world.noise(5)
    together = world.run([policy], latents=latents).sample
    apart = torch.cat([world.run([policy], latents=part).sample for part in latents.split(2)])
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=1e-6)
