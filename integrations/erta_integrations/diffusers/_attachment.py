"""`Attachment`: a pipeline with policies attached, and what is known of its requests.

Over 250 lines because all that a user may ask of an attachment is documented here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import nn

from erta_framework import Engine, Profile, Seam, Trace
from erta_framework.attach import KEEP_TRACES
from erta_framework.budgets import Tier, promise
from erta_framework.errors import ConflictError, ErtaError, InputError, UnusedWarning
from erta_framework.plugins import Choice, describe_policy
from erta_framework.session import render_strip
from erta_integrations.diffusers.network import (
    check_guidance,
    check_trials,
    find_undriven_networks,
    is_patched,
)
from erta_integrations.diffusers.pipeline import (
    Driver,
    Rechoose,
    capabilities,
    explain_noise,
    find_level_capabilities,
)
from erta_integrations.diffusers.trunk import check_signals

SHOWN = 5
"""Requests that a notebook shows, of the newest."""


class Attachment:
    """A pipeline with policies attached; made by `attach`, used as a context manager.

    Attributes:
        engine: The policies that decide.
        seam: What a reused step leaves out.
        choice: Why they were chosen; None where the user named them.
    """

    def __init__(
        self,
        pipe: Any,
        engine: Engine,
        networks: dict[str, nn.Module],
        seam: Seam = Seam.LATENT,
        keep_traces: int | None = KEEP_TRACES,
        memory: str | int | None = None,
        choice: Choice | None = None,
        rechoose: Rechoose | None = None,
        num_steps: int | None = None,
    ) -> None:
        self.engine, self.seam, self.choice, self._num_steps = engine, seam, choice, num_steps
        self._left = False
        self._entered = True  # until it is complete, an error speaks for itself
        others = find_undriven_networks(pipe, networks)
        self._driver = Driver(engine, pipe, networks, seam, others, keep_traces, memory, rechoose)
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
                    "that `with` block, or call detach() or erta.disable(pipe) first"
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
        driver.holder = self  # `erta.disable(pipe)` finds it as long as the pipeline lives
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
        # also after an error in `__init__`
        if not getattr(self, "_entered", True):
            warnings.warn(self._usage.explain_unentered(), UnusedWarning, stacklevel=2)

    def detach(self) -> None:
        """Restore the same attribute objects and drop all state; safe to call twice."""
        self._left = self._entered = True
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
            lines = ["; ".join(filter(None, ("no request yet", self._promise())))]
        if usage.outside:
            lines.append(usage.describe_outside())
        return "\n".join([*lines, *(usage.find_faults() if self._left else ())])

    def explain(self) -> str:
        """What is on: the policies, what every request will cost, and why they were chosen."""
        names = ", ".join(map(describe_policy, self.engine.listed)) or "no policies"
        lines = [f"{self._pipeline}: {names}"]
        if self.choice is not None:
            lines.append(f"  why: {self.choice.why}")
        lines.append(f"  cost: {self._promise() or 'decided while sampling; see run.summary()'}")
        if self.seam is not Seam.LATENT:
            lines.append(f"  seam: {self.seam.value}; the rest of the network runs at every step")
        return "\n".join(lines)

    @property
    def _pipeline(self) -> str:
        return type(self._driver.parts.pipe).__name__

    def _promise(self) -> str:
        """What a request costs, as far as it is known; empty if it is not."""
        said = promise(self.engine.listed)  # of the steps of a profile
        if said or self._num_steps is None:
            return said
        try:
            said = promise(self.engine.listed, self._num_steps)
            return f"{said}, at the default of {self._num_steps} steps" if said else ""
        except ErtaError:  # not for the pipeline's default number of steps, which nobody asked for
            return ""

    def __repr__(self) -> str:
        state = "left" if self._left else "on" if self._entered else "never entered"
        log = self._driver.life.log
        return (
            f"Attachment({self._pipeline}, {', '.join(p.name for p in self.engine.listed)}, "
            f"{state}, {log.closed} requests)"
        )

    def _repr_html_(self) -> str:
        strips = "".join(map(render_strip, self.traces[-SHOWN:]))
        return f"<div>{escape(repr(self))}</div>{strips}"

    def report(self, path: str | Path, title: str = "") -> Path:
        """Write one HTML page: what is on and why, and every request step by step.

        Args:
            path: The page; it needs no other file.
            title: Heading; by default that of the pipeline.

        Raises:
            InputError: There was no request yet.
            MissingExtraError: Jinja2 is not installed.
        """
        from erta_framework.report import write_run_page

        return write_run_page(
            self.traces,
            path,
            title=title or f"{self._pipeline}: what was computed, and what was reused",
            facts=self.explain(),
            said=self.summary(),
        )

    def using(self, *, measured: bool = True, **budget: Any) -> AbstractContextManager[Tier]:
        """Give the requests of a `with` block a budget of their own, such as a tier of a server.

        The block belongs to its thread, or to its task where a server runs coroutines: requests
        elsewhere keep theirs.

        Args:
            measured: Whether the plan must lie among those that were measured for its profile.
            budget: One of `calls`, `speedup`, `psnr`, `seconds`, `work` and `quality`.

        Raises:
            InputError: No budget is given, or policies own places inside the networks.
            PolicyError: No policy takes the budget.
            ProfileError: The plan is out of reach, or was not measured.

        Example:
            >>> with run.using(speedup=3):  # doctest: +SKIP
            ...     pipe("a cat")
        """
        return self._driver.engines.using(budget, measured)

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
