"""Prompts, seeds and latents of a sampler: what fits, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from torch import Tensor

from erta_framework.errors import CapabilityError, InputError
from erta_framework.sampling._text_model import TextModel, sample_noise
from erta_framework.sampling.solvers import Solver, suggest_solver


def require_prediction(model: TextModel, solver: Solver) -> None:
    """Refuse a model whose prediction, where it names one, the solver does not integrate.

    Raises:
        CapabilityError: Names both, and a solver that fits.
    """
    predicted = getattr(model, "prediction", None)
    if predicted is not None and predicted not in solver.capabilities:
        raise CapabilityError(
            f"{type(model).__name__} predicts {predicted}, {solver!r} offers "
            f"{', '.join(sorted(solver.capabilities))}; use a solver that offers "
            f"{predicted}, such as {suggest_solver(predicted)}"
        )


def as_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    """Prompts as a tuple.

    Raises:
        InputError: One string, an empty list, or an entry that is no string.
    """
    names = tuple(prompts)
    if isinstance(prompts, str) or not names:
        raise InputError(f"prompts is {prompts!r}; give a list with at least one prompt")
    strange = [name for name in names if not isinstance(name, str)]
    if strange:
        raise InputError(f"prompts holds {strange[0]!r}; every prompt is a string")
    return names


def as_seeds(seeds: Sequence[int] | None, seed: int, count: int) -> tuple[int, ...]:
    """A seed for each of `count` prompts: the given ones, or those from `seed` on.

    Raises:
        InputError: Their number is another.
    """
    numbers = tuple(seeds) if seeds is not None else tuple(seed + k for k in range(count))
    if len(numbers) != count:
        raise InputError(f"{len(numbers)} seeds for {count} prompts; give one a prompt")
    return numbers


def make_noise(model: TextModel, seeds: Sequence[int], latents: Tensor | None) -> Tensor:
    """The given latents, or noise of these seeds, `[N, C, ...]`.

    Raises:
        InputError: The latents have another shape, or are not finite.
    """
    if latents is None:
        return sample_noise(model.latent_shape, seeds)
    check_latents("latents", latents, (len(seeds), *model.latent_shape))
    return latents


def check_start(first: int, num_steps: int, given: bool) -> None:
    """Refuse a first step that is outside the schedule, or a later one that nothing starts from.

    Args:
        first: Index of the first step.
        num_steps: Steps of the schedule.
        given: Whether there are samples or latents to start from.

    Raises:
        InputError: Names the step and the remedy.
    """
    if not 0 <= first < num_steps:
        raise InputError(f"first is {first}, outside the {num_steps} steps")
    if first > 0 and not given:
        raise InputError(
            f"first is {first}, but there is nothing to start from there; give init (clean "
            "samples) or latents (already noised)"
        )


def check_latents(name: str, latents: Tensor, shape: Sequence[int]) -> None:
    """Refuse latents of another shape, or with NaN or infinite values.

    Raises:
        InputError: Names the argument and both values.
    """
    if tuple(latents.shape) != tuple(shape):
        raise InputError(f"{name} has shape {tuple(latents.shape)}, expected {tuple(shape)}")
    bad = [
        k for k, good in enumerate(latents.isfinite().flatten(1).all(dim=1).tolist()) if not good
    ]
    if bad:
        raise InputError(
            f"{name} of sample {', '.join(map(str, islice(bad, 5)))} is NaN or infinite"
        )


def repeat_batches(
    prompts: Sequence[str], seed: int, batch: int, copies: int
) -> tuple[Sequence[str], list[int]]:
    """Prompts and their seeds with every batch repeated as a whole, for profilers that ask so.

    Example:
        >>> repeat_batches(["a", "b", "c"], seed=5, batch=2, copies=2)
        (['a', 'b', 'a', 'b', 'c', 'c'], [5, 6, 5, 6, 7, 7])
    """
    if copies == 1 or isinstance(prompts, str):
        return prompts, [seed + k for k in range(len(prompts))]
    places = [
        place
        for begin in range(0, len(prompts), batch)
        for place in [*range(begin, min(begin + batch, len(prompts)))] * copies
    ]
    return [prompts[place] for place in places], [seed + place for place in places]
