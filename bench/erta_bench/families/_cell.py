"""One method on one pipeline: what it skipped, counted inside the network, and what came out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from erta_bench.core import Row, describe_error
from erta_bench.families._methods import METHODS
from erta_bench.other_caches import LayerWork, Target, watch_layers
from tiny_pipelines import FAMILIES, Family

LONGEST = 200
"""Characters of an error that are kept."""
ONE_SAMPLE = "the pipeline takes one sample a request"


def find_networks(pipe: Any, family: Family) -> tuple[nn.Module, ...]:
    """The denoising networks."""
    names = dict.fromkeys(path.partition(".")[0] for path in family.inner)
    return tuple(getattr(pipe, name) for name in names)


def measure_cell(name: str, method: str, steps: int) -> Row:
    """The row of one method on one family.

    Run it in a process of its own: it silences logging, and some methods change classes.

    Args:
        name: Name of a family.
        method: Name of a method.
        steps: Steps of both runs.
    """
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    family, batch = FAMILIES[name], METHODS[method].batch
    if batch > 1 and not family.batches:
        return make_row(name, method, "no-effect", ONE_SAMPLE)
    pipe = family.build()
    full = watch_layers(find_networks(pipe, family))
    expected = family.run(pipe, steps, batch)
    pipe = family.build()
    networks = find_networks(pipe, family)
    work = watch_layers(networks)
    target = Target(pipe, networks, family.layout, batched=full.batch > batch)
    try:
        said = METHODS[method].enable(target, steps)
        output = family.run(pipe, steps, batch)
    except Exception as error:
        return make_row(
            name,
            method,
            "error",
            describe_error(error, LONGEST, LONGEST - 3),
            full_calls=full.calls,
        )
    status, detail = judge_run(expected, output, full, work)
    return make_row(
        name,
        method,
        status,
        choose_detail(detail, said),
        real_calls=work.calls,
        full_calls=full.calls,
        work=work.elements / full.elements,
    )


def choose_detail(detail: str, said: str | Callable[[], str]) -> str:
    """The detail of a row: why nothing was skipped, or what a user has to add by hand.

    Args:
        detail: Why a run had no effect; empty where it had one.
        said: What the method said, or a function that asks it after the run.
    """
    if callable(said):
        return (detail and said()) or detail
    return detail or said


def judge_run(
    expected: Tensor, output: Tensor, full: LayerWork, work: LayerWork
) -> tuple[str, str]:
    """Status and detail of a run that raised nothing.

    Args:
        expected: Latents of the run without a cache.
        output: Latents of the run with it.
        full: What the layers of the first computed.
        work: What those of the second computed.
    """
    same = torch.equal(expected, output)
    skipped = work.elements < full.elements
    if not output.isfinite().all():
        return "error", "the output is not finite"
    if skipped and not same:
        return "works", ""
    if same:
        return "no-effect", "skipped layers, but the output is identical" if skipped else (
            "every layer ran and the output is identical"
        )
    return "no-effect", "every layer ran, yet the output differs"


def make_row(
    family: str,
    method: str,
    status: str,
    detail: str,
    *,
    real_calls: int | None = None,
    full_calls: int | None = None,
    work: float | None = None,
) -> Row:
    """One flat record."""
    return {
        "family": family,
        "method": method,
        "status": status,
        "real_calls": real_calls,
        "full_calls": full_calls,
        "work": work,
        "detail": detail,
    }
