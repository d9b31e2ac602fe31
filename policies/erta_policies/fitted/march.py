"""The calibration run: full run and cached runs of the same samples, side by side in one batch.

A batch holds every sample several times. The first copy is the full run. The second is the cached
run under the weights fitted so far; the others are cached runs under rules that need no fit, to
compare with. At each step the first copy says where the second should be, the weights of this step
are solved, and the second copy goes on with them: so each step sees the states that the fit so far
has led to, and all samples of the batch are fitted together.

The fit is on the guided velocity. How much each branch weighs in it is read off the full run at the
first step. Then one branch alone, the last of a step, carries what the combination is to become.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from erta_framework import Call, SessionInfo, Step
from erta_framework.errors import PolicyError
from erta_policies.fitted import features, moments
from erta_policies.fitted.moments import FOLDS, Choice, Settings
from erta_policies.fitted.variable import Variable, one_step

RUNS = ("full", "fitted", "plain", "taylor")
"""What each copy of a sample runs."""
TOLERANCE = 0.05


@dataclass(slots=True)
class Cached:
    """One cached run: its computed velocities, newest first, and where it stood at the newest."""

    velocities: list[Tensor] = field(default_factory=list)
    start: Tensor | None = None

    def add(self, velocity: Tensor, x: Tensor, depth: int) -> None:
        """Keep a computed velocity."""
        self.velocities = [velocity, *self.velocities][:depth]
        self.start = x


class March:
    """State of one calibration session.

    Args:
        session: Facts of the run.
        computed: Computed steps of the schedule.
        settings: How to fit.
        per_channel: Whether each channel has weights of its own.
        given: Weights of an earlier round to march with, by step, instead of solving.
    """

    def __init__(
        self,
        session: SessionInfo,
        computed: frozenset[int],
        settings: Settings,
        per_channel: bool,
        given: Mapping[int, Choice] | None,
    ) -> None:
        self.settings, self.per_channel, self.given = settings, per_channel, given
        self.planned = computed
        self.computed: list[int] = []
        checked_batch(session.shape[0])
        self.batch = 0
        self.rows = 0
        self.variable, self.one_step = Variable.of(session), one_step(session)
        self.nodes = checked_nodes([self.variable.node(sigma) for sigma in session.sigmas])
        self.channel_dim = session.channel_dim
        self.elements = math.prod(session.shape[1:])
        size = features.EXTRA + features.TARGETS + settings.velocities
        channels = session.shape[session.channel_dim] if per_channel else 1
        wide = torch.float32 if session.device.type == "mps" else torch.float64
        self.sums = torch.zeros(
            FOLDS, session.num_steps, channels, size, size, dtype=wide, device=session.device
        )
        self.errors = torch.zeros(len(RUNS) - 1, dtype=wide, device=session.device)
        self.folds = torch.zeros(0, dtype=torch.long, device=session.device)
        self.order: tuple[str, ...] = ()
        self.before: tuple[str, ...] = ()
        self.depths = torch.zeros(session.num_steps, dtype=torch.float64)
        self.shares: dict[tuple[str, ...], Tensor] = {}
        self.runs = {name: Cached() for name in RUNS[1:]}
        self.outputs: dict[str, list[Tensor]] = {}
        self.x: Tensor | None = None
        self.answered = False
        self.finished = False

    # ------------------------------------------------------------------ one branch of a step
    def answer(self, step: Step, call: Call, output: Tensor) -> Tensor:
        """The network's output, or for the last branch what steers the copies."""
        # how many branches a call holds shows at the end of the first step
        pieces = output.shape[0] // self.batch if self.batch else 1
        if not self.outputs:
            self.x = call.x.chunk(pieces)[0]
            self.answered = False
        self.outputs[call.branch] = list(output.chunk(pieces))
        order = step.branches or self.order
        # other branches than in the step before: what is cached belongs to another combination
        if not order or call.branch != order[-1] or tuple(self.outputs) != self.before:
            return output
        if self.shares[tuple(self.outputs)].abs()[-1] < 1e-3:
            raise PolicyError(
                f"FittedProfiler steers the samples through the last branch of a step, but the "
                f"guidance gives {call.branch!r} no weight; calibrate at another guidance scale"
            )
        wanted = self._step(step)
        return self._carried(wanted, output, pieces)

    def _begin(self, batch: int) -> None:
        """Take note of the batch, and check that it holds each sample once a run."""
        assert self.x is not None
        self.batch, self.rows = batch, checked_batch(batch)
        self.x = self.x[:batch]
        self._check_copies(self.x, "latents")
        for branch, (output,) in self.outputs.items():
            self.outputs[branch] = list(torch.split(output, batch))
            for piece in self.outputs[branch]:
                self._check_copies(piece, f"outputs of branch {branch!r}")

    def _check_copies(self, value: Tensor, what: str) -> None:
        first, *others = value.float().chunk(len(RUNS))
        gap = max(float((other - first).abs().max()) for other in others)
        # kernels may add in another order for another place in the batch
        if gap > 1e-2 * float(first.abs().max()) + 1e-6:
            raise PolicyError(
                f"FittedProfiler needs each sample {len(RUNS)} times in a batch, but the {what} of "
                f"the copies differ by {gap:.3g} at the first step; repeat prompts and noise, the "
                "whole batch after the whole batch, as `erta calibrate` does"
            )

    def _carried(self, wanted: Tensor, output: Tensor, pieces: int) -> Tensor:
        """The last branch's output with which guidance gives `wanted`; the first copy is kept."""
        share = self.shares[tuple(self.outputs)].to(output.device)
        parts = [piece for each in self.outputs.values() for piece in each]
        others = sum(
            (float(w) * part.to(wanted.dtype) for w, part in zip(share[:-1], parts, strict=False)),
            start=torch.zeros_like(wanted),
        )
        last = parts[-1].clone()
        last[self.rows :] = ((wanted - others) / float(share[-1])).to(last.dtype)[self.rows :]
        return torch.cat([*output.chunk(pieces)[:-1], last])

    def _guided(self) -> Tensor:
        share = self.shares[tuple(self.outputs)]
        parts = [piece for each in self.outputs.values() for piece in each]
        return sum(
            (float(w) * part.to(self.sums.dtype) for w, part in zip(share, parts, strict=True)),
            start=torch.zeros_like(parts[0], dtype=self.sums.dtype),
        )

    # ------------------------------------------------------------------------------ the step
    def _step(self, step: Step) -> Tensor:
        """Gather, solve, and say what the guided velocity of every copy is to be."""
        assert self.x is not None
        network = self._guided().chunk(len(RUNS))
        xs = self.x.chunk(len(RUNS))
        computes = step.index in self.planned
        if computes:
            self._computed(step.index, network, xs)
        interval = self._interval(step)
        gain = self.variable.scale(step.interval.start) / (interval[1] - interval[0])
        target = network[0] + gain * (xs[0] - xs[1]).to(network[0])
        run = self.runs["fitted"]
        assert run.start is not None
        depth = self.settings.velocities
        found = features.quantities(run.velocities, xs[1], run.start, depth)
        values = [value.movedim(self.channel_dim, 1) for value in (*found, network[1], target)]
        step_sums = moments.products(values, self.folds, self.per_channel)
        self.sums[:, step.index] += step_sums
        kept = self.computed[-len(run.velocities) :]
        self.depths[step.index] = len(kept)
        nodes = [self.nodes[index] for index in reversed(kept)]
        if self.given is not None:
            choice = self.given[step.index]
        else:
            choice = moments.choose(step_sums.cpu(), self.settings, nodes, interval, computes)
        wanted = combined(found, choice.weights, self.channel_dim)
        self.answered = True
        rivals = [
            self._rule(name, position, network, xs, nodes, interval, computes)
            for position, name in enumerate(RUNS[2:], start=2)
        ]
        return torch.cat([network[0], wanted, *rivals])

    def _rule(
        self,
        name: str,
        position: int,
        network: Sequence[Tensor],
        xs: Sequence[Tensor],
        nodes: Sequence[float],
        interval: tuple[float, float],
        computes: bool,
    ) -> Tensor:
        if computes:
            return network[position]
        run = self.runs[name]
        assert run.start is not None
        depth = 2
        found = features.quantities(run.velocities, xs[position], run.start, depth)
        ends = self.settings.interval(*interval)
        row = features.plain(depth) if name == "plain" else features.line(nodes, *ends, depth)
        return combined(found, torch.tensor([row]), self.channel_dim)

    def _computed(self, index: int, network: Sequence[Tensor], xs: Sequence[Tensor]) -> None:
        self.computed.append(index)
        depth = max(2, self.settings.velocities)
        for name, velocity, x in zip(RUNS[1:], network[1:], xs[1:], strict=True):
            self.runs[name].add(velocity, x, depth)

    def _interval(self, step: Step) -> tuple[float, float]:
        """Nodes where a step starts and ends."""
        node = self.variable.node
        return node(step.interval.start), node(step.interval.end)

    # --------------------------------------------------------------------------- after a step
    def end(self, step: Step, sample: Tensor) -> None:
        """Learn or check how branches weigh, and measure the ends.

        Raises:
            PolicyError: Guidance is no weighted sum that stays the same.
        """
        if not self.batch:
            self._begin(len(sample))
        assert self.x is not None
        (first, last), scale = self._interval(step), self.variable.scale
        size, ends = last - first, scale(step.interval.end)
        start = self.x.chunk(len(RUNS))[0].to(self.sums.dtype) * scale(step.interval.start)
        moved = (sample.chunk(len(RUNS))[0].to(self.sums.dtype) * ends - start) / size
        order = tuple(self.outputs)
        parts = [
            piece.chunk(len(RUNS))[0].to(self.sums.dtype)
            for each in self.outputs.values()
            for piece in each
        ]
        plain_step = self.one_step or step.index == 0  # multistep solvers begin with one
        if order not in self.shares:
            if not plain_step:
                raise PolicyError(
                    f"the branches change to {', '.join(order)} at step {step.index}, where "
                    "FittedProfiler cannot read off how a multistep solver weighs them; calibrate "
                    "with guidance at every step, or with a first-order scheduler"
                )
            matrix = torch.stack([part.flatten() for part in parts], dim=1).cpu()
            self.shares[order] = torch.linalg.lstsq(
                matrix, moved.flatten().unsqueeze(1).cpu()
            ).solution.squeeze(1)
        if order != self.before:
            self._uncorrected(step)
        elif not self.answered:
            raise PolicyError(
                f"FittedProfiler was asked for the branches {', '.join(order)} at step "
                f"{step.index} in another order than before; calibrate without other plugins"
            )
        share = self.shares[order]
        self.order, self.before = self.order or order, order
        said = sum((float(w) * part for w, part in zip(share, parts, strict=True)), 0.0 * parts[0])
        rounding = 8 * torch.finfo(sample.dtype).eps * float(start.norm()) / abs(size)
        wrong = float((said - moved).norm()) > TOLERANCE * float(moved.norm()) + rounding
        if plain_step and wrong:
            raise PolicyError(
                f"the guided velocity of step {step.index} is no fixed weighted sum of the "
                f"branches {', '.join(order)} (weights {[round(float(w), 3) for w in share]}), so "
                "FittedProfiler cannot tell what a correction of them does; calibrate without "
                "guidance rescaling, with a scheduler that adds no noise, and under DDIM with "
                "`leading` steps or a number of them that divides the training steps"
            )
        self.outputs = {}
        if step.index == step.num_steps - 1:
            full, *others = sample.to(self.sums.dtype).chunk(len(RUNS))
            self.errors += torch.stack([((other - full) ** 2).sum() for other in others])
            self.finished = True

    def _uncorrected(self, step: Step) -> None:
        """The first step with these branches: the network's output, whatever the schedule says."""
        assert self.x is not None
        if step.index == 0:
            digest = hashlib.sha256(self.x[:1].float().cpu().contiguous().numpy().tobytes())
            first = int.from_bytes(digest.digest()[:4], "big")
            self.folds = (torch.arange(self.rows, device=self.x.device) + first) % FOLDS
        for run in self.runs.values():
            run.velocities = []  # of another set of branches
        self._computed(step.index, self._guided().chunk(len(RUNS)), self.x.chunk(len(RUNS)))


