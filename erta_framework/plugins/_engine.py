"""`Engine`: a list of policies made into hook tables, checked once and then frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pluggy
from torch import Tensor

from erta_framework.errors import CapabilityError, ErtaError, PolicyError
from erta_framework.modules import (
    MODULES,
    Agree,
    Assign,
    Finder,
    Owner,
    Parts,
    check_owners,
    resolve_places,
)
from erta_framework.plugins._build_checks import (
    check_one_owner,
    check_selecting,
    check_traits,
    merge_traits,
    prepare_policies,
    refuse_noise,
)
from erta_framework.plugins._dispatch import (
    Hook,
    bind_arguments,
    call_within_wrappers,
    compile_hook,
)
from erta_framework.plugins._explain import explain_engine
from erta_framework.plugins._hooks import check_hooks, find_raiser, is_wrapper
from erta_framework.plugins._hookspecs import HOOKS, PROJECT, HookSpecs, hookimpl
from erta_framework.plugins._policy import Policy, find_owners, flatten_owned
from erta_framework.session import (
    GUIDED,
    PREFIX,
    STOCHASTIC,
    TWO_BRANCHES,
    Call,
    Compute,
    Decision,
    Guided,
    Kind,
    Seam,
    Session,
    SessionInfo,
    Step,
    compute_default,
)

if TYPE_CHECKING:
    from erta_framework.calibration import Profile


class CoreDefaults:
    """The defaults of the core, called last: compute, and the newest evaluation where reused."""

    @hookimpl
    def decide(self) -> Decision:
        """Nobody wanted to reuse."""
        return Compute("default")

    @hookimpl
    def forward(self, step: Step, call: Call) -> Tensor:
        """The network's output, or the newest residual or output; see `SessionInfo.reused`."""
        return compute_default(step, call)

    @hookimpl
    def adjust_prediction(self, guided: Guided) -> Tensor:
        """The guided prediction as it is."""
        return guided.prediction


