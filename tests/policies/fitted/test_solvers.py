"""Fits under noise prediction and under a solver with memory, in the own loop."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from erta_framework import CFG, Engine, NoGuidance, SamplingLoop, SessionInfo
from erta_framework.errors import PolicyError
from erta_framework.sampling.solvers import DDIM, FlowAdamsBashforth2, VESolver, VPSolver
from erta_policies.ertacache import ResidualReuse, SkipPolicy
from erta_policies.fitted import FittedProfiler, FittedReuse, FittedTable
from erta_policies.fitted._cached_run import RUNS
from erta_policies.fitted._solver_variable import SolverVariable

STEPS = SkipPolicy(steps=(0, 1, 2, 6, 11))


class Noise:
    """Noise a + b t + c t^2 of the ratio t of noise and clean part, whatever the latents."""

    def __call__(self, x, times, cond):
        table = torch.tensor(DDIM().training_sigmas, dtype=x.dtype)
        ratio = table[times.long()].reshape(-1, 1, 1, 1, 1) / 10
        parts = [cond[:, k].to(x.dtype).reshape(-1, 1, 1, 1, 1) for k in range(3)]
        return (parts[0] + parts[1] * ratio + parts[2] * ratio**2).expand(x.shape)


def run(field, policies, network, solver, guidance, **options):
    request = field.request(dtype=torch.float64, **options)
    request = dataclasses.replace(request, schedule=solver.schedule(12))
    return SamplingLoop(Engine(policies), solver, guidance).run(network, request)


def error(one, other):
    return float(((one - other) ** 2).mean())


def test_a_parabola_in_the_noise_ratio_is_reproduced_under_ddim(field):
    given = (Noise(), DDIM(), NoGuidance())
    profiler = FittedProfiler(schedule=STEPS, velocities=3, ridge=0.0)
    found = run(field, [profiler], *given, batch=6, copies=len(RUNS)).emitted[0]
    cached = run(field, [FittedReuse(profile=found)], *given, batch=6, seed=50)
    full = run(field, [], *given, batch=6, seed=50)
    line = run(field, [STEPS], *given, batch=6, seed=50)
    assert cached.trace.network_calls == 5
    assert error(cached.sample, full.sample) < 1e-10 * error(line.sample, full.sample)


def test_a_parabola_in_sigma_is_reproduced_under_variance_exploding_noise(field):
    def network(x, times, cond):
        sigma = times.to(x.dtype).reshape(-1, 1, 1, 1, 1) / 10
        parts = [cond[:, k].to(x.dtype).reshape(-1, 1, 1, 1, 1) for k in range(3)]
        return (parts[0] + parts[1] * sigma + parts[2] * sigma**2).expand(x.shape)

    given = (network, VESolver(sigma_max=10.0, sigma_min=0.1), NoGuidance())
    profiler = FittedProfiler(schedule=STEPS, velocities=3, ridge=0.0)
    found = run(field, [profiler], *given, batch=6, copies=len(RUNS)).emitted[0]
    cached = run(field, [FittedReuse(profile=found)], *given, batch=6, seed=50)
    full = run(field, [], *given, batch=6, seed=50)
    line = run(field, [STEPS], *given, batch=6, seed=50)
    assert cached.trace.network_calls == 5
    assert error(cached.sample, full.sample) < 1e-10 * error(line.sample, full.sample)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_predictions_in_which_no_step_is_an_euler_step_are_refused(field, prediction):
    solver = VPSolver(prediction=prediction)
    message = f"under VPSolver.* the network predicts {prediction}; convert the output with"
    with pytest.raises(PolicyError, match=message):
        run(field, [FittedProfiler(schedule=STEPS)], Noise(), solver, NoGuidance(), batch=4)


def test_a_solver_with_memory_is_fitted_with_a_share_of_the_trajectory_target(field):
    given = (field.mixture, FlowAdamsBashforth2(), CFG(scale=2.0))
    profiler = FittedProfiler(schedule=STEPS)
    found = run(field, [profiler], *given, batch=8, copies=len(RUNS)).emitted[0]
    table = FittedTable.of(found)
    assert (table.settings.trajectory, table.settings.averaged) == (0.3, 0)
    cached, plain, full = (
        run(field, policies, *given, batch=8)
        for policies in ([FittedReuse(profile=found)], [STEPS, ResidualReuse()], [])
    )
    assert cached.trace.computed_steps == (0, 1, 2, 6, 11)
    assert error(cached.sample, full.sample) == pytest.approx(min(table.errors.values()), rel=1e-2)
    assert error(plain.sample, full.sample) == pytest.approx(table.errors["plain"], rel=1e-3)


def test_branches_that_change_under_a_solver_with_memory_are_refused(field):
    given = (field.mixture, FlowAdamsBashforth2(), CFG(scale=2.0, start=0.3))
    with pytest.raises(PolicyError, match="how a multistep solver weighs them"):
        run(field, [FittedProfiler(schedule=STEPS)], *given, batch=4, copies=len(RUNS))


@pytest.mark.parametrize(
    ("sigmas", "times", "kind"),
    [
        ((1.0, 0.5, 0.0), (1000.0, 500.0), "flow"),
        ((14.6, 0.5, 0.0), (999.0, 300.0), "ratio"),
        ((0.99, 0.7, 0.0), (999.0, 300.0), "level"),
    ],
)
def test_what_sigma_is_shows_without_capabilities(sigmas, times, kind):
    session = SessionInfo(
        sigmas=sigmas,
        times=times,
        shape=(1, 1, 2, 2),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    assert SolverVariable.of(session).kind == kind
