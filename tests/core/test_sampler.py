"""The front door: input that it refuses, seeds, batches, calibration."""

from __future__ import annotations

import pytest
import torch

from erta_framework import (
    CFG,
    DDIM,
    Engine,
    FlowAdamsBashforth2,
    FlowEuler,
    NoGuidance,
    Policy,
    Profile,
    Profiler,
    Request,
    Reuse,
    Sampler,
    SamplingLoop,
    Traits,
    hookimpl,
)
from erta_framework.budgets import own_loop
from erta_framework.calibration import make_fingerprint
from erta_framework.errors import (
    CapabilityError,
    InputError,
    NonFiniteError,
    PolicyError,
)
from erta_framework.sampling import TextModel, sample_noise
from erta_policies.ertacache import ERTACache, ResidualProfiler, SkipPolicy, TimestepAdjuster

PROMPTS = ["a", "bb", "ccc", "dddd", "eeeee"]


def sampler(policies=(), **options):
    return Sampler(policies, accelerator="cpu", **{"num_steps": 4, **options})


# ---------------------------------------------------------------------- what it samples
def test_facade_is_the_loop(net, new_net):
    done = sampler(guidance=CFG(scale=2.0)).sample(net, PROMPTS, seed=7)
    model = new_net()
    request = Request(
        latents=sample_noise(model.latent_shape, range(7, 12)),
        cond=model.encode(PROMPTS),
        uncond=model.encode([""] * 5),
        schedule=FlowEuler().schedule(4),
    )
    loop = SamplingLoop(Engine([]), FlowEuler(), CFG(scale=2.0))
    assert torch.equal(done.samples, loop.run(model, request).sample)
    assert done.prompts == tuple(PROMPTS)
    assert done.seeds == (7, 8, 9, 10, 11)
    assert done.network_calls == net.calls == 8
    assert done.emitted == ()
    assert done.seconds > 0
    assert isinstance(net, TextModel)


@pytest.mark.parametrize("solver", [FlowEuler(), FlowAdamsBashforth2(), DDIM()], ids=repr)
@pytest.mark.parametrize("guidance", [NoGuidance(), CFG(), CFG(batched=True)], ids=repr)
def test_sample_depends_on_its_seed_and_not_on_its_batch(new_net, reuse_on, solver, guidance):
    def samples(batch_size):
        front = sampler(
            [reuse_on(steps=(1, 2))], solver=solver, guidance=guidance, batch_size=batch_size
        )
        return front.sample(new_net(), PROMPTS, seed=3).samples

    whole = samples(5)
    for batch_size in (1, 2, 4, 100):
        assert torch.equal(samples(batch_size), whole)
    alone = sampler([reuse_on(steps=(1, 2))], solver=solver, guidance=guidance)
    assert torch.equal(alone.sample(new_net(), ["ccc"], seeds=[5]).samples[0], whole[2])


def test_seeds_of_ones_own(new_net):
    done = sampler().sample(new_net(), ["a", "a", "a"], seeds=[4, 9, 4])
    assert torch.equal(done.samples[0], done.samples[2])
    assert not torch.equal(done.samples[0], done.samples[1])


def test_global_random_state_is_not_touched(net):
    before = torch.get_rng_state()
    sampler().sample(net, PROMPTS)
    assert torch.equal(torch.get_rng_state(), before)


def test_latents_of_ones_own(new_net):
    latents = sample_noise((2, 3, 3), [0, 1, 2, 3, 4])
    kept = latents.clone()
    done = sampler(batch_size=2).sample(new_net(), PROMPTS, latents=latents)
    assert torch.equal(done.samples, sampler().sample(new_net(), PROMPTS, seed=0).samples)
    assert torch.equal(latents, kept)


@pytest.mark.parametrize("solver", [FlowEuler(), DDIM()], ids=repr)
def test_start_from_clean_samples(new_net, solver):
    clean = torch.full((2, 2, 3, 3), 0.5)
    front = sampler(solver=solver, guidance=NoGuidance())
    done = front.sample(new_net(), ["a", "b"], init=clean, first=2, seed=1)
    noise = sample_noise((2, 3, 3), [1, 2])
    noised = solver.noised(clean, noise, front.schedule.sigmas[2])
    again = front.sample(new_net(), ["a", "b"], latents=noised, first=2)
    assert torch.equal(done.samples, again.samples)
    assert done.network_calls == 2
    assert [step.index for step in done.traces[0].steps] == [2, 3]


