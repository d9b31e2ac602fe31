"""`MaskedRunConfig`: a run that decodes masked tokens, as a configuration file describes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from erta_framework.errors import InputError
from erta_framework.masked import Decoder, MaskedSampler, MaskedSchedule
from erta_framework.plugins import Policy
from erta_framework.sampling import Callback, Guidance, NoGuidance


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedRunConfig:
    """A run of a masked language model, as written in a configuration file.

    Its key `decoder` tells it from a `RunConfig`, which samples latents.

    Attributes:
        model: Name of a bundled model that decodes tokens.
        policies: The policies, in call order; each serves tokens.
        decoder: Which tokens a step decodes.
        guidance: Combines the branches; by default there is one.
        steps: Steps for the whole answer; None decodes one token a step.
        block: Tokens of a block; None takes the whole answer as one.
        length: Tokens of the answer; None takes the model's own.
        prompts: The prompts themselves; without any, one empty prompt.
        prompts_file: A file with one prompt a line.
        samples: Samples of each prompt.
        seed: Seed of the first sample; sample k has seed + k.
        batch_size: Samples a batch.
        accelerator: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
        output: Folder to write to.

    Raises:
        InputError: `samples` or `length` is less than 1.
    """

    model: str = "words"
    policies: tuple[Policy, ...] = ()
    decoder: Decoder
    guidance: Guidance = field(default_factory=NoGuidance)
    steps: int | None = None
    block: int | None = None
    length: int | None = None
    prompts: tuple[str, ...] = ()
    prompts_file: str | None = None
    samples: int = 1
    seed: int = 0
    batch_size: int = 16
    accelerator: str = "auto"
    output: str = "runs"

    def __post_init__(self) -> None:
        for name in ("samples", "length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}, it must be at least 1")

    def make_sampler(self, callbacks: Sequence[Callback] = ()) -> MaskedSampler:
        """The sampler that this describes.

        Raises:
            CapabilityError: A policy serves latents only, or an unknown accelerator.
            InputError: A setting of the schedule or the batch is out of range.
        """
        return MaskedSampler(
            self.policies,
            callbacks,
            schedule=MaskedSchedule(steps=self.steps, block=self.block),
            decoder=self.decoder,
            guidance=self.guidance,
            accelerator=self.accelerator,
            batch_size=self.batch_size,
        )
