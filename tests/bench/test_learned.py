"""A solver trained by gradient: what it begins as, what training does, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from erta_bench.comparison._contender import learned
from erta_bench.comparison._runner import Prepared, Runner
from erta_bench.learned import (
    BASES,
    FORWARDS,
    Base,
    LearnedSolver,
    SolverParameters,
    Trainer,
    Training,
    TrainingSamples,
    find_form,
    run_solver,
)
from erta_framework import CFG, Sampler
from erta_framework.errors import InputError
from erta_framework.sampling import FlowEuler, Solver, sample_noise
from erta_framework.sampling.solvers import EDMSolver, FlowSolver, VESolver, VPSolver
from erta_framework.testing import GaussianMixtureFlow
from erta_integrations.shapes_wan import ShapesWan

COUNT = 9
PROMPTS = [f"sample {k}" for k in range(COUNT)]
GUIDANCE = CFG(scale=2.0)
MODEL = GaussianMixtureFlow()


def make_samples(calls: int = 100) -> TrainingSamples:
    """Samples of the mixture, and nearly exactly where they end."""
    fine = Sampler(solver=FlowSolver(integrator="ab2"), guidance=GUIDANCE, num_steps=calls)
    cond, uncond = MODEL.encode([*PROMPTS, *[""] * COUNT]).chunk(2)
    noise = sample_noise(MODEL.latent_shape, range(COUNT))
    return TrainingSamples(noise, cond, uncond, fine.sample(MODEL, PROMPTS).samples)


class Curved:
    """A network of each latent alone."""

    def __call__(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        moment = time.reshape(-1, *[1] * (x.ndim - 1)) / 1000
        return torch.tanh(x) * (1 + moment)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    "kind", [FlowSolver, VPSolver, VESolver, EDMSolver], ids=lambda kind: kind.__name__
)
def test_untrained_it_is_the_plain_solver(kind: Any, base: Base) -> None:
    plain: Solver = kind(integrator=base)
    schedule = plain.schedule(5)
    own = SolverParameters.of(find_form(plain), base, schedule).as_solver()
    assert torch.allclose(torch.tensor(own.sigmas), torch.tensor(schedule.sigmas), rtol=1e-6)
    network = Curved()
    x = plain.noised(None, sample_noise((3, 4), range(2)).double(), schedule.sigmas[0])
    ends = []
    for solver in (plain, own):
        latents, state = x, None
        for index in range(5):
            step = solver.schedule(5).interval(index)
            output = network(latents, torch.full((2,), step.time), torch.empty(0))
            latents, state = solver.step(latents, output, step, state)
        ends.append(latents)
    assert torch.allclose(ends[0], ends[1], rtol=1e-4, atol=1e-6)


def test_training_lowers_the_held_out_error_and_counts_its_calls() -> None:
    samples = make_samples()
    trainer = Trainer(MODEL, GUIDANCE, samples, Training(iterations=20, every=10, batch=4))
    trained = trainer.train(FlowEuler(), 4)
    assert trained.after < trained.before - 0.1  # a dB, and it is several
    # both plain solvers on all samples; looks at the third that is held out: 1, and 2 a rate
    looks = 2 * COUNT + 5 * (COUNT // 3)
    assert trained.calls == 4 * (looks + 2 * FORWARDS * 20 * 4)
    assert list(trained.solver.sigmas) == sorted(trained.solver.sigmas, reverse=True)
    assert trained.solver.sigmas[0] == 1.0
    assert trained.solver.sigmas[-1] == 0.0
    # what is sampled is what was trained
    found = Sampler(solver=trained.solver, guidance=GUIDANCE, num_steps=4).sample(MODEL, PROMPTS)
    error = (found.samples - samples.target).double().square().flatten(1).mean(1).log10()
    assert float(error[2::3].mean()) == pytest.approx(trained.after, abs=1e-2)
    assert [trace.network_samples for trace in found.traces] == [4 * 2 * COUNT]


def test_what_is_judged_is_not_fitted() -> None:
    samples = make_samples(20)
    broken = samples.target.clone()
    broken[2::3] += 100.0  # no solver reaches these, so the plain one stays
    given = TrainingSamples(samples.latents, samples.cond, samples.uncond, broken)
    trained = Trainer(MODEL, GUIDANCE, given, Training(iterations=2, every=1)).train(FlowEuler(), 3)
    assert trained.after == pytest.approx(trained.before, abs=1e-2)


def test_gradients_are_those_of_the_run() -> None:
    one = make_samples(10)
    assert one.uncond is not None
    parts = (one.latents, one.cond, one.uncond, one.target)
    samples = TrainingSamples(*(part.double() for part in parts))
    start = FlowEuler().schedule(3)
    made = SolverParameters.of(find_form(FlowEuler()), "ab2", start)

    def measure() -> Tensor:
        ends = run_solver(MODEL, GUIDANCE, made, samples)
        return (ends - samples.target).double().square().mean()

    tensors = [tensor.requires_grad_() for tensor in made.tensors]
    gradients = torch.autograd.grad(measure(), tensors)
    for tensor, gradient in zip(tensors, gradients, strict=True):
        direction = torch.randn(
            tensor.shape, generator=torch.Generator().manual_seed(1), dtype=tensor.dtype
        )
        with torch.no_grad():
            tensor += 1e-2 * direction
            ahead = measure()
            tensor -= 2e-2 * direction
            behind = measure()
            tensor += 1e-2 * direction
        slope = float((ahead - behind) / 2e-2)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-2, abs=1e-5)


def test_a_learned_solver_serves_whole_runs_of_its_own_number_of_steps() -> None:
    made = SolverParameters.of(find_form(FlowEuler()), "ab2", FlowEuler().schedule(3)).as_solver()
    with pytest.raises(InputError, match="trained for 3 steps on a grid of its own, 4 steps"):
        Sampler(solver=made, num_steps=4)
    sampler = Sampler(solver=made, guidance=GUIDANCE, num_steps=3)
    with pytest.raises(InputError, match="without init"):
        sampler.sample(MODEL, PROMPTS[:1], init=torch.zeros(1, *MODEL.latent_shape), first=1)
    with pytest.raises(InputError, match="start at step 0"):
        sampler.sample(MODEL, PROMPTS[:1], latents=torch.zeros(1, *MODEL.latent_shape), first=1)
    with pytest.raises(InputError, match="make no solver"):
        LearnedSolver(
            form=made.form,
            feature="slope",
            sigmas=made.sigmas,
            times=made.times,
            rows=made.rows[:2],
        )


def test_too_few_samples_and_unknown_solvers_are_refused() -> None:
    few = make_samples(10).take(torch.tensor([0, 1]))
    with pytest.raises(InputError, match="leave none to fit or none to judge"):
        Trainer(MODEL, GUIDANCE, few).train(FlowEuler(), 3)
    with pytest.raises(InputError, match="must be one of ab2, dpmpp_2m"):
        SolverParameters.of(find_form(FlowEuler()), "heun", FlowEuler().schedule(3))  # type: ignore[arg-type]
    whole = SolverParameters.of(find_form(FlowEuler()), "ab2", FlowEuler().schedule(2))
    with pytest.raises(InputError, match="has no parts"):
        find_form(whole.as_solver())


def test_a_row_runs_its_solver_with_so_many_calls_of_each_branch(seeming_gpu: None) -> None:
    row = learned("learned", "exact")
    assert row.kind == "peer"
    model = ShapesWan().eval().requires_grad_(False)
    solver = SolverParameters.of(find_form(FlowEuler()), "ab2", FlowEuler().schedule(3)).as_solver()
    runner = Runner(model, steps=6, batch_size=2, accelerator="cpu")
    result = runner.run(Prepared(row, 3, solver=solver), ["", ""], seed=0)
    assert result.calls == 3
    assert row.steps(3, 6) == 3