def test_sigmas_of_ones_own(net):
    front = sampler(sigmas=[1.0, 0.4, 0.1])
    assert front.schedule.sigmas == (1.0, 0.4, 0.1, 0.0)
    assert front.sample(net, PROMPTS).network_calls == 6


def test_mixed_precision_runs_under_autocast():
    seen = []

    class Linear:
        latent_shape = (2, 3)

        def fingerprint(self):
            return {}

        def encode(self, prompts):
            return torch.zeros(len(prompts), 1)

        def __call__(self, x, timestep, embeds):
            out = x @ torch.eye(3)
            seen.append(out.dtype)
            return out

    done = sampler(precision="bf16-mixed").sample(Linear(), ["a"])
    assert set(seen) == {torch.bfloat16}
    assert done.samples.dtype == torch.float32
    seen.clear()
    sampler().sample(Linear(), ["a"])
    assert set(seen) == {torch.float32}


# ----------------------------------------------------------------------- what it refuses
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, r"prompts is \[\]; give a list with at least one prompt"),
        ({"prompts": ()}, "give a list with at least one prompt"),
        ({"prompts": "a red circle"}, "prompts is 'a red circle'; give a list"),
        ({"prompts": ""}, "prompts is ''; give a list"),
        ({"prompts": ["a", None]}, "prompts holds None; every prompt is a string"),
        ({"seeds": [1, 2]}, "2 seeds for 3 prompts"),
        ({"seeds": []}, "0 seeds for 3 prompts"),
        ({"latents": torch.zeros(2, 2, 3, 3)}, r"\(2, 2, 3, 3\), expected \(3, 2, 3, 3\)"),
        ({"latents": torch.zeros(3, 2, 3)}, r"latents has shape \(3, 2, 3\), expected"),
        ({"init": torch.zeros(3, 2, 3, 4)}, r"init has shape \(3, 2, 3, 4\), expected"),
        ({"first": -1}, "first is -1, outside the 4 steps"),
        ({"first": 4}, "first is 4, outside the 4 steps"),
        ({"first": 1}, "nothing to start from there; give init"),
    ],
    ids=str,
)
def test_bad_input(net, arguments, message):
    arguments = {"prompts": ["a", "b", "c"], **arguments}
    with pytest.raises(InputError, match=message):
        sampler().sample(net, **arguments)
    assert net.calls == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["latents", "init"])
