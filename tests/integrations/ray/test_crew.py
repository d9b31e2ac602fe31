"""Jobs on a crew of workers that run in threads: the launcher, without Ray."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch

from erta_framework import Sampler
from erta_framework.errors import ConfigError, InputError, PolicyError
from erta_framework.jobs import CalibrationRequest, FabricConfig, JobRequest
from erta_framework.testing import AffineFlow
from erta_integrations.fabric.jobs import SamplerSource, Store, run_job
from erta_integrations.ray._crew import TRIES, Crew, WorkerLostError
from erta_integrations.ray._job import calibrate_on_crew, sample_on_crew
from erta_integrations.ray._place import Place, read_place
from erta_integrations.ray._worker import JobWorker, Surroundings
from erta_policies.ertacache import ResidualProfiler

PROMPTS = [f"prompt {k}" for k in range(7)]
AROUND = Surroundings(folder=".", variables={})


def make(accelerator, precision):
    assert (accelerator, precision) == ("cpu", "32")
    return Sampler(num_steps=4, accelerator=accelerator), AffineFlow()


class Threads:
    """Workers in this process; `plan` says what goes wrong, as `(verb, text of a prompt)`."""

    def __init__(self, open=make, lost=(), never=0, bad_opens=()):
        self.open, self.lost, self.never = open, Counter(lost), never
        self.bad_opens = list(bad_opens)
        self.lock = threading.Lock()
        self.sampled, self.hired, self.dismissed = Counter(), [], []
        self.end = threading.Event()

    def hire(self):
        worker = JobWorker(self.open, "cpu", "32", AROUND)
        with self.lock:
            self.hired.append(worker)
        return worker

    def ask(self, worker, verb, *arguments):
        if verb == "open":
            with self.lock:
                never = len(self.hired) <= self.never
                problem = self.bad_opens.pop(0) if self.bad_opens else None
            if never:
                self.end.wait()
                raise WorkerLostError("dismissed before it began")
            if problem is not None:
                raise problem
        if verb == "sample":
            (item,) = arguments[0]
            with self.lock:
                self.sampled[item.prompt] += 1
                self.lost[item.prompt] -= 1
                gone = self.lost[item.prompt] >= 0
            if gone:
                raise WorkerLostError("killed\nwith a long story")
        return getattr(worker, verb)(*arguments)

    def dismiss(self, worker):
        with self.lock:
            self.dismissed.append(worker)
        self.end.set()


def request(folder, **changes):
    return JobRequest(**{"prompts": PROMPTS, "output": folder, "seed": 5, "quiet": True, **changes})


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("samples/*/*.safetensors"))}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The files of the same job in one process."""
    folder = tmp_path_factory.mktemp("alone") / "job"
    source = SamplerSource(*make("cpu", "32"), torch.device("cpu"))
    assert run_job(request(folder), source).complete
    return files(folder)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_any_number_of_workers_writes_what_one_process_writes(tmp_path, alone, count):
    workers = Threads()
    summary = sample_on_crew(Crew(workers, count), request(tmp_path / "job"))
    assert (summary.total, summary.done, summary.failed, summary.leader) == (7, 7, (), True)
    assert (summary.network_calls, summary.speedup) == (8.0, 1.0)
    assert files(tmp_path / "job") == alone
    assert workers.sampled == dict.fromkeys(PROMPTS, 1)
    assert sorted(map(id, workers.dismissed)) == sorted(map(id, workers.hired))
    assert len(workers.hired) == count


def test_what_a_lost_worker_had_in_hand_is_made_by_another(tmp_path, alone, caplog):
    workers = Threads(lost={"prompt 2": 1, "prompt 4": TRIES - 1})
    summary = sample_on_crew(Crew(workers, 2), request(tmp_path / "job"))
    assert summary.complete
    assert files(tmp_path / "job") == alone
    again = {**dict.fromkeys(PROMPTS, 1), "prompt 2": 2, "prompt 4": TRIES}
    assert workers.sampled == again
    assert len(workers.hired) == 2 + 1 + TRIES - 1
    assert "a worker was lost and is replaced: killed" in caplog.text
    assert "long story" not in caplog.text


