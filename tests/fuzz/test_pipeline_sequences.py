"""Random sequences of what people do with an attached pipeline; each request as if it were alone.

What a request returns must be what the same request returns under a fresh attachment of a fresh
pipeline, bit for bit, whatever came before it; the networks' own counters must agree with the
traces; and on leaving, the pipeline must be as it was.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework import Policy
from erta_framework.errors import ConflictError
from erta_integrations.diffusers import attach
from erta_policies.ertacache import SkipPolicy
from erta_policies.taylorseer import TaylorSeer
from tiny_pipelines import FAMILIES, Family, counted

METHODS: dict[str, Callable[[], Policy]] = {
    "skip": lambda: SkipPolicy(every=2),
    "taylor": lambda: TaylorSeer(interval=3),
}


class Stop(Exception):
    """Raised by a callback on request."""


@dataclass(frozen=True)
class Ask:
    """One request: what to run, and what happens on the way."""

    seed: int = 0
    steps: int = 6
    wide: bool = False
    fails: int | None = None

    def run(self, family: Family, pipe: Any, **more: Any) -> Tensor | None:
        changes: dict[str, Any] = dict(family.other) if self.wide else {}
        if self.fails is not None:
            changes["callback_on_step_end"] = self.fail
        try:
            return family.run(pipe, steps=self.steps, seed=self.seed, **changes, **more)
        except Stop:
            return None

    def fail(self, pipe: Any, index: int, *_: Any) -> dict[str, Any]:
        if index == self.fails:
            raise Stop
        return {}


@cache
def expected(name: str, method: str, ask: Ask) -> tuple[Tensor | None, int]:
    """The latents of a request alone, and its network calls, counted inside the network."""
    family = FAMILIES[name]
    pipe = family.build()
    with counted(pipe, family) as calls, attach(pipe, [METHODS[method]()]):
        return ask.run(family, pipe), len(calls)


@cache
def plain(name: str, ask: Ask) -> Tensor | None:
    family = FAMILIES[name]
    return ask.run(family, family.build())


@dataclass
class World:
    """An attached pipeline, and what it was asked."""

    name: str
    method: str
    rng: random.Random
    family: Family = field(init=False)
    pipe: Any = field(init=False)
    made: int = 0

    def __post_init__(self) -> None:
        self.family = FAMILIES[self.name]
        self.pipe = self.family.build()

    def draw(self, fails: bool = False) -> Ask:
        steps = self.rng.choice((4, 5, 6))
        return Ask(
            seed=self.rng.randrange(3),
            steps=steps,
            wide=self.rng.random() < 0.3,
            fails=self.rng.randrange(steps) if fails else None,
        )

    # ------------------------------------------------------------ what people do
    def run_one(self) -> None:
        self.check(self.draw())

    def run_and_fail(self) -> None:
        ask = self.draw(fails=True)
        want, calls = expected(self.name, self.method, ask)
        with self.count(calls, ask):
            assert ask.run(self.family, self.pipe) is want is None

    def run_another_pipeline_in_between(self) -> None:
        """A pipeline of its own, from a callback of the attached one: neither touches the other."""
        outer, inner = self.draw(), self.draw()
        other = self.family.build()
        found: list[Tensor | None] = []

        def nested(_: Any, index: int, *__: Any) -> dict[str, Any]:
            if index == 1:
                found.append(inner.run(self.family, other))
            return {}

        want, calls = expected(self.name, self.method, outer)
        with self.count(calls, outer):
            found_outer = outer.run(self.family, self.pipe, callback_on_step_end=nested)
        self.same(found_outer, want, outer)
        self.same(found[0], plain(self.name, inner), inner)

    def run_the_same_pipeline_in_between(self) -> None:
        """Its scheduler can follow only one request: the second is refused, the first goes on."""
        outer, inner = self.draw(), self.draw()
        refused: list[ConflictError] = []

        def nested(_: Any, index: int, *__: Any) -> dict[str, Any]:
            if index == 1:
                with pytest.raises(ConflictError) as error:
                    inner.run(self.family, self.pipe)
                refused.append(error.value)
            return {}

        want, calls = expected(self.name, self.method, outer)
        with self.count(calls, outer):
            found = outer.run(self.family, self.pipe, callback_on_step_end=nested)
        self.same(found, want, outer)
        assert len(refused) == 1

    def run_copies_in_threads(self) -> None:
        """Copies for one request each, with schedulers of their own: each exact."""
        asks = [self.draw() for _ in range(2)]
        with self.count(sum(expected(self.name, self.method, ask)[1] for ask in asks), asks):
            with ThreadPoolExecutor(2) as pool:
                jobs = [pool.submit(ask.run, self.family, self.copy(True)) for ask in asks]
            for ask, job in zip(asks, jobs, strict=True):
                self.same(job.result(), expected(self.name, self.method, ask)[0], ask)

    def run_a_sibling_that_nobody_attached(self) -> None:
        """It shares the network, and is untouched."""
        ask = self.draw()
        self.same(ask.run(self.family, self.copy(False)), plain(self.name, ask), ask)

    def copy(self, driven: bool) -> Any:
        """The same networks with another scheduler: a copy of the attached one, or a new one."""
        twin, scheduler = copy.copy(self.pipe), self.pipe.scheduler
        new = copy.deepcopy if driven else lambda old: type(old).from_config(old.config)
        twin.scheduler = new(scheduler)
        return twin

    def call_by_hand(self) -> None:
        """A network call outside any request is the network's own answer."""
        module = self.pipe.transformer
        seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        fresh = self.family.build()
        handle = fresh.transformer.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
        )
        self.family.run(fresh, steps=1)
        handle.remove()
        args, kwargs = seen[0]
        with torch.no_grad():
            self.same(
                as_output(module(*args, **kwargs)), as_output(fresh.transformer(*args, **kwargs)), 0
            )

    def copy_the_pipeline(self) -> None:
        """A deep copy has nothing attached."""
        ask = self.draw()
        with torch.no_grad():
            twin = copy.deepcopy(self.family.build())
        self.same(ask.run(self.family, twin), plain(self.name, ask), ask)

    # ------------------------------------------------------------ checks
    def check(self, ask: Ask) -> None:
        want, calls = expected(self.name, self.method, ask)
        with self.count(calls, ask):
            self.same(ask.run(self.family, self.pipe), want, ask)

    @contextmanager
    def count(self, calls: int, ask: object) -> Iterator[None]:
        with counted(self.pipe, self.family) as made:
            yield
        assert len(made) == calls, ask
        self.made += calls

    def same(self, found: Tensor | None, want: Tensor | None, what: object) -> None:
        assert found is not None
        assert want is not None
        assert torch.equal(found, want), f"{self.name} with {self.method}: {what}"


