"""Slopes of where a cached run ends: by gradient, and corrected by what runs show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from erta_framework import CFG, Engine, FlowEuler, SamplingLoop
from erta_framework.calibration import GRADIENT_CALLS, NetworkMemory
from erta_framework.errors import CapabilityError
from erta_framework.sampling import CalibrationRuns, LoopSamples
from erta_policies.ertacache import SkipPolicy
from erta_policies.fitted import FittedProfiler, FittedSchedule, FittedTable, FittedVelocity
from erta_policies.fitted._end_to_end import find_edges, list_moves, refine_rows, with_rows
from erta_policies.fitted._gradient import DifferentiableVelocity, make_differentiate
from erta_policies.fitted._slopes import Slopes

STEPS = 6


@pytest.fixture(scope="module", params=["scalar", "channel"])
def profile(field, request):
    profiler = FittedProfiler(schedule=SkipPolicy(evenly=3), granularity=request.param)
    return field.fit(profiler, steps=STEPS)


def run(field, policies, gradients=False, dtype=torch.float64, network=None):
    loop = SamplingLoop(Engine(policies), FlowEuler(), CFG(scale=2.0), gradients=gradients)
    request = field.request(steps=STEPS, batch=3, dtype=dtype)
    return loop.run(network or field.mixture, request).sample


def make_parts(profile, kind=FittedVelocity, **options):
    shared = {"profile": profile, "allow": ("dtype",)}
    return [FittedSchedule(**shared), kind(**shared, **options)]


def differentiate(field, profile, leaves, **options):
    policies = make_parts(profile, DifferentiableVelocity, leaves=leaves)
    return run(field, policies, gradients=True, **options)


class TestDifferentiableRun:
    def test_its_gradient_is_that_of_differences_for_each_sample(self, field, profile):
        table, leaves = FittedTable.of(profile), []
        ends = differentiate(field, profile, leaves)
        toward = torch.randn(ends.shape, dtype=ends.dtype)
        (slope,) = torch.autograd.grad((ends * toward).sum(), leaves)
        rows, nudge = table.weigh_steps(), 1e-3  # weights of channels are float32 in a run
        for move in list_moves(rows, find_edges(table.computed, STEPS, 4))[::2]:
            there, back = (
                run(field, make_parts(moved))
                for sign in (1, -1)
                for moved in [with_rows(profile, rows + sign * nudge * move)]
            )
            wanted = ((there - back) * toward).flatten(1).sum(dim=1) / (2 * nudge)
            found = (slope * move).flatten(1).sum(dim=1)
            assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_its_samples_are_those_of_a_plain_run(self, field, profile, dtype):
        leaves = []
        ends = differentiate(field, profile, leaves, dtype=dtype)
        assert torch.equal(ends, run(field, make_parts(profile), dtype=dtype))
        assert ends.requires_grad
        assert leaves[0].shape[:2] == (3, STEPS)

    def test_batches_count_with_their_gradients(self, field, profile):
        memory, model = NetworkMemory(), field.mixture

        class Watched:
            __getattr__ = staticmethod(lambda name: getattr(model, name))

            def __call__(self, *inputs):
                return memory.call(model, inputs, {})

        sampler = field.sampler(steps=STEPS, batch=2)
        plain = CalibrationRuns(sampler, Watched(), field.prompts[:4], 0, memory)
        within = replace(plain, sampler=sampler.with_policies((), gradients=True))
        take = make_differentiate(profile, LoopSamples(plain, within))
        ends, leaves = take(FittedTable.of(profile).weigh_steps())
        assert ends.requires_grad
        assert [len(leaf) for leaf in leaves] == [2, 2]
        # two branches of four samples: no weight comes before the first of the three calls
        assert memory.rows == 2 * 4 * (1 + 2 * GRADIENT_CALLS)
        assert make_differentiate(profile, plain.sample) is None

    def test_a_network_that_lets_none_through_says_so(self, field, profile):
        memory = NetworkMemory()

        def network(x, times, cond):
            return memory.call(torch.no_grad()(field.mixture), (x, times, cond), {})

        with pytest.raises(CapabilityError, match="lets no gradients through"):
            differentiate(field, profile, [], network=network)


class TestWeights:
    def test_they_are_tried_even_where_a_rule_ended_nearer(self, profile):
        errors = torch.tensor([torch.inf, 1.0, 2.0], dtype=torch.float64)
        behind = replace(profile, statistics={**profile.statistics, "errors": errors})
        assert FittedTable.of(behind).kept == "plain"
        tried = with_rows(behind, FittedTable.of(behind).weigh_steps())
        assert FittedTable.of(tried).kept == "fitted"


class TestSlopes:
    def test_they_agree_with_what_they_were_corrected_by(self):
        torch.manual_seed(0)
        slopes = Slopes.of([torch.randn(3, 5) for _ in range(4)])
        change, moved = torch.randn(4).double(), torch.randn(3, 5).double()
        slopes.correct_for(change, moved)
        assert torch.allclose(torch.einsum("new,w->ne", slopes.matrix, change), moved)
        gradient = torch.randn(3, 4).double()
        slopes.correct_along(moved, gradient)
        assert torch.allclose(torch.einsum("ne,new->nw", moved, slopes.matrix), gradient)

    def test_later_rounds_need_no_slopes_of_their_own(self):
        # the end is a bent function of the weights: the first slopes are wrong for later rounds
        torch.manual_seed(0)
        features = torch.randn(12, 5, 2, dtype=torch.float64)
        runs = []

        def bend(weights):
            return torch.einsum("nef,...f->ne", features, weights).mul(0.5).sinh()

        def run(rows, *, keep=False):
            runs.append(rows)
            return bend(rows[1, 0, :2])

        goal = bend(torch.tensor([0.7, -0.4], dtype=torch.float64))
        rows = torch.zeros(2, 1, 4, dtype=torch.float64)
        edges = find_edges((0, 1), 2, depth=2)
        found = refine_rows(rows, edges, run, goal, torch.arange(12) % 4 == 3, rounds=8)
        assert found.after < found.before - 8
        assert len(runs) == found.runs == 1 + 3 + 4 * found.rounds
        assert str(found) == f"rounds: {found.rounds}; gradients: 0, the driver offers none"


class TestStuck:
    """A gradient is taken where a round has gained nothing, and says if it cannot be."""

    rows = torch.zeros(2, 1, 4, dtype=torch.float64)

    def refine(self, differentiate):
        def run(rows, *, keep=False):  # every move is worse
            return (1.0 + rows.abs().sum()).expand(8, 3)

        return refine_rows(
            self.rows,
            find_edges((0, 1), 2, 2),
            run,
            torch.zeros(8, 3),
            torch.arange(8) % 4 == 3,
            9,
            differentiate,
        )

    def test_it_is_taken_and_counts(self):
        def differentiate(rows):
            leaf = rows.expand(8, -1, -1, -1).clone().requires_grad_()
            return 1.0 + leaf.flatten(1).sum(dim=1, keepdim=True).expand(8, 3), [leaf]

        found = self.refine(differentiate)
        assert str(found) == "rounds: 2; gradients: 1"
        assert found.runs == 1 + 3 + 2 * 4 + GRADIENT_CALLS
        assert found.after == found.before

    def test_a_blocked_one_says_why(self):
        def differentiate(rows):
            raise CapabilityError("the network lets no gradients through")

        found = self.refine(differentiate)
        assert str(found) == "rounds: 2; gradients: 0, the network lets no gradients through"
