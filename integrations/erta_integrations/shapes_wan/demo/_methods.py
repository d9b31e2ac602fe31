"""The methods that `erta demo` compares, and the loop that samples them.

A model may offer `pipeline_sampler(policies, callbacks, *, scheduler, num_steps, batch_size)`,
which gives a `TextSampler` that runs it through an unmodified pipeline. The demo then samples with
that, and otherwise with the own loop; the report says which.
"""

from __future__ import annotations

from collections.abc import Sequence

from erta_framework.config import build_policies
from erta_framework.plugins import Policy
from erta_framework.report import Method
from erta_framework.sampling import Callback, Sampler, TextModel, TextSampler
from erta_framework.sampling.solvers import FlowAdamsBashforth2, Solver

ERTACACHE = "ERTACache"
"""Name of the subject where no policy is named."""


def runs_in_pipeline(model: TextModel) -> bool:
    """Whether the model offers to be sampled through a pipeline."""
    return getattr(model, "pipeline_sampler", None) is not None


def make_sampler(
    model: TextModel,
    policies: Sequence[Policy],
    callbacks: Sequence[Callback],
    *,
    steps: int,
    batch_size: int = 16,
    solver: Solver | None = None,
    scheduler: str | None = None,
    accelerator: str = "auto",
) -> TextSampler:
    """The pipeline's sampler where the model offers one, else that of the own loop."""
    offer = getattr(model, "pipeline_sampler", None)
    if offer is None:
        return Sampler(
            policies,
            callbacks,
            solver=solver,
            num_steps=steps,
            batch_size=batch_size,
            accelerator=accelerator,
        )
    made: TextSampler = offer(
        policies,
        callbacks,
        scheduler=scheduler,
        num_steps=steps,
        batch_size=batch_size,
        accelerator=accelerator,
    )
    return made


def list_methods(
    name: str, policies: tuple[Policy, ...], number: int, steps: int, *, pipeline: bool
) -> list[Method]:
    """The full run and four ways to spend the same number of network calls; the subject last.

    Args:
        name: Of the subject.
        policies: Of the subject.
        number: Network calls of each branch that it makes.
        steps: Steps of the full run.
        pipeline: Whether the model's own pipeline samples.
    """
    uniform = build_policies([{"skip_policy": {"evenly": number}}])
    return [
        Method(
            name="Full run",
            detail=f"{steps} steps, the network runs in every one. PSNR and SSIM of the "
            "others are measured against its samples.",
            steps=steps,
        ),
        Method(
            name="Fewer steps",
            detail=f"{number} plain steps on the same kind of schedule, nothing is cached.",
            steps=number,
        ),
        make_second_order(number, pipeline),
        Method(
            name="Uniform reuse",
            detail=f"{steps} steps; {number} evenly spread ones run the network, the others "
            "reuse the newest residual.",
            steps=steps,
            policies=uniform,
        ),
        Method(
            name=name,
            detail=f"{steps} steps; calibration decides which {number} run the network, and "
            "a line fitted in calibration corrects what is reused (arXiv 2508.21091)."
            if name == ERTACACHE
            else "; ".join(map(repr, policies)),
            steps=steps,
            policies=policies,
            subject=True,
        ),
    ]


def make_second_order(number: int, pipeline: bool) -> Method:
    """As many plain steps of a second-order solver: the pipeline's, or that of the own loop."""
    same = "nothing is cached: a second-order plain solver at the same number of network calls."
    if pipeline:
        return Method(
            name="Fewer steps, UniPC",
            detail=f"{number} plain steps of UniPC, {same}",
            steps=number,
            scheduler="unipc",
        )
    return Method(
        name="Fewer steps, AB2",
        detail=f"{number} plain steps of second-order Adams-Bashforth, {same}",
        steps=number,
        solver=FlowAdamsBashforth2(),
    )
