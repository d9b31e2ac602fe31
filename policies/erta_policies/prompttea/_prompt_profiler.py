"""`PromptProfiler`: embeds reference prompts for `PromptThreshold`."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_framework import Call, Profile, SessionInfo, Step, Traits, hookimpl
from erta_framework.calibration import make_fingerprint
from erta_framework.errors import CapabilityError, PolicyError
from erta_policies.prompttea import _prompts as prompts
from erta_policies.shared import (
    RunProfiler,
)


@dataclass(slots=True)
class PromptDirections:
    """Sums of unit embeddings of simple and of complex prompts `[2, D]`, and how many `[2]`."""

    sums: Tensor | None = None
    samples: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))


class PromptProfiler(RunProfiler):
    """Embeds reference prompts with the run's own text encoder, for `PromptThreshold`.

    Sample the reference prompts, one step is enough: the embeddings are read off the first call.
    The mean cosine similarity with a set of references needs the sum of their unit vectors only, so
    profiles merge by adding, and a prompt may be given any number of times.

    Source: PromptTea, arXiv 2507.06739, whose repository has the embeddings of 6 simple and 7
    complex prompts but not the prompts; these are ours.

    Attributes:
        simple: The prompts that count as simple.
        complex: The prompts that count as complex.
        tokens: As in `PromptThreshold`, like all that follow.
        branch: The branch with the prompts.
        half: Which half of a batched pair holds the prompts.

    Raises:
        PolicyError: A set is empty or they overlap, or a sampled prompt is in neither.

    Example:
        >>> len(PromptProfiler().calibration_prompts)
        13
    """

    kind = prompts.KIND

    simple: tuple[str, ...] = prompts.SIMPLE
    complex: tuple[str, ...] = prompts.COMPLEX
    tokens: prompts.Tokens = "valid"
    branch: str | None = None
    half: prompts.Half | None = None

    traits = Traits(requires=prompts.REQUIRED)

    def __post_init__(self) -> None:
        if not self.simple or not self.complex or set(self.simple) & set(self.complex):
            raise PolicyError(
                f"PromptProfiler has {len(self.simple)} simple and {len(self.complex)} complex "
                f"prompts, {len(set(self.simple) & set(self.complex))} of them in both; give at "
                "least one of each, and none twice"
            )

    @property
    def calibration_prompts(self) -> tuple[str, ...]:
        """Both sets."""
        return (*self.simple, *self.complex)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        unknown = [text for text in session.prompts if text not in self.calibration_prompts]
        if unknown or not session.prompts:
            said = f"{unknown[0]!r}, which is in neither set" if unknown else "no prompts"
            raise PolicyError(
                f"PromptProfiler embeds its simple and complex prompts, this request has {said}; "
                "calibrate with its calibration_prompts, or give simple=[...] and complex=[...]"
                + ("" if unknown else "; through attach, name them with run.prompts = [...]")
            )

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        found = step.session.state_of(self, PromptDirections)
        if found.sums is None and self.branch in (None, call.branch) and call.rows is None:
            found.sums = self._summed(call, step.session.prompts, found.samples)
        return (yield)

    def _summed(self, call: Call, texts: tuple[str, ...], samples: Tensor) -> Tensor:
        embedded = prompts.pool_embedding(call, self.tokens, self.half)
        if len(embedded) != len(texts):
            raise CapabilityError(
                f"PromptProfiler got {len(texts)} prompts, branch {call.branch!r} has "
                f"{len(embedded)} embeddings; for batched guidance give half='first' or 'second'"
            )
        unit = torch.nn.functional.normalize(embedded, dim=-1).double().cpu()
        sums = torch.zeros(2, unit.shape[1], dtype=torch.float64)
        for text, direction in zip(texts, unit, strict=True):
            row = 0 if text in self.simple else 1
            sums[row] += direction
            samples[row] += 1
        return sums

    def summarise(self, session: SessionInfo) -> Profile | None:
        found = session.state_of(self, PromptDirections)
        if found.sums is None:
            return None
        own = {k: v for k, v in make_fingerprint(session).items() if k in prompts.IDENTITY}
        made = Profile(
            kind=prompts.KIND.name,
            fingerprint={**own, "tokens": self.tokens},
            statistics={"directions": found.sums, "samples": found.samples},
            samples=len(session.prompts),
        )
        return prompts.KIND.check(made)
