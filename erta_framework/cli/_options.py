"""The options of the commands, each declared once: its help text, default and validation.

An option that stands alone is an `Annotated` alias. Options that belong together are the fields of
a dataclass; a command takes the dataclass as one parameter, and `expand_options` gives Typer a
signature with the fields in its place.

The file is long because every option of every command is declared here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from erta_framework.cli._settings import read_run, read_settings
from erta_framework.config import MaskedRunConfig, RunConfig
from erta_framework.errors import CapabilityError, InputError
from erta_framework.sampling import resolve_device
from erta_framework.session import Seam

WITH_PIPELINE = "With --pipeline"
WITH_PROFILE = "With --profile"
FRONT = "The front of all budgets"
MANY = "For many prompts and devices"
QUALITY_HELP = "Budget as a named quality, such as high; what a profile measured decides."
TARGETS = ("full", "exact")
"""What plans are measured to; the first by default."""
DEVICES = ("auto", "cpu", "cuda", "mps")


def unset(help: str, *names: str, panel: str | None = None, **checks: Any) -> Any:
    """An option without a default to show."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **checks)


Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONFIG | KEY=VALUE",
        help="A configuration file (YAML), and settings that override it, such as steps=30 "
        "guidance.cfg.scale=5. Without a file, the defaults.",
        show_default=False,
    ),
]
AllowEnv = Annotated[
    bool,
    typer.Option(
        "--allow-env",
        help="Let the configuration read environment variables: ${oc.env:NAME}.",
    ),
]
Prompts = Annotated[list[str] | None, unset("A prompt; repeat for more.", "--prompt", "-p")]


def require_device(name: str) -> str:
    """The device of a `--device`, if this machine has it.

    Raises:
        InputError: There is no such device.
    """
    try:
        resolve_device(name, 1)
    except CapabilityError as error:
        raise InputError(f"--device {name}: {error}") from None
    return name


Device = Annotated[
    str,
    typer.Option(
        "--device", help="'cpu', 'cuda', 'mps' or 'auto', the fastest.", callback=require_device
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]


@dataclass(frozen=True, slots=True)
class ConfigOptions:
    """The configuration of a command that runs at a seam."""

    settings: Settings = None
    allow_env: AllowEnv = False
    seam: Annotated[
        str | None,
        unset(
            "What a reused step leaves out: 'latent', the whole network; or 'trunk', its stack of "
            "blocks, in a pipeline. Default: the configuration's."
        ),
    ] = None
    model: Annotated[
        str | None, unset("Name of a bundled model. Default: the configuration's.")
    ] = None
    device: Annotated[
        str | None, unset("'cpu', 'cuda', 'mps' or 'auto'. Default: the configuration's.")
    ] = None

    def read(self) -> RunConfig:
        """The configuration, with the seam, model and device of the options.

        Raises:
            ConfigError: The file or an override is wrong.
            InputError: Two files, or `--seam` is no seam of a pipeline.
        """
        return self.complete(read_settings(self.settings, self.allow_env))

    def read_run(self) -> RunConfig | MaskedRunConfig:
        """As `read`, or the configuration of a run that decodes tokens.

        Raises:
            ConfigError: The file or an override is wrong.
            InputError: Two files, `--seam` is no seam of a pipeline, or it is given for tokens.
        """
        config = read_run(self.settings, self.allow_env)
        if isinstance(config, RunConfig):
            return self.complete(config)
        if self.seam is not None:
            raise InputError(
                f"--seam {self.seam} has no effect on a configuration with a decoder, which "
                "decodes tokens; leave it out"
            )
        given: dict[str, Any] = {"model": self.model, "accelerator": self.device}
        return replace(config, **{k: v for k, v in given.items() if v is not None})

    def complete(self, config: RunConfig) -> RunConfig:
        """The configuration with what the options set.

        Raises:
            InputError: There is no such seam or device.
        """
        if self.seam not in (None, Seam.LATENT, Seam.TRUNK):
            raise InputError(f"seam is {self.seam!r}, it must be 'latent' or 'trunk'")
        if self.device is not None and self.device not in DEVICES:
            raise InputError(f"--device {self.device}: it must be {', '.join(DEVICES)}")
        named = {"seam": self.seam, "model": self.model, "accelerator": self.device}
        given: dict[str, Any] = named
        return replace(config, **{k: v for k, v in given.items() if v is not None})


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Prompts and steps of a run."""

    prompts: Annotated[
        Path | None,
        unset("File with one prompt a line. `erta sample` also takes a .jsonl file of requests."),
    ] = None
    steps: Annotated[int | None, unset("Number of steps.", min=1)] = None

    def apply(self, config: RunConfig) -> RunConfig:
        """The configuration of a bundled model with this number of steps.

        Raises:
            InputError: The configuration has sigmas, which say the steps.
        """
        if self.steps is None:
            return config
        if config.sigmas is not None:
            raise InputError(
                f"--steps {self.steps}, but the configuration has sigmas of "
                f"{len(config.sigmas) - 1} steps; give one of them"
            )
        return replace(config, steps=self.steps)


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """A pipeline and its settings; None takes the pipeline's own default."""

    pipeline: Annotated[
        str | None,
        unset(
            "Folder of a saved diffusers pipeline, or a hub id, instead of a bundled model.",
            panel=WITH_PIPELINE,
        ),
    ] = None
    guidance: Annotated[float | None, unset("Guidance scale.", panel=WITH_PIPELINE)] = None
    height: Annotated[int | None, unset("Height in pixels.", panel=WITH_PIPELINE, min=1)] = None
    width: Annotated[int | None, unset("Width in pixels.", panel=WITH_PIPELINE, min=1)] = None
    frames: Annotated[int | None, unset("Number of frames.", panel=WITH_PIPELINE, min=1)] = None
    seed: Annotated[
        int | None, unset("First seed: prompt k, from 0, has seed + k.", panel=WITH_PIPELINE)
    ] = None
    dtype: Annotated[
        str | None, unset("Data type: float32, bfloat16 or float16.", panel=WITH_PIPELINE)
    ] = None


@dataclass(frozen=True, slots=True)
class JobOptions:
    """A job that is divided over devices."""

    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the job in the output folder, or join it while it runs.",
            rich_help_panel=MANY,
        ),
    ] = False
    log_json: Annotated[
        bool,
        typer.Option(
            "--log-json", help="Print JSON lines, not a progress bar.", rich_help_panel=MANY
        ),
    ] = False


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """A plan from a profile alone, without a configuration."""

    profile: Annotated[
        Path | None,
        unset(
            "Plan from this profile, not from the policies of a configuration: a file, or the name "
            "of a bundled model that has a profile."
        ),
    ] = None
    calls: Annotated[
        list[int] | None,
        unset("Network calls of each branch; repeat to compare budgets.", panel=WITH_PROFILE),
    ] = None
    threshold: Annotated[
        list[float] | None, unset("Error threshold; repeatable.", panel=WITH_PROFILE)
    ] = None
    speedup: Annotated[
        list[float] | None,
        unset("Steps over network calls; repeatable.", panel=WITH_PROFILE, min=1.0),
    ] = None
    quality: Annotated[
        list[str] | None, unset(f"{QUALITY_HELP} Repeatable.", panel=WITH_PROFILE)
    ] = None
    budget: Annotated[
        list[str] | None,
        unset(
            "A budget in calls, speedup, quality, work, psnr or seconds: psnr=30; repeatable.",
            panel=WITH_PROFILE,
        ),
    ] = None
    policy: Annotated[
        str | None,
        unset(
            'Policy that plans, if not the default policy: a name, or "{name: {option: value}}"; '
            "one without a profile needs no --profile.",
            panel=WITH_PROFILE,
        ),
    ] = None
    option: Annotated[
        list[str] | None,
        unset("A setting of that policy: cost=forecast; repeatable.", panel=WITH_PROFILE),
    ] = None

    @property
    def not_calls(self) -> bool:
        """Whether there is a budget in something else than network calls."""
        return bool(self.threshold or self.speedup or self.quality or self.budget)


