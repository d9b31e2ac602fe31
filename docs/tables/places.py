"""Which places the networks of the test matrix have."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable

from tables.markdown import render_words

HEADINGS = [
    "Network", "Families", "Lists of blocks", "Attention", "Cross-attention", "MLP", "Cuts", "Note"
]  # fmt: skip
PARTS = ("block", "attention", "cross", "mlp")


@functools.cache
def render_places() -> str:
    """The places of every network class, found as `find_places` finds them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within diffusers are not ours to show
        from erta_bench.families import INEXACT
        from tiny_pipelines import FAMILIES

        classes: dict[str, tuple[object, list[str]]] = {}
        for name, family in FAMILIES.items():
            network = getattr(family.build(), family.inner[0].partition(".")[0])
            classes.setdefault(type(network).__name__, (network, []))[1].append(name)
    rows = []
    for cls, (network, families) in classes.items():
        notes = [f"{name}: {INEXACT[name]}" for name in families if name in INEXACT]
        rows.append([f"`{cls}`", ", ".join(families), *describe_network(network), "; ".join(notes)])
    return render_words(HEADINGS, rows)


def describe_network(network: object) -> list[str]:
    """Lists of blocks, names of attention and MLPs, and the range of cuts of one network."""
    from erta_framework.modules import find_branches, find_places

    names: dict[str, list[str]] = {}
    for place in find_places(network):  # type: ignore[arg-type]
        if place.depth >= 0:
            last = place.path.rpartition(".")[2]
            shown = last if place.kind != "block" and not last.isdigit() else place.stack
            feeding = [path.rpartition(".")[2] for path in place.members[:-1]]
            names.setdefault(place.kind, []).append(
                f"{shown} (fed by {', '.join(feeding)})" if feeding else shown
            )
    branches = find_branches(network)  # type: ignore[arg-type]
    return [
        *(list_names(names.get(kind, []), bool(branches)) for kind in PARTS),
        f"0 to {branches[-1]}" if branches else "",
    ]


def list_names(names: Iterable[str], short: bool) -> str:
    """Different names, as code; the last parts of them, if short."""
    shown = dict.fromkeys(name.rpartition(".")[2] if short else name for name in names)
    return ", ".join(f"`{name}`" for name in shown)
