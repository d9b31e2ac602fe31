"""What an attached engine adds for the device and for memory: no read-back, and nothing held."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_bench.overhead import SyncCounter
from erta_framework import Call, Compute, Decision, Policy, Reuse, hookimpl
from erta_framework.config import build_policies
from erta_integrations.diffusers import attach
from erta_policies.easycache import EasyCache
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES

STEPS = 6
SOME = SkipPolicy(steps=(0, 2, 5))
NAMED = ("wan-euler", "flux-true-cfg", "qwen-image")
UNNAMED = ("lumina2", "sd3", "pixart-sigma", "ltx")


def reads(run: Callable[[], Any]) -> dict[str, int]:
    with SyncCounter() as counter:
        run()
    return dict(counter.counts)


class Reads(Policy):
    """Reuses by a value of the latents, as a control."""

    @hookimpl
    def decide(self, call: Call) -> Decision:
        return Reuse("value") if float(call.x.abs().mean()) >= 0 else Compute("value")


def answering_at_once(name: str) -> Any:
    """A tiny pipeline whose network answers with one tensor: what it reads itself is not ours."""
    family, pipe = FAMILIES[name], FAMILIES[name].build()
    network, original = pipe.transformer, pipe.transformer.forward
    outputs: list[Any] = []

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not outputs:
            outputs.append(original(*args, **kwargs))
        return outputs[0]

    vars(network)["forward"] = forward
    family.run(pipe, 1)
    return pipe


def added(name: str, policies: list[Policy]) -> dict[str, int]:
    """Read-backs that a further step costs an attached request, beyond the pipeline's own.

    Counted as the difference of long and short requests: what is read when a request opens, such
    as the schedule, is read once and left out.
    """
    family, pipe = FAMILIES[name], answering_at_once(name)

    def counts(steps: int) -> dict[str, int]:
        return reads(lambda: family.run(pipe, steps))

    plain = {steps: counts(steps) for steps in (STEPS, 2 * STEPS)}
    with attach(pipe, policies) as run:
        driven = {steps: counts(steps) for steps in (STEPS, 2 * STEPS)}
    assert run.traces[0].reused_calls > 0
    names = {key for found in (*plain.values(), *driven.values()) for key in found}

    def growth(found: dict[int, dict[str, int]], key: str) -> int:
        return found[2 * STEPS].get(key, 0) - found[STEPS].get(key, 0)

    return {key: more for key in names if (more := growth(driven, key) - growth(plain, key))}


@pytest.mark.parametrize("name", [*NAMED, *UNNAMED])
def test_steps_of_a_static_schedule_read_nothing_back(name: str) -> None:
    assert added(name, [SOME]) == {}


def test_four_policies_read_nothing_back() -> None:
    family, pipe = FAMILIES["wan-euler"], FAMILIES["wan-euler"].build()
    with attach(pipe, "residual_profiler") as run:
        family.run(pipe, STEPS)
    parts: list[Any] = [
        {"skip_policy": {"evenly": 3}},
        {"residual_reuse": {}},
        {"timestep_adjuster": {"phi": [0.95] * STEPS}},
        {"error_linearizer": {"profile": run.profile()}},
    ]
    policies = build_policies(parts)
    plain = reads(lambda: family.run(pipe, STEPS))
    opened = reads_at_opening(pipe)
    with attach(pipe, policies) as run:
        driven = reads(lambda: family.run(pipe, STEPS))
    assert run.traces[0].reused_calls == 2 * 3
    found = {key: driven[key] - plain.get(key, 0) for key in driven}
    # and once when it ends, whether all reused outputs were finite
    opened["tolist"] += 1
    assert {key: count for key, count in found.items() if count} == opened


def reads_at_opening(pipe: Any) -> dict[str, int]:
    """What the driver reads of the schedule when a request opens."""
    family = FAMILIES["wan-euler"]
    plain = reads(lambda: family.run(pipe, 1))
    with attach(pipe, []):
        driven = reads(lambda: family.run(pipe, 1))
    return {key: driven[key] - plain.get(key, 0) for key in driven if driven[key] != plain.get(key)}


def test_a_decision_by_values_reads_once_a_step_as_a_control() -> None:
    # once to decide, and once a branch because only static schedules are checked at the end
    assert added("wan-euler", [Reads()]) == {"_local_scalar_dense": 3 * STEPS}


def test_conditioning_is_compared_by_value_only_where_storage_differs() -> None:
    """Callers that make new embeddings for every call pay one comparison a branch and step."""
    from erta_integrations.diffusers.pipeline._branches import Branches

    cond, other = torch.ones(1, 4, 8), torch.zeros(1, 4, 8)
    branches = Branches()

    def step(copied: bool) -> dict[str, int]:
        branches.begin_step()
        calls = [t.clone() if copied else t for t in (cond, other)]
        found = reads(
            lambda: [branches.name(None, {"encoder_hidden_states": call}) for call in calls]
        )
        assert branches.used == {"call0", "call1"}
        return found

    step(copied=False)
    assert step(copied=False).get("equal", 0) <= 1
    assert step(copied=True)["equal"] >= 2
    branches.begin_step()
    named = reads(lambda: branches.name("cond", {"encoder_hidden_states": cond.clone()}))
    assert named == {}


# -------------------------------------------------------------------------------- memory
class Holds(Policy):
    """Keeps weak references to the latents and residuals that policies are given."""

    def __init__(self, found: list[weakref.ref[Tensor]]) -> None:
        object.__setattr__(self, "found", found)

    @hookimpl(wrapper=True)
    def forward(self, call: Call) -> Any:
        for evaluation in call.history:
            kept = (evaluation.residual, evaluation.input, evaluation.output)
            self.found.extend(weakref.ref(tensor) for tensor in kept if tensor is not None)
        self.found.append(weakref.ref(call.x))
        output = yield
        self.found.append(weakref.ref(output))
        return output


def alive(found: list[weakref.ref[Tensor]]) -> int:
    gc.collect()
    return sum(reference() is not None for reference in found)


@pytest.mark.parametrize("seam", ["latent", "trunk"])
def test_latents_and_residuals_are_freed_with_the_request(seam: str) -> None:
    family, pipe = FAMILIES["wan-euler"], FAMILIES["wan-euler"].build()
    found: list[weakref.ref[Tensor]] = []
    with attach(pipe, [SOME, Holds(found)], seam=seam) as run:
        family.run(pipe, STEPS)
        assert len(found) > 4 * STEPS
        assert alive(found) == 0
        assert run.traces[0].history_bytes > 0


@pytest.mark.parametrize("seam", ["latent", "trunk"])
@pytest.mark.parametrize("place", ["network", "callback"])
def test_they_are_freed_after_an_exception(place: str, seam: str) -> None:
    family, pipe = FAMILIES["wan-euler"], FAMILIES["wan-euler"].build()
    found: list[weakref.ref[Tensor]] = []

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    def later(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 3 and place == "callback":
            fail()
        if step == 3:
            pipe.transformer.proj_out.register_forward_pre_hook(fail)
        return {}

    with attach(pipe, [SkipPolicy(steps=(0, 2, 4)), Holds(found)], seam=seam):
        with pytest.raises(KeyboardInterrupt):
            family.run(pipe, STEPS, callback_on_step_end=later)
        if place == "callback":  # the driver was not called: it learns of it at the next request
            pipe.scheduler.set_timesteps(STEPS)
        assert found
        assert alive(found) == 0


def test_the_reported_bytes_are_what_was_held() -> None:
    family, pipe = FAMILIES["wan-euler"], FAMILIES["wan-euler"].build()
    size = 4 * 16 * 3 * 2 * 2
    with attach(pipe, [SOME]) as run:
        family.run(pipe, STEPS)
    assert run.traces[0].history_bytes == 2 * size  # a residual of each branch
    with attach(pipe, [EasyCache(warmup=2)]) as run:
        family.run(pipe, STEPS)
    # residual, input and output of two evaluations of each branch
    assert run.traces[0].history_bytes == 2 * 2 * 3 * size
    with attach(pipe, []) as run:
        family.run(pipe, STEPS)
    assert run.traces[0].history_bytes == 0


@pytest.mark.parametrize(("name", "seam"), [("pixart-sigma", "latent"), ("flux", "trunk")])
def test_what_has_no_residual_is_counted_as_well(name, seam):
    """Half of the channels (learned variance), and the text stream of a joint block stack."""
    family = FAMILIES[name]
    pipe = family.build()
    with attach(pipe, [SkipPolicy(every=2)], seam=seam) as run:
        family.run(pipe, 4)
    trace = run.traces[0]
    assert trace.driver_bytes > 0
    if seam == "latent":  # the other half is as large as the prediction
        assert 2 * trace.driver_bytes == trace.history_bytes  # which is kept with its residual
    assert "MB of further outputs" in trace.summary()
    plain = FAMILIES["wan-euler"]
    other = plain.build()
    with attach(other, [SkipPolicy(every=2)]) as run:
        plain.run(other, 4)
    assert run.traces[0].driver_bytes == 0
