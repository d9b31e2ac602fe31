"""`RequestCaller`: calls a pipeline as the command line's options say, and reads its samples."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erta_framework.errors import CapabilityError, ErtaError, InputError
from erta_framework.sampling import RunStart
from erta_framework.text import show_error
from erta_integrations.diffusers._step_teller import StepTeller

ARGUMENTS = {  # options of the command line, as pipelines call them
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "height": "height",
    "width": "width",
    "frames": "num_frames",
}


@dataclass(frozen=True, slots=True)
class RequestCaller:
    """Calls a pipeline for one prompt at a time, each time with the same arguments.

    Attributes:
        pipe: The diffusers pipeline.
        arguments: What every call is given beside its prompt, as the pipeline names it.
    """

    pipe: Any
    arguments: Mapping[str, Any]

    @classmethod
    def read(cls, pipe: Any, options: Mapping[str, Any]) -> RequestCaller:
        """A caller from options of the command line; None keeps the pipeline's default.

        Raises:
            InputError: An option that this pipeline does not have, or half of a size.
        """
        parameters = inspect.signature(pipe.__call__).parameters
        chosen = {name: value for name, value in options.items() if value is not None}
        for name in chosen:
            if ARGUMENTS.get(name) not in parameters:
                usable = [option for option, own in ARGUMENTS.items() if own in parameters]
                raise InputError(
                    f"{type(pipe).__name__} has no {ARGUMENTS.get(name, name)}, so {name} "
                    f"cannot be set; it has {', '.join(usable)}"
                )
        for given, other in (("height", "width"), ("width", "height")):
            # diffusers drops a size whose other half is left to it, in Stable Diffusion and others
            alone = given in chosen and other not in chosen and other in parameters
            if alone and parameters[other].default is None:
                raise InputError(
                    f"{given}={chosen[given]} without {other}: {type(pipe).__name__} may then "
                    f"take its own size for both; give {other} too"
                )
        return cls(pipe, {ARGUMENTS[name]: value for name, value in chosen.items()})

    def describe_start(self, count: int, title: str) -> RunStart:
        """What is about to run; a pipeline that says no number of steps counts as one a prompt."""
        name = ARGUMENTS["steps"]
        known = inspect.signature(self.pipe.__call__).parameters.get(name)
        steps = self.arguments.get(name, None if known is None else known.default)
        return RunStart(count, count, steps if isinstance(steps, int) else 1, title)

    def call(
        self,
        prompt: str,
        seed: int,
        output_type: str,
        told: StepTeller | None = None,
        copies: int = 1,
    ) -> Any:
        """The output of one request.

        Args:
            prompt: Of every copy.
            seed: Of its noise.
            output_type: As the pipeline takes it: `"latent"` or `"pt"`.
            told: Hears of every step.
            copies: How many samples the request has, all from the same noise.

        Raises:
            InputError: The pipeline refuses a value. Whatever else fails is raised as it is, with
                a note that says what was asked for.
        """
        generators = [torch.Generator().manual_seed(seed) for _ in range(copies)]
        watched = {}
        if told is not None and (
            "callback_on_step_end" in inspect.signature(self.pipe.__call__).parameters
        ):
            watched["callback_on_step_end"] = told
        name = type(self.pipe).__name__
        given = ", ".join(f"{key}={value}" for key, value in self.arguments.items())
        given = given or "its defaults"
        try:
            output = self.pipe(
                prompt=prompt if copies == 1 else [prompt] * copies,
                generator=generators[0] if copies == 1 else generators,
                output_type=output_type,
                return_dict=False,
                **watched,
                **self.arguments,
            )
        except ErtaError:
            raise
        except (ValueError, TypeError) as error:  # how pipelines refuse an argument
            raise InputError(
                f"{name} refuses this request ({given}): {show_error(error)}"
            ) from error
        except Exception as error:
            error.add_note(f"in a request of {name} ({given})")
            raise
        return output[0]


def require_prompts(prompts: Sequence[str]) -> None:
    """Refuse no prompts, and a string in place of a list.

    Raises:
        InputError: There are none.
    """
    if isinstance(prompts, str) or not prompts:
        raise InputError(f"prompts is {prompts!r}; give a list with at least one prompt")


def as_sample(output: Any, pipeline: str) -> Tensor:
    """Convert one output of a pipeline to `[C, H, W]` or `[C, F, H, W]` in [-1, 1], on the CPU.

    Args:
        output: What the pipeline returned for `output_type="pt"`: `[1, C, H, W]` or
            `[1, F, C, H, W]` in [0, 1].
        pipeline: Class of the pipeline, for the message.

    Raises:
        CapabilityError: It is neither.
    """
    first = output[0] if isinstance(output, Tensor | list | tuple) and len(output) == 1 else None
    if not isinstance(first, Tensor) or first.ndim not in (3, 4):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise CapabilityError(
            f'{pipeline} gave {got} for output_type="pt"; one image [1, C, H, W] or one video '
            "[1, F, C, H, W] can be written, so run this pipeline in Python with attach"
        )
    pixels = first if first.ndim == 3 else first.movedim(0, 1)
    return pixels.detach().to("cpu", torch.float32) * 2 - 1
