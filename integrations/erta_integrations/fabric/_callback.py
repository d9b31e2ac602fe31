"""Policies on the pipeline that a LightningModule samples with during evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from erta_framework import Engine, Policy, Trace, attach
from erta_framework.attach import Attached
from erta_framework.errors import InputError

STAGES = ("validate", "test", "predict")


class PolicyCallback(Callback):
    """Attaches policies to a module's pipeline while it validates, tests or predicts.

    They are attached when an evaluation loop begins, also the one within `fit`, and detached when
    it ends or fails; training never sees them. At the end of the loop the module's loggers get
    `erta/<stage>/network_calls`, `erta/<stage>/reused_calls` and `erta/<stage>/speedup`, the branch
    calls answered for each network call made. With several data-parallel ranks these are the
    numbers of rank 0.

    Args:
        policies: As for `erta_framework.attach`.
        pipeline: Name of the module's attribute that holds the pipeline, or a dotted path to it.
        stages: In which loops to attach.
        prefix: What the names of the metrics begin with.
        options: Options of the policy and of the driver, as for `attach`.

    Raises:
        InputError: An unknown stage; when a loop begins, a module without this attribute.

    Example:
        >>> callback = PolicyCallback("skip_policy", pipeline="pipe", every=2)
        >>> Trainer(callbacks=[callback]).validate(module)  # doctest: +SKIP
    """

    def __init__(
        self,
        policies: str | Path | Policy | Engine | Sequence[Any],
        *,
        pipeline: str = "pipe",
        stages: Sequence[str] = STAGES,
        prefix: str = "erta",
        **options: Any,
    ) -> None:
        unknown = [stage for stage in stages if stage not in STAGES]
        if unknown or isinstance(stages, str):
            raise InputError(
                f"PolicyCallback(stages={stages!r}): give a list of {', '.join(STAGES)}"
            )
        self.policies = policies
        self.pipeline = pipeline
        self.stages = tuple(stages)
        self.prefix = prefix
        self.options = options
        self.traces: list[Trace] = []
        """Traces of the newest loop, one a request."""
        self._attached: Attached | None = None

    # ------------------------------------------------------------------ loops
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach."""
        self._start("validate", pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach."""
        self._start("test", pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach."""
        self._start("predict", pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach and log."""
        self._end("validate", trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach and log."""
        self._end("test", trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach and log."""
        self._end("predict", trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Detach."""
        self._detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Detach, if the loop ended in another way."""
        self._detach()

    # -------------------------------------------------------------- internals
    def _start(self, stage: str, module: LightningModule) -> None:
        self._detach()
        self.traces = []
        if stage in self.stages:
            attached = attach(find_pipeline(module, self.pipeline), self.policies, **self.options)
            self._attached = attached.__enter__()

    def _end(self, stage: str, trainer: Trainer) -> None:
        if self._attached is None:
            return
        self._detach()
        if not self.traces or trainer.sanity_checking:
            return
        metrics = {
            f"{self.prefix}/{stage}/{name}": value
            for name, value in sum_traces(self.traces).items()
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def _detach(self) -> None:
        if self._attached is not None:
            attached, self._attached = self._attached, None
            attached.detach()
            self.traces = list(attached.traces)


def sum_traces(traces: Sequence[Trace]) -> dict[str, float]:
    """Network calls made, branch calls reused, and branch calls for each network call.

    Example:
        >>> sum_traces([Trace(network_calls=4)])
        {'network_calls': 4.0, 'reused_calls': 0.0, 'speedup': 0.0}
    """
    made = sum(trace.network_calls for trace in traces)
    answered = sum(1 for trace in traces for _ in trace.calls())
    reused = sum(trace.reused_calls for trace in traces)
    return {
        "network_calls": float(made),
        "reused_calls": float(reused),
        "speedup": answered / made if made else 0.0,
    }


def find_pipeline(module: LightningModule, path: str) -> Any:
    """The pipeline in an attribute of a module.

    Raises:
        InputError: There is none; names the module and the attribute.
    """
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
        if found is None:
            raise InputError(
                f"{type(module).__name__} has no {path!r} to attach policies to; give "
                "PolicyCallback(..., pipeline=...) the name of the attribute with the pipeline"
            )
    return found
