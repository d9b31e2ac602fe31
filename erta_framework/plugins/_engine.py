"""`Engine`: a list of policies made into hook tables, checked once and then frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pluggy
from torch import Tensor

from erta_framework.calibration import Profile
from erta_framework.errors import CapabilityError, ConflictError, ErtaError, PolicyError, suggestion
from erta_framework.plugins._hookspecs import HOOKS, PROJECT, HookSpecs, hookimpl
from erta_framework.plugins._policy import Policy, flatten
from erta_framework.session import Call, Compute, Decision, Needs, Seam, Session, SessionInfo, Step


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
        policies: In call order; recipes are expanded into their parts. Wrappers of a hook enclose
            the policies that answer it, the first listed outermost.

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
            try:
                policy.prepare()
            except ErtaError:
                raise
            except Exception as error:
                raise PolicyError(
                    f"{policy!r} raised {type(error).__name__} in prepare(): {error}"
                ) from error
        needs = [policy.needs() for policy in self.policies]
        reuses = bool(self.implementers("decide"))
        self.needs = Needs(
            evaluations=max([need.evaluations for need in needs] + [1 if reuses else 0]),
            pairs=any(need.pairs for need in needs),
        )
        self.static = all(policy.static for policy in self.policies)
        self.agrees = any(policy.agrees for policy in self.policies)
        self.per_branch = any(policy.per_branch for policy in self.policies)
        self.per_sample = any(policy.per_sample for policy in self.policies)
        self.revising = tuple(policy for policy in self.policies if policy.revises)
        for policy in self.revising:
            if "decide" not in self._implemented[id(policy)] or not self._wraps("decide", policy):
                raise PolicyError(
                    f"{policy!r} declares revises = True, but does not wrap decide; mark it with "
                    "@hookimpl(wrapper=True)"
                )
        if self.per_sample and owners:
            deciders = [repr(policy) for policy in self.policies if policy.per_sample]
            raise ConflictError(
                f"{' and '.join(deciders)} decides for each sample of a batch, {owners[0]!r} moves "
                "the interval of the whole batch; remove it, or decide for the whole batch"
            )
        self._demands = [(policy, policy.seams, policy.requires) for policy in self.policies]
        self.corrects_computed = any(policy.corrects_computed for policy in self.policies)
        self.active = frozenset(hook for hook in HOOKS if self.implementers(hook))
        self._callers = {hook: shortened(getattr(self._manager.hook, hook)) for hook in HOOKS}
        self._revisers = self._enclosing_revisers()

    def _register(self, position: int, policy: Policy) -> None:
        marked = {
            name: getattr(type(policy), name)
            for name in dir(type(policy))
            if hasattr(getattr(type(policy), name, None), f"{PROJECT}_impl")
        }
        for name in HOOKS:
            if name not in marked and hasattr(type(policy), name):
                raise PolicyError(
                    f"{policy!r} has a method {name!r} without @hookimpl, which would never be "
                    "called; mark it, or rename it"
                )
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
        for name in marked:
            options = hook_options(policy, name)
            if options["tryfirst"] or options["trylast"] or options["hookwrapper"]:
                raise PolicyError(
                    f"{policy!r} marks {name!r} tryfirst, trylast or hookwrapper; the listed order "
                    "is the call order, use a plain @hookimpl or @hookimpl(wrapper=True)"
                )
        try:
            self._manager.register(policy, name=f"{position}:{policy.name}")
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PolicyError(f"{policy!r} does not fit a hook: {error}") from error
        self._implemented[id(policy)] = tuple(name for name in HOOKS if name in marked)

    def implementers(self, hook: str) -> tuple[Policy, ...]:
        """The policies that implement `hook`, in call order: wrappers first, then as listed."""
        found = (p for p in self.policies if hook in self._implemented[id(p)])
        return tuple(sorted(found, key=lambda policy: not self._wraps(hook, policy)))

    def hooks_of(self, policy: Policy) -> tuple[str, ...]:
        """The hooks that one of this engine's policies implements."""
        return self._implemented[id(policy)]

    def check(self, capabilities: frozenset[str], driver: str, seam: Seam = Seam.LATENT) -> None:
        """Refuse a driver that lacks what a policy requires, or answers at another seam.

        Raises:
            CapabilityError: Names the policy, what is missing and what the driver offers.
        """
        for policy, seams, requires in self._demands:
            if seam not in seams:
                raise CapabilityError(
                    f"{policy!r} works at the {' and '.join(sorted(seams))} seam, not at "
                    f"the {seam.value} seam; attach at that seam or remove the policy"
                )
            missing = requires - capabilities
            if missing:
                signal = any(name.startswith("signal:") for name in missing)
                remedy = "a network that offers this signal" if signal else "another solver"
                raise CapabilityError(
                    f"{policy!r} requires {', '.join(sorted(missing))}, which {driver} does not "
                    f"offer (it offers {', '.join(sorted(capabilities)) or 'nothing'}); "
                    f"use {remedy} or remove the policy"
                )

    def session(self, info: SessionInfo) -> Session:
        """A session for one request; use it as a context manager."""
        # a driver at another seam names it among the facts, so that profiles are not mixed up
        seam = Seam(info.model.get("seam", Seam.LATENT))
        self.check(info.capabilities, info.solver or "this driver", seam)
        return Session(self, info)

    def call_hook(self, hook: str, where: Callable[[], str], *arguments: Any) -> Any:
        """Call one hook; an exception names the plugin, the hook and the step.

        What the network itself raises passes through unchanged, so that an out-of-memory error
        stays one.

        Args:
            hook: Name of the hook.
            where: Describes the step, asked only when something is raised.
            *arguments: Every argument of the hook, in the order of its specification.

        Raises:
            PolicyError: A policy raised something that is not an `ErtaError`.
        """
        return self._called(self._callers[hook], hook, where, arguments)

    def _enclosing_revisers(self) -> tuple[Hook, ...]:
        """The wrappers of `decide` from the outermost to the last policy that revises."""
        decide = self._manager.hook.decide
        wrappers = [one for one in decide.get_hookimpls()[::-1] if one.wrapper]
        places = [k for k, one in enumerate(wrappers) if one.plugin in self.revising]
        chosen = wrappers[: places[-1] + 1] if places else []
        assert decide.spec is not None
        return tuple(placed(one, tuple(decide.spec.argnames)) for one in chosen)

    def revise(
        self, decision: Decision, where: Callable[[], str], step: Step | None, call: Call
    ) -> Decision:
        """The decision of the step for one more branch, after the policies that `revises`.

        They wrap it as they would wrap the answer of the chain, and so do the wrappers listed
        before them; nobody else is asked. Arguments and errors as in `call_hook`.
        """
        caller = surrounded(self._revisers, lambda *_: decision)
        revised: Decision = self._called(caller, "decide", where, (step, call))
        return revised

    def _called(
        self,
        caller: Hook,
        hook: str,
        where: Callable[[], str],
        arguments: tuple[Any, ...],
    ) -> Any:
        try:
            return caller(*arguments)
        except ErtaError as error:
            error.add_note(f"in hook {hook!r} {where()}")
            raise
        except Exception as error:
            call = arguments[-1]
            if isinstance(call, Call) and call.compute.failure is error:
                error.add_note(f"raised by the network, branch {call.branch!r} {where()}")
                raise
            raise PolicyError(
                f"{self._blamed(hook, error)} raised {type(error).__name__} in hook {hook!r} "
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
            plain = [p for p in self.implementers(hook) if not self._wraps(hook, p)]
            raiser = self._raiser(first)
            behind = plain[plain.index(raiser) + 1 :] if raiser in plain else []
            for policy in behind:
                others = [p for p in self.policies if p is not policy]
                try:
                    self._manager.subset_hook_caller(hook, others)(session=session, error=error)
                except Exception as second:
                    first.add_note(f"{policy!r} raised {type(second).__name__} as well: {second}")
            raise

    def _blamed(self, hook: str, error: BaseException) -> str:
        policy = self._raiser(error)
        if policy is not None:
            return repr(policy)
        # a wrapper that yields twice or not at all is found outside of its frames
        return " or ".join(map(repr, self.implementers(hook))) or "core"

    def _raiser(self, error: BaseException | None) -> Policy | None:
        """The policy in whose method the exception arose, from the frames of its traceback."""
        if isinstance(error, PolicyError) and error.__cause__ is not None:
            error = error.__cause__
        found, trace = None, error.__traceback__ if error is not None else None
        while trace is not None:
            code = trace.tb_frame.f_code
            owner = trace.tb_frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
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

    def _described(self, hook: str, policy: Policy) -> str:
        return f"[{policy.name}]" if self._wraps(hook, policy) else policy.name

    @staticmethod
    def _wraps(hook: str, policy: Policy) -> bool:
        return bool(hook_options(policy, hook)["wrapper"])


Hook = Callable[..., Any]
"""Something called with every argument that a hook offers, in the order of its specification."""


def shortened(caller: pluggy.HookCaller) -> Hook:
    """A hook called by place and, if it stops at the first answer, directly.

    The same calls in the same order as pluggy's, without its cost for each of them.
    """
    assert caller.spec is not None
    offered = tuple(caller.spec.argnames)
    if not caller.spec.opts["firstresult"]:
        return lambda *arguments: caller(**dict(zip(offered, arguments, strict=True)))
    found = list(reversed(caller.get_hookimpls()))
    wrappers = tuple(placed(one, offered) for one in found if one.wrapper)
    chain = tuple(placed(one, offered) for one in found if not one.wrapper)

    def answered(*arguments: Any) -> Any:
        for function in chain:
            answer = function(*arguments)
            if answer is not None:
                return answer
        return None

    return surrounded(wrappers, answered) if wrappers else answered


def placed(implementation: pluggy.HookImpl, offered: tuple[str, ...]) -> Hook:
    """A hook implementation, which takes any subset of the arguments, called with all of them."""
    function, taken = implementation.function, tuple(implementation.argnames)
    if taken == offered:
        return function
    places = tuple(offered.index(name) for name in taken)
    if len(places) == 1:
        (only,) = places
        return lambda *arguments: function(arguments[only])
    return lambda *arguments: function(*[arguments[place] for place in places])


def surrounded(wrappers: tuple[Hook, ...], answered: Hook) -> Hook:
    """A call within generators that yield once, the first the outermost, as pluggy does it."""

    def call(*arguments: Any) -> Any:
        entered, answer = [], None
        raised: BaseException | None = None
        try:
            for function in wrappers:
                generator = function(*arguments)
                for _ in generator:
                    break
                else:
                    raise RuntimeError(f"{generator.__qualname__} is a wrapper and did not yield")
                entered.append(generator)
            answer = answered(*arguments)
        except BaseException as error:
            raised = error
        while entered:
            generator = entered.pop()
            try:
                if raised is None:
                    generator.send(answer)
                else:
                    generator.throw(raised)
            except StopIteration as stop:
                answer, raised = stop.value, None
            except BaseException as error:
                raised = error
            else:
                generator.close()
                raised = RuntimeError(f"{generator.__qualname__} is a wrapper and yielded twice")
        if raised is not None:
            try:
                raise raised
            finally:
                del raised  # a frame that holds its own exception is freed late
        return answer

    return call


def hook_options(policy: Policy, hook: str) -> Mapping[str, Any]:
    """What a policy's `@hookimpl` mark of a hook says."""
    options: Mapping[str, Any] = getattr(getattr(type(policy), hook), f"{PROJECT}_impl")
    return options
