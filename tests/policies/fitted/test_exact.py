"""Fits that lead to the exact solution instead of the full run, and their refinement."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erta_framework import NoGuidance, Profile
from erta_framework.calibration import GRADIENT_CALLS, NetworkMemory, Solution, divide_steps
from erta_framework.errors import CapabilityError, InputError, PolicyError, ProfileError
from erta_framework.metrics import psnr
from erta_framework.sampling import solve
from erta_framework.sampling.solvers import DDIM, FlowAdamsBashforth2
from erta_framework.testing import AffineFlow, GaussianMixtureFlow
from erta_policies.ertacache import SkipPolicy
from erta_policies.fitted import EndToEndProfiler, FittedProfiler, FittedReuse, FittedTable
from erta_policies.fitted._end_to_end import find_edges, refine_rows
from noise_networks import SHAPE, MixtureNoise, exploding


class NoiseModel(MixtureNoise):
    """The mixture's noise as a model of its own."""

    prediction = "epsilon"
    latent_shape = SHAPE

    def __init__(self, solver):
        super().__init__(solver.form.process, "variance_exploding" not in solver.capabilities)

    def encode(self, prompts):
        return 0.3 * self.flow.encode(prompts)

    def fingerprint(self):
        return self.flow.fingerprint()


HELD_OUT = [f"test {k}" for k in range(16)]
TRAINING = [f"sample {k}" for k in range(16)]


@pytest.fixture(scope="module")
def exact(field):
    """The solution of held-out samples at 12 steps."""
    return solve(field.sampler(batch=16), field.mixture, HELD_OUT, seed=700)


def measure(field, profiler, prompts=TRAINING):
    """A profile, and how near to the solution of held-out samples it leads."""
    profile = field.fit(profiler, prompts=prompts, batch=16)
    result = field.sampler([FittedReuse(profile=profile)], batch=16).sample(
        field.mixture, HELD_OUT, seed=700
    )
    return profile, result


