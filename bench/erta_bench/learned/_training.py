"""Training of a solver by the gradient of the error at the end of the run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from erta_bench.learned._parameters import BASES, SolverParameters
from erta_bench.learned._solver import LearnedSolver, combine, find_feature
from erta_framework.errors import InputError
from erta_framework.sampling import Denoiser, Guidance, Solver
from erta_framework.sampling.solvers import ComposedSolver, Parametrisation, SolverRecipe

FORWARDS = 1 + 2 + 1
"""Network calls that one call in training counts as: the call, its gradient as two, and the call
made again for the gradient, so that no activations are kept from one call to the next."""
LEAST = 1e-20
"""Mean squared error that counts as none."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSamples:
    """What a solver is trained on.

    Attributes:
        latents: Where the runs begin, `[N, C, ...]`.
        cond: Condition of the conditional branch, batch first.
        uncond: Condition of the other branch; None where guidance needs none.
        target: Where the runs should end, `[N, C, ...]`.
    """

    latents: Tensor
    cond: Tensor
    uncond: Tensor | None
    target: Tensor

    def take(self, places: Tensor) -> TrainingSamples:
        """Some of the samples, by their places."""
        uncond = None if self.uncond is None else self.uncond[places]
        return TrainingSamples(self.latents[places], self.cond[places], uncond, self.target[places])


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a solver is trained: Adam on the mean logarithm of the samples' errors.

    Attributes:
        iterations: Most steps of the optimiser at each rate.
        batch: Samples a step.
        rates: Step sizes at first, each of its own training; they fall to 0 along half a cosine.
            Which is best depends on the network, so the samples that judge choose.
        held_out: Every so many samples, one only judges.
        every: Steps between two looks at the samples that judge.
        patience: Looks without a better result after which training ends.
        seed: Of the order of the samples.
    """

    iterations: int = 150
    batch: int = 8
    rates: tuple[float, ...] = (5e-3, 3e-2)
    held_out: int = 3
    every: int = 10
    patience: int = 8
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A trained solver.

    Attributes:
        solver: The solver.
        base: The plain solver that it began as.
        before: Mean log10 of the held-out samples' squared error of that solver.
        after: The same of the trained one; never larger.
        calls: Network calls of each branch, over all samples, that training took; a call in
            training counts as `FORWARDS`.
    """

    solver: LearnedSolver
    base: str
    before: float
    after: float
    calls: int


