"""`Engine`: a list of policies made into hook tables, checked once and then frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pluggy
from torch import Tensor

from erta_framework.errors import CapabilityError, ConflictError, ErtaError, PolicyError, suggestion
from erta_framework.hookspecs import HOOKS, PROJECT, HookSpecs, hookimpl
from erta_framework.policy import Policy, flatten
from erta_framework.records import Call, Compute, Decision, Needs, SessionInfo
from erta_framework.session import Session


class CoreDefaults:
    """Core's own answers, asked last: compute, and `x + residual` on a reused call."""

    @hookimpl
    def decide(self) -> Decision:
        """Nobody wanted to reuse."""
        return Compute("default")

    @hookimpl
    def forward(self, call: Call) -> Tensor:
        """The network's output, or the input plus the newest residual."""
        if call.reused:
            return call.x + call.history[0].residual
        return call.compute()


class Engine:
    """Frozen policies and their hook tables; built once, used for any number of requests.

    Args:
        policies: In call order; recipes are expanded into their parts.

    Raises:
        PolicyError: An entry is no policy, implements no hook, an unknown one, or takes an
            argument that its hook does not offer.
        ConflictError: Two policies implement `adjust_interval`.

    Example:
        >>> from erta_framework import Engine
        >>> print(Engine([]).explain())
        no policies: every step is computed
    """

    def __init__(self, policies: Sequence[Policy] = ()) -> None:
        self.policies = flatten(policies)
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(HookSpecs)
        self._manager.register(CoreDefaults(), name="core")
        self._implemented: dict[int, tuple[str, ...]] = {}
        # pluggy calls the last registered first; listed order is to be call order
        for position in reversed(range(len(self.policies))):
            self._register(position, self.policies[position])
        owners = [p for p in self.policies if "adjust_interval" in self._implemented[id(p)]]
        if len(owners) > 1:
            raise ConflictError(
                "the interval has one owner, but adjust_interval is implemented by "
                + " and ".join(repr(policy) for policy in owners)
                + "; remove one of them"
            )
        for policy in self.policies:
            policy.prepare()
        needs = [policy.needs() for policy in self.policies]
        reuses = bool(self.implementers("decide"))
        self.needs = Needs(
            evaluations=max([need.evaluations for need in needs] + [1 if reuses else 0]),
            pairs=any(need.pairs for need in needs),
        )
        self.static = all(policy.static for policy in self.policies)
        self.corrects_computed = any(policy.corrects_computed for policy in self.policies)
        self.active = frozenset(hook for hook in HOOKS if self.implementers(hook))

    def _register(self, position: int, policy: Policy) -> None:
        marked = {
            name: getattr(type(policy), name)
            for name in dir(type(policy))
            if hasattr(getattr(type(policy), name, None), f"{PROJECT}_impl")
        }
        unknown = [name for name in marked if name not in HOOKS]
        if unknown:
            raise PolicyError(
                f"{policy!r} implements the unknown hook {unknown[0]!r}; "
                + suggestion(unknown[0], HOOKS)
            )
        if not marked:
            raise PolicyError(
                f"{policy!r} implements no hook; mark a method with @hookimpl, one of: "
                + ", ".join(HOOKS)
            )
        try:
            self._manager.register(policy, name=f"{position}:{policy.name}")
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PolicyError(f"{policy!r} does not fit a hook: {error}") from error
        self._implemented[id(policy)] = tuple(name for name in HOOKS if name in marked)

    def implementers(self, hook: str) -> tuple[Policy, ...]:
        """The policies that implement `hook`, in call order."""
        return tuple(p for p in self.policies if hook in self._implemented[id(p)])

    def hooks_of(self, policy: Policy) -> tuple[str, ...]:
        """The hooks that one of this engine's policies implements."""
        return self._implemented[id(policy)]

    def check(self, capabilities: frozenset[str], driver: str) -> None:
        """Refuse a driver that lacks what a policy requires.

        Raises:
            CapabilityError: Names the policy, what is missing and what the driver offers.
        """
        for policy in self.policies:
            missing = policy.requires - capabilities
            if missing:
                raise CapabilityError(
                    f"{policy!r} requires {', '.join(sorted(missing))}, which {driver} does not "
                    f"offer (it offers {', '.join(sorted(capabilities)) or 'nothing'}); "
                    "use another solver or remove the policy"
                )

    def session(self, info: SessionInfo) -> Session:
        """A session for one request; use it as a context manager."""
        self.check(info.capabilities, info.solver or "this driver")
        return Session(self, info)

    def call_hook(self, hook: str, where: str, **arguments: Any) -> Any:
        """Call one hook; an exception names the plugin, the hook and the step.

        Raises:
            PolicyError: A policy raised something that is not an `ErtaError`.
        """
        try:
            return getattr(self._manager.hook, hook)(**arguments)
        except ErtaError as error:
            error.add_note(f"in hook {hook!r} {where}")
            raise
        except Exception as error:
            policy = self._raiser(error)
            name = repr(policy) if policy is not None else "a driver or core"
            raise PolicyError(
                f"{name} raised {type(error).__name__} in hook {hook!r} {where}: {error}"
            ) from error

    def _raiser(self, error: BaseException) -> Policy | None:
        """The policy in whose method the exception arose, from the frames of its traceback."""
        found, trace = None, error.__traceback__
        while trace is not None:
            owner = trace.tb_frame.f_locals.get("self")
            found = next((p for p in self.policies if p is owner), found)
            trace = trace.tb_next
        return found

    def explain(self) -> str:
        """Who answers what, in call order."""
        if not self.policies:
            return "no policies: every step is computed"
        lines = ["policies, in call order:"]
        for position, policy in enumerate(self.policies):
            lines.append(f"  {position}  {policy!r}")
        lines.append("hooks, in call order:")
        for hook in HOOKS:
            names = [self._described(hook, policy) for policy in self.implementers(hook)]
            if hook in ("decide", "forward"):
                names.append("core")
            lines.append(f"  {hook:17} {' -> '.join(names) if names else '-'}")
        lines.append(
            f"remembered per branch: {self.needs.evaluations} evaluations"
            + (" with inputs and outputs" if self.needs.pairs else " (residuals)")
            + f"; schedule is {'static' if self.static else 'decided while sampling'}"
        )
        return "\n".join(lines)

    @staticmethod
    def _described(hook: str, policy: Policy) -> str:
        options = getattr(getattr(type(policy), hook), f"{PROJECT}_impl")
        return f"[{policy.name}]" if options.get("wrapper") else policy.name
