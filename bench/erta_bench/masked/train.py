"""Train the small masked models: `python -m erta_bench.masked.train words` or `permutations`.

Any-order masking: every sequence hides a number of symbols that is uniform over 1 to all, and the
loss is the mean cross-entropy over what is hidden. Its least value is the entropy of a sequence for
each symbol; in expectation it is the masked objective of LLaDA (arXiv 2502.09992), whose weights
1/t are left out because the number of hidden symbols is drawn instead of t. Every batch follows
from (seed, step); an interrupted run continues when the same command is started again.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from erta_bench.training import TrainingOptions, parse_options, train_model
from erta_integrations.words import (
    Permutations,
    Size,
    Task,
    WordsNetwork,
    find_weights,
    load_words,
    save_network,
)

STEPS = {"words": 14_000, "permutations": 7_400}
SIZES = {"words": Size(symbols=27, places=16), "permutations": Size(symbols=14)}


def compute_masked_loss(
    task: Task, model: WordsNetwork, options: TrainingOptions, step: int, device: torch.device
) -> Tensor:
    """Mean cross-entropy over the hidden symbols of a batch that follows from (seed, step)."""
    generator = options.generator(step)
    ids = task.draw(options.batch, generator)
    answer = task.length - task.prompt_length
    count = torch.randint(1, answer + 1, (options.batch, 1), generator=generator)
    place = torch.rand(options.batch, answer, generator=generator).argsort(1).argsort(1)
    hidden = functional.pad(place < count, (task.prompt_length, 0)).to(device)
    ids = ids.to(device)
    logits = model(ids.masked_fill(hidden, task.mask_id))
    losses = functional.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
    return ((losses * hidden).sum(1) / hidden.sum(1)).mean()


def train(task: Task, options: TrainingOptions) -> None:
    """Train or continue, and write the weights at the end."""
    train_model(
        options,
        lambda: WordsNetwork(SIZES[task.name]),
        partial(compute_masked_loss, task),
        save_network,
        torch.device("cpu"),
    )


def train_masked() -> None:
    """Command line of the training script: the task, then options.

    Raises:
        SystemExit: No task is named, or an unknown one.
    """
    tasks: dict[str, Task] = {task.name: task for task in (load_words(), Permutations())}
    if len(sys.argv) < 2 or sys.argv[1] not in tasks:
        raise SystemExit(f"name a task first: {', '.join(tasks)}")
    name = sys.argv.pop(1)
    defaults = TrainingOptions(
        folder=Path("runs") / name,
        output=find_weights(name),
        steps=STEPS[name],
        batch=128,
        learning_rate=3e-3,
        save_every=500,
    )
    train(tasks[name], parse_options(defaults, __doc__))


if __name__ == "__main__":
    train_masked()
