"""What our best rows aim at, and whether a record reaches it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from erta_bench.comparison._leaders import TO_EXACT, TO_FULL, Leaders, Record, find_leaders

NEARER: Mapping[int, float] = {12: 2.0, 8: 0.0}
"""By calls, how many dB nearer to the exact solution than the full run."""
LEAD, LEAD_WORST = 2.0, 3.0
"""The lead to the exact solution in dB, over every other kind: of the mean, of the worst sample."""
LED = {"peer": "peer", "plain": "plain", "composed": "recombination"}
"""Whom to lead, and how they are called in a sentence."""
AHEAD = 10.0
"""The lead to the full run in dB, over published caches."""
AT_EXACT, AT_FULL, MAIN = (17, 12, 8), (17, 12), 12
"""Numbers of calls at which these leads are aimed at, and that of all that has only one."""
CALIBRATION = 40.0
"""Most full runs of each calibration sample that a calibration takes."""
EFFICIENCY = 0.98
"""The measured speed-up times the work, where a network call takes `SLOW` seconds or more."""
SLOW = 5e-3


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal, and how far a record is from it.

    Attributes:
        number: Its number.
        title: What is aimed at.
        reached: Whether it is reached; None where it was not measured.
        said: What was measured.
    """

    number: int
    title: str
    reached: bool | None
    said: str


@dataclass(frozen=True, slots=True)
class Part:
    """A number that is compared with a bound; None where it was not measured."""

    said: str
    value: float | None
    bound: float

    @property
    def reached(self) -> bool | None:
        """Whether it is at least the bound."""
        return None if self.value is None else self.value >= self.bound

    def __str__(self) -> str:
        return f"{self.said} {'not measured' if self.value is None else f'{self.value:+.1f}'}"


def judge_goals(record: Record) -> list[Goal]:
    """Judge every goal by a record.

    Args:
        record: What `erta bench peers --json` writes.
    """
    rows = record["rows"]
    to_exact = {each.budget: each for each in find_leaders(rows, TO_EXACT)}
    # learned solvers are peers, and no caches: they make as many steps as calls
    caches = [row for row in rows if (row.get("kind"), row.get("group")) != ("peer", "plain")]
    to_full = {each.budget: each for each in find_leaders(caches, TO_FULL)}
    return [
        judge_nearness(record, to_exact),
        judge_leads(to_exact),
        judge_caches(to_full),
        judge_cost(record, to_exact),
    ]


def judge_nearness(record: Record, found: Mapping[int, Leaders]) -> Goal:
    """Nearer to the exact solution than the run that is replaced."""
    own = find_full(record).get(TO_EXACT.mean)
    parts = []
    for budget, bound in NEARER.items():
        ours = found[budget].best.get("ours") if budget in found else None
        value = None if ours is None or own is None else ours[TO_EXACT.mean] - own
        parts.append(Part(f"at {budget}", value, bound))
    title = "nearer to the exact solution than the full run: by 2 dB at 12 calls, not farther at 8"
    return make_goal(1, title, parts)


def judge_leads(found: Mapping[int, Leaders]) -> Goal:
    """Ahead of everyone to the exact solution, by mean and by worst sample."""
    parts, said = [], []
    for budget in AT_EXACT:
        own = []
        for kind, called in LED.items():
            leaders = found.get(budget)
            mean = None if leaders is None else leaders.lead(kind)
            worst = None if leaders is None else leaders.lead_worst(kind)
            parts += [Part("", mean, LEAD), Part("", worst, LEAD_WORST)]
            own.append(f"{called} {format_lead(mean)} / {format_lead(worst)}")
        said.append(f"at {budget}: {', '.join(own)}")
    title = (
        f"ahead of every peer, plain solver and recombination to the exact solution, by {LEAD:.0f} "
        f"dB, the worst sample by {LEAD_WORST:.0f}"
    )
    return Goal(2, title, judge(parts), "; ".join(said))


def judge_caches(found: Mapping[int, Leaders]) -> Goal:
    """Ahead of published caches to the full run, as they are usually compared."""
    parts = []
    for budget in AT_FULL:
        value = found[budget].lead("peer") if budget in found else None
        parts.append(Part(f"at {budget}", value, AHEAD))
    return make_goal(3, f"ahead of every published cache to the full run by {AHEAD:.0f} dB", parts)


def judge_cost(record: Record, found: Mapping[int, Leaders]) -> Goal:
    """What calibration and the method itself cost."""
    title = (
        f"calibration of at most {CALIBRATION:.0f} full runs of each calibration sample, and an "
        f"efficiency of {EFFICIENCY:g} where a call takes {1000 * SLOW:.0f} ms or more"
    )
    ours = found[MAIN].best.get("ours") if MAIN in found else None
    full = find_full(record)
    samples = record["settings"].get("calibration_prompts")
    if ours is None or not samples or ours.get("processor_efficiency") is None:
        return Goal(4, title, None, "not measured")
    runs = float(ours["calibration_calls"]) / (float(full["steps"]) * samples)
    efficiency, seconds = float(ours["processor_efficiency"]), measure_step(record)
    fast = seconds is not None and seconds < SLOW
    said = f"{runs:.1f} full runs of each of {samples} samples; efficiency {efficiency:.3f}"
    if seconds is not None:
        said += f" at {1000 * seconds:.0f} ms a step"
    return Goal(4, title, runs <= CALIBRATION and (fast or efficiency >= EFFICIENCY), said)


def measure_step(record: Record) -> float | None:
    """Processor seconds of a step of the full run, all branches of a batch."""
    full, batch = find_full(record), record["settings"].get("batch_size")
    if not batch or not full.get("processor_seconds"):
        return None
    batches = math.ceil(int(full["prompts"]) / int(batch))
    return float(full["processor_seconds"]) / (batches * float(full["steps"]))


def find_full(record: Record) -> Record:
    """The row of the full run."""
    found: Record = next(row for row in record["rows"] if row.get("budget") is None)
    return found


def make_goal(number: int, title: str, parts: Sequence[Part]) -> Goal:
    """A goal that is reached where all its parts are."""
    return Goal(number, title, judge(parts), ", ".join(map(str, parts)))


def judge(parts: Sequence[Part]) -> bool | None:
    """Whether all parts are reached; None where none is missed but some were not measured."""
    found = [part.reached for part in parts]
    if False in found:
        return False
    return None if None in found else True


def format_lead(value: float | None) -> str:
    """A lead in dB, or a dash.

    Example:
        >>> format_lead(2.04)
        '+2.0'
    """
    return "–" if value is None else f"{value:+.1f}"
