"""Which contenders are measured, rows of one's own, and installed policies without a row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from erta_bench.comparison._contender import (
    BUDGET,
    SOLVED,
    Contender,
    SearchRange,
    Spec,
    calibrate_with,
    fill,
)
from erta_bench.comparison._runner import Runner
from erta_bench.comparison.contenders import CONTENDERS, UNLISTED
from erta_bench.core import Row
from erta_framework.cli import (
    describe_policies,
    find_calibrator,
    is_complete,
    make_blank_policy,
    needs_profile,
    read_policies,
)
from erta_framework.compatibility import Role, find_role
from erta_framework.config import build_policies, options_of, registered_name
from erta_framework.errors import ErtaError, InputError, suggest
from erta_framework.plugins import Catalogue, flatten, policies
from erta_framework.session import Seam
from erta_framework.text import show_error

CALLS, SOLVE = "CALLS", re.compile(r"SOLVE\s+(\S+)\.\.(\S+)")
"""What an option of `--policy` may say instead of a value."""
STEPS = 50
"""Steps for which a schedule is tried, to see whether a policy lacks a profile."""
FIXED = (
    "the options of --policy are fixed; write one of them as CALLS, or as SOLVE low..high, such as "
    "{mine: {threshold: SOLVE 0.001..1}}"
)


def is_offered(contender: Contender, runner: Runner) -> bool:
    """Whether a model has the scheduler of a plain row, and no other row is the same.

    A plain row of the full run's scheduler is there already, under the name of the same solver.
    """
    if contender.on is not None or not contender.scheduler:
        return True
    return contender.scheduler in runner.through.schedulers and (
        contender.scheduler != runner.scheduler
    )


def choose_contenders(rows: Sequence[str], contenders: Sequence[Contender]) -> list[Contender]:
    """The contenders of these names, or of policies with these names, and rows of one's own.

    Args:
        rows: Names, or policies with options, see `read_own_row`. An installed policy that no
            contender holds gets a row too. Empty means all; rows of one's own alone stand beside
            the plain ones.
        contenders: The rows of the table.

    Raises:
        InputError: Nothing has such a name.
        ConfigError: A row of one's own is no policy.
    """
    names = [contender.name for contender in contenders]
    parts = sorted({name for contender in contenders for name in contender.names})
    installed = policies().names()
    own = [row for row in rows if row not in (*names, *parts)]
    for row in own:
        if row not in installed and not row.lstrip().startswith(("{", "[")):
            known = [*names, *parts, *installed]
            raise InputError(f"no row and no policy {row!r}; {suggest(row, known)}")
    made = [read_own_row(row) for row in own]
    if own and len(own) == len(rows):
        return [*(each for each in contenders if each.kind == "plain"), *made]
    return [*(c for c in contenders if not rows or c.name in rows or c.names & set(rows)), *made]


def read_own_row(text: str) -> Contender:
    """A row from the name and the options of an installed policy.

    A budget is filled in where the policy takes one and is given none, and so is a profile that it
    needs: that is calibrated as for the other rows. `CALLS` stands for the number of calls, and
    `SOLVE low..high` for a value that is searched for, so that the work comes out. Whole numbers
    stay whole; `SOLVE high..low` where work rises with the value.

    Raises:
        ConfigError: It is no policy.
        InputError: Several options are to be solved for, or a range is none.

    Example:
        >>> read_own_row("{fora: {interval: SOLVE 1..12}}").search
        SearchRange(low=1.0, high=12.0, whole=True, rising=False)
    """
    searches: list[SearchRange] = []
    specs: list[Spec] = [complete(spec, searches) for spec in read_policies(text)]
    if len(searches) > 1:
        raise InputError(
            f"--policy {text}: {len(searches)} options say SOLVE; one can be solved for"
        )
    require_buildable(specs, searches)
    found: list[object] = []
    fill(specs, found.append)
    return Contender(
        name=re.sub(r"=SOLVE \S+", " solved", describe_policies(read_policies(text))),
        group="policy",
        policies=tuple(specs),
        search=searches[0] if searches else None,
        seam=find_seam(specs, searches),
        bound="" if BUDGET in found or SOLVED in found else FIXED,
    )


def require_buildable(specs: Sequence[Spec], searches: Sequence[SearchRange]) -> None:
    """Refuse options that no policy has before anything is measured.

    Raises:
        ErtaError: As the policy says it.
    """
    try:
        build_policies(fill(list(specs), partial(make_example, searches=searches)))
    except ErtaError as error:
        if "profile" not in str(error):  # which is calibrated when the row is prepared
            raise


def find_seam(specs: Sequence[Spec], searches: Sequence[SearchRange]) -> str:
    """The trunk if one of these policies works there alone, else the latent seam."""
    example = fill(list(specs), partial(make_example, searches=searches))
    try:
        made = flatten(build_policies(example))
    except ErtaError:  # it is said when the row is prepared
        return Seam.LATENT.value
    alone = any(Seam.LATENT not in one.traits.seams and not one.selects for one in made)
    return (Seam.TRUNK if alone else Seam.LATENT).value


def make_example(what: object, searches: Sequence[SearchRange]) -> object:
    """A value for a placeholder that a policy can be built with; no profile."""
    if what is BUDGET:
        return STEPS // 2
    if what is SOLVED:
        return int(searches[0].high) if searches[0].whole else searches[0].high
    return None


def complete(spec: Mapping[str, Any], searches: list[SearchRange]) -> Spec:
    """A policy with placeholders, its budget and its profile filled in.

    Args:
        spec: `{name: options}`.
        searches: Where ranges to solve in are added.

    Raises:
        RegistryError: It is not installed.
    """
    ((name, options),) = spec.items()
    cls = policies().load(name)
    known = {field.name for field in fields(cls)}
    made = {key: read_option(value, searches) for key, value in options.items()}
    example = fill(made, partial(make_example, searches=searches))
    if "budget" in known and hasattr(cls, "with_calls") and not is_complete({name: example}):
        made["budget"] = {"calls": BUDGET}
    example = fill(made, partial(make_example, searches=searches))
    if needs_profile({name: example}, STEPS):
        profiler = find_calibrator(make_blank_policy(name))
        if profiler is not None:
            given = {k: v for k, v in options_of(profiler).items() if v is not None}
            made["profile"] = calibrate_with(registered_name(type(profiler)), **given)
    return {name: made}


def read_option(value: Any, searches: list[SearchRange]) -> Any:
    """An option, with a placeholder where it says `CALLS` or `SOLVE low..high`, at any depth.

    Raises:
        InputError: A range has no two different ends.
    """
    if isinstance(value, Mapping):
        return {key: read_option(held, searches) for key, held in value.items()}
    if isinstance(value, list):
        return [read_option(held, searches) for held in value]
    if value == CALLS:
        return BUDGET
    found = SOLVE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        return value
    try:
        low, high = map(float, found.groups())
    except ValueError:
        low = high = 0.0
    if low == high:
        raise InputError(f"{value!r} is no range; write SOLVE low..high, such as SOLVE 0.001..1")
    whole = all(end.lstrip("-").isdigit() for end in found.groups())
    first, last = sorted((low, high))
    searches.append(SearchRange(first, last, whole=whole, rising=low > high))
    return SOLVED


def list_missing_rows(catalogue: Catalogue) -> list[Row]:
    """Rows for installed policies that save work and that no contender and no `UNLISTED` names."""
    found: list[Row] = []
    listed = {name for contender in CONTENDERS for name in contender.names} | set(UNLISTED)
    for name in catalogue.names():
        if name in listed:
            continue
        try:
            role = find_role(catalogue.load(name))
        except Exception as error:  # a policy of others may raise anything
            said = show_error(error)
            found.append({"name": name, "group": "policy", "status": "error", "detail": said})
            continue
        if role in (Role.WHEN, Role.RECIPE, Role.INSIDE):
            said = f'installed, without a row of ours; give --policy "{{{name}: {{...}}}}" for one'
            found.append({"name": name, "group": "policy", "status": "no row", "detail": said})
    return found
