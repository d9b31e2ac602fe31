"""`erta bench masked` and `erta bench masked-speed`."""

from __future__ import annotations

import pytest

from erta_bench.masked import (
    NO_CACHE,
    MaskedSetting,
    SpeedSetting,
    compare_rules,
    make_orders,
    make_rules,
    measure_speed,
)
from erta_framework.errors import InputError

SMALL = MaskedSetting(model="permutations", samples=12, seed_sets=2, batch_size=12)


def test_rows_are_flat_and_relative_to_the_run_without_a_cache():
    kept = []
    bench = compare_rules(
        SMALL, orders=["left to right"], delays=(0, 1), refreshes=(None,), keep=kept.append
    )
    rows = {row["rule"]: row for row in bench.rows}
    assert len(kept) == 1
    full = rows[NO_CACHE]
    assert (full["rows_computed"], full["work"], full["seconds_ratio"]) == (1.0, 1.0, 1.0)
    for row in bench.rows:
        assert {"rule", "order", "delay", "refresh", "valid", "distinct"} <= set(row)
        assert 0 <= row["valid"] <= 1
        assert row["rows_computed"] <= row["work"] + 1e-9
        assert row["distinct"] <= 24
    two = rows["two tokens a step"]
    assert two["network_calls"] == full["network_calls"] / 2
    assert two["rows_computed"] == pytest.approx(0.5)
    # thirteen positions, twelve steps: two full ones, then what was unknown one step ago
    expected = (2 * 13 + sum(12 - (step - 1) for step in range(2, 12))) / (12 * 13)
    assert rows["Decode, delay 1, never"]["rows_computed"] == pytest.approx(expected)
    assert rows["dLLM-Cache"]["work"] > rows["dLLM-Cache"]["rows_computed"]


def test_a_rule_that_needs_to_know_the_order_is_left_out_where_it_is_not_known():
    rules = {rule.name: rule for rule in make_rules((1,), (4,))}
    fits = [rules["Greedy, window 4"].fits(order) for order in make_orders(1.0)]
    assert fits == [True, True, True, False]
    assert all(rules[NO_CACHE].fits(order) for order in make_orders(1.0))


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(InputError, match="choose one of words, permutations"):
        MaskedSetting(model="llada")
    with pytest.raises(InputError, match="there is no order 'upwards'"):
        compare_rules(SMALL, orders=["upwards"])


def test_speed_is_beside_the_full_pass_and_the_ideal():
    small = SpeedSetting(length=16, batch=2, width=16, heads=2, layers=1, repeats=1)
    bench = measure_speed(small, shares=(0.5, 0.25))
    full, half, quarter = bench.rows
    assert full["speedup"] == 1.0
    assert (half["ideal"], quarter["ideal"]) == (2.0, 4.0)
    assert quarter["reached"] == pytest.approx(quarter["speedup"] / 4)
