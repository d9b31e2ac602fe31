"""Which contenders are measured, and which installed policies have no row."""

from __future__ import annotations

from collections.abc import Sequence

from erta_bench.comparison._contender import Contender
from erta_bench.comparison._runner import Runner
from erta_bench.comparison.contenders import CONTENDERS, UNLISTED
from erta_bench.core import Row
from erta_framework.compatibility import Role, find_role
from erta_framework.errors import InputError, suggest
from erta_framework.plugins import Catalogue
from erta_framework.text import show_error


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
    """The contenders of these names, or of policies with these names.

    Raises:
        InputError: Nothing has such a name.
    """
    names = [contender.name for contender in contenders]
    parts = sorted({name for contender in contenders for name in contender.names})
    for row in rows:
        if row not in (*names, *parts):
            raise InputError(f"no row and no policy {row!r}; {suggest(row, [*names, *parts])}")
    return [c for c in contenders if not rows or c.name in rows or c.names & set(rows)]


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
            said = "installed, but no row of this benchmark holds it"
            found.append({"name": name, "group": "policy", "status": "no row", "detail": said})
    return found
