"""What is remembered: as deep as declared, pairs only where declared, bytes as they are."""

from __future__ import annotations

import pytest
import torch

from erta_framework import Interval, Needs, Policy, Reuse, Site, Traits, hookimpl
from erta_framework.session._history import History

KEY = Site("model", "cond")
OTHER = Site("model", "uncond")


def at(index):
    return Interval(index, 1 - index / 10, 0.9 - index / 10, 10.0 * index, 0.0)


def filled(needs, count, key=KEY, history=None):
    history = history or History(needs)
    for index in range(count):
        x = torch.full((2, 3), float(index))
        history.record(key, at(index), history.keep_residual(x, 3.0 * x + 1))
    return history


def test_nothing_is_kept_unasked():
    history = filled(Needs(), 3)
    assert history.kept == {}
    assert history.bytes == 0


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_depth_is_as_declared_newest_first(depth):
    kept = filled(Needs(evaluations=depth), 6).kept[KEY]
    assert [evaluation.index for evaluation in kept] == [5, 4, 3, 2][:depth]
    newest = kept[0]
    assert (newest.sigma, newest.time) == (0.5, 50.0)
    assert torch.equal(newest.residual, torch.full((2, 3), 11.0))
    assert newest.input is None
    assert newest.output is None


def test_pairs_are_copies():
    history = History(Needs(evaluations=1, pairs=True))
    x, output = torch.ones(2, 3), torch.full((2, 3), 4.0)
    history.record(KEY, at(0), history.keep_residual(x, output))
    x.zero_()
    output.zero_()
    (kept,) = history.kept[KEY]
    assert kept.input is not None
    assert kept.output is not None
    assert torch.equal(kept.input, torch.ones(2, 3))
    assert torch.equal(kept.output, torch.full((2, 3), 4.0))
    assert torch.equal(kept.residual, torch.full((2, 3), 3.0))


def real_bytes(history):
    return sum(
        tensor.nbytes
        for kept in history.kept.values()
        for evaluation in kept
        for tensor in (evaluation.residual, evaluation.input, evaluation.output)
        if tensor is not None
    )


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_bytes_are_those_of_the_tensors(pairs, depth):
    needs = Needs(evaluations=depth, pairs=pairs)
    history = History(needs)
    size = 2 * 3 * 4 * (3 if pairs else 1)
    for count, key in ((1, KEY), (2, KEY), (5, KEY), (2, OTHER)):
        filled(needs, count, key, history)
        assert history.bytes == real_bytes(history)
    assert history.bytes == size * (depth + min(depth, 2))
    history.usable(KEY, torch.ones(7, 7))
    assert history.bytes == real_bytes(history) == size * min(depth, 2)
    history.clear()
    assert history.bytes == 0
    assert history.kept == {}


@pytest.mark.parametrize(
    "x",
    [torch.ones(3, 2), torch.ones(2, 3, dtype=torch.float16), torch.ones(2, 3, device="meta")],
    ids=["shape", "dtype", "device"],
)
def test_another_kind_of_input_drops_the_key_only(x):
    history = filled(Needs(evaluations=2), 3)
    filled(Needs(evaluations=2), 3, OTHER, history)
    assert len(history.usable(KEY, torch.ones(2, 3))) == 2
    assert history.usable(KEY, x) == ()
    assert history.usable(KEY, torch.ones(2, 3)) == ()
    assert len(history.usable(OTHER, torch.ones(2, 3))) == 2


def test_reported_memory_is_what_was_declared(run):
    class Asks(Policy):
        depth: int = 1
        pairs: bool = False

        @property
        def traits(self) -> Traits:
            return Traits(memory=Needs(evaluations=self.depth, pairs=self.pairs))

        @hookimpl
        def decide(self, step, call):
            assert len(call.history) == min(step.index, self.depth)

    latents = torch.ones(2, 2, 3, 3)
    for depth, pairs in ((1, False), (3, False), (2, True)):
        done = run([Asks(depth=depth, pairs=pairs)], steps=6, latents=latents)
        assert done.trace.history_bytes == depth * (3 if pairs else 1) * latents.nbytes
    assert run(latents=latents).trace.history_bytes == 0


def test_policies_see_past_computed_steps_only(run):
    seen = []

    class Asks(Policy):
        traits = Traits(memory=Needs(evaluations=2))

        @hookimpl
        def decide(self, step):
            return Reuse("odd") if step.index % 2 else None

        @hookimpl
        def forward(self, step, call):
            seen.append((step.index, [evaluation.index for evaluation in call.history]))

    run([Asks()], steps=6)
    assert seen == [(0, []), (1, [0]), (2, [0]), (3, [2, 0]), (4, [2, 0]), (5, [4, 2])]
