"""`Driver`: the patches on a pipeline, and what each of them does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from erta_framework import Engine, Interval, Seam, Session
from erta_integrations.diffusers.network import Patch, PatchSet
from erta_integrations.diffusers.pipeline._answering import NetworkAnswerer
from erta_integrations.diffusers.pipeline._call_frame import WatchedBar, iter_loops
from erta_integrations.diffusers.pipeline._checks import check_clock
from erta_integrations.diffusers.pipeline._gated import make_module_seam
from erta_integrations.diffusers.pipeline._parts import PipelineParts
from erta_integrations.diffusers.pipeline._request import PipelineRequest
from erta_integrations.diffusers.pipeline._request_life import RequestLife
from erta_integrations.diffusers.pipeline._schedulers import (
    get_prev_sample,
    has_same_grid,
    move_interval,
)

NO_OTHERS: Mapping[str, nn.Module] = {}


class NamedContext:
    """diffusers' own `cache_context`, which also notes the branch that it names.

    A class, because a generator is slower, and this is entered at every network call.
    """

    __slots__ = ("contexts", "inner", "name")

    def __init__(self, contexts: list[str], name: str, inner: Any) -> None:
        self.contexts, self.name, self.inner = contexts, name, inner

    def __enter__(self) -> Any:
        entered = self.inner.__enter__()
        self.contexts.append(self.name)
        return entered

    def __exit__(self, *raised: Any) -> Any:
        self.contexts.pop()
        return self.inner.__exit__(*raised)


class Driver:
    """Turns `set_timesteps`, network calls and `scheduler.step` into the verbs of a session.

    Args:
        engine: The policies.
        pipe: The pipeline.
        networks: The networks to drive, by component name.
        seam: What a reused step leaves out.
        others: Networks that the pipeline steps with as well; they always run.
        memory: The most bytes that places inside the networks may keep; None sets no bound.

    Attributes:
        parts: What is driven.
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
        memory: str | int | None = None,
    ) -> None:
        modules = make_module_seam(engine, networks, seam, memory)
        self.parts = PipelineParts(pipe, networks, others, seam, engine.signals, modules)
        self.life = RequestLife(engine, self.parts)
        self.patches = PatchSet()
        self._answerer = NetworkAnswerer(engine, self.parts, self.life)
        self._contexts: list[str] = []

    def install(self) -> None:
        """Patch this pipeline's scheduler and networks."""
        parts, patches = self.parts, self.patches
        patches.apply(parts.scheduler, "set_timesteps", self._set_timesteps)
        patches.apply(parts.scheduler, "step", self._step)
        for name, network in parts.all_networks.items():
            patches.apply(network, "forward", partial(self._call_network, name))
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

    def remove(self) -> None:
        """Take off what `install` put on; safe to call twice.

        Raises:
            ProtocolError: Somebody wrapped a gate in between; everything else is off.
        """
        try:
            if self.parts.modules is not None:
                self.parts.modules.remove()
        finally:
            self.patches.undo()

    # ---------------------------------------------------------- what the patches do
    def _set_timesteps(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Opens a request: every pipeline sets its timesteps once per call."""
        self.life.abort("a new request began before the last step of this one")
        self.parts.refuse_changes()
        self.patches.refresh()
        result = original(*args, **kwargs)
        self.life.open()
        return result

    def _call_network(
        self,
        name: str,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Answers one call of a network, or passes it on if no request is running."""
        if self.parts.pipe.scheduler is not self.parts.scheduler:
            self.life.abort("the scheduler was replaced")
            self.parts.refuse_changes()
        request = self.life.get_running()
        if request is None:
            return original(*args, **kwargs)
        context = self._contexts[-1] if self._contexts else None
        try:
            answer = self._answerer.answer(request, name, context, original, args, kwargs)
            self._refresh_patches(name)
        except BaseException as error:
            self.life.fail(request, error)
            raise
        return answer

    def _refresh_patches(self, name: str) -> None:
        """A hook that removed itself during the call removed our patch too: put it back."""
        parts = self.parts
        whole = name in parts.networks and name not in parts.trunks
        # the usual case, one look at an attribute, must stay cheap
        if not whole or not isinstance(vars(parts.networks[name]).get("forward"), Patch):
            self.patches.refresh()

    def _name_context(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> NamedContext:
        """Notes the branch that the pipeline names."""
        name = args[0] if args else kwargs["name"]
        return NamedContext(self._contexts, name, original(*args, **kwargs))

    def _step(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Settles the step, lets the scheduler integrate it, and ends it."""
        request = self.life.get_running()
        if request is None or not request.in_step or request.session is None:
            return original(*args, **kwargs)
        try:
            settled, result = self._integrate(request, request.session, original, args, kwargs)
        except BaseException as error:
            self.life.fail(request, error)
            raise
        if self.life.end_step(request, settled):
            self.patches.forget_copies()
        return result

    def _integrate(
        self,
        request: PipelineRequest,
        session: Session,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[Interval, Any]:
        check_clock(self.parts.scheduler, request, original, args, kwargs)
        settled = session.settle()
        if settled.end != request.schedule.sigmas[settled.index + 1]:
            for scheduler in self._find_schedulers():
                move_interval(scheduler, settled)
        result = original(*args, **kwargs)
        session.end(get_prev_sample(result))
        return settled, result

    def _find_schedulers(self) -> list[Any]:
        """The scheduler, and its copies on the same grid, which a pipeline steps for audio, say."""
        scheduler = self.parts.scheduler
        copies = self.patches.copies(scheduler)
        return [scheduler, *(copy for copy in copies if has_same_grid(scheduler, copy))]

    def _end_pipeline(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Closes a request that is still open at the pipeline's end: it was interrupted."""
        self.life.abort("the pipeline ended before the last step")
        return original(*args, **kwargs)

    def _open_progress_bar(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Closes the request at once if the pipeline's own code raises in its loop."""
        bar = original(*args, **kwargs)
        # a bar that is iterated sees no exception; `get_running` notices it at the next call
        iterated = args[0] if args else kwargs.get("iterable")
        return WatchedBar(bar, self.life.fail_current) if iterated is None else bar
