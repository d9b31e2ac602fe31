"""Rows of one's own in the comparison: any installed policy, by its name and options."""

from __future__ import annotations

import pytest

from erta_bench.comparison._choice import choose_contenders, read_own_row
from erta_bench.comparison._contender import BUDGET, SOLVED, CalibratedBy, SearchRange
from erta_bench.comparison.contenders import CONTENDERS
from erta_framework.errors import ConfigError, ErtaError, InputError


def test_an_option_stands_for_the_calls_or_is_solved_for() -> None:
    row = read_own_row("{skip_policy: {evenly: CALLS}}")
    assert (row.policies, row.search, row.bound) == (
        ({"skip_policy": {"evenly": BUDGET}},),
        None,
        "",
    )
    row = read_own_row("{fora: {interval: SOLVE 1..12}}")
    assert row.policies == ({"fora": {"interval": SOLVED}},)
    assert row.search == SearchRange(1, 12, whole=True)
    assert row.name == "fora interval solved"
    falling = read_own_row("{easycache: {threshold: SOLVE 0.5..0.001}}").search
    assert falling == SearchRange(0.001, 0.5, rising=True)


def test_a_budget_and_a_profile_that_a_policy_lacks_are_filled_in() -> None:
    ((options,),) = [list(spec.values()) for spec in read_own_row("planned_schedule").policies]
    assert options["budget"] == {"calls": BUDGET}
    assert isinstance(options["profile"], CalibratedBy)
    assert options["profile"].profiler == "residual_profiler"
    row = read_own_row("{skip_policy: {every: 2}}")
    assert row.policies == ({"skip_policy": {"every": 2}},)
    assert "write one of them as CALLS, or as SOLVE" in row.bound


def test_rows_of_ones_own_stand_beside_the_plain_ones_or_the_named_ones() -> None:
    own = "{fora: {interval: SOLVE 1..12}}"
    alone = choose_contenders([own], CONTENDERS)
    assert {row.kind for row in alone[:-1]} == {"plain"}
    assert alone[-1].name == "fora interval solved"
    beside = choose_contenders(["easycache", own], CONTENDERS)
    assert all("easycache" in row.names for row in beside[:-1])
    assert choose_contenders([], CONTENDERS) == list(CONTENDERS)


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ("foraa", InputError, "no row and no policy 'foraa'; did you mean 'fora'"),
        ("{fora: 3}", ConfigError, "is no policy"),
        ("{foraa: {interval: 3}}", ErtaError, "foraa"),
        ("{fora: {intervall: 3}}", ConfigError, "did you mean 'interval'"),
        ("{fora: {interval: SOLVE 3..3}}", InputError, "is no range"),
        ("{easycache: {threshold: SOLVE 1..2, warmup: SOLVE 1..2}}", InputError, "2 options say"),
    ],
)
def test_what_is_no_row_is_refused(row: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message.replace("{", r"\{")):
        choose_contenders([row], CONTENDERS)
