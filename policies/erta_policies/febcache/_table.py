"""`StateTable`: what attention and MLPs do at each step, as one letter or as two plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self

from erta_framework.errors import PolicyError
from erta_policies.shared import StepPlan

State = Literal["N", "B", "A", "M"]
NONE: Final = "N"
BOTH: Final = "B"
ATTENTION: Final = "A"
MLP: Final = "M"
LETTERS = {("F", "F"): NONE, ("c", "c"): BOTH, ("c", "F"): ATTENTION, ("F", "c"): MLP}
PLANS = {letter: plans for plans, letter in LETTERS.items()}


@dataclass(frozen=True, slots=True)
class StateTable:
    """What is reused at each step, in the order of execution.

    Attributes:
        states: A letter for each step: `N` nothing, `B` both, `A` the attention, `M` the MLPs.

    Raises:
        PolicyError: It is empty, has other letters, or does not begin with `N`.

    Example:
        >>> table = StateTable("NBAM")
        >>> table.attention.states, table.mlp.states
        ('FccF', 'FcFc')
    """

    states: str

    def __post_init__(self) -> None:
        wrong = set(self.states) - set(PLANS)
        if wrong or not self.states.startswith(NONE):
            found = f"has {min(wrong)!r}" if wrong else f"begins with {self.states[:1]!r}"
            raise PolicyError(
                f"the table {self.states!r} {found}; write for each step N where nothing is "
                "reused, B where both are, A for the attention and M for the MLPs, beginning with N"
            )

    @classmethod
    def of_plans(cls, attention: StepPlan, mlp: StepPlan) -> Self:
        """The table of a plan for the attention and one for the MLPs, of full and reused steps.

        Raises:
            PolicyError: They have different lengths, or refresh tokens.
        """
        if len(attention) != len(mlp):
            raise PolicyError(
                f"the attention has a plan of {len(attention)} steps and the MLPs one of "
                f"{len(mlp)}; give both the same"
            )
        pairs = list(zip(attention.states, mlp.states, strict=True))
        unknown = next((pair for pair in pairs if pair not in LETTERS), None)
        if unknown is not None:
            raise PolicyError(
                "a table has steps that run and steps that reuse, and a plan refreshes tokens: "
                f"{attention} and {mlp}"
            )
        return cls("".join(LETTERS[pair] for pair in pairs))

    @classmethod
    def of_both(cls, steps: Sequence[int], num_steps: int) -> Self:
        """The table that reuses both at these steps, and nothing elsewhere.

        Example:
            >>> StateTable.of_both((2, 4), 5).states
            'NNBNB'
        """
        reused = set(steps)
        return cls("".join(BOTH if k in reused else NONE for k in range(num_steps)))

    def __len__(self) -> int:
        return len(self.states)

    @property
    def attention(self) -> StepPlan:
        """At which steps the attention runs."""
        return StepPlan("".join(PLANS[state][0] for state in self.states))

    @property
    def mlp(self) -> StepPlan:
        """At which steps the MLPs run."""
        return StepPlan("".join(PLANS[state][1] for state in self.states))

    def count(self, state: State) -> int:
        """How many steps have this state."""
        return self.states.count(state)

    def find_work(self, attention: float, mlp: float, both: float) -> float:
        """The work of a run as a part of the full one.

        Args:
            attention: The share of a network call that the attention costs.
            mlp: That of the MLPs.
            both: That of both, which is less than the sum where a fused MLP holds an attention.

        Example:
            >>> round(StateTable("NBAM").find_work(0.3, 0.5, 0.8), 3)
            0.6
        """
        saved = {NONE: 0.0, BOTH: both, ATTENTION: attention, MLP: mlp}
        return 1.0 - sum(saved[state] for state in self.states) / len(self.states)


PUBLISHED = StateTable.of_both((22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 41, 42, 44, 45, 47, 48), 50)
"""The table that comes with FEB-Cache's code, for DiT-XL/2 at 256x256, 50 DDPM steps, guidance 1.5
(aSleepyTree/EB-Cache, `cache_table.npy`, in the order of execution)."""
