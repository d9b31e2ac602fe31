"""A policy that wraps another one passes on what that one declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from erta_framework.plugins import UNITS, Policy, Traits, find_hooks, find_owners, flatten
from erta_framework.testing._compare import fail

ASKED = frozenset({"decide", "forward", "adjust_interval", "adjust_prediction"})
"""Hooks that a wrapper asks of the policy that it holds."""
ANY = (
    "corrects_computed",
    "reads_latents",
    "reads_residual",
    "reads_peers",
    "sees_every_branch",
    "deterministic",
    "collective",
)
"""Traits that a wrapper has where the policy inside has them."""
PROMISES = ("static", "agrees_inside")
"""Traits that a wrapper has only where the policy inside has them."""


def check_wrappers_forward_traits(policy: Policy) -> None:
    """What a policy inside another one requires, remembers and reads, its wrapper declares as well.

    A wrapper holds a policy in a field and implements a hook that this one implements too. The
    engine sees the wrapper alone, so a trait that it forgets is a check that is silently passed.
    """
    for part in flatten([policy]):
        for inside in find_owners([part])[1:]:
            if find_hooks(type(part)) & find_hooks(type(inside)) & ASKED:
                for problem in compare_traits(part.traits, inside.traits):
                    fail(
                        part,
                        f"{problem} of the policy inside it, {inside!r}",
                        "start from its traits: dataclasses.replace(self.policy.traits, ...)",
                    )


def compare_traits(outer: Traits, inner: Traits) -> Iterator[str]:
    """What a wrapper's traits lack of those of the policy inside it, in words."""
    if missing := inner.requires - outer.requires:
        yield f"its traits do not require {', '.join(sorted(missing))}"
    if more := outer.seams - inner.seams:
        yield f"its traits allow the seam {', '.join(sorted(more))} against those"
    if more_kinds := outer.serves - inner.serves:
        yield f"its traits serve {', '.join(sorted(more_kinds))} against those"
    if outer.memory.evaluations < inner.memory.evaluations or (
        inner.memory.pairs and not outer.memory.pairs
    ):
        yield f"its memory {outer.memory} is less than that"
    if UNITS.index(outer.decides) < UNITS.index(inner.decides):
        yield f"it decides for a {outer.decides}, against the {inner.decides}"
    for name in PROMISES:
        if getattr(outer, name) and not getattr(inner, name):
            yield f"its traits say {name}, against those"
    for name in ANY:
        if getattr(inner, name) and not getattr(outer, name):
            yield f"its traits do not say {name}, against those"


assert {field.name for field in dataclasses.fields(Traits)} == {
    "requires", "seams", "serves", "memory", "decides", *PROMISES, *ANY,
}, "a trait is not compared"  # fmt: skip
