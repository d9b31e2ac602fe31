"""Per-sample decisions: `Reuse(mask=...)`."""

from __future__ import annotations

import pytest
import torch

from erta_framework import (
    CFG,
    Compute,
    Engine,
    FlowEuler,
    FunctionNetwork,
    Needs,
    Policy,
    Reuse,
    Site,
    Traits,
    hookimpl,
)
from erta_framework.errors import ConflictError, PolicyError
from erta_framework.sampling import Request, SamplingLoop
from erta_framework.sampling.guidance import NoGuidance
from erta_framework.sampling.solvers import FlowAdamsBashforth2
from erta_framework.session import Evaluation, Interval
from erta_framework.session._history import History
from erta_framework.session._selection import (
    drop_partial,
    fit_mask,
    group_rows,
    merge_rows,
    select_rows,
)


class Masked(Policy):
    """Sample k computes at the steps listed for it."""

    steps: tuple[tuple[int, ...], ...] = ()
    depth: int = 1
    scope: str = "step"

    @property
    def traits(self) -> Traits:
        return Traits(decides="sample", memory=Needs(evaluations=self.depth))

    @hookimpl
    def decide(self, step, call):
        copies = call.x.shape[0] // len(self.steps)
        mask = [step.index not in own for own in self.steps] * copies
        return Reuse("listed", scope=self.scope, mask=mask)


SEEN: list[tuple] = []


class Extrapolated(Policy):
    """A line in sigma through the two newest evaluations; notes what it saw."""

    traits = Traits(memory=Needs(evaluations=2))

    @hookimpl
    def forward(self, step, call):
        SEEN.append((step.index, call.branch, call.rows, call.reused))
        if not call.reused or len(call.history) < 2:
            return None
        new, old = call.history[:2]
        slope = (new.residual - old.residual) / (new.sigma - old.sigma)
        return call.x + new.residual + slope * (step.interval.start - new.sigma)


SCHEDULES = ((0, 3, 5), (0, 1, 2, 3, 4, 5, 6, 7), (0, 3, 6), (0, 3, 5))


def alone(latents, sample, policies, steps=8, guidance=None):
    """One sample of a batch, sampled by itself."""
    part, batch = slice(sample, sample + 1), latents.shape[0]
    request = Request(
        latents=latents[part],
        cond=torch.linspace(-1.0, 1.0, batch)[part, None],
        uncond=torch.linspace(0.5, 0.25, batch)[part, None],
        schedule=FlowEuler().schedule(steps),
    )
    loop = SamplingLoop(Engine(policies), FlowEuler(), guidance or NoGuidance())
    return loop.run(PerPrompt(), request)


