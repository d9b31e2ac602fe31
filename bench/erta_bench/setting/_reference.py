"""The full run of a setting, and rows measured against it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from erta_bench.core import Measurement
from erta_bench.setting._progress import RunProgress
from erta_bench.setting._setting import Setting
from erta_framework.plugins import Policy
from erta_framework.sampling import Samples


@dataclass(slots=True)
class Reference:
    """The full run of the measured prompts, which every row is compared with.

    Attributes:
        setting: Makes the samplers.
        seed: First seed of the measured prompts.
        bar: Shows what runs.
        samples: What the full run gave.
        outcome: Its times, and its qualities against itself.
    """

    setting: Setting
    seed: int
    bar: RunProgress
    samples: Samples = field(init=False)
    outcome: Measurement = field(default_factory=Measurement)

    def __post_init__(self) -> None:
        self.bar.set_title("full")
        sampler = self.setting.make_sampler(callbacks=[self.bar])
        self.samples, took = self.setting.sample_held_out(sampler, self.seed)
        self.outcome.add(self.samples, self.samples, took.processor, self.setting.branches)

    def measure(
        self, title: str, policies: Iterable[Policy], steps: int | None = None
    ) -> tuple[Measurement, Tensor]:
        """Run the same prompts from the same noise with policies.

        Args:
            title: Shown while it runs.
            policies: What runs.
            steps: Steps of the run; None for those of the setting.

        Returns:
            What was measured, and the samples `[prompts, C, ...]`.

        Raises:
            CapabilityError: The sampler cannot serve a policy.
        """
        self.bar.set_title(title)
        sampler = self.setting.make_sampler(policies, steps, callbacks=[self.bar])
        result, took = self.setting.sample_held_out(sampler, self.seed)
        outcome = Measurement()
        outcome.add(result, self.samples, took.processor, self.setting.branches)
        return outcome, result.samples
