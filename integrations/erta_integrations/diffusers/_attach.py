"""`attach`: run an unmodified diffusers pipeline under policies, within a `with` block."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import nn

from erta_framework import Engine, Profile, Seam, Trace
from erta_framework.attach import KEEP_TRACES
from erta_framework.budgets import promise
from erta_framework.config import PolicyLike, build_engine
from erta_framework.errors import CapabilityError, ConflictError, InputError, UnusedWarning
from erta_integrations.diffusers.network import (
    check_guidance,
    check_trials,
    find_networks,
    find_undriven_networks,
    is_patched,
)
from erta_integrations.diffusers.pipeline import (
    Driver,
    capabilities,
    explain_noise,
    find_level_capabilities,
)
from erta_integrations.diffusers.trunk import check_signals


class Attachment:
    """A pipeline with policies attached; made by `attach`, used as a context manager.

    Attributes:
        engine: The policies that decide.
    """

    def __init__(
        self,
        pipe: Any,
        engine: Engine,
        networks: dict[str, nn.Module],
        seam: Seam = Seam.LATENT,
        keep_traces: int | None = KEEP_TRACES,
        memory: str | int | None = None,
    ) -> None:
        self.engine = engine
        self._left = False
        self._entered = True  # until it is complete, an error speaks for itself
        others = find_undriven_networks(pipe, networks)
        self._driver = Driver(engine, pipe, networks, seam, others, keep_traces, memory)
        self._usage = self._driver.life.usage
        parts = self._driver.parts
        check_signals(engine.policies, networks, parts.signals)
        check_guidance(engine.policies, networks)
        if seam is Seam.LATENT:
            check_trials(engine.policies, networks)
        scheduler = parts.scheduler
        offered = capabilities(scheduler) | find_level_capabilities(scheduler) | parts.offered
        engine.check(offered, explain_noise(scheduler) or type(scheduler).__name__, seam)
        self._entered = False

    def __enter__(self) -> Self:
        driver, parts = self._driver, self._driver.parts
        self._entered, self._left = True, False
        for name, network in parts.all_networks.items():
            if is_patched(network, "forward"):
                raise ConflictError(
                    f"{name} ({type(network).__name__}) has an engine attached already; leave "
                    "that `with` block or call detach() first"
                )
        if is_patched(parts.scheduler, "step"):
            raise ConflictError(
                f"the scheduler ({type(parts.scheduler).__name__}) is driven by another "
                "attachment; give this pipeline its own with "
                "scheduler.from_config(scheduler.config)"
            )
        try:
            driver.install()
        except BaseException:
            driver.undo()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()
        if error is None:
            for fault in self._usage.find_faults():
                warnings.warn(fault, UnusedWarning, stacklevel=2)

    def __del__(self) -> None:
        # also after an error in `__init__`; who only asks whether it can be attached is not warned
        if not getattr(self, "_entered", True) and self._usage.has_run_unseen:
            warnings.warn(self._usage.explain_unentered(), UnusedWarning, stacklevel=2)

    def detach(self) -> None:
        """Restore the same attribute objects and drop all state; safe to call twice."""
        self._left = True
        self._driver.undo()

    @property
    def traces(self) -> list[Trace]:
        """One trace per finished or aborted request, oldest first; the newest `keep_traces`."""
        return self._driver.life.log.traces

    @property
    def newest(self) -> Trace | None:
        """The trace of the running request, else of the last one; None before the first.

        A pipeline's `callback_on_step_end` may read the step that just ended, `steps[-1]`.
        """
        return self._driver.life.newest

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of the next request of this thread, for profilers that need them.

        A pipeline does not keep its prompts, so set them before each call:
        `run.prompts = ["a cat"]; pipe("a cat")`.
        """
        return self._driver.life.prompts

    @prompts.setter
    def prompts(self, texts: Sequence[str]) -> None:
        self._driver.life.prompts = tuple(texts)

    @property
    def emitted(self) -> list[Profile]:
        """Profiles that profilers emitted, one per request; of many requests, the oldest merged."""
        return self._driver.life.log.emitted

    def profile(self) -> Profile:
        """Merge the emitted profiles of all requests so far.

        A request that stopped before its last step, such as an interrupted one, emits none.

        Raises:
            ProfileError: Nothing was emitted; names the requests that stopped early.
        """
        return self._driver.life.log.profile()

    def summary(self) -> str:
        """Real and reused calls of every request, with reasons; per sample if samples differ.

        It says as well which requests stopped early, which reused outputs were not finite, and how
        many traces were dropped. Before the first request: what each will cost, if a profile says
        so. At the end: network calls that belonged to no request, and after the `with` block what
        was never used.
        """
        if not self._entered:
            return self._usage.explain_unentered()
        usage, lines = self._usage, [self._driver.life.log.summary()]
        if not self.traces:
            lines = ["; ".join(filter(None, ("no request yet", promise(self.engine.policies))))]
        if usage.outside:
            lines.append(usage.describe_outside())
        return "\n".join([*lines, *(usage.find_faults() if self._left else ())])

    def plot(self, path: str | Path, request: int = -1) -> Path:
        """Draw which steps of a request were computed or reused; per sample if samples differ.

        Args:
            path: Picture to write; its suffix gives the format.
            request: Index in `traces`; the newest by default.

        Raises:
            InputError: There is no such request.
            MissingExtraError: matplotlib is not installed.
        """
        from erta_framework.report import SchedulePlot, write_schedule_plot

        if not -len(self.traces) <= request < len(self.traces):
            raise InputError(f"there is no request {request} to plot, {len(self.traces)} were made")
        trace = self.traces[request]
        title = f"{trace.request_id}: {trace.network_calls} network calls"
        computed = [step.computed for step in trace.steps]
        samples = [
            [step.computed_for(sample) for step in trace.steps]
            for sample in range(trace.batch if trace.samples_differed else 0)
        ]
        return write_schedule_plot(SchedulePlot(title, computed, samples=samples), path)