class PerPrompt:
    """A counting network whose rows do not depend on each other or on the size of the batch."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x, timestep, embeds):
        self.batches.append(x.shape[0])
        level = timestep.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) / 1000.0
        return torch.sin(x * (1.0 + level)) + embeds.reshape(level.shape) * x


@pytest.mark.parametrize("guidance", [None, CFG(scale=2.0), CFG(scale=2.0, batched=True)])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_batch_equals_its_samples_one_by_one(run, make_noise, guidance, depth):
    latents = make_noise(4)
    together = run(
        [Masked(steps=SCHEDULES, depth=depth)],
        guidance=guidance, latents=latents, batch=4, network=PerPrompt(),
    )  # fmt: skip
    for sample, own in enumerate(SCHEDULES):
        one = alone(latents, sample, [Masked(steps=(own,), depth=depth)], guidance=guidance)
        assert torch.equal(together.sample[sample], one.sample[0])
        assert together.trace.calls_for(sample) == one.trace.calls_for(0)


def test_the_network_runs_on_the_rows_that_need_it_and_the_trace_says_so(run, make_noise):
    driven = run(
        [Masked(steps=SCHEDULES)], latents=make_noise(4), batch=4, network=(net := PerPrompt())
    )
    assert net.batches == [4, 1, 1, 4, 1, 3, 2, 1]
    assert driven.trace.network_calls == 8
    assert driven.trace.network_samples == sum(net.batches)
    rows = [call.rows for call in driven.trace.calls()]
    assert rows == [None, (1,), (1,), None, (1,), (0, 1, 3), (1, 2), (1,)]
    assert [driven.trace.calls_for(k) for k in range(4)] == [3, 8, 3, 3]
    # a call in which nobody ran is not a computed one
    assert driven.trace.reused_calls == 0


def test_a_predictor_sees_plain_numbers_in_groups_of_equal_history(run, make_noise):
    SEEN.clear()
    schedules = ((0, 1, 4), (0, 1, 2), (0, 1, 4))
    latents = make_noise(3)
    together = run(
        [Masked(steps=schedules, depth=2), Extrapolated()],
        steps=6, latents=latents, batch=3, network=PerPrompt(),
    )  # fmt: skip
    at_3 = [rows for index, _, rows, _ in SEEN if index == 3]
    assert at_3 == [(0, 2), (1,)]
    # not a step at which a sample's group sees another sample's evaluation
    for sample, own in enumerate(schedules):
        one = alone(latents, sample, [Masked(steps=(own,), depth=2), Extrapolated()], steps=6)
        assert torch.equal(together.sample[sample], one.sample[0])


def test_masks_that_agree_are_plain_decisions(run, make_noise):
    same = ((0, 2), (0, 2))
    driven = run([Masked(steps=same)], steps=4, latents=make_noise(2), network=(net := PerPrompt()))
    assert net.batches == [2, 2]
    assert [call.rows for call in driven.trace.calls()] == [None] * 4
    assert driven.trace.reused_calls == 2


def test_a_multistep_solver_works_with_masks(run, make_noise):
    solver = FlowAdamsBashforth2()
    full = run([], solver=solver, latents=make_noise(4), batch=4, network=PerPrompt())
    everything = (tuple(range(8)),) * 4
    null = run(
        [Masked(steps=everything)],
        solver=solver,
        latents=make_noise(4),
        batch=4,
        network=PerPrompt(),
    )
    assert torch.equal(full.sample, null.sample)


def test_a_driver_that_cannot_split_a_batch_computes_all_and_says_so(info):
    engine = Engine([Masked(steps=((0,), (0, 1)))])
    x = torch.zeros(2, 2, 3)
    with engine.session(info(steps=2, shape=(2, 2, 3))) as session:
        for index in range(2):
            start, end = session.info.sigmas[index : index + 2]
            session.begin(Interval(index, start, end, 1000 * start, 1000 * end))
            network = FunctionNetwork(lambda: x + 1.0, undivided="its condition has no batch axis")
            session.forward(Site(), x, network)
            session.settle()
            session.end(x)
    call = session.trace.steps[1].calls[0]
    assert call.computed
    assert call.reason == "listed for part of the batch: its condition has no batch axis"
    assert session.trace.network_samples == 4


def by_hand(engine, info, shapes, steps=3):
    """A session by hand whose branches have latents of these shapes; its trace."""
    latents = {branch: torch.zeros(shape) for branch, shape in shapes.items()}
    first = next(iter(shapes.values()))
    with engine.session(info(steps=steps, shape=first, branches=tuple(shapes))) as session:
        for index in range(steps):
            start, end = session.info.sigmas[index : index + 2]
            session.begin(Interval(index, start, end, 1000 * start, 1000 * end))
            for branch, x in latents.items():
                network = FunctionNetwork(
                    lambda x=x: x + 1.0, rows=lambda rows, x=x: x.index_select(0, rows) + 1.0
                )
                session.forward(Site(branch=branch), x, network)
            session.settle()
            session.end(latents[next(iter(shapes))])
    return session.trace


def test_a_mask_of_another_branch_is_fitted_by_its_safe_maximum():
    some, every = Reuse("some", mask=(True, False)), Reuse("every", mask=(True, True))
    assert fit_mask(some, torch.zeros(2, 3)) is some
    assert fit_mask(some, torch.zeros(4, 3)) == Reuse("some", mask=(False,) * 4)
    assert fit_mask(some, torch.zeros(1, 3)) == Reuse("some", mask=(False,))
    assert fit_mask(every, torch.zeros(1, 3)) == Reuse("every", mask=(True,))
    assert fit_mask(every, torch.zeros(3, 3)) == Reuse("every", mask=(True,) * 3)


def test_a_branch_of_another_batch_computes_all_where_one_sample_must(info):
    engine = Engine([Masked(steps=((0,), (0, 1)))])
    trace = by_hand(engine, info, {"pair": (4, 2, 3), "half": (2, 2, 3)})
    assert [(c.index, c.branch, c.computed, c.rows) for c in trace.calls()] == [
        (0, "pair", True, None), (0, "half", True, None),
        (1, "pair", True, (1, 3)), (1, "half", True, None),
        (2, "pair", False, ()), (2, "half", False, None),
    ]  # fmt: skip
    assert trace.network_samples == 4 + 2 + 2 + 2


def test_peers_leave_out_branches_of_another_shape(info):
    seen = []

    class Asks(Policy):
        traits = Traits(reads_peers=True, decides="branch", memory=Needs(evaluations=1))

        @hookimpl
        def decide(self, step, call):
            seen.append((step.index, call.branch, [peer.branch for peer in call.peers()]))
            return Compute("all", scope="branch")

    shapes = {"cond": (2, 2, 3), "half": (1, 2, 3), "uncond": (2, 2, 3)}
    by_hand(Engine([Asks()]), info, shapes, steps=2)
    assert seen == [(1, "cond", ["uncond"]), (1, "half", []), (1, "uncond", ["cond"])]


def test_a_group_that_is_not_finite_is_computed_and_only_it(run, make_noise):
    class Breaks(Policy):
        @hookimpl
        def forward(self, call):
            if not call.reused or call.rows is None or 0 not in call.rows:
                return None
            return call.x * float("nan")

    schedules = ((0, 1), (0, 1, 2), (0, 2))
    driven = run(
        [Masked(steps=schedules), Breaks()],
        steps=4, latents=make_noise(3), batch=3, network=(net := PerPrompt()),
    )  # fmt: skip
    by_index = {call.index: call for call in driven.trace.calls()}
    assert by_index[2].rows == (0, 1, 2)
    assert by_index[2].reason == "reused output was not finite"
    assert net.batches == [3, 2, 2, 1]
    assert driven.trace.network_calls == 4


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ((True,), "mask of 1 samples for a batch of 2"),
        ([0.5, 1.0], "one boolean a sample"),
        (torch.ones(2, 1, dtype=torch.bool), "one boolean a sample"),
        (torch.ones(2), "one boolean a sample"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(run, mask, words):
    class Given(Policy):
        traits = Traits(decides="sample")

        @hookimpl
        def decide(self, step):
            return Reuse("given", mask=mask)

    with pytest.raises(PolicyError, match=words):
        run([Given()])


def test_a_mask_must_be_declared(run):
    class Undeclared(Policy):
        @hookimpl
        def decide(self, step):
            return Reuse("some", mask=(True, False))

    with pytest.raises(PolicyError, match=r"Undeclared\(\).*declares no traits = .*sample"):
        run([Undeclared()])


def test_the_interval_cannot_be_moved_for_some_samples():
    class Moves(Policy):
        @hookimpl
        def adjust_interval(self, step):
            return None

    with pytest.raises(ConflictError, match=r"Masked.*decides for each sample.*Moves"):
        Engine([Masked(steps=((0,),)), Moves()])


def test_masks_may_be_tensors_and_become_tuples():
    decision = Reuse("x", mask=torch.tensor([0.1, 0.9]) < 0.5)
    assert decision.mask == (True, False)
    assert decision == Reuse("x", mask=[True, False])
    assert Reuse("x").mask is None


def evaluation(index: int, value: float, batch: int = 3) -> Evaluation:
    kept = {"residual": torch.full((batch, 2), value)}
    return Evaluation(index, 1.0 - index / 10, 100.0 * index, kept)


def test_the_history_of_computed_rows_moves_back_and_of_others_stays():
    first = evaluation(0, 0.0)
    fresh = evaluation(1, 1.0, batch=1)
    once = merge_rows((first,), fresh, (2,), 3, depth=2)
    assert once[0].steps(3) == (0, 0, 1)
    assert once[0].residual[:, 0].tolist() == [0.0, 0.0, 1.0]
    assert [stamp is None for stamp in once[1].stamps] == [True, True, False]
    assert drop_partial(once) == once[:1]
    again = merge_rows(once, evaluation(2, 2.0, batch=2), (0, 2), 3, depth=2)
    assert again[0].steps(3) == (2, 0, 2)
    assert again[0].residual[:, 0].tolist() == [2.0, 0.0, 2.0]
    assert again[1].residual[[0, 2], 0].tolist() == [0.0, 1.0]
    assert [(g.rows, len(g.history)) for g in group_rows(again, range(3), 3)] == [
        ((0,), 2), ((1,), 1), ((2,), 2),
    ]  # fmt: skip
    (alone,) = [g for g in group_rows(again, [2], 3)]
    assert [(e.index, e.sigma, e.stamps) for e in alone.history] == [(2, 0.8, ()), (1, 0.9, ())]
    # equal stamps for all make a plain evaluation again
    whole = merge_rows(again, evaluation(3, 3.0), (0, 1, 2), 3, depth=1)
    assert whole[0].stamps == ()
    assert whole[0].index == 3
    assert select_rows(whole, (0, 1, 2), 3)[0].residual is whole[0].residual


def test_memory_is_counted_with_rows():
    history = History(Needs(evaluations=2, pairs=True))
    key = Site()
    x = torch.zeros(3, 4)
    history.record(key, Interval(0, 1.0, 0.9, 1000.0, 900.0), history.keep_residual(x, x + 1))
    whole = history.bytes
    kept = history.keep_residual(x[:1], x[:1] + 2)
    history.record_rows(key, Interval(1, 0.9, 0.8, 900.0, 800.0), kept, (0,))
    assert whole == 3 * x.nbytes
    assert history.bytes == 6 * x.nbytes
    assert history.bytes == sum(
        t.nbytes for e in history.kept[key] for t in (e.residual, e.input, e.output)
    )


def test_a_plain_compute_after_a_mask_computes_every_sample(run, make_noise):
    class Mixed(Policy):
        traits = Traits(decides="sample")

        @hookimpl
        def decide(self, step):
            if step.index == 3:
                return Compute("all")
            return Reuse("some", mask=(True, step.index != 1))

    driven = run([Mixed()], steps=6, latents=make_noise(2), network=(net := PerPrompt()))
    assert net.batches == [2, 1, 2]
    assert [call.source for call in driven.trace.calls()] == [None, None, 1, None, 3, 3]
