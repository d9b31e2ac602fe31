"""One call of a pipeline's network at the latent seam, as the session asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

from torch import Tensor, nn

from erta_framework.errors import CapabilityError
from erta_framework.modules import check_planned
from erta_framework.session import Site, TrialPlan
from erta_integrations.diffusers.network import (
    CallArguments,
    OutputSpec,
    TrialRunner,
    copy_value,
    explain_undivided,
    find_row_selector,
    merge_rows,
    read_output,
    to_call,
)
from erta_integrations.diffusers.pipeline._gated import GateRunner
from erta_integrations.diffusers.pipeline._request import PipelineRequest, SpecKey
from erta_integrations.diffusers.trunk import Feature

Read = Callable[[Any, Tensor, str], tuple[Tensor, OutputSpec]]
"""Reads what a network returned, from that, its latents and its name."""


class NetworkCall:
    """A `Network` of the core: what one call offers to the session.

    These are the prediction, the prediction for some samples, trials, and signals of the text.

    Args:
        name: Name of the component.
        network: The network.
        request: The pipeline call that it belongs to.
        site: Network and branch.
        latents: The latents among the arguments, stacked if they are a list.
        call: The call as the pipeline made it.
        text: Signals of the text.
        read: Reads an output whose form is new.
        gates: Runs the network through the gates on its modules, where there are some.

    Attributes:
        ran: Whether the network has run for it, in a trial or for part of the batch as well.
        result: What the network returned, its prediction and its spec; None until it ran.
        spec: How the network returns its prediction.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        request: PipelineRequest,
        site: Site,
        latents: Tensor,
        call: CallArguments,
        text: Mapping[str, Feature],
        read: Read,
        gates: GateRunner | None = None,
    ) -> None:
        self.name, self.network, self.request, self.site = name, network, request, site
        self.latents, self.call, self.text = latents, call, text
        self._read, self._gates = read, gates
        self.key: SpecKey = (site, latents.shape, latents.dtype)
        self.ran = False
        self.result: tuple[Any, Tensor, OutputSpec] | None = None
        self._first: Tensor | None = None
        known = request.specs.get(self.key)
        if known is None:  # nothing can be reused yet: the network runs, and shows its spec
            self.result = self._run(None)
            _, self._first, known = self.result
        self.spec = known

    @property
    def input(self) -> Tensor:
        """The part of the latents that the residual is taken against, `[B, C, ...]`."""
        return self.spec.reference(self.latents)

    # ---------------------------------------------------------- for the session
    @property
    def undivided(self) -> str:
        """Why the network cannot run on part of this batch; empty if it can."""
        select = self._selector
        why = select if isinstance(select, str) else explain_undivided(self.spec)
        if not why and self._gates is not None:
            why = self._gates.undivided
        return f"{type(self.network).__name__}: {why}" if why else ""

    @cached_property
    def _selector(self) -> Callable[[Tensor], dict[str, Any]] | str:
        """Takes samples of the arguments, or why it cannot; found once a call, where it is used."""
        return find_row_selector(self.call.arguments, self.latents.shape[0])

    def run(self) -> Tensor:
        """The network's prediction, `[B, C, ...]`."""
        if self._first is not None:
            return self._first
        self.result = self._run(self.spec)
        return self.result[1]

    def run_rows(self, rows: Tensor) -> Tensor:
        """The prediction for some samples of the batch, `[R, C, ...]`."""
        self.ran = True
        select = self._selector
        assert not isinstance(select, str)
        args, kwargs = to_call(self.network, select(rows), self.call.num_positional)
        run = partial(self.call.original, *args, **kwargs)
        raw = run() if self._gates is None else self._gates.run_rows(rows, run)
        main, part = read_output(raw, self.latents.index_select(0, rows), self.name)
        specs = self.request.specs
        specs[self.key] = merge_rows(specs.get(self.key, self.spec), part, rows)
        return main

    def run_at(self, x: Tensor, timestep: float | None) -> Tensor:
        """The prediction for other latents, or at a timestep that the pipeline has used."""
        self.ran = True
        runner = TrialRunner(
            self.name,
            self.network,
            self.call,
            self.latents,
            self.spec,
            self._passed_timesteps,
            self.request.timestep,
        )
        return runner.run(x, timestep)

    def run_planned(self, plan: TrialPlan, x: Tensor, timestep: float | None) -> Tensor:
        """A trial through the gates, with a plan of its own; nothing is kept.

        Raises:
            CapabilityError: No policy owns places in this network, or the latents have another
                shape than those of the call.
        """
        if self._gates is None:
            raise CapabilityError(
                f"no trial with a plan: no policy owns places in {self.name}; a policy that asks "
                "for one selects some"
            )
        check_planned(x, self.input, self.name)
        output: Tensor = self._gates.run_planned(plan, lambda: self.run_at(x, timestep))
        return output

    def offers(self, name: str) -> bool:
        """Whether it is a signal of the text."""
        return name in self.text

    def signal(self, name: str) -> Tensor:
        """A signal of the text."""
        return self.text[name]()

    def keep(self, x: Tensor, output: Tensor) -> None:
        """The residual is kept."""
        return None

    # ------------------------------------------------------------- for the driver
    def note_timestep(self) -> None:
        """Remember how the pipeline passed this timestep, for later trials at it."""
        passed = copy_value(self.call.timestep)  # pipelines may write into the original
        self._passed_timesteps[self.request.timestep] = passed

    def build(self, output: Tensor) -> Any:
        """The network's return value, with `output` as the prediction."""
        specs = self.request.specs
        if self.result is None:
            return specs.get(self.key, self.spec).rebuild(output)
        raw, main, spec = self.result
        specs[self.key] = spec
        if spec.rest is not None or spec.others:
            self.request.count_bytes()
        return raw if output is main else spec.rebuild(output)

    @property
    def _passed_timesteps(self) -> dict[float, Any]:
        return self.request.passed_timesteps.setdefault((self.name, self.site.branch), {})

    def _run(self, known: OutputSpec | None) -> tuple[Any, Tensor, OutputSpec]:
        self.ran = True
        raw = self.call.run() if self._gates is None else self._gates.run(self.call.run)
        if known is not None and (main := known.match(raw)) is not None:
            return raw, main, known
        return raw, *self._read(raw, self.latents, self.name)
