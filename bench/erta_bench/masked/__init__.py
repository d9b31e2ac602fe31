"""Caches for masked language models, compared: `erta bench masked`."""

from erta_bench.masked._bench import MODELS, MaskedSetting, compare_rules
from erta_bench.masked._rules import NO_CACHE, DecodingOrder, Rule, make_orders, make_rules
from erta_bench.masked._speed import SpeedSetting, measure_speed

__all__ = [
    "MODELS",
    "NO_CACHE",
    "DecodingOrder",
    "MaskedSetting",
    "Rule",
    "SpeedSetting",
    "compare_rules",
    "make_orders",
    "make_rules",
    "measure_speed",
]
