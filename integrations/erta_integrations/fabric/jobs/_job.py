"""A whole job, as one process takes part in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from erta_framework.errors import ErtaError, InputError
from erta_framework.files import require_writable_folder
from erta_framework.jobs import JobRequest, Summary
from erta_integrations.fabric.jobs._manifest import Tally, write_manifest
from erta_integrations.fabric.jobs._progress import ProgressWatch, mean_effort, show_progress
from erta_integrations.fabric.jobs._prompts import Item, hash_items, load_items
from erta_integrations.fabric.jobs._resume import tidy_folder
from erta_integrations.fabric.jobs._runner import JobRunner
from erta_integrations.fabric.jobs._sample_source import SampleSource
from erta_integrations.fabric.jobs._store import count_committed, open_folder

FOLDERS = ("samples", "claims", "workers", "manifest", "pictures")
"""Folders in that of a job."""


def run_job(
    request: JobRequest,
    source: SampleSource,
    position: tuple[int, int] = (0, 1),
    agree: Callable[[bool], bool] = lambda ready: ready,
) -> Summary:
    """Take part in a job until nothing is left to do; rank 0 stays until all is settled.

    Args:
        request: Prompts, folder and settings.
        source: Makes the samples, on this process's device.
        position: Rank and number of ranks of this launch.
        agree: Called once by every rank before any of them samples. It is given whether this rank
            is ready and returns whether all are.

    Raises:
        InputError: The prompts are wrong, or the folder holds another job, or one and no resume was
            asked for. Every rank raises.
    """
    clock = time.monotonic()
    folder, leader = Path(request.output), position[0] == 0
    tally = Tally(folder)
    items = open_job(request, source, tally if leader else None, agree)
    runner = JobRunner(folder, items, source, position, request.job, request.picture)
    done, failed = 0, runner.failed
    calls: float | None = None
    speedup: float | None = None
    if leader:
        watch = ProgressWatch(tally, len(items), count_committed(runner.store, len(items)))
        with nullcontext() if request.quiet else show_progress(watch, json_lines=request.log_json):
            runner.run(stay=True)
        write_manifest(folder, items, runner.store, tally)
        done = count_committed(runner.store, len(items))
        every = {**runner.failed, **tally.failed}
        failed = {k: error for k, error in every.items() if not runner.store.has(k)}
        calls, speedup = mean_effort(tally)
    else:
        runner.run(stay=False)
        done = len(runner.made)
    return Summary(
        total=len(items),
        done=done,
        failed=tuple(sorted(failed.items())),
        network_calls=calls,
        speedup=speedup,
        seconds=time.monotonic() - clock,
        leader=leader,
    )


def open_job(
    request: JobRequest, source: SampleSource, tally: Tally | None, agree: Callable[[bool], bool]
) -> tuple[Item, ...]:
    """Read the prompts and open the folder; the samples of the job, if every rank is ready.

    Rank 0 alone, which has a tally, checks the overrides, opens the folder and tidies it up.
    Whatever goes wrong is raised only after `agree`, which every rank must reach: one that left
    before it would let the others wait.

    Raises:
        InputError: As `run_job` says; on the other ranks, that one of them cannot begin.
    """
    problem: ErtaError | OSError | None = None
    items: tuple[Item, ...] = ()
    try:
        check = None if tally is None else source.check
        items = load_items(request.prompts, request.seed, source.known, check)
        if tally is not None:
            identity = {
                **source.identity(),
                "batch_size": request.job.batch_size,
                "prompts": {"samples": len(items), "digest": hash_items(items)},
            }
            folder = Path(request.output)
            for place in (folder, *(folder / name for name in FOLDERS)):
                require_writable_folder(place, "folder of the job")
            if open_folder(folder, identity, request.resume):
                tally.read()
                tidy_folder(folder, len(items), request.job.lease, tally)
    except (ErtaError, OSError) as error:
        problem = error
    ready = agree(problem is None)
    if problem is not None:
        raise problem
    if not ready:
        raise InputError("another rank cannot begin; its message says why")
    return items
