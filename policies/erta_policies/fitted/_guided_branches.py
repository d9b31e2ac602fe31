"""The branches of a step while they are called, and the guided velocity that they make."""

from __future__ import annotations

import torch
from torch import Tensor

from erta_framework import Call, Step
from erta_policies.fitted._branch_weights import BranchWeights
from erta_policies.fitted._solver_variable import SolverVariable


class GuidedBranches:
    """Collects what the branches of a step say, until the last one can be steered.

    How much each branch weighs is learned from what the first copy moved by in the first step.

    Args:
        one_step: Whether a step of the solver depends on its latents, interval and output alone.
        dtype: Type to combine in.
        copies: Copies of each sample in a batch; the first one runs undisturbed.

    Attributes:
        batch: Rows of the latents; 0 before the end of the first step.
        x: Latents of the step, `[batch, C, ...]`.
        outputs: Outputs by branch; batched guidance holds several pieces in one.
    """

    def __init__(self, one_step: bool, dtype: torch.dtype, copies: int) -> None:
        self._weights = BranchWeights(one_step, dtype)
        self._dtype, self._copies = dtype, copies
        self._order: tuple[str, ...] = ()
        self._before: tuple[str, ...] = ()
        self._parts: list[Tensor] = []
        self._moved: tuple[Tensor, float] | None = None
        self.batch = 0
        self.x: Tensor | None = None
        self.outputs: dict[str, list[Tensor]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Branches of this step so far, in the order of their calls."""
        return tuple(self.outputs)

    def is_new(self, step: Step) -> bool:
        """Whether a step has other branches than the one before, as far as the driver says so."""
        return bool(step.branches and self._before) and {*step.branches} != {*self._before}

    def add(self, step: Step, call: Call, output: Tensor) -> bool:
        """Take in a branch.

        Returns:
            Whether it is the last one, of the same branches as in the step before. What is cached
            of other branches belongs to another combination.
        """
        # how many branches a call holds shows at the end of the first step
        pieces = output.shape[0] // self.batch if self.batch else 1
        if not self.outputs:
            self.x = call.x.chunk(pieces)[0]
        self.outputs[call.branch] = list(output.chunk(pieces))
        order = step.branches or self._order
        return bool(order) and call.branch == order[-1] and self.names == self._before

    def begin(self, batch: int) -> None:
        """Take note of the rows of the latents, at the end of the first step."""
        assert self.x is not None
        self.batch = batch
        self.x = self.x[:batch]
        for branch, (output,) in self.outputs.items():
            self.outputs[branch] = list(torch.split(output, batch))

    def guide(self) -> Tensor:
        """The guided velocity, `[batch, C, ...]`."""
        return self._weights.guide(self.outputs)

    def steer(self, wanted: Tensor, output: Tensor, kept: int) -> Tensor:
        """The last branch's output for which guidance gives `wanted`; see `BranchWeights.steer`.

        Raises:
            PolicyError: Guidance does not weigh that branch.
        """
        self._weights.require_steerable(self.outputs)
        return self._weights.steer(self.outputs, wanted, output, kept)

    def learn(self, step: Step, sample: Tensor, variable: SolverVariable) -> bool:
        """Learn how branches weigh, where they were not seen before.

        Args:
            step: The step that has just been made.
            sample: Latents after it, `[batch, C, ...]`.
            variable: In which the steps are Euler steps.

        Returns:
            Whether they are other branches than in the step before.

        Raises:
            PolicyError: The solver is a multistep one, and this is not its first step.
        """
        assert self.x is not None
        self._parts = [
            piece.chunk(self._copies)[0].to(self._dtype)
            for each in self.outputs.values()
            for piece in each
        ]
        start, end = (each.chunk(self._copies)[0] for each in (self.x, sample))
        self._moved = variable.measure_movement(step.interval, start, end, self._dtype)
        self._weights.learn(step, self.names, self._parts, self._moved[0])
        return self.names != self._before

    def verify(self, step: Step) -> None:
        """Refuse guidance that is no weighted sum, or whose weights change.

        Raises:
            PolicyError: Says by how much the movement of the first copy differs.
        """
        assert self._moved is not None
        self._weights.verify(step, self.names, self._parts, *self._moved)

    def end(self) -> None:
        """Forget the outputs of the step."""
        self._order, self._before = self._order or self.names, self.names
        self.outputs = {}
