"""Samplers from a configuration: the own loop, or a bundled model's own pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from erta_framework.cli._settings import list_set_keys
from erta_framework.config import RunConfig
from erta_framework.errors import InputError
from erta_framework.plugins import Policy
from erta_framework.sampling import Callback, Sampler, TextModel, TextSampler

OWN_LOOP = ("solver", "guidance", "sigmas", "precision")
"""Keys of a configuration that a model's own pipeline does not read."""


def make_sampler(
    config: RunConfig, policies: Sequence[Policy], callbacks: Sequence[Callback] = ()
) -> Sampler:
    """The own loop's sampler that a configuration describes, with these policies."""
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
        memory=config.memory,
    )


def make_sampler_at_seam(
    config: RunConfig, model: TextModel, policies: Sequence[Policy], callbacks: Sequence[Callback]
) -> TextSampler:
    """The sampler of a bundled model: the own loop, or its own pipeline at the trunk seam.

    Raises:
        InputError: The model has no pipeline, or the configuration sets what that does not read.
    """
    if config.seam == "latent":
        return make_sampler(config, policies, callbacks)
    offer = getattr(model, "pipeline_sampler", None)
    if offer is None:
        raise InputError(
            f"the own loop has no seam 'trunk', and the model {config.model!r} brings no pipeline; "
            "give --pipeline FOLDER, or leave the seam at 'latent'"
        )
    unread = list_set_keys(config, (), OWN_LOOP)
    if unread:
        raise InputError(
            f"{', '.join(unread)} in the configuration would have no effect at the trunk seam, "
            f"where {config.model!r} runs in its own pipeline; leave them out"
        )
    made: TextSampler = offer(
        policies,
        callbacks,
        num_steps=config.steps,
        batch_size=config.batch_size,
        accelerator=config.accelerator,
        seam=config.seam,
        memory=config.memory,
    )
    return made


def require_own_loop(config: RunConfig) -> None:
    """Refuse the trunk seam for a bundled model on several devices, which run the own loop.

    Raises:
        InputError: The seam is not the latent one.
    """
    if config.seam != "latent":
        raise InputError(
            f"seam is {config.seam!r}, but a job and several devices run a bundled model in the "
            "own loop, at the latent seam; use one device, or --pipeline FOLDER"
        )
