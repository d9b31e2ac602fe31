"""The conformance checks as a list, for a shell and for pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from erta_framework.errors import PolicyError, suggest
from erta_framework.plugins import Policy
from erta_framework.testing._compare import Check, CheckError
from erta_framework.testing._contract_checks import (
    CONTRACT_CHECKS,
    check_documented,
    check_frozen,
    check_hook_arguments_exist,
)
from erta_framework.testing._isolation_checks import ISOLATION_CHECKS
from erta_framework.testing._module_checks import MODULE_CHECKS
from erta_framework.testing._output_checks import OUTPUT_CHECKS
from erta_framework.testing._planner_check import check_plan_is_what_runs
from erta_framework.testing._sampling_checks import SAMPLING_CHECKS
from erta_framework.testing._side_effect_checks import SIDE_EFFECT_CHECKS
from erta_framework.testing._static_check import check_static_reads_nothing_back
from erta_framework.testing._token_checks import TOKEN_CHECKS, serves_tokens_alone
from erta_framework.testing._wrapper_check import check_wrappers_forward_traits

if TYPE_CHECKING:
    import pytest

CHECKS: tuple[Check, ...] = (
    *CONTRACT_CHECKS,
    check_wrappers_forward_traits,
    *SAMPLING_CHECKS,
    *OUTPUT_CHECKS,
    *MODULE_CHECKS,
    check_static_reads_nothing_back,
    check_plan_is_what_runs,
    *ISOLATION_CHECKS,
    *SIDE_EFFECT_CHECKS,
)
"""Every check of a policy on latents: `check_xxx(policy)` raises if the policy fails it."""
CHECKS_ON_TOKENS: tuple[Check, ...] = (
    check_hook_arguments_exist,
    check_frozen,
    check_documented,
    check_wrappers_forward_traits,
    *TOKEN_CHECKS,
)
"""Every check of a policy that serves tokens alone."""

NO_FAILURES: Mapping[str, str] = {}
Expected = Mapping[str, str] | Callable[[Policy], Mapping[str, str]]
F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one check; `expected_failure` is the reason given for a failure, or None."""

    check: str
    expected_failure: str | None = None


def list_checks(policy: Policy) -> tuple[Check, ...]:
    """The checks of a policy, by what it serves."""
    return CHECKS_ON_TOKENS if serves_tokens_alone(policy) else CHECKS


def check_policy(
    policy: Policy, *, expected_failed_checks: Mapping[str, str] = NO_FAILURES
) -> tuple[Outcome, ...]:
    """Run every check on one policy.

    Args:
        policy: An instance with its settings; it is checked on the kit's toy, so a policy that
            needs a profile is given `toy_profile(...)`.
        expected_failed_checks: Names of checks that it is known to fail, with the reason. Such
            a check must fail: an expected failure that passes is an error.

    Returns:
        One outcome a check.

    Raises:
        CheckError: Some check failed, or passed against expectation; lists all of them.
        PolicyError: An expected failure names no check, or gives no reason.

    Example:
        >>> len(check_policy(MyPolicy())) == len(CHECKS)  # doctest: +SKIP
        True
    """
    require_instance(policy)
    require_known(expected_failed_checks)
    outcomes, problems, causes = [], [], []
    checks = list_checks(policy)
    for check in checks:
        name = get_name(check)
        reason = expected_failed_checks.get(name)
        try:
            check(policy)
        except Exception as error:  # whatever a policy raises is a failure of the check
            if reason is None:
                problems.append(f"{name}: {type(error).__name__}: {error}")
                causes.append(error)
        else:
            if reason is not None:
                problems.append(f"{name}: passed, but was expected to fail ({reason}); unlist it")
        outcomes.append(Outcome(name, reason))
    if problems:
        raise CheckError(
            f"{policy!r} failed {len(problems)} of {len(checks)} checks:\n  "
            + "\n  ".join(problems)
        ) from (causes[0] if causes else None)
    return tuple(outcomes)


def parametrize_with_checks(
    policies: Iterable[Policy], *, expected_failed_checks: Expected = NO_FAILURES
) -> Callable[[F], F]:
    """A pytest decorator that runs every check on every policy, as tests of their own.

    The ids are `policy-check`, so that `-k check_frozen` selects one check for all policies.

    Args:
        policies: Instances.
        expected_failed_checks: Names of checks known to fail with the reason, or a function from
            the policy to that. They are marked xfail(strict=True).

    Raises:
        PolicyError: An entry is no instance of a policy, or an expected failure names no check.

    Example:
        >>> @parametrize_with_checks([MyPolicy()])  # doctest: +SKIP
        ... def test_policy(check, policy):
        ...     check(policy)
    """
    import pytest

    listed = list(policies)
    parameters = []
    for policy, label in zip(listed, make_labels(listed), strict=True):
        known = expected_failed_checks
        expected = known if isinstance(known, Mapping) else known(policy)
        require_known(expected)
        for check in list_checks(policy):
            name = get_name(check)
            marks: list[pytest.MarkDecorator] = []
            if name in expected:
                marks = [pytest.mark.xfail(reason=expected[name], strict=True)]
            parameters.append(pytest.param(check, policy, id=f"{label}-{name}", marks=marks))

    def decorate(test: F) -> F:
        decorated: F = pytest.mark.parametrize(("check", "policy"), parameters)(test)
        return decorated

    return decorate


def make_labels(policies: Sequence[Policy]) -> list[str]:
    """Names for test ids: the policy's, numbered where several share one.

    Raises:
        PolicyError: An entry is no instance of a policy.
    """
    names = [require_instance(policy).name for policy in policies]
    return [
        name if names.count(name) == 1 else f"{name}{names[: position + 1].count(name)}"
        for position, name in enumerate(names)
    ]


def get_name(check: Check) -> str:
    """The name of a check."""
    return check.__name__


def require_instance(policy: object) -> Policy:
    """The policy, if it is one.

    Raises:
        PolicyError: It is a class, or no policy.
    """
    if isinstance(policy, Policy):
        return policy
    hint = f"write {policy.__name__}(...)" if isinstance(policy, type) else "derive from Policy"
    raise PolicyError(f"{policy!r} is not an instance of a policy; {hint}")


def require_known(expected: Mapping[str, str]) -> None:
    """Refuse expected failures that name no check or give no reason.

    Raises:
        PolicyError: Names the entry.
    """
    known = [get_name(check) for check in dict.fromkeys((*CHECKS, *CHECKS_ON_TOKENS))]
    for name, reason in expected.items():
        if name not in known:
            raise PolicyError(
                f"expected_failed_checks names {name!r}, which is no check; " + suggest(name, known)
            )
        if not isinstance(reason, str) or not reason.strip():
            raise PolicyError(f"expected_failed_checks[{name!r}] gives no reason; say why it fails")
