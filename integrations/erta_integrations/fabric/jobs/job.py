"""A whole job as one process takes part in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from erta_framework.errors import ErtaError, InputError
from erta_framework.jobs import JobRequest, Summary
from erta_integrations.fabric.jobs.division import SHARD
from erta_integrations.fabric.jobs.manifest import Tally, finish
from erta_integrations.fabric.jobs.progress import Reporter, Watch, effort
from erta_integrations.fabric.jobs.prompts import Item, digest, load_items
from erta_integrations.fabric.jobs.runner import Runner
from erta_integrations.fabric.jobs.store import Store, open_folder
from erta_integrations.fabric.jobs.work import Work


def run_job(
    request: JobRequest,
    work: Work,
    position: tuple[int, int] = (0, 1),
    agree: Callable[[bool], bool] = lambda fine: fine,
) -> Summary:
    """Take part in a job until nothing is left to do; rank 0 stays until all is settled.

    Args:
        request: Prompts, folder and settings.
        work: Samples on this process's device.
        position: Rank and number of ranks of this launch.
        agree: Called once by every rank before any of them samples, with whether it is ready;
            says whether all are.

    Raises:
        InputError: The prompts are wrong, the folder holds another job, or one and no resume was
            asked for. Every rank raises, since rank 0 checks for all.
    """
    clock = time.monotonic()
    folder = Path(request.output)
    leader = position[0] == 0
    problem: ErtaError | OSError | None = None
    items: tuple[Item, ...] = ()
    try:
        # rank 0 checks the overrides for all ranks; the folder is its to open as well
        check = work.check if leader else None
        items = load_items(request.prompts, request.seed, work.known, check)
        if leader:
            identity = {
                **work.identity(),
                "batch_size": request.job.batch_size,
                "prompts": {"samples": len(items), "digest": digest(items)},
            }
            open_folder(folder, identity, request.resume)
    except (ErtaError, OSError) as error:
        problem = error
    fine = agree(problem is None)
    if problem is not None:
        raise problem
    if not fine:
        raise InputError("another rank cannot begin; its message says why")
    runner = Runner(folder, items, work, position, request.job, request.picture)
    if not leader:
        runner.run(stay=False)
        return Summary(
            total=len(items),
            done=len(runner.made),
            failed=tuple(sorted(runner.failed.items())),
            network_calls=None,
            speedup=None,
            seconds=time.monotonic() - clock,
            leader=False,
        )
    tally = Tally(folder)
    with shown(request, tally, len(items), runner.store):
        runner.run(stay=True)
    finish(folder, items, runner.store, tally)
    failed = {**runner.failed, **tally.failed}
    calls, speedup = effort(tally)
    return Summary(
        total=len(items),
        done=committed(runner.store, len(items)),
        failed=tuple(sorted((k, e) for k, e in failed.items() if not runner.store.has(k))),
        network_calls=calls,
        speedup=speedup,
        seconds=time.monotonic() - clock,
        leader=True,
    )


def shown(
    request: JobRequest, tally: Tally, total: int, store: Store
) -> AbstractContextManager[object]:
    """What shows the progress of a job."""
    if request.quiet:
        return nullcontext()
    watch = Watch(tally, total, committed(store, total))
    return Reporter(watch, json_lines=request.log_json)


def committed(store: Store, total: int) -> int:
    """How many samples of a job are done."""
    return sum(len(store.committed(shard)) for shard in range((total + SHARD - 1) // SHARD))
