"""`attach`: run an unmodified diffusers pipeline under policies, within a `with` block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import nn

from erta_framework import Engine, Profile, Seam, Trace
from erta_framework.budgets import promise
from erta_framework.config import PolicyLike, build_engine
from erta_framework.errors import CapabilityError, ConflictError, InputError
from erta_integrations.diffusers.network import (
    check_trials,
    find_networks,
    find_undriven_networks,
    is_patched,
)
from erta_integrations.diffusers.pipeline import Driver, capabilities
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
    ) -> None:
        self.engine = engine
        others = find_undriven_networks(pipe, networks)
        self._driver = Driver(engine, pipe, networks, seam, others)
        parts = self._driver.parts
        check_signals(engine.policies, networks, parts.signals)
        if seam is Seam.LATENT:
            check_trials(engine.policies, networks)
        scheduler = parts.scheduler
        offered = capabilities(scheduler) | parts.offered
        engine.check(offered, type(scheduler).__name__, seam)

    def __enter__(self) -> Self:
        driver, parts = self._driver, self._driver.parts
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
            driver.patches.undo()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    def detach(self) -> None:
        """Restore the same attribute objects and drop all state; safe to call twice."""
        try:
            self._driver.life.abort("detached before the last step")
        finally:
            self._driver.patches.undo()

    @property
    def traces(self) -> list[Trace]:
        """One trace per finished or aborted request, oldest first."""
        return self._driver.life.traces

    @property
    def newest(self) -> Trace | None:
        """The trace of the running request, else of the last one; None before the first.

        A pipeline's `callback_on_step_end` may read the step that just ended, `steps[-1]`.
        """
        return self._driver.life.newest

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of the next request, for profilers that need them.

        A pipeline does not keep its prompts, so set them before each call:
        `run.prompts = ["a cat"]; pipe("a cat")`.
        """
        return self._driver.life.prompts

    @prompts.setter
    def prompts(self, texts: Sequence[str]) -> None:
        self._driver.life.prompts = tuple(texts)

    @property
    def emitted(self) -> list[Profile]:
        """Profiles that profilers emitted, one per request."""
        return self._driver.life.emitted

    def profile(self) -> Profile:
        """Merge the emitted profiles of all requests so far.

        Raises:
            ProfileError: Nothing was emitted.
        """
        return Profile.merge(self.emitted)

    def summary(self) -> str:
        """Real and reused calls of every request, with reasons; per sample if samples differ.

        Before the first request: what each will cost, if a profile says so.
        """
        if not self.traces:
            return "; ".join(filter(None, ("no request yet", promise(self.engine.policies))))
        return "\n".join(trace.summary() for trace in self.traces)

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
        options: Options of the policy, when `policies` is a name: `profile=...`, `calls=...`.

    Raises:
        CapabilityError: The scheduler cannot be driven or lacks what a policy requires; the
            pipeline has no network; a network was compiled in place, has no trunk, or lacks a
            signal that a policy requires.
        InputError: `seam` is no seam of a pipeline.
        ConflictError: On entering, if a network or the scheduler is attached already.

    Example:
        >>> with attach(pipe, "skip_policy", every=2) as run:  # doctest: +SKIP
        ...     pipe("a cat")
        >>> print(run.summary())  # doctest: +SKIP
    """
    engine = build_engine(policies, options)
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise CapabilityError(
            f"{type(pipe).__name__} has no scheduler; a diffusers pipeline is needed"
        )
    if seam not in (Seam.LATENT, Seam.TRUNK):
        raise InputError(f"seam is {seam!r}, it must be 'latent' or 'trunk'")
    capabilities(scheduler)  # refuses a scheduler that cannot be driven, first of all
    return Attachment(pipe, engine, find_networks(pipe, networks), Seam(seam))
