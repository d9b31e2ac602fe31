"""What of a solver is trained, and the plain solver that it is without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from erta_bench.learned._solver import Feature, LearnedSolver
from erta_framework.errors import InputError
from erta_framework.sampling import Schedule
from erta_framework.sampling.solvers import Parametrisation

Base = Literal["ab2", "dpmpp_2m"]
"""The plain solver that training starts from, as `FlowSolver` and `VPSolver` name them."""


@dataclass(slots=True, eq=False)
class SolverParameters:
    """The numbers that are trained; all corrections are 0 at first.

    Weights are those of the plain solver *at the trained times*, plus corrections in the unit of
    the step: so a moved time moves the weights with it.

    Attributes:
        form: What the network predicts, of which process.
        base: The plain solver.
        start: Its grid; both ends of it stay.
        shares: Logarithms of the parts of the whole time that the steps take, `[N]`.
        first: Corrections of the weights of the first latents, `[N]`.
        own: Of the newest latents, `[N]`.
        kept: Of the features by step, `[N, N]`; only j <= i is used.
    """

    form: Parametrisation
    base: Base
    start: Schedule
    shares: Tensor
    first: Tensor
    own: Tensor
    kept: Tensor

    @classmethod
    def of(cls, form: Parametrisation, base: Base, start: Schedule) -> SolverParameters:
        """Those of the untrained solver.

        Raises:
            InputError: There is no such plain solver, or the times of the grid do not fall.
        """
        if base not in BASES:
            raise InputError(f"base is {base!r}, it must be one of {', '.join(BASES)}")
        lengths = -torch.tensor(start.times, dtype=torch.float64).diff()
        if not bool((lengths > 0).all()):
            raise InputError(
                f"the network's timesteps {list(start.times)[:8]} do not fall strictly"
            )
        count = start.num_steps
        zeros = [lengths.new_zeros(shape) for shape in ((count,), (count,), (count, count))]
        return cls(form, base, start, lengths.log(), *zeros)

    @property
    def feature(self) -> Feature:
        """What is combined."""
        return "slope" if self.base == "ab2" else "clean"

    @property
    def tensors(self) -> list[Tensor]:
        """All that is trained; the shares of the time come first."""
        return [self.shares, self.first, self.own, self.kept]

    def place_steps(self) -> tuple[Tensor, Tensor]:
        """Sigmas and times of the steps, `[N + 1]` each, with their gradients."""
        begin, end = self.start.times[0], self.start.times[-1]
        inner = begin + (end - begin) * self.shares.softmax(0).cumsum(0)[:-1]
        ends = inner.new_tensor([begin, end])
        times = torch.cat([ends[:1], inner, ends[1:]])
        sigmas = self.form.process.sigma_at(inner)
        low, high = self.start.sigmas[-1], self.start.sigmas[0]
        return torch.cat([sigmas.new_tensor([high]), sigmas, sigmas.new_tensor([low])]), times

    def weigh(self, sigmas: Tensor) -> list[Tensor]:
        """Weights of every step, as `LearnedSolver.rows`, with their gradients."""
        found = []
        for index in range(self.start.num_steps):
            own, weights = BASES[self.base](self.form, sigmas, index)
            unit = weights[-1].abs()
            kept = unit * self.kept[index, : index + 1]
            plain = torch.cat(
                [kept.new_zeros(index + 1 - len(weights)), torch.stack(list(weights))]
            )
            latents = torch.stack([unit * self.first[index], own + unit * self.own[index]])
            found.append(torch.cat([latents, plain + kept]))
        return found

    def as_solver(self) -> LearnedSolver:
        """The solver that these numbers make."""
        with torch.no_grad():
            sigmas, times = self.place_steps()
            rows = self.weigh(sigmas)
        return LearnedSolver(
            form=self.form,
            feature=self.feature,
            sigmas=tuple(sigmas.tolist()),
            times=tuple(times.tolist()),
            rows=tuple(tuple(row.tolist()) for row in rows),
        )

    def copy(self) -> SolverParameters:
        """The numbers as they are now, apart from further training."""
        kept = [tensor.detach().clone() for tensor in self.tensors]
        return SolverParameters(self.form, self.base, self.start, *kept)


Weights = tuple[Tensor, Sequence[Tensor]]
"""The weight of the latents, and those of the newest one or two features, the newest last."""


def weigh_adams_bashforth(form: Parametrisation, sigmas: Tensor, index: int) -> Weights:
    """A step of `erta_framework.sampling.solvers.AdamsBashforth2`, as weights of slopes."""
    start, end = (stretch(form, sigma) for sigma in sigmas[index : index + 2])
    size = sigmas[index + 1] - sigmas[index]
    unit = size / end
    if index == 0:
        return start / end, [unit]
    ratio = size / (sigmas[index] - sigmas[index - 1]) / 2
    return start / end, [-unit * ratio, unit * (1 + ratio)]


def weigh_dpm_solver(form: Parametrisation, sigmas: Tensor, index: int) -> Weights:
    """A step of `erta_framework.sampling.solvers.DPMSolverPP2M`, as weights of clean samples."""
    (alpha, level), (alpha_end, level_end) = map(form.process.scales, sigmas[index : index + 2])
    decay = alpha * level_end / (alpha_end * level)
    own, unit = level_end / level, alpha_end * (1 - decay)
    if index == 0:
        return own, [unit]
    before, level_before = form.process.scales(sigmas[index - 1])
    decay_before = before * level / (alpha * level_before)
    # the step before began at pure noise, or this one ends at none: of first order
    if float(before.detach()) == 0.0 or float(level_end.detach()) == 0.0:
        return own, [0.0 * unit, unit]
    ratio = decay.log() / decay_before.log() / 2
    return own, [-unit * ratio, unit * (1 + ratio)]


def stretch(form: Parametrisation, sigma: Tensor) -> Tensor:
    """`Process.stretch` with its gradient: 1 for a flow, else one over the clean part's factor."""
    if form.process.predictions[0] == "velocity":
        return torch.ones_like(sigma)
    return 1 / form.process.scales(sigma)[0]


BASES: Mapping[Base, Callable[[Parametrisation, Tensor, int], Weights]] = {
    "ab2": weigh_adams_bashforth,
    "dpmpp_2m": weigh_dpm_solver,
}
