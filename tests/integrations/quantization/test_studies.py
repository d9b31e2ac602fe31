"""The studies of quantised networks: their rows, and what weights weigh."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from erta_bench.studies import QUANTISATIONS, STUDIES, count_weight_bytes, quantise, run_study


def make_block() -> nn.ModuleDict:
    return nn.ModuleDict({"block": nn.Linear(64, 32), "time_emb_proj": nn.Linear(8, 4)})


@pytest.mark.parametrize(("name", "bits"), [("int8 weights", 8), ("4-bit weights", 4)])
def test_weights_weigh_their_bits(name: str, bits: int) -> None:
    network = make_block()
    before = count_weight_bytes(network)
    assert before == 4 * (64 * 32 + 32 + 8 * 4 + 4)
    quantise(network, QUANTISATIONS[name])
    saved = before - count_weight_bytes(network)
    scales = 32 * 4 + 32  # a scale and a zero point for each output channel
    assert 64 * 32 * (4 - bits / 8) - 2 * scales <= saved <= 64 * 32 * (4 - bits / 8)
    assert count_weight_bytes(network, packed=False) >= 64 * 32


@pytest.mark.parametrize("name", QUANTISATIONS)
def test_only_linear_layers_of_blocks_are_quantised(name: str) -> None:
    network = make_block()
    before = copy.deepcopy(network)
    quantise(network, QUANTISATIONS[name])
    kinds = {n: type(p).__module__.partition(".")[0] for n, p in network.named_parameters()}
    assert [n for n, kind in kinds.items() if kind != "torch"] == ["block.weight"]
    assert torch.equal(network["time_emb_proj"].weight, before["time_emb_proj"].weight)


def test_a_study_has_a_row_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erta_bench.studies._quantised.INTERVALS", (2,))
    config = QUANTISATIONS["4-bit weights"]
    monkeypatch.setattr("erta_bench.studies._quantised.QUANTISATIONS", {"few": config})
    study = STUDIES["quantised"]
    options = {"model": "shapes-unet", "samples": 1, "calibration": 2, "steps": 4, "seed": 0}
    rows = run_study("quantised", study, **options).rows
    names = [(row["weights"], row["name"], row["interval"]) for row in rows]
    cached = ["even groups", "best groups", "best groups, corrected"]
    assert names == [
        ("as trained", "no cache", None),
        *(("as trained", name, 2) for name in cached),
        ("few", "no cache", None),
        ("few", "no cache, outputs corrected", None),
        *(("few", name, 2) for name in (*cached, "best groups, both corrected")),
    ]
    assert rows[0]["psnr_mean"] is None  # the full run itself
    assert rows[0]["bytes"] == 1.0 > rows[-1]["bytes"]
    works = {row["work"] for row in rows if row["interval"] is not None}
    assert len(works) == 1
    assert works.pop() < 1.0
