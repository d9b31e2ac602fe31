"""`MaskedSampler`: the front door for masked language models."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from erta_framework.calibration import Profile
from erta_framework.errors import InputError
from erta_framework.masked._decoder import Decoder
from erta_framework.masked._loop import MaskedLoop
from erta_framework.masked._model import TokenModel
from erta_framework.masked._request import MaskedRequest
from erta_framework.masked._schedule import MaskedSchedule
from erta_framework.plugins import Engine, Policy
from erta_framework.sampling import BatchEnd, Callback, Observers, RunStart, resolve_device
from erta_framework.sampling.guidance import Guidance
from erta_framework.session import Trace


@dataclass(frozen=True, slots=True, eq=False)
class MaskedSamples:
    """What `MaskedSampler.sample` gives.

    Attributes:
        ids: Decoded tokens, `[N, L]`, on the CPU.
        seeds: Seed of each sample.
        traces: One trace a batch.
        seconds: Wall seconds.
        emitted: Profiles that profilers emitted, one a batch.
    """

    ids: Tensor
    seeds: tuple[int, ...]
    traces: tuple[Trace, ...]
    seconds: float
    emitted: tuple[Profile, ...]

    @property
    def rows_computed(self) -> float:
        """Positions that the network ran on, as a share of those of as many full calls."""
        total = sum(trace.token_total for trace in self.traces)
        return sum(trace.token_rows for trace in self.traces) / total

    @property
    def work(self) -> float:
        """The same with every layer counted; it is larger where a rule looks ahead in a layer."""
        total = sum(trace.network_samples for trace in self.traces)
        return sum(trace.work for trace in self.traces) / total


class MaskedSampler:
    """Decodes masked tokens with any `TokenModel` under a list of policies.

    Args:
        policies: In call order; empty computes every position at every step.
        callbacks: Observers, such as `ProgressBar()`.
        schedule: Blocks and steps; by default one token a step, in one block.
        decoder: Which tokens a step decodes; by default the most probable ones.
        guidance: How branches combine; by default there is one. In the unconditional branch of
            `CFG` the prompt is masked.
        accelerator: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
        batch_size: Samples a batch.

    Raises:
        CapabilityError: An unknown accelerator.
        InputError: The batch size is less than 1.

    Example:
        >>> sampler = MaskedSampler(schedule=MaskedSchedule(block=8))
        >>> samples = sampler.sample(model, ids, start=4)  # doctest: +SKIP
    """

    def __init__(
        self,
        policies: Sequence[Policy] = (),
        callbacks: Sequence[Callback] = (),
        *,
        schedule: MaskedSchedule | None = None,
        decoder: Decoder | None = None,
        guidance: Guidance | None = None,
        accelerator: str = "auto",
        batch_size: int = 16,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, it must be at least 1")
        self.policies, self.callbacks = tuple(policies), tuple(callbacks)
        self.loop = MaskedLoop(Engine(self.policies), schedule, decoder, guidance)
        self.device = resolve_device(accelerator, 1)
        self.batch_size = batch_size

    def sample(
        self,
        model: TokenModel,
        ids: Tensor,
        *,
        start: int = 0,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        seen: Tensor | None = None,
        title: str = "decoding",
        show: Callable[[int, Tensor], None] | None = None,
    ) -> MaskedSamples:
        """Decode the masked tokens of every sequence.

        Args:
            model: Predicts the tokens; a module is moved to the device of the sampler.
            ids: Tokens `[N, L]`; those to decode are the model's mask.
            start: Where the answer begins; everything before is prompt.
            seed: Sample k draws from `seed + k`.
            seeds: A seed for each sample, instead of `seed`.
            seen: Which positions are real, `[N, L]` booleans; False is padding, on the left.
            title: Shown by the progress bar.
            show: Called with each step and the tokens after it, `[B, L]`.

        Raises:
            InputError: Tokens, seeds or padding do not fit.
            CapabilityError: A policy serves latents only, or needs what the model does not offer.
            PolicyError: A rule left out positions that had to be decoded.
        """
        self.loop.check(model)
        numbers = tuple(seeds) if seeds is not None else tuple(range(seed, seed + len(ids)))
        if len(numbers) != len(ids) or not len(ids):
            raise InputError(f"{len(numbers)} seeds for {len(ids)} samples; give one a sample")
        if isinstance(model, nn.Module):
            model.to(self.device)
        starts = range(0, len(ids), self.batch_size)
        width = self._count_steps(model, ids, start)
        run = RunStart(len(ids), len(starts), width, title)
        done: list[tuple[Tensor, Trace]] = []
        emitted: list[Profile] = []
        began = time.perf_counter()
        with Observers(self.callbacks, run) as observers:
            for begin in starts:
                chosen = slice(begin, begin + self.batch_size)
                clock = time.perf_counter()
                request = MaskedRequest(
                    ids=ids[chosen].to(self.device),
                    start=start,
                    seeds=numbers[chosen],
                    seen=None if seen is None else seen[chosen].to(self.device),
                    request_id=f"batch-{begin}",
                )
                result = self.loop.run(model, request, observers.step, show)
                decoded, trace = result.ids.cpu(), result.trace
                seconds = time.perf_counter() - clock
                emitted.extend(result.emitted)
                done.append((decoded, trace))
                names = tuple(f"sample {begin + k}" for k in range(len(decoded)))
                copied = replace(trace, steps=list(trace.steps))
                observers.batch(BatchEnd(names, numbers[chosen], decoded.clone(), copied, seconds))
        return MaskedSamples(
            ids=torch.cat([decoded for decoded, _ in done]),
            seeds=numbers,
            traces=tuple(trace for _, trace in done),
            seconds=time.perf_counter() - began,
            emitted=tuple(emitted),
        )

    def _count_steps(self, model: TokenModel, ids: Tensor, start: int) -> int:
        if ids.ndim != 2 or not 0 <= start < ids.shape[1]:
            raise InputError(
                f"ids are {tuple(ids.shape)} and the answer starts at {start}; give [N, L] tokens "
                "and a start inside them"
            )
        return self.loop.schedule.plan(ids[:, start:] == model.mask_id).count_steps()


def pad_prompts(
    prompts: Sequence[Sequence[int]], answer: int, mask_id: int, pad_id: int = 0
) -> tuple[Tensor, Tensor, int]:
    """Prompts of several lengths as one batch, padded on the left, with masked answers.

    Args:
        prompts: Tokens of each prompt.
        answer: Tokens to decode.
        mask_id: The mask.
        pad_id: Stands in the padding; no position attends to it.

    Returns:
        Tokens `[N, L]`, which of them are real `[N, L]`, and where the answer begins.

    Raises:
        InputError: No prompt, or nothing to decode.

    Example:
        >>> ids, seen, start = pad_prompts([[5], [6, 7]], answer=2, mask_id=9)
        >>> ids.tolist(), start
        ([[0, 5, 9, 9], [6, 7, 9, 9]], 2)
    """
    if not prompts or answer < 1:
        raise InputError(f"{len(prompts)} prompts and an answer of {answer}; give at least 1 each")
    start = max(map(len, prompts))
    ids = torch.full((len(prompts), start + answer), mask_id)
    seen = torch.ones_like(ids, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        gap = start - len(prompt)
        ids[row, :gap], seen[row, :gap] = pad_id, False
        ids[row, gap:start] = torch.tensor(list(prompt), dtype=torch.long)
    return ids, seen, start