def attach(
    pipe: Any,
    policies: PolicyLike,
    *,
    networks: Sequence[str] | None = None,
    seam: str = Seam.LATENT,
    keep_traces: int | None = KEEP_TRACES,
    memory: str | int | None = None,
    **options: Any,
) -> Attachment:
    """Attach policies to an unmodified diffusers pipeline.

    Only methods of this pipeline's own scheduler and networks are replaced, and only within the
    `with` block.

    Args:
        pipe: A pipeline with a `scheduler` and a denoising network.
        policies: A policy's name, a policy, a list of either (or of `{name: options}`), a path to
            a configuration file, or an `Engine`.
        networks: Names of the components to drive; by default every module of the pipeline whose
            `forward` takes latents and a timestep. With names, any other network that the pipeline
            steps with, such as Wan 2.2's second one, always runs; the trace says so.
        seam: What a reused step leaves out: `"latent"` the whole network, `"trunk"` only its block
            stack, so that embedders, final norm and head run at the current timestep.
        keep_traces: Traces to keep, of the newest requests, so that a server does not fill its
            memory; None keeps all.
        memory: The most that places inside the networks may keep in a request, such as `"2GiB"`.
            The first network call says how much it will be, before anything is reused.
        options: Options of the policy, when `policies` is a name: `profile=...`, `calls=...`.

    Raises:
        CapabilityError: The scheduler cannot be driven or lacks what a policy requires; the
            pipeline has no network; a network was compiled in place, has no trunk, or lacks a
            signal that a policy requires, or a place that one selects.
        InputError: `seam` is no seam of a pipeline, `keep_traces` is below 1, or `memory` is no
            size.
        ConflictError: Two policies own the same place inside a network; or on entering, if a
            network or the scheduler is attached already. While it runs, if a second request begins
            on the scheduler of one that has not ended.

    Warns:
        UnusedWarning: On leaving the block, if a network ran but never in a request, or if nothing
            could ever be reused. When the attachment is dropped, if the pipeline ran and it was
            never entered.

    Example:
        >>> with attach(pipe, "skip_policy", every=2) as run:  # doctest: +SKIP
        ...     pipe("a cat")
        >>> print(run.summary())  # doctest: +SKIP
    """
    engine, bound = build_engine(policies, options)
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise CapabilityError(
            f"{type(pipe).__name__} has no scheduler; a diffusers pipeline is needed"
        )
    if seam not in (Seam.LATENT, Seam.TRUNK):
        raise InputError(f"seam is {seam!r}, it must be 'latent' or 'trunk'")
    capabilities(scheduler)  # refuses a scheduler that cannot be driven, first of all
    return Attachment(
        pipe,
        engine,
        find_networks(pipe, networks),
        Seam(seam),
        keep_traces,
        bound if memory is None else memory,
    )
