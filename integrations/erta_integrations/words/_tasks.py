"""What the two networks are trained on: two words side by side, and permutations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.text import show_value

WORD_FILE = Path(__file__).with_name("words.txt")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Task(Protocol):
    """A distribution over sequences of symbols that is known exactly."""

    @property
    def name(self) -> str: ...

    @property
    def length(self) -> int:
        """Symbols of a sequence, L."""
        ...

    @property
    def prompt_length(self) -> int:
        """How many symbols at the start are given."""
        ...

    @property
    def mask_id(self) -> int:
        """The symbol that stands for a masked position; the largest one."""
        ...

    @property
    def optimum(self) -> float:
        """Entropy of an answer in nats for each of its symbols: the least loss there is."""
        ...

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Sequences `[count, L]`."""
        ...

    def judge(self, ids: Tensor) -> tuple[float, int]:
        """The valid share of sequences `[N, L]`, and how many different valid parts they hold."""
        ...

    def spell(self, ids: Sequence[int]) -> str:
        """A sequence as text; masked positions are dots."""
        ...

    def read(self, text: str) -> list[int]:
        """The symbols of a text as `spell` writes it, after those given at the start.

        Raises:
            InputError: It holds something else.
        """
        ...


@dataclass(frozen=True, slots=True)
class Words:
    """Two independent words of eight letters, out of 256 that the manual of Python uses most.

    The parts that are judged are single words, so two a sequence.
    """

    words: tuple[str, ...]
    name: str = "words"
    length: int = 16
    prompt_length: int = 0
    mask_id: int = len(LETTERS)

    @property
    def optimum(self) -> float:
        """`ln(256) / 8` = 0.693."""
        return math.log(len(self.words)) / 8

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Pairs of words `[count, 16]`."""
        table = torch.tensor([[LETTERS.index(letter) for letter in word] for word in self.words])
        return table[torch.randint(len(table), (count, 2), generator=generator)].flatten(1)

    def judge(self, ids: Tensor) -> tuple[float, int]:
        """The share of halves that are words of the list, and how many different ones."""
        halves = [self.spell(row) for row in ids.reshape(-1, 8).tolist()]
        known = set(self.words)
        valid = [half for half in halves if half in known]
        return len(valid) / len(halves), len(set(valid))

    def spell(self, ids: Sequence[int]) -> str:
        """Letters, with a space between the words."""
        text = "".join((LETTERS + ".")[symbol] for symbol in ids)
        return " ".join(text[start : start + 8] for start in range(0, len(text), 8))

    def read(self, text: str) -> list[int]:
        """Letters and dots as symbols; spaces are left out."""
        return read_marks(text.replace(" ", ""), LETTERS + ".", self.name)

    def is_word(self, text: str) -> bool:
        """Whether it is on the list."""
        return text in self.words


@dataclass(frozen=True, slots=True)
class Permutations:
    """A start symbol, then all of `count` symbols in any order."""

    count: int = 12
    name: str = "permutations"
    prompt_length: int = 1

    @property
    def length(self) -> int:
        """The start symbol and the permutation."""
        return self.count + 1

    @property
    def mask_id(self) -> int:
        """After the symbols and the start symbol."""
        return self.count + 1

    @property
    def optimum(self) -> float:
        """`ln(12!) / 12` = 1.666."""
        return math.lgamma(self.count + 1) / self.count

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Sequences `[count, 13]`."""
        order = torch.rand(count, self.count, generator=generator).argsort(1)
        return torch.cat([torch.full((count, 1), self.count), order], 1)

    def judge(self, ids: Tensor) -> tuple[float, int]:
        """The share of sequences that hold each symbol once, and how many different ones."""
        answers = ids[:, 1:]
        right = (answers.sort(1).values == torch.arange(self.count)).all(1)
        return right.float().mean().item(), len({tuple(row) for row in answers[right].tolist()})

    def spell(self, ids: Sequence[int]) -> str:
        """Symbols as letters."""
        return "".join(self._marks[symbol] for symbol in ids)

    def read(self, text: str) -> list[int]:
        """Letters and dots as symbols."""
        return read_marks(text, self._marks, self.name)

    @property
    def _marks(self) -> str:
        return LETTERS[: self.count].upper() + ":."


def read_marks(text: str, marks: str, name: str) -> list[int]:
    """The place of each character of a text among `marks`.

    Raises:
        InputError: A character is none of them.
    """
    strange = "".join(sorted(set(text) - set(marks)))
    if strange:
        raise InputError(
            f"the prompt {show_value(text)} holds {show_value(strange)}, but {name!r} reads only "
            f"{marks!r}; a dot is a letter to decode"
        )
    return [marks.index(character) for character in text]


def load_words() -> Words:
    """The task of two words, with the list that ships with the package."""
    return Words(tuple(WORD_FILE.read_text(encoding="ascii").split()))
