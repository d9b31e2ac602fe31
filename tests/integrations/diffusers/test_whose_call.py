"""A network call belongs to the request of the pipeline that makes it, or to no request."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from erta_framework import Engine, FlowEuler, NoGuidance, Request, SamplingLoop
from erta_framework.errors import ConflictError, ProfileMismatchError, ProtocolError, UnusedWarning
from erta_integrations.diffusers import attach
from erta_policies.ertacache import SkipPolicy, TimestepAdjuster
from tiny_pipelines import FAMILIES, drawn, flow
from tiny_pipelines.toys import (
    Net,
    Streaming,
    Toy,
    Worker,
    caught_from,
    in_turns,
    interleave,
    last,
    loop_by_hand,
)

SKIP = SkipPolicy(steps=(0, 2, 5))
PHI = TimestepAdjuster(phi=(0.9, 0.7, 1.0, 0.8, 0.9, 1.0))
SD, WAN = FAMILIES["sd"], FAMILIES["wan-euler"]


def copied(pipe: Any) -> Any:
    """A copy for one request: it shares the networks, with a copy of the scheduler."""
    twin = copy.copy(pipe)
    twin.scheduler = copy.deepcopy(pipe.scheduler)
    return twin


def other(pipe: Any) -> Any:
    """A pipeline of the same networks, with a scheduler of its own that nobody attached."""
    twin = copy.copy(pipe)
    twin.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return twin


def alone(pipe: Any, *policies: Any, seed: int = 0, **options: Any) -> Tensor:
    """One request of an attachment of its own."""
    with attach(pipe, list(policies or (SKIP,)), **options):
        found: Tensor = pipe(seed)
    return found


def nested(job: Callable[[], Any], at: int = 1) -> tuple[Callable[..., None], list[Any]]:
    """A callback that runs a job after a step, and what the job returned."""
    found: list[Any] = []

    def callback(_: Any, index: int, *__: Any) -> None:
        if index == at:
            found.append(job())

    return callback, found


# ----------------------------------------------------------------------------- in threads
@pytest.mark.parametrize("build", [SD.build, WAN.build], ids=["sd", "wan"])
def test_a_pipeline_that_nobody_attached_is_exact_in_a_thread_of_its_own(
    build: Callable[[], Any],
) -> None:
    pipe = build()
    family = SD if hasattr(pipe, "unet") else WAN
    network = pipe.unet if family is SD else pipe.transformer
    free = other(pipe)
    plain = family.run(free, seed=2)
    with attach(pipe, [SKIP]):
        driven = family.run(pipe, seed=1)
    with attach(pipe, [SKIP]) as run:
        found = in_turns(
            network, partial(family.run, pipe, seed=1), partial(family.run, free, seed=2)
        )
    assert torch.equal(found[0], driven)
    assert torch.equal(found[1], plain)
    assert len(run.traces) == 1


@pytest.mark.parametrize("seam", ["latent", "trunk"])
@pytest.mark.parametrize("policies", [[SKIP], [SKIP, PHI]], ids=["skip", "warp"])
def test_requests_of_copies_in_threads_are_those_that_run_one_after_another(
    seam: str, policies: list[Any]
) -> None:
    pipe = WAN.build()
    expected = []
    for seed in (1, 2):
        with attach(pipe, policies, seam=seam):
            expected.append(WAN.run(pipe, seed=seed))
    with attach(pipe, policies, seam=seam) as run:
        pipes = [pipe, copied(pipe)]
        jobs = [partial(WAN.run, p, seed=seed) for p, seed in zip(pipes, (1, 2), strict=True)]
        found = in_turns(pipe.transformer, *jobs)
    for sample, wanted in zip(found, expected, strict=True):
        assert torch.equal(sample, wanted)
    assert [trace.network_calls for trace in run.traces] == [6, 6]
    assert len({trace.request_id for trace in run.traces}) == 2


def test_one_pipeline_in_two_threads_is_refused_and_the_first_goes_on() -> None:
    pipe = Toy(Net())
    expected = alone(pipe)
    errors: list[Any] = []

    def run_beside(*_: Any) -> None:
        errors.append(Worker(partial(pipe, 5)).result)

    with attach(pipe, [SKIP]):
        assert torch.equal(pipe(0, callback_on_step_end=run_beside), expected)
        assert torch.equal(pipe(0), expected)
    *refused, after = errors
    for error in refused:
        assert isinstance(error, ConflictError)
        assert "same scheduler in another thread" in str(error)
        assert "copy.deepcopy(pipe.scheduler)" in str(error)
    assert len(refused) == 5
    assert isinstance(after, Tensor)  # the last step was over


def test_a_copy_serves_many_requests_and_is_left_as_it_was() -> None:
    pipe = Toy(Net())
    expected = [alone(pipe, seed=seed) for seed in (0, 1)]
    with attach(pipe, [SKIP]) as run:
        twin = copied(pipe)
        before = dict(vars(twin.scheduler))
        for _ in range(2):
            assert [torch.equal(twin(s), expected[s]) for s in (0, 1)] == [True, True]
        assert vars(twin.scheduler)["step"] is before["step"]
    assert twin.scheduler.step.__self__ is twin.scheduler
    assert twin.scheduler.step.__func__ is type(twin.scheduler).step
    assert len(run.traces) == 4
    plain = Toy(Net())(0)
    assert torch.equal(twin(0), plain)


def test_the_copy_of_a_copy_is_driven_too() -> None:
    pipe = Toy(Net())
    expected = alone(pipe)
    with attach(pipe, [SKIP]) as run:
        twin = copied(pipe)
        callback, inner = nested(lambda: copied(twin)(0))
        assert torch.equal(twin(0, callback_on_step_end=callback), expected)
    assert torch.equal(inner[0], expected)
    assert len(run.traces) == 2


def test_prompts_belong_to_the_thread_that_set_them() -> None:
    with attach(Toy(Net()), [SKIP]) as run:
        run.prompts = ["here"]
        assert Worker(lambda: run.prompts).result == ()
        assert run.prompts == ("here",)
        run._driver.parts.pipe()


# ------------------------------------------------------------- networks in a thread of their own
class Elsewhere(Toy):
    """Calls its network in a worker, and may wait for something else than the worker."""

    waits = True

    @torch.no_grad()
    def __call__(self, seed: int = 0, **_: Any) -> Tensor:  # type: ignore[override]
        self.scheduler.set_timesteps(6)
        x = drawn(1, 3, 2, seed=seed)
        with ThreadPoolExecutor(1) as pool:
            for time in self.scheduler.timesteps:
                future = pool.submit(self.compute, x, time)
                gate = threading.Event()
                future.add_done_callback(lambda _, gate=gate: gate.set())
                if not self.waits:
                    gate.wait()
                x = self.scheduler.step(future.result(), time, x, return_dict=False)[0]
        return x

    @torch.no_grad()
    def compute(self, x: Tensor, time: Tensor) -> Tensor:
        return self.transformer(x, time)  # type: ignore[no-any-return]


def test_a_worker_that_the_pipeline_waits_for_works_for_its_request() -> None:
    expected, pipe = alone(Toy(Net())), Elsewhere(Net())
    with attach(pipe, [SKIP]) as run:
        assert torch.equal(pipe(0), expected)
    assert run.traces[0].computed_steps == (0, 2, 5)


def test_a_worker_that_nobody_is_seen_to_wait_for_is_refused() -> None:
    pipe = Elsewhere(Net())
    pipe.waits = False
    with (
        attach(pipe, [SKIP]),
        pytest.raises(ProtocolError, match=r"transformer \(Net\) was called in a thread that runs"),
    ):
        pipe(0)


def test_a_loop_of_somebody_else_in_a_thread_is_refused_and_the_request_goes_on() -> None:
    pipe = Toy(Net())
    expected, errors = alone(pipe), []

    def loop_beside(_: Any, index: int, *__: Any) -> None:
        if index == 1:
            worker = Worker(lambda: last(loop_by_hand(pipe.transformer, flow(), 3)))
            while worker.is_alive():
                threading.Event().wait(0.01)
            errors.append(worker.result)

    with attach(pipe, [SKIP]):
        assert torch.equal(pipe(0, callback_on_step_end=loop_beside), expected)
    assert isinstance(errors[0], ProtocolError)


def test_a_worker_of_a_callback_works_for_nobody() -> None:
    """The pipeline waits for it, but in code of the user's."""
    pipe, x = Toy(Net()), drawn(1, 3, 2)
    expected = alone(pipe)
    callback, found = nested(
        lambda: Worker(lambda: pipe.transformer(x, torch.tensor(500.0))).result
    )
    with attach(pipe, [SKIP]) as run:
        assert torch.equal(pipe(0, callback_on_step_end=callback), expected)
    assert isinstance(found[0], ProtocolError)
    assert run.traces[0].network_calls == 3


