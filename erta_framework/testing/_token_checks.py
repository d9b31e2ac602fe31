"""Checks of rules for masked language models: they run on `TokenToy` instead of the latent toys."""

from __future__ import annotations

import copy
import json

import torch

from erta_framework.config import construct, options_of
from erta_framework.errors import CapabilityError
from erta_framework.masked import MaskedResult
from erta_framework.plugins import Engine, Policy, Traits, flatten, hookimpl
from erta_framework.sampling import FlowEuler, SamplingLoop
from erta_framework.session import Compute, Decision
from erta_framework.testing._compare import STATE, capture_settings, fail
from erta_framework.testing._token_toy import TokenToy, run_token_toy


def serves_tokens_alone(policy: Policy) -> bool:
    """Whether a policy can decide for no latents."""
    return all(part.traits.serves == {"tokens"} for part in flatten([policy]))


class ComputeAll(Policy):
    """Computes every step, whatever is decided.

    Source: ours, part of the conformance kit.
    """

    traits = Traits(static=True, serves=frozenset({"tokens"}))

    @hookimpl
    def decide(self) -> Decision:
        return Compute("all")


def differ(one: MaskedResult, other: MaskedResult) -> str | None:
    """What differs between two runs that must agree; None if nothing does."""
    if not torch.equal(one.ids, other.ids):
        return f"{int((one.ids != other.ids).sum())} tokens differ"
    if one.trace.token_rows != other.trace.token_rows:
        return f"{one.trace.token_rows} against {other.trace.token_rows} positions were computed"
    return None


def check_tokens_null_run_is_bit_identical(policy: Policy) -> None:
    """If every position runs, the tokens are those of the run without a cache."""
    plain = run_token_toy(Engine([]))
    problem = differ(run_token_toy(Engine([ComputeAll(), policy])), plain)
    if problem is not None:
        fail(policy, f"with nothing reused, {problem}", "decide in `decide`, and change no output")


def check_tokens_are_all_decoded(policy: Policy) -> None:
    """Nothing stays masked, the prompt stays, and the first step runs on every position."""
    toy = TokenToy()
    result = run_token_toy(Engine([policy]), toy=toy)
    if (result.ids == toy.mask_id).any():
        fail(policy, "tokens stayed masked", "let the positions that are decoded next run")
    first = result.trace.steps[0].calls[0]
    if not first.computed or first.reason != "cold":
        fail(
            policy, f"the first step was {first.reason!r}", "nothing is held before the first step"
        )


def check_tokens_are_counted(policy: Policy) -> None:
    """The trace counts the positions that the network really ran on."""
    toy = TokenToy()
    trace = run_token_toy(Engine([policy]), toy=toy).trace
    if toy.rows != trace.token_rows:
        fail(
            policy,
            f"the network ran on {toy.rows} positions, the trace says {trace.token_rows}",
            "run the network through call.compute alone",
        )
    if trace.token_rows > trace.token_total:
        fail(policy, "more positions ran than there are", "reuse positions, or decide nothing")


def check_token_samples_are_independent(policy: Policy) -> None:
    """A sample has the same tokens alone as in a batch."""
    together = run_token_toy(Engine([policy]), seeds=(3, 4, 5))
    for row, seed in enumerate((3, 4, 5)):
        alone = run_token_toy(Engine([policy]), seeds=(seed,))
        if not torch.equal(alone.ids[0], together.ids[row]):
            fail(
                policy,
                f"sample {row} of a batch has other tokens than alone",
                "decide for each row of [B, L] from that row",
            )


def check_token_requests_do_not_leak(policy: Policy) -> None:
    """Requests of one engine are those of engines of their own; nothing is held afterwards."""
    engine, toy = Engine([policy]), TokenToy()
    before = capture_settings((policy,))
    for seeds in ((0, 1), (2, 3), (0, 1)):
        fresh = run_token_toy(Engine([copy.deepcopy(policy)]), seeds=seeds)
        problem = differ(run_token_toy(engine, seeds=seeds, toy=toy), fresh)
        if problem is not None:
            fail(policy, f"after other requests {problem}", STATE)
    if any(store.nbytes for store in toy.stores):
        fail(policy, "keys and values were held after the request", STATE)
    if capture_settings((policy,)) != before:
        fail(policy, "a request changed what the policy holds", STATE)


def check_token_rule_round_trip(policy: Policy) -> None:
    """A copy, and one made from a configuration, decode the same."""
    expected = run_token_toy(Engine([policy]))
    written = json.loads(json.dumps(options_of(policy)))
    twins = {
        "a deep copy": copy.deepcopy(policy),
        "one made from its options": construct(type(policy), written, where=policy.name),
    }
    for how, twin in twins.items():
        problem = differ(run_token_toy(Engine([twin])), expected)
        if problem is not None:
            fail(policy, f"in {how} {problem}", "let every setting be a field with a plain value")


def check_latents_are_refused(policy: Policy) -> None:
    """A driver of latents refuses the policy by its name."""
    try:
        SamplingLoop(Engine([policy]), FlowEuler())
    except CapabilityError as error:
        if type(policy).__name__ in str(error):
            return
    fail(policy, "a loop over latents took it", 'declare Traits(serves=frozenset({"tokens"}))')


TOKEN_CHECKS = (
    check_tokens_null_run_is_bit_identical,
    check_tokens_are_all_decoded,
    check_tokens_are_counted,
    check_token_samples_are_independent,
    check_token_requests_do_not_leak,
    check_token_rule_round_trip,
    check_latents_are_refused,
)