@dataclass(slots=True, eq=False)
class Trainer:
    """Trains solvers for one network and guidance.

    Attributes:
        network: Predicts, and lets gradients through to its latents and times.
        guidance: How branches combine.
        samples: What is trained on.
        training: How.
        calls: Network calls of each branch so far, as in `Trained`.
    """

    network: Denoiser
    guidance: Guidance
    samples: TrainingSamples
    training: Training = field(default_factory=Training)
    calls: int = field(default=0, init=False)

    def train(self, solver: Solver, num_calls: int) -> Trained:
        """Train a solver of so many network calls.

        It begins as the better of the two plain second-order solvers on the grid of `solver`, and
        ends as what was best on the held-out samples.

        Args:
            solver: Its process and its grid are used.
            num_calls: Steps, with one network call of each branch.

        Raises:
            InputError: There are too few samples to hold some out, or the solver has no parts.
        """
        fit, judging = self._divide()
        self.calls = 0
        form, start = find_form(solver), solver.schedule(num_calls)
        tried = [SolverParameters.of(form, base, start) for base in BASES]
        # chosen on all samples: a choice of two needs no others that judge
        plain = min(tried, key=lambda each: self._judge(each, self.samples))
        before = best = self._judge(plain, judging)
        kept = plain
        for rate in self.training.rates:
            parameters, stale, own = plain.copy(), 0, before
            for _ in self._move(parameters, fit, rate):
                found = self._judge(parameters, judging)
                stale = 0 if found < own else stale + 1
                own = min(own, found)
                if found < best:
                    best, kept = found, parameters.copy()
                if stale > self.training.patience:
                    break
        ten = math.log(10)
        return Trained(kept.as_solver(), kept.base, before / ten, best / ten, self.calls)

    def _divide(self) -> tuple[TrainingSamples, TrainingSamples]:
        """Samples to fit to, and those that judge."""
        places = torch.arange(len(self.samples.latents))
        judging = places % self.training.held_out == self.training.held_out - 1
        if not bool(judging.any()) or bool(judging.all()):
            raise InputError(
                f"{len(places)} samples with every {self.training.held_out}th held out leave none "
                "to fit or none to judge; give at least as many samples as held_out, which is 2 or "
                "more"
            )
        return self.samples.take(places[~judging]), self.samples.take(places[judging])

    def _move(
        self, parameters: SolverParameters, fit: TrainingSamples, rate: float
    ) -> Iterator[None]:
        """Move the numbers along the gradient; comes back every `training.every` steps."""
        tensors = [tensor.requires_grad_() for tensor in parameters.tensors]
        chosen = torch.Generator().manual_seed(self.training.seed)
        total = self.training.iterations
        optimizer = torch.optim.Adam(tensors, lr=rate)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        for step in range(1, total + 1):
            order = torch.randperm(len(fit.latents), generator=chosen)
            loss = self._measure(parameters, fit.take(order[: self.training.batch]), FORWARDS)
            found = torch.autograd.grad(loss.mean(), tensors)
            for tensor, gradient in zip(tensors, found, strict=True):
                tensor.grad = gradient
            torch.nn.utils.clip_grad_norm_(tensors, 1.0)
            optimizer.step()
            falling.step()
            if step % self.training.every == 0:
                yield

    @torch.no_grad()
    def _judge(self, parameters: SolverParameters, samples: TrainingSamples) -> float:
        """Mean logarithm of the samples' squared errors."""
        return float(self._measure(parameters, samples, 1).mean())

    def _measure(self, parameters: SolverParameters, samples: TrainingSamples, each: int) -> Tensor:
        """Logarithm of each sample's mean squared error at the end, `[N]`, with its gradient."""
        ends = run_solver(self.network, self.guidance, parameters, samples)
        self.calls += each * len(samples.latents) * parameters.start.num_steps
        error = (ends - samples.target).double().square().flatten(1).mean(dim=1)
        return error.clamp(min=LEAST).log()


def run_solver(
    network: Denoiser, guidance: Guidance, parameters: SolverParameters, samples: TrainingSamples
) -> Tensor:
    """Samples at the end of a run, `[N, C, ...]`, with the gradient of all parameters.

    Activations of a call are made again for its gradient: those of a whole run would not fit.
    """
    sigmas, times = parameters.place_steps()
    rows = parameters.weigh(sigmas)
    count = parameters.start.num_steps
    x = first = samples.latents
    features: list[Tensor] = []

    def predict(latents: Tensor, time: Tensor, index: int) -> Tensor:
        outputs = {}
        for branch in guidance.branches(samples.cond, samples.uncond, index, count):
            given = branch.expand(latents)
            moment = time.to(given.device, torch.float32).expand(len(given))
            outputs[branch.name] = network(given, moment, branch.condition)
        return guidance.combine(outputs)

    for index in range(count):
        if torch.is_grad_enabled():
            output = checkpoint(predict, x, times[index], index, use_reentrant=False)
        else:
            output = predict(x, times[index], index)
        sigma = cast(float, sigmas[index].to(x.dtype))  # the parts take numbers and tensors alike
        features.append(find_feature(parameters.form, parameters.feature, x, output, sigma))
        x = combine(rows[index].to(x.dtype), first, x, features)
    return x


def find_form(solver: Solver) -> Parametrisation:
    """What the network of a solver predicts, of which process.

    Raises:
        InputError: The solver is not made of parts.
    """
    parts = solver.parts if isinstance(solver, SolverRecipe) else solver
    if not isinstance(parts, ComposedSolver):
        raise InputError(
            f"{solver!r} has no parts, and a solver is trained on its process; give a SolverRecipe "
            "or a ComposedSolver"
        )
    return parts.form
