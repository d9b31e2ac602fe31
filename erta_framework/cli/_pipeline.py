"""`--pipeline`: any pipeline that a driver can load, instead of a bundled model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from erta_framework.attach import load_driver
from erta_framework.calibration import Solution
from erta_framework.cli._options import PipelineOptions
from erta_framework.cli._settings import list_set_keys, read_lines
from erta_framework.config import RunConfig
from erta_framework.errors import InputError
from erta_framework.plugins import Policy
from erta_framework.sampling import Callback, Samples

RUNNER = "diffusers-run"
"""Entry of `erta_framework.drivers` that loads a pipeline by name."""
WITHOUT_EFFECT = ("model", "solver", "guidance", "steps", "sigmas", "batch_size", "precision")
"""Keys of a configuration that a pipeline decides itself, or that an option replaces."""


def wants_pipeline(
    options: PipelineOptions,
    config: RunConfig,
    settings: Sequence[str] | None,
) -> bool:
    """Whether a pipeline is asked for.

    Raises:
        InputError: Options without `--pipeline`, or settings that have no effect with it.
    """
    if options.pipeline is None:
        given = [f"--{f.name}" for f in fields(options) if getattr(options, f.name) is not None]
        if given:
            raise InputError(
                f"{' and '.join(given)}: only with --pipeline; for a bundled model give "
                "key=value, such as guidance.cfg.scale=5 seed=1"
            )
        return False
    unread = list_set_keys(config, settings, WITHOUT_EFFECT)
    if unread:
        raise InputError(
            f"{', '.join(unread)} in the configuration would have no effect on a pipeline; "
            "use --steps, --guidance, --dtype and the like"
        )
    return True


def load_pipeline(options: PipelineOptions, config: RunConfig) -> Any:
    """The loaded pipeline.

    Raises:
        InputError: It cannot be loaded.
        MissingExtraError: Its libraries are not installed.
    """
    return load_driver(RUNNER)(
        options.pipeline,
        accelerator=config.accelerator,
        dtype=options.dtype,
        seam=config.seam,
        memory=config.memory,
    )


def to_arguments(options: PipelineOptions, steps: int | None, config: RunConfig) -> dict[str, Any]:
    """Seed and options of a run of the loaded pipeline."""
    return {
        "seed": config.seed if options.seed is None else options.seed,
        "steps": steps,
        "guidance": options.guidance,
        "height": options.height,
        "width": options.width,
        "frames": options.frames,
    }


def read_prompts(prompts_file: Path | None, prompts: Sequence[str] | None) -> list[str] | None:
    """The prompts of `--prompt`, or of the file of `--prompts`; None where neither is given.

    Raises:
        InputError: Both are given, or the file holds no prompts.
    """
    if prompts_file is None:
        return None if prompts is None else list(prompts)
    if prompts:
        raise InputError("got --prompt and --prompts; give one of them")
    return read_lines(prompts_file)


@dataclass(frozen=True, slots=True)
class PipelineReplayer:
    """A loaded pipeline under some policies, as a sampler that replays plans.

    Attributes:
        run: The loaded pipeline.
        policies: In call order.
        arguments: Options of the run; the seed is given to `sample`.
        callbacks: Observers of the runs.
    """

    run: Any
    policies: Sequence[Policy]
    arguments: Mapping[str, Any]
    callbacks: Sequence[Callback] = ()

    def sample(self, model: object, prompts: Sequence[str], *, seed: int = 0) -> Samples:
        """Sample one prompt after another; `model` is not used, the pipeline has its own."""
        samples: Samples = self.run.sample(
            prompts, self.policies, callbacks=self.callbacks, **{**self.arguments, "seed": seed}
        )
        return samples

    def solve(
        self, model: object, prompts: Sequence[str], *, seed: int = 0, substeps: int = 8
    ) -> Solution:
        """The nearly exact solution of what `sample` samples without policies."""
        options = {**self.arguments, "seed": seed, "substeps": substeps}
        solution: Solution = self.run.solve(prompts, **options)
        return solution


def write_picture(sample: Tensor, path: Path) -> Path:
    """Write a still `[C, H, W]` as PNG, a video `[C, F, H, W]` as GIF; values in [-1, 1].

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    from erta_framework.report import write_gif, write_png

    if sample.ndim == 4:
        return write_gif(sample, path, scale=1)
    return write_png(sample, path)
