"""The search that moves computed steps, and the runs that it tries schedules out with."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erta_framework import CFG, NoGuidance
from erta_framework.budgets import ListedSteps
from erta_framework.calibration import NetworkMemory
from erta_framework.errors import CapabilityError, InputError, PolicyError
from erta_framework.jobs import CalibrationRequest
from erta_framework.metrics import psnr
from erta_framework.sampling import solve
from erta_framework.sampling.solvers import FlowAdamsBashforth2
from erta_framework.testing import GaussianMixtureFlow
from erta_policies.ertacache import SkipPolicy
from erta_policies.fitted import EndToEndProfiler, FittedProfiler, FittedReuse, FittedTable
from erta_policies.fitted._edge_fit import EdgeFit, try_steps
from erta_policies.fitted._full_run import record_full_run
from erta_policies.fitted._moved_steps import move_steps

TRAINING = [f"sample {k}" for k in range(16)]
HELD_OUT = [f"test {k}" for k in range(16)]
SETTINGS = FittedProfiler().settings(one_step=True)


def sample_with(field, model, **options):
    """Samples of the training prompts under policies."""

    def sample(policies, *, keep=False):
        return field.sampler(policies, batch=16, **options).sample(model, TRAINING).samples

    return sample


class TestMoves:
    @given(
        st.lists(st.integers(1, 19), min_size=1, max_size=6, unique=True),
        st.lists(st.floats(-1, 1), min_size=20, max_size=20),
        st.integers(1, 3),
    )
    def test_a_schedule_stays_one_and_is_never_worse(self, later, worth, sweeps):
        tried = []

        def measure(steps, *, keep=False):
            tried.append((steps, keep))
            return sum(worth[index] for index in steps)

        start = (0, *sorted(later))
        found = move_steps(start, 20, measure, sweeps)
        assert len(found) == len(start)
        assert found[0] == 0
        assert found[-1] < 20
        assert all(a < b for a, b in pairwise(found))
        assert measure(found) <= measure(start)
        assert all(len(steps) == len(start) for steps, _ in tried)
        # whatever a run is compared with has been kept
        assert [steps for steps, keep in tried if keep][-1] == found

    def test_it_ends_where_no_move_helps(self):
        found = move_steps((0, 1, 2), 12, lambda steps, keep=False: abs(sum(steps) - 14), 9)
        assert sum(found) == 14


class TestEdgeFit:
    def test_it_leads_to_the_end_of_a_quadratic_velocity(self, field):
        # three velocities make every later one, so every error that was made can be made good
        class Curve(field.Parabola):
            latent_shape = field.shape

            def encode(self, prompts):
                return field.mixture.encode(prompts)

            def fingerprint(self):
                return {"network": "parabola"}

        model, steps = Curve(), (0, 2, 4, 7, 9)
        plain = NoGuidance()  # the other branch is 0 here, and has no weight
        goal = solve(field.sampler(batch=16, guidance=plain), model, TRAINING, substeps=16)
        sample = sample_with(field, model, guidance=plain)
        wanted = goal.latents[:, -1]
        full = float((sample(()) - wanted).norm())
        settings = FittedProfiler(latent=False, ridge=1e-9).settings(one_step=True)
        assert float((try_steps(sample, goal, settings, steps, False) - wanted).norm()) < full / 100

    def test_it_asks_the_network_at_computed_steps_alone(self, field):
        goal = solve(field.sampler(batch=16), field.mixture, TRAINING)
        steps = (0, 3, 4, 9)
        parts = [ListedSteps(steps=steps), EdgeFit(goal=goal, steps=steps, settings=SETTINGS)]
        result = field.sampler(parts, batch=16).sample(field.mixture, TRAINING)
        assert result.network_calls == 2 * len(steps)
        assert [step.index for step in result.traces[0].steps if step.computed] == list(steps)

    def test_a_step_whose_branches_change_is_computed_as_the_fit_computes_it(self, field):
        guidance = CFG(scale=2.0, stop=0.4)
        run = field.sampler(batch=16, guidance=guidance)
        goal, steps = solve(run, field.mixture, TRAINING), (0, 3, 6, 10)
        parts = [ListedSteps(steps=steps), EdgeFit(goal=goal, steps=steps, settings=SETTINGS)]
        result = run.with_policies(parts).sample(field.mixture, TRAINING)
        (trace,) = result.traces
        alone = next(step.index for step in trace.steps if len(step.calls) == 1)
        assert alone not in steps
        asked = {step.index for step in trace.steps if step.computed}
        profiler = FittedProfiler(schedule=ListedSteps(steps=steps), target="exact")
        profile = run.calibrate(field.mixture, TRAINING, profiler=profiler)
        assert asked == {*steps, alone} == {*FittedTable.of(profile).computed}

    def test_it_is_nearly_the_fit_beside_the_full_run(self, field):
        """Its error tells how good a fit of the schedule would be."""
        goal = solve(field.sampler(batch=16), field.mixture, TRAINING)
        steps = (0, 2, 4, 6, 8, 10)
        sample = sample_with(field, field.mixture)
        tried = psnr(try_steps(sample, goal, SETTINGS, steps, False), goal.latents[:, -1]).mean()
        profile = field.fit(
            FittedProfiler(schedule=ListedSteps(steps=steps), target="exact"),
            prompts=TRAINING,
            batch=16,
        )
        ends = sample([FittedReuse(profile=profile)])
        assert float(tried) == pytest.approx(float(psnr(ends, goal.latents[:, -1]).mean()), abs=1.5)

    def test_the_full_run_is_a_goal_like_any_other(self, field):
        sample = sample_with(field, field.mixture)
        goal = record_full_run(sample)
        assert torch.equal(goal.latents[:, -1], sample(()))
        assert goal.sigmas == field.sampler().schedule.sigmas
        assert torch.equal(goal.find(goal.latents[[2], 0]), goal.latents[[2]])


class TestSearch:
    def test_moved_steps_lead_nearer_on_samples_that_it_has_not_seen(self, field):
        goal = solve(field.sampler(batch=16), field.mixture, HELD_OUT, seed=700).latents[:, -1]
        ends, computed = [], []
        for search in (0, 2):
            kind = {"search": search, "refine": 0} if search else {}
            profiler = (EndToEndProfiler if search else FittedProfiler)(
                schedule=ListedSteps(steps=(0, 2, 4, 6, 8, 10)), target="exact", **kind
            )
            profile = field.fit(profiler, prompts=TRAINING, batch=16)
            run = field.sampler([FittedReuse(profile=profile)], batch=16)
            result = run.sample(field.mixture, HELD_OUT, seed=700)
            assert result.network_calls == 2 * 6
            ends.append(float(psnr(result.samples, goal).mean()))
            computed.append(FittedTable.of(profile).computed)
        assert computed[0] != computed[1]
        assert ends[1] > ends[0] + 3

    def test_the_profile_says_what_it_took(self, field):
        class Counting(GaussianMixtureFlow):
            rows = 0

            def __call__(self, x, times, cond):
                self.rows += len(x)
                return super().__call__(x, times, cond)

        model = Counting(field.shape)
        profiler = EndToEndProfiler(schedule=SkipPolicy(evenly=4), search=1, refine=0)
        profile = field.fit(profiler, model=model, prompts=TRAINING[:8])
        full = 2 * 8 * 12  # branches, samples, steps
        assert float(profile.provenance["full_runs"]) == pytest.approx(model.rows / full, abs=0.05)
        # the full run, four copies of it, and cached runs of 4 calls, most of which begin alike
        assert full * 5 < model.rows < full * 5 + 16 * 4 * 20

    def test_the_recipe_searches_where_it_is_asked_to(self):
        chosen = FittedReuse(search=2).calibrator()
        assert isinstance(chosen, EndToEndProfiler)
        assert (chosen.search, chosen.refine, chosen.tries_out) == (2, 0, False)
        judging = FittedReuse(search=2, refine=1, judge=True, profile="a.safetensors")
        assert not judging.calibrator().tries_before

    def test_what_cannot_be_searched_is_refused(self, field):
        with pytest.raises(PolicyError, match="whose steps are fixed"):
            EndToEndProfiler(search=1, start="fitted.safetensors")
        with pytest.raises(PolicyError, match="4 samples for the search"):
            field.fit(EndToEndProfiler(search=1), prompts=TRAINING[:4], batch=4)
        with pytest.raises(PolicyError, match="without memory only"):
            field.sampler(solver=FlowAdamsBashforth2(), batch=16).calibrate(
                field.mixture, TRAINING, profiler=EndToEndProfiler(search=1)
            )
        goal = record_full_run(sample_with(field, field.mixture))
        with pytest.raises(PolicyError, match="this one has one"):
            field.fit(EndToEndProfiler(search=1), prompts=TRAINING[:8], batch=1)
        other = sample_with(field, field.mixture, steps=6)
        with pytest.raises(InputError, match="at 12 steps"):
            try_steps(other, goal, SETTINGS, (0, 3), False)


@pytest.mark.parametrize("tried", [{"search": 1, "refine": 0}, {"refine": 1}])
def test_several_ranks_do_not_try_settings_out_each_on_its_own_samples(tried):
    with pytest.raises(CapabilityError, match="calibrate on one device"):
        CalibrationRequest(open=print, prompts=("a",), profiler=EndToEndProfiler(**tried))


def test_refined_weights_are_not_lost_in_a_judging_round(field):
    profile = field.fit(EndToEndProfiler(refine=1, target="exact"), prompts=TRAINING[:8])
    with pytest.raises(PolicyError, match="before it is refined"):
        FittedProfiler(start=profile, target="exact").prepare()
    with pytest.raises(PolicyError, match="give target='exact'"):
        FittedProfiler(solution=record_full_run(sample_with(field, field.mixture)))


def test_a_kept_run_begins_with_what_was_kept_before():
    memory, asked = NetworkMemory(), []

    def network(x):
        asked.append(float(x))
        return x + 1

    for values, keep in (((1.0, 2.0), True), ((1.0, 3.0), True), ((1.0, 3.0), False)):
        memory.begin(keep)
        assert [float(memory.call(network, (torch.tensor(v),), {})) for v in values] == [
            v + 1 for v in values
        ]
    assert asked == [1.0, 2.0, 3.0]
    assert memory.rows == 3
