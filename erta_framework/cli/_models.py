"""Models of the catalogue with the prompts and profile they bring, and the file of a profile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from erta_framework.errors import InputError, RegistryError
from erta_framework.masked import TextTokenModel, open_decoder_catalogue
from erta_framework.plugins import Policy, models
from erta_framework.sampling import TextModel


def load_model(name: str) -> TextModel:
    """A model of the catalogue.

    Raises:
        InputError: It decodes tokens.
        RegistryError: Nobody provides it, or what it returns is no `TextModel`.
    """
    model = models().load(name)()
    if isinstance(model, TextTokenModel):
        raise InputError(
            f"the model {name!r} decodes tokens, but the configuration has no decoder, so it "
            f"samples latents; set decoder to one of {', '.join(open_decoder_catalogue().names())} "
            "(`erta sample`, `erta explain`), or choose another model"
        )
    if not isinstance(model, TextModel):
        raise RegistryError(
            f"the model {name!r} gave {type(model).__name__}, which lacks something of "
            "erta_framework.sampling.TextModel (latent_shape, fingerprint, encode, call)"
        )
    return model


def load_token_model(name: str) -> TextTokenModel:
    """A model of the catalogue that decodes tokens.

    Raises:
        InputError: It samples latents.
        RegistryError: Nobody provides it, or what it returns is no `TextTokenModel`.
    """
    model = models().load(name)()
    if isinstance(model, TextTokenModel):
        return model
    if isinstance(model, TextModel):
        raise InputError(
            f"the model {name!r} samples latents, but the configuration has a decoder, so it "
            "decodes tokens; leave decoder out, or choose a model that decodes tokens"
        )
    raise RegistryError(
        f"the model {name!r} gave {type(model).__name__}, which lacks something of "
        "erta_framework.masked.TextTokenModel (TokenModel, encode_prompts, spell)"
    )


def find_own_demo(name: str) -> Callable[[Path, Console], None] | None:
    """The demo that a model of the catalogue brings, or None where it is shown as others are.

    Such a model offers `run_demo(output, console)`; it may be of another kind than `TextModel`.

    Raises:
        RegistryError: Nobody provides the model.
    """
    own: Callable[[Path, Console], None] | None = getattr(models().load(name)(), "run_demo", None)
    return own


def get_demo_prompts(model: TextModel) -> tuple[list[str], list[str]] | None:
    """Calibration and held-out prompts of a model, or None where it brings none.

    A model may offer `demo_prompts() -> (calibration, held-out)`, two lists that share nothing.
    """
    offer = getattr(model, "demo_prompts", None)
    if offer is None:
        return None
    calibration, held_out = offer()
    return list(calibration), list(held_out)


def find_shipped_profile(model: TextModel) -> Path | None:
    """The profile that a model brings along, where it offers `shipped_profile() -> Path | None`."""
    offer = getattr(model, "shipped_profile", None)
    found = None if offer is None else offer()
    return None if found is None else Path(found)


def find_profile(named: Path) -> Path:
    """The file of a profile: the path itself, or the profile of the bundled model of this name.

    Raises:
        InputError: There is such a model, and it brings no profile that fits what is installed.
    """
    name = str(named)
    if named.exists() or name not in models().names():
        return named
    found = find_shipped_profile(load_model(name))
    if found is None:
        raise InputError(
            f"the model {name!r} brings no profile, or one of other weights or another version of "
            "diffusers; make one with `erta calibrate`"
        )
    return found


def find_profile_path(policies: Sequence[Policy]) -> Path | None:
    """The profile file of the first policy that has one."""
    for policy in policies:
        named = getattr(policy, "profile", None)
        if isinstance(named, str | Path):
            return Path(named)
    return None