class TestSolution:
    def test_it_is_where_ever_finer_plain_runs_lead(self, field, exact):
        errors = [
            float(psnr(run.samples, exact.latents[:, -1]).mean())
            for steps in (12, 48, 192)
            for run in [
                field.sampler(steps=steps, batch=16).sample(field.mixture, HELD_OUT, seed=700)
            ]
        ]
        # a first-order run: four times the steps, a quarter of the error or less
        assert all(after - before > 9 for before, after in pairwise(errors)), errors

    def test_it_passes_through_the_analytic_flow(self, field):
        flow = AffineFlow(field.shape)
        sampler = field.sampler(batch=2)
        found = solve(sampler, flow, ["a", "b"], seed=3, substeps=32)
        # guidance of scale 2 moves the condition, in which the flow is affine
        embeds = 2 * flow.encode(["a", "b"])
        for place, sigma in enumerate(found.sigmas):
            wanted = flow.trajectory(found.latents[:, 0], 1.0, sigma, embeds)
            assert torch.allclose(found.latents[:, place], wanted, atol=1e-4), sigma

    def test_its_error_is_estimated_and_of_second_order(self, field):
        flow = AffineFlow(field.shape)
        embeds = 2 * flow.encode(["a", "b"])
        errors = []
        for count in (4, 8):
            found = solve(field.sampler(batch=2), flow, ["a", "b"], seed=3, substeps=count)
            true = flow.trajectory(found.latents[:, 0], 1.0, 0.0, embeds)
            error = float((found.latents[:, -1] - true).double().square().mean())
            # steps this large are better than of second order, so it is estimated too high
            assert error < found.error < 8 * error
            errors.append(error)
        # half the step size is a quarter of the error, and these are squares
        assert errors[0] / errors[1] > 8

    def test_it_finds_samples_by_their_noise(self, exact):
        rows = exact.latents[[3, 1], 0]
        assert torch.equal(exact.find(rows), exact.latents[[3, 1]])
        with pytest.raises(InputError, match="none that starts from the noise of sample 0"):
            exact.find(rows + 1)

    def test_other_schedules_and_solvers_are_refused(self, field, exact):
        with pytest.raises(InputError, match="is at 12 steps, the run has 6"):
            exact.require_sigmas(exact.sigmas[::2])
        with pytest.raises(InputError, match="even number"):
            solve(field.sampler(), field.mixture, HELD_OUT, substeps=3)
        with pytest.raises(InputError, match="latents"):
            Solution(exact.sigmas[:-1], exact.latents, 0.0, 8, 1)

    @given(st.lists(st.floats(0.01, 80.0), min_size=1, max_size=5, unique=True), st.integers(1, 9))
    def test_grids_are_divided_between_the_sigmas(self, sigmas, count):
        whole = (*sorted(sigmas, reverse=True), 0.0)
        fine = divide_steps(whole, count)
        assert fine[::count] == whole
        assert all(a > b for a, b in pairwise(fine)) or count > 1

    @given(st.floats(0.05, 80.0), st.integers(2, 9))
    def test_nothing_is_asked_below_the_smallest_sigma_of_the_network(self, first, count):
        fine = divide_steps((first, 0.0), count, least=0.02)
        assert (fine[0], fine[-2], fine[-1]) == (first, 0.02, 0.0)
        assert len(fine) == count + 1
        assert all(a > b for a, b in pairwise(fine))

    def test_the_solution_of_discrete_noise_levels_is_of_second_order(self, field):
        solver = DDIM().parts
        model = NoiseModel(solver)
        sampler = field.sampler(solver=solver, steps=10, batch=4, guidance=NoGuidance())
        ends = [solve(sampler, model, TRAINING[:4], substeps=k).samples for k in (8, 16, 64)]
        apart = [float((end - ends[-1]).norm()) for end in ends[:-1]]
        # a finer grid by two, an error that is smaller by about four
        assert 3 < apart[0] / apart[1] < 6

    def test_a_solution_needs_one_start(self, exact):
        fine = exact.latents
        with pytest.raises(InputError, match="other noise"):
            Solution.of_runs(exact.sigmas, fine + 1, fine, 8)
        again = Solution.of_runs(exact.sigmas, fine, fine, 8)
        assert (again.error, again.calls) == (0.0, exact.calls)
        assert torch.equal(again.samples, exact.samples)


class TestExactTarget:
    def test_fewer_calls_are_nearer_to_the_solution_than_the_full_run(self, field, exact):
        full = field.sampler(batch=16).sample(field.mixture, HELD_OUT, seed=700)
        goal = exact.latents[:, -1]
        _, fitted = measure(field, FittedProfiler(schedule=SkipPolicy(evenly=8), target="exact"))
        _, before = measure(field, FittedProfiler(schedule=SkipPolicy(evenly=8)))
        own, rest, imitation = (
            float(psnr(run.samples, goal).mean()) for run in (fitted, full, before)
        )
        assert fitted.network_calls == 2 * 8
        assert own > rest + 3
        assert own > imitation + 3

    @pytest.mark.parametrize("solver", [DDIM().parts, exploding()], ids=["ddim", "exploding"])
    def test_noise_predictions_lead_there_too(self, field, solver):
        model = NoiseModel(solver)

        def sampler(policies=()):
            return field.sampler(policies, solver=solver, steps=20, batch=16, guidance=NoGuidance())

        profiler = FittedProfiler(schedule=SkipPolicy(evenly=12), target="exact")
        profile = sampler().calibrate(model, TRAINING, profiler=profiler)
        goal = solve(sampler(), model, HELD_OUT, seed=700).latents[:, -1]
        full = sampler().sample(model, HELD_OUT, seed=700).samples
        own = sampler([FittedReuse(profile=profile)]).sample(model, HELD_OUT, seed=700)
        assert own.network_calls == 12
        assert float(psnr(own.samples, goal).mean()) > float(psnr(full, goal).mean())

    def test_the_profile_says_how_far_the_full_run_is(self, field):
        profile = field.fit(FittedProfiler(target="exact"), prompts=TRAINING, batch=16)
        full, own, substeps = (profile.statistics["solution"] / profile.samples).tolist()
        table = FittedTable.of(profile)
        elements = profile.statistics["elements"] / profile.samples
        assert full / float(elements) > 3 * table.errors["fitted"]
        assert own < 1e-2 * full
        assert substeps == 8

    def test_several_batches_are_solved_and_judged(self, field):
        profile = field.fit(FittedProfiler(target="exact"), prompts=TRAINING, batch=8)
        assert FittedTable.of(profile).judged

    def test_it_is_not_merged_with_a_fit_to_the_full_run(self, field):
        parts = [
            field.fit(FittedProfiler(target=target), prompts=TRAINING[:8])
            for target in ("exact", None)
        ]
        with pytest.raises(ProfileError):
            FittedTable.of(Profile.merge(parts))

    def test_what_cannot_lead_there_is_refused(self, field, exact):
        with pytest.raises(PolicyError, match="'exact'"):
            FittedProfiler(target="exactly")
        with pytest.raises(PolicyError, match="no solution of these samples"):
            field.run([FittedProfiler(target="exact")], copies=4)
        with pytest.raises(PolicyError, match="without memory only"):
            field.sampler(solver=FlowAdamsBashforth2(), batch=16).calibrate(
                field.mixture, TRAINING, profiler=FittedProfiler(target="exact")
            )
        with pytest.raises(InputError, match="solve the same samples"):
            field.fit(FittedProfiler(target="exact", solution=exact), batch=16)


