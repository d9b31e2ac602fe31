"""What caching, quantising, both, and each of CacheQuant's corrections cost and keep."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from torch import nn

from erta_bench.core import TWO_AXES, Measurement, Row, Value, make_record
from erta_bench.studies._quantisation import QUANTISATIONS, count_weight_bytes, quantise
from erta_bench.studies._run import Study, StudyRun
from erta_framework import Policy, Profile
from erta_framework.modules import Cut, Select
from erta_framework.sampling import TextModel
from erta_policies.cachequant import (
    CacheQuant,
    FeatureProfiler,
    calibrate_outputs,
    correct_outputs,
    keep_weights,
)

INTERVALS = (5, 10)
SITES: Mapping[str, Cut | Select] = {
    "shapes-unet": Cut(branch=0),
    "shapes-wan": Select(kind=("block",), depth="1:-1", span=True),
}
"""What is reused: the published cut of a UNet; of a transformer all blocks but two, which is ours.
"""
IN_BLOCKS = "(?!.*time_emb).*block.*"
"""The layers that are quantised, see `is_in_block`."""
CORRECTION_SEEDS = 2_000_000
"""First seed of the samples that output corrections are fitted to."""
ALLOWED = ("model.quantized",)


@dataclass(frozen=True, slots=True)
class Variant:
    """A network of the study, quantised or not.

    Attributes:
        run: The study.
        name: How its weights are held.
        model: The model with this network.
        plain: The model before.
        profile: Features of the model before it was quantised, as published.
    """

    run: StudyRun
    name: str
    model: TextModel
    plain: TextModel
    profile: Profile

    def measure(self, what: str, policies: Sequence[Policy], interval: int | None) -> Row:
        """A row: the measured samples with this network, against those of the plain one."""
        run = self.run
        run.bar.set_title(f"{self.name}: {what}")
        setting = replace(run.setting, model=self.model)
        sampler = setting.make_sampler(policies, callbacks=[run.bar])
        samples, took = setting.sample_held_out(sampler, run.reference.seed)
        outcome = Measurement()
        run.reference.add(outcome, samples, took.processor)
        before = count_weight_bytes(as_module(self.plain))
        facts: dict[str, Value] = {
            "weights": self.name,
            "interval": interval,
            "bytes": count_weight_bytes(as_module(self.model)) / before,
            "bytes_held": count_weight_bytes(as_module(self.model), packed=False) / before,
        }
        return make_record(what, outcome, run.reference.outcome, None, facts)

    def make_policy(self, interval: int, **options: Value) -> CacheQuant:
        """CacheQuant on the places of the model."""
        return CacheQuant(
            **{
                "profile": self.profile,
                "interval": interval,
                "sites": SITES[self.run.name],
                "allow": ALLOWED,
                **options,
            }  # type: ignore[arg-type]
        )

    def correct(self, policies: Sequence[Policy]) -> AbstractContextManager[object]:
        """Corrections of every quantised layer, fitted while these policies run."""
        if self.model is self.plain:
            return nullcontext()
        kept = keep_weights(as_module(self.plain), IN_BLOCKS)
        setting = replace(self.run.setting, model=self.model)
        sampler = setting.make_sampler(policies)
        network = as_module(self.model)
        profile = calibrate_outputs(
            network,
            kept,
            lambda: sampler.sample(self.model, setting.calibration, seed=CORRECTION_SEEDS),
            samples=len(setting.calibration),
        )
        return correct_outputs(network, profile)


def study_quantised(run: StudyRun) -> Sequence[Row]:
    """Caching, quantising and both, with and without each part of CacheQuant."""
    longest = max(INTERVALS)
    profile = run.calibrate(FeatureProfiler(sites=SITES[run.name], interval=longest))
    plain = run.setting.model
    rows = list(measure_variant(Variant(run, "as trained", plain, plain, profile)))
    for name, config in QUANTISATIONS.items():
        model = copy.deepcopy(plain)
        quantise(as_module(model), config)
        rows += measure_variant(Variant(run, name, model, plain, profile))
    return rows


def measure_variant(variant: Variant) -> Iterator[Row]:
    """The rows of one network."""
    quantised = variant.model is not variant.plain
    yield variant.measure("no cache", [], None)
    if quantised:
        with variant.correct([]):
            yield variant.measure("no cache, outputs corrected", [], None)
    for interval in INTERVALS:
        policy = variant.make_policy(interval)
        rows = {
            "even groups": variant.make_policy(interval, grouping="even", correction=False),
            "best groups": variant.make_policy(interval, correction=False),
            "best groups, corrected": policy,
        }
        for name, one in rows.items():
            yield variant.measure(name, [one], interval)
        if quantised:
            with variant.correct([policy]):
                yield variant.measure("best groups, both corrected", [policy], interval)


def as_module(model: TextModel) -> nn.Module:
    """The model as the module that it is."""
    assert isinstance(model, nn.Module)
    return model


QUANTISED = Study(
    title="Caching, quantising, and both",
    run=study_quantised,
    models=tuple(SITES),
    columns={
        "weights": "weights",
        "interval": "N",
        "name": "",
        **TWO_AXES,
        "work": "work",
        "bytes": "bytes of weights",
        "processor_speedup": "speed-up here",
    },
    section="weights",
)
