"""YAML text to plain values, bounded before anything is built from it."""

from __future__ import annotations

from pathlib import Path

import yaml

from erta_framework.errors import ConfigError

LONGEST_FILE = 1_000_000
"""Bytes of a configuration file."""
MOST_VALUES = 10_000
"""Keys and values of a configuration, with every alias written out."""
DEEPEST = 32
"""Lists and mappings within each other."""
MOST_REFERENCES = 1000
"""References `${key}`, which take long to parse."""


def read_text(path: Path) -> str:
    """The text of a configuration file.

    Raises:
        OSError: It cannot be read.
        ConfigError: It is too large, or no UTF-8.
    """
    with path.open("rb") as file:
        data = file.read(LONGEST_FILE + 1)
    if len(data) > LONGEST_FILE:
        raise ConfigError(
            f"the configuration {path} has more than {LONGEST_FILE} bytes, the most that one may "
            "have; put prompts into a file of their own (prompts_file)"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error


def check_yaml(text: str, where: str) -> None:
    """Refuse YAML that is too deep or too large, without building it.

    An alias counts as what it stands for, so that a few lines cannot become a billion values.

    Args:
        text: The YAML.
        where: What it is, for the error.

    Raises:
        ConfigError: It is beyond a bound; names the bound. What is no YAML is refused by whoever
            loads it.
    """
    if text.count("${") > MOST_REFERENCES:
        raise ConfigError(
            f"{where} has more than {MOST_REFERENCES} references ${{key}}, the most that a "
            "configuration may have"
        )
    totals, depth = [0], 0
    anchors: dict[str, tuple[int, int]] = {}
    opened: list[tuple[str | None, int]] = []
    deepest = [0]
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            anchor = getattr(event, "anchor", None)
            if isinstance(event, yaml.AliasEvent):
                size, levels = anchors.get(anchor or "", (1, 0))
                totals[-1] += size
                deepest[-1] = max(deepest[-1], depth + levels)
            elif isinstance(event, yaml.ScalarEvent):
                totals[-1] += 1
                if anchor:
                    anchors[anchor] = (1, 0)
            elif isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                opened.append((anchor, depth))
                totals.append(1)
                deepest.append(depth)
            elif isinstance(event, yaml.CollectionEndEvent):
                name, start = opened.pop()
                size, reached = totals.pop(), deepest.pop()
                if name:
                    anchors[name] = (size, reached - start + 1)
                totals[-1] += size
                deepest[-1] = max(deepest[-1], reached)
                depth -= 1
            refuse_beyond(sum(totals), max(deepest), where)
    except yaml.YAMLError:
        return


def refuse_beyond(values: int, levels: int, where: str) -> None:
    """Refuse too many values or levels.

    Raises:
        ConfigError: Names the bound.
    """
    if levels > DEEPEST:
        raise ConfigError(
            f"{where} has lists and mappings more than {DEEPEST} levels deep, the most that a "
            "configuration may have"
        )
    if values > MOST_VALUES:
        raise ConfigError(
            f"{where} has more than {MOST_VALUES} keys and values with its aliases written out, "
            "the most that a configuration may have; put prompts into a file of their own "
            "(prompts_file)"
        )
