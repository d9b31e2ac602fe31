"""The records of the benchmarks, as `docs/data/` holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data"
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
    "peersflux": "erta bench peers --model shapes-flux",
    "peersunet": "erta bench peers --model shapes-unet",
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
        MissingDataError: There is none; names the command that writes it.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        raise MissingDataError(f"no {path.name} in docs/data; write it with `{find_command(name)}`")
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    if not record.get("rows"):
        raise MissingDataError(f"{path.name} holds no rows; write it with `{find_command(name)}`")
    return record
