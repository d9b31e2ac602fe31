"""`Driver`: the patches on a pipeline, and what each of them does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import nn

from erta_framework import Engine, Interval, Seam, Session
from erta_framework.attach import KEEP_TRACES, RequestLog
from erta_integrations.diffusers.network import Patch, PatchSet
from erta_integrations.diffusers.pipeline._answering import NetworkAnswerer
from erta_integrations.diffusers.pipeline._call_frame import CallFrame, WatchedBar, iter_loops
from erta_integrations.diffusers.pipeline._checks import check_clock, refuse_unknown_thread
from erta_integrations.diffusers.pipeline._engines import Rechoose, RequestEngines
from erta_integrations.diffusers.pipeline._gated import make_module_seam
from erta_integrations.diffusers.pipeline._levels import StepArguments, find_levels
from erta_integrations.diffusers.pipeline._named_context import NamedContext
from erta_integrations.diffusers.pipeline._parts import PipelineParts
from erta_integrations.diffusers.pipeline._request import PipelineRequest
from erta_integrations.diffusers.pipeline._request_life import Aborted, RequestLife
from erta_integrations.diffusers.pipeline._run_length import read_announced
from erta_integrations.diffusers.pipeline._schedulers import (
    get_prev_sample,
    has_same_grid,
    move_interval,
)

NO_OTHERS: Mapping[str, nn.Module] = {}


class Driver:
    """Turns `set_timesteps`, network calls and `scheduler.step` into the verbs of a session.

    Args:
        engine: The policies.
        pipe: The pipeline.
        networks: The networks to drive, by component name.
        seam: What a reused step leaves out.
        others: Networks that the pipeline steps with as well; they always run.
        keep: Traces to keep; None keeps all.
        memory: The most bytes that places inside the networks may keep; None sets no bound.
        rechoose: Chooses policies for a request, where they were chosen and not named.

    Attributes:
        parts: What is driven.
        engines: The policies of each request.
        holder: Whoever must live as long as the patches do.
        life: The requests.
        patches: The patches, once installed.
    """

    def __init__(
        self,
        engine: Engine,
        pipe: Any,
        networks: Mapping[str, nn.Module],
        seam: Seam = Seam.LATENT,
        others: Mapping[str, nn.Module] = NO_OTHERS,
        keep: int | None = KEEP_TRACES,
        memory: str | int | None = None,
        rechoose: Rechoose | None = None,
    ) -> None:
        modules = make_module_seam(engine, networks, seam, memory)
        self.parts = PipelineParts(pipe, networks, others, seam, engine.signals, modules)
        self.engines = RequestEngines(engine, rechoose)
        self.life = RequestLife(self.engines, self.parts, RequestLog(keep))
        self.holder: object = None
        self.patches = PatchSet()
        self._requests = self.life.requests
        self._opening = threading.RLock()
        self._answerer = NetworkAnswerer(engine, self.parts, self.life)

    def install(self) -> None:
        """Patch this pipeline's scheduler and networks."""
        parts, patches = self.parts, self.patches
        for name in ("set_timesteps", "step"):
            patches.apply(
                parts.scheduler,
                name,
                self._drive_scheduler(parts.scheduler, name),
                partial(self._drive_copy, name),
            )
        for name, network in parts.all_networks.items():
            call, copied = partial(self._call_network, name), partial(self._note_copy, name)
            patches.apply(network, "forward", call, copied)
            inner = getattr(network, "_orig_mod", network)
            if hasattr(inner, "cache_context"):
                patches.apply(inner, "cache_context", self._name_context)
        for trunk in parts.trunks.values():
            trunk.install(patches)
        if parts.modules is not None:
            parts.modules.install()
        if hasattr(parts.pipe, "maybe_free_model_hooks"):
            patches.apply(parts.pipe, "maybe_free_model_hooks", self._end_pipeline)
        for loop in iter_loops(parts.pipe):
            patches.apply(loop, "progress_bar", self._open_progress_bar)

    def undo(self) -> None:
        """Close every request and restore everything; safe to call twice.

        Raises:
            ProtocolError: Somebody wrapped a gate in between; everything else is off.
        """
        self.holder = None
        with ExitStack() as last:  # each of them, whatever the ones before raise
            last.callback(self.parts.release_copies)
            last.callback(self.patches.undo)
            if self.parts.modules is not None:
                last.callback(self.parts.modules.remove)
            last.callback(self.life.abort_all, "detached before the last step")

    def _drive_scheduler(self, scheduler: Any, name: str) -> Callable[..., Any]:
        return partial(self._step if name == "step" else self._set_timesteps, scheduler)

    def _drive_copy(self, name: str, twin: Any, original: Callable[..., Any]) -> Patch:
        """A deep copy of the scheduler is followed if a copy of the pipeline runs on it."""
        self.parts.note_copy(twin)
        drive, on_copy = self._drive_scheduler(twin, name), partial(self._drive_copy, name)
        return Patch(twin, name, drive, on_copy, original)

    def _note_copy(self, name: str, twin: Any, original: Callable[..., Any]) -> Any:
        """A deep copy of a network is another network."""
        self.life.usage.copied.add(name)
        return original

    # ---------------------------------------------------------- what the patches do
    def _set_timesteps(
        self,
        scheduler: Any,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Opens a request: every pipeline sets its timesteps once per call."""
        parts, call = self.parts, CallFrame.find()
        pipe = parts.pipe if call.pipe is None else call.pipe
        if scheduler is not parts.scheduler and pipe.scheduler is not scheduler:
            return original(*args, **kwargs)  # a copy that a pipeline steps beside its scheduler
        with self._opening:  # two threads may begin at the same moment
            self.life.close_dead()
            self.life.make_room(call, scheduler)
            if pipe is not parts.pipe and not parts.shares_network(pipe):
                return original(*args, **kwargs)
            parts.refuse_changes(pipe, scheduler)
            self.patches.refresh()
            result = original(*args, **kwargs)
            self.life.open(call, scheduler)
        return result

    def _call_network(
        self,
        name: str,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Answers one call of a network, or passes it on if it belongs to no request."""
        request = self._requests.find()
        if request is None:
            request = self._find_request(name)
        elif request.pipe.scheduler is not request.scheduler:
            self._refuse_replaced(request)
        if request is None:
            return original(*args, **kwargs)
        try:
            answer = self._answerer.answer(request, name, original, args, kwargs)
            self._refresh_patches(name)
        except BaseException as error:
            self.life.fail(request, error)
            raise
        return answer

    def _find_request(self, name: str) -> PipelineRequest | None:
        """Find the request of a call that no open request has claimed; None if it is nobody's.

        Raises:
            ProtocolError: The attached pipeline runs with another scheduler, or it cannot be told
                whose call it is.
        """
        parts, life = self.parts, self.life
        life.close_dead()
        origin = self._requests.trace()
        attached = origin.pipe is parts.pipe or origin.is_by_hand
        if attached and parts.pipe.scheduler is not parts.scheduler:
            parts.refuse_changes(parts.pipe, parts.scheduler)
        elsewhere = self._requests.find_elsewhere() if origin.is_by_hand else None
        if elsewhere is not None:
            found = self._requests.await_origin()
            if found is not None:
                return found
            refuse_unknown_thread(name, parts.all_networks[name], elsewhere)
        self.life.usage.note_outside(name, origin.who)
        return None

    def _refuse_replaced(self, request: PipelineRequest) -> None:
        self.life.fail(request, Aborted("the scheduler was replaced"))
        self.parts.refuse_changes(request.pipe, request.scheduler)

    def _refresh_patches(self, name: str) -> None:
        """A hook that removed itself during the call removed our patch too: put it back."""
        parts = self.parts
        whole = name in parts.networks and name not in parts.trunks
        # the usual case, one look at an attribute, must stay cheap
        if not whole or not isinstance(vars(parts.networks[name]).get("forward"), Patch):
            self.patches.refresh()

    def _name_context(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Notes the branch that the pipeline names."""
        request, context = self._requests.find(), original(*args, **kwargs)
        if request is None:
            return context
        return NamedContext(request.contexts, args[0] if args else kwargs["name"], context)

    def _step(
        self,
        scheduler: Any,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Settles the step, lets the scheduler integrate it, and ends it."""
        request = self._requests.find()
        if request is None or request.scheduler is not scheduler:
            return original(*args, **kwargs)
        if not request.in_step or request.session is None:
            return original(*args, **kwargs)
        try:
            settled, result = self._integrate(request, request.session, original, args, kwargs)
        except BaseException as error:
            self.life.fail(request, error)
            raise
        self.life.end_step(request, settled)
        return result

    def _integrate(
        self,
        request: PipelineRequest,
        session: Session,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[Interval, Any]:
        check_clock(request, original, args, kwargs)
        settled = session.settle()
        if settled.end != request.schedule.sigmas[settled.index + 1]:
            for scheduler in self._find_schedulers(request):
                move_interval(scheduler, settled)
        if session.adjusts:
            levels, step = find_levels(request.scheduler), StepArguments(original, args, kwargs)
            assert levels is not None  # else the request was refused
            args, kwargs = step.replaced(session.adjust(step.read(levels, settled)))
        result = original(*args, **kwargs)
        session.end(get_prev_sample(result))
        return settled, result

    def _find_schedulers(self, request: PipelineRequest) -> list[Any]:
        """The scheduler, and its copies on the same grid, which a pipeline steps for audio, say."""
        scheduler, copies = request.scheduler, self.parts.find_copies(request.call)
        return [scheduler, *(copy for copy in copies if has_same_grid(scheduler, copy))]

    def _end_pipeline(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Closes a request that is still open at the pipeline's end: it was interrupted."""
        result = original(*args, **kwargs)
        self.life.end_own()
        return result

    def _open_progress_bar(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Closes the request at once if the pipeline's own code raises in its loop."""
        bar = original(*args, **kwargs)
        if (request := self._requests.find()) is not None:
            request.announced = read_announced(args, kwargs)
        # a bar that is iterated sees no exception; `close_dead` notices it at the next call
        iterated = args[0] if args else kwargs.get("iterable")
        return WatchedBar(bar, self.life.fail_own) if iterated is None else bar