def test_latents_that_are_not_finite(net, name, value):
    latents = torch.zeros(3, 2, 3, 3)
    latents[1, 0, 2, 2] = value
    latents[2, 1, 0, 0] = value
    with pytest.raises(InputError, match=f"{name} of sample 1, 2 is NaN or infinite"):
        sampler().sample(net, ["a", "b", "c"], **{name: latents})
    assert net.calls == 0


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"devices": 0}, CapabilityError, "devices=0"),
        ({"accelerator": "tpu"}, CapabilityError, "accelerator 'tpu' is not available; use auto"),
        ({"precision": "64"}, CapabilityError, "precision '64' is unknown; use one of 32"),
        ({"batch_size": 0}, InputError, "batch_size is 0, it must be at least 1"),
        ({"batch_size": -4}, InputError, "batch_size is -4, it must be at least 1"),
        ({"num_steps": 0}, InputError, "num_steps is 0, it must be at least 1"),
        ({"sigmas": [0.5, 0.7]}, InputError, "fall strictly towards 0"),
    ],
    ids=str,
)
def test_impossible_settings(options, kind, message):
    with pytest.raises(kind, match=message):
        Sampler(**{"accelerator": "cpu", **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_accelerator_that_is_not_there():
    with pytest.raises(CapabilityError, match="accelerator 'cuda' is not available; use auto, cpu"):
        Sampler(accelerator="cuda")


def test_solver_that_a_policy_cannot_use():
    with pytest.raises(CapabilityError, match=r"TimestepAdjuster.*FlowAdamsBashforth2"):
        sampler([TimestepAdjuster(phi=(1.0,) * 4)], solver=FlowAdamsBashforth2())


def test_reuse_that_is_not_finite_is_an_error(net):
    class Poison(Policy):
        traits = Traits(static=True)

        @hookimpl
        def decide(self, step):
            return Reuse("x") if step.index == 1 else None

        @hookimpl
        def forward(self, call):
            return call.x * float("nan") if call.reused else None

    with pytest.raises(NonFiniteError, match=r"request 'batch-0'.*step 1 is not finite"):
        sampler([Poison()]).sample(net, PROMPTS)


# --------------------------------------------------------------------------- calibration
def test_calibrate_picks_the_profiler_that_a_policy_asks_for(net, tmp_path):
    gone = tmp_path / "not-yet.safetensors"
    front = sampler([SkipPolicy(evenly=3)], num_steps=6, guidance=CFG(scale=2.0))
    with pytest.raises(PolicyError, match="none of the policies needs calibration"):
        front.calibrate(net, PROMPTS)
    profile = front.calibrate(net, PROMPTS, seed=4, profiler=ResidualProfiler())
    assert net.calls == 12
    assert profile.kind == "residual_profiler"
    assert profile.samples == 5
    assert profile.provenance["seeds"] == "4..8"
    assert {"prompts", "date", "torch", "machine"} <= set(profile.provenance)
    profile.save(gone)
    again = sampler([ERTACache(profile=gone, calls=3)], num_steps=6, guidance=CFG(scale=2.0))
    assert again.calibrate(net, PROMPTS, seed=4).digest == profile.digest


def test_calibration_serves_the_same_run(new_net):
    front = sampler(num_steps=6, guidance=CFG(scale=2.0), batch_size=2)
    profile = front.calibrate(new_net(), PROMPTS, profiler=ResidualProfiler())
    policy = ERTACache(profile=profile, calls=3)
    done = sampler([policy], num_steps=6, guidance=CFG(scale=2.0)).sample(new_net(), PROMPTS)
    assert done.network_calls == 6
    assert done.traces[0].reused_calls == 6


def test_calibration_keeps_schedule_precision_and_device(net):
    seen = {}

    class Spy(Profiler):
        @hookimpl
        def on_session_end(self, session):
            seen["session"] = session
            seen["autocast"] = torch.is_autocast_enabled("cpu")
            return Profile("spy", make_fingerprint(session), {}, samples=session.shape[0])

    front = sampler(sigmas=[0.9, 0.3], precision="bf16-mixed", batch_size=2, guidance=NoGuidance())
    profile = front.calibrate(net, PROMPTS, profiler=Spy())
    assert seen["session"].sigmas == (0.9, 0.3, 0.0)
    assert seen["autocast"]
    assert profile.samples == 5
    assert profile.fingerprint["branches"] == "cond"


def test_profiler_that_emits_nothing(net, reuse_on):
    class Silent(Profiler):
        @hookimpl
        def on_session_end(self):
            return None

    with pytest.raises(PolicyError, match=r"Silent\(\) emitted no profile from on_session_end"):
        sampler().calibrate(net, PROMPTS, profiler=Silent())
    with pytest.raises(PolicyError, match=r"ReuseOn.* is no profiler, so it cannot calibrate"):
        sampler().calibrate(net, PROMPTS, profiler=reuse_on())


def test_calibration_with_no_prompts(net):
    with pytest.raises(InputError, match="at least one prompt"):
        sampler().calibrate(net, [], profiler=ResidualProfiler())


@pytest.mark.parametrize(("seed", "dtype"), [(3, torch.float32), (3, torch.float64)])
def test_noise_depends_on_the_seed_alone(seed, dtype):
    batch = sample_noise((2, 3), [1, seed, 2], dtype)
    assert batch.dtype == dtype
    assert torch.equal(batch[1], sample_noise((2, 3), [seed], dtype)[0])
    assert not torch.equal(batch[0], batch[1])


def test_a_twin_carries_everything_but_its_policies() -> None:
    sampler = Sampler(num_steps=7, batch_size=3, memory="1MiB", accelerator="cpu")
    twins = [sampler.with_policies(()), own_loop(sampler)([])]
    for twin in twins:
        assert (twin.loop.memory, twin.batch_size) == (2**20, 3)
        assert twin.schedule is sampler.schedule
    finer = sampler.with_policies((), sigmas=(1.0, 0.4, 0.0))
    assert (finer.schedule.sigmas, sampler.schedule.num_steps) == ((1.0, 0.4, 0.0), 7)
