"""What several commands share: arguments, prompts, models and samplers from a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from rich.console import Console

from erta_framework.cli.pipeline import said_in
from erta_framework.config import RunConfig, load_config
from erta_framework.errors import InputError, RegistryError
from erta_framework.plugins import Policy, models
from erta_framework.sampling import Callback, Sampler, TextModel, TextSampler
from erta_framework.session import Seam

OWN_LOOP = ("solver", "guidance", "sigmas", "precision")
"""Keys of a configuration that a model's own pipeline does not read."""

Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE]...",
        help="A YAML file, and dotted overrides such as steps=30 policies.0.ertacache.calls=17.",
        show_default=False,
    ),
]


def console() -> Console:
    """Standard output as it is now, so that redirection and tests see it."""
    return Console(highlight=False)


def read_settings(settings: Sequence[str] | None) -> RunConfig:
    """The configuration from a command's positional arguments.

    Raises:
        InputError: Two files.
        ConfigError: The file or an override is wrong.
    """
    arguments = list(settings or ())
    files = [item for item in arguments if "=" not in item]
    if len(files) > 1:
        raise InputError(
            f"got {len(files)} configuration files ({', '.join(files)}); give one, and overrides "
            "as key=value"
        )
    return load_config(files[0] if files else None, [item for item in arguments if "=" in item])


def load_model(name: str) -> TextModel:
    """A model of the catalogue.

    Raises:
        RegistryError: Nobody provides it, or what it returns is no `TextModel`.
    """
    model = models().load(name)()
    if not isinstance(model, TextModel):
        raise RegistryError(
            f"the model {name!r} gave {type(model).__name__}, which lacks something of "
            "erta_framework.sampling.TextModel (latent_shape, fingerprint, encode, call)"
        )
    return model


def demo_prompts(model: TextModel) -> tuple[list[str], list[str]] | None:
    """Calibration and held-out prompts, where the model brings some along.

    A model may offer `demo_prompts() -> (calibration, held-out)`, two lists that share nothing.
    """
    offer = getattr(model, "demo_prompts", None)
    if offer is None:
        return None
    calibration, held_out = offer()
    return list(calibration), list(held_out)


def shipped_profile(model: TextModel) -> Path | None:
    """The profile that the model brings along, if it offers `shipped_profile() -> Path | None`."""
    offer = getattr(model, "shipped_profile", None)
    found = None if offer is None else offer()
    return None if found is None else Path(found)


def profile_file(named: Path) -> Path:
    """The file of a profile: as it is, or that of the bundled model of this name.

    Raises:
        InputError: There is such a model, and it brings no profile that fits what is installed.
    """
    name = str(named)
    if named.exists() or name not in models().names():
        return named
    found = shipped_profile(load_model(name))
    if found is None:
        raise InputError(
            f"the model {name!r} brings no profile, or one of other weights or another version of "
            "diffusers; make one with `erta calibrate`"
        )
    return found


def prompts_of(
    config: RunConfig, given: Sequence[str] | None, fallback: Sequence[str]
) -> list[str]:
    """The prompts of a run: those given, else the configuration's, else the fallback.

    Raises:
        InputError: There are none at all.
    """
    prompts = list(given or config.prompts)
    if not prompts and config.prompts_file is not None:
        lines = Path(config.prompts_file).read_text(encoding="utf-8").splitlines()
        prompts = [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise InputError(f"{config.prompts_file} holds no prompts; write one a line")
    prompts = prompts or list(fallback)
    if not prompts:
        raise InputError("no prompts; give --prompt TEXT, or prompts or prompts_file in the config")
    return prompts


def sampler_of(
    config: RunConfig, policies: Sequence[Policy], callbacks: Sequence[Callback] = ()
) -> Sampler:
    """The sampler that a configuration describes, with these policies."""
    return Sampler(
        policies,
        callbacks,
        solver=config.solver,
        guidance=config.guidance,
        num_steps=config.steps,
        sigmas=config.sigmas,
        precision=config.precision,
        accelerator=config.accelerator,
        devices=config.devices,
        batch_size=config.batch_size,
    )


def with_seam(config: RunConfig, seam: str | None) -> RunConfig:
    """The configuration with the seam of `--seam`, where that was given.

    Raises:
        InputError: It is no seam of a pipeline.
    """
    if seam is None:
        return config
    if seam not in (Seam.LATENT, Seam.TRUNK):
        raise InputError(f"seam is {seam!r}, it must be 'latent' or 'trunk'")
    return replace(config, seam=cast(Literal["latent", "trunk"], seam))


def run_at_seam(
    config: RunConfig, model: TextModel, policies: Sequence[Policy], callbacks: Sequence[Callback]
) -> TextSampler:
    """What samples a bundled model: the own loop, or the model's own pipeline at the trunk seam.

    Raises:
        InputError: The model has no pipeline, or the configuration sets what that does not read.
    """
    if config.seam == "latent":
        return sampler_of(config, policies, callbacks)
    offer = getattr(model, "pipeline_sampler", None)
    if offer is None:
        raise InputError(
            f"the own loop has no seam 'trunk', and the model {config.model!r} brings no pipeline; "
            "give --pipeline FOLDER, or leave the seam at 'latent'"
        )
    wrong = said_in(config, (), OWN_LOOP)
    if wrong:
        raise InputError(
            f"{', '.join(wrong)} in the configuration would have no effect at the trunk seam, "
            f"where {config.model!r} runs in its own pipeline; leave them out"
        )
    made: TextSampler = offer(
        policies,
        callbacks,
        num_steps=config.steps,
        batch_size=config.batch_size,
        accelerator=config.accelerator,
        seam=config.seam,
    )
    return made
