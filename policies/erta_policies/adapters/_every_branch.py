"""`EveryBranchAgrees`: a step is reused only where every guidance branch would be."""

from __future__ import annotations

from dataclasses import replace

from erta_framework import Compute, Decision, Reuse, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.session import Call
from erta_policies.shared import RuleWrapper, call_hook


class EveryBranchAgrees(RuleWrapper):
    """Reuses a step only where a skip rule would reuse every branch of it.

    Published rules let the conditional branch decide for both. This one runs the rule for every
    branch, each with its own history and state, when the first branch is called. If the rule would
    compute any branch, the step computes.

    Source: ours.

    Attributes:
        policy: The skip rule; one that decides from latents and history, at the latent seam.

    Raises:
        PolicyError: The policy does not decide, stands for several, runs at another seam, or
            decides for tokens, whose branches share their positions anyway.

    Example:
        >>> EveryBranchAgrees(policy=EasyCache())  # doctest: +SKIP
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if "latents" not in self.policy.traits.serves:
            raise PolicyError(
                f"{type(self).__name__} got {self.policy!r}, which decides for tokens: there, the "
                "branches share a decision by position; list it alone"
            )

    @property
    def traits(self) -> Traits:
        own = self.policy.traits  # the branches share their input at the latent seam only
        return replace(
            own,
            seams=own.seams & {Seam.LATENT},
            serves=own.serves & {"latents"},
            reads_peers=True,
        )

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if hasattr(self.policy, "on_session_start"):
            call_hook(self.policy, "on_session_start", session=session)

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision | None:
        if call.seam is not Seam.LATENT:
            raise PolicyError(
                f"{self!r} is asked at the {call.seam.value} seam, where the branches do not share "
                "their input; attach with seam='latent'"
            )
        answers: dict[str, Decision | None] = {
            one.branch: call_hook(self.policy, "decide", step=step, call=one)
            for one in (call, *call.peers())
        }
        if any(answer is None for answer in answers.values()):
            return None
        against = [
            (branch, answer) for branch, answer in answers.items() if isinstance(answer, Compute)
        ]
        if against:
            branch, answer = against[0]
            return Compute(f"{branch}: {answer.reason}")
        reuses = [answer for answer in answers.values() if isinstance(answer, Reuse)]
        masks = [tuple(answer.mask) for answer in reuses if answer.mask is not None]
        mask = tuple(map(all, zip(*masks, strict=True))) if masks else None
        return Reuse("every branch agrees", mask=mask)
