"""The two loops of the ablation through a pipeline, as settings of one grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from erta_bench.setting import Setting
from erta_framework.errors import InputError
from erta_framework.plugins import Policy
from erta_framework.sampling import CFG, Callback, FlowEuler, Sampler, Solver, TextSampler
from erta_integrations.diffusers.bundled import PipelineSampler
from erta_integrations.shapes_wan.pipeline import WAN, grid

OWN_LOOP = "flow_euler"
"""The scheduler whose steps the own loop can do too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSetting(Setting):
    """A setting whose samplers run `WanPipeline`.

    Attributes:
        scheduler: `"flow_euler"` or `"unipc"`.
    """

    scheduler: str = "flow_euler"

    def make_sampler(
        self,
        policies: Iterable[Policy] = (),
        steps: int | None = None,
        solver: Solver | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> TextSampler:
        """A pipeline with these policies.

        Raises:
            CapabilityError: The scheduler cannot serve a policy.
            InputError: A solver was given, or the guidance is not CFG.
        """
        if solver not in (None, FlowEuler()) or not isinstance(self.guidance, CFG):
            raise InputError(
                f"solver {solver!r} and guidance {self.guidance!r}: a pipeline has its scheduler "
                "and classifier-free guidance; give no solver, and guidance=CFG(...)"
            )
        return PipelineSampler(
            tuple(policies),
            callbacks,
            through=WAN,
            scheduler=self.scheduler,
            guidance_scale=self.guidance.scale,
            num_steps=steps or self.steps,
            batch_size=self.batch_size,
            accelerator=self.accelerator,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SameGridSetting(Setting):
    """The own loop on the grid of the pipeline's scheduler."""

    def make_sampler(
        self,
        policies: Iterable[Policy] = (),
        steps: int | None = None,
        solver: Solver | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> TextSampler:
        """The own loop with these policies."""
        return Sampler(
            tuple(policies),
            callbacks,
            solver=solver,
            guidance=self.guidance,
            sigmas=grid(OWN_LOOP, steps or self.steps),
            batch_size=self.batch_size,
            accelerator=self.accelerator,
        )