def as_output(answer: Any) -> Tensor:
    return torch.as_tensor(answer[0])


DEEDS = (
    World.run_one,
    World.run_and_fail,
    World.run_another_pipeline_in_between,
    World.run_the_same_pipeline_in_between,
    World.run_copies_in_threads,
    World.run_a_sibling_that_nobody_attached,
    World.call_by_hand,
    World.copy_the_pipeline,
)


@contextmanager
def unchanged(pipe: Any) -> Iterator[None]:
    parts = (pipe, pipe.scheduler, pipe.transformer)
    before = [set(vars(part)) for part in parts]
    yield
    added = [set(vars(part)) - known for part, known in zip(parts, before, strict=True)]
    assert not any("forward" in names or "step" in names for names in added)


def check_sequence(name: str, method: str, rng: random.Random, length: int = 6) -> None:
    world = World(name, method, rng)
    with unchanged(world.pipe), attach(world.pipe, [METHODS[method]()]) as run:
        for _ in range(length):
            rng.choice(DEEDS)(world)
        world.run_one()
    assert sum(trace.network_calls for trace in run.traces) == world.made
    ask = world.draw()
    world.same(ask.run(world.family, world.pipe), plain(name, ask), "after leaving")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["wan-euler", "flux"])
def test_random_requests(
    name: str, method: str, rng: random.Random, examples: Callable[[int], int]
) -> None:
    for _ in range(examples(6)):
        check_sequence(name, method, rng)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["wan-euler", "wan-unipc", "flux", "sd3"])
def test_many_random_requests(
    name: str, method: str, rng: random.Random, examples: Callable[[int], int]
) -> None:
    for _ in range(examples(12)):
        check_sequence(name, method, rng)
