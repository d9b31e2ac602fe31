"""What a network's output says about the clean part and the noise of its latents."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.sampling.solvers._processes import Process, Sigma
from erta_framework.sampling.solvers._protocol import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Parametrisation:
    """A noise process and what the network predicts of it.

    Attributes:
        process: How clean part and noise mix at each sigma.
        prediction: What the network's output is.

    Raises:
        InputError: Networks of this process do not predict that.

    Example:
        >>> form = Parametrisation(process=Flow(), prediction="velocity")
        >>> x, velocity = torch.tensor([1.0]), torch.tensor([2.0])
        >>> form.clean(x, velocity, 0.5), form.noise(x, velocity, 0.5)
        (tensor([0.]), tensor([2.]))
    """

    process: Process
    prediction: Prediction

    def __post_init__(self) -> None:
        offered = self.process.predictions
        if self.prediction not in offered:
            raise InputError(
                f"prediction is {self.prediction!r}, but with {type(self.process).__name__} a "
                f"network predicts {' or '.join(offered)}; convert the output, or choose the "
                "solver of another process"
            )

    @property
    def is_slope(self) -> bool:
        """Whether the output is the slope of the line that stretched latents move on."""
        return self.prediction == self.process.predictions[0]

    def clean(self, x: Tensor, output: Tensor, sigma: Sigma) -> Tensor:
        """The clean sample that the output stands for, `[B, C, ...]`."""
        alpha, level = self.process.scales(sigma)
        if self.prediction == "sample":
            return output
        if self.prediction == "velocity":
            return x - level * output
        if self.prediction == "epsilon":
            return (x - level * output) / alpha
        return alpha * x - level * output

    def noise(self, x: Tensor, output: Tensor, sigma: Sigma) -> Tensor:
        """The noise that the output stands for, `[B, C, ...]`; sigma is above 0."""
        alpha, level = self.process.scales(sigma)
        if self.prediction == "sample":
            return (x - alpha * output) / level
        if self.prediction == "velocity":
            return x + alpha * output
        if self.prediction == "epsilon":
            return output
        return level * x + alpha * output

    def slope(self, x: Tensor, output: Tensor, sigma: float) -> Tensor:
        """The slope of the line that stretched latents move on, `[B, C, ...]`."""
        if self.is_slope:
            return output
        clean, noise = self.clean(x, output, sigma), self.noise(x, output, sigma)
        return self.process.slope(clean, noise)

    def predict(self, x: Tensor, clean: Tensor, noise: Tensor, sigma: Sigma) -> Tensor:
        """The output that stands for this clean sample and noise."""
        alpha, level = self.process.scales(sigma)
        if self.prediction == "sample":
            return clean
        if self.prediction == "velocity":
            return noise - clean
        if self.prediction == "epsilon":
            return noise
        return alpha * noise - level * clean
