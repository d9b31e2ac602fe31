"""`--pipeline` of `erta sample` and `erta calibrate`: any pipeline that a driver can load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from erta_framework.attach import load_driver
from erta_framework.config import RunConfig
from erta_framework.errors import InputError
from erta_framework.plugins import Policy
from erta_framework.sampling import Samples

PANEL = "With --pipeline"
RUNNER = "diffusers-run"
"""Entry of `erta_framework.drivers` that loads a pipeline by name."""
WITHOUT_EFFECT = ("model", "solver", "guidance", "steps", "sigmas", "batch_size", "precision")
"""Keys of a configuration that a pipeline decides itself, or that an option replaces."""

Pipeline = Annotated[
    str | None,
    typer.Option(
        help="A saved diffusers pipeline (folder) or a hub id, instead of a bundled model.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(help="File with one prompt a line.", show_default=False, rich_help_panel=PANEL),
]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help="Inference steps.", show_default=False, rich_help_panel=PANEL),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(help="Guidance scale.", show_default=False, rich_help_panel=PANEL),
]
Height = Annotated[
    int | None, typer.Option(min=1, help="Pixels.", show_default=False, rich_help_panel=PANEL)
]
Width = Annotated[
    int | None, typer.Option(min=1, help="Pixels.", show_default=False, rich_help_panel=PANEL)
]
Frames = Annotated[
    int | None,
    typer.Option(min=1, help="Frames of a video.", show_default=False, rich_help_panel=PANEL),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Prompt k draws its noise from seed + k.", show_default=False, rich_help_panel=PANEL
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16.", show_default=False, rich_help_panel=PANEL),
]


SeamOption = Annotated[
    str | None,
    typer.Option(
        "--seam",
        help="What a reused step leaves out: latent the whole network, trunk its block stack, in a "
        "pipeline; the config's by default.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """What the options of the panel say; None takes the pipeline's own default."""

    pipeline: str | None
    prompts: Path | None
    steps: int | None
    guidance: float | None
    height: int | None
    width: int | None
    frames: int | None
    seed: int | None
    dtype: str | None

    def wanted(self, config: RunConfig, settings: Sequence[str] | None) -> bool:
        """Whether a pipeline is asked for.

        Raises:
            InputError: Options without `--pipeline`, or settings that have no effect with it.
        """
        if self.pipeline is None:
            names = ("prompts", "steps", "guidance", "height", "width", "frames", "seed", "dtype")
            given = [f"--{name}" for name in names if getattr(self, name) is not None]
            if given:
                raise InputError(
                    f"{' and '.join(given)} only with --pipeline; a bundled model is set by "
                    "key=value, such as steps=30 prompts_file=prompts.txt"
                )
            return False
        wrong = said_in(config, settings, WITHOUT_EFFECT)
        if wrong:
            raise InputError(
                f"{', '.join(wrong)} in the configuration would have no effect on a pipeline; "
                "use --steps, --guidance, --dtype and the like"
            )
        return True

    def open(self, config: RunConfig) -> Any:
        """The loaded pipeline.

        Raises:
            InputError: It cannot be loaded.
            MissingExtraError: Its libraries are not installed.
        """
        return load_driver(RUNNER)(
            self.pipeline, accelerator=config.accelerator, dtype=self.dtype, seam=config.seam
        )

    def arguments(self, config: RunConfig) -> dict[str, Any]:
        """Seed and options of the run."""
        return {
            "seed": config.seed if self.seed is None else self.seed,
            "steps": self.steps,
            "guidance": self.guidance,
            "height": self.height,
            "width": self.width,
            "frames": self.frames,
        }

    def given_prompts(self, prompts: Sequence[str] | None) -> list[str] | None:
        """Prompts of `--prompt`, or of the file of `--prompts`.

        Raises:
            InputError: Both, or the file holds none.
        """
        if self.prompts is None:
            return None if prompts is None else list(prompts)
        if prompts:
            raise InputError("got --prompt and --prompts; give one of them")
        lines = self.prompts.read_text(encoding="utf-8").splitlines()
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise InputError(f"{self.prompts} holds no prompts; write one a line")
        return found


@dataclass(frozen=True, slots=True)
class PipelineReplayer:
    """A loaded pipeline under some policies, as replays sample.

    Attributes:
        run: What `PipelineOptions.open` gave.
        policies: In call order.
        arguments: Options of the run but its seed.
    """

    run: Any
    policies: Sequence[Policy]
    arguments: Mapping[str, Any]

    def sample(self, model: object, prompts: Sequence[str], *, seed: int = 0) -> Samples:
        """One prompt after another; the model is the pipeline's."""
        found: Samples = self.run.sample(prompts, self.policies, **{**self.arguments, "seed": seed})
        return found


def said_in(config: RunConfig, settings: Sequence[str] | None, keys: Sequence[str]) -> list[str]:
    """Which of these keys a configuration or the overrides set."""
    default = RunConfig()
    said = {item.partition("=")[0].partition(".")[0] for item in settings or ()}
    return [
        key
        for key in keys
        if key in said or repr(getattr(config, key)) != repr(getattr(default, key))
    ]


def write_picture(sample: Tensor, path: Path) -> Path:
    """Write a still `[C, H, W]` as PNG, a video `[C, F, H, W]` as GIF; in [-1, 1].

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    from erta_framework.report import write_gif, write_png

    if sample.ndim == 4:
        return write_gif(sample, path, scale=1)
    return write_png(sample, path)
