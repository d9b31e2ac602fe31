"""How guidance weighs the branches of a step, read off the full run of a calibration batch.

The guided velocity of a step is g = sum_b w_b v_b over its branches b. Nobody says what the w_b
are, but the full run shows g: it is what its latents moved by, over the length of the step. So the
weights are least squares over all elements, once for each set of branches, and must then hold at
every step whose movement can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from erta_framework import Step
from erta_framework.errors import PolicyError

TOLERANCE = 0.05
"""Largest relative error of the guided velocity that counts as a weighted sum."""
LEAST = 1e-3
"""Smallest weight of a branch through which samples can be steered."""
Outputs = Mapping[str, Sequence[Tensor]]
"""Outputs of a step by branch; batched guidance holds several pieces in one."""


class BranchWeights:
    """Weights of the branches in the guided velocity, for each set of branches.

    Args:
        one_step: Whether a step of the solver depends on its latents, interval and output alone.
        dtype: Type to combine in.
    """

    def __init__(self, one_step: bool, dtype: torch.dtype) -> None:
        self._one_step, self._dtype = one_step, dtype
        self._weights: dict[tuple[str, ...], Tensor] = {}

    def _is_readable(self, step: Step) -> bool:
        """Whether the movement of a step is its guided velocity; multistep solvers begin so."""
        return self._one_step or step.index == 0

    def learn(
        self, step: Step, order: tuple[str, ...], parts: Sequence[Tensor], guided: Tensor
    ) -> None:
        """Solve for the weights of a set of branches that was not seen before.

        Args:
            step: The step.
            order: Its branches, in the order in which they were called.
            parts: The full run's outputs, `[B, C, ...]` for each branch.
            guided: The guided velocity that moved the full run, of the same shape.

        Raises:
            PolicyError: The solver is a multistep one, and this is not its first step.
        """
        if order in self._weights:
            return
        if not self._is_readable(step):
            raise PolicyError(
                f"the branches change to {', '.join(order)} at step {step.index}, where "
                "FittedProfiler cannot read off how a multistep solver weighs them; calibrate "
                "with guidance at every step, or with a first-order scheduler"
            )
        # one row an element, one column a branch
        matrix = torch.stack([part.flatten() for part in parts], dim=1).cpu()
        self._weights[order] = torch.linalg.lstsq(
            matrix, guided.flatten().unsqueeze(1).cpu()
        ).solution.squeeze(1)

    def verify(
        self,
        step: Step,
        order: tuple[str, ...],
        parts: Sequence[Tensor],
        guided: Tensor,
        rounding: float,
    ) -> None:
        """Refuse guidance that is no weighted sum, or whose weights change.

        Args:
            step: The step.
            order: Its branches.
            parts: As in `learn`.
            guided: As in `learn`.
            rounding: Norm of what rounding the latents may have done to `guided`.

        Raises:
            PolicyError: The weighted sum of the branches is not what moved the full run.
        """
        weights = self._weights[order]
        combined = sum(
            (float(w) * part for w, part in zip(weights, parts, strict=True)), 0.0 * parts[0]
        )
        wrong = float((combined - guided).norm()) > TOLERANCE * float(guided.norm()) + rounding
        if self._is_readable(step) and wrong:
            raise PolicyError(
                f"the guided velocity of step {step.index} is no fixed weighted sum of the "
                f"branches {', '.join(order)} (weights {[round(float(w), 3) for w in weights]}), "
                "so FittedProfiler cannot tell what a correction of them does; calibrate without "
                "guidance rescaling, with a scheduler that adds no noise, and under DDIM with "
                "`leading` steps or a number of them that divides the training steps"
            )

    def require_steerable(self, outputs: Outputs) -> None:
        """Refuse to steer samples through a last branch that guidance does not weigh.

        Raises:
            PolicyError: Names the branch.
        """
        if self._weights[tuple(outputs)].abs()[-1] < LEAST:
            *_, last = outputs
            raise PolicyError(
                f"FittedProfiler steers the samples through the last branch of a step, but the "
                f"guidance gives {last!r} no weight; calibrate at another guidance scale"
            )

    def guide(self, outputs: Outputs) -> Tensor:
        """The guided velocity of all copies, `[B, C, ...]`."""
        weights = self._weights[tuple(outputs)]
        parts = [piece for each in outputs.values() for piece in each]
        return sum(
            (float(w) * part.to(self._dtype) for w, part in zip(weights, parts, strict=True)),
            start=torch.zeros_like(parts[0], dtype=self._dtype),
        )

    def steer(self, outputs: Outputs, wanted: Tensor, output: Tensor, kept: int) -> Tensor:
        """The last branch's output for which guidance gives `wanted`.

        Solves g = sum_b w_b v_b for the last v_b; the other branches stay as they are.

        Args:
            outputs: Outputs of the step.
            wanted: Guided velocity of all copies, `[B, C, ...]`.
            output: The last branch's output as it is, with all of its pieces.
            kept: Rows at the start that are left alone: the full run.
        """
        weights = self._weights[tuple(outputs)].to(output.device)
        parts = [piece for each in outputs.values() for piece in each]
        *_, pieces = outputs.values()
        others = sum(
            (
                float(w) * part.to(wanted.dtype)
                for w, part in zip(weights[:-1], parts, strict=False)
            ),
            start=torch.zeros_like(wanted),
        )
        last = parts[-1].clone()
        last[kept:] = ((wanted - others) / float(weights[-1])).to(last.dtype)[kept:]
        return torch.cat([*output.chunk(len(pieces))[:-1], last])
