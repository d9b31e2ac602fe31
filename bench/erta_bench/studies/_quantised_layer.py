"""What the correction of a quantised linear layer is worth, by the bits of its weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from erta_bench.core import Row
from erta_bench.studies._quantisation import (
    Quantised,
    all_in_8_bits,
    weights_in_3_bits_all_in_8,
    weights_in_4_bits_all_in_8,
    weights_in_8_bits,
)
from erta_bench.studies._run import Study, StudyRun
from erta_policies.cachequant import calibrate_outputs, correct_outputs, keep_weights

WIDTH, OUT, ROWS = 64, 48, 512
LAYERS: Mapping[str, Quantised] = {
    "int8 weights": weights_in_8_bits,
    "W8A8": all_in_8_bits,
    "W4A8": weights_in_4_bits_all_in_8,
    "W3A8": weights_in_3_bits_all_in_8,
}


def draw(seed: int, *shape: int) -> Tensor:
    """Normal numbers that are the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_inputs(seed: int, shifted: bool = True) -> Tensor:
    """Inputs of a layer, `[ROWS, WIDTH]`.

    Args:
        seed: Of the inputs.
        shifted: Whether channels have means of their own, and four of them stand out; else they are
            standard normal.
    """
    noise = draw(seed, ROWS, WIDTH)
    if not shifted:
        return noise
    scale = torch.ones(WIDTH)
    scale[:: WIDTH // 4] = 8.0
    return (draw(0, WIDTH) + noise) * scale


@torch.no_grad()
def measure_layer(config: Quantised, shifted: bool, bias: bool = True) -> tuple[float, float]:
    """Relative error of a quantised layer on held-out inputs, without and with its correction.

    Args:
        config: How it is quantised.
        shifted: As in `draw_inputs`.
        bias: Whether the layer has a bias.
    """
    from torchao.quantization import quantize_

    layer = nn.Sequential(nn.Linear(WIDTH, OUT, bias=bias)).eval()
    for number, parameter in enumerate(layer.parameters()):
        parameter.copy_(draw(4 + number, *parameter.shape) / WIDTH**0.5)
    kept, quantised = keep_weights(layer, ".*"), copy.deepcopy(layer)
    quantize_(quantised, config())
    given = draw_inputs(1, shifted)
    profile = calibrate_outputs(quantised, kept, lambda: quantised(given), samples=ROWS)
    x = draw_inputs(2, shifted)
    expected, before = layer(x), quantised(x)
    with correct_outputs(quantised, profile):
        after = quantised(x)
    size = expected.norm()
    return float((before - expected).norm() / size), float((after - expected).norm() / size)


def study_layer(run: StudyRun) -> Sequence[Row]:
    """Each width, on inputs with and without means of their own."""
    rows: list[Row] = []
    for shifted in (False, True):
        inputs = "channels with means and outliers" if shifted else "standard normal"
        for name, config in LAYERS.items():
            before, after = measure_layer(config, shifted)
            rows.append({"inputs": inputs, "name": name, "before": before, "after": after})
    return rows


QUANTISED_LAYER = Study(
    title="The correction of a quantised layer",
    run=study_layer,
    models=("shapes-unet",),
    columns={"inputs": "inputs", "name": "", "before": "error", "after": "corrected"},
    section="inputs",
)
