"""What every format reads with: bounded files, strict JSON, and checks that name the place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erta_framework.budgets._step_schedule import StepSchedule
from erta_framework.errors import InputError
from erta_framework.text import escape_line, parse_json, show_value

LARGEST_FILE = 1 << 20
"""Most bytes of a schedule file that are read."""
MOST_STEPS = 10_000
"""Most steps of a schedule that is read."""
FACTS = ("policy", "num_steps", "computed")
"""What our exports say about every schedule, beside the settings of a format."""


def read_text(path: Path) -> str:
    """The text of a schedule file.

    Raises:
        InputError: It cannot be read, is larger than `LARGEST_FILE` bytes, or is no UTF-8.
    """
    where = escape_line(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"cannot read the schedule file {where}: {escape_line(reason)}; give the path of a file"
        ) from error
    if len(data) > LARGEST_FILE:
        raise InputError(
            f"{where} has more than {LARGEST_FILE} bytes, the most that a schedule file may have; "
            "is it one?"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is no UTF-8 text (byte {error.start}); give a schedule file"
        ) from error


def parse_data(text: str, where: str) -> Any:
    """The JSON of a schedule file.

    Raises:
        InputError: It is none, nested too deep, or has a key twice.
    """
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(
            f"{where} is no JSON that is read here: {escape_line(error)}; write a list or an object"
        ) from error


def require_object(data: Any, where: str, form: str) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        InputError: It is something else.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where} holds {show_value(data)}, {form} is an object; see `{HELP}`")
    return data


HELP = "erta schedule formats"


def split_facts(data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a format, and what our exports say beside them."""
    facts = {name: data[name] for name in FACTS if name in data}
    return {name: value for name, value in data.items() if name not in facts}, facts


def check_facts(facts: Mapping[str, Any], schedule: StepSchedule, where: str) -> None:
    """Refuse an export whose settings compute other steps than it says.

    Raises:
        InputError: Names the fact and both values.
    """
    settled = {"num_steps": schedule.num_steps, "computed": list(schedule.computed)}
    for name, value in settled.items():
        if name in facts and facts[name] != value:
            raise InputError(
                f"{where}, {name} is {show_value(facts[name])}, but its settings say {value}; "
                "export it again, or remove the one that is wrong"
            )


def settle_steps(found: int | None, asked: int | None, where: str, what: str) -> int:
    """The number of steps, of a file that says it or of the caller.

    Args:
        found: What the file says; None where it says nothing.
        asked: What the caller says; None where they leave it to the file.
        where: The file.
        what: What in the file says it.

    Raises:
        InputError: Nobody says it, both say something else, or it is out of range.
    """
    if found is not None and asked is not None and found != asked:
        raise InputError(
            f"{where}, {what} is of {found} steps, --steps says {asked}; give the number of the "
            "file, or a file for this number"
        )
    steps = found if found is not None else asked
    if steps is None:
        raise InputError(f"{where} does not say how many steps there are; give --steps N")
    if not 1 <= steps <= MOST_STEPS:
        raise InputError(f"{where}: {steps} steps; a schedule has 1 to {MOST_STEPS}")
    return steps


def read_numbers(value: Any, where: str, least: int, most: int | None = None) -> tuple[int, ...]:
    """A list of whole numbers in a range; texts such as `"1"` are none.

    Raises:
        InputError: It is no list, longer than `MOST_STEPS`, or an entry is no whole number or out
            of range; names its place.
    """
    if not isinstance(value, list):
        raise InputError(f"{where} is {show_value(value)}; write a list of whole numbers")
    if len(value) > MOST_STEPS:
        raise InputError(f"{where} has {len(value)} entries; at most {MOST_STEPS} are read")
    for place, number in enumerate(value):
        if type(number) is not int or number < least or (most is not None and number > most):
            limit = f"at least {least}" if most is None else f"{least} to {most}"
            raise InputError(
                f"{where}, entry {place} is {show_value(number)}; it must be a whole number, "
                f"{limit}"
            )
    return tuple(value)


def read_number(value: Any, where: str) -> int | None:
    """A number of steps, or None where the file says nothing.

    Raises:
        InputError: It is no whole number of at least 1.
    """
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise InputError(f"{where} is {show_value(value)}; it must be a whole number, at least 1")
    return value


def read_mask(value: Any, where: str) -> tuple[int, ...]:
    """A list of 0 and 1, of which the first computes.

    Raises:
        InputError: It is no such list, or the first entry is 0.
    """
    mask = read_numbers(value, where, 0, 1)
    if not mask or not mask[0]:
        raise InputError(
            f"{where}, entry 0 is {mask[0] if mask else 'missing'}: there is nothing to reuse "
            "before the first step; write 1 there"
        )
    return mask


def read_steps(value: Any, where: str, num_steps: int) -> StepSchedule:
    """A list of computed steps, rising from 0.

    Raises:
        InputError: It is no such list, a step is outside of the schedule, or they do not rise
            from 0.
    """
    steps = read_numbers(value, where, 0, num_steps - 1)
    for place, (before, step) in enumerate(zip((-1, *steps), steps, strict=False)):
        if step <= before or (place == 0 and step != 0):
            raise InputError(
                f"{where}, entry {place} is step {step}"
                + (f" after step {before}" if place else "")
                + "; computed steps rise from 0, each named once"
            )
    if not steps:
        raise InputError(f"{where} lists no steps; at least step 0 is computed")
    return StepSchedule.of(steps, num_steps)


def as_schedule(mask: Sequence[int]) -> StepSchedule:
    """The schedule of a mask.

    Example:
        >>> as_schedule([1, 0, 1]).computed
        (0, 2)
    """
    return StepSchedule.of([k for k, computed in enumerate(mask) if computed], len(mask))


def read_whole_mask(value: Any, where: str, num_steps: int | None) -> StepSchedule:
    """A mask of every step.

    Raises:
        InputError: It is no mask, or of another number of steps than was asked for.
    """
    mask = read_mask(value, where)
    settle_steps(len(mask), num_steps, where, "the mask")
    return as_schedule(mask)
