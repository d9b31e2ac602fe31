"""The records of the benchmarks, as `docs/data/` holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data"
BESIDE_MODULES = (
    "plain, same solver",
    "ERTACache",
    "TaylorSeer, whole output",
    "FORA, whole output",
    "uniform reuse",
    "uniform + line",
    "fitted reuse, multistep plan",
    "FORA, modules",
    "TaylorSeer, modules",
    "HiCache, modules",
    "DeepCache",
    "DeepCache, branch 1",
    "PAB, spatial",
    "CFG-Cache",
    "CFG-Cache, no bands",
    "attention extrapolation",
    "FasterCache",
    "H2-Cache",
    "H2-Cache, split after 3",
    "first-block gate",
    "BlockCache",
    "PreciseCache, flash",
    "CFG-Cache, no bands + DeepCache",
)
"""Rows inside the network, and whole outputs beside them."""


def compare_modules(model: str, samples: int) -> str:
    """The command that measures them on a model."""
    rows = " ".join(f'--row "{name}"' for name in BESIDE_MODULES)
    return (
        f"erta bench peers --model {model} --calls 37 --calls 25 --calls 17 {rows} "
        f"--samples {samples} --seeds 1 --calibration 4 --batch-size {samples}"
    )


STUDIES = {
    ("noise-length", "shapes-unet"): "--samples 8",
    ("noise-length", "shapes-wan"): "--samples 8",
    ("noise-scale", "shapes-unet"): "--samples 8",
    ("noise-scale", "shapes-wan"): "--samples 2",
    ("module-tables", "shapes-unet"): "--samples 4 --calibration 2",
    ("module-tables", "shapes-wan"): "--samples 4 --calibration 2",
}
"""Studies on models, with their options."""


def command_study(name: str, model: str) -> tuple[str, str]:
    """The file of a study on a model, and the command that measures it."""
    file = f"study_{name}_{model}".replace("-", "_")
    return file, f"erta bench study {name} --model {model} {STUDIES[name, model]}"


COMMANDS = {
    "accuracy": "python -m erta_bench.shapes_wan.check",
    "accuracy_image": "python -m erta_bench.shapes_image.check",
    "fitted": "erta bench fitted --model mixture --part calls --part choices --part samples "
    "--part robust --part solvers",
    "fitted_robust": "erta bench fitted --part robust --samples 8",
    "fitted_25": "erta bench fitted --calls 25 --samples 8",
    "fitted_17": "erta bench fitted --calls 17 --samples 8",
    "fitted_12": "erta bench fitted --calls 12 --samples 8",
    "fitted_choices": "erta bench fitted --part choices --samples 8",
    "fitted_unet": "erta bench fitted --model shapes-unet --calls 25 --calls 17 --calls 12 "
    "--calls 8",
    "modules_unet": compare_modules("shapes-unet", 12),
    "modules_flux": compare_modules("shapes-flux", 12),
    "modules_wan": compare_modules("shapes-wan", 12),
    "modules_mild": 'erta bench peers --model shapes-flux --calls 45 --row "plain, same solver" '
    '--row "uniform reuse" --row "uniform + line" --row "PAB, spatial" '
    '--row "attention extrapolation" --row BlockCache --row FasterCache --samples 12 --seeds 1 '
    "--calibration 4 --batch-size 12",
    "study_gates_shapes-flux": "erta bench study gates --model shapes-flux",
    "study_gates_shapes-wan": "erta bench study gates --model shapes-wan",
    "study_surrogates_shapes-flux": "erta bench study surrogates --model shapes-flux",
    "study_surrogates_shapes-wan": "erta bench study surrogates --model shapes-wan",
    "study_quantised_shapes_unet": "erta bench study quantised --model shapes-unet",
    "study_quantised_shapes_wan": "erta bench study quantised --model shapes-wan",
    "study_quantised_layer": "erta bench study quantised-layer --model shapes-unet --samples 1 "
    "--calibration 1 --steps 4",
    "peersflux": "erta bench peers --model shapes-flux",
    "peersunet": "erta bench peers --model shapes-unet",
    **dict(command_study(name, model) for name, model in STUDIES),
}
"""What writes a file where it is not the benchmark of its name with no options."""

Record = dict[str, Any]
Row = dict[str, Any]


class MissingDataError(Exception):
    """A table's JSON file is not there, or does not hold what a page shows of it."""


def find_command(name: str) -> str:
    """The command that writes the record of a name."""
    made = COMMANDS.get(name, f"erta bench {name.replace('_', '-')}")
    return f"{made} --json docs/data/{name}.json"


def load_record(name: str, folder: Path = DATA) -> Record:
    """The record of a benchmark.

    Raises:
        MissingDataError: There is none; names the command that writes it.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        raise MissingDataError(f"no {path.name} in docs/data; write it with `{find_command(name)}`")
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    if not record.get("rows"):
        raise MissingDataError(f"{path.name} holds no rows; write it with `{find_command(name)}`")
    return record
