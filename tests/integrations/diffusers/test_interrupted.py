"""After the pipeline's own code raised, its networks are its own again, at once and for good."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework import Call, Policy, hookimpl
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.pipeline._call_frame import CallFrame, iter_loops
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES, Family, counted

ONCE = SkipPolicy(steps=(0, 5))
SOME = SkipPolicy(steps=(0, 2, 5))
WAN = FAMILIES["wan-euler"]
Given = list[tuple[tuple[Any, ...], dict[str, Any]]]


class Stop(Exception):
    """What a user's own code raises."""


def network_of(pipe: Any, family: Family) -> Any:
    return getattr(pipe, family.inner[0].partition(".")[0])


def recorded(pipe: Any, family: Family, steps: int = 6) -> Given:
    """The arguments of every network call of a request that nothing drives."""
    given: Given = []
    handle = network_of(pipe, family).register_forward_pre_hook(
        lambda _, args, kwargs: given.append((args, kwargs)), with_kwargs=True
    )
    family.run(pipe, steps)
    handle.remove()
    return given


def direct(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The prediction of one network call that is part of no request."""
    with torch.no_grad():
        raw = network(*args, **kwargs)
    first = raw if isinstance(raw, Tensor) else raw[0]
    return first if isinstance(first, Tensor) else torch.stack(list(first))


def raising(at: int) -> Callable[..., None]:
    """Raises when it is called for the `at`-th time."""
    left = [at]

    def count(*_: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise Stop

    return count


class Bar:
    """A progress bar that raises at its third step, as a user's own may."""

    def __init__(self, iterable: Any = None, total: int | None = None) -> None:
        self.iterable, self.update = iterable, raising(3)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            self.update()


@contextmanager
def bars(pipe: Any) -> Iterator[None]:
    """The loops of a pipeline have such a progress bar."""
    before = [(loop, dict(vars(loop))) for loop in iter_loops(pipe)]
    for loop, _ in before:
        vars(loop)["progress_bar"] = Bar
    try:
        yield
    finally:
        for loop, attributes in before:
            vars(loop).pop("progress_bar")
            vars(loop).update({k: v for k, v in attributes.items() if k == "progress_bar"})


@contextmanager
def hooked(register: Callable[..., Any], at: int) -> Iterator[None]:
    """A hook of torch's on the network, outside of everything that is driven, raises."""
    handle = register(raising(at))
    try:
        yield
    finally:
        handle.remove()


def places(pipe: Any, family: Family) -> dict[str, Any]:
    """Ways for a pipeline to raise outside of its network and scheduler."""
    network = network_of(pipe, family)
    return {
        "between set_timesteps and the network": hooked(network.register_forward_pre_hook, 1),
        "between the network and the scheduler": hooked(
            network.register_forward_hook, 2 * family.calls + 1
        ),
        "between two steps": bars(pipe),
    }


# what flux2-klein-kv is called with reads what its earlier calls wrote into the network
@pytest.mark.parametrize(
    "name",
    [name for name, family in FAMILIES.items() if not family.slow and name != "flux2-klein-kv"],
)
def test_a_network_called_after_an_error_is_untouched(name: str) -> None:
    """The arguments are those that the request would have given next, so nothing else tells."""
    family = FAMILIES[name]
    pipe = family.build()
    network, given = network_of(pipe, family), recorded(pipe, family)
    plain = [direct(network, *arguments) for arguments in given]
    with attach(pipe, [ONCE]):
        fresh = family.run(pipe)
    for place in places(pipe, family):
        held = []  # as an interactive session does, which keeps the frames alive
        with attach(pipe, [ONCE]) as run:
            with places(pipe, family)[place]:
                try:
                    family.run(pipe)
                except Stop as error:
                    held.append(error)
            assert held, place
            with counted(pipe, family) as made:
                for arguments, expected in zip(given, plain, strict=True):
                    assert torch.equal(direct(network, *arguments), expected), place
            assert len(made) == len(given)
            assert torch.equal(family.run(pipe), fresh), place
        assert len(run.traces[-1].steps) == family.forwards(6) - family.skipped(6)


@pytest.mark.parametrize("seam", ["latent", "trunk"])
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_callback_that_raises(seam: str, error: type[BaseException], step: int) -> None:
    pipe = WAN.build()
    given = recorded(pipe, WAN)
    plain = [direct(pipe.transformer, *arguments) for arguments in given]

    def callback(_: Any, index: int, *__: Any) -> dict[str, Any]:
        if index == step:
            raise error
        return {}

    with attach(pipe, [SOME], seam=seam) as run:
        fresh = WAN.run(pipe)
        with pytest.raises(error):
            WAN.run(pipe, callback_on_step_end=callback)
        assert [len(trace.steps) for trace in run.traces] == [6, step + 1]
        for arguments, expected in zip(given, plain, strict=True):
            assert torch.equal(direct(pipe.transformer, *arguments), expected)
        assert torch.equal(WAN.run(pipe), fresh)


class Keeps(Policy):
    """Notes why a request ended, and holds weakly what it could reuse."""

    def __init__(self, ends: list[BaseException | None], kept: list[weakref.ref[Tensor]]) -> None:
        object.__setattr__(self, "ends", ends)
        object.__setattr__(self, "kept", kept)

    @hookimpl
    def decide(self, call: Call) -> None:
        self.kept.append(weakref.ref(call.history[0].residual))

    @hookimpl
    def on_session_end(self, error: BaseException | None) -> None:
        self.ends.append(error)


@pytest.mark.parametrize("name", ["wan-euler", "wan-modular", "sd", "flux"])
def test_what_a_request_held_is_freed_as_soon_as_its_loop_raises(name: str) -> None:
    family = FAMILIES[name]
    pipe = family.build()
    ends: list[BaseException | None] = []
    kept: list[weakref.ref[Tensor]] = []
    with attach(pipe, [Keeps(ends, kept), SOME]):
        with bars(pipe), pytest.raises(Stop):
            family.run(pipe)
        gc.collect()
        assert [type(error) for error in ends] == [Stop]
        assert kept
        assert all(reference() is None for reference in kept)


def test_what_a_request_held_is_freed_at_the_next_call_where_the_loop_tells_nobody() -> None:
    """DiT iterates its bar, which no exception passes through."""
    family = FAMILIES["dit"]
    pipe = family.build()
    ((args, kwargs), *_) = recorded(pipe, family)
    ends: list[BaseException | None] = []
    kept: list[weakref.ref[Tensor]] = []
    with attach(pipe, [Keeps(ends, kept), SOME]):
        with bars(pipe), pytest.raises(Stop):
            family.run(pipe)
        assert ends == []
        direct(pipe.transformer, args, kwargs)
        gc.collect()
        assert [str(error) for error in ends] == ["the pipeline raised before the last step"]
        assert all(reference() is None for reference in kept)


def test_a_scheduler_stepped_after_an_error_is_untouched() -> None:
    pipe = WAN.build()
    latents = torch.ones(1, 16, 3, 2, 2)
    pipe.scheduler.set_timesteps(6)
    pipe.scheduler.set_begin_index(0)
    expected = pipe.scheduler.step(latents, pipe.scheduler.timesteps[0], latents)[0]
    with attach(pipe, [ONCE]) as run:
        with hooked(pipe.transformer.register_forward_hook, 1), pytest.raises(Stop):
            WAN.run(pipe)
        pipe.scheduler._step_index = None
        step = pipe.scheduler.step(latents, pipe.scheduler.timesteps[0], latents)[0]
        assert torch.equal(step, expected)
        assert [len(trace.steps) for trace in run.traces] == [0]


def test_an_error_within_a_request_of_another_pipeline_ends_neither_too_much_nor_too_little() -> (
    None
):
    """Two pipelines of one class: each call is known by its object."""
    outer, inner = WAN.build(), WAN.build()
    ((args, kwargs), *_) = recorded(inner, WAN)
    plain = direct(inner.transformer, args, kwargs)
    with attach(outer, [SOME]):
        fresh = WAN.run(outer)
    direct_calls = []

    def nested(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 1:
            with pytest.raises(Stop):
                WAN.run(inner, callback_on_step_end=stop)
            direct_calls.append(direct(inner.transformer, args, kwargs))
        return {}

    def stop(*_: Any) -> None:
        raise Stop

    with attach(outer, [SOME]) as first, attach(inner, [ONCE]) as second:
        assert torch.equal(WAN.run(outer, callback_on_step_end=nested), fresh)
    assert torch.equal(direct_calls[0], plain)
    assert [len(trace.steps) for trace in first.traces] == [6]
    assert [len(trace.steps) for trace in second.traces] == [1]


@pytest.mark.parametrize("name", ["wan-euler", "wan-modular", "dit"])
def test_nothing_is_left_on_the_pipeline_and_its_loops(name: str) -> None:
    pipe = FAMILIES[name].build()
    owners = [pipe, *iter_loops(pipe)]
    assert len(owners) > 1
    before = [dict(vars(owner)) for owner in owners]
    with attach(pipe, [SOME]):
        assert all("progress_bar" in vars(owner) for owner in owners[1:])
        with hooked(pipe.transformer.register_forward_hook, 1), pytest.raises(Stop):
            FAMILIES[name].run(pipe)
    assert "maybe_free_model_hooks" not in vars(pipe)
    for owner, earlier in zip(owners, before, strict=True):
        assert "progress_bar" not in vars(owner)
        assert earlier.keys() <= vars(owner).keys()


def test_networks_that_run_in_a_thread_of_their_own_are_still_driven() -> None:
    """A pipeline may hand its network calls to a worker; nothing there tells that it ended."""
    pipe = WAN.build()
    with attach(pipe, [SOME]):
        fresh = WAN.run(pipe)
    call = type(pipe.transformer).__call__

    class Threaded(type(pipe.transformer)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            answers: list[Any] = []

            def work() -> None:
                with torch.no_grad():
                    answers.append(call(self, *args, **kwargs))

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            return answers[0]

    pipe.transformer.__class__ = Threaded
    with attach(pipe, [SOME]) as run:
        assert torch.equal(WAN.run(pipe), fresh)
    assert run.traces[0].network_calls == 6


def test_the_own_loop_around_a_pipelines_parts_belongs_to_no_call() -> None:
    """Nobody calls the pipeline, so its requests end with the next one, or with the attachment."""
    pipe = WAN.build()
    assert CallFrame.find().pipe is None
    (first, *_) = recorded(pipe, WAN)
    with attach(pipe, [SkipPolicy(steps=(0, 2))]) as run:
        pipe.scheduler.set_timesteps(3)
        latents = first[1]["hidden_states"]
        for time in pipe.scheduler.timesteps:
            prediction = direct(pipe.transformer, *first)
            latents = pipe.scheduler.step(prediction, time, latents)[0]
    assert [trace.network_calls for trace in run.traces] == [2]
