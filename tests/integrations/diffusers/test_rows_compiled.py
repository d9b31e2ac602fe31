"""Per-sample decisions on a compiled network: a graph a batch size, no graph break."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from erta_framework import Policy, Reuse, Traits, hookimpl
from erta_integrations.diffusers import attach
from tiny_pipelines import FAMILIES, Family

STEPS = 6
SCHEDULES = ((0, 2, 5), (0, 1, 2, 3, 5), (0, 2, 3, 5))
SIZES = (3, 1, 3, 2, 3)
"""Samples that the network runs on at steps 0, 1, 2, 3 and 5."""


class Listed(Policy):
    """Sample k of the prompts computes at the steps listed for it, in every copy of it."""

    traits = Traits(decides="sample")

    @hookimpl
    def decide(self, step: Any, call: Any) -> Reuse:
        copies = call.x.shape[0] // len(SCHEDULES)
        return Reuse("listed", mask=[step.index not in own for own in SCHEDULES] * copies)


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(family: Family, regional: bool, **options: Any) -> tuple[Any, Any]:
    """A pipeline whose network counts its graphs."""
    from torch._dynamo.testing import CompileCounter
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounter()
    pipe = family.build()
    if regional:
        pipe.transformer.compile_repeated_blocks(backend=counter, **options)
    else:
        pipe.transformer = torch.compile(pipe.transformer, backend=counter, **options)
    return pipe, counter


def breaks() -> int:
    from torch._dynamo.utils import counters

    return sum(counters["graph_break"].values())


def by_hand(family: Family, regional: bool, **options: Any) -> tuple[int, int]:
    """Graphs and breaks of the same batch sizes in the same order, with no engine anywhere."""
    pipe = family.build()
    given: list[dict[str, Any]] = []
    pipe.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: given.append(kwargs), with_kwargs=True
    )
    family.run(pipe, STEPS, batch=3)
    calls = len(given) // STEPS
    pipe, counter = compiled(family, regional, **options)
    rows_of = {3: [0, 1, 2], 2: [1, 2], 1: [1]}
    with torch.no_grad():
        for step, size in zip((0, 1, 2, 3, 5), SIZES, strict=True):
            for call in given[step * calls : (step + 1) * calls]:
                copies = call["hidden_states"].shape[0] // 3
                rows = [row + 3 * copy for copy in range(copies) for row in rows_of[size]]
                taken = {
                    name: value[rows]
                    if size < 3 and isinstance(value, torch.Tensor) and len(value) == 3 * copies
                    else value
                    for name, value in call.items()
                }
                pipe.transformer(**taken)
    return counter.frame_count, breaks()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "regional"), [("wan-euler", False), ("wan-euler", True), ("sd3", False)]
)
def test_masks_add_no_graph_and_no_break(name: str, regional: bool) -> None:
    """As many graphs as the network itself needs for these batch sizes, and the same latents."""
    family = FAMILIES[name]
    pipe = family.build()
    with attach(pipe, [Listed()]) as run:
        expected = family.run(pipe, STEPS, batch=3)
    samples = run.traces[0].network_samples
    copies = samples // sum(SIZES)
    assert samples == copies * sum(SIZES)
    alone = by_hand(family, regional)
    pipe, counter = compiled(family, regional)
    with attach(pipe, [Listed()]) as run:
        assert torch.equal(family.run(pipe, STEPS, batch=3), expected)
        graphs = counter.frame_count
        assert (graphs, breaks()) == alone
        assert torch.equal(family.run(pipe, STEPS, batch=3), expected)
    assert counter.frame_count == graphs  # the next request compiles nothing
    assert [trace.network_samples for trace in run.traces] == [samples] * 2
    assert breaks() == 0
    assert graphs > 1  # one for each batch size that torch tells apart


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("regional", [False, True], ids=["whole", "repeated-blocks"])
def test_whole_batches_need_one_graph(regional: bool) -> None:
    """A decision that no sample differs in gives the network one batch size only."""
    family = FAMILIES["wan-euler"]
    pipe, counter = compiled(family, regional)
    family.run(pipe, STEPS, batch=3)
    plain = counter.frame_count, breaks()
    pipe, counter = compiled(family, regional)

    class Alike(Listed):
        """Every sample by the first one's schedule."""

        @hookimpl
        def decide(self, step: Any, call: Any) -> Reuse:
            return Reuse("alike", mask=[step.index not in SCHEDULES[0]] * len(call.x))

    with attach(pipe, [Alike()]) as run:
        family.run(pipe, STEPS, batch=3)
    assert (counter.frame_count, breaks()) == plain
    assert run.traces[0].network_samples == 2 * 3 * 3
