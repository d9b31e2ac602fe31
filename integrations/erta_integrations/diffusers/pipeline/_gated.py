"""The module seam of a pipeline: the gates on its networks, for as long as it is attached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from erta_framework import Engine, Seam, Site
from erta_framework.errors import CapabilityError
from erta_framework.modules import ModuleRun, ModuleSeam, Owner, PlaceFinder
from erta_framework.session import TrialPlan
from erta_integrations.diffusers.pipeline._request import PipelineRequest


def make_module_seam(
    engine: Engine,
    networks: Mapping[str, nn.Module],
    seam: Seam,
    memory: str | int | None = None,
) -> ModuleSeam | None:
    """The gates on the places that policies own in the networks of a pipeline; None without any.

    Args:
        engine: The policies.
        networks: The driven networks, by component name.
        seam: What a reused step leaves out.
        memory: The most bytes that the places of a request may keep; None sets no bound.

    Raises:
        CapabilityError: A policy selects what a network does not have, or whole blocks where the
            trunk has them.
        ConflictError: Two policies own the same place.
    """
    if not engine.selecting:
        return None
    owners = {
        name: engine.own_places(name, network, PlaceFinder()) for name, network in networks.items()
    }
    if seam is Seam.TRUNK:
        for name, found in owners.items():
            refuse_blocks(name, found)
    return ModuleSeam(networks, owners, memory)


def refuse_blocks(name: str, owners: tuple[Owner, ...]) -> None:
    """Refuse places that are whole blocks, which the trunk answers for.

    Raises:
        CapabilityError: Names the policy and the place.
    """
    for owner in owners:
        for place in owner.places:
            if place.kind in ("block", "span"):
                raise CapabilityError(
                    f"{owner.name} selects {place} of {name}, but at the trunk seam the blocks are "
                    "answered for as one; attach with seam='latent', or select attention and MLPs"
                )


class GateRunner:
    """Runs the network of one call through the gates of its pipeline, where there are some.

    Args:
        seam: The gates.
        request: The request, which has a session.
        name: Component name of the network.
        site: Network and branch.
        latents: The latents of the call, `[B, C, ...]`.
    """

    __slots__ = ("_run", "_where")

    def __init__(
        self, seam: ModuleSeam, request: PipelineRequest, name: str, site: Site, latents: Tensor
    ) -> None:
        assert request.session is not None
        if request.modules is None:
            request.modules = ModuleRun(seam, request.session)
        self._run: ModuleRun = request.modules
        self._where = (name, site, latents)

    def run(self, network: Callable[[], Any]) -> Any:
        """Run it on the whole batch."""
        return self._run.run(*self._where, network)

    def run_rows(self, rows: Tensor, network: Callable[[], Any]) -> Any:
        """Run it on the samples at some places of the batch."""
        return self._run.run_rows(*self._where, rows, network)

    def run_planned(self, plan: TrialPlan, network: Callable[[], Any]) -> Any:
        """Run it with another plan for the places inside; nothing is kept."""
        return self._run.run_planned(*self._where, plan, network)

    @property
    def undivided(self) -> str:
        """Why it cannot run on some samples with what is kept; empty if it can."""
        _, site, latents = self._where
        return self._run.find_undivided(site, latents.shape[0])
