"""The catalogues of solvers and guidance rules, which the configuration makes by their fields."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, is_dataclass

from erta_framework.plugins import Catalogue
from erta_framework.sampling.guidance import Guidance
from erta_framework.sampling.solvers import Solver
from erta_framework.text import show_value


def open_solver_catalogue(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of solvers (`erta_framework.solvers`): dataclasses that offer `Solver`."""
    return Catalogue("erta_framework.solvers", _check_solver, only)


def open_guidance_catalogue(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of guidance rules (`erta_framework.guidance`): they offer `Guidance`."""
    return Catalogue("erta_framework.guidance", _check_guidance, only)


def _check_solver(loaded: object) -> str | None:
    return _check_part(loaded, Solver)


def _check_guidance(loaded: object) -> str | None:
    return _check_part(loaded, Guidance)


def _check_part(loaded: object, protocol: type) -> str | None:
    """What is wrong with a class of a part; None if nothing is."""
    where = f"{protocol.__module__.partition('._')[0]}.{protocol.__name__}"
    if not isinstance(loaded, type) or not is_dataclass(loaded):
        return f"is {show_value(loaded)}, not a dataclass that offers what {where} describes"
    wanted = sorted(name for name in vars(protocol) if not name.startswith("_"))
    fields_held = {field.name for field in fields(loaded)}
    missing = [name for name in wanted if not hasattr(loaded, name) and name not in fields_held]
    if missing:
        return f"is {show_value(loaded)}, which lacks {', '.join(missing)} of {where}"
    return None
