"""`PolicyCallback`: policies on the pipeline of a LightningModule while it is evaluated."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("diffusers")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from torch.utils.data import DataLoader

from erta_framework.errors import InputError
from erta_integrations.diffusers import attach
from erta_integrations.fabric import PolicyCallback, log_traces
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES

FAMILY = FAMILIES["flux"]
STEPS = 5
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    # lightning's own
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
]


class Recorder(Logger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, float], int | None]] = []

    name = "recorder"
    version = 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((dict(metrics), step))

    def of(self, prefix: str) -> list[dict[str, float]]:
        found = [{k: v for k, v in row.items() if k.startswith(prefix)} for row, _ in self.rows]
        return [row for row in found if row]


class Samples(LightningModule):
    """Trains one number, and samples with a pipeline when it is evaluated."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.pipe = FAMILY.build()
        self.fails = fails
        self.patched: dict[str, bool] = {}

    def seen(self, stage: str) -> None:
        self.patched[stage] = "forward" in vars(self.pipe.transformer)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        self.seen("train")
        return (self.weight - batch.float().mean()) ** 2

    def validation_step(self, batch: torch.Tensor) -> None:
        self.seen("validate")
        FAMILY.run(self.pipe, steps=STEPS)
        if self.fails:
            raise ArithmeticError("a validation that fails")

    test_step = validation_step

    def predict_step(self, batch: torch.Tensor) -> torch.Tensor:
        self.validation_step(batch)
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path: Path, callback: PolicyCallback, logger: Logger) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=logger,
        callbacks=[callback],
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def data(samples: int = 2) -> DataLoader[Any]:
    return DataLoader(torch.arange(samples))  # type: ignore[arg-type]


def clean(module: Samples) -> bool:
    parts = (module.pipe.transformer, module.pipe.scheduler)
    return not any(name in vars(part) for part in parts for name in ("forward", "step"))


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_each_loop_of_evaluation_is_attached_logged_and_detached(
    tmp_path: Path, stage: str
) -> None:
    recorder, module = Recorder(), Samples()
    callback = PolicyCallback("skip_policy", every=2)
    quiet = {} if stage == "predict" else {"verbose": False}
    ran = trainer(tmp_path, callback, recorder)
    getattr(ran, stage)(module, data(), **quiet)
    # two requests of five steps, of which 0, 2 and 4 are computed
    assert recorder.of("erta/") == [
        {
            f"erta/{stage}/network_calls": 6.0,
            f"erta/{stage}/reused_calls": 4.0,
            f"erta/{stage}/speedup": 10 / 6,
        }
    ]
    assert ran.callback_metrics[f"erta/{stage}/network_calls"] == 6.0
    assert [trace.computed_steps for trace in callback.traces] == [(0, 2, 4)] * 2
    assert module.patched == {"validate": True}
    assert clean(module)


def test_traces_are_logged_without_a_trainer(tmp_path: Path) -> None:
    logger, pipe = CSVLogger(tmp_path, name="", version="run"), FAMILY.build()
    with attach(pipe, "skip_policy", every=2) as run:
        FAMILY.run(pipe, steps=STEPS)
    log_traces(logger, run.traces, step=3)
    logger.save()
    with (tmp_path / "run/metrics.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    found = (float(row["erta/network_calls"]), float(row["erta/reused_calls"]), row["step"])
    assert found == (3.0, 2.0, "3")


def test_training_is_left_alone_and_the_loop_within_fit_is_not(tmp_path: Path) -> None:
    recorder, module = Recorder(), Samples()
    fit = trainer(tmp_path, PolicyCallback([SkipPolicy(every=2)], prefix="cache"), recorder)
    fit.fit(module, data(2), data(1))
    assert module.patched == {"train": False, "validate": True}
    # the sanity check before training is sampled with the policies, but not logged
    assert [row["cache/validate/network_calls"] for row in recorder.of("cache/")] == [3.0]
    assert [step for row, step in recorder.rows if "cache/validate/speedup" in row] == [2]
    assert clean(module)


def test_the_numbers_reach_a_file(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="run")
    trainer(tmp_path, PolicyCallback("skip_policy", every=2), logger).validate(
        Samples(), data(1), verbose=False
    )
    with (tmp_path / "run/metrics.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row["erta/validate/network_calls"]) == 3.0


def test_an_exception_detaches(tmp_path: Path) -> None:
    module, recorder = Samples(fails=True), Recorder()
    callback = PolicyCallback("skip_policy", every=2)
    with pytest.raises(ArithmeticError, match="a validation that fails"):
        trainer(tmp_path, callback, recorder).validate(module, data(), verbose=False)
    assert module.patched == {"validate": True}
    assert clean(module)
    assert recorder.of("erta/") == []
    assert [trace.computed_steps for trace in callback.traces] == [(0, 2, 4)]


def test_only_the_stages_that_were_asked_for(tmp_path: Path) -> None:
    recorder, module = Recorder(), Samples()
    callback = PolicyCallback("skip_policy", stages=["test"], every=2)
    trainer(tmp_path, callback, recorder).validate(module, data(1), verbose=False)
    assert module.patched == {"validate": False}
    assert recorder.of("erta/") == []


def test_what_cannot_be_attached_is_refused(tmp_path: Path) -> None:
    callback = PolicyCallback("skip_policy", pipeline="pipeline.inner", every=2)
    with pytest.raises(InputError, match=r"Samples has no 'pipeline.inner' to attach"):
        trainer(tmp_path, callback, Recorder()).validate(Samples(), data(1), verbose=False)
    with pytest.raises(InputError, match="give a list of validate, test, predict"):
        PolicyCallback("skip_policy", stages=["fit"])


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[3] / "docs/how-to/lightning.md"
    blocks = re.findall(r"^```py.*?\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)  # noqa: S102 - our own page
    assert names["callback"].traces[0].computed_steps == (0, 2, 4, 5)
    (file,) = tmp_path.glob("runs/**/metrics.csv")
    assert "erta/validate/speedup" in file.read_text("utf-8")