class TestRefinement:
    def test_it_is_exact_where_weights_can_be(self):
        # the end is linear in the weights, so one Gauss-Newton step is least squares
        torch.manual_seed(0)
        features = torch.randn(12, 5, 2, dtype=torch.float64)
        truth = torch.tensor([0.7, -0.4], dtype=torch.float64)
        goal = features @ truth

        def run(rows, *, keep=False):
            return torch.einsum("nef,f->ne", features, rows[1, 0, :2])

        rows = torch.zeros(2, 1, 4, dtype=torch.float64)
        edges = find_edges((0, 1), 2, depth=2)
        found = refine_rows(rows, edges, run, goal, torch.arange(12) % 4 == 3, rounds=12)
        assert torch.allclose(found.rows[1, 0, :2], truth, atol=1e-3)
        assert found.after < found.before

    def test_it_never_ends_worse_on_the_samples_that_judge(self):
        def run(rows, *, keep=False):
            return torch.full((8, 3), 1.0 + float(rows.abs().sum()))  # every move is worse

        rows = torch.zeros(2, 1, 4, dtype=torch.float64)
        found = refine_rows(
            rows, find_edges((0, 1), 2, 2), run, torch.zeros(8, 3), torch.arange(8) % 4 == 3
        )
        assert found.after == found.before
        assert torch.equal(found.rows, rows)

    def test_it_helps_on_samples_that_it_has_not_seen(self, field, exact):
        goal = exact.latents[:, -1]
        schedule = SkipPolicy(evenly=5)
        before, after = (
            measure(field, kind(schedule=schedule, target="exact"))[1]
            for kind in (FittedProfiler, partial(EndToEndProfiler, refine=1))
        )
        assert after.network_calls == before.network_calls == 2 * 5
        gained = psnr(after.samples, goal).mean() - psnr(before.samples, goal).mean()
        assert float(gained) > 1

    def test_it_needs_samples_to_hold_out(self, field):
        with pytest.raises(PolicyError, match="calibrate on 8 or more"):
            field.fit(EndToEndProfiler(refine=1), prompts=TRAINING[:4], batch=4)
        with pytest.raises(PolicyError, match="1 or more rounds or sweeps"):
            EndToEndProfiler(refine=0)

    def test_the_recipe_calibrates_it(self):
        chosen = FittedReuse(target="exact", refine=3).calibrator()
        assert isinstance(chosen, EndToEndProfiler)
        assert (chosen.target, chosen.refine) == ("exact", 3)
        assert not FittedReuse(target="exact").calibrator().tries_out

    def test_edges_are_the_steps_between_computed_ones(self):
        assert [edge.steps for edge in find_edges((0, 1, 4), 6, 4)] == [(1, 2, 3), (4, 5)]
        assert [edge.depth for edge in find_edges((0, 2, 4), 6, 2)] == [1, 2, 2]

    def test_pipelines_that_cannot_sample_for_it_refuse(self, field):
        from erta_framework.calibration import calibrate

        with pytest.raises(CapabilityError, match="exact solution"):
            calibrate(FittedProfiler(target="exact"), lambda profiler: ())
        profile = field.fit(FittedProfiler(), prompts=TRAINING, batch=16)
        with pytest.raises(CapabilityError, match="tries something out"):
            calibrate(EndToEndProfiler(), lambda profiler: (profile,))


