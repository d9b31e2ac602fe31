"""What a policy assigns to a place: run it, keep its output, reuse that, or leave it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from erta_framework.errors import PolicyError

if TYPE_CHECKING:
    from erta_framework.modules._visit import Visit

Of = Literal["output", "residual"]
"""What is kept: the output, or what a block adds to its input."""

Weights = tuple[float, ...] | tuple[tuple[float, ...], ...]
"""One weight for each kept output, newest first; or such weights for each sample."""

Change = Callable[[Tensor], Tensor]
"""What becomes of a reused tensor."""


def check_of(of: str) -> None:
    """Refuse a quantity that is neither output nor residual.

    Raises:
        PolicyError: Names it.
    """
    if of not in ("output", "residual"):
        raise PolicyError(f"of is {of!r}, it must be 'output' or 'residual'")


@dataclass(frozen=True, slots=True)
class Keep:
    """Run the module and keep its output, or its residual; `KEEP` keeps the output.

    Attributes:
        of: What is kept. A residual needs a module whose outputs have the shapes of its inputs,
            such as a block, or a span of blocks.
    """

    of: Of = "output"

    def __post_init__(self) -> None:
        check_of(self.of)


@dataclass(frozen=True, slots=True)
class ReuseKept:
    """Do not run the module: its output is a weighted sum of what is kept.

    Attributes:
        weights: One for each kept output, newest first, `(1.0,)` for the newest as it is; or a
            tuple of such weights for each sample.
        of: What was kept. A residual is added to the input of this visit.
        then: Changes each tensor of the sum, such as a per-channel correction; or one such change
            for each tensor, where the output is several.
        rest: Weights of the tensors after the first, such as the text's of a joint attention; by
            default those of the first.
        is_newest: Whether it is the newest output as it is, the reuse that needs no arithmetic.

    Raises:
        PolicyError: There are no weights, or `rest` has more than `weights`.

    Example:
        >>> ReuseKept((2.0, -1.0)).weights
        (2.0, -1.0)
    """

    weights: Weights = (1.0,)
    of: Of = "output"
    then: Change | tuple[Change, ...] | None = None
    rest: tuple[float, ...] | None = None
    is_newest: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_of(self.of)
        plain = self.of == "output" and self.then is None and self.rest is None
        object.__setattr__(self, "is_newest", plain and self.weights == (1.0,))
        if not self.weights or (isinstance(self.weights[0], tuple) and not self.weights[0]):
            raise PolicyError(
                f"ReuseKept got the weights {self.weights!r}; give one for each kept output, "
                "(1.0,) for the newest"
            )
        if self.rest is not None and not 0 < len(self.rest) <= self.depth:
            raise PolicyError(
                f"ReuseKept got {len(self.rest)} weights for the tensors after the first, and "
                f"{self.depth} for the first; give from 1 to {self.depth}"
            )

    @property
    def depth(self) -> int:
        """How many kept outputs it needs."""
        first = self.weights[0]
        return len(first) if isinstance(first, tuple) else len(self.weights)


@dataclass(frozen=True, slots=True)
class Skip:
    """Do not run the module: out comes a phantom, NaN in the form of its output; `SKIP`.

    For places whose output cannot reach the prediction, because a later one is reused. A wrong plan
    turns the prediction NaN, so that it cannot pass unseen.
    """


@dataclass(frozen=True, slots=True)
class Pass:
    """Do not run the block: its inputs go through as its outputs; `PASS`."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Run the module on some samples; the others keep what is kept of them.

    Attributes:
        index: Their places in the batch of this call, `[R]`.
    """

    index: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Run the module on some tokens; the others keep what is kept of them.

    For modules that treat every token alike, such as an MLP, and for cross-attention, where the
    tokens are its queries. What the module gives of these tokens replaces what is kept of them, and
    lasts until the place runs as a whole; the stamps of the place stay those of its last whole run.

    Where a place is several modules, those before the last run on these tokens too, and give NaN
    for the others. An attention among them, as in FLUX' single blocks, is a place of its own that
    has to be reused.

    Attributes:
        index: Their places, `[K]` for all samples or `[B, K]`.
    """

    index: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """Call a function when the network reaches the module; what it returns is the output.

    At a place of several modules, such as a cut, the others run, and the function is called at the
    last one.

    Attributes:
        answer: Gets the `Visit`, whose `run()` runs the module.
    """

    answer: Callable[[Visit], Any]


KEEP, SKIP, PASS = Keep(), Skip(), Pass()
Action = Keep | ReuseKept | Skip | Pass | Rows | Tokens | Ask
