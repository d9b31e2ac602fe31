"""Drives sessions from the calls that an unmodified pipeline makes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from erta_framework import Engine, Interval, Profile, Seam, Session, SessionInfo, Trace
from erta_framework.errors import ProtocolError
from erta_framework.session import TEXT, TRIAL, TRUNK, Site
from erta_integrations.diffusers.network import (
    CallArguments,
    OutputForm,
    Patch,
    PatchSet,
    Relation,
    as_tensor,
    bound,
    channel_dim,
    latents_of,
    read_output,
    time_of,
    unwrapped,
)
from erta_integrations.diffusers.network import _trial as trials
from erta_integrations.diffusers.pipeline._branches import same_value
from erta_integrations.diffusers.pipeline._call_frame import PipelineCall, WatchedBar, loops_of
from erta_integrations.diffusers.pipeline._checks import (
    check_clock,
    refuse_replaced_parts,
    require_output_reuse,
)
from erta_integrations.diffusers.pipeline._fingerprint import (
    guidance_of,
    network_facts,
    solver_of,
)
from erta_integrations.diffusers.pipeline._network_call import NetworkCall
from erta_integrations.diffusers.pipeline._request import Request
from erta_integrations.diffusers.pipeline._schedulers import (
    capabilities,
    first_index,
    move_interval,
    read_schedule,
    same_grid,
)
from erta_integrations.diffusers.trunk import Chain, Feature, Run, Trunk
from erta_integrations.diffusers.trunk import _signals as signals

LEFT_ALONE = "its network is not named in networks=[...]"
NO_OTHERS: Mapping[str, nn.Module] = {}
NO_SIGNALS: Mapping[str, Feature] = {}


class Aborted(Exception):
    """The pipeline stopped before its last step; given to `on_session_end` as the reason."""


class Named:
    """Remembers the branch that the pipeline names, within diffusers' own context.

    A class, because a generator costs more, and this is entered at every network call.
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
    """Turns `set_timesteps`, network calls and `scheduler.step` into the verbs of a session."""

    def __init__(
        self,
        engine: Engine,
        pipe: Any,
        networks: Mapping[str, nn.Module],
        seam: Seam = Seam.LATENT,
        others: Mapping[str, nn.Module] = NO_OTHERS,
    ) -> None:
        self.engine = engine
        self.pipe = pipe
        self.scheduler = pipe.scheduler
        self.networks = networks
        self._tries = TRIAL in engine.traits.requires
        self.parts = {**networks, **others}  # all that count as calls of a step
        self._forwards = {name: unwrapped(part).forward for name, part in self.parts.items()}
        self.patches = PatchSet()
        self.seam = seam
        asked = engine.signals
        self._reads_text = not asked.isdisjoint(TEXT)
        self.trunks = {
            name: Trunk(name, network, asked)
            for name, network in networks.items()
            if seam is Seam.TRUNK
        }
        self.traces: list[Trace] = []
        self.emitted: list[Profile] = []
        self.prompts: tuple[str, ...] = ()
        self._request: Request | None = None
        self._contexts: list[str] = []

    def install(self) -> None:
        """Put the patches on this pipeline's scheduler and networks."""
        self.patches.apply(self.scheduler, "set_timesteps", self.set_timesteps)
        self.patches.apply(self.scheduler, "step", self.step)
        for name, network in self.parts.items():
            self.patches.apply(network, "forward", partial(self.network_call, name))
            inner = getattr(network, "_orig_mod", network)
            if hasattr(inner, "cache_context"):
                self.patches.apply(inner, "cache_context", self.named)
        for trunk in self.trunks.values():
            trunk.install(self.patches)
        if hasattr(self.pipe, "maybe_free_model_hooks"):
            self.patches.apply(self.pipe, "maybe_free_model_hooks", self.ended)
        for loop in loops_of(self.pipe):
            self.patches.apply(loop, "progress_bar", self.progress_bar)

    @property
    def signals(self) -> frozenset[str]:
        """The signals that every network offers at this seam."""
        offered = [trunk.offered for trunk in self.trunks.values()]
        inside = frozenset.intersection(*offered) if offered else frozenset()
        return inside | signals.of_text(self.networks.values())

    @property
    def offered(self) -> frozenset[str]:
        """What policies may require of this driver, beside what the scheduler allows."""
        tried = trials.offered(self.networks) if self.seam is Seam.LATENT else frozenset()
        return self.signals | tried

    @property
    def newest(self) -> Trace | None:
        """The trace of the request that runs, else of the last one; None before the first."""
        request = self._request
        if request is not None and request.session is not None:
            return request.session.trace
        return self.traces[-1] if self.traces else None

    # ---------------------------------------------------------- replacements
    def set_timesteps(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Opens a request: every pipeline sets its timesteps once a call."""
        self.abort("a new request began before the last step of this one")
        self._refuse_replaced_parts()
        self.patches.refresh()
        result = original(*args, **kwargs)
        self._request = Request(number=len(self.traces), call=PipelineCall.of(self.pipe))
        return result

    def network_call(
        self,
        name: str,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Answers one call of a network, or passes it on when no request is running."""
        if self.pipe.scheduler is not self.scheduler:
            self.abort("the scheduler was replaced")
            self._refuse_replaced_parts()
        request = self._running()
        if request is None:
            return original(*args, **kwargs)
        try:
            return self._driven_call(request, name, original, args, kwargs)
        except BaseException as error:
            self._failed(request, error)
            raise

    def _driven_call(
        self,
        request: Request,
        name: str,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        network = self.parts[name]
        arguments = bound(self._forwards[name], args, kwargs)
        latents = latents_of(arguments)
        if not isinstance(latents, Tensor):
            latents = as_tensor(latents, f"the latents of {name}")
        told = time_of(arguments)
        if not request.in_step:
            self._begin(request, name, latents, told)
        context = self._contexts[-1] if self._contexts else None
        branch, repeated = request.branches.name(context, arguments)
        branch = request.branches.of_shape(name, branch, latents.shape)
        if repeated and not same_value(told, request.told):
            raise ProtocolError(
                f"{type(self.pipe).__name__} called {name} ({branch}) at another time before "
                f"it called {type(self.scheduler).__name__}.step; a pipeline that integrates "
                "by itself or steps a copy of its scheduler cannot be followed"
            )
        if name not in self.networks:
            whole = partial(original, *args, **kwargs)
            return self._leave_alone(request, name, branch, latents, whole)
        model = request.adapters.model(name, network)
        text = signals.text_features(network, arguments) if self._reads_text else NO_SIGNALS
        site = Site(model, branch, TRUNK if name in self.trunks else "")
        if name in self.trunks:
            whole = partial(original, *args, **kwargs)
            answer = self._answer_trunk(request, name, site, latents, whole, text)
        else:
            started = time.perf_counter()
            given = CallArguments(original, args, kwargs, arguments, told)
            call = NetworkCall(name, network, request, site, latents, given, text, self._read)
            answer = self._answer_latent(request, call, started)
        # hooks that take themselves off in their call took ours along
        if name in self.trunks or not isinstance(vars(network).get("forward"), Patch):
            self.patches.refresh()
        return answer

    def _leave_alone(
        self, request: Request, name: str, branch: str, latents: Tensor, call: Callable[[], Any]
    ) -> Any:
        """Run a network that was not named; its call belongs to the step all the same."""
        assert request.session is not None
        started = time.perf_counter()
        raw = call()
        output, _ = read_output(raw, latents, name)
        request.session.note(output, branch=branch, model=name, reason=LEFT_ALONE, started=started)
        self.patches.refresh()
        return raw

    def named(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Named:
        """Remembers the branch that the pipeline names, within diffusers' own context."""
        name = args[0] if args else kwargs["name"]
        return Named(self._contexts, name, original(*args, **kwargs))

    def step(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Settles the step, lets the scheduler integrate it, and ends it."""
        request = self._running()
        if request is None or not request.in_step or request.session is None:
            return original(*args, **kwargs)
        try:
            settled, result = self._driven_step(request, request.session, original, args, kwargs)
        except BaseException as error:
            self._failed(request, error)
            raise
        request.carried, request.in_step = settled, False
        request.index += 1
        if request.index == request.schedule.num_steps:
            self._close(request, None)
            self.patches.forget_copies()
        return result

    def _driven_step(
        self,
        request: Request,
        session: Session,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[Interval, Any]:
        check_clock(self.scheduler, request, original, args, kwargs)
        settled = session.settle()
        if settled.end != request.schedule.sigmas[settled.index + 1]:
            for scheduler in self._on_this_grid():
                move_interval(scheduler, settled)
        result = original(*args, **kwargs)
        session.end(previous_sample(result))
        return settled, result

    def _on_this_grid(self) -> list[Any]:
        """The scheduler, and copies that a pipeline steps beside it, for audio for example."""
        copies = self.patches.copies(self.scheduler)
        return [self.scheduler, *(c for c in copies if same_grid(self.scheduler, c))]

    def ended(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """The pipeline is done: what it left open, because it was interrupted, is dropped."""
        self.abort("the pipeline ended before the last step")
        return original(*args, **kwargs)

    def progress_bar(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Drops the request at once when the pipeline's own code raises within its loop."""
        bar = original(*args, **kwargs)
        # a bar that is iterated sees no exception; `_running` notices the end of that call
        iterated = args[0] if args else kwargs.get("iterable")
        return WatchedBar(bar, self._left) if iterated is None else bar

    # ------------------------------------------------------------- the request
    def _running(self) -> Request | None:
        """The open request, if the call of the pipeline that opened it is still running."""
        request = self._request
        if request is not None and request.call is not None and not request.call.running:
            self.abort("the pipeline raised before the last step")
            return None
        return request

    def _left(self, error: BaseException) -> None:
        """The pipeline's loop raised."""
        if self._request is not None:
            self._close(self._request, error)

    def abort(self, why: str) -> None:
        """Ends a request that never reached its last step; its state is dropped."""
        if self._request is not None:
            self._close(self._request, Aborted(why))

    def _failed(self, request: Request, error: BaseException) -> None:
        """Ends a request that raised, unless another one has begun."""
        if self._request is request:
            self._close(request, error)

    def _close(self, request: Request, error: BaseException | None) -> None:
        self._request = None
        request.forms.clear()
        request.chains.clear()
        request.times.clear()
        request.branches.clear()
        session = request.session
        if session is None:
            return
        try:
            session.__exit__(type(error) if error else None, error, None)
        finally:
            self.traces.append(session.trace)
        self.emitted.extend(session.emitted)

    def _begin(self, request: Request, name: str, latents: Tensor, told: Any) -> None:
        if request.session is None:
            time = told if isinstance(told, Tensor) else None
            request.schedule = read_schedule(self.scheduler)
            request.index = first_index(self.scheduler, time, request.schedule)
            request.session = self.engine.session(self._info(request, name, latents))
            request.session.__enter__()
        before = request.carried
        moved = (None, None) if before is None else (before.end, before.end_time)
        interval = request.schedule.interval(request.index, *moved)
        request.branches.begin_step()
        request.session.begin(interval)
        request.in_step, request.told, request.time = True, told, interval.time

    def _info(self, request: Request, called: str, latents: Tensor) -> SessionInfo:
        name = called if called in self.networks else next(iter(self.networks))
        unit = float(getattr(self.scheduler.config, "num_train_timesteps", math.nan))
        return SessionInfo(
            sigmas=request.schedule.sigmas,
            times=request.schedule.times[:-1],
            shape=tuple(latents.shape),
            dtype=latents.dtype,
            device=latents.device,
            branches=(),
            channel_dim=channel_dim(self.networks[name], tuple(latents.shape)),
            model=network_facts(name, self.networks[name]),
            seam=self.seam,
            solver=solver_of(self.scheduler),
            guidance=guidance_of(self.pipe),
            capabilities=capabilities(self.scheduler) | self.offered,
            first=request.index,
            request_id=f"request-{request.number}",
            time_of=lambda sigma: sigma * unit,
            prompts=self.prompts,
        )

    def _answer_trunk(
        self,
        request: Request,
        name: str,
        site: Site,
        latents: Tensor,
        call: partial[Any],
        text: Mapping[str, Feature],
    ) -> Any:
        assert request.session is not None
        key = (site, latents.shape, latents.dtype)
        trunk = self.trunks[name]

        def lent(other: str) -> Chain | None:
            return request.chains.get((replace(site, branch=other), latents.shape, latents.dtype))

        known = request.chains.get(key)
        run = Run(trunk, request.session, site, call, known, latents, lent, text)
        with trunk.running(run):
            raw = run.whole()
        request.chains[key] = run.chain
        if run.chain.residuals:
            request.count_bytes()
        return raw

    def _answer_latent(self, request: Request, call: NetworkCall, started: float) -> Any:
        assert request.session is not None
        if self._tries:
            call.note_time()
        session = request.session
        compute = session.ask(call.site, call.input, call, started=started)
        return call.build(session.answer(compute))

    def _read(self, raw: Any, latents: Tensor, name: str) -> tuple[Tensor, OutputForm]:
        """What a network returned, once its form is new."""
        main, form = read_output(raw, latents, name)
        if form.rule.relation is Relation.OUTPUT:
            network, shapes = self.networks[name], (tuple(form.shape), tuple(latents.shape))
            require_output_reuse(self.engine.policies, name, network, *shapes)
        return main, form

    def _refuse_replaced_parts(self) -> None:
        refuse_replaced_parts(self.pipe, self.scheduler, self.parts)
        for trunk in self.trunks.values():
            trunk.refuse_compiled()


def previous_sample(result: Any) -> Tensor:
    """The latents in what `scheduler.step` returned."""
    sample = result[0] if isinstance(result, tuple) else result.prev_sample
    assert isinstance(sample, torch.Tensor)
    return sample
