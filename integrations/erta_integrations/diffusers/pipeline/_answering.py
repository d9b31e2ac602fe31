"""Answers network calls: reads what the pipeline passed, asks the session, returns what it says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from erta_framework import Engine
from erta_framework.errors import ProtocolError
from erta_framework.session import TEXT, TRIAL, TRUNK, Site
from erta_integrations.diffusers.network import (
    CallArguments,
    OutputSpec,
    Relation,
    as_tensor,
    bind_arguments,
    find_latents,
    find_timestep,
    read_output,
    unwrap_class,
)
from erta_integrations.diffusers.pipeline._branches import is_same_value
from erta_integrations.diffusers.pipeline._checks import require_output_reuse
from erta_integrations.diffusers.pipeline._gated import GateRunner
from erta_integrations.diffusers.pipeline._network_call import NetworkCall
from erta_integrations.diffusers.pipeline._parts import PipelineParts
from erta_integrations.diffusers.pipeline._request import PipelineRequest
from erta_integrations.diffusers.pipeline._request_life import RequestLife
from erta_integrations.diffusers.trunk import (
    Feature,
    TrunkCall,
    TrunkLayout,
    read_text_signals,
)

LEFT_ALONE = "its network is not named in networks=[...]"
NO_SIGNALS: Mapping[str, Feature] = {}


class NetworkAnswerer:
    """Answers the network calls of a request, by running the network or from earlier results.

    Args:
        engine: The policies.
        parts: What is driven.
        life: Begins a step at its first network call.
    """

    def __init__(self, engine: Engine, parts: PipelineParts, life: RequestLife) -> None:
        self.engine, self.parts, self.life = engine, parts, life
        self._forwards = {n: unwrap_class(m).forward for n, m in parts.all_networks.items()}
        self._tries = TRIAL in engine.traits.requires
        self._reads_text = not engine.signals.isdisjoint(TEXT)

    def answer(
        self,
        request: PipelineRequest,
        name: str,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Answer one call.

        Args:
            request: The request that it belongs to.
            name: The component that is called.
            original: The network's `forward`, without our patch.
            args: The positional arguments.
            kwargs: The keyword arguments.

        Raises:
            ProtocolError: The pipeline does not call `scheduler.step` between its steps.
            CapabilityError: The call cannot be driven; says why.
        """
        arguments = bind_arguments(self._forwards[name], args, kwargs)
        latents = find_latents(arguments)
        if not isinstance(latents, Tensor):
            latents = as_tensor(latents, f"the latents of {name}")
        timestep = find_timestep(arguments)
        if not request.in_step:
            self.life.begin_step(request, name, latents, timestep)
        context = request.contexts[-1] if request.contexts else None
        branch, repeated = request.branches.name(context, arguments)
        branch = request.branches.name_shape(name, branch, latents.shape)
        if repeated and not is_same_value(timestep, request.passed_timestep):
            raise ProtocolError(
                f"{type(request.pipe).__name__} called {name} ({branch}) at another time before "
                f"it called {type(request.scheduler).__name__}.step; a pipeline that integrates "
                "by itself or steps only a copy of its scheduler cannot be followed"
            )
        if name not in self.parts.networks:
            return self._leave_alone(
                request, name, branch, latents, partial(original, *args, **kwargs)
            )
        network = self.parts.networks[name]
        model = request.watch.name_model(name, network)
        held = request.observers.look(request.watch.states[name])
        text = read_text_signals(network, arguments) if self._reads_text else NO_SIGNALS
        seam, gates = self.parts.modules, None
        if seam is not None:
            gates = GateRunner(seam, request, name, Site(model, branch), latents)
        if name in self.parts.trunks:
            site = Site(model, branch, TRUNK)
            whole = partial(original, *args, **kwargs)
            if gates is not None:
                whole = partial(gates.run, whole)
            raw = self._answer_trunk(request, name, site, latents, whole, text, arguments)
            self._note_run(request, name, held)
            return raw
        started = time.perf_counter()
        call = CallArguments(original, args, kwargs, arguments, timestep)
        made = NetworkCall(
            name, network, request, Site(model, branch), latents, call, text, self._read_new, gates
        )
        raw = self._answer_latent(request, made, started)
        if made.ran:
            self._note_run(request, name, held)
        return raw

    def _note_run(self, request: PipelineRequest, name: str, held: list[object]) -> None:
        """Note what a network changed in itself while it ran, which nobody did from outside."""
        request.watch.settle(name)
        request.observers.note(name, request.watch.states[name], held)

    def _leave_alone(
        self,
        request: PipelineRequest,
        name: str,
        branch: str,
        latents: Tensor,
        run: Callable[[], Any],
    ) -> Any:
        """Run a network that is not driven; its call still belongs to the step."""
        assert request.session is not None
        started = time.perf_counter()
        raw = run()
        output, _ = read_output(raw, latents, name)
        request.session.note(output, branch=branch, model=name, reason=LEFT_ALONE, started=started)
        return raw

    def _answer_latent(self, request: PipelineRequest, call: NetworkCall, started: float) -> Any:
        assert request.session is not None
        if self._tries:
            call.note_timestep()
        session = request.session
        decided = session.ask(call.site, call.input, call, started=started)
        if decided.reused:
            request.observers.refuse_reuse(call.name, call.network, call.call.arguments)
        return call.build(session.answer(decided))

    def _answer_trunk(
        self,
        request: PipelineRequest,
        name: str,
        site: Site,
        latents: Tensor,
        run: partial[Any],
        text: Mapping[str, Feature],
        arguments: Mapping[str, Any],
    ) -> Any:
        assert request.session is not None
        layouts, shape, dtype = request.layouts, latents.shape, latents.dtype
        key = (site, shape, dtype)

        def find_layout(branch: str) -> TrunkLayout | None:
            return layouts.get((replace(site, branch=branch), shape, dtype))

        trunk = self.parts.trunks[name]
        refuse = partial(request.observers.refuse_reuse, name, trunk.network, arguments)
        call = TrunkCall(
            trunk, request.session, site, run, layouts.get(key), latents, find_layout, text, refuse
        )
        with trunk.route_blocks(call.answer_block):
            raw = call.run()
        layouts[key] = call.layout
        if call.layout.residuals:
            request.count_bytes()
        return raw

    def _read_new(self, raw: Any, latents: Tensor, name: str) -> tuple[Tensor, OutputSpec]:
        """Read an output whose form is new; some policies cannot use every form."""
        main, spec = read_output(raw, latents, name)
        if spec.rule.relation is Relation.OUTPUT:
            network, shapes = self.parts.networks[name], (tuple(spec.shape), tuple(latents.shape))
            require_output_reuse(self.engine.policies, name, network, *shapes)
        return main, spec
