"""Which modules rest in which steps, by what that costs in error and saves in work."""

from __future__ import annotations

from collections.abc import Sequence

from erta_framework.errors import BudgetError


def choose_resting(
    errors: Sequence[Sequence[float]], shares: Sequence[float], work: float, who: str = "l2c"
) -> list[set[int]]:
    """Choose greedily which modules rest in every second step, until the work is left.

    The pairs of a step and a module are taken by their error for each part of work that they save,
    the smallest first. One that would save more than is still needed is taken as well, so the work
    is at most what was asked for. Then the pairs that turned out to be unneeded are given back, the
    worst first.

    Args:
        errors: What a network call is off where one module alone rests, `[T][P]`; of odd steps.
        shares: What each module costs as a share of a network call, `[P]`.
        work: Most work of a run, in network calls.
        who: The policy, for messages.

    Returns:
        For each step the places of the modules that rest, `[T]`.

    Raises:
        BudgetError: So little work is not possible.

    Example:
        >>> choose_resting([[0, 0], [0.1, 0.9], [0, 0], [0.2, 0.4]], [0.3, 0.3], work=3.4)
        [set(), {0}, set(), {0}]
    """
    steps = range(1, len(errors), 2)
    saved, needed = 0.0, len(errors) - work - 1e-9
    pairs = [(k, place) for k in steps for place, share in enumerate(shares) if share > 0]
    pairs.sort(key=lambda pair: errors[pair[0]][pair[1]] / shares[pair[1]])
    taken: list[tuple[int, int]] = []
    for pair in pairs:
        if saved >= needed:
            break
        taken.append(pair)
        saved += shares[pair[1]]
    if saved < needed:
        raise BudgetError(
            f"{who} was asked for the work of {work:g} network calls in {len(errors)} steps, but "
            f"with all modules at rest in every second step {len(errors) - saved:.2f} are left; "
            "ask for more",
            least=len(errors) - saved,
        )
    for pair in reversed(taken.copy()):
        if saved - shares[pair[1]] >= needed:
            taken.remove(pair)
            saved -= shares[pair[1]]
    resting: list[set[int]] = [set() for _ in errors]
    for k, place in taken:
        resting[k].add(place)
    return resting
