"""Pipelines of a few lines, and threads that take turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tiny_pipelines import drawn, flow

TIMEOUT = 30


class Net(nn.Module):
    """A network without state; it counts its real calls."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain, self.made = gain, 0

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        self.made += 1
        return self.gain * hidden_states.sin() * (0.5 + timestep / 1000)


class Toy:
    """A pipeline of one network and one scheduler."""

    def __init__(self, transformer: nn.Module, scheduler: Any = None) -> None:
        self.transformer = transformer
        self.scheduler = flow() if scheduler is None else scheduler

    @property
    def components(self) -> dict[str, Any]:
        return {"transformer": self.transformer, "scheduler": self.scheduler}

    @torch.no_grad()
    def __call__(
        self,
        seed: int = 0,
        steps: int = 6,
        callback_on_step_end: Callable[..., Any] | None = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """The latents of one request."""
        self._guidance_scale = guidance_scale
        self.scheduler.set_timesteps(steps)
        x = drawn(1, 3, 2, seed=seed)
        for index, time in enumerate(self.scheduler.timesteps):
            x = self.scheduler.step(self.transformer(x, time), time, x, return_dict=False)[0]
            if callback_on_step_end is not None:
                callback_on_step_end(self, index, time, {})
        return x


class Streaming(Toy):
    """Its call is a generator, which gives the latents after every step."""

    @torch.no_grad()
    def __call__(self, seed: int = 0, steps: int = 6) -> Iterator[Tensor]:  # type: ignore[override]
        self.scheduler.set_timesteps(steps)
        x = drawn(1, 3, 2, seed=seed)
        for time in self.scheduler.timesteps:
            x = self.scheduler.step(self.transformer(x, time), time, x, return_dict=False)[0]
            yield x


def loop_by_hand(network: nn.Module, scheduler: Any, seed: int, steps: int = 6) -> Iterator[Tensor]:
    """A loop around a network and a scheduler, without a pipeline; latents after every step."""
    scheduler.set_timesteps(steps)
    x = drawn(1, 3, 2, seed=seed)
    for time in scheduler.timesteps:
        with torch.no_grad():
            output = network(x, time)
        x = scheduler.step(output, time, x, return_dict=False)[0]
        yield x


def last(steps: Iterator[Tensor]) -> Tensor:
    """The latents after the last step."""
    *_, found = steps
    return found


def interleave(*loops: Iterator[Tensor]) -> list[Tensor]:
    """The last latents of loops that take turns, step by step."""
    return list(list(zip(*loops, strict=True))[-1])


def in_turns(network: nn.Module, *jobs: Callable[[], Tensor]) -> list[Any]:
    """Run jobs in threads, whose network calls take turns: A B, then B A, then A B.

    Returns:
        What each returned or raised.
    """
    turn, done = threading.Condition(), [0]
    calls: dict[int, int] = {}
    places: dict[int, int] = {}
    found: list[Any] = [None] * len(jobs)

    def wait(*_: Any) -> None:
        thread = threading.get_ident()
        count = calls[thread]
        order = places[thread] if count % 2 == 0 else len(jobs) - 1 - places[thread]
        with turn:
            assert turn.wait_for(lambda: done[0] >= len(jobs) * count + order, TIMEOUT)

    def go_on(*_: Any) -> None:
        calls[threading.get_ident()] += 1
        with turn:
            done[0] += 1
            turn.notify_all()

    def work(place: int) -> None:
        thread = threading.get_ident()
        places[thread], calls[thread] = place, 0
        found[place] = caught_from(jobs[place])

    hooks = [network.register_forward_pre_hook(wait), network.register_forward_hook(go_on)]
    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for hook in hooks:
        hook.remove()
    return found


def caught_from(job: Callable[[], Any]) -> Any:
    """What a job returns or raises."""
    try:
        return job()
    except Exception as error:
        return error


class Worker(threading.Thread):
    """Runs a job in a thread that nobody waits for before `result` is read."""

    def __init__(self, job: Callable[[], Any]) -> None:
        super().__init__()
        self._job, self._found = job, None
        self.start()

    def run(self) -> None:
        self._found = caught_from(self._job)

    @property
    def result(self) -> Any:
        """What the job returned or raised."""
        self.join(TIMEOUT)
        return self._found
