"""From a command's positional arguments to a configuration and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from erta_framework.config import MaskedRunConfig, RunConfig, load_config, load_run
from erta_framework.errors import InputError


def read_settings(settings: Sequence[str] | None, allow_env: bool = False) -> RunConfig:
    """The configuration that a command's positional arguments describe.

    Args:
        settings: The arguments.
        allow_env: Whether the configuration may read environment variables.

    Raises:
        InputError: Two files.
        ConfigError: The file or an override is wrong.
    """
    return load_config(*split_settings(settings), allow_env=allow_env)


def read_run(
    settings: Sequence[str] | None, allow_env: bool = False
) -> RunConfig | MaskedRunConfig:
    """As `read_settings`, of a command that also decodes tokens.

    Raises:
        InputError: Two files.
        ConfigError: The file or an override is wrong.
    """
    return load_run(*split_settings(settings), allow_env=allow_env)


def is_file(item: str) -> bool:
    """Whether a positional argument is a configuration file, not `key=value`.

    Raises:
        InputError: It is a profile.
    """
    if item.endswith((".safetensors", ".st")):
        raise InputError(
            f"{item} is a profile, not a configuration; give it as --profile {item}, or as the "
            "profile of a policy in a configuration"
        )
    return "=" not in item


def split_settings(settings: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """The configuration file, if there is one, and the overrides.

    Raises:
        InputError: Two files.
    """
    arguments = list(settings or ())
    files = [item for item in arguments if is_file(item)]
    if len(files) > 1:
        raise InputError(
            f"got {len(files)} configuration files ({', '.join(files)}); give one, and overrides "
            "as key=value"
        )
    overrides = [item for item in arguments if not is_file(item)]
    return files[0] if files else None, overrides


def list_set_keys(
    config: RunConfig, settings: Sequence[str] | None, keys: Sequence[str]
) -> list[str]:
    """Which of these keys the configuration or the overrides set."""
    default = RunConfig()
    named = {item.partition("=")[0].partition(".")[0] for item in settings or ()}
    return [
        key
        for key in keys
        if key in named or repr(getattr(config, key)) != repr(getattr(default, key))
    ]


def read_lines(path: str | Path) -> list[str]:
    """The prompts of a file, one a line; empty lines are left out.

    Raises:
        InputError: There is no such file, it is no text, or it holds none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(
            f"there is no file {path} with prompts; give a text file with one prompt a line, or "
            "--prompt TEXT"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text, which prompts are, one a line: {error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"{path} holds no prompts; write one a line")
    return prompts


def choose_prompts(
    config: RunConfig | MaskedRunConfig, given: Sequence[str] | None, fallback: Sequence[str]
) -> list[str]:
    """The given prompts, else those of the configuration, else the fallback.

    Raises:
        InputError: There are none at all.
    """
    prompts = list(given or config.prompts)
    if not prompts and config.prompts_file is not None:
        prompts = read_lines(config.prompts_file)
    prompts = prompts or list(fallback)
    if not prompts:
        raise InputError(
            "no prompts; give --prompt TEXT, or set prompts or prompts_file in the configuration"
        )
    return prompts


def choose_counted(config: RunConfig, asked: str, fallback: Sequence[str]) -> list[str]:
    """The prompts that a `--prompts` asks for which takes a number or a file.

    Args:
        config: Has prompts, perhaps.
        asked: How many of the prompts at hand, or a file with one a line.
        fallback: The prompts at hand, where the configuration has none.

    Raises:
        InputError: There is no such file, or there are no prompts.
    """
    if not asked.isdigit():
        return read_lines(asked)
    if int(asked) < 1:
        raise InputError(f"--prompts {asked}: give 1 or more, or a file with one prompt a line")
    return choose_prompts(config, None, fallback)[: int(asked)]