class CountingFlow(GaussianMixtureFlow):
    """Counts the samples that it has predicted."""

    rows = 0

    def __call__(self, x, times, cond):
        self.rows += len(x)
        return super().__call__(x, times, cond)


class TestCost:
    def test_the_profile_says_what_its_calibration_took(self, field):
        model = CountingFlow(field.shape)
        profiler = EndToEndProfiler(
            schedule=SkipPolicy(evenly=4), target="exact", refine=1, steps_within=4
        )
        profile = field.fit(profiler, model=model, prompts=TRAINING[:8])
        full = 2 * 8 * 12  # branches, samples, steps
        assert float(profile.provenance["full_runs"]) == pytest.approx(model.rows / full, abs=0.05)
        # the solution, four copies, and of the refinement what comes after each moved weight
        edges = find_edges(FittedTable.of(profile).computed, 12, 4)
        moved = sum((edge.depth + 1) * (3 - place) for place, edge in enumerate(edges))
        tried = 1 + 4 + 1  # at first, each damping, and the end, of which the start is known
        assert full * 10 + 16 * moved < model.rows <= full * 10 + 16 * (moved + tried * 4)

    def test_six_rounds_at_twelve_calls_take_less_than_forty_full_runs(self):
        # by counting: no run is needed for what is known beforehand
        edges = find_edges((0, 4, 8, 13, 17, 21, 26, 30, 34, 39, 43, 47), 50, 4)
        slopes = sum((edge.depth + 1) * (11 - place) for place, edge in enumerate(edges))
        tried, gradients = 6 * 4 * 12, 3 * GRADIENT_CALLS * 12
        # the solution, fit and judgement of two batches; at first and at the end
        assert 12 + 4 + 4 + (slopes + tried + gradients + 2 * 12) / 50 < 40

    def test_what_was_computed_before_changes_nothing(self, field):
        found = []
        for kept in (True, False):
            memory = NetworkMemory()
            if not kept:
                memory.begin = lambda keep: None
            x = torch.ones(2, 3)
            ends = []
            for keep, factor in ((True, 2.0), (False, 2.0), (False, 3.0)):
                memory.begin(keep)
                first = memory.call(torch.sin, (x,), {})
                ends.append(memory.call(torch.cos, (first * factor,), {}))
            found.append((ends, memory.rows))
        (ends, rows), (plain, all_rows) = found
        assert all(torch.equal(a, b) for a, b in zip(ends, plain, strict=True))
        assert (rows, all_rows) == (4 + 2, 12)

    def test_a_memory_leaves_a_module_as_it_was(self):
        layer, memory = torch.nn.Linear(3, 3).requires_grad_(False), NetworkMemory()
        x = torch.ones(2, 3)
        wanted = layer(x)
        with memory.watch(layer):
            memory.begin(True)
            assert torch.equal(layer(x), wanted)
            memory.begin(False)
            answer = layer(x)
            answer.zero_()  # a caller may change it
            memory.begin(False)
            assert torch.equal(layer(input=x), wanted)
        assert memory.rows == 2
        assert "forward" not in vars(layer)
