"""One method on one pipeline: what it skipped, counted inside the network, and what came out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from erta_bench.core.report import Row
from erta_bench.other_caches import Target
from erta_bench.other_caches.work import Work, watched
from erta_bench.pipelines.methods import METHODS
from tiny_pipelines import FAMILIES, VIDEO, Family

LONGEST = 200
"""Characters of an error that are kept."""
ONE_SAMPLE = "the pipeline takes one sample a request"


def networks_of(pipe: Any, family: Family) -> tuple[nn.Module, ...]:
    """The denoising networks."""
    names = dict.fromkeys(path.partition(".")[0] for path in family.inner)
    return tuple(getattr(pipe, name) for name in names)


def layout(name: str) -> str:
    """Order of the latents' dimensions."""
    if name not in VIDEO:
        return "BCHW"
    return "BFCHW" if name.startswith("cogvideox") else "BCFHW"


def measured(name: str, method: str, steps: int) -> Row:
    """The row of one method on one family.

    Changes classes and logging, as some methods do: for a process of its own.

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
        return row(name, method, "no-effect", ONE_SAMPLE)
    pipe = family.build()
    full = watched(networks_of(pipe, family))
    expected = family.run(pipe, steps, batch)
    pipe = family.build()
    networks = networks_of(pipe, family)
    work = watched(networks)
    target = Target(pipe, networks, layout(name), batched=full.batch > batch)
    try:
        said = METHODS[method].enable(target, steps)
        output = family.run(pipe, steps, batch)
    except Exception as error:
        return row(name, method, "error", first_line(error), full_calls=full.calls)
    status, detail = judged(expected, output, full, work)
    return row(
        name,
        method,
        status,
        remark(detail, said),
        real_calls=work.calls,
        full_calls=full.calls,
        work=work.elements / full.elements,
    )


def remark(detail: str, said: str | Callable[[], str]) -> str:
    """What is said of a run: why it did nothing, in its own words if it has some, or by hand."""
    if callable(said):
        return (detail and said()) or detail
    return detail or said


def judged(expected: Tensor, output: Tensor, full: Work, work: Work) -> tuple[str, str]:
    """Status and detail of a run that ended."""
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


def row(
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


def first_line(error: BaseException) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
