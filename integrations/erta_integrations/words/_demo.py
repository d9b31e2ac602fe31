"""`erta demo --model words`: text that fills in, with and without a cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from erta_framework.config import build_policies
from erta_framework.console import make_console
from erta_framework.files import require_writable_folder
from erta_framework.masked import Decoder, MaskedSampler, MaskedSamples
from erta_integrations.words._files import find_weights, load_network
from erta_integrations.words._model import WordsModel
from erta_integrations.words._tasks import Words, load_words

SEED, SAMPLES = 5000, 200
SHOWN = 5010
"""The seed whose steps are shown: one at which the three differ. The table below has all."""
TEMPERATURE = 0.7
"""Of the Gumbel noise: real words more often than by the training distribution."""


@dataclass(frozen=True, slots=True)
class DemoMethod:
    """One way to decode: its name, and policies as a configuration writes them."""

    name: str
    policies: tuple[dict[str, dict[str, object]], ...] = ()


METHODS = (
    DemoMethod("no cache"),
    DemoMethod("dKV-Cache, delay 1", ({"dkvcache": {"refresh": 4, "restart": "request"}},)),
    DemoMethod("cached at once", ({"dkvcache": {"delay": 0, "refresh": 4, "restart": "request"}},)),
)


class WordsDemo(WordsModel):
    """The model of two words, and what `erta demo` shows of it."""

    def run_demo(self, output: Path, console: Console) -> None:
        """Decode the same words in three ways, and write what was shown to `output`/words.txt.

        Args:
            output: Folder to write to.
            console: Where it is shown.
        """
        task = self.task
        assert isinstance(task, Words)
        require_writable_folder(output)
        parts: list[Table] = []
        frames = [self._collect_frames(method) for method in METHODS]
        parts.append(make_frames(task, frames))
        runs = [self._sample(method, SAMPLES) for method in METHODS]
        parts.append(make_summary(task, runs))
        output.mkdir(parents=True, exist_ok=True)
        path = output / "words.txt"
        with path.open("w", encoding="utf-8") as file:
            for part in parts:
                console.print(part)
                make_console(file=file, width=100).print(part)
        console.print(f"as text  {path}", markup=False, soft_wrap=True)

    def _sampler(self, method: DemoMethod) -> MaskedSampler:
        return MaskedSampler(
            build_policies(list(method.policies)),
            decoder=Decoder(order="random", temperature=TEMPERATURE),
            accelerator="cpu",
            batch_size=SAMPLES,
        )

    def _sample(self, method: DemoMethod, count: int) -> MaskedSamples:
        return self._sampler(method).sample(self, self.make_ids(count), seed=SEED)

    def _collect_frames(self, method: DemoMethod) -> list[list[int]]:
        """The tokens of one sample after every step."""
        seen: list[list[int]] = [self.make_ids(1)[0].tolist()]

        def show(_: int, ids: Tensor) -> None:
            seen.append(ids[0].tolist())

        self._sampler(method).sample(self, self.make_ids(1), seed=SHOWN, show=show)
        return seen


def make_frames(task: Words, frames: Sequence[list[list[int]]]) -> Table:
    """The same sample as it fills in, one column a method; real words are green at the end."""
    table = Table(title="one sequence of two words, step by step", title_justify="left")
    table.add_column("step", justify="right")
    for method in METHODS:
        table.add_column(method.name, no_wrap=True)
    last = len(frames[0]) - 1
    for step in range(last + 1):
        cells = [mark_words(task, column[step], step == last) for column in frames]
        table.add_row(str(step), *cells)
    return table


def mark_words(task: Words, ids: Sequence[int], done: bool) -> Text:
    """A sequence as text; in a finished one, real words are green and others red."""
    text = Text()
    for word in task.spell(ids).split():
        style = ("green" if task.is_word(word) else "red") if done else ""
        mark = ("" if task.is_word(word) else "?") if done else ""
        text.append(f"{word}{mark} ", style=style)
    return text


def make_summary(task: Words, runs: Sequence[MaskedSamples]) -> Table:
    """What the methods computed, and how many of their words are real."""
    table = Table(title=f"{SAMPLES} sequences, {2 * SAMPLES} words", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in ("tokens computed", "share", "real words", "different ones", "seconds"):
        table.add_column(name, justify="right")
    for method, run in zip(METHODS, runs, strict=True):
        valid, distinct = task.judge(run.ids)
        table.add_row(
            method.name,
            f"{sum(trace.token_rows for trace in run.traces):,}",
            f"{run.rows_computed:.2f}",
            f"{100 * valid:.1f} %",
            str(distinct),
            f"{run.seconds:.2f}",
        )
    return table


def load() -> WordsDemo:
    """Load the trained model from the weights in the package."""
    network, hashed = load_network(find_weights("words"))
    return WordsDemo(network, load_words(), hashed)
