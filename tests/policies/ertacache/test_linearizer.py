"""`ErrorLinearizer`: an affine error is removed, everything else is left alone."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework import (
    Call,
    Compute,
    Decision,
    FlowEuler,
    Policy,
    Profile,
    Reuse,
    Step,
    hookimpl,
)
from erta_policies.ertacache import ErrorLinearizer, SkipPolicy, affine_fit

STEPS = 6


class Recorder(Policy):
    """Keeps what each call was given and answered, outside of the session."""

    seen: dict[tuple[int, str], tuple[Tensor, Tensor, Call]]

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Any:
        output = yield
        self.seen[step.index, call.branch] = (call.x.clone(), output.clone(), call)
        return output


def affine_network(x: Tensor, times: Tensor, cond: Tensor) -> Tensor:
    """v = a(sigma) x + b(sigma) elementwise, with other numbers in each channel.

    From a fixed x, every quantity of an Euler trajectory is affine in the starting noise, so
    eps = v~ - v is exactly affine in v~ within a channel.
    """
    sigma = (times / 1000).reshape(-1, 1, 1, 1).to(x.dtype)
    channel = torch.arange(1, x.shape[1] + 1, dtype=x.dtype).reshape(1, -1, 1, 1)
    return (0.4 * channel * sigma + 0.3) * x + torch.cos(3 * sigma + channel)


def recorded(world: SimpleNamespace, policies: list[Policy], **options: Any) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    world.run([Recorder(seen=seen), *policies], num_steps=STEPS, **options)
    return seen


@pytest.mark.parametrize("granularity", ["channel", "scalar"])
def test_an_affine_error_is_recovered(world: SimpleNamespace, granularity: Any) -> None:
    channels = 2 if granularity == "channel" else 1  # one line serves one channel exactly
    shape = (channels, 6, 7)
    options = {"latents": world.noise(4, shape), "network": affine_network}
    profile = world.calibrate(num_steps=STEPS, **options)
    skip = SkipPolicy(steps=(0, 3))
    fresh = {"latents": world.noise(5, shape, seed=9), "network": affine_network}
    raw = recorded(world, [skip], **fresh)
    corrected = recorded(
        world, [ErrorLinearizer(profile=profile, granularity=granularity), skip], **fresh
    )
    grid = FlowEuler().schedule(STEPS).times
    for step in (1, 2, 4):
        x, output, call = corrected[step, "cond"]
        assert call.reused
        assert not call.ran
        times = torch.full((len(x),), grid[step])
        truth = affine_network(x, times, torch.zeros(len(x), channels))
        torch.testing.assert_close(output, truth, rtol=0, atol=1e-5)
        x, output, _ = raw[step, "cond"]
        missed = (output - affine_network(x, times, torch.zeros(len(x), channels))).abs().max()
        assert missed > 0.01  # there was something to correct


def test_one_line_for_two_channels_cannot_recover_both(world: SimpleNamespace) -> None:
    options = {"latents": world.noise(4, (2, 6, 7)), "network": affine_network}
    profile = world.calibrate(num_steps=STEPS, **options)
    scalar = affine_fit(profile, per_channel=False).r2[0, 0, 1]
    channel = affine_fit(profile, per_channel=True).r2[0, 0, 1]
    assert float(scalar[0]) < 0.999
    assert channel.tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("granularity", ["channel", "scalar"])
@pytest.mark.parametrize("form", ["affine", "sigmoid"])
def test_the_output_is_the_formula(world: SimpleNamespace, granularity: Any, form: Any) -> None:
    profile = world.calibrate(num_steps=STEPS, guidance=world.cfg)
    fit = affine_fit(profile, per_channel=granularity == "channel")
    policy = ErrorLinearizer(profile=profile, granularity=granularity, form=form)
    seen = recorded(world, [policy, SkipPolicy(steps=(0, 2))], guidance=world.cfg)
    sources = {1: 0, 3: 2, 4: 2}
    for row, branch in enumerate(("cond", "uncond")):
        for step, source in sources.items():
            x, output, call = seen[step, branch]
            assert call.history[0].index == source
            reused = (x + call.history[0].residual).double()
            k, b = (t[row, source, step].reshape(1, -1, 1, 1) for t in (fit.k, fit.b))
            z = k * reused + b
            error = torch.sigmoid(z) if form == "sigmoid" else z / 4 + 0.5
            torch.testing.assert_close(output.double(), reused - error, rtol=0, atol=2e-6)


def test_the_literal_sigmoid_is_biased_where_there_is_no_error(world: SimpleNamespace) -> None:
    # v = x + c: the residual never changes, so reuse is exact and eps is 0
    def constant_residual(x: Tensor, times: Tensor, cond: Tensor) -> Tensor:
        return x + 0.25

    options = {"network": constant_residual}
    profile = world.calibrate(num_steps=STEPS, **options)
    skip = SkipPolicy(steps=(0,))
    exact = recorded(world, [skip], **options)[1, "cond"]
    for form, bias in (("affine", 0.0), ("sigmoid", 1 / (1 + math.exp(2)))):
        policy = ErrorLinearizer(profile=profile, form=form)  # type: ignore[arg-type]
        got = recorded(world, [policy, skip], **options)[1, "cond"]
        torch.testing.assert_close(
            exact[1] - got[1], torch.full_like(got[1], bias), atol=1e-5, rtol=0
        )
    assert 1 / (1 + math.exp(2)) == pytest.approx(0.119, abs=5e-4)


def test_no_variance_subtracts_the_mean_error(world: SimpleNamespace) -> None:
    def of_time_alone(x: Tensor, times: Tensor, cond: Tensor) -> Tensor:
        return torch.zeros_like(x) + times.reshape(-1, 1, 1, 1) / 1000

    latents = torch.full((2, 2, 3, 4), 0.5)
    profile = world.calibrate(latents=latents, network=of_time_alone, num_steps=STEPS)
    fit = affine_fit(profile, per_channel=True)
    assert (fit.slope == 0).all()
    seen = recorded(
        world,
        [ErrorLinearizer(profile=profile), SkipPolicy(steps=(0,))],
        latents=latents,
        network=of_time_alone,
    )
    sigma = FlowEuler().schedule(STEPS).sigmas[1]
    torch.testing.assert_close(seen[1, "cond"][1], torch.full_like(latents, sigma))


def test_computed_outputs_are_untouched_bit_for_bit(world: SimpleNamespace) -> None:
    profile = world.calibrate(num_steps=STEPS)
    policy = ErrorLinearizer(profile=profile)
    assert torch.equal(
        world.run([policy], num_steps=STEPS).sample, world.run(num_steps=STEPS).sample
    )
    seen = recorded(world, [policy, SkipPolicy(steps=(0, 2, 5))])
    network, grid = world.Swirl(), FlowEuler().schedule(STEPS).times
    cond, _ = world.conditions(world.noise())
    for step in (0, 2, 5):
        x, output, _ = seen[step, "cond"]
        assert torch.equal(output, network(x, torch.full((3,), grid[step]), cond))


def test_the_stored_residual_is_untouched(world: SimpleNamespace) -> None:
    profile = world.calibrate(num_steps=STEPS)
    seen = recorded(world, [ErrorLinearizer(profile=profile), SkipPolicy(steps=(0,))])
    x, output, _ = seen[0, "cond"]
    for step in range(1, STEPS - 1):
        call = seen[step, "cond"][2]
        assert torch.equal(call.history[0].residual, output - x)
        assert not torch.equal(seen[step, "cond"][1], seen[step, "cond"][0] + (output - x))


class Wandering(Policy):
    """A skip rule of another author that decides while sampling, from the latent."""

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        if step.index in (2, 3) or float(call.x.mean()) > 1e6:
            return Compute("moved")
        return Reuse("calm")


def test_lines_follow_a_foreign_skip_rule(world: SimpleNamespace) -> None:
    profile = world.calibrate(num_steps=STEPS)
    fit = affine_fit(profile, per_channel=False)
    seen = recorded(world, [Wandering(), ErrorLinearizer(profile=profile)])
    for step, source in ((1, 0), (4, 3), (5, 3)):
        x, _, call = seen[step, "cond"]
        assert call.history[0].index == source
    # the recorder is outermost, so what it saw is corrected
    for step, source in ((1, 0), (4, 3), (5, 3)):
        x, output, call = seen[step, "cond"]
        reused = (x + call.history[0].residual).double()
        line = fit.slope[0, source, step, 0] * reused + fit.offset[0, source, step, 0]
        torch.testing.assert_close(output.double(), reused - line, rtol=0, atol=2e-6)


def test_a_predictor_that_ran_the_network_is_not_corrected(world: SimpleNamespace) -> None:
    class ChangesItsMind(Policy):
        @hookimpl
        def forward(self, step: Step, call: Call) -> Tensor | None:
            return call.compute() if step.index == 2 else None

    profile = world.calibrate(num_steps=STEPS)
    skip = SkipPolicy(steps=(0,))
    seen = recorded(world, [ErrorLinearizer(profile=profile), ChangesItsMind(), skip])
    _, output, call = seen[2, "cond"]
    assert call.reused
    assert call.ran
    assert torch.equal(output, call.compute())


def test_rows_belong_to_branches_by_name(world: SimpleNamespace) -> None:
    # only the conditional rows serve an unguided run
    profile = world.calibrate(num_steps=STEPS, guidance=world.cfg)
    fit = affine_fit(profile, per_channel=False)
    policy = ErrorLinearizer(profile=profile, allow=("guidance", "branches"))
    seen = recorded(world, [policy, SkipPolicy(steps=(0,))])
    x, output, call = seen[1, "cond"]
    reused = (x + call.history[0].residual).double()
    line = fit.slope[0, 0, 1, 0] * reused + fit.offset[0, 0, 1, 0]
    torch.testing.assert_close(output.double(), reused - line, rtol=0, atol=2e-6)


@pytest.mark.parametrize("granularity", ["channel", "scalar"])
def test_what_remains_is_what_the_fit_does_not_explain(
    world: SimpleNamespace, granularity: Any
) -> None:
    # step 1 still lies on the reference trajectory that was fitted
    latents = world.noise(16)
    profile = world.calibrate(latents=latents, num_steps=STEPS)
    policy = ErrorLinearizer(profile=profile, granularity=granularity)
    x, output, _ = recorded(world, [policy, SkipPolicy(steps=(0,))], latents=latents)[1, "cond"]
    times = torch.full((16,), FlowEuler().schedule(STEPS).times[1])
    truth = world.Swirl()(x, times, world.conditions(latents)[0])
    before = (x + recorded(world, [], latents=latents)[0, "cond"][1] - latents - truth).double()
    after = (output - truth).double()
    r2 = affine_fit(profile, per_channel=granularity == "channel").r2[0, 0, 1]
    axes = (0, 2, 3) if granularity == "channel" else (0, 1, 2, 3)
    assert after.mean(dim=axes).abs().max() < 1e-6
    left = after.var(dim=axes, correction=0) / before.var(dim=axes, correction=0)
    torch.testing.assert_close(left.reshape(-1), 1 - r2, rtol=1e-4, atol=1e-6)
    assert left.max() < 0.98
    assert before.mean(dim=axes).abs().min() > 1e-3  # and a mean was removed


def test_half_precision_keeps_its_dtype(world: SimpleNamespace) -> None:
    latents = world.noise().to(torch.bfloat16)
    profile: Profile = world.calibrate(latents=latents, num_steps=STEPS)
    policy = ErrorLinearizer(profile=profile, granularity="channel")
    result = world.run([policy, SkipPolicy(every=2)], latents=latents, num_steps=STEPS)
    assert result.sample.dtype == torch.bfloat16
    assert result.sample.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_line_for_all_channels_is_evaluated_as_with_plain_numbers(dtype: torch.dtype) -> None:
    policy, output = ErrorLinearizer(), torch.randn(3, 37, dtype=dtype)
    slope, offset = policy._scalar(("cond", 0, 1, dtype), 0.9123456789, -0.1234567891)
    assert slope.ndim == offset.ndim == 0
    assert torch.equal(slope * output + offset, 0.9123456789 * output + -0.1234567891)
    assert policy._scalar(("cond", 0, 1, dtype), 0.0, 0.0)[0] is slope
