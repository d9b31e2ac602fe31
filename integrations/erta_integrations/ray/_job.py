"""A job or a calibration on a crew: the process that asked for it keeps the books.

Each worker of the crew has a thread here, which takes part in the job as a process of Fabric does:
it claims samples, has a worker make them, and writes them. So the workers need not see the folder
of the job, and the files are those of any other launcher.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

from erta_framework.calibration import Profile
from erta_framework.jobs import CalibrationRequest, JobRequest, Summary
from erta_integrations.fabric.jobs import (
    Item,
    SampledItem,
    SampleSource,
    list_shares,
    merge_shares,
    run_job,
)
from erta_integrations.ray._crew import Crew, Stopped

log = logging.getLogger(__name__)


class CrewSource:
    """Makes the samples of a job on whichever worker of a crew is free.

    Args:
        crew: The workers.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    @cached_property
    def known(self) -> tuple[str, ...]:
        """Keys that a request may override."""
        return tuple(self._crew.ask("known"))

    def identity(self) -> dict[str, Any]:
        """The facts that decide what is made."""
        found: dict[str, Any] = self._crew.ask("identity")
        return found

    def check(self, overrides: Mapping[str, Any]) -> None:
        """Raise an `ErtaError` on impossible overrides."""
        self._crew.ask("check", dict(overrides))

    def sample(self, items: Sequence[Item]) -> list[SampledItem]:
        """Sample requests of equal overrides on one worker."""
        found: list[SampledItem] = self._crew.ask("sample", list(items))
        return found


def sample_on_crew(crew: Crew, request: JobRequest) -> Summary:
    """Run a whole job on a crew, which is dismissed at the end.

    Raises:
        InputError: The prompts are wrong, or the folder holds another job, or one and no resume was
            asked for.
        Exception: What the last worker raised, where none could open the model.
    """
    source: SampleSource = CrewSource(crew)
    others: list[Future[Summary]] = []
    # the crew ends first, so that no thread waits for a worker when the pool ends
    with ThreadPoolExecutor(crew.count, thread_name_prefix="erta-job") as threads, crew:

        def begin(ready: bool) -> bool:
            if ready:  # the folder is open: the others may come
                for rank in range(1, crew.count):
                    part = (rank, crew.count)
                    others.append(threads.submit(run_job, request, source, part))
            return ready

        summary = run_job(request, source, (0, crew.count), begin)
    for rank, other in enumerate(others, 1):
        error = other.exception()
        if error is not None and not isinstance(error, Stopped):
            log.warning("part %d of the job ended early: %r", rank, error)
    return summary


def calibrate_on_crew(crew: Crew, request: CalibrationRequest) -> Profile:
    """The profile of all prompts of a request, each worker with its share of them.

    Prompt k has seed + k whichever worker runs it, so the sums are those of one process up to the
    order in which they are added.

    Raises:
        ErtaError: A share cannot be calibrated.
    """
    shares = [share for share in list_shares(len(request.prompts), crew.count) if share]

    def run(share: range) -> Profile:
        prompts = request.prompts[share.start : share.stop]
        found: Profile = crew.ask(
            "calibrate", prompts, request.seed + share.start, request.profiler
        )
        return found

    with ThreadPoolExecutor(crew.count, thread_name_prefix="erta-job") as threads, crew:
        return merge_shares(threads.map(run, shares), request)