@dataclass(frozen=True, slots=True)
class FrontOptions:
    """The plans of all budgets."""

    front: Annotated[
        bool,
        typer.Option(
            "--front", help="Show the best plan for each number of calls.", rich_help_panel=FRONT
        ),
    ] = False
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Replay plans on calibration prompts; write PSNR and seconds into the profile.",
            rich_help_panel=FRONT,
        ),
    ] = False
    refine: Annotated[
        int,
        typer.Option(
            min=0,
            help="As --measure, and try this many moved steps in each plan.",
            rich_help_panel=FRONT,
        ),
    ] = 0
    prompts: Annotated[
        str,
        typer.Option(
            help="Prompts to replay: how many of those at hand, or a file with one a line.",
            rich_help_panel=FRONT,
        ),
    ] = "16"
    target: Annotated[
        str,
        typer.Option(
            help="What PSNR is measured to: 'full', the full run, or 'exact', the exact solution, "
            "which takes twelve more full runs.",
            rich_help_panel=FRONT,
        ),
    ] = "full"
    plot: Annotated[Path | None, unset("Draw the front into this picture.", panel=FRONT)] = None

    @property
    def measured(self) -> bool:
        """Whether plans are replayed."""
        return self.measure or self.refine > 0

    @property
    def wanted(self) -> bool:
        """Whether one of them asks for the front."""
        return self.front or self.measured or self.plot is not None


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of its option groups as parameters of their own.

    Typer reads the parameters of a function. This gives it a function whose signature lists, where
    `command` takes a dataclass of this module, that dataclass's fields.

    Example:
        >>> def show(job: JobOptions) -> None: ...
        >>> list(inspect.signature(expand_options(show)).parameters)
        ['resume', 'log_json']
    """
    signature = inspect.signature(command, eval_str=True)
    groups: Mapping[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if is_dataclass(parameter.annotation)
    }
    parameters = []
    for name, parameter in signature.parameters.items():
        group = groups.get(name)
        parameters += [parameter] if group is None else list_parameters(group)

    def run(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, __name__
    run.__annotations__ = {}
    run.__dict__["__signature__"] = signature.replace(parameters=parameters)
    return run


def list_parameters(group: type) -> list[inspect.Parameter]:
    """The fields of an option group as keyword parameters."""
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]
