"""A model by name, with the prompts that it brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from erta_framework.errors import InputError
from erta_framework.plugins import models
from erta_framework.sampling import CFG, DDIM, FlowEuler, Guidance, Solver, TextModel
from erta_framework.testing import GaussianMixtureFlow


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model and its own prompts.

    Attributes:
        name: The name in the catalogue of models.
        model: The model.
        calibration: Prompts to calibrate on.
        held_out: Prompts to measure; they share none with `calibration`.
    """

    name: str
    model: TextModel
    calibration: Sequence[str]
    held_out: Sequence[str]

    def take_held_out(self, count: int) -> list[str]:
        """The first `count` held-out prompts.

        Raises:
            InputError: There are fewer.
        """
        if count > len(self.held_out):
            raise InputError(
                f"--prompts {count}: {self.name!r} has {len(self.held_out)} held-out prompts"
            )
        return list(self.held_out[:count])

    def take_calibration(self, count: int) -> list[str]:
        """The first `count` calibration prompts.

        Raises:
            InputError: There are fewer.
        """
        if count > len(self.calibration):
            raise InputError(
                f"--calibration {count}: {self.name!r} has {len(self.calibration)} prompts for it"
            )
        return list(self.calibration[:count])


def open_model(name: str) -> DemoModel:
    """Load a model of the catalogue, with its prompts.

    Raises:
        RegistryError: There is no such model.
        InputError: The model has no prompts of its own.
    """
    return read_prompts(name, models().load(name)())


def read_prompts(name: str, model: TextModel) -> DemoModel:
    """Ask a model for its prompts.

    Raises:
        InputError: It has none.
    """
    own = getattr(model, "demo_prompts", None)
    if own is None:
        raise InputError(
            f"the model {name!r} has no demo_prompts() -> (calibration, held-out); use a bundled "
            "model that has, or erta_bench.ablation.run_ablation() with your own prompts"
        )
    calibration, held_out = own()
    return DemoModel(name, model, list(calibration), list(held_out))


def repeat_prompts(prompts: Sequence[str], count: int) -> list[str]:
    """Exactly `count` prompts, from the start again where there are fewer.

    Example:
        >>> repeat_prompts(["a", "b"], 3)
        ['a', 'b', 'a']
    """
    return [prompts[k % len(prompts)] for k in range(count)]


def open_study_model(name: str) -> DemoModel:
    """A model with its prompts; `"mixture"` is an analytic flow, for which prompts are made here.

    Raises:
        RegistryError: There is no such model.
        InputError: The model has no prompts of its own.
    """
    if name == "mixture":
        prompts = [
            f"a {color} {shape} moving {direction}"
            for direction in ("left", "right", "up", "down")
            for shape in ("circle", "square", "triangle")
            for color in ("red", "yellow", "green", "white", "blue", "black")
        ]
        return DemoModel(name, GaussianMixtureFlow(), prompts[:24], prompts[24:])
    return open_model(name)


def choose_first_order_solver(model: TextModel) -> Solver:
    """The first-order solver of a model: its own first one, or that of what it predicts."""
    own = list_solvers(model)
    if own:
        return next(iter(own.values()))
    return DDIM() if getattr(model, "prediction", "velocity") == "epsilon" else FlowEuler()


def list_solvers(model: TextModel) -> Mapping[str, Solver]:
    """Solvers of a model that is sampled by the own loop, the first that of a full run.

    Such a model offers `solvers()`; one that runs in a pipeline has schedulers instead, and none
    of these.
    """
    offer = getattr(model, "solvers", None)
    found: Mapping[str, Solver] = offer() if offer is not None else {}
    return found


def choose_guidance(model: TextModel) -> Guidance:
    """The guidance that a model names as its `guidance`, or classifier-free guidance of scale 3."""
    own: Guidance | None = getattr(model, "guidance", None)
    return own if own is not None else CFG(scale=3.0)