def test_a_sample_that_costs_every_worker_fails_and_stops_no_other(tmp_path):
    workers = Threads(lost={"prompt 3": 100})
    summary = sample_on_crew(Crew(workers, 2), request(tmp_path / "job"))
    assert summary.done == 6
    ((index, error),) = summary.failed
    assert index == 3
    assert f"{TRIES} workers were lost over the same request" in error
    assert workers.sampled["prompt 3"] == TRIES
    again = sample_on_crew(Crew(Threads(), 2), request(tmp_path / "job", resume=True))
    assert again.complete


def test_a_lost_device_counts_as_a_lost_worker(tmp_path, alone):
    class Cuda(Threads):
        def ask(self, worker, verb, *arguments):
            try:
                return super().ask(worker, verb, *arguments)
            except WorkerLostError as error:
                raise RuntimeError("CUDA error: an illegal memory access") from error

    workers = Cuda(lost={"prompt 0": 1})
    assert sample_on_crew(Crew(workers, 1), request(tmp_path / "job")).complete
    assert files(tmp_path / "job") == alone
    assert len(workers.hired) == 2


def test_an_error_of_a_prompt_is_that_prompts(tmp_path):
    class Picky(Threads):
        def ask(self, worker, verb, *arguments):
            if verb == "sample" and arguments[0][0].index == 1:
                raise ValueError("no such thing")
            return super().ask(worker, verb, *arguments)

    workers = Picky()
    summary = sample_on_crew(Crew(workers, 2), request(tmp_path / "job"))
    assert summary.failed == ((1, "ValueError: no such thing"),)
    assert (summary.done, len(workers.hired)) == (6, 2)


def test_work_begins_with_the_workers_that_are_there(tmp_path, alone):
    workers = Threads(never=1)  # the machine of one never comes
    assert sample_on_crew(Crew(workers, 3), request(tmp_path / "job")).complete
    assert files(tmp_path / "job") == alone


def test_a_worker_that_cannot_open_the_model_is_left_out(tmp_path, alone, caplog):
    workers = Threads(bad_opens=[ConfigError("no such file here")])
    assert sample_on_crew(Crew(workers, 2), request(tmp_path / "job")).complete
    assert files(tmp_path / "job") == alone
    assert "cannot open the model, 1 go on: no such file here" in caplog.text
    assert len(workers.hired) == 2


def test_a_worker_that_is_lost_while_it_opens_is_tried_again(tmp_path):
    workers = Threads(bad_opens=[WorkerLostError("gone")] * (TRIES - 1))
    assert sample_on_crew(Crew(workers, 1), request(tmp_path / "job")).complete
    assert len(workers.hired) == TRIES


def test_where_no_worker_can_open_the_model_its_error_is_raised(tmp_path):
    workers = Threads(bad_opens=[ConfigError("no such model")] * 2)
    with pytest.raises(ConfigError, match="no such model"):
        sample_on_crew(Crew(workers, 2), request(tmp_path / "job"))
    assert not (tmp_path / "job").exists()


def test_a_job_whose_workers_all_go_stops_and_fails_no_sample(tmp_path, alone):
    class Ends(Threads):
        """The only worker is lost at its third sample; nothing opens the model again."""

        def ask(self, worker, verb, *arguments):
            if verb == "open" and len(self.hired) > 1:
                raise ConfigError("the shared disk is gone")
            if verb == "sample" and sum(self.sampled.values()) == 2:
                raise WorkerLostError("the machine is gone")
            return super().ask(worker, verb, *arguments)

    with pytest.raises(ConfigError, match="the shared disk is gone"):
        sample_on_crew(Crew(Ends(), 1), request(tmp_path / "job"))
    assert len(files(tmp_path / "job")) == 2
    assert list((tmp_path / "job/claims").rglob("*.failed")) == []
    summary = sample_on_crew(Crew(Threads(), 1), request(tmp_path / "job", resume=True))
    assert summary.complete
    assert files(tmp_path / "job") == alone


def test_wrong_prompts_are_refused_before_anything_is_sampled(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "steps": 0}\n')
    workers = Threads()
    with pytest.raises(InputError, match=r"p.jsonl line 2: .*0"):
        sample_on_crew(Crew(workers, 2), request(tmp_path / "job", prompts=path))
    assert workers.sampled == {}
    assert len(workers.dismissed) == len(workers.hired)


