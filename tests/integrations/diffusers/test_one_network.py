"""Only one of two networks is named: the other always runs, and steps are counted all the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from erta_framework import Policy, Step, hookimpl
from erta_framework.errors import CapabilityError, ConflictError
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.pipeline._answering import LEFT_ALONE
from erta_policies.easycache import EasyCache
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES, counted

STEPS = 8
FAMILY = replace(
    FAMILIES["wan22"], inner=("transformer.blocks.1.attn1", "transformer_2.blocks.1.attn1")
)
NAMES = ("transformer", "transformer_2")
ONCE = SkipPolicy(every=100)  # and the last


@pytest.fixture(scope="module")
def pipe() -> Any:
    return FAMILY.build()


@pytest.fixture(scope="module")
def early(pipe: Any) -> int:
    """Steps before the switch."""
    with counted(pipe, FAMILY) as made:
        FAMILY.run(pipe, STEPS)
    assert made == sorted(made)
    return made.count("transformer") // 2


def test_there_are_steps_on_both_sides(early: int) -> None:
    assert 2 < early < STEPS - 2


@pytest.mark.parametrize("seam", ["latent", "trunk"])
@pytest.mark.parametrize("name", NAMES)
def test_the_unnamed_network_always_runs(pipe: Any, early: int, name: str, seam: str) -> None:
    of_named = list(range(early) if name == "transformer" else range(early, STEPS))
    first, last = of_named[0], STEPS - 1
    with (
        attach(pipe, [ONCE], networks=[name], seam=seam) as run,
        counted(pipe, FAMILY) as made,
    ):
        sample = FAMILY.run(pipe, STEPS)
        assert torch.equal(FAMILY.run(pipe, STEPS), sample)
    # what it computes: every step of the other, its own first, and the last of all
    kept = sorted({*range(STEPS), first, last} - {i for i in of_named if i not in (first, last)})
    models = ["transformer" if index < early else "transformer_2" for index in kept]
    assert made == [model for model in models for _ in range(2)] * 2
    trace = run.traces[0]
    assert trace.network_calls == 2 * len(kept)
    assert trace.network_samples == 2 * len(kept)
    for call in trace.calls():
        assert call.model == ("transformer" if call.index < early else "transformer_2")
        if call.model != name:
            assert (call.computed, call.reason) == (True, LEFT_ALONE)
        elif not call.computed:
            assert call.source == first  # nothing of the other network stands in
    assert next(c for c in trace.calls() if c.model == name).reason == "cold"
    # the same calls as when both are driven and every step of the other is listed
    listed = SkipPolicy(steps=tuple(kept))
    with attach(pipe, [listed], seam=seam):
        assert torch.equal(FAMILY.run(pipe, STEPS), sample)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_skips_nothing_is_bit_identical(pipe: Any, name: str) -> None:
    expected = FAMILY.run(pipe, STEPS)
    with attach(pipe, [], networks=[name]) as run:
        assert torch.equal(FAMILY.run(pipe, STEPS), expected)
    assert run.traces[0].network_calls == 2 * STEPS


class Asked(Policy):
    """Notes the steps and networks for which a policy is asked anything."""

    def __init__(self, found: list[tuple[int, str]]) -> None:
        object.__setattr__(self, "found", found)

    @hookimpl
    def decide(self, step: Step, call: Any) -> None:
        self.found.append((step.index, call.model))

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Any) -> Any:
        self.found.append((step.index, call.model))
        return (yield)


@pytest.mark.parametrize("name", NAMES)
def test_no_policy_sees_the_unnamed_network(pipe: Any, early: int, name: str) -> None:
    found: list[tuple[int, str]] = []
    with attach(pipe, [Asked(found)], networks=[name]) as run:
        FAMILY.run(pipe, STEPS)
    steps = range(early) if name == "transformer" else range(early, STEPS)
    assert set(found) == {(index, name) for index in steps}
    assert [step.index for step in run.traces[0].steps] == list(range(STEPS))
    held = run.traces[0].history_bytes
    with attach(pipe, [Asked([])]) as both:
        FAMILY.run(pipe, STEPS)
    assert 2 * held == both.traces[0].history_bytes


def test_a_dynamic_policy_starts_from_nothing_at_the_switch(pipe: Any, early: int) -> None:
    """What it decides for the named network does not depend on what the other one predicted."""
    with attach(pipe, [EasyCache(threshold=1e3, warmup=1)], networks=["transformer_2"]) as run:
        first = FAMILY.run(pipe, STEPS)
    own = [call for call in run.traces[0].calls() if call.model == "transformer_2"]
    assert [call.reason for call in own[:2]] == ["cold", "cold"]
    assert run.traces[0].reused_calls > 0
    assert min(call.source for call in own if call.source is not None) >= early
    with attach(pipe, [EasyCache(threshold=1e3, warmup=1)], networks=["transformer_2"]):
        assert torch.equal(FAMILY.run(pipe, STEPS), first)


def test_other_sizes_errors_and_direct_calls(pipe: Any) -> None:
    given: list[Any] = []
    handle = pipe.transformer_2.register_forward_pre_hook(
        lambda _, args, kwargs: given.append((args, kwargs)), with_kwargs=True
    )
    plain = FAMILY.run(pipe, STEPS)
    handle.remove()
    args, kwargs = given[0]
    with torch.no_grad():
        expected = pipe.transformer_2(*args, **kwargs)[0]
    changes: list[dict[str, Any]] = [dict(FAMILY.other), {"batch": 2}, {"steps": 5}]
    fresh = []
    for change in [{"steps": STEPS}, *changes]:
        with attach(pipe, [ONCE], networks=["transformer"]):
            fresh.append(FAMILY.run(pipe, **change))
    with attach(pipe, [ONCE], networks=["transformer"]) as run:
        for change, sample in zip([{"steps": STEPS}, *changes], fresh, strict=True):
            assert torch.equal(FAMILY.run(pipe, **change), sample), change
        with pytest.raises(ZeroDivisionError):
            FAMILY.run(pipe, STEPS, callback_on_step_end=lambda *_: 1 / 0)
        with torch.no_grad():
            assert torch.equal(pipe.transformer_2(*args, **kwargs)[0], expected)
        assert torch.equal(FAMILY.run(pipe, STEPS), fresh[0])
    assert len(run.traces) == 6
    assert not {"forward", "cache_context"} & (
        vars(pipe.transformer).keys() | vars(pipe.transformer_2).keys()
    )
    assert torch.equal(FAMILY.run(pipe, STEPS), plain)


def test_the_unnamed_network_belongs_to_the_attachment_too(pipe: Any) -> None:
    other = FAMILY.build()
    other.transformer_2 = pipe.transformer_2
    with (
        attach(pipe, [ONCE], networks=["transformer"]),
        pytest.raises(ConflictError, match=r"transformer_2 \(WanTransformer3DModel\) has an"),
    ):
        attach(other, [ONCE], networks=["transformer"]).__enter__()


def test_an_unnamed_network_that_is_compiled_in_place_is_refused() -> None:
    pipe = FAMILY.build()
    pipe.transformer_2.compile(backend="eager")
    with pytest.raises(CapabilityError, match=r"transformer_2 .* was compiled in place"):
        attach(pipe, [ONCE], networks=["transformer"])