class Engine:
    """Frozen policies and their hook tables; built once, used for any number of requests.

    Args:
        policies: In call order; recipes are expanded into their parts. Wrappers of a hook enclose
            the policies that answer it, the first listed outermost.

    Attributes:
        policies: The policies, with the parts of recipes in their places.
        listed: The policies as they were given.

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
        owned = flatten_owned(policies)
        self.policies = tuple(part for part, _ in owned)
        self.listed = tuple(policies)
        self._listed_by_part = {id(part): owner for part, owner in owned}
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(HookSpecs)
        self._manager.register(CoreDefaults(), name="core")
        self._implemented: dict[int, tuple[str, ...]] = {}
        # pluggy calls the last registered first; listed order is to be call order
        for position in reversed(range(len(self.policies))):
            self._register(position, self.policies[position])
        owners = [p for p in self.policies if "adjust_interval" in self._implemented[id(p)]]
        check_one_owner(owners)
        check_selecting(self.policies)
        prepare_policies(self.policies)
        self.traits = merge_traits(self.policies, reuses=bool(self.implementers("decide")))
        check_traits(self.policies, self.traits, owners)
        self.owners = find_owners(self.policies)
        self.signals = frozenset(r for r in self.traits.requires if r.startswith(PREFIX))
        self._revising = tuple(p for p in self.policies if p.traits.sees_every_branch)
        self.selecting = tuple(p for p in self.policies if p.selects)
        self._demands = [(p, *self._demand(p)) for p in self.policies]
        self.active = frozenset(hook for hook in HOOKS if self.implementers(hook))
        self._callers = {hook: compile_hook(getattr(self._manager.hook, hook)) for hook in HOOKS}
        self._revisers = self._enclosing_revisers()

    def _demand(self, policy: Policy) -> tuple[frozenset[Kind], frozenset[Seam], frozenset[str]]:
        """Kinds of state, seams and capabilities that a driver must offer to a policy."""
        traits, requires = policy.traits, policy.traits.requires
        if "adjust_prediction" in self._implemented[id(policy)]:
            requires |= {GUIDED}
        if policy not in self.selecting:
            return traits.serves, traits.seams, requires
        # places lie inside the network, whatever a step rule beside them leaves out
        return traits.serves, frozenset(Seam), requires | {MODULES}

    def _register(self, position: int, policy: Policy) -> None:
        hooks = check_hooks(policy)
        try:
            self._manager.register(policy, name=f"{position}:{policy.name}")
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PolicyError(f"{policy!r} does not fit a hook: {error}") from error
        self._implemented[id(policy)] = hooks

    def implementers(self, hook: str) -> tuple[Policy, ...]:
        """The policies that implement `hook`, in call order: wrappers first, then as listed."""
        found = (p for p in self.policies if hook in self._implemented[id(p)])
        return tuple(sorted(found, key=lambda policy: not is_wrapper(hook, policy)))

    def listed_of(self, policy: Policy) -> Policy:
        """The listed policy that one of this engine's policies is a part of; itself if listed."""
        return self._listed_by_part[id(policy)]

    def hooks_of(self, policy: Policy) -> tuple[str, ...]:
        """The hooks that one of this engine's policies implements."""
        return self._implemented[id(policy)]

    def check(
        self,
        capabilities: frozenset[str],
        driver: str,
        seam: Seam = Seam.LATENT,
        kind: Kind = "latents",
    ) -> None:
        """Refuse a driver that lacks what a policy requires, or works on something else.

        Raises:
            CapabilityError: Names the policy, what is missing and what the driver offers.
        """
        if STOCHASTIC in capabilities:
            refuse_noise(self.policies, driver)
        self.check_kind(driver, kind)
        for policy, _, seams, requires in self._demands:
            if seam not in seams:
                raise CapabilityError(
                    f"{policy!r} works at the {' and '.join(sorted(seams))} seam, not at "
                    f"the {seam.value} seam; attach at that seam or remove the policy"
                )
            missing = requires - capabilities
            if missing:
                remedy = "another solver"
                if any(name.startswith("signal:") for name in missing):
                    remedy = "a network that offers this signal"
                elif TWO_BRANCHES in missing:
                    remedy = "guidance of two branches"
                raise CapabilityError(
                    f"{policy!r} requires {', '.join(sorted(missing))}, which {driver} does not "
                    f"offer (it offers {', '.join(sorted(capabilities)) or 'nothing'}); "
                    f"use {remedy} or remove the policy"
                )

    def check_kind(self, driver: str, kind: Kind) -> None:
        """Refuse a driver that works on something else than a policy decides for.

        Raises:
            CapabilityError: Names the policy, the driver and both kinds.
        """
        for policy, serves, *_ in self._demands:
            if kind not in serves:
                served = " and ".join(sorted(serves))
                raise CapabilityError(
                    f"{policy!r} decides for {served}, but {driver} samples {kind}; choose a "
                    f"policy that serves {kind}, or a driver for {served}"
                    + (" (MaskedSampler; a configuration sets decoder)" * (kind == "latents"))
                )

    def session(self, info: SessionInfo) -> Session:
        """A session for one request; use it as a context manager."""
        self.check(info.capabilities, info.solver or "this driver", info.seam, info.kind)
        return Session(self, info)

    def own_places(self, name: str, network: object, finder: Finder) -> tuple[Owner, ...]:
        """The policies that select places, each with its places in a network.

        Args:
            name: Name of the network, for messages.
            network: The network.
            finder: Finds places.

        Raises:
            CapabilityError: A policy selects what is not there.
            ConflictError: Two policies select the same place.
        """
        owners = tuple(
            Owner(
                repr(policy),
                resolve_places(name, network, policy.selects, finder, repr(policy)),
                policy.keeps(),
                self._bind_assign(policy),
                policy.keeps_inputs(),
            )
            for policy in self.selecting
        )
        check_owners(name, owners)
        return owners

    @property
    def agree(self) -> Agree | None:
        """Makes a value that decides inside the network the same on ranks that share a sample."""
        found = [p for p in self.policies if p.traits.collective]
        return getattr(found[0], "agree", None) if found else None

    def _bind_assign(self, policy: Policy) -> Assign:
        hook = self._manager.hook.assign
        assert hook.spec is not None
        (found,) = (one for one in hook.get_hookimpls() if one.plugin is policy)
        function = bind_arguments(found, tuple(hook.spec.argnames))

        def assign(where: Callable[[], str], step: Step, parts: Parts) -> Any:
            try:
                return function(step, parts)
            except Exception as error:
                self._blame(error, "assign", where, (step, parts))
                raise

        return assign

    def call_hook(self, hook: str, where: Callable[[], str], *arguments: Any) -> Any:
        """Call one hook; an exception names the plugin, the hook and the step.

        What the network itself raises passes through unchanged, so that an out-of-memory error
        stays one.

        Args:
            hook: Name of the hook.
            where: Describes the step; called only when something is raised.
            *arguments: Every argument of the hook, in the order of its specification.

        Raises:
            PolicyError: A policy raised something that is not an `ErtaError`.
        """
        try:
            return self._callers[hook](*arguments)
        except Exception as error:
            self._blame(error, hook, where, arguments)
            raise

    def _enclosing_revisers(self) -> tuple[Hook, ...]:
        """The wrappers of `decide` from the outermost to the last policy that revises."""
        decide = self._manager.hook.decide
        wrappers = [one for one in decide.get_hookimpls()[::-1] if one.wrapper]
        places = [k for k, one in enumerate(wrappers) if one.plugin in self._revising]
        chosen = wrappers[: places[-1] + 1] if places else []
        assert decide.spec is not None
        return tuple(bind_arguments(one, tuple(decide.spec.argnames)) for one in chosen)

    def revise(
        self, decision: Decision, where: Callable[[], str], step: Step | None, call: Call
    ) -> Decision:
        """Re-run the revising wrappers on the step's decision for another branch.

        Those are the policies with `sees_every_branch` and the wrappers listed before them. They
        wrap the decision as they would wrap that of the other policies, which are not called.
        Arguments and errors as in `call_hook`.
        """
        caller = call_within_wrappers(self._revisers, lambda *_: decision)
        try:
            revised: Decision = caller(step, call)
        except Exception as error:
            self._blame(error, "decide", where, (step, call))
            raise
        return revised

    def _blame(
        self, error: Exception, hook: str, where: Callable[[], str], arguments: tuple[Any, ...]
    ) -> None:
        """Note on an error where it arose, or name the policy that raised it.

        Raises:
            PolicyError: It is neither an error of ours nor one of the network.
        """
        if isinstance(error, ErtaError):
            error.add_note(f"in hook {hook!r} {where()}")
            return
        call = arguments[-1]
        if isinstance(call, Call) and call.compute.failure is error:
            error.add_note(f"raised by the network, branch {call.branch!r} {where()}")
            return
        raise PolicyError(
            f"{self._name_raiser(hook, error)} raised {type(error).__name__} in hook {hook!r} "
            f"{where()}: {error}"
        ) from error

    def end_session(
        self, where: Callable[[], str], session: SessionInfo, error: BaseException | None
    ) -> list[Profile]:
        """Call `on_session_end` of every policy, also of those behind one that raises.

        Raises:
            ErtaError: What the first one raised; what others raised are its notes.
        """
        hook = "on_session_end"
        try:
            return list(self.call_hook(hook, where, session, error))
        except Exception as first:
            plain = [p for p in self.implementers(hook) if not is_wrapper(hook, p)]
            raiser = find_raiser(first, self.policies)
            behind = plain[plain.index(raiser) + 1 :] if raiser in plain else []
            for policy in behind:
                others = [p for p in self.policies if p is not policy]
                try:
                    self._manager.subset_hook_caller(hook, others)(session=session, error=error)
                except Exception as second:
                    first.add_note(f"{policy!r} raised {type(second).__name__} as well: {second}")
            raise

    def _name_raiser(self, hook: str, error: BaseException) -> str:
        policy = find_raiser(error, self.policies)
        if policy is not None:
            return repr(policy)
        # a wrapper that yields twice or not at all is found outside of its frames
        return " or ".join(map(repr, self.implementers(hook))) or "core"

    def explain(self) -> str:
        """Who answers what, in call order."""
        return explain_engine(self)
