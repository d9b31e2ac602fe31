"""The prompts of a job: one request a line, checked before anything is sampled."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erta_framework.errors import ErtaError, InputError, suggest

OWN_KEYS = ("prompt", "seed")


@dataclass(frozen=True, slots=True)
class Item:
    """One sample of a job, before it is sampled.

    Attributes:
        index: Its place in the prompts, which names its files.
        prompt: The prompt.
        seed: Decides its noise, whichever rank samples it.
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
    """Read the samples of a job.

    Args:
        prompts: A `.jsonl` file with an object a line, any other file with a prompt a line, or a
            sequence of prompts.
        seed: Sample k has `seed + k` unless its line gives one.
        known: Keys that a line may override.
        check: Raises on impossible overrides; called once for each different set.

    Raises:
        InputError: A line is wrong. The message names the file, the line, and what would be right.

    Example:
        >>> load_items(["a cat", "a dog"], seed=7, known=())[1].seed
        8
    """
    if isinstance(prompts, str | Path):
        placed = read_file(Path(prompts), seed, known)
    else:
        placed = [(f"prompt {k}", Item(k, prompt, seed + k)) for k, prompt in enumerate(prompts)]
    if not placed:
        raise InputError(f"{prompts} holds no prompts; write one a line")
    checked: set[str] = set()
    for place, item in placed:
        if not isinstance(item.prompt, str):
            raise InputError(f"{place}: the prompt is {item.prompt!r}; it must be a string")
        if check is not None and item.settings not in checked:
            checked.add(item.settings)
            try:
                check(item.overrides)
            except ErtaError as error:
                raise InputError(f"{place}: {error}") from error
    return tuple(item for _, item in placed)


def read_file(path: Path, seed: int, known: Collection[str]) -> list[tuple[str, Item]]:
    """The items of a file, each with the line it stands on; empty lines are skipped.

    Raises:
        InputError: The file cannot be read, or a line is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the prompts {path}: {error}") from error
    places = [(f"{path} line {k}", line.strip()) for k, line in enumerate(lines, 1) if line.strip()]
    if path.suffix != ".jsonl":
        return [(place, Item(k, line, seed + k)) for k, (place, line) in enumerate(places)]
    return [
        (place, parse_line(line, place, k, seed + k, known))
        for k, (place, line) in enumerate(places)
    ]


def parse_line(line: str, place: str, index: int, seed: int, known: Collection[str]) -> Item:
    """The item of one line of a `.jsonl` file.

    Raises:
        InputError: It is no object, a key is unknown or occurs twice, or prompt or seed is wrong.
    """
    try:
        values = json.loads(
            line, object_pairs_hook=require_unique_keys, parse_constant=refuse_constant
        )
    except ValueError as error:
        raise InputError(
            f'{place}: {error}; write an object such as {{"prompt": "a cat", "seed": 7}}'
        ) from error
    if not isinstance(values, dict):
        raise InputError(f'{place} is {line[:60]!r}; write an object such as {{"prompt": "a cat"}}')
    for key in values:
        if key not in OWN_KEYS and key not in known:
            raise InputError(f"{place}: unknown key {key!r}; " + suggest(key, [*OWN_KEYS, *known]))
    prompt, chosen = values.pop("prompt", None), values.pop("seed", seed)
    if not isinstance(prompt, str):
        raise InputError(f"{place}: prompt is {prompt!r}; it must be a string")
    if type(chosen) is not int or not -(2**63) <= chosen < 2**64:
        raise InputError(f"{place}: seed is {chosen!r}; it must be an integer of 64 bits")
    return Item(index, prompt, chosen, values)


def require_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python alone would keep the last of two equal keys in silence.

    Raises:
        ValueError: A key occurs twice.
    """
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"the key {key!r} is there twice")
    return dict(pairs)


def refuse_constant(name: str) -> float:
    """Refuse NaN and the infinities, which Python reads although they are no JSON.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} is no number of JSON")


def hash_items(items: Sequence[Item]) -> str:
    """Hash of the prompts, seeds and overrides of a job, in order."""
    sha = hashlib.sha256()
    for item in items:
        line = [item.prompt, item.seed, item.overrides]
        sha.update((json.dumps(line, sort_keys=True) + "\n").encode())
    return sha.hexdigest()[:32]
