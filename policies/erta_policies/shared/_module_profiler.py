"""`ModuleProfiler`: the base of profilers that watch places inside the network over full runs."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from erta_framework import (
    Call,
    Evaluation,
    Profile,
    Seam,
    SessionInfo,
    Site,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.errors import PolicyError
from erta_framework.modules import Action, Ask, Keep, Of, Parts, Place, Selection, Visit
from erta_policies.shared._profiles import RunProfiler, order_branches, require_computed

Sums = dict[tuple[str, int], dict[str, Tensor]]
"""Sums of one branch, by row of the statistics and period."""
SAMPLES = "samples"
"""Name of the statistic that says how many samples were summed, of every place of a row."""
ROWS = "rows"
"""Field of the fingerprint that names the rows; no run has it, so `require_match` must allow it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One place at one step of one branch of an uncached run.

    Attributes:
        place: The place.
        index: The step.
        sigma: Where the trajectory was.
        samples: Samples of the batch; the first size of a tensor may be a multiple of it.
        outputs: What the profiler is of: the outputs or the residuals, all tensors of all visits.
        inputs: Where the profiler takes inputs: of residuals the input that each continues, of
            outputs the first tensor that each visit was given. They are copies.
    """

    place: Place
    index: int
    sigma: float
    samples: int
    outputs: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...] = ()


@dataclass(slots=True)
class Watched:
    """What one request has given so far.

    Attributes:
        sums: Of each branch.
        rows: The rows of the statistics, in the order in which the network runs their places.
        calls: The newest call of each network and branch, as `assign` saw it.
        inputs: Inputs of each place, newest step first.
        newest: The newest step.
    """

    sums: dict[str, Sums] = field(default_factory=dict)
    rows: dict[str, None] = field(default_factory=dict)
    calls: dict[Site, Parts] = field(default_factory=dict)
    inputs: dict[Site, dict[int, tuple[Tensor, ...]]] = field(default_factory=dict)
    newest: int = -1


class ModuleProfiler(RunProfiler):
    """Base of profilers that watch places inside the network at every step of full runs.

    It changes nothing: every module runs, and the sample is that of the untouched network, bit for
    bit. A subclass says what it `selects`, and gives in `measure` what one place at one step adds
    to the sums. Sums over samples merge over batches and prompts. Each statistic is
    `[b, P, K, ...]`: the branches, the rows, which the fact `rows` of the fingerprint names, and
    the periods. Beside those of the subclass there is `samples` `[b, P, K]`, how many samples were
    summed, over all places of a row. The newest `window + 1` outputs of each place are held, and
    inputs if `takes_inputs`; `memory` of the sampler bounds the outputs as for any policy.

    Two branches in one batched call share a row of branches. Where a network writes into what a
    module returned, the first step of a place is not seen.

    Source: ours.

    Example:
        >>> class Sizes(ModuleProfiler):
        ...     kind = ProfileKind("sizes", {"size": Entry(shape="b P T")})
        ...     selects = (Select(kind=("block",)),)
        ...
        ...     def measure(self, now, before):
        ...         return {"size": now.outputs[0].flatten(1).norm(dim=1).sum()}  # doctest: +SKIP
    """

    of: ClassVar[Of] = "output"
    """What is watched: the output of a place, or what a block adds to its input."""
    takes_inputs: ClassVar[bool] = False
    """Whether inputs are watched as well; of single modules only."""
    traits = Traits(seams=frozenset({Seam.MODULE}))

    @property
    def selects(self) -> Sequence[Selection]:
        """The places."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it watches")

    @property
    def window(self) -> int:
        """How many earlier steps `measure` sees."""
        return 1

    def name_row(self, place: Place) -> str:
        """The row of the statistics that a place adds to; by default one for each place."""
        return place.path

    def find_period(self, index: int, num_steps: int) -> int:
        """The period of the statistics that a step adds to; by default one for each step."""
        return index

    def measure(self, now: Seen, before: Sequence[Seen]) -> Mapping[str, Tensor]:
        """What a place at one step adds to the sums, by name.

        Args:
            now: The place at this step.
            before: The same at the steps before, newest first; fewer than `window` at the start.

        Returns:
            Sums over the samples of this call; the shape of each is the same at all steps. A name
            that is left out adds nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} measures nothing")

    # ---------------------------------------------------------------------------- hooks
    def keeps(self) -> int:
        """The outputs of this step and of those before."""
        return self.window + 1

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        if call.rows is not None:
            raise PolicyError(
                f"{type(self).__name__} observes full runs, but at step {step.index} of branch "
                f"{call.branch!r} only samples {', '.join(map(str, call.rows))} run; calibrate "
                "without skip policies"
            )
        watched = step.session.state_of(self, Watched)
        watched.calls[call.site] = call
        if not self.takes_inputs:
            return dict.fromkeys(call.sites, Keep(self.of))
        for place in call.sites:
            held = watched.inputs.setdefault(call.site_of(place), {})
            while len(held) > self.window:
                del held[min(held)]
        return dict.fromkeys(call.sites, Ask(partial(self._take_inputs, watched)))

    def _take_inputs(self, watched: Watched, visit: Visit) -> Any:
        held = watched.inputs[visit.call.site_of(visit.place)]
        given = {name: tensor.clone() for name, tensor in visit.streams.items()}
        output = visit.run(keep=self.of)
        names = visit.name_streams(output) if self.of == "residual" else list(given)[:1]
        own = tuple(given[name] for name in names)
        held[visit.step.index] = held.get(visit.step.index, ()) + own
        return output

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        require_computed(self, step, call)
        watched = step.session.state_of(self, Watched)
        watched.newest = step.index
        for parts in watched.calls.values():
            if parts.branch == call.branch and parts.index == step.index:
                self._watch(watched, parts, step.num_steps)
        return output

    def _watch(self, watched: Watched, call: Parts, num_steps: int) -> None:
        """Add what the places of one network call gave."""
        sums = watched.sums.setdefault(call.branch, {})
        period = self.find_period(call.index, num_steps)
        for place in call.sites:
            inputs = watched.inputs.get(call.site_of(place), {})
            seen = [see(place, one, inputs, call.batch) for one in call.kept(place)]
            row = self.name_row(place)
            watched.rows[row] = None
            if not seen or seen[0].index != call.index:
                continue  # the network wrote into it
            count = torch.tensor(float(call.batch))
            total = sums.setdefault((row, period), {})
            for name, value in {**self.measure(seen[0], seen[1:]), SAMPLES: count}.items():
                value = value.detach().double().cpu()
                total[name] = total[name] + value if name in total else value

    def summarise(self, session: SessionInfo) -> Profile | None:
        watched = session.state_of(self, Watched)
        if watched.newest != session.num_steps - 1 or not watched.calls:
            return None  # it stopped early, or no network with gates ran
        branches = order_branches(session, watched.sums, {})
        periods = {self.find_period(k, session.num_steps) for k in range(session.num_steps)}
        keys = [(row, k) for row in watched.rows for k in range(1 + max(periods))]
        examples = {n: v for one in branches.values() for e in one.values() for n, v in e.items()}
        statistics = {
            name: stack_sums(list(branches.values()), keys, name, example).reshape(
                len(branches), len(watched.rows), -1, *example.shape
            )
            for name, example in examples.items()
        }
        facts = {"branches": ",".join(branches), ROWS: ",".join(watched.rows)}
        return self.emit(session, statistics, {**facts, **self.facts()})

    def facts(self) -> Mapping[str, str]:
        """Further fields of the fingerprint, such as settings that the sums depend on."""
        return {}


def see(
    place: Place, kept: Evaluation, inputs: Mapping[int, tuple[Tensor, ...]], samples: int
) -> Seen:
    """A place at the step at which something was kept."""
    tensors = tuple(kept.tensors.values())
    return Seen(place, kept.index, kept.sigma, samples, tensors, inputs.get(kept.index, ()))


def stack_sums(
    branches: Sequence[Sums], keys: Sequence[tuple[str, int]], name: str, like: Tensor
) -> Tensor:
    """One statistic of all branches, rows and periods; 0 where nothing was added."""
    nothing = torch.zeros_like(like)
    return torch.stack([sums.get(key, {}).get(name, nothing) for sums in branches for key in keys])


def read_rows(profile: Profile) -> tuple[str, ...]:
    """Names of the rows of a profile of a `ModuleProfiler`, in order."""
    return tuple(profile.fingerprint[ROWS].split(","))
