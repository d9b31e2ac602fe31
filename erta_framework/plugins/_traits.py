"""`Traits`: what a policy declares about itself, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from erta_framework.session import Kind, Needs, Seam

Unit = Literal["step", "branch", "sample"]
NOTHING = Needs()
KINDS: frozenset[Kind] = frozenset({"latents", "tokens"})
UNITS: tuple[Unit, ...] = ("step", "branch", "sample")
"""From the coarsest to the finest; each may decide for those before it as well."""


def choose_unit(each_sample: bool, each_branch: bool = False) -> Unit:
    """What a decision holds for, by the settings of a policy that can decide for less than a step.

    Example:
        >>> choose_unit(False, each_branch=True)
        'branch'
    """
    if each_sample:
        return "sample"
    return "branch" if each_branch else "step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What the engine must know of a policy before anything runs.

    A policy has them as a class attribute, or as a property where its settings decide.

    Attributes:
        requires: Capabilities that the driver must offer, such as `"first_order"` or
            `"signal:prompt"`; checked before sampling.
        seams: Where it works. A policy that integrates latents works at `LATENT` only. One that
            works on submodules names `MODULE`.
        serves: Which kinds of state it can decide for: `"latents"`, or the `"tokens"` of a masked
            language model.
        memory: How many earlier evaluations it needs, and what of them.
        decides: What one of its decisions holds for: all branches and samples of a `"step"`; a
            `"branch"`, where it may give `scope="branch"`; or a `"sample"`, where it may give a
            mask as well.
        static: Whether every decision is known before the request, so that no value is read back.
        corrects_computed: Whether its `forward`, a wrapper, may change freshly computed outputs.
        reads_latents: Whether it reads `call.x` or kept inputs. Such a policy is refused for a
            network whose output has another shape than its latents, which has no residual; other
            policies reuse the whole output there. True where `memory` has pairs.
        reads_peers: Whether its `decide` calls `call.peers()`, the other branches of the step.
        sees_every_branch: Whether its `decide`, a wrapper, is called for every branch. The
            branches of a step share one decision; this policy, and the wrappers listed before it,
            are called again for each further branch, with the earlier results in `call.answers`.
        reads_residual: Whether it answers with residuals whatever the network predicts. The trace
            notes it where residuals are known to be wrong; see `SessionInfo.reused`.
        deterministic: Whether it needs a solver that draws no noise, because it compares runs of
            the same sample. A driver that offers `"stochastic"` is refused.
        collective: Whether it makes several ranks decide alike, so that none may compute alone. It
            has `agree(value, where)`, the largest value of the ranks.
        agrees_inside: Whether every value that decides inside the network goes through
            `visit.agree`, so that ranks that share a sample decide alike there.

    Example:
        >>> Traits(static=True, memory=Needs(evaluations=2)).memory.evaluations
        2
    """

    requires: frozenset[str] = frozenset()
    seams: frozenset[Seam] = frozenset({Seam.LATENT, Seam.TRUNK})
    serves: frozenset[Kind] = frozenset({"latents"})
    memory: Needs = NOTHING
    decides: Unit = "step"
    static: bool = False
    corrects_computed: bool = False
    reads_latents: bool = False
    reads_peers: bool = False
    sees_every_branch: bool = False
    reads_residual: bool = False
    deterministic: bool = False
    collective: bool = False
    agrees_inside: bool = False

    def __post_init__(self) -> None:
        if self.memory.pairs:
            object.__setattr__(self, "reads_latents", True)

    @staticmethod
    def merge(several: Iterable[Traits]) -> Traits:
        """The traits of policies that run together. Those of no policies are static.

        Example:
            >>> Traits.merge([Traits(static=True), Traits(decides="sample")]).static
            False
        """
        traits = tuple(several)
        seams = [one.seams for one in traits]
        return Traits(
            requires=frozenset().union(*(one.requires for one in traits)),
            seams=frozenset.intersection(*seams) if seams else frozenset(Seam),
            serves=KINDS.intersection(*(one.serves for one in traits)),
            memory=Needs(
                evaluations=max((one.memory.evaluations for one in traits), default=0),
                pairs=any(one.memory.pairs for one in traits),
            ),
            decides=max((one.decides for one in traits), key=UNITS.index, default="step"),
            static=all(one.static for one in traits),
            corrects_computed=any(one.corrects_computed for one in traits),
            reads_latents=any(one.reads_latents for one in traits),
            reads_peers=any(one.reads_peers for one in traits),
            sees_every_branch=any(one.sees_every_branch for one in traits),
            reads_residual=any(one.reads_residual for one in traits),
            deterministic=any(one.deterministic for one in traits),
            collective=any(one.collective for one in traits),
            agrees_inside=all(one.agrees_inside for one in traits),
        )
