"""`DeepCache`: the deep part of a UNet runs at some steps, and is reused in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from erta_framework import Policy, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.modules import KEEP, Action, Cut, Parts, Place, ReuseKept, Selection
from erta_policies.shared import plan_newest, require_schedule

DEFAULT_INTERVAL = 3


class DeepCache(Policy):
    """Runs the deep part of a UNet once in `interval` steps, and reuses what comes out of it.

    A UNet hands features across by skip connections. In between, the network runs what lies above
    one of these: `conv_in` and the first `branch` parts of the way down, then the way up from the
    unit that takes this skip, with the current timestep and text. What enters this unit from below
    is the tensor of the last step at which the deep part ran. That is one tensor for each network
    call of a step.

    It counts how many steps old that tensor is. So the deep part runs at steps 0, N, 2N, ...; where
    another rule leaves out whole steps, it runs at the first computed step that is N steps later.

    Source: DeepCache, arXiv 2312.00858, section 3.2; uniform and non-uniform inference of section
    3.3. `branch` is `cache_branch_id` of the package `DeepCache`, where each stage on the way down
    makes three skips, as in Stable Diffusion and SDXL.

    Attributes:
        interval: N; 3 unless `when` is given. 1 runs everything.
        branch: Number of the skip, 0 for the shallowest and fastest cut.
        when: Instead of `interval`, a schedule of the steps at which the deep part runs, such as
            `centered_steps`.

    Raises:
        PolicyError: The interval is less than 1, both it and `when` are given, or `when` has no
            plan.

    Example:
        >>> DeepCache(interval=5, branch=1).selects
        (Cut(branch=1),)
    """

    interval: int | None = None
    branch: int = 0
    when: Policy | None = None

    traits = Traits(static=True, seams=frozenset({Seam.MODULE}))

    def __post_init__(self) -> None:
        if self.when is not None:
            require_schedule(self.when, self.name)
        if self.when is not None and self.interval is not None:
            raise PolicyError(
                f"DeepCache got interval={self.interval} and when={self.when!r}; give one of them"
            )
        if self.interval is not None and self.interval < 1:
            raise PolicyError(f"interval of DeepCache is {self.interval}, it must be at least 1")
        self.selects  # noqa: B018 - refuses a branch below 0

    @property
    def selects(self) -> Sequence[Selection]:
        """The deep part as one place."""
        return (Cut(branch=self.branch),)

    def prepare(self) -> None:
        if self.when is not None:
            self.when.prepare()

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if self.when is not None:
            newest = plan_newest(self.when, session.num_steps)
            session.state_of(self, lambda: newest)

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        (cut,) = call.sites
        age = call.age(cut)
        return {cut: KEEP if age is None or self._is_due(step, age) else ReuseKept()}

    def _is_due(self, step: Step, age: int) -> bool:
        if self.when is None:
            return age >= (DEFAULT_INTERVAL if self.interval is None else self.interval)
        newest: tuple[int, ...] = step.session.state_of(self, tuple)
        return step.index - age < newest[step.index]
