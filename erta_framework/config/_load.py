"""YAML files and dotted overrides to plain values: the only module that imports OmegaConf."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from erta_framework.config._build import build_masked_run, build_run
from erta_framework.config._masked_config import MaskedRunConfig
from erta_framework.config._references import Resolver
from erta_framework.config._run_config import RunConfig
from erta_framework.config._yaml import DEEPEST, check_yaml, read_text
from erta_framework.errors import ConfigError, ErtaError
from erta_framework.text import escape_line, shorten, show_error, show_value


def load_config(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    only: Collection[str] | None = None,
    *,
    allow_env: bool = False,
) -> RunConfig:
    """Read a YAML file and apply dotted overrides such as `policies.0.NAME.calls=17`.

    Nothing runs while it is read. `${key}` stands for what another key holds.

    Args:
        path: The file; None starts from the defaults.
        overrides: `key=value`, dotted, in YAML syntax; applied in order.
        only: Third-party distributions whose code may be loaded; see
            `erta_framework.plugins.Catalogue`.
        allow_env: Whether `${oc.env:NAME}` and `${oc.env:NAME,default}` may read the environment.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, a value is of the wrong type or
            beyond a bound, or it asks for the environment and may not.
        RegistryError: A policy is not installed.
    """
    return build_run(read_values(path, overrides, allow_env), only)


def load_masked_config(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    only: Collection[str] | None = None,
    *,
    allow_env: bool = False,
) -> MaskedRunConfig:
    """As `load_config`, for a configuration that decodes tokens.

    Raises:
        ConfigError: As there; or the key `decoder` is missing.
        RegistryError: A policy is not installed.

    Example:
        >>> load_masked_config(None, ["decoder=confidence", "block=8"]).block
        8
    """
    return build_masked_run(read_values(path, overrides, allow_env), only)


def load_run(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    only: Collection[str] | None = None,
    *,
    allow_env: bool = False,
) -> RunConfig | MaskedRunConfig:
    """As `load_config`, for either kind: one with the key `decoder` decodes tokens.

    Raises:
        ConfigError: As there.
        RegistryError: A policy is not installed.

    Example:
        >>> type(load_run(None, ["decoder=confidence"])).__name__
        'MaskedRunConfig'
    """
    values = read_values(path, overrides, allow_env)
    return (build_masked_run if "decoder" in values else build_run)(values, only)


def read_values(
    path: str | Path | None, overrides: Sequence[str], allow_env: bool
) -> dict[str, Any]:
    """The plain values of a file with overrides, references written out.

    Raises:
        ConfigError: The file cannot be read, is beyond a bound, or asks for the environment and
            may not.
    """
    try:
        loaded = OmegaConf.create({}) if path is None else read_yaml(Path(path))
        if not OmegaConf.is_dict(loaded):
            raise ConfigError(f"{path} holds a list; a configuration is a mapping of keys")
        for override in overrides:
            apply_override(loaded, override)
        plain = OmegaConf.to_container(loaded, resolve=False)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    except ErtaError:
        raise
    except Exception as error:  # yaml and omegaconf errors have no common base
        raise ConfigError(
            f"cannot read the configuration {path or show_value(overrides)}: {show_error(error)}"
        ) from error
    assert isinstance(plain, dict)
    written = Resolver(plain, allow_env).resolve(plain)
    return {str(key): value for key, value in written.items()}


def read_yaml(path: Path) -> Any:
    """The values of a YAML file, with the references in them as they are written.

    Raises:
        OSError: It cannot be read.
        ConfigError: It is no YAML, or beyond a bound.
    """
    text = read_text(path)
    check_yaml(text, f"the configuration {path}")
    return OmegaConf.load(io.StringIO(text))


def apply_override(config: Any, override: str) -> None:
    """Set one dotted key.

    Raises:
        ConfigError: The override has no `=`, or its key leads nowhere.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"the override {show_value(override)} is not of the form key=value")
    if key.count(".") >= DEEPEST:
        raise ConfigError(
            f"the override {show_value(override)} has more than {DEEPEST} parts, the most that a "
            "key may have"
        )
    check_yaml(text, f"the override {show_value(override)}")
    value = OmegaConf.create({"value": None})
    try:
        value.merge_with_dotlist([f"value={text}"])
        plain = OmegaConf.to_container(value, resolve=False)
        assert isinstance(plain, dict)
        # replaced, not merged: solver={ddim: {}} takes the place of the file's solver
        OmegaConf.update(config, key, plain["value"], merge=False, force_add=True)
    except Exception as error:  # yaml and omegaconf errors have no common base
        said, *_ = str(error).splitlines() or [""]
        raise ConfigError(
            f"cannot apply the override {show_value(override)}: {shorten(escape_line(said))}"
        ) from error


def options_from(option: str, items: Sequence[str]) -> dict[str, Any]:
    """The values of a repeatable command-line option of the form `KEY=VALUE`.

    Raises:
        ConfigError: An item is not of this form.

    Example:
        >>> options_from("--budget", ["psnr=30"])
        {'psnr': 30}
    """
    for item in items:
        if not all(part.strip() for part in item.partition("=")):
            raise ConfigError(f"{option} {item}: it must be KEY=VALUE")
        check_yaml(item.partition("=")[2], f"{option} {show_value(item)}")
    try:
        found = OmegaConf.to_container(OmegaConf.from_dotlist(list(items)))
    except Exception as error:  # yaml and omegaconf errors have no common base
        raise ConfigError(f"{option} {' '.join(items)}: it cannot be read: {error}") from error
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
