"""`TokenSplit`: MLPs run on the tokens that moved, and the others keep what they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field

from torch import Tensor

from erta_framework import Policy, Seam, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.modules import Action, Ask, Parts, Place, Select, Visit
from erta_policies.fastcache._significance import Movement, measure_saliency


class TokenSplit(Policy):
    """Runs MLPs on the tokens that moved since they were last computed there.

    The token-level half of FastCache, arXiv 2505.20353, as far as it is exact. Published: tokens
    whose saliency, the squared change of what enters the blocks, is above a threshold are in
    motion; static tokens take one linear map instead of all blocks. Here every token keeps, at
    each MLP, the input and output of the step at which it was last computed there. Static tokens
    take that output, and the gate of the current time is applied to it by the block. Attention runs
    on all tokens, with the keys and values of all of them. So only the work of MLPs is saved.

    Where more than `full` of the tokens move, all run, as published; where none does, none. Of the
    samples of a call as many tokens run as in the one where most move. That is one read-back at
    each MLP. The first and the last step run everything.

    Attributes:
        mlps: Which MLPs, which take tokens one by one; of a place of several modules the last one
            is split.
        motion: Squared movement above which a token is in motion, relative to that of the token
            that moves most; 0.1 as released.
        full: Part of the tokens above which all run; 0.5 as released.
        most: Steps after which all tokens run again, which is ours.

    Raises:
        PolicyError: A setting is out of range.
        CapabilityError: A module does not take tokens one by one.

    Example:
        >>> TokenSplit().motion
        0.1
    """

    mlps: Select = field(default_factory=lambda: Select(kind=("mlp",)))
    motion: float = 0.1
    full: float = 0.5
    most: int = 3

    traits = Traits(seams=frozenset({Seam.MODULE}), agrees_inside=True)

    def __post_init__(self) -> None:
        if not 0.0 <= self.motion < 1.0 or not 0.0 <= self.full <= 1.0 or self.most < 1:
            raise PolicyError(
                f"TokenSplit has motion={self.motion}, full={self.full} and most={self.most}; give "
                "parts in [0, 1) and [0, 1], and 1 step or more"
            )
        if self.mlps.kind != ("mlp",):
            raise PolicyError(f"TokenSplit runs MLPs in part, and not {self.mlps}")

    @property
    def selects(self) -> Sequence[Select]:
        """The MLPs."""
        return (self.mlps,)

    def keeps_inputs(self) -> bool:
        """An input is kept beside what was made of it."""
        return True

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        if step.index == step.num_steps - 1 and call.kept(call.sites[-1]):
            return {}
        return dict.fromkeys(call.sites, Ask(self._visit))

    def _visit(self, visit: Visit) -> Tensor:
        x, features = visit.x, visit.features
        whole = visit.state_of(self, dict[int, int])  # when all tokens of a sample ran
        index = visit.step.index
        old = bool(features) and all(index - whole[row] <= self.most for row in visit.rows)
        if not old or features[0].shape != x.shape:
            return self._run_all(visit, whole)
        kept, output = features
        saliency = measure_saliency(Movement(x, kept, visit.place.path, 0, 0.0))
        moving = int(visit.agree((saliency > self.motion).sum(dim=1)))
        if moving > self.full * x.shape[1]:
            return self._run_all(visit, whole)
        if moving == 0:
            return output
        chosen = saliency.topk(moving, dim=1).indices
        made = visit.run_tokens(chosen, output)
        places = chosen.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        visit.keep(kept.scatter(1, places, x.gather(1, places)), made)
        return made

    def _run_all(self, visit: Visit, whole: dict[int, int]) -> Tensor:
        output: Tensor = visit.run()
        visit.keep(visit.x, output)
        whole.update(dict.fromkeys(visit.rows, visit.step.index))
        return output