def checked_batch(batch: int) -> int:
    """Samples of a batch that holds each of them once a run.

    Raises:
        PolicyError: The batch cannot be divided.
    """
    if batch % len(RUNS):
        raise PolicyError(
            f"FittedProfiler needs each sample {len(RUNS)} times in a batch, got a batch of "
            f"{batch}; repeat prompts and noise, the whole batch after the whole batch, as "
            "`erta calibrate` does"
        )
    return batch // len(RUNS)


def checked_nodes(nodes: Sequence[float]) -> tuple[float, ...]:
    """Nodes of a grid on which every step goes somewhere.

    Raises:
        PolicyError: Two of them are the same.
    """
    still = [index for index, (a, b) in enumerate(pairwise(nodes)) if a == b]
    if still:
        raise PolicyError(
            f"step {still[0]} of this schedule ends where it starts, at {nodes[still[0]]:g}, so "
            "FittedProfiler cannot tell its velocity; calibrate with a scheduler of one network "
            "call a step"
        )
    return tuple(nodes)


def combined(values: Sequence[Tensor], weights: Tensor, channel_dim: int) -> Tensor:
    """The weighted sum of features, with weights `[C or 1, n + 2]`."""
    shape = [1] * values[0].ndim
    shape[channel_dim] = len(weights)
    total = torch.zeros_like(values[0])
    for value, column in zip(values, weights.T, strict=True):
        if bool((column != 0).any()):
            total = total + value * column.to(value).reshape(shape)
    return total
