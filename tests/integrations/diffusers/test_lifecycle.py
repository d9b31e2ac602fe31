"""What attaching must survive, refuse and leave behind."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework import Call, Policy, Traits, hookimpl
from erta_framework.errors import (
    CapabilityError,
    ConflictError,
    PolicyError,
    ProtocolError,
    UnusedWarning,
)
from erta_integrations.diffusers import attach
from erta_policies.ertacache import SkipPolicy, TimestepAdjuster
from tiny_pipelines import FAMILIES, Family, counted, drawn, flow, unipc

SOME = SkipPolicy(steps=(0, 2, 5))
EVERY = SkipPolicy(every=1)
WAN = FAMILIES["wan-euler"]


@pytest.fixture
def pipe() -> Any:
    return WAN.build()


def fresh(family: Family, pipe: Any, **changes: Any) -> Tensor:
    """One request of an attachment of its own."""
    with attach(pipe, [SOME]):
        return family.run(pipe, **changes)


# ------------------------------------------------------------------ two at a time
def test_second_attach_on_one_network_is_refused(pipe: Any) -> None:
    expected = fresh(WAN, pipe)
    with attach(pipe, [SOME]):
        with pytest.raises(ConflictError, match=r"transformer \(WanTransformer3DModel\) has an"):
            attach(pipe, [SOME]).__enter__()
        assert torch.equal(WAN.run(pipe), expected)
    assert "forward" not in vars(pipe.transformer)


def test_two_pipelines_with_one_scheduler_are_refused(pipe: Any) -> None:
    other = WAN.build()
    other.scheduler = pipe.scheduler
    with (
        attach(pipe, [SOME]),
        pytest.raises(ConflictError, match=r"scheduler\.from_config"),
    ):
        attach(other, [SOME]).__enter__()
    assert "forward" not in vars(other.transformer)


def test_second_pipeline_of_one_class_is_independent(pipe: Any) -> None:
    """Rival caches keep their state on the class, so the second pipeline answers for the first."""
    other = FAMILIES["wan-unipc"].build()
    a, b = fresh(WAN, pipe), fresh(WAN, other, seed=5)
    plain = WAN.run(other, seed=5)
    with attach(pipe, [SOME]) as first:
        assert torch.equal(WAN.run(other, seed=5), plain)
        with attach(other, [SOME]) as second:
            assert torch.equal(WAN.run(pipe), a)
            assert torch.equal(WAN.run(other, seed=5), b)
            assert torch.equal(WAN.run(pipe), a)
    assert (len(first.traces), len(second.traces)) == (2, 1)


def test_a_request_within_a_request_of_another_pipeline(pipe: Any) -> None:
    other = WAN.build()
    a, b = fresh(WAN, pipe), fresh(WAN, other, seed=5)
    inner = []

    def nested(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step in (0, 3):
            inner.append(WAN.run(other, seed=5))
        return {}

    with attach(pipe, [SOME]), attach(other, [SOME]):
        assert torch.equal(WAN.run(pipe, callback_on_step_end=nested), a)
    assert [torch.equal(sample, b) for sample in inner] == [True, True]


def test_two_threads(pipe: Any) -> None:
    pipes = [pipe, WAN.build()]
    expected = [fresh(WAN, p, seed=k) for k, p in enumerate(pipes)]
    found: dict[int, list[Tensor]] = {0: [], 1: []}
    gate = threading.Barrier(2)

    def work(k: int) -> None:
        with attach(pipes[k], [SOME]):
            gate.wait(timeout=60)
            for _ in range(3):
                found[k].append(WAN.run(pipes[k], seed=k))

    threads = [threading.Thread(target=work, args=(k,)) for k in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, samples in found.items():
        assert [torch.equal(sample, expected[k]) for sample in samples] == [True] * 3


# -------------------------------------------------------------------- interrupted
def test_keyboard_interrupt_in_the_network(pipe: Any) -> None:
    expected = fresh(WAN, pipe)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with attach(pipe, [SOME]) as run:
        handle = pipe.transformer.proj_out.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            WAN.run(pipe)
        handle.remove()
        assert len(run.traces) == 1  # closed at once: nothing is held until the next request
        assert torch.equal(WAN.run(pipe), expected)
        assert [len(trace.steps) for trace in run.traces] == [0, 6]


def test_interrupt_flag_of_the_pipeline(pipe: Any) -> None:
    expected = fresh(WAN, pipe)

    def stop(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        pipe._interrupt = step == 2
        return {}

    with attach(pipe, [SOME]) as run:
        WAN.run(pipe, callback_on_step_end=stop)
        assert torch.equal(WAN.run(pipe), expected)
    assert [len(trace.steps) for trace in run.traces] == [3, 6]


class Ends(Policy):
    """Notes why a request ended, and holds what it kept weakly."""

    def __init__(self, errors: list[str], kept: list[weakref.ref[Tensor]]) -> None:
        object.__setattr__(self, "errors", errors)
        object.__setattr__(self, "kept", kept)

    @hookimpl
    def decide(self, call: Call) -> None:
        self.kept.append(weakref.ref(call.history[0].residual))

    @hookimpl
    def on_session_end(self, error: BaseException | None) -> None:
        self.errors.append("" if error is None else str(error))


def test_the_request_ends_with_the_pipeline_that_was_interrupted(pipe: Any) -> None:
    """Else the next plain call of the network is taken for a step of the dead request."""
    given: list[tuple[Any, ...]] = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: given.append((args, kwargs)), with_kwargs=True
    )
    WAN.run(pipe, 1)
    handle.remove()
    args, kwargs = given[0]
    with torch.no_grad():
        expected = pipe.transformer(*args, **kwargs)[0]

    def stop(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        pipe._interrupt = step == 2
        return {}

    errors: list[str] = []
    kept: list[weakref.ref[Tensor]] = []
    with attach(pipe, [Ends(errors, kept), SOME]) as run:
        WAN.run(pipe, callback_on_step_end=stop)
        gc.collect()
        assert errors == ["the pipeline ended before the last step"]
        assert [len(trace.steps) for trace in run.traces] == [3]
        assert kept
        assert all(ref() is None for ref in kept)
        with torch.no_grad():
            for _ in range(2):
                assert torch.equal(pipe.transformer(*args, **kwargs)[0], expected)
        assert len(run.traces) == 1


def test_cancelled_generator(pipe: Any) -> None:
    expected = WAN.run(pipe)

    def samples() -> Iterator[Tensor]:
        with attach(pipe, [SOME]):
            while True:
                yield WAN.run(pipe)

    stream = samples()
    assert not torch.equal(next(stream), expected)
    stream.close()
    assert not {"forward", "cache_context"} & vars(pipe.transformer).keys()
    assert torch.equal(WAN.run(pipe), expected)


def test_detach_in_the_middle_of_a_request(pipe: Any) -> None:
    with attach(pipe, [SOME]) as run:

        def leave(_: Any, step: int, *__: Any) -> dict[str, Any]:
            if step == 2:
                run.detach()
            return {}

        with counted(pipe, WAN) as made:
            assert WAN.run(pipe, callback_on_step_end=leave).isfinite().all()
    assert len(made) == 2 * 5  # step 1 reused, those after detach are the pipeline's own
    assert len(run.traces[0].steps) == 3


class Refuses(Policy):
    """Raises at step 3."""

    @hookimpl
    def decide(self, step: Any) -> None:
        if step.index == 3:
            raise ValueError("no")


def test_error_in_a_policy_leaves_the_pipeline_usable(pipe: Any) -> None:
    expected = WAN.run(pipe)
    with attach(pipe, [Refuses()]) as run:
        for _ in range(2):
            with pytest.raises(PolicyError, match="step 3"):
                WAN.run(pipe)
    assert len(run.traces) == 2
    assert torch.equal(WAN.run(pipe), expected)


def test_everything_held_is_freed_at_the_end_of_a_request(pipe: Any) -> None:
    held: list[weakref.ref[Tensor]] = []

    def watch(_: Any, __: Any, output: Tensor) -> None:
        held.append(weakref.ref(output))

    with attach(pipe, [SOME]) as run:
        handle = pipe.transformer.register_forward_hook(
            lambda module, args, output: watch(module, args, output[0])
        )
        WAN.run(pipe)
        handle.remove()
        gc.collect()
        assert len(held) == 2 * 6
        assert [reference() for reference in held] == [None] * len(held)
        assert run.traces[0].history_bytes == 2 * 4 * 16 * 3 * 2 * 2


# ----------------------------------------------------------------------- branches
def off_at(step_off: int) -> Any:
    """A callback that turns guidance off for one step, as a guidance interval does."""

    def callback(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        pipe._guidance_scale = 1.0 if step + 1 == step_off else 5.0
        return {}

    return callback


@pytest.mark.parametrize(
    ("name", "cond", "uncond"), [("wan-euler", "cond", "uncond"), ("lumina2", "call0", "call1")]
)
def test_one_skipped_unconditional_call_does_not_swap_branches(
    name: str, cond: str, uncond: str
) -> None:
    """Counting calls by parity would take the branches for each other from step 3 on.

    Lumina2 names no context, so its branches are recognised by their conditioning.
    """
    family = FAMILIES[name]
    pipe = family.build()
    changes = {"steps": 8, "callback_on_step_end": off_at(3), "guidance_scale": 5.0}
    expected = family.run(pipe, **changes)
    with attach(pipe, [EVERY]):
        assert torch.equal(family.run(pipe, **changes), expected)
    policy = SkipPolicy(steps=(0, 2, 5, 7))
    residuals: dict[tuple[int, str], Tensor] = {}
    with attach(pipe, [policy, Witness(residuals)]) as run:
        family.run(pipe, **changes)
    calls = [(c.index, c.branch, c.source) for c in run.traces[0].calls()]
    guided = {0: None, 1: 0, 2: None, 3: 2, 4: 2, 5: None, 6: 5, 7: None}
    assert calls == [
        (index, branch, source)
        for index, source in guided.items()
        for branch in (cond, uncond)
        if (index, branch) != (3, uncond)
    ]
    # what stood in at step 4 is what the same branch computed at step 2
    for branch, other in ((cond, uncond), (uncond, cond)):
        assert torch.equal(residuals[4, branch], residuals[2, branch])
        assert not torch.equal(residuals[4, branch], residuals[2, other])


class Witness(Policy):
    """Keeps `output - input` of computed calls, and what stands in for it on reused ones."""

    def __init__(self, found: dict[tuple[int, str], Tensor]) -> None:
        object.__setattr__(self, "found", found)

    @hookimpl(wrapper=True)
    def forward(self, step: Any, call: Call) -> Any:
        output = yield
        known = call.history[0].residual if call.reused else output - call.x
        self.found[step.index, call.branch] = known
        return output


def test_true_guidance_switched_off_in_the_next_request() -> None:
    family = FAMILIES["flux-true-cfg"]
    pipe = family.build()
    alone = fresh(family, pipe, true_cfg_scale=1.0)
    both = fresh(family, pipe)
    with attach(pipe, [SOME]) as run:
        assert torch.equal(family.run(pipe), both)
        assert torch.equal(family.run(pipe, true_cfg_scale=1.0), alone)
        assert torch.equal(family.run(pipe), both)
    assert [trace.network_calls for trace in run.traces] == [6, 3, 6]


def test_batched_guidance_cut_off_halves_the_batch() -> None:
    family = FAMILIES["sd"]
    pipe = family.build()

    def cut(pipe: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"][-1:]
        return tensors

    changes = {
        "callback_on_step_end": cut,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    expected = family.run(pipe, **changes)
    with attach(pipe, [EVERY]):
        assert torch.equal(family.run(pipe, **changes), expected)
    with attach(pipe, [SOME]) as run, counted(pipe, family) as made:
        assert family.run(pipe, **changes).isfinite().all()
    # steps 0 and 2, step 3 where the smaller batch has nothing to reuse, and the last
    assert run.traces[0].computed_steps == (0, 2, 3, 5)
    assert len(made) == 4


def test_skip_layer_guidance_is_a_branch_of_its_own() -> None:
    family = FAMILIES["sd3"]
    pipe = family.build()
    changes = {
        "skip_guidance_layers": [1],
        "skip_layer_guidance_start": 0.2,
        "skip_layer_guidance_stop": 0.8,
    }
    with counted(pipe, family) as plain:
        expected = family.run(pipe, **changes)
    assert len(plain) == 6 + 3
    with attach(pipe, [EVERY]) as run:
        assert torch.equal(family.run(pipe, **changes), expected)
    assert run.traces[0].network_calls == 9
    with attach(pipe, [SkipPolicy(steps=(0, 2, 5))]) as run, counted(pipe, family) as made:
        first = family.run(pipe, **changes)
        assert torch.equal(family.run(pipe, **changes), first)
    assert not torch.equal(first, expected)
    calls = [(c.index, c.branch, c.computed) for c in run.traces[0].calls()]
    assert calls == [
        (0, "call0", True),
        (1, "call0", False),
        (2, "call0", True),
        (2, "call1", True),
        (3, "call0", False),
        (3, "call1", False),
        (4, "call0", False),
        (4, "call1", False),
        (5, "call0", True),
    ]
    assert len(made) == 2 * 4


# -------------------------------------------------------------- what was replaced
def test_deep_copy_of_a_driven_scheduler_is_free(pipe: Any) -> None:
    expected = fresh(WAN, pipe)
    copies = []

    def step_a_copy(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        twin = copy.deepcopy(pipe.scheduler)
        twin.set_timesteps(3)
        twin.step(drawn(1, 4), twin.timesteps[0], drawn(1, 4))
        copies.append(twin)
        return {}

    with attach(pipe, [SOME]) as run:
        assert torch.equal(WAN.run(pipe, callback_on_step_end=step_a_copy), expected)
    assert len(run.traces) == 1
    for twin in copies:
        assert twin.step.__self__ is twin
        assert twin.set_timesteps.__func__ is type(twin).set_timesteps
        assert len(twin.timesteps) == 3


@pytest.mark.parametrize("when", ["before", "after a request", "after an abort"])
def test_replaced_scheduler_is_an_error(pipe: Any, when: str) -> None:
    with attach(pipe, [SOME]):
        if when == "after a request":
            WAN.run(pipe)
        elif when == "after an abort":
            with pytest.raises(ZeroDivisionError):
                WAN.run(pipe, callback_on_step_end=lambda *_: 1 / 0)
        pipe.scheduler = unipc()
        with pytest.raises(
            ProtocolError,
            match=r"\(FlowMatchEulerDiscreteScheduler / UniPCMultistepScheduler\); set it first",
        ):
            WAN.run(pipe)


def test_replaced_network_is_an_error(pipe: Any) -> None:
    with attach(pipe, [SOME]):
        pipe.transformer = WAN.build().transformer
        with pytest.raises(ProtocolError, match="transformer of WanPipeline was replaced"):
            WAN.run(pipe)


def test_hooks_that_are_reinstalled_between_requests(pipe: Any) -> None:
    """`enable_model_cpu_offload` removes every hook and installs new ones after each request."""
    expected = fresh(WAN, pipe)
    network, seen = pipe.transformer, []

    def reinstall() -> None:
        vars(network).pop("forward", None)
        own = network.forward
        vars(network)["forward"] = lambda *a, **k: seen.append(1) or own(*a, **k)

    with attach(pipe, [SOME]) as run:
        for _ in range(2):
            assert torch.equal(WAN.run(pipe), expected)
            reinstall()
    assert [trace.network_calls for trace in run.traces] == [6, 6]
    assert len(seen) == 6
    assert not torch.equal(WAN.run(pipe), expected)  # nothing of the engine is left
    assert len(run.traces) == 2


def test_hook_on_top_of_an_attached_network(pipe: Any) -> None:
    plain, expected = WAN.run(pipe), fresh(WAN, pipe)
    network, seen = pipe.transformer, []
    with attach(pipe, [SOME]) as run:
        inner = network.forward
        vars(network)["forward"] = lambda *a, **k: seen.append(1) or inner(*a, **k)
        assert torch.equal(WAN.run(pipe), expected)
    assert [trace.network_calls for trace in run.traces] == [6]
    assert torch.equal(WAN.run(pipe), plain)
    assert len(seen) == 6 + 12


# ---------------------------------------------------------------------- compiling
def test_in_place_compilation_is_refused(pipe: Any) -> None:
    with attach(pipe, [SOME]):
        pipe.transformer.compile(backend="eager")
        with pytest.raises(CapabilityError, match="compiled in place after attach"):
            WAN.run(pipe)
    with pytest.raises(CapabilityError, match=r"pipe.transformer = torch.compile"):
        attach(pipe, [SOME])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("regional", [False, True], ids=["whole", "repeated-blocks"])
def test_no_graph_break_is_added(regional: bool) -> None:
    """The same graphs, operators and breaks with an engine and without, counted by a backend."""
    from torch._dynamo.testing import CompileCounter
    from torch._dynamo.utils import counters

    def compiled() -> tuple[Any, Any]:
        torch._dynamo.reset()
        counter = CompileCounter()
        pipe = WAN.build()
        if regional:
            pipe.transformer.compile_repeated_blocks(backend=counter)
        else:
            pipe.transformer = torch.compile(pipe.transformer, backend=counter)
        counters.clear()
        return pipe, counter

    def breaks() -> int:
        return sum(counters["graph_break"].values())

    pipe, counter = compiled()
    full = WAN.run(pipe)
    plain = (counter.frame_count, counter.op_count, breaks())
    pipe, counter = compiled()
    with attach(pipe, [EVERY]) as run:
        assert torch.equal(WAN.run(pipe), full)
    assert run.traces[0].network_calls == 12
    assert (counter.frame_count, counter.op_count, breaks()) == plain
    assert plain[0] >= 1
    assert plain[2] == 0
    with attach(pipe, [SOME]) as run:
        assert not torch.equal(WAN.run(pipe), full)
        assert torch.equal(WAN.run(pipe), fresh_of(pipe, run))
    assert (counter.frame_count, counter.op_count, breaks()) == plain
    assert run.traces[0].network_calls == 6
    torch._dynamo.reset()


def fresh_of(pipe: Any, run: Any) -> Tensor:
    """The next request of this very attachment."""
    sample = WAN.run(pipe)
    assert run.traces[-1].network_calls == 6
    return sample


# ------------------------------------------------------------------ what is asked
class Doubles(Policy):
    """Doubles every prediction, computed or not."""

    traits = Traits(corrects_computed=True)

    @hookimpl(wrapper=True)
    def forward(self) -> Any:
        output = yield
        return 2 * output


@pytest.mark.parametrize("name", ["wan-euler", "z-image", "hunyuan-video"])
def test_a_policy_may_replace_computed_outputs_where_it_declares_it(name: str) -> None:
    family = FAMILIES[name]
    pipe = family.build()

    def double(_: Any, __: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
        first = output[0]
        twice = [2 * item for item in first] if isinstance(first, list) else 2 * first
        return (twice, *output[1:])

    handle = pipe.transformer.register_forward_hook(double)
    expected = family.run(pipe)
    handle.remove()
    with attach(pipe, [Doubles()]):
        assert torch.equal(family.run(pipe), expected)


def test_a_pipeline_that_never_steps_the_scheduler_is_an_error(pipe: Any) -> None:
    arguments = {"hidden_states": drawn(1, 16, 3, 2, 2), "encoder_hidden_states": drawn(1, 8, 32)}
    with attach(pipe, [SOME]):
        pipe.scheduler.set_timesteps(6)
        with torch.no_grad():
            pipe.transformer(timestep=torch.tensor([999]), **arguments)
            with pytest.raises(ProtocolError, match="cannot be followed"):
                pipe.transformer(timestep=torch.tensor([500]), **arguments)


def test_calls_outside_a_request_pass_through(pipe: Any) -> None:
    arguments = {"hidden_states": drawn(1, 16, 3, 2, 2), "encoder_hidden_states": drawn(1, 8, 32)}
    with torch.no_grad():
        expected = pipe.transformer(timestep=torch.tensor([999]), **arguments).sample
        with (
            pytest.warns(UnusedWarning, match="called 1 times, by code of your own"),
            attach(pipe, [SOME]) as run,
        ):
            found = pipe.transformer(timestep=torch.tensor([999]), **arguments).sample
    assert torch.equal(found, expected)
    assert run.traces == []


def test_pipelines_without_a_network_are_refused() -> None:
    with pytest.raises(CapabilityError, match="no network that takes latents and a time"):
        attach(Empty(), [])
    with pytest.raises(CapabilityError, match="has no scheduler"):
        attach(object(), [])
    with pytest.raises(CapabilityError, match="no network for dit"):
        attach(WAN.build(), [], networks=["dit"])


class Empty:
    scheduler = flow()


@pytest.mark.parametrize("name", ["wan-unipc", "sd", "sdxl", "cogvideox", "pixart-sigma"])
def test_time_warp_needs_a_first_order_flow_scheduler(name: str) -> None:
    pipe = FAMILIES[name].build()
    scheduler = type(pipe.scheduler).__name__
    with pytest.raises(CapabilityError, match=f"first_order, which {scheduler} does not offer"):
        attach(pipe, [SOME, TimestepAdjuster(phi=(0.9,) * 6)])


def test_weights_changed_between_requests_start_from_nothing(pipe: Any) -> None:
    """As loading or scaling an adapter does: no residual of the old weights survives."""
    with attach(pipe, [SOME]):
        WAN.run(pipe)
        with torch.no_grad():
            pipe.transformer.proj_out.weight.mul_(1.5)
        changed = WAN.run(pipe)
    assert torch.equal(changed, fresh(WAN, pipe))
