"""Runs contenders on a model that has no pipeline, in the own loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from erta_bench.comparison._runner import Runner
from erta_bench.setting import Setting, list_solvers
from erta_framework.errors import CapabilityError, InputError
from erta_framework.plugins import Policy
from erta_framework.sampling import (
    Callback,
    Guidance,
    NoGuidance,
    Sampler,
    Solver,
    TextModel,
    TextSampler,
)
from erta_framework.session import Seam
from erta_integrations.diffusers.bundled import InPipeline, PipelineModel

OWN_LOOP = "the own loop"
"""Stands where a record names the pipeline."""


def is_in_own_loop(model: TextModel) -> bool:
    """Whether a model is sampled by the own loop: it says its solvers, and no pipeline."""
    return bool(list_solvers(model)) and not hasattr(model, "pipeline_model")


def make_own_runner(setting: Setting, scheduler: str = "") -> OwnRunner:
    """The runner of a setting whose model is sampled by the own loop.

    Raises:
        InputError: The model has no solver of that name.
    """
    solvers = list_solvers(setting.model)
    if scheduler and scheduler not in solvers:
        name = getattr(setting.model, "name", type(setting.model).__name__)
        raise InputError(
            f"scheduler {scheduler!r} is unknown to {name}; give {' or '.join(solvers)}"
        )
    return OwnRunner(
        cast(InPipeline, setting.model),  # never put into one
        steps=setting.steps,
        scheduler=scheduler or next(iter(solvers)),
        batch_size=setting.batch_size,
        guidance=setting.guidance,
        accelerator=setting.accelerator,
    )


@dataclass(frozen=True, slots=True)
class OwnRunner(Runner):
    """Runs contenders on one model in the own loop.

    Rows that need a pipeline are refused: other projects' caches, and those that leave out a block
    stack. The scale of classifier-free guidance is not used.

    Attributes:
        guidance: How branches combine.
    """

    guidance: Guidance = field(default_factory=NoGuidance)

    @property
    def through(self) -> PipelineModel:
        """The own loop in the words of a pipeline, which rows and records ask for."""
        named = list_solvers(self._text_model)
        return PipelineModel(
            name=getattr(self.model, "name", type(self.model).__name__),
            kind=type(self.model),
            pipeline=OWN_LOOP,
            network="",
            settings={},
            schedulers={name: partial(named.__getitem__, name) for name in named},
            grid="its own",
            samples=lambda output: cast(Tensor, output),
            solver=named[self.scheduler],
            shown=show_nothing,
        )

    @property
    def branches(self) -> int:
        """Guidance branches of a step."""
        return len(self.guidance.names)

    @property
    def network(self) -> nn.Module:
        """The model, which is the network."""
        return self.model

    def make_sampler(
        self,
        policies: Sequence[Policy] = (),
        callbacks: Sequence[Callback] = (),
        *,
        scheduler: str = "",
        **options: Any,
    ) -> TextSampler:
        """A sampler of the own loop with what all contenders share.

        Raises:
            CapabilityError: The row needs a pipeline.
        """
        where = f"{self.through.name} is sampled by {OWN_LOOP}"
        if options.pop("watched_by", None) is not None:
            raise CapabilityError(
                f"caches of other projects attach to a pipeline, and {where}; run a model that "
                "has a pipeline, such as shapes-wan"
            )
        if Seam(options.pop("seam", Seam.LATENT)) is not Seam.LATENT:
            raise CapabilityError(
                f"the row leaves out a block stack inside a pipeline, and {where}; run a model "
                "that has a pipeline, such as shapes-wan"
            )
        return self._make_loop(self._find_solver(scheduler), policies, callbacks, **options)

    def list_sigmas(self) -> tuple[float, ...]:
        """Sigmas of the full run, down to 0."""
        return self._find_solver("").schedule(self.steps).sigmas

    def _sample_on_sigmas(
        self, solver: str, sigmas: tuple[float, ...], callbacks: Sequence[Callback]
    ) -> TextSampler:
        if solver not in self.through.schedulers:
            raise CapabilityError(
                f"{self.through.name} has no solver {solver!r}; give "
                f"{' or '.join(self.through.schedulers)}"
            )
        chosen = self._find_solver(solver)
        return self._make_loop(chosen, callbacks=callbacks, sigmas=(*sigmas, 0.0))

    @property
    def _text_model(self) -> TextModel:
        return cast(TextModel, self.model)

    def _find_solver(self, name: str) -> Solver:
        solver: Solver = self.through.make_scheduler(name or self.scheduler)
        return solver

    def _make_loop(
        self,
        solver: Solver,
        policies: Sequence[Policy] = (),
        callbacks: Sequence[Callback] = (),
        **options: Any,
    ) -> Sampler:
        shared: dict[str, Any] = {
            "num_steps": self.steps,
            "batch_size": self.batch_size,
            "accelerator": self.accelerator,
        }
        return Sampler(
            policies, callbacks, solver=solver, guidance=self.guidance, **{**shared, **options}
        )


def show_nothing(samples: Tensor, prompts: Sequence[str]) -> Mapping[str, float]:
    """Nothing: prompts of unconditional networks say nothing that a sample could show."""
    return {}
