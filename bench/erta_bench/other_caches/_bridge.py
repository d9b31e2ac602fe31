"""`bridge`: a cache of another project on a pipeline, traced as our own policies are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

from torch import nn

from erta_bench.other_caches._layer_work import (
    LayerWork,
    remember_parts,
    replace_forward,
    watch_layers,
)
from erta_bench.other_caches._rivals import RIVALS, Rival, Target
from erta_framework import Profile, Trace
from erta_framework.errors import CapabilityError, InputError, suggest
from erta_framework.session import CallTrace, StepTrace
from erta_integrations.diffusers import Attachment, attach
from erta_integrations.diffusers.network import find_networks
from erta_integrations.diffusers.trunk import discover

RAN, SKIPPED = "blocks ran", "blocks skipped"


@dataclass(slots=True)
class RequestCalls:
    """What the network calls of one request really ran.

    Attributes:
        ran: Whether the block stack ran, for every call of a step, by the step's place.
        samples: Samples that went through the block stack.
        forwards: Real network calls.
    """

    ran: dict[int, list[bool]] = field(default_factory=dict)
    samples: int = 0
    forwards: int = 0


class Bridge:
    """A pipeline with another project's cache switched on; made by `bridge`.

    Such a cache skips blocks, or parts of them, inside a network that the pipeline calls at every
    step. The traces therefore count runs of the block stack: a call is `computed` if the last
    block really ran, and `Trace.network_calls` counts such calls, as it does for our policies.
    `forwards` counts the calls of the network itself. `Trace.history_bytes` is 0: not known here.

    Attributes:
        work: Runs of the layers of the network, and the elements that they computed, since the
            bridge was entered; the measure for caches that skip parts of blocks.
    """

    def __init__(
        self, name: str, rival: Rival, target: Target, settings: Mapping[str, Any]
    ) -> None:
        self.name, self.settings = name, dict(settings)
        self.work = LayerWork()
        self._rival, self._target = rival, target
        self._undo = ExitStack()
        self._run: Attachment | None = None
        self._calls: dict[int, RequestCalls] = {}

    def __enter__(self) -> Self:
        networks = self._target.networks
        with ExitStack() as undo:
            # a pipeline that is driven already is refused here, before anything is changed
            attach(self._target.pipe, []).__enter__().detach()
            self.work = watch_layers(networks)
            undo.callback(self.work.stop)
            counters = {id(network): self._last_block(network, undo) for network in networks}
            undo.callback(remember_parts(networks))
            undo.callback(self._rival.disable, self._target)
            self._rival.enable(self._target, self.settings)
            for network in networks:
                undo.callback(replace_forward(network, self._noted(network, counters[id(network)])))
            self._run = undo.enter_context(attach(self._target.pipe, []))
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    def detach(self) -> None:
        """Switch the cache off and put everything back; safe to call twice."""
        self._undo.close()

    @property
    def traces(self) -> list[Trace]:
        """One trace a finished (or aborted) request, oldest first."""
        return [self._seen(trace) for trace in self._run.traces] if self._run else []

    @property
    def newest(self) -> Trace | None:
        """The trace of the request that runs, else of the last one; None before the first."""
        newest = self._run.newest if self._run else None
        return None if newest is None else self._seen(newest)

    @property
    def forwards(self) -> list[int]:
        """Real network calls of every request, whatever they ran."""
        found = self._run.traces if self._run else []
        return [self._calls.get(id(trace), RequestCalls()).forwards for trace in found]

    @property
    def emitted(self) -> list[Profile]:
        """No cache of another project emits profiles."""
        return []

    def summary(self) -> str:
        """Runs of the block stack against network calls of every request."""
        if not self.traces:
            return "no request yet"
        return "\n".join(
            f"request {trace.request_id!r}, {self.name}: {forwards} network calls, the blocks ran "
            f"in {trace.network_calls} of them, {len(trace.computed_steps)} of {len(trace.steps)} "
            "steps computed"
            for trace, forwards in zip(self.traces, self.forwards, strict=True)
        )

    def _last_block(self, network: nn.Module, undo: ExitStack) -> Callable[[], int]:
        """How often the last block of a stack has run; of a network without one, any layer."""
        try:
            stacks = discover(network)
        except CapabilityError:
            return lambda: self.work.calls
        runs = [0]

        def counted(own: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(own)
            def forward(*args: Any, **kwargs: Any) -> Any:
                runs[0] += 1
                return own(*args, **kwargs)

            return forward

        for blocks in stacks.values():
            last = blocks[-1].module
            undo.callback(replace_forward(last, counted(last.forward)))
        return lambda: runs[0]

    def _noted(self, network: nn.Module, counter: Callable[[], int]) -> Callable[..., Any]:
        own = network.forward

        @functools.wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            trace = self._run.newest if self._run else None
            before = counter()
            try:
                return own(*args, **kwargs)
            finally:
                if trace is not None:
                    calls = self._calls.setdefault(id(trace), RequestCalls())
                    ran = counter() > before
                    calls.ran.setdefault(len(trace.steps), []).append(ran)
                    calls.forwards += 1
                    latents = kwargs.get("hidden_states", args[0] if args else ())
                    calls.samples += len(latents) * ran

        return forward

    def _seen(self, trace: Trace) -> Trace:
        """The trace of the network calls as one of block stack runs."""
        calls = self._calls.get(id(trace), RequestCalls())
        newest: dict[tuple[str, str], int] = {}
        return replace(
            trace,
            steps=[
                self._step(step, calls.ran.get(place, []), newest)
                for place, step in enumerate(trace.steps)
            ],
            network_calls=sum(map(sum, calls.ran.values())),
            network_samples=calls.samples,
            history_bytes=0,
            driver_bytes=0,
        )

    def _step(
        self, step: StepTrace, ran: Sequence[bool], newest: dict[tuple[str, str], int]
    ) -> StepTrace:
        # with fewer network calls than branches, the branches went through in one batch
        each = ran if len(ran) == len(step.calls) else [any(ran)] * len(step.calls)
        seen: list[CallTrace] = []
        for call, computed in zip(step.calls, each, strict=True):
            key = (call.model, call.branch)
            source = None if computed else newest.get(key)
            newest[key] = step.index if computed else newest.get(key, step.index)
            reason = f"{self.name}: {RAN if computed else SKIPPED}"
            seen.append(replace(call, computed=computed, reason=reason, source=source))
        return replace(step, calls=tuple(seen))


def bridge(
    pipe: Any,
    rival: str,
    *,
    networks: Sequence[str] | None = None,
    layout: str = "BCFHW",
    batched: bool = False,
    **settings: Any,
) -> Bridge:
    """Run another project's cache on a pipeline that nobody changed, with a trace like ours.

    The cache is switched on by its own documented means and off again at the end of the `with`
    block. An engine without policies watches; samples are those of the cache alone.

    Args:
        pipe: A pipeline with a `scheduler` and a denoising network.
        rival: A name of `RIVALS`: `"FirstBlockCache"`, `"MagCache"`, `"SeaCache"`, `"TaylorSeer"`,
            `"PyramidAttentionBroadcast"`, `"FasterCache"` of diffusers, or `"cache-dit"`.
        networks: Names of the components to cache; by default every denoising network.
        layout: Order of the latents' dimensions; FasterCache asks for it.
        batched: Whether both halves of guidance go through the network in one call; FasterCache
            asks for it.
        settings: Fields of the cache's own configuration class, such as `threshold=0.1`.

    Raises:
        InputError: There is no such cache, or its configuration has no such setting.
        MissingExtraError: The package that brings the cache is not installed.
        CapabilityError: The pipeline cannot be followed, or its network has no `enable_cache`.
        ConflictError: On entering, when a network is attached already.

    Example:
        >>> with bridge(pipe, "FirstBlockCache", threshold=0.1) as run:  # doctest: +SKIP
        ...     pipe("a cat")
        >>> print(run.summary())  # doctest: +SKIP
    """
    if rival not in RIVALS:
        raise InputError(f"no cache {rival!r} to bridge to; {suggest(rival, list(RIVALS))}")
    RIVALS[rival].check(settings)
    found = find_networks(pipe, networks)
    for name, network in found.items():
        if RIVALS[rival].apply and not hasattr(network, "enable_cache"):
            raise CapabilityError(
                f"{name} ({type(network).__name__}) has no enable_cache, so {rival} could be "
                "switched on but not off again; use apply_* of diffusers on a pipeline of its own"
            )
    return Bridge(
        rival, RIVALS[rival], Target(pipe, tuple(found.values()), layout, batched), settings
    )
