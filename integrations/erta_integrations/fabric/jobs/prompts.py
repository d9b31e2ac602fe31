"""The prompts of a job: one request a line, checked before anything is sampled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erta_framework.errors import ErtaError, InputError, suggestion

OWN_KEYS = ("prompt", "seed")


@dataclass(frozen=True, slots=True)
class Item:
    """One sample of a job.

    Attributes:
        index: Its place in the prompts, which names its files.
        prompt: The prompt.
        seed: Where its noise is drawn from, whichever rank samples it.
        overrides: Settings of this request alone, such as `{"steps": 30}`.
    """

    index: int
    prompt: str
    seed: int
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> str:
        """The overrides as text: equal for requests that may share a batch."""
        return json.dumps(self.overrides, sort_keys=True)


def load_items(
    prompts: str | Path | Sequence[str],
    seed: int,
    known: Collection[str],
    check: Callable[[Mapping[str, Any]], object] | None = None,
) -> tuple[Item, ...]:
    """The samples of a job.

    Args:
        prompts: A `.jsonl` file with an object a line, any other file with a prompt a line, or a
            sequence of prompts.
        seed: Sample k has `seed + k` unless its line gives one.
        known: Keys that a line may override.
        check: Refuses impossible overrides by raising; asked once for each different set.

    Raises:
        InputError: A line is wrong; names the file, the line, and what would be right.

    Example:
        >>> load_items(["a cat", "a dog"], seed=7, known=())[1].seed
        8
    """
    if not isinstance(prompts, str | Path):
        items = [Item(k, prompt, seed + k) for k, prompt in enumerate(prompts)]
        places = [f"prompt {k}" for k in range(len(items))]
    else:
        items, places = read_file(Path(prompts), seed, known)
    if not items:
        raise InputError(f"{prompts} holds no prompts; write one a line")
    seen: set[str] = set()
    for item, place in zip(items, places, strict=True):
        if not isinstance(item.prompt, str):
            raise InputError(f"{place}: the prompt is {item.prompt!r}; it must be a string")
        if check is not None and item.settings not in seen:
            seen.add(item.settings)
            try:
                check(item.overrides)
            except ErtaError as error:
                raise InputError(f"{place}: {error}") from error
    return tuple(items)


def read_file(path: Path, seed: int, known: Collection[str]) -> tuple[list[Item], list[str]]:
    """The items of a file and the line each stands on; empty lines are passed over.

    Raises:
        InputError: The file cannot be read, or a line is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the prompts {path}: {error}") from error
    items: list[Item] = []
    places: list[str] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{path} line {number}"
            index = len(items)
            if path.suffix == ".jsonl":
                items.append(parsed(line, place, index, seed + index, known))
            else:
                items.append(Item(index, line.strip(), seed + index))
            places.append(place)
    return items, places


def parsed(line: str, place: str, index: int, seed: int, known: Collection[str]) -> Item:
    """One line of a `.jsonl` file.

    Raises:
        InputError: It is no object, a key is unknown or twice there, or prompt or seed is wrong.
    """
    try:
        values = json.loads(line, object_pairs_hook=unique, parse_constant=refused)
    except ValueError as error:
        raise InputError(
            f'{place}: {error}; write an object such as {{"prompt": "a cat", "seed": 7}}'
        ) from error
    if not isinstance(values, dict):
        raise InputError(
            f'{place} is {line.strip()[:60]!r}; write an object such as {{"prompt": "a cat"}}'
        )
    for key in values:
        if key not in OWN_KEYS and key not in known:
            raise InputError(
                f"{place}: unknown key {key!r}; " + suggestion(key, [*OWN_KEYS, *known])
            )
    if not isinstance(values.get("prompt"), str):
        raise InputError(f"{place}: prompt is {values.get('prompt')!r}; it must be a string")
    chosen = values.get("seed", seed)
    if type(chosen) is not int or not -(2**63) <= chosen < 2**64:
        raise InputError(f"{place}: seed is {chosen!r}; it must be an integer of 64 bits")
    overrides = {key: value for key, value in values.items() if key not in OWN_KEYS}
    return Item(index, values["prompt"], chosen, overrides)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, where a key stands once.

    Raises:
        ValueError: A key stands twice.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found


def refused(name: str) -> float:
    """NaN and the infinities, which are no JSON and no setting.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} is no number of JSON")


def digest(items: Sequence[Item]) -> str:
    """Hash of the prompts, seeds and overrides of a job, in order."""
    sha = hashlib.sha256()
    for item in items:
        line = [item.prompt, item.seed, item.overrides]
        sha.update((json.dumps(line, sort_keys=True) + "\n").encode())
    return sha.hexdigest()[:32]