# --------------------------------------------------------------------- within each other
def test_a_pipeline_within_a_callback_that_nobody_attached_is_untouched() -> None:
    pipe = Toy(Net())
    free, expected = other(pipe), alone(pipe)
    plain = free(7)
    callback, inner = nested(lambda: free(7))
    with attach(pipe, [SKIP]) as run:
        assert torch.equal(pipe(0, callback_on_step_end=callback), expected)
    assert torch.equal(inner[0], plain)
    assert len(run.traces) == 1
    assert "6 calls of transformer outside any request, by Toy" in run.summary()


def test_a_copy_within_a_callback_has_a_request_of_its_own() -> None:
    pipe = Toy(Net())
    expected = [alone(pipe, SKIP, PHI, seed=seed) for seed in (0, 7)]
    with attach(pipe, [SKIP, PHI]) as run:
        twin = copied(pipe)
        callback, inner = nested(lambda: twin(7))
        assert torch.equal(pipe(0, callback_on_step_end=callback), expected[0])
    assert torch.equal(inner[0], expected[1])
    assert [trace.network_calls for trace in run.traces] == [3, 3]


@pytest.mark.parametrize("sibling", [False, True], ids=["the same", "one of the same parts"])
def test_a_second_request_within_the_first_on_one_scheduler_is_refused(sibling: bool) -> None:
    pipe = Toy(Net())
    again = copy.copy(pipe) if sibling else pipe
    expected = alone(pipe)
    errors: list[str] = []

    def callback(_: Any, index: int, *__: Any) -> None:
        if index < 5:
            with pytest.raises(ConflictError, match="same scheduler around it") as caught:
                again(3)
            errors.append(str(caught.value))

    with attach(pipe, [SKIP]) as run:
        assert torch.equal(pipe(0, callback_on_step_end=callback), expected)
    assert len(errors) == 5
    assert len(run.traces) == 1