def test_the_requests_of_a_file_keep_their_settings(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "steps": 2, "seed": 9}\n')
    assert sample_on_crew(Crew(Threads(), 2), request(tmp_path / "job", prompts=path)).complete
    store = Store(tmp_path / "job")
    assert store.facts(1)["trace"]["num_steps"] == 2
    expected = Sampler(num_steps=2, accelerator="cpu").sample(AffineFlow(), ["b"], seed=9)
    assert torch.equal(store.load(1)["sample"], expected.samples[0])


# ------------------------------------------------------------------------------- calibration
@pytest.mark.parametrize(("count", "prompts"), [(1, 5), (2, 5), (4, 3)])
def test_a_calibration_is_that_of_one_process(count, prompts):
    sampler = Sampler(num_steps=4, accelerator="cpu", batch_size=1)
    asked = CalibrationRequest(
        open=lambda *_: (sampler, AffineFlow()),
        prompts=tuple(PROMPTS[:prompts]),
        profiler=ResidualProfiler(),
        seed=3,
    )
    made = calibrate_on_crew(Crew(Threads(open=asked.open), count), asked)
    expected = sampler.calibrate(AffineFlow(), asked.prompts, seed=3, profiler=ResidualProfiler())
    assert made.provenance == expected.provenance
    assert made.samples == expected.samples
    assert made.statistics.keys() == expected.statistics.keys()
    for name, values in expected.statistics.items():
        torch.testing.assert_close(made.statistics[name], values)


def test_a_share_that_cannot_be_calibrated_stops_the_calibration():
    class Fails(Threads):
        def ask(self, worker, verb, *arguments):
            if verb == "calibrate" and "prompt 4" in arguments[0]:
                raise PolicyError("this worker cannot")
            return super().ask(worker, verb, *arguments)

    asked = CalibrationRequest(
        open=make, prompts=tuple(PROMPTS), profiler=ResidualProfiler(), seed=3
    )
    with pytest.raises(PolicyError, match="this worker cannot"):
        calibrate_on_crew(Crew(Fails(), 2), asked)


# ---------------------------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("settings", "resources", "expected"),
    [
        ({}, {"CPU": 4.0}, Place("cpu", 1, "32")),
        ({"devices": "auto"}, {"CPU": 4.0}, Place("cpu", 4, "32")),
        ({"devices": "auto"}, {"CPU": 64.0, "GPU": 3.0}, Place("cuda", 3, "32")),
        ({"accelerator": "cpu", "devices": "2"}, {"CPU": 64.0, "GPU": 3.0}, Place("cpu", 2, "32")),
        ({"accelerator": "gpu", "devices": 2}, {"CPU": 8.0, "GPU": 2.0}, Place("cuda", 2, "32")),
        ({"precision": "16-mixed", "strategy": "auto"}, {"CPU": 1.0}, Place("cpu", 1, "16-mixed")),
        ({"num_nodes": 1}, {"CPU": 1.0}, Place("cpu", 1, "32")),
    ],
)  # fmt: skip
def test_settings_in_fabrics_names_say_how_many_workers(settings, resources, expected):
    assert read_place(FabricConfig(**settings), resources) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "ddp"}, "fabric.strategy is 'ddp', but with launcher=ray every worker"),
        ({"num_nodes": 2}, "fabric.num_nodes is 2, but Ray decides on which machines"),
        ({"accelerator": "mps"}, "'mps', which Ray does not hand out; write auto, cpu or cuda"),
        ({"accelerator": "gpu"}, "'gpu', but the cluster has 2 CPU, 0 GPU; add such a machine"),
        ({"devices": "0,1"}, "fabric.devices is '0,1', but Ray decides which devices"),
        ({"devices": 0}, "fabric.devices is 0, but"),
        ({"devices": -1}, "fabric.devices is -1, but"),
    ],
)
def test_settings_that_mean_nothing_to_ray_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        read_place(FabricConfig(**settings), {"CPU": 2.0})


def test_more_workers_than_the_cluster_has_room_for_are_announced(caplog):
    assert read_place(FabricConfig(devices=5), {"CPU": 2.0}).count == 5
    assert "5 workers are asked for, and the cluster has 2 CPU" in caplog.text
