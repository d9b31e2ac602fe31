"""`Visit`: one module at the moment when the network reaches it, as `Ask` sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from erta_framework.errors import PolicyError
from erta_framework.modules._actions import Action, Of, ReuseKept
from erta_framework.modules._cells import FEATURE
from erta_framework.modules._partial import run_rows, run_tokens, take_rows
from erta_framework.modules._places import Place
from erta_framework.modules._reached_place import ReachedPlace
from erta_framework.modules._tally import count_everything

if TYPE_CHECKING:
    from erta_framework.modules._gate import Run
    from erta_framework.modules._place_call import PlaceCall

R = TypeVar("R")


class Visit(ReachedPlace):
    """One module at the moment when the network reaches it.

    Attributes:
        place: The place.
        step: The step.
        call: The network call.
        args: The positional arguments of the module.
        kwargs: The keyword arguments.
        failure: What the module raised.
        flops: Those of the module, in a network call that is measured.
        ran_whole: Whether the module has run in this visit, on all samples and tokens.
        reassigned: Whether the plan of another place was changed in this visit.
    """

    def __init__(
        self, owned: PlaceCall, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        super().__init__(owned, args, kwargs)
        self._run = run
        self.failure: BaseException | None = None
        self._ran = self._kept = False
        self.flops = 0
        self.ran_whole = self.reassigned = False

    @property
    def ran(self) -> bool:
        """Whether the module has run in this visit."""
        return self._ran

    def run(self, keep: Of | None = None) -> Any:
        """Run the module; its output.

        Args:
            keep: Whether to keep the output or the residual.

        Raises:
            PolicyError: It ran already.
        """
        owned = self._owned

        def run_all() -> Any:
            if keep is None:
                return owned.run(self._run, self.args, self.kwargs)
            owned.check_residual(keep)
            self._begin_to_keep()
            owned.of = keep
            return owned.keep(self._run, self.args, self.kwargs)

        self.ran_whole = True
        return self._run_once(run_all)

    def run_rows(self, rows: Sequence[int]) -> list[Tensor]:
        """Run the module on some samples; the tensors of its output, of these samples.

        Args:
            rows: Their places among the samples of this call.

        Raises:
            CapabilityError: An argument does not say which of its rows belong to a sample.
            PolicyError: It ran already.
        """
        width = len(self.rows)

        def run_some() -> list[Tensor]:
            output, self._owned.outcome = self._owned.output, "ran"
            found = run_rows(output, self._run, self.args, self.kwargs, rows, width)
            output.enter()
            output.share = len(rows) / width
            return found

        return self._run_once(run_some)

    def require_rows(self) -> None:
        """Refuse a module that cannot run on some samples, before a decision needs it.

        Raises:
            CapabilityError: An argument does not say which of its rows belong to a sample.
        """
        take_rows(self._owned.output, self.args, self.kwargs, (0,), len(self.rows))

    def run_tokens(self, index: Tensor, old: Tensor) -> Tensor:
        """Run the module on some tokens; its output, with the others as they were.

        Args:
            index: Places of the tokens, `[K]` or `[B, K]`.
            old: What the others have, `[B, N, D]`.

        Raises:
            CapabilityError: It does not map one tensor of tokens to another.
            PolicyError: It ran already.
        """

        def run_some() -> Tensor:
            output, self._owned.outcome = self._owned.output, "ran"
            part = run_tokens(output, self._run, self.args, self.kwargs, index, [old.shape])
            output.enter()
            output.share = part.share
            return part.put_into(old)

        return self._run_once(run_some)

    def _run_once(self, run: Callable[[], R]) -> R:
        if self._ran:
            raise PolicyError(
                f"{self._owned.owner} ran {self.place} twice in one visit; run it once"
            )
        self._ran = True
        begun = count_everything()
        try:
            return run()
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self.flops = count_everything() - begun

    def keep(self, *features: Tensor, of: Sequence[int] | None = None) -> None:
        """Keep tensors of the policy's own at this place, instead of an output.

        Kept like an output: by branch, with steps, and counted as memory. A call on some samples
        sees and replaces theirs alone. One that the network writes into later is forgotten.

        Args:
            features: One row for each sample that runs, `[R, ...]`.
            of: Places among the samples of this call that they are of; None for all.

        Raises:
            PolicyError: One has other rows.
        """
        owned = self._owned
        rows = self.rows if of is None else [self.rows[row] for row in of]
        for one in features:
            if not one.ndim or one.shape[0] != len(rows):
                raise PolicyError(
                    f"{owned.owner} keeps a feature {tuple(one.shape)} at {self.place}, but "
                    f"{len(rows)} samples run; give it a row for each"
                )
        if of is not None:
            owned.kept_rows = tuple(rows)
        owned.of, owned.fresh = FEATURE, []
        owned.remember(list(features))

    def keep_input(self, x: Tensor | None = None) -> None:
        """Keep the input of this visit beside the output that is kept in it.

        Counted as memory. A place that keeps several outputs keeps an input with each.

        Args:
            x: The input, where that is another one than `x` of the visit.
        """
        self._owned.before = self._owned.guard([self.x if x is None else x])

    def keep_output(
        self, output: Any, of: Of = "output", rows: Sequence[int] | None = None
    ) -> None:
        """Keep an output that the function has made, as if the module had returned it.

        Args:
            output: What the function answers.
            of: Whether the output is kept, or what it adds to the inputs of this visit.
            rows: The samples of which it is kept, as places among those that run; None for all.

        Raises:
            PolicyError: Something is kept of this visit already, the output has no row for each
                sample and only some are kept, or the place is several modules and has no residual.
        """
        owned = self._owned
        self._begin_to_keep()
        owned.keep_made(output, of, self.streams, rows)

    def _begin_to_keep(self) -> None:
        if self._kept:
            self._owned.refuse("keeps two outputs of", "one visit has one")
        self._kept = True

    def reuse(self, action: ReuseKept) -> Any:
        """The output made of what is kept, as if this action had been assigned.

        The module may run as well, where an answer is made of both.
        """
        return self._owned.answer_from(action, self._number, self._run, self.args, self.kwargs)

    def assign(self, place: Place, action: Action) -> None:
        """Change the plan of another place of the same policy, which the network has not reached.

        Raises:
            PolicyError: It is no place of the policy, or the network has passed it.
        """
        self._owned.reassign(place, action)
        self.reassigned = True
