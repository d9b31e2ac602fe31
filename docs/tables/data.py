"""The records of the benchmarks, as `docs/data/` holds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erta_bench.comparison.inside import ANCHORS, COMPOSED, MODULES, PLANS, WHOLE
from erta_bench.studies import SETTINGS

DATA = Path(__file__).parents[1] / "data"
GALAXIES = tuple(sorted(path.stem for path in DATA.glob("peersgalaxy*.json")))
"""Records of networks that nobody here trained; a new one needs nothing but its file."""
BUNDLED = ("peers", "peersflux", "peersunet")
"""Records of the bundled models."""


def compare_peers(file: str) -> str:
    """The command that measures everyone on the model of a record that is there."""
    record = json.loads((DATA / f"{file}.json").read_text(encoding="utf-8"))
    return f"erta bench peers --model {record['settings']['model']}"


def compare_rows(model: str, samples: int, rows: Sequence[str]) -> str:
    """The command that measures rows inside the network on a model, at three amounts of work."""
    named = " ".join(f'--row "{name}"' for name in rows)
    return (
        f"erta bench peers --model {model} --calls 37 --calls 25 --calls 17 {named} "
        f"--samples {samples} --seeds 1 --calibration 4 --batch-size {samples}"
    )


BESIDE = (*WHOLE, *MODULES, *COMPOSED)
"""Rows inside the network, and whole outputs beside them."""
WITH_PLANS = (*ANCHORS, *PLANS)
"""Rows with plans, tokens, surrogates and schedules of places, and some of the others."""
STUDIES = {
    ("noise-length", "shapes-unet"): "--samples 8",
    ("noise-length", "shapes-wan"): "--samples 8",
    ("noise-scale", "shapes-unet"): "--samples 8",
    ("noise-scale", "shapes-wan"): "--samples 8",
    ("module-tables", "shapes-unet"): "--samples 8 --calibration 4",
    ("module-tables", "shapes-wan"): "--samples 8 --calibration 4",
    ("corrections", "shapes-unet"): "--samples 8",
    ("corrections", "shapes-wan"): "--samples 8",
    ("corrections", "shapes-flux"): "--samples 8",
    **{
        ("worst-samples", model): "--samples 32 --calibration 16"
        for model in ("shapes-wan", "galaxy-hsc32")
    },
    **{(name, model): "" for name, settings in SETTINGS.items() for model in settings.models},
}
"""Studies on models, with their options."""


def command_study(name: str, model: str) -> tuple[str, str]:
    """The file of a study on a model, and the command that measures it."""
    file = f"study_{name}_{model}".replace("-", "_")
    return file, f"erta bench study {name} --model {model} {STUDIES[name, model]}".rstrip()


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
    "modules_unet": compare_rows("shapes-unet", 12, BESIDE),
    "modules_flux": compare_rows("shapes-flux", 12, BESIDE),
    "modules_wan": compare_rows("shapes-wan", 12, BESIDE),
    **{
        f"modules_plans_{name}": compare_rows(f"shapes-{name}", 8, WITH_PLANS)
        for name in ("unet", "flux", "wan")
    },
    "modules_mild": 'erta bench peers --model shapes-flux --calls 45 --row "plain, same solver" '
    '--row "uniform reuse" --row "uniform + line" --row "PAB, spatial" '
    '--row "attention extrapolation" --row BlockCache --row FasterCache --samples 12 --seeds 1 '
    "--calibration 4 --batch-size 12",
    "study_quantised_shapes_unet": "erta bench study quantised --model shapes-unet",
    "study_quantised_shapes_wan": "erta bench study quantised --model shapes-wan",
    "study_quantised_layer": "erta bench study quantised-layer --model shapes-unet --samples 1 "
    "--calibration 1 --steps 4",
    "study_surrogates_shapes-flux": "erta bench study surrogates --model shapes-flux",
    "study_surrogates_shapes-wan": "erta bench study surrogates --model shapes-wan",
    "study_gates_shapes-flux": "erta bench study gates --model shapes-flux",
    "study_gates_shapes-wan": "erta bench study gates --model shapes-wan",
    **{
        f"study_plans_shapes_{name}": f"erta bench study plans --model shapes-{name} --samples 8"
        for name in ("flux", "wan", "unet")
    },
    "peersflux": "erta bench peers --model shapes-flux",
    **{file: compare_peers(file) for file in GALAXIES},
    "peersunet": "erta bench peers --model shapes-unet",
    **dict(command_study(name, model) for name, model in STUDIES),
    "masked_permutations": "erta bench masked --model permutations",
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
        MissingDataError: There is none, or its run was stopped; names the command that writes it.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        raise MissingDataError(f"no {path.name} in docs/data; write it with `{find_command(name)}`")
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    if not record.get("rows"):
        raise MissingDataError(f"{path.name} holds no rows; write it with `{find_command(name)}`")
    if unfinished := record.get("settings", {}).get("unfinished"):
        raise MissingDataError(
            f"the run of {path.name} was stopped: {unfinished}; measure it to its end with "
            f"`{find_command(name)}`"
        )
    return record
