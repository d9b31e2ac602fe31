"""`erta bench masked`: rules that reuse keys and values, by order of decoding.

Every row is measured beside the run without a cache, in the same process and with the same seeds.
Validity alone would praise a rule that always writes the same word, so the number of different
valid words stands beside it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import pstdev

import torch
from rich.console import Console

from erta_bench.core import Bench, Row, Value, average
from erta_bench.masked._rules import NO_CACHE, DecodingOrder, Rule, make_orders, make_rules
from erta_framework.errors import InputError
from erta_framework.masked import MaskedSampler, MaskedSamples
from erta_integrations.words import (
    WordsModel,
    find_weights,
    load_permutations_model,
    load_words_model,
    read_training,
)

MODELS: dict[str, Callable[[], WordsModel]] = {
    "words": load_words_model,
    "permutations": load_permutations_model,
}
COLUMNS = {
    "order": "order",
    "rule": "rule",
    "valid": "valid",
    "valid_std": "+-",
    "distinct": "distinct",
    "rows_computed": "rows",
    "work": "work",
    "seconds_ratio": "seconds",
}
STRIDE = 1_000_003
"""Between the seeds of two seed sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedSetting:
    """What all rows share.

    Attributes:
        model: Name of a trained model, `words` or `permutations`.
        samples: Sequences of a seed set.
        seed_sets: Repetitions with other seeds.
        temperature: Of the Gumbel noise.
        batch_size: Sequences of a batch.
        seed: First seed.

    Raises:
        InputError: There is no such model, or a number is less than 1.
    """

    model: str = "words"
    samples: int = 400
    seed_sets: int = 3
    temperature: float = 1.0
    batch_size: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise InputError(f"the model is {self.model!r}; choose one of {', '.join(MODELS)}")
        if min(self.samples, self.seed_sets, self.batch_size) < 1:
            raise InputError(
                f"{self.samples} samples, {self.seed_sets} seed sets and batches of "
                f"{self.batch_size}; give at least 1 each"
            )


@dataclass(frozen=True, slots=True)
class Cell:
    """One rule in one order: what each seed set gave."""

    samples: tuple[MaskedSamples, ...]
    processor: float


def compare_rules(
    setting: MaskedSetting,
    *,
    orders: Sequence[str] = (),
    delays: Sequence[int] = (0, 1, 2, 3),
    refreshes: Sequence[int | None] = (4, None),
    console: Console | None = None,
    command: str = "masked",
    keep: Callable[[Bench], object] = lambda _: None,
) -> Bench:
    """Measure every rule in every order.

    Args:
        setting: Model, samples and seeds.
        orders: Names of orders; all by default.
        delays: Delays of dKV-Cache-Decode.
        refreshes: Its refreshes; None is never.
        console: Where progress is printed.
        command: Named in the result.
        keep: Called with what there is after each order.

    Raises:
        InputError: There is no order of this name.
    """
    made = make_orders(setting.temperature)
    names = [order.name for order in made]
    if strange := sorted(set(orders) - set(names)):
        raise InputError(f"there is no order {strange[0]!r}; choose from {', '.join(names)}")
    model, rows = MODELS[setting.model](), []
    facts = describe_setting(setting, model)
    for order in made:
        if orders and order.name not in orders:
            continue
        full: Cell | None = None
        for rule in make_rules(delays, refreshes):
            if not rule.fits(order):
                continue
            cell = measure_rule(model, rule, order, setting)
            full = cell if full is None else full
            rows.append(make_row(model, rule, order, cell, full))
            if console is not None:
                console.print(f"{order.name}: {rule.name}  valid {rows[-1]['valid']:.3f}")
        keep(Bench(command, rows, COLUMNS, facts, section="order"))
    return Bench(command, rows, COLUMNS, facts, section="order")


def measure_rule(
    model: WordsModel, rule: Rule, order: DecodingOrder, setting: MaskedSetting
) -> Cell:
    """Sample every seed set under one rule."""
    answer = model.task.length - model.task.prompt_length
    sampler = MaskedSampler(
        rule.policies,
        schedule=order.schedule(answer, rule.tokens),
        decoder=order.decoder,
        accelerator="cpu",
        batch_size=setting.batch_size,
    )
    ids = model.make_ids(setting.samples)
    started = time.process_time()
    samples = tuple(
        sampler.sample(
            model, ids, start=model.task.prompt_length, seed=setting.seed + STRIDE * number
        )
        for number in range(setting.seed_sets)
    )
    return Cell(samples, time.process_time() - started)


def make_row(model: WordsModel, rule: Rule, order: DecodingOrder, cell: Cell, full: Cell) -> Row:
    """The flat record of one rule in one order."""
    judged = [model.task.judge(samples.ids) for samples in cell.samples]
    valid = [share for share, _ in judged]
    _, distinct = model.task.judge(torch.cat([samples.ids for samples in cell.samples]))
    steps = average([float(samples.traces[0].network_calls) for samples in cell.samples])
    shares = [samples.rows_computed for samples in cell.samples]
    work = [samples.work for samples in cell.samples]
    calls = steps / average([float(samples.traces[0].network_calls) for samples in full.samples])
    return {
        "rule": rule.name,
        "order": order.name,
        "delay": rule.delay,
        "refresh": rule.refresh,
        "tokens_a_step": rule.tokens,
        "network_calls": steps,
        "valid": average(valid),
        "valid_std": pstdev(valid),
        "distinct": distinct,
        "rows_computed": average(shares) * calls,
        "work": average(work) * calls,
        "seconds_ratio": cell.processor / full.processor,
        "policies": "; ".join(map(repr, rule.policies)) or NO_CACHE,
        "seeds": len(cell.samples),
        "samples": len(cell.samples[0].ids),
    }


def describe_setting(setting: MaskedSetting, model: WordsModel) -> dict[str, Value]:
    """What all rows share, and how the model was trained."""
    training = json.loads(read_training(find_weights(model.task.name))["training"])
    return {
        "model": setting.model,
        "temperature": setting.temperature,
        "samples": setting.samples,
        "seed_sets": setting.seed_sets,
        "batch_size": setting.batch_size,
        "optimum": model.task.optimum,
        "sequence": model.task.length,
        **{f"training.{key}": value for key, value in training.items()},
        **model.fingerprint(),
    }
