"""The rules, orders and baselines that `erta bench masked` compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erta_framework.masked import Decoder, MaskedSchedule
from erta_framework.plugins import Policy
from erta_policies.d2cache import D2Cache
from erta_policies.dkvcache import DKVCacheDecode, DKVCacheGreedy, DKVCachePD, DKVCachePrefill
from erta_policies.dllmcache import DLLMCache
from erta_policies.fastdllm import FastDLLMDual, FastDLLMPrefix

BLOCK = 4


@dataclass(frozen=True, slots=True)
class DecodingOrder:
    """An order of decoding: what comes first, and in which blocks."""

    name: str
    decoder: Decoder
    block: int | None = None

    def schedule(self, answer: int, tokens: int = 1) -> MaskedSchedule:
        """The schedule that decodes so many tokens a step in an answer of `answer` tokens."""
        steps = None if tokens == 1 else self._count_steps(answer, tokens)
        return MaskedSchedule(steps=steps, block=self.block)

    def _count_steps(self, answer: int, tokens: int) -> int:
        block = answer if self.block is None else self.block
        return -(-answer // block) * max(1, block // tokens)


def make_orders(temperature: float) -> tuple[DecodingOrder, ...]:
    """The four orders: random, random in blocks of four, left to right, and by confidence."""
    drawn = Decoder(order="random", temperature=temperature)
    return (
        DecodingOrder("random", drawn),
        DecodingOrder("blocks of 4", drawn, BLOCK),
        DecodingOrder("left to right", Decoder(order="left_to_right", temperature=temperature)),
        DecodingOrder("confidence", Decoder(order="confidence", temperature=temperature)),
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the comparison.

    Attributes:
        name: As the table names it.
        policies: What reuses keys and values; empty runs every position.
        tokens: Tokens that a step decodes.
        delay, refresh: Of the rule, where it has them; a refresh of None is never.
    """

    name: str
    policies: tuple[Policy, ...] = ()
    tokens: int = 1
    delay: int | None = None
    refresh: int | None = None

    def fits(self, order: DecodingOrder) -> bool:
        """Whether the rule can run in an order: some need to know the next positions."""
        known = order.decoder.is_order_known
        return known or not any(isinstance(policy, DKVCacheGreedy) for policy in self.policies)


NO_CACHE = "no cache"


def make_rules(delays: Sequence[int], refreshes: Sequence[int | None]) -> tuple[Rule, ...]:
    """Every rule: no cache first, then the delays, the other rules and the baselines."""
    decode = [
        Rule(
            f"Decode, delay {delay}, " + ("never" if refresh is None else f"refresh {refresh}"),
            (DKVCacheDecode(delay=delay, refresh=refresh, restart="request"),),
            delay=delay,
            refresh=refresh,
        )
        for delay in delays
        for refresh in refreshes
    ]
    return (
        Rule(NO_CACHE),
        *decode,
        Rule("Greedy, window 4", (DKVCacheGreedy(restart="request"),), refresh=2),
        Rule(
            "Greedy, no window",
            (DKVCacheGreedy(refresh=4, window=0, restart="request"),),
            refresh=4,
        ),
        Rule("Prefill", (DKVCachePrefill(),)),
        Rule("PD", (DKVCachePD(),), delay=1, refresh=4),
        Rule("Fast-dLLM prefix", (FastDLLMPrefix(),)),
        Rule("Fast-dLLM dual", (FastDLLMDual(),)),
        Rule("dLLM-Cache", (DLLMCache(response_interval=4),), refresh=4),
        Rule("d2Cache-like", (D2Cache(masked=4),)),
        Rule("two tokens a step", tokens=2),
        Rule(
            "two tokens a step, delay 1",
            (DKVCacheDecode(refresh=4, restart="request"),),
            tokens=2,
            delay=1,
            refresh=4,
        ),
    )
