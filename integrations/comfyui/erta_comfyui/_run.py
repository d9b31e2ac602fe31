"""`SamplerRun`: one run of a sampler as a session, a step for each sigma of its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from erta_framework import Interval, Session, SessionInfo, Trace
from erta_framework.errors import CapabilityError
from erta_framework.plugins import Engine

BRANCHES = ("cond", "uncond")
"""What ComfyUI calls the conditionings of a step, in the order of its lists (0 and 1)."""
TOLERANCE = 1e-5
"""Relative difference of a sigma from that of the schedule, which rounding explains."""
REMEDY = "use a sampler that runs the network once at each sigma, such as euler, dpmpp_2m or uni_pc"


class SamplerRun:
    """The session of one run. It opens at the first evaluation, when latents and sigmas are known.

    The step is found by the sigma of the evaluation in `sample_sigmas`, which ComfyUI gives; it is
    not counted. All conditionings of a step go through the network together, so they are computed
    or reused together, as one batched call.

    Args:
        engine: The policies.
        sampler: Name of the sampler, for messages.
    """

    def __init__(self, engine: Engine, sampler: str) -> None:
        self.sampler = sampler
        self.trace: Trace | None = None
        self._engine = engine
        self._held = ExitStack()
        self._session: Session | None = None
        self._sigmas: tuple[float, ...] = ()
        self._times: tuple[float, ...] = ()
        self._next = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.__exit__(kind, error, traceback)

    def finish(self, samples: Tensor) -> None:
        """Close the last step with the latents that the sampler returns."""
        if self._session is not None and self._next:
            self._session.end(samples)

    def evaluate(
        self,
        executor: Callable[..., Sequence[Tensor]],
        model: Any,
        conds: Sequence[Any],
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> list[Tensor]:
        """The denoised prediction of each conditioning; zeros for one that is None.

        Args:
            executor: Evaluates all conditionings, as ComfyUI would.
            model: The model.
            conds: The conditionings, or None where one is not wanted.
            x: The latents, `[B, C, ...]`.
            timestep: Their sigmas, `[B]`.
            model_options: Options of the model for this run.

        Raises:
            CapabilityError: The sampler does not run the network once at each sigma.
        """
        wanted = [place for place, cond in enumerate(conds) if cond is not None]
        if not wanted:
            return list(executor(model, conds, x, timestep, model_options))
        if self._session is None:
            self._session = self._open(model, x, model_options)
        session, index = self._session, self._find_step(timestep)
        if self._next:
            session.end(x)  # what the sampler made of the step before
        self._next = index + 1
        # a history for each set: a guider may drop conditionings on its way
        branch = "+".join(name_branch(place, len(conds)) for place in wanted)
        session.begin(self._interval(index), branches=(branch,))

        def compute() -> Tensor:
            found = executor(model, conds, x, timestep, model_options)
            return torch.cat([found[place] for place in wanted])

        # copied, because nodes after this one may write into what they get
        predicted = session.forward(torch.cat([x] * len(wanted)), compute, branch=branch).clone()
        session.settle()
        found = [torch.zeros_like(x) for _ in conds]
        for place, chunk in zip(wanted, predicted.chunk(len(wanted)), strict=True):
            found[place] = chunk
        return found

    def _open(self, model: Any, x: Tensor, model_options: dict[str, Any]) -> Session:
        """The session of this run."""
        sigmas = model_options.get("transformer_options", {}).get("sample_sigmas")
        if sigmas is None:
            raise CapabilityError(
                f"{self.sampler} does not say its sigmas (sample_sigmas), so the step of an "
                "evaluation is not known; sample through a guider of ComfyUI"
            )
        self._sigmas = tuple(map(float, sigmas.tolist()))
        if any(
            later >= sigma for sigma, later in zip(self._sigmas, self._sigmas[1:], strict=False)
        ):
            raise CapabilityError(
                f"the sigmas of {self.sampler} do not fall ({self._sigmas}), so the step of an "
                "evaluation is not known; remove the node ErtaCache for such a schedule"
            )
        self._times = read_times(model, sigmas)
        inner = type(getattr(model, "diffusion_model", model)).__name__
        info = SessionInfo(
            sigmas=self._sigmas,
            times=self._times[:-1],
            shape=tuple(x.shape),
            dtype=x.dtype,
            device=x.device,
            branches=(),
            model={"network": inner, "engine": "ComfyUI"},
            solver=self.sampler,
            prediction="sample",
            request_id=self.sampler,
        )
        session = self._held.enter_context(self._engine.session(info))
        self.trace = session.trace
        return session

    def _find_step(self, timestep: Tensor) -> int:
        """The step whose sigma this is.

        Raises:
            CapabilityError: It is none of the schedule, or not that of the next step.
        """
        # read once a step, as the samplers of ComfyUI do themselves
        given = {float(sigma) for sigma in timestep.flatten().tolist()}
        sigma = max(given)
        found = [
            index
            for index, known in enumerate(self._sigmas[:-1])
            if math.isclose(sigma, known, rel_tol=TOLERANCE)
        ]
        if len(given) > 1 or not found:
            raise CapabilityError(
                f"{self.sampler} runs the network at sigma {sorted(given)}, which is between the "
                f"{len(self._sigmas) - 1} steps of its schedule; {REMEDY}"
            )
        index = found[0]
        if index != self._next:
            verb = "again at" if index < self._next else "too early at"
            raise CapabilityError(
                f"{self.sampler} runs the network {verb} step {index} (sigma {sigma:g}), where "
                f"step {self._next} was expected; {REMEDY}, without nodes that evaluate the model "
                "themselves"
            )
        return index

    def _interval(self, index: int) -> Interval:
        sigmas, times = self._sigmas, self._times
        return Interval(index, sigmas[index], sigmas[index + 1], times[index], times[index + 1])


def name_branch(place: int, number: int) -> str:
    """What a conditioning is called, by its place in ComfyUI's list of so many.

    Guiders with more than two have orders of their own, so theirs are numbered.
    """
    return BRANCHES[place] if number <= len(BRANCHES) else f"cond{place}"


def read_times(model: Any, sigmas: Tensor) -> tuple[float, ...]:
    """The timestep that the network is given at each sigma."""
    sampling = getattr(model, "model_sampling", None)
    times = sigmas * 1000.0 if sampling is None else sampling.timestep(sigmas)
    return tuple(map(float, times.tolist()))
