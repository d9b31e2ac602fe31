"""The statistics of a calibration run, which `FittedTable` reads."""

from __future__ import annotations

import torch
from torch import Tensor

from erta_framework import Profile
from erta_framework.calibration import Solution
from erta_policies.fitted._paired_run import PairedRun
from erta_policies.fitted._table import make_judged_statistic


def describe_run(run: PairedRun, start: Profile | None) -> dict[str, Tensor]:
    """The statistics of a finished run, as sums over its samples.

    Args:
        run: The run.
        start: The profile whose weights were used and judged; None if the run fitted its own.
    """
    samples, sums, depths = run.rows, run.sums.double().cpu(), run.depths
    if start is not None:
        # in shares, so that profiles of all batches add up to the weights that were judged
        sums = start.statistics["moments"] / start.samples * samples
        depths = start.statistics["depths"] / start.samples
    settings = run.settings.row()
    flags = torch.zeros(len(depths)).double()
    flags[run.computed] = samples
    exact = {}
    if run.exact is not None:
        assert run.solution is not None
        exact = {"solution": describe_solution(run, run.solution)}
    return {
        **exact,
        "moments": sums,
        "computed": flags,
        "depths": samples * depths,
        "errors": run.errors.double().cpu(),
        # with their squares a sum shows whether all merged profiles had the same
        "settings": samples * torch.stack([settings, settings * settings]),
        "sigmas": samples * torch.tensor(run.nodes, dtype=torch.float64),
        "elements": torch.tensor(float(samples * run.elements)).double(),
        "batches": torch.ones(()).double(),
        "judged": make_judged_statistic(None if start is None else sums),
    }


def describe_solution(run: PairedRun, solution: Solution) -> Tensor:
    """The statistic `solution`, `[3]`: error of the full run and of the solution, substeps."""
    own = solution.error * run.rows * run.elements
    numbers = [float(run.full_error), own, float(run.rows * solution.substeps)]
    return torch.tensor(numbers, dtype=torch.float64)
