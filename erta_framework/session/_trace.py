"""What really ran in a request, and why: measured, never inferred."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain

import torch
from torch import Tensor

from erta_framework.errors import NonFiniteError
from erta_framework.session._site import Seam, Site
from erta_framework.session._trace_records import CallTrace, StepTrace
from erta_framework.session._trace_strip import render_strip
from erta_framework.session._trace_summary import summarize


@dataclass(slots=True, repr=False)
class Trace:
    """Trace of one request.

    Attributes:
        request_id: Name of the request.
        num_steps: Steps of the nominal schedule.
        steps: The settled steps, in order.
        network_calls: Times the network really ran; batched guidance counts one call.
        network_samples: Samples that went through the network, over all its calls.
        trial_calls: Times policies ran the network in trials, on other latents or at another
            timestep; such latents may be smaller.
        trial_samples: Samples that went through the network in those.
        trial_share: Size of the latents of the trials, in latents of a network call; what they cost
            in network calls, as far as a network's cost is in proportion to their size.
        trial_seconds: Host seconds in the trials, which are part of those of the calls.
        batch: Samples of the largest network call; guidance branches that are batched count apart.
        history_bytes: Largest memory held for earlier evaluations.
        driver_bytes: Largest memory that the driver held beside them, for outputs and streams
            that have no residual of their own.
        stopped: Why the request ended before its last step; empty if it did not.
        module_bytes: Largest memory that places inside the networks held for kept outputs.
        state_bytes: The most that they will hold, known from the first network call of each branch.
        spared_samples: Samples' worth of work inside computed network calls that was left out.
        unassigned: Places that a policy owned and never assigned an action, by policy.
        token_rows: On tokens, positions that the network ran on, counted where it runs.
        token_total: On tokens, the positions of as many full calls.
        extremes: Smallest and largest value of each reused output of a static schedule, by step
            and branch, still on the device; a pair for each group of samples reused alike.
        notes: What a user should know of the request before its numbers are trusted.
    """

    request_id: str = ""
    num_steps: int = 0
    steps: list[StepTrace] = field(default_factory=list)
    network_calls: int = 0
    network_samples: int = 0
    trial_calls: int = 0
    trial_samples: int = 0
    trial_share: float = 0.0
    trial_seconds: float = 0.0
    batch: int = 0
    history_bytes: int = 0
    driver_bytes: int = 0
    stopped: str = ""
    module_bytes: int = 0
    state_bytes: int = 0
    spared_samples: float = 0.0
    unassigned: dict[str, tuple[str, ...]] = field(default_factory=dict)
    token_rows: int = 0
    token_total: int = 0
    extremes: dict[tuple[int, str], tuple[Tensor, ...]] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def count(self, x: Tensor) -> None:
        """Count one network call on `x`, `[B, C, ...]`."""
        samples = x.shape[0] if x.ndim else 1
        self.network_calls += 1
        self.network_samples += samples
        self.batch = max(self.batch, samples)

    def spare(self, samples: float) -> None:
        """Note work inside a network call that was left out, in samples of a whole call."""
        self.spared_samples += samples

    def run_trial(
        self,
        run: Callable[[Tensor, float | None], Tensor],
        whole: int,
        x: Tensor,
        timestep: float | None,
    ) -> Tensor:
        """Run the network on other latents or at another timestep, and count it.

        Args:
            run: Runs the network.
            whole: Elements of the latents of the call that asks.
            x: The latents, `[B, C, ...]`.
            timestep: The timestep; None is that of the step.
        """
        started = time.perf_counter()
        output = run(x, timestep)
        self.trial_seconds += time.perf_counter() - started
        self.trial_calls += 1
        self.trial_share += x.numel() / whole
        self.trial_samples += x.shape[0] if x.ndim else 1
        return output

    def keep_extremes(self, index: int, site: Site, output: Tensor) -> None:
        """Remember the smallest and largest value of a reused output, still on its device."""
        label = f"{site.branch}, {site.path}" if site.seam is Seam.MODULE else site.branch
        found = (*self.extremes.get((index, label), ()), *torch.aminmax(output))
        self.extremes[index, label] = found

    def calls(self) -> Iterator[CallTrace]:
        """Every branch call in order."""
        for step in self.steps:
            yield from step.calls

    def calls_for(self, sample: int) -> int:
        """Branch calls in which the network ran on one sample of the batch."""
        return sum(call.computed_for(sample) for call in self.calls())

    @property
    def samples_differed(self) -> bool:
        """Whether the network ran on part of the batch in some call."""
        return any(call.rows is not None for call in self.calls())

    @property
    def reused_calls(self) -> int:
        """Branch calls in which the network did not run."""
        return sum(not call.computed for call in self.calls())

    @property
    def work(self) -> float:
        """The work of all network calls, in samples: the sum of their shares times their samples.

        It is `network_samples` where every call was whole: on every token, with every place inside
        the network.
        """
        return self.network_samples - self.spared_samples

    @property
    def computed_steps(self) -> tuple[int, ...]:
        """Indices of the steps in which the network ran."""
        return tuple(step.index for step in self.steps if step.computed)

    def find_nonfinite(self) -> list[tuple[int, str]]:
        """Step and branch of the reused outputs of a static schedule that were not finite.

        They are not read back during sampling; this waits for the device, once for all of them.
        """
        if not self.extremes:
            return []
        values = iter(torch.stack(list(chain.from_iterable(self.extremes.values()))).tolist())
        return [
            key
            for key, found in self.extremes.items()
            if not all([math.isfinite(next(values)) for _ in found])
        ]

    def raise_if_nonfinite(self) -> None:
        """Check the reused outputs of a static schedule, which are not read back during sampling.

        Raises:
            NonFiniteError: Some reused output was NaN or infinite; names the first step.
        """
        for index, branch in self.find_nonfinite():
            raise NonFiniteError(
                f"request {self.request_id!r}: the reused output of branch {branch!r} at step "
                f"{index} is not finite; compute this step, or sample in a wider dtype"
            )

    def headline(self) -> str:
        """The trace in a line."""
        stopped = f", stopped: {self.stopped}" if self.stopped else ""
        return (
            f"{self.request_id or 'request'}: {self.network_calls} network calls, "
            f"{self.reused_calls} reused, {len(self.computed_steps)} of {len(self.steps)} steps "
            f"computed{stopped}"
        )

    def __repr__(self) -> str:
        return f"Trace({self.headline()})"

    def _repr_html_(self) -> str:
        return render_strip(self)

    def summary(self) -> str:
        """A few lines: calls made and saved, with the reasons, and what went wrong."""
        return summarize(self)

    def to_json(self) -> str:
        """The whole trace as one JSON object."""
        return json.dumps(
            {
                "request_id": self.request_id,
                "num_steps": self.num_steps,
                "network_calls": self.network_calls,
                "network_samples": self.network_samples,
                "trial_calls": self.trial_calls,
                "trial_samples": self.trial_samples,
                "trial_share": self.trial_share,
                "trial_seconds": self.trial_seconds,
                "batch": self.batch,
                "reused_calls": self.reused_calls,
                "history_bytes": self.history_bytes,
                "driver_bytes": self.driver_bytes,
                "stopped": self.stopped,
                "nonfinite": self.find_nonfinite(),
                "notes": self.notes,
                "module_bytes": self.module_bytes,
                "state_bytes": self.state_bytes,
                "work": self.work,
                "unassigned": self.unassigned,
                "token_rows": self.token_rows,
                "token_total": self.token_total,
                "steps": [asdict(step) for step in self.steps],
            }
        )
