"""Holds the policy to the whole contract of erta_framework."""

from erta_everyother import EveryOther

from erta_framework.testing import parametrize_with_checks


@parametrize_with_checks([EveryOther(), EveryOther(period=3)])
def test_policy(check, policy):
    """Run one check on one policy."""
    check(policy)
