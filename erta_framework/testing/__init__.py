"""The conformance kit: named checks for any policy, and toys whose answers are known exactly.

Two lines of test hold a policy to the whole contract:

    @parametrize_with_checks([MyPolicy()])
    def test_policy(check, policy):
        check(policy)

A policy that decides nothing itself, but predicts, corrects or adjusts, is checked together with
a skip policy that reuses every odd step. A policy that needs a profile gets one made on the toy:
`MyPolicy(profile=toy_profile(MyProfiler()))`. A policy that serves tokens alone is checked on
`TokenToy`, a masked model.
"""

from erta_framework.testing._block_toy import BlockFlow
from erta_framework.testing._checks import (
    CHECKS,
    CHECKS_ON_TOKENS,
    Outcome,
    check_policy,
    parametrize_with_checks,
)
from erta_framework.testing._compare import Check, CheckError
from erta_framework.testing._setup import AlternateSteps, ToySetup, toy_profile, toy_run
from erta_framework.testing._token_toy import TokenToy, run_token_toy
from erta_framework.testing._toy import Toy
from erta_framework.testing._toys import AffineFlow, GaussianEpsilon, GaussianMixtureFlow

__all__ = [
    "CHECKS",
    "CHECKS_ON_TOKENS",
    "AffineFlow",
    "AlternateSteps",
    "BlockFlow",
    "Check",
    "CheckError",
    "GaussianEpsilon",
    "GaussianMixtureFlow",
    "Outcome",
    "TokenToy",
    "Toy",
    "ToySetup",
    "check_policy",
    "parametrize_with_checks",
    "run_token_toy",
    "toy_profile",
    "toy_run",
]