def test_the_scheduler_under_other_networks_is_never_driven_but_refused_within_a_request() -> None:
    pipe = Toy(Net())
    free = Toy(Net(gain=0.5), pipe.scheduler)
    plain, expected = free(3), alone(pipe)
    callback, caught = nested(lambda: caught_from(partial(free, 3)))
    with attach(pipe, [SKIP]) as run:
        assert torch.equal(free(3), plain)
        assert torch.equal(pipe(0, callback_on_step_end=callback), expected)
        assert torch.equal(free(3), plain)
    assert isinstance(caught[0], ConflictError)
    assert len(run.traces) == 1


def test_a_call_of_the_base_class_is_the_same_call() -> None:
    class Derived(Toy):
        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            self.scheduler.set_timesteps(3)  # as a subclass does that looks at the timesteps
            return super().__call__(*args, **kwargs)

    expected, pipe = alone(Toy(Net())), Derived(Net())
    with attach(pipe, [SKIP]) as run:
        assert torch.equal(pipe(0), expected)
    assert [trace.network_calls for trace in run.traces] == [3]


def test_the_own_loop_within_a_callback_is_untouched() -> None:
    """`SamplingLoop` is what `Sampler` runs; it is no pipeline, and shares the network."""
    pipe = Toy(Net())
    expected = alone(pipe)
    request = Request(
        latents=drawn(1, 3, 2, seed=4), cond=torch.zeros(1, 1), schedule=FlowEuler().schedule(5)
    )

    def network(x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        return pipe.transformer(x, times[0])  # type: ignore[no-any-return]

    def sample() -> Tensor:
        engine = Engine([SkipPolicy(every=2)])
        return SamplingLoop(engine, FlowEuler(), NoGuidance()).run(network, request).sample

    plain = sample()
    callback, inner = nested(sample)
    beside = []
    with attach(pipe, [SKIP]) as run:
        pipe.transformer.made = 0
        assert torch.equal(pipe(0, callback_on_step_end=callback), expected)
        assert pipe.transformer.made == 3 + 3
        tick, _ = nested(lambda: beside.append(Worker(sample).result))
        assert torch.equal(pipe(0, callback_on_step_end=tick), expected)
    assert torch.equal(inner[0], plain)
    assert torch.equal(beside[0], plain)
    assert [trace.network_calls for trace in run.traces] == [3, 3]


class Calls:
    """A callback that is an object."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> None:
        self.function(*args)

    def method(self, *args: Any) -> None:
        self.function(*args)


WRAPPERS = [lambda f: f, partial, Calls, lambda f: Calls(f).method]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["function", "partial", "object", "method"])
def test_a_network_called_by_hand_within_a_callback_runs(wrap: Callable[[Any], Any]) -> None:
    pipe = Toy(Net())
    expected = alone(pipe)
    x, time = drawn(1, 3, 2, seed=9), torch.tensor(300.0)
    plain = pipe.transformer(x, time)
    callback, found = nested(lambda: pipe.transformer(x, time), at=0)
    with attach(pipe, [SKIP]) as run:
        assert torch.equal(pipe(0, callback_on_step_end=wrap(callback)), expected)
    assert torch.equal(found[0], plain)
    assert "1 calls of transformer outside any request, by code of your own" in run.summary()


# ------------------------------------------------------------------------- generators, async
def test_streams_of_copies_take_turns() -> None:
    pipe = Streaming(Net())
    with attach(pipe, [SKIP]) as run:
        expected = [last(pipe(seed)) for seed in (0, 1)]
        twin = copied(pipe)
        found = interleave(pipe(0), twin(1))
    assert [torch.equal(a, b) for a, b in zip(found, expected, strict=True)] == [True, True]
    assert [trace.network_calls for trace in run.traces] == [3] * 4


def test_a_stream_that_nobody_attached_is_untouched() -> None:
    pipe = Streaming(Net())
    free = other(pipe)
    plain = last(free(1))
    with attach(pipe, [SKIP]) as run:
        driven = last(pipe(0))
        found = interleave(pipe(0), free(1))
    assert torch.equal(found[0], driven)
    assert torch.equal(found[1], plain)
    assert len(run.traces) == 2


def in_new_threads(stream: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same stream, every step in a thread of its own, as web servers do."""
    while (found := Worker(lambda: next(stream, None)).result) is not None:
        yield found


def test_a_stream_goes_on_in_other_threads() -> None:
    """Each of both is looked for while the other one is at work or waits."""
    pipe = Streaming(Net())
    free = other(pipe)
    with attach(pipe, [SKIP]) as run:
        expected = [last(pipe(seed)) for seed in (0, 1)]
        plain = last(free(2))
        streams = [pipe(0), copied(pipe)(1), free(2)]
        found = interleave(*map(in_new_threads, streams))
        by_hand = last(in_new_threads(loop_by_hand(pipe.transformer, pipe.scheduler, 0)))
    for sample, wanted in zip(found, [*expected, plain], strict=True):
        assert torch.equal(sample, wanted)
    assert torch.equal(by_hand, expected[0])
    assert [trace.network_calls for trace in run.traces] == [3] * 5


def test_two_streams_on_one_scheduler_are_refused_until_the_first_has_ended() -> None:
    pipe = Streaming(Net())
    with attach(pipe, [SKIP]) as run:
        expected = last(pipe(0))
        stream = pipe(0)
        next(stream)
        with pytest.raises(ConflictError, match="in a generator that is suspended"):
            next(pipe(1))
        assert torch.equal(last(stream), expected)
        stream = pipe(0)
        next(stream)
        stream.close()
        assert torch.equal(last(pipe(0)), expected)
    assert [len(trace.steps) for trace in run.traces] == [6, 6, 1, 6]


def test_a_loop_by_hand_in_a_generator_ends_where_the_generator_waits() -> None:
    pipe = Toy(Net())
    plain = last(loop_by_hand(pipe.transformer, flow(), 1))
    with attach(pipe, [SKIP]) as run:
        driven = last(loop_by_hand(pipe.transformer, pipe.scheduler, 0))
        found = interleave(
            loop_by_hand(pipe.transformer, pipe.scheduler, 0),
            loop_by_hand(pipe.transformer, flow(), 1),
        )
    assert torch.equal(found[0], driven)
    assert torch.equal(found[1], plain)
    assert [trace.network_calls for trace in run.traces] == [3, 3]


def test_tasks_that_take_turns() -> None:
    pipe = Toy(Net())
    plain = last(loop_by_hand(pipe.transformer, flow(), 1))

    async def task(scheduler: Any, seed: int) -> Tensor:
        steps = []
        for x in loop_by_hand(pipe.transformer, scheduler, seed):
            steps.append(x)
            await asyncio.sleep(0)
        return steps[-1]

    async def both() -> list[Tensor]:
        return await asyncio.gather(task(pipe.scheduler, 0), task(flow(), 1))

    async def threads() -> list[Tensor]:
        return await asyncio.gather(*(asyncio.to_thread(p, s) for p, s in ((pipe, 0), (twin, 1))))

    with attach(pipe, [SKIP]):
        driven = [pipe(seed) for seed in (0, 1)]
        found = asyncio.run(both())
        twin = copied(pipe)
        beside = asyncio.run(threads())
    assert torch.equal(found[0], driven[0])
    assert torch.equal(found[1], plain)
    assert [torch.equal(a, b) for a, b in zip(beside, driven, strict=True)] == [True, True]


# -------------------------------------------------------------------------------- siblings
def image_to_image(pipe: Any) -> Any:
    found = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    found.set_progress_bar_config(disable=True)
    return found


def test_facts_are_those_of_the_pipeline_that_runs() -> None:
    pipe = SD.build()
    sibling = image_to_image(pipe)
    changes = {"image": drawn(1, 4, 8, 8, seed=3), "strength": 1.0}
    arguments = {**SD.inputs(1), "num_inference_steps": 6, "output_type": "latent", **changes}
    with attach(pipe, "residual_profiler") as run:
        SD.run(pipe, guidance_scale=7.5)
    profile = run.profile()
    with attach(pipe, "skip_policy", profile=profile, calls=3) as run:
        SD.run(pipe, guidance_scale=7.5)
        with pytest.raises(ProfileMismatchError, match="guidance"):
            sibling(guidance_scale=2.0, **arguments)
        sibling(guidance_scale=7.5, **arguments)
    assert [trace.network_calls for trace in run.traces] == [3, 0, 3]


def test_a_sibling_that_raised_leaves_the_network_alone() -> None:
    pipe = SD.build()
    sibling = image_to_image(pipe)
    arguments = {**SD.inputs(1), "num_inference_steps": 6, "output_type": "latent"}
    cond = torch.cat([arguments["negative_prompt_embeds"], arguments["prompt_embeds"]])
    x = drawn(2, 4, 8, 8, seed=5)

    @torch.no_grad()
    def by_hand() -> Tensor:
        return pipe.unet(x, torch.tensor(500), encoder_hidden_states=cond)[0]  # type: ignore[no-any-return]

    def stop(*_: Any) -> None:
        raise ZeroDivisionError

    plain = by_hand()
    with attach(pipe, [SkipPolicy(steps=(0,))]) as run:
        with pytest.raises(ZeroDivisionError):
            sibling(image=drawn(1, 4, 8, 8), strength=1.0, callback_on_step_end=stop, **arguments)
        assert torch.equal(by_hand(), plain)
        assert len(run.traces) == 1
        SD.run(pipe)
    assert [len(trace.steps) for trace in run.traces] == [1, 6]


def test_a_sibling_with_another_second_network_is_refused() -> None:
    pipe = Toy(Net())
    pipe.transformer_2 = Net()  # type: ignore[attr-defined]
    sibling = copy.copy(pipe)
    sibling.transformer_2 = Net()  # type: ignore[attr-defined]
    with (
        attach(pipe, [SKIP], networks=["transformer", "transformer_2"]),
        pytest.raises(ProtocolError, match="transformer_2 of Toy was replaced"),
    ):
        sibling(0)


def test_base_and_refiner_that_share_parts() -> None:
    family = FAMILIES["sdxl"]
    base, refiner = family.build(), family.build()
    refiner.vae = base.vae
    plain = family.run(refiner, seed=3)
    with attach(base, [SKIP]):
        driven = family.run(base)
    with attach(base, [SKIP]) as run:
        assert torch.equal(family.run(base), driven)
        assert torch.equal(family.run(refiner, seed=3), plain)
    assert len(run.traces) == 1
    with attach(base, [SKIP]) as one, attach(refiner, [SKIP]) as two:
        family.run(base)
        family.run(refiner)
    assert [len(one.traces), len(two.traces)] == [1, 1]


class Combined:
    """Runs a prior and a decoder, each a pipeline of its own, as Kandinsky's does."""

    def __init__(self, prior: Toy, decoder: Toy) -> None:
        self.prior_pipe, self.decoder_pipe = prior, decoder
        self.prior_prior, self.prior_scheduler = prior.transformer, prior.scheduler
        self.transformer, self.scheduler = decoder.transformer, decoder.scheduler

    @property
    def components(self) -> dict[str, Any]:
        return {"transformer": self.transformer, "prior_prior": self.prior_prior}

    def __call__(self, seed: int = 0, guidance_scale: float = 1.0) -> Tensor:
        return self.prior_pipe(seed) + self.decoder_pipe(seed + 1, guidance_scale=guidance_scale)


def test_a_combined_pipeline_runs_the_attached_scheduler_in_its_part() -> None:
    prior, decoder = Toy(Net()), Toy(Net(gain=0.7))
    pipe = Combined(prior, decoder)
    expected = prior(0) + alone(decoder, seed=1)
    with attach(pipe, [SKIP], networks=["transformer"]) as run:
        assert torch.equal(pipe(0), expected)
    assert [trace.network_calls for trace in run.traces] == [3]
    with pytest.warns(UnusedWarning, match=r"prior_prior \(Net\) of Combined was called 6 times"):
        assert torch.equal(alone(pipe), expected)
    with attach(prior, [SKIP]) as one, attach(decoder, [SKIP]) as two:
        pipe(0)
    assert [len(one.traces), len(two.traces)] == [1, 1]
