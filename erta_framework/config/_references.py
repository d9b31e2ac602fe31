"""`${key}` in the values of a configuration: what another key holds, or, if allowed, a variable.

OmegaConf would run any resolver that a configuration names, and would write out values that refer
to each other without end. Here nothing runs, and what is written out is counted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from erta_framework.config._yaml import DEEPEST, LONGEST_FILE, refuse_beyond
from erta_framework.errors import ConfigError
from erta_framework.text import escape_line, show_value

REFERENCE = re.compile(r"(\\*)\$\{([^${}]*)\}")
KEY = re.compile(r"[\w-]+(\.[\w-]+)*")
ENVIRONMENT = re.compile(r"oc\.env:\s*(\w+)\s*(?:,(.*))?", re.DOTALL)
WHERE = "the configuration"
PROBLEM = "cannot read the configuration: "


class Resolver:
    """Writes out the references of one configuration.

    Args:
        root: The whole configuration, as plain values.
        allow_env: Whether `${oc.env:NAME}` may read the environment.
    """

    def __init__(self, root: Mapping[Any, Any], allow_env: bool) -> None:
        self._root = root
        self._allow_env = allow_env
        self._open: list[str] = []
        self._values = self._characters = 0

    def resolve(self, value: Any, place: str = "", level: int = 1) -> Any:
        """The value with every reference in it written out.

        Raises:
            ConfigError: A reference leads nowhere or back to itself, asks for what is not
                allowed, or what it stands for is too large.
        """
        self._values += 1
        refuse_beyond(self._values, level - 1, WHERE)
        if isinstance(value, Mapping):
            pairs = value.items()
            return {k: self.resolve(v, join(place, k), level + 1) for k, v in pairs}
        if isinstance(value, list):
            return [self.resolve(v, join(place, k), level + 1) for k, v in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = REFERENCE.fullmatch(value)
        if whole is not None and not whole[1]:
            return self._look_up(whole[2], value, place, level)
        return self._fill(value, place, level)

    def _fill(self, text: str, place: str, level: int) -> str:
        """A text with what its references stand for in their places."""

        def write(found: re.Match[str]) -> str:
            slashes, name = found.groups()
            if len(slashes) % 2:  # \${name} is text
                return slashes[: len(slashes) // 2] + found[0][len(slashes) :]
            value = self._look_up(name, text, place, level)
            if isinstance(value, Mapping | list):
                raise ConfigError(
                    f"{PROBLEM}{escape_line(place)} is {show_value(text)}, but {name} is a "
                    f"{'mapping' if isinstance(value, Mapping) else 'list'}; refer to a single "
                    "value within a text"
                )
            return slashes[: len(slashes) // 2] + self._count(str(value))

        if "${" in REFERENCE.sub("", text):  # one within another, or one that does not end
            raise ConfigError(
                f"{PROBLEM}{escape_line(place)} is {show_value(text)}, which cannot be read; write "
                "${key}, or ${oc.env:NAME} where the environment may be read"
            )
        return REFERENCE.sub(write, text)

    def _count(self, text: str) -> str:
        self._characters += len(text)
        if self._characters > LONGEST_FILE:
            raise ConfigError(
                f"the references of {WHERE} stand for more than {LONGEST_FILE} characters, the "
                "most that they may"
            )
        return text

    def _look_up(self, name: str, text: str, place: str, level: int) -> Any:
        """What one reference stands for."""
        where = f"{PROBLEM}{escape_line(place)} is {show_value(text)}"
        if ":" in name:
            return self._read_environment(name, where)
        if not KEY.fullmatch(name):
            raise ConfigError(f"{where}; {name!r} is no key, which is written a.b.0 from the top")
        if name in self._open:
            raise ConfigError(f"{where}, which leads back to itself: {' -> '.join(self._open)}")
        if len(self._open) >= DEEPEST:
            raise ConfigError(
                f"{where}, the end of more than {DEEPEST} references to each other, the most that "
                "a configuration may have"
            )
        found: Any = self._root
        for part in name.split("."):
            found = step_into(found, part, f"{where}, and there is no {name!r}")
        self._open.append(name)
        try:
            return self.resolve(found, name, level)
        finally:
            self._open.pop()

    def _read_environment(self, name: str, where: str) -> str:
        asked = ENVIRONMENT.fullmatch(name)
        if asked is None:
            raise ConfigError(
                f"{where}, which names a resolver; a configuration runs none. Write the value, "
                "${key}, or ${oc.env:NAME} where the environment may be read"
            )
        if not self._allow_env:
            raise ConfigError(
                f"{where}, which reads the environment variable {asked[1]}; a configuration may "
                "do so only if you allow it, with --allow-env or load_config(..., allow_env=True)"
            )
        found = os.environ.get(asked[1], None if asked[2] is None else asked[2].strip(" '\""))
        if found is None:
            raise ConfigError(
                f"{where}, and the environment has no {asked[1]}; set it, or write "
                f"${{oc.env:{asked[1]},default}}"
            )
        return self._count(found)


def step_into(value: Any, part: str, problem: str) -> Any:
    """What a mapping or a list holds under one part of a dotted key.

    Raises:
        ConfigError: Nothing; says `problem`.
    """
    if isinstance(value, Mapping):
        for key in value:
            if str(key) == part:
                return value[key]
    if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
        return value[int(part)]
    raise ConfigError(f"{problem}; write the dotted key from the top of the configuration")


def join(place: str, part: object) -> str:
    """A place and a key in it."""
    return f"{place}.{part}" if place else str(part)
