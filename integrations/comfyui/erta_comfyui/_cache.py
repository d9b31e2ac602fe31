"""`cache_model`: policies on a model of ComfyUI, by the wrappers that its patcher documents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from erta_framework import Trace
from erta_framework.errors import CapabilityError, ConflictError
from erta_framework.plugins import Engine

from ._run import SamplerRun

log = logging.getLogger(__name__)
KEY = "erta"
KEEP_TRACES = 64
"""Runs whose traces a cache keeps; ComfyUI runs for days."""


class SamplerCache:
    """Policies at the sampler: one session for each run of it.

    It wraps two functions of ComfyUI. `SAMPLER_SAMPLE` is one run of a sampler. `CALC_COND_BATCH`
    evaluates all conditionings of a step at once, gives a denoised prediction for each, and is told
    which of them is which. At a reused step it does not run, so the network does not either.

    Args:
        engine: The policies.

    Attributes:
        traces: What the newest runs did, oldest first.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.traces: list[Trace] = []
        self._run: SamplerRun | None = None

    def wrap_sampler(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """One run of a sampler: everything that is remembered is dropped at its end.

        Raises:
            ConflictError: A sampler runs inside another one on the same model.
        """
        if self._run is not None:
            raise ConflictError(
                f"a sampler runs inside {self._run.sampler} on a model with cached steps; give "
                "the inner one a model without the node ErtaCache"
            )
        run = self._run = SamplerRun(self.engine, name_sampler(executor))
        try:
            with run:
                samples = executor(*args, **kwargs)
                run.finish(samples)
        finally:
            self._run = None
            self._log(run)
        return samples

    def wrap_conditionings(
        self,
        executor: Callable[..., Sequence[Tensor]],
        model: Any,
        conds: Sequence[Any],
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> Sequence[Tensor]:
        """The denoised prediction of each conditioning, from the network or from the policies."""
        if self._run is None:  # outside of a sampler, such as a node that measures a model
            return executor(model, conds, x, timestep, model_options)
        return self._run.evaluate(executor, model, conds, x, timestep, model_options)

    def _log(self, run: SamplerRun) -> None:
        if run.trace is None:
            return
        self.traces = [*self.traces, run.trace][-KEEP_TRACES:]
        log.info("%s: %s", run.sampler, run.trace.summary())
        if self.engine.policies and not run.trace.reused_calls:
            log.warning("%s: no policy reused a step, so nothing was saved", run.sampler)


def cache_model(model: Any, engine: Engine) -> tuple[Any, SamplerCache]:
    """A copy of a model of ComfyUI with policies on it, and what follows its runs.

    Args:
        model: A `ModelPatcher`.
        engine: The policies.

    Raises:
        CapabilityError: ComfyUI is older than wrappers of samplers.
        ConflictError: The model has policies on it already.

    Example:
        >>> cached, cache = cache_model(model, Engine([SkipPolicy(evenly=12)]))  # doctest: +SKIP
    """
    try:
        from comfy.patcher_extension import WrappersMP
    except ImportError as error:
        raise CapabilityError(
            "this ComfyUI has no comfy.patcher_extension, through which samplers are wrapped; "
            "update it to a version of 2025 or later"
        ) from error
    held = model.model_options.get("transformer_options", {})
    if KEY in held:
        raise ConflictError(
            "this model has cached steps already; put all policies into one node ErtaCache"
        )
    cached, cache = model.clone(), SamplerCache(engine)
    options = cached.model_options
    options["transformer_options"] = {**options.get("transformer_options", {}), KEY: True}
    cached.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, cache.wrap_sampler)
    cached.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, cache.wrap_conditionings)
    return cached, cache


def name_sampler(executor: Any) -> str:
    """The name of the sampler that an executor runs."""
    sampler = getattr(executor, "class_obj", None)
    function = getattr(sampler, "sampler_function", None)
    return str(getattr(function, "__name__", type(sampler).__name__)).removeprefix("sample_")
