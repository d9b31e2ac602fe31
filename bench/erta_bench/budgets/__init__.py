"""Which schedule is nearest to the full run at equal network calls, and how much lambda matters."""

from erta_bench.budgets._budgets import compare_schedules, vary_lambda

__all__ = ["compare_schedules", "vary_lambda"]
