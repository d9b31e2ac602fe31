"""One call of a pipeline's network at the latent seam, as the session asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from erta_framework.session import Site
from erta_integrations.diffusers.network import (
    CallArguments,
    OutputForm,
    TrialRunner,
    called,
    copied,
    read_output,
)
from erta_integrations.diffusers.network._batch_axis import splitter, unsplit, with_rows
from erta_integrations.diffusers.pipeline._request import FormKey, Request
from erta_integrations.diffusers.trunk import Feature

Read = Callable[[Any, Tensor, str], tuple[Tensor, OutputForm]]
"""Reads what a network returned, with its latents and its name."""


class NetworkCall:
    """What one call of a network offers to the session: itself, rows, trials and signals of text.

    Args:
        name: Name of the component.
        network: The network.
        request: The pipeline call that it belongs to.
        site: Network and branch.
        latents: The latents among the arguments, stacked if they are a list.
        given: What the pipeline gave to this call.
        text: Signals of the text.
        read: Reads an output whose form is new.

    Attributes:
        ran: What the network returned, its prediction and how the two belong together; None until
            it ran.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        request: Request,
        site: Site,
        latents: Tensor,
        given: CallArguments,
        text: Mapping[str, Feature],
        read: Read,
    ) -> None:
        self.name, self.network, self.request, self.site = name, network, request, site
        self.latents, self.given, self.text = latents, given, text
        self._read = read
        self.key: FormKey = (site, latents.shape, latents.dtype)
        self.ran: tuple[Any, Tensor, OutputForm] | None = None
        known = request.forms.get(self.key)
        if known is None:  # nothing to reuse yet: compute, and learn the form from it
            self.ran = self._run(None)
            known = self.ran[2]
            self._first: Tensor | None = self.ran[1]
        else:
            self._first = None
        self.form = known

    @property
    def input(self) -> Tensor:
        """The part of the latents that the prediction is compared with, `[B, C, ...]`."""
        return self.form.reference(self.latents)

    # ---------------------------------------------------------- for the session
    @property
    def undivided(self) -> str:
        """Why the network cannot run on part of this batch; empty if it can."""
        take = splitter(self.given.arguments, self.latents.shape[0])
        why = take if isinstance(take, str) else unsplit(self.form)
        return f"{type(self.network).__name__}: {why}" if why else ""

    def run(self) -> Tensor:
        """The network's prediction, `[B, C, ...]`."""
        if self._first is not None:
            return self._first
        self.ran = self._run(self.form)
        return self.ran[1]

    def run_rows(self, rows: Tensor) -> Tensor:
        """The prediction for some samples of the batch, `[R, C, ...]`."""
        take = splitter(self.given.arguments, self.latents.shape[0])
        assert not isinstance(take, str)
        args, kwargs = called(self.network, take(rows), self.given.placed)
        raw = self.given.original(*args, **kwargs)
        main, form = read_output(raw, self.latents.index_select(0, rows), self.name)
        forms = self.request.forms
        forms[self.key] = with_rows(forms.get(self.key, self.form), form, rows)
        return main

    def run_at(self, x: Tensor, timestep: float | None) -> Tensor:
        """The prediction for other latents, or at a timestep that the pipeline has used."""
        used = self.request.times.setdefault((self.name, self.site.branch), {})
        runner = TrialRunner(
            self.name, self.network, self.given, self.latents, self.form, used, self.request.time
        )
        return runner.run(x, timestep)

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
    def note_time(self) -> None:
        """Remember how the pipeline gave this timestep to its network, for trials at it later."""
        used = self.request.times.setdefault((self.name, self.site.branch), {})
        used[self.request.time] = copied(self.given.time)  # pipelines may write into it

    def build(self, output: Tensor) -> Any:
        """What the network's caller gets, with `output` as the prediction."""
        forms = self.request.forms
        if self.ran is None:
            return forms.get(self.key, self.form).rebuild(output)
        raw, main, form = self.ran
        forms[self.key] = form
        if form.rest is not None or form.others:
            self.request.count_bytes()
        return raw if output is main else form.rebuild(output)

    def _run(self, known: OutputForm | None) -> tuple[Any, Tensor, OutputForm]:
        raw = self.given.run()
        if known is not None and (again := known.same(raw)) is not None:
            return raw, again, known
        return raw, *self._read(raw, self.latents, self.name)
