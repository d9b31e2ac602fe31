"""Policies on the pipeline that a LightningModule samples with during evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from erta_framework import Engine, Policy, Trace, attach
from erta_framework.attach import Attached
from erta_framework.errors import InputError

STAGES = ("validate", "test", "predict")


class MetricLogger(Protocol):
    """What is used of a logger."""

    def log_metrics(self, metrics: dict[str, float], step: int | None) -> None:
        """Log numbers by name."""
        ...


class PolicyCallback(Callback):
    """Attaches policies to a module's pipeline while it validates, tests or predicts.

    They are attached when an evaluation loop begins, also the one within `fit`, and detached when
    it ends or fails; training never sees them. At the end of the loop the module's loggers and
    `trainer.callback_metrics` get `erta/<stage>/network_calls`, `erta/<stage>/reused_calls` and
    `erta/<stage>/speedup`, the branch calls answered for each network call made. With several
    data-parallel ranks these are the numbers of rank 0.

    Args:
        policies: As for `erta_framework.attach`; without any, they are chosen.
        pipeline: Name of the module's attribute that holds the pipeline, or a dotted path to it.
        stages: In which loops to attach.
        prefix: What the names of the metrics begin with.
        options: Options of the policy and of the driver, as for `attach`.

    Raises:
        InputError: An unknown stage; when a loop begins, a module without this attribute.

    Warns:
        UnusedWarning: At the end of a loop, if nothing was reused although policies were asked to.

    Example:
        >>> callback = PolicyCallback("skip_policy", pipeline="pipe", every=2)
        >>> Trainer(callbacks=[callback]).validate(module)  # doctest: +SKIP
    """

    def __init__(
        self,
        policies: str | Path | Policy | Engine | Sequence[Any] | None = None,
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
        attached = self._attached
        if attached is None:
            return
        self._detach()
        if not self.traces or trainer.sanity_checking:
            return
        metrics = name_metrics(self.traces, f"{self.prefix}/{stage}")
        # a module may not log any more once a loop has ended, and never while it predicts
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in metrics.items()})
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        attached.__exit__(None, None, None)  # says what was never used

    def _detach(self) -> None:
        if self._attached is not None:
            attached, self._attached = self._attached, None
            attached.detach()
            self.traces = list(attached.traces)


def log_traces(
    logger: MetricLogger, traces: Sequence[Trace], *, prefix: str = "erta", step: int | None = None
) -> None:
    """Give a logger of Lightning what requests cost, without a Trainer: TensorBoard, W&B, CSV.

    Args:
        logger: Anything with `log_metrics(metrics, step)`, as Lightning's and Fabric's loggers.
        traces: One a request, such as `run.traces`.
        prefix: What the names of the metrics begin with.
        step: The step that they are logged at.

    Example:
        >>> log_traces(TensorBoardLogger("runs"), run.traces)  # doctest: +SKIP
    """
    logger.log_metrics(name_metrics(traces, prefix), step)


def name_metrics(traces: Sequence[Trace], prefix: str) -> dict[str, float]:
    """What requests cost, under names that begin with `prefix`."""
    return {f"{prefix}/{name}": value for name, value in sum_traces(traces).items()}


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
