"""Plans of a place by step: it runs, is refreshed on some tokens, or is reused.

A plan is written in letters in the order of execution: `F` runs, `S` refreshes a part, `c` reuses.
Its segments begin at each `F`; a segment of length s reuses in s - 1 steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Self

from erta_framework.errors import PolicyError
from erta_policies.shared._newest_steps import find_newest

FULL: Final = "F"
SELECT: Final = "S"
REUSE: Final = "c"
GROUP = re.compile(r"\(([FSc]+)\)x([1-9]\d{0,4})|([FSc]+)")
LONGEST = 100_000
"""Most steps of a plan; a longer one is a slip of the pen."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What is done at each step, in the order of execution.

    Attributes:
        states: A letter for each step: `F` runs, `S` refreshes a part, `c` reuses.

    Raises:
        PolicyError: It is empty, has other letters, or does not begin with `F`.

    Example:
        >>> StepPlan.parse("(Fcc)x2 Fc").with_select().states
        'FcSFcSFc'
    """

    states: str

    def __post_init__(self) -> None:
        wrong = set(self.states) - {FULL, SELECT, REUSE}
        if wrong or not self.states.startswith(FULL):
            found = f"has {min(wrong)!r}" if wrong else f"begins with {self.states[:1]!r}"
            raise PolicyError(
                f"the plan {self.states!r} {found}; write F for a full step, S for one that "
                "refreshes tokens and c for one that reuses, beginning with F"
            )

    # ------------------------------------------------------------------------- made from
    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a plan as papers write it, such as `"(FcSc)x6 (Fc)x7"`.

        Raises:
            PolicyError: It cannot be read.
        """
        compact = "".join(text.split())
        states, at = "", 0
        for match in GROUP.finditer(compact):
            if match.start() != at:
                break
            repeated, times, plain = match.groups()
            at = match.end()
            if len(states) + len(repeated or "") * int(times or 0) > LONGEST:
                break
            states += plain or repeated * int(times)
        if at != len(compact) or len(states) > LONGEST:
            raise PolicyError(
                f"the plan {text[:80]!r} cannot be read; write letters F, S and c and groups such "
                f"as (FcSc)x6, for at most {LONGEST} steps"
            )
        return cls(states)

    @classmethod
    def of_segments(cls, lengths: Iterable[int]) -> Self:
        """A plan of segments: a full step, then `length - 1` that reuse.

        Raises:
            PolicyError: A length is less than 1, or there is none.

        Example:
            >>> StepPlan.of_segments((3, 2, 1)).states
            'FccFcF'
        """
        given = tuple(lengths)
        if not given or min(given) < 1:
            raise PolicyError(f"segments of the lengths {given} are no plan; each is at least 1")
        return cls("".join(FULL + REUSE * (length - 1) for length in given))

    @classmethod
    def of_steps(cls, full: Iterable[int], num_steps: int) -> Self:
        """A plan with full steps at these places; the others reuse.

        Raises:
            PolicyError: Step 0 is not among them, or one is outside.

        Example:
            >>> StepPlan.of_steps((0, 3), 5).states
            'FccFc'
        """
        chosen = set(full)
        outside = sorted(step for step in chosen if not 0 <= step < num_steps)
        if outside:
            raise PolicyError(f"steps {outside} are outside of a plan of {num_steps} steps")
        return cls("".join(FULL if k in chosen else REUSE for k in range(num_steps)))

    @classmethod
    def evenly(cls, num_steps: int, full: int) -> Self:
        """A plan whose segments differ by one step at most, spread over the run.

        Example:
            >>> StepPlan.evenly(8, 3).segments
            (3, 3, 2)
        """
        if not 1 <= full <= num_steps:
            raise PolicyError(f"{full} full steps of {num_steps}; give from 1 to {num_steps}")
        return cls.of_steps([-(-k * num_steps // full) for k in range(full)], num_steps)

    @classmethod
    def of_runs(cls, runs: Iterable[tuple[str, int]]) -> Self:
        """A plan of run lengths: a letter and how often it follows itself; see `runs`."""
        return cls("".join(state * length for state, length in runs))

    # -------------------------------------------------------------------------- made into
    def with_select(self) -> Self:
        """The plan with `S` at every second step of each run of reused ones, the 2nd, 4th, ....

        As ProCache does (arXiv 2512.17298, after the plan is chosen).

        Raises:
            PolicyError: It has some already.
        """
        if SELECT in self.states:
            raise PolicyError(f"the plan {self} refreshes tokens already; give one of F and c")
        pieces = (
            length * FULL if state == FULL else (length + 1) // 2 * (REUSE + SELECT)
            for state, length in self.runs
        )
        cut = (piece[:length] for piece, (_, length) in zip(pieces, self.runs, strict=True))
        return type(self)("".join(cut))

    def without_select(self) -> Self:
        """The plan with `c` in place of every `S`."""
        return type(self)(self.states.replace(SELECT, REUSE))

    def reversed_segments(self) -> Self:
        """The plan with its segments in the opposite order; each begins with its full step."""
        parts = FULL.join(reversed(self.states.split(FULL)[1:]))
        return type(self)(FULL + parts)

    def require_steps(self, num_steps: int, owner: str) -> None:
        """Refuse a run of another number of steps; a plan is not rescaled.

        Raises:
            PolicyError: Names both numbers.
        """
        if num_steps != len(self.states):
            raise PolicyError(
                f"{owner} has a plan of {len(self.states)} steps, this run has {num_steps}; a plan "
                "holds for its own number of steps: give one for this number"
            )

    # -------------------------------------------------------------------------- read off
    def __len__(self) -> int:
        return len(self.states)

    def __str__(self) -> str:
        """As `parse` reads it, with equal segments in groups."""
        parts = (FULL + rest for rest in self.states.split(FULL)[1:])
        counted = ((part, len(list(group))) for part, group in groupby(parts))
        return " ".join(part if n == 1 else f"({part})x{n}" for part, n in counted)

    @property
    def full(self) -> tuple[int, ...]:
        """The full steps."""
        return tuple(k for k, state in enumerate(self.states) if state == FULL)

    @property
    def segments(self) -> tuple[int, ...]:
        """Length of each segment, a full step and those up to the next one."""
        return tuple(1 + len(rest) for rest in self.states.split(FULL)[1:])

    @property
    def runs(self) -> tuple[tuple[str, int], ...]:
        """Letters and how often each follows itself, in order."""
        return tuple((state, len(list(group))) for state, group in groupby(self.states))

    @property
    def newest(self) -> tuple[int, ...]:
        """For every step, the newest full step up to it."""
        return find_newest(self.full, len(self.states))

    def count(self, state: str) -> int:
        """How many steps have this letter."""
        return self.states.count(state)
