"""Sensitivities at noised clean latents, as the paper measures them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from erta_framework import FlowEuler, Profile, Schedule, SessionInfo
from erta_framework.errors import InputError
from erta_framework.sampling import Branch, Solver, TextModel, call_denoiser, sample_noise
from erta_policies.sencache._sensitivity import (
    SensitivitySums,
    latent_sensitivity,
    time_sensitivity,
)

NOISED = "noised clean latents"


@torch.no_grad()
def measure_noised(
    model: TextModel,
    clean: Tensor,
    prompts: Sequence[str],
    *,
    solver: Solver | None = None,
    num_steps: int = 50,
    seed: int = 0,
) -> Profile:
    """Measure the sensitivities of a model at clean latents with noise mixed in.

    At each step of the schedule the clean latents are mixed with new noise to x, and the network
    runs three times under the prompt alone: f(x, t), f(x', t) with x' one step of the solver from
    x, and f(x, t_next), where the timestep after the last step is that of sigma 0. Then
    Jx = ||f(x', t) - f(x, t)|| / ||x' - x|| and Jt = ||f(x, t_next) - f(x, t)|| / |t_next - t|.

    Source: the calibration of SenCache, arXiv 2602.24208, which by notes on the paper takes eight
    videos. A plain step for x' is ours: a published script calls a multistep solver on samples that
    do not follow one another.

    Args:
        model: Encodes the prompts and predicts.
        clean: Clean latents, `[N, C, ...]`, such as encoded videos.
        prompts: The description of each.
        solver: Gives the schedule, the noising and the step; `FlowEuler()` by default.
        num_steps: Steps of the schedule at which the sensitivities are tabulated.
        seed: The noise at step i of sample k is drawn from `seed + k + N * i`.

    Returns:
        A profile for `SenCache`; of the same kind as that of a `SensitivityProfiler`, but not to be
        merged with one.

    Raises:
        InputError: There is not one prompt a latent.

    Example:
        >>> from erta_framework.testing import AffineFlow
        >>> flow = AffineFlow((1, 2, 2))
        >>> measure_noised(flow, torch.zeros(2, 1, 2, 2), ["a", "b"], num_steps=4).samples
        2
    """
    texts = list(prompts)
    if clean.ndim < 2 or not len(clean) == len(texts) > 0:
        raise InputError(
            f"got clean latents {tuple(clean.shape)} and {len(texts)} prompts; give [N, C, ...] "
            "and the description of each of the N"
        )
    integrator: Solver = solver if solver is not None else FlowEuler()
    schedule = integrator.schedule(num_steps)
    branch = Branch("cond", model.encode(texts).to(clean.device))
    sums = SensitivitySums.empty(schedule.num_steps)
    for index in range(schedule.num_steps):
        seeds = [seed + k + len(texts) * index for k in range(len(texts))]
        noise = sample_noise(clean.shape[1:], seeds).to(clean)
        interval = schedule.interval(index)
        x = integrator.noised(clean, noise, interval.start)
        here = call_denoiser(model, x, interval.time, branch)
        moved, _ = integrator.step(x, here, interval, None)
        there = call_denoiser(model, moved, interval.time, branch)
        later = call_denoiser(model, x, interval.end_time, branch)
        jx = latent_sensitivity(there - here, moved - x)
        jt = time_sensitivity(later - here, interval.end_time - interval.time)
        sums.add(index, interval.time, jx, jt)
    made = sums.profile(describe_run(model, clean, integrator, schedule), NOISED, len(texts))
    return made.with_provenance(
        prompts=hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16],
        seeds=f"{seed}..{seed + len(texts) * schedule.num_steps - 1}",
        network_calls=str(3 * schedule.num_steps),
        torch=torch.__version__,
    )


def describe_run(
    model: TextModel, clean: Tensor, solver: Solver, schedule: Schedule
) -> SessionInfo:
    """The run that these latents stand for, for the fingerprint of the profile."""
    return SessionInfo(
        sigmas=schedule.sigmas,
        times=schedule.times[:-1],
        shape=tuple(clean.shape),
        dtype=clean.dtype,
        device=clean.device,
        model=dict(model.fingerprint()),
        solver=repr(solver),
        prediction=solver.prediction,
        time_of=solver.time_of,
    )
