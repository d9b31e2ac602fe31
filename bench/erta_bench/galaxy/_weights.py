"""Finds and reads the weight files of the package galaxygrad, without importing or copying it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.optional_dependencies import MissingExtraError

PACKAGE = "galaxygrad"
INSTALL = "pip install --no-deps galaxygrad==0.2.1"
"""What the package depends on is JAX, which reading its files does not need."""
FILES: Mapping[str, str] = {
    "hsc32": "eqx_hsc_ScoreNet32.eqx",
    "hsc64": "eqx_hsc_ScoreNet64.eqx",
    "ztf32": "eqx_ZTF_ScoreNet32.eqx",
    "ztf64": "eqx_ZTF_ScoreNet64.eqx",
    "lsst60": "eqx_lsst_ScoreNet60.eqx",
    "quasar72": "eqx_quasar_lens72.eqx",
    "roman120": "eqx_roman_Scorenet120.eqx",
}
"""Weight files by network; the number is the side of its pictures in pixels."""


def find_weights(name: str) -> Path:
    """The weight file of a network, inside the installed package.

    The package is only located: importing it needs JAX, and fails where file names are told apart
    by case.

    Args:
        name: One of `FILES`.

    Raises:
        InputError: There is no such network.
        MissingExtraError: The package is not installed.
    """
    if name not in FILES:
        raise InputError(f"there is no network {name!r}; give {', '.join(FILES)}")
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    found = [path for folder in folders if (path := Path(folder, FILES[name])).is_file()]
    if not found:
        why = "is not installed" if spec is None else f"has no file {FILES[name]} in this version"
        raise MissingExtraError(
            f"galaxy-{name} needs the weights of {PACKAGE}, which {why}; {INSTALL}"
        )
    return found[0]


def read_leaves(path: Path) -> list[Tensor]:
    """The arrays of an equinox file, in order: NPY arrays one after another, nothing else.

    Args:
        path: What `equinox.tree_serialise_leaves` wrote.

    Raises:
        InputError: The file holds something else, such as pickled objects.
    """
    found = []
    size = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < size:
            try:
                array = np.load(file, allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise InputError(
                    f"{path}: no NPY array at byte {file.tell()} of {size} ({error}); give a file "
                    "that equinox.tree_serialise_leaves wrote"
                ) from error
            found.append(torch.from_numpy(np.asarray(array)))
    return found
