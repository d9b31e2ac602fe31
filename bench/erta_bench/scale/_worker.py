"""The processes of `erta bench scale`: one that times what it is asked for, and one that counts.

`python -m erta_bench.scale._worker timed RANK MODEL STEPS` reads commands as JSON lines and answers
each with one. `python -m erta_bench.scale._worker counted FOLDER MODEL STEPS`, under torchrun,
writes what its rank sent into a file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from erta_bench.setting import repeat_prompts
from erta_framework import CFG, Policy, Sampler
from erta_framework.jobs import FabricConfig, JobConfig, JobRequest
from erta_framework.plugins import models
from erta_framework.plugins import policies as policy_catalogue
from erta_framework.sampling import Callback, TextModel, sample_noise
from erta_framework.session import StepTrace
from erta_integrations.fabric import build_fabric, sample_job
from erta_integrations.fabric.agreement import add_agreement
from erta_integrations.fabric.jobs import Item, SampledItem, SamplerSource, run_job

CPU = torch.device("cpu")
SCALE = 3.0
COLLECTIVES = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast",
    "broadcast_object_list", "reduce", "reduce_scatter_tensor", "all_to_all_single", "scatter",
    "gather", "send", "recv", "barrier",
)  # fmt: skip


# ------------------------------------------------------------------------------------ timed
class SampleMarks:
    """Wall and processor time at which each sample began.

    The time from the first to the last mark is steady sampling. Starting, waiting for other ranks
    and the summary at the end of a job lie outside.
    """

    def __init__(self) -> None:
        self._at: list[tuple[float, float]] = []

    def add(self) -> None:
        """A sample begins."""
        self._at.append((time.perf_counter(), time.process_time()))

    def summarize(self) -> dict[str, float]:
        """Samples between the marks, and the wall and processor seconds that they took."""
        (wall, processor), (end, spent) = self._at[0], self._at[-1]
        return {
            "samples": len(self._at) - 1,
            "seconds": end - wall,
            "processor_seconds": spent - processor,
        }


class MarkedWork(SamplerSource):
    """Samples as a job does, and marks when each sample begins."""

    def __init__(self, sampler: Sampler, model: TextModel, marks: SampleMarks) -> None:
        super().__init__(sampler, model, CPU)
        self._marks = marks

    def sample(self, items: Sequence[Item]) -> list[SampledItem]:
        """The samples of one batch."""
        self._marks.add()
        return super().sample(items)


class TimingServer:
    """Runs one command after another in a process that has imported and warmed up everything."""

    def __init__(self, rank: int, name: str, steps: int) -> None:
        torch.set_num_threads(1)
        self.rank = rank
        self.model: TextModel = models().load(name)()
        self.sampler = Sampler(num_steps=steps, guidance=CFG(scale=SCALE), accelerator="cpu")
        run_plain_loop(
            self.model, self.sampler, repeat_demo_prompts(self.model, 1), 0, SampleMarks()
        )

    def answer(self, order: Mapping[str, Any]) -> dict[str, float]:
        """Start at the moment that the command names, and measure how fast it goes."""
        count, world, marks = order["samples"], order["world"], SampleMarks()
        prompts = repeat_demo_prompts(self.model, count * world)
        while time.monotonic() < order["start"]:
            time.sleep(0.001)
        if order["kind"] == "plain":
            run_plain_loop(self.model, self.sampler, prompts[:count], count * self.rank, marks)
        else:
            work = MarkedWork(self.sampler, self.model, marks)
            request = JobRequest(
                prompts=prompts, output=order["folder"], resume=True, quiet=True, job=JobConfig()
            )
            run_job(request, work, (self.rank, world))
        return marks.summarize()


def repeat_demo_prompts(model: TextModel, count: int) -> list[str]:
    """Prompts of the model, repeated to this count; a fixed one where it has none."""
    offer = getattr(model, "demo_prompts", None)
    pool = offer()[1] if offer is not None else ["a prompt"]
    return repeat_prompts(pool, count)


def run_plain_loop(
    model: TextModel, sampler: Sampler, prompts: Sequence[str], first: int, marks: SampleMarks
) -> None:
    """Guided Euler steps by hand: the network, and nothing of the framework around it."""
    sigmas = sampler.schedule.sigmas
    with torch.no_grad():
        for place, prompt in enumerate(prompts):
            marks.add()
            cond, uncond = model.encode([prompt, ""]).chunk(2)
            x = sample_noise(model.latent_shape, [first + place])
            for start, end in pairwise(sigmas):
                now = torch.full((1,), 1000.0 * start)
                one, other = model(x, now, cond), model(x, now, uncond)
                x = x + (end - start) * (other + SCALE * (one - other))


def serve_timings(rank: int, name: str, steps: int) -> None:
    """Answer commands until there are no more."""
    timed = TimingServer(rank, name, steps)
    print(json.dumps({"ready": rank}), flush=True)
    for line in sys.stdin:
        print(json.dumps(timed.answer(json.loads(line))), flush=True)


# ---------------------------------------------------------------------------------- counted
class TrafficCounter(Callback):
    """Counts the collectives that this process takes part in, and the bytes that it gives.

    A request begins with a step that computes without asking, so what is sent until its end belongs
    to the start; every later step may ask.
    """

    def __init__(self) -> None:
        self._calls = self._bytes = 0
        self._start: tuple[int, int] | None = None
        for name in COLLECTIVES:
            setattr(dist, name, self._counting(getattr(dist, name)))

    def _counting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = [
                value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)
            ]
            self._calls += 1
            self._bytes += given[-1].nbytes if given else 0  # a result, where given, stands first
            return original(*args, **kwargs)

        return call

    def on_step(self, step: StepTrace) -> None:
        """The first step ends the start."""
        if self._start is None:
            self._start = self._calls, self._bytes

    def during(self, function: Callable[[], object]) -> dict[str, int]:
        """What is sent while a function samples."""
        calls, given, self._start = self._calls, self._bytes, None
        function()
        ended = self._calls, self._bytes
        middle = self._start or ended  # a rank may find nothing left to sample
        return {
            "collectives": ended[0] - middle[0],
            "bytes": ended[1] - middle[1],
            "collectives_at_the_start": middle[0] - calls,
            "bytes_at_the_start": middle[1] - given,
        }


def count_traffic(folder: Path, name: str, steps: int) -> None:
    """Count what two ranks send in a job, and sharing a sample under two kinds of policies."""
    torch.set_num_threads(1)
    sent = TrafficCounter()
    fabric = build_fabric(FabricConfig(accelerator="cpu", strategy="ddp"))
    fabric.launch()
    model: TextModel = models().load(name)()
    settings: dict[str, Any] = {"num_steps": steps, "accelerator": "cpu"}
    sampler = Sampler([], [sent], guidance=CFG(scale=SCALE), **settings)
    request = JobRequest(prompts=repeat_demo_prompts(model, 2), output=folder / "job", quiet=True)
    found: dict[str, Any] = {
        "data parallel": sent.during(lambda: sample_job(fabric, sampler, model, request))
    }
    group = dist.group.WORLD
    known = policy_catalogue()
    policies: dict[str, Policy] = {
        "static schedule": known.load("skip_policy")(every=2),
        "agreed": known.load("easycache")(threshold=0.05, warmup=1),
    }
    for kind, policy in policies.items():
        shared = Sampler(add_agreement([policy], group), [sent], **settings)
        found[kind] = sent.during(partial(shared.sample, model, repeat_demo_prompts(model, 1)))
    (folder / f"{fabric.global_rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    what, argument, network, number = sys.argv[1:]
    if what == "timed":
        serve_timings(int(argument), network, int(number))
    else:
        count_traffic(Path(argument), network, int(number))
