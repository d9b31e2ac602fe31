"""The checks of rules on tokens find the faults that they are for."""

from __future__ import annotations

import pytest
import torch

from erta_framework import Policy, Reuse, Traits, hookimpl
from erta_framework.testing import CHECKS, CHECKS_ON_TOKENS, CheckError, check_policy
from erta_policies.dkvcache import DKVCacheDecode
from erta_policies.easycache import EasyCache

TOKENS = Traits(serves=frozenset({"tokens"}), requires=frozenset({"signal:masked"}))
BY_NAME = {check.__name__: check for check in CHECKS_ON_TOKENS}


class Known(Policy):
    """Reuses what is known, as a rule that is whole does. Source: ours."""

    traits = TOKENS

    @hookimpl
    def decide(self, call):
        return Reuse("known", positions=~call.feature("masked"))


class Everything(Policy):
    """Reuses everything."""

    traits = TOKENS

    @hookimpl
    def decide(self, call):
        return Reuse("all", positions=torch.ones_like(call.x, dtype=torch.bool))


class AcrossTheBatch(Policy):
    """Reuses what is known in every row of the batch, and so depends on the neighbours."""

    traits = TOKENS

    @hookimpl
    def decide(self, call):
        known = (~call.feature("masked")).all(0, keepdim=True)
        return Reuse("known everywhere", positions=known.expand_as(call.x))


class Remembers(Policy):
    """Reuses only in the first request that it sees."""

    traits = TOKENS
    memory: list[int]

    @hookimpl
    def decide(self, call):
        return Reuse("known", positions=~call.feature("masked")) if not self.memory else None

    @hookimpl
    def on_session_end(self):
        self.memory.append(1)


class Changes(Policy):
    """Changes logits that were computed."""

    traits = Traits(serves=frozenset({"tokens"}), corrects_computed=True)

    @hookimpl(wrapper=True)
    def forward(self, call):
        output = yield
        return output + torch.arange(output.shape[-1])


class TakesLatents(Policy):
    """Says that it serves latents as well."""

    traits = Traits(serves=frozenset({"tokens", "latents"}))

    @hookimpl
    def decide(self):
        return None


class RunsBesideTheSession(Policy):
    """Runs the network by itself."""

    traits = TOKENS

    @hookimpl(wrapper=True)
    def forward(self, call):
        output = yield
        call.compute.network.model.run(call.x)
        return output


@pytest.mark.parametrize(
    ("policy", "check"),
    [
        (Everything(), "check_tokens_are_all_decoded"),
        (AcrossTheBatch(), "check_token_samples_are_independent"),
        (Remembers(memory=[]), "check_token_requests_do_not_leak"),
        (Changes(), "check_tokens_null_run_is_bit_identical"),
        (TakesLatents(), "check_latents_are_refused"),
        (RunsBesideTheSession(), "check_tokens_are_counted"),
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_a_fault_is_found(policy, check):
    with pytest.raises(Exception, match=type(policy).__name__):
        BY_NAME[check](policy)


def test_a_rule_that_is_whole_passes_every_check():
    assert [one.check for one in check_policy(Known())] == list(BY_NAME)
    assert len(check_policy(DKVCacheDecode(delay=2))) == len(CHECKS_ON_TOKENS)


def test_policies_are_checked_by_what_they_serve():
    with pytest.raises(CheckError, match=f"of {len(CHECKS_ON_TOKENS)} checks"):
        check_policy(AcrossTheBatch())
    names = [one.check for one in check_policy(EasyCache(threshold=0.5, warmup=2))]
    assert names == [check.__name__ for check in CHECKS]


def test_every_check_says_what_it_checks():
    assert all(check.__doc__ for check in CHECKS_ON_TOKENS)
