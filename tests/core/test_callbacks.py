"""Callbacks: what they are told, and that they change nothing."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

from erta_framework import Callback, PictureWriter, ProgressBar, Sampler, TraceLogger, hookimpl
from erta_framework.errors import InputError, PolicyError
from erta_framework.sampling import Observers, RunStart

PROMPTS = ["a", "bb", "ccc"]


class Recorder(Callback):
    def __init__(self):
        self.events = []

    def on_run_start(self, run):
        self.events.append(("start", run.samples, run.batches, run.steps, run.title))

    def on_step(self, step):
        self.events.append(("step", step.index))

    def on_batch_end(self, batch):
        self.events.append(("batch", batch.prompts, batch.seeds, tuple(batch.samples.shape)))

    def on_run_end(self, error):
        self.events.append(("end", error))


def sampler(*callbacks, policies=(), **options):
    return Sampler(
        policies, callbacks, accelerator="cpu", **{"num_steps": 3, "batch_size": 2, **options}
    )


def test_order_of_events(net):
    recorder = Recorder()
    sampler(recorder).sample(net, PROMPTS, seed=5, title="toy")
    steps = [("step", 0), ("step", 1), ("step", 2)]
    assert recorder.events == [
        ("start", 3, 2, 3, "toy"),
        *steps,
        ("batch", ("a", "bb"), (5, 6), (2, 2, 3, 3)),
        *steps,
        ("batch", ("ccc",), (7,), (1, 2, 3, 3)),
        ("end", None),
    ]


def test_writing_into_what_it_gets_alters_nothing(new_net):
    class Vandal(Callback):
        def on_batch_end(self, batch):
            batch.samples.fill_(float("nan"))
            batch.trace.network_calls = 0
            batch.trace.steps.clear()

    plain = sampler().sample(new_net(), PROMPTS)
    seen = sampler(Vandal()).sample(new_net(), PROMPTS)
    assert torch.equal(plain.samples, seen.samples)
    assert seen.network_calls == plain.network_calls == 12
    assert [len(trace.steps) for trace in seen.traces] == [3, 3]


def test_events_are_frozen(net):
    class Pushy(Callback):
        def on_step(self, step):
            step.index = 7

    with pytest.raises(AttributeError):
        sampler(Pushy()).sample(net, PROMPTS)


def test_end_is_told_of_an_error():
    recorder = Recorder()
    failure = RuntimeError("no memory")

    class Broken:
        latent_shape = (2, 3, 3)

        def fingerprint(self):
            return {}

        def encode(self, prompts):
            return torch.zeros(len(prompts), 1)

        def __call__(self, x, timestep, embeds):
            raise failure

    with pytest.raises(RuntimeError) as error:
        sampler(recorder).sample(Broken(), PROMPTS)
    assert error.value is failure
    assert recorder.events[-1] == ("end", failure)


def test_callback_that_fails_stops_the_run_and_closes_it(net, reuse_on):
    ended = []

    class Faulty(Callback):
        def on_step(self, step):
            if step.index == 1:
                raise OSError("disk full")

    class Watches(reuse_on):
        @hookimpl
        def on_session_end(self, error):
            ended.append(type(error))

    recorder = Recorder()
    with pytest.raises(OSError, match="disk full"):
        sampler(recorder, Faulty(), policies=[Watches()]).sample(net, PROMPTS)
    assert isinstance(recorder.events[-1][1], OSError)
    assert ended == [OSError]


class FailsAtEnd(Callback):
    def __init__(self, text):
        self.text = text

    def on_run_end(self, error):
        raise OSError(self.text)


def test_everyone_is_told_of_the_end_although_one_fails(net):
    recorder = Recorder()
    with pytest.raises(OSError, match="first") as error:
        sampler(FailsAtEnd("first"), FailsAtEnd("second"), recorder).sample(net, PROMPTS)
    assert recorder.events[-1] == ("end", None)
    assert any("second" in note for note in error.value.__notes__)


def test_error_of_the_run_is_not_replaced(run):
    own = PolicyError("the real reason")
    recorder = Recorder()
    observers = Observers((FailsAtEnd("late"), recorder), RunStart(1, 1, 1, "t"))
    with pytest.raises(PolicyError) as error, observers:
        raise own
    assert error.value is own
    assert any("late" in note for note in own.__notes__)
    assert recorder.events[-1] == ("end", own)


def test_those_that_started_are_ended_if_another_cannot_start(net):
    class Unstartable(Callback):
        def on_run_start(self, run):
            raise OSError("no folder")

    first, last = Recorder(), Recorder()
    with pytest.raises(OSError, match="no folder"):
        sampler(first, Unstartable(), last).sample(net, PROMPTS)
    assert [event[0] for event in first.events] == ["start", "end"]
    assert last.events == []
    assert net.calls == 0


def test_trace_logger_writes_json_lines(net, tmp_path, reuse_on):
    path = tmp_path / "deep" / "trace.jsonl"
    logger = TraceLogger(path)
    sampler(logger, policies=[reuse_on(steps=(1,))]).sample(net, PROMPTS, title="first")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == [
        "run_start",
        *["step"] * 3,
        "batch_end",
        *["step"] * 3,
        "batch_end",
        "run_end",
    ]
    assert (lines[0]["samples"], lines[0]["title"]) == (3, "first")
    assert [call["computed"] for call in lines[2]["calls"]] == [False, False]
    assert (lines[4]["network_calls"], lines[4]["reused_calls"]) == (4, 2)
    assert lines[4]["prompts"] == ["a", "bb"]
    assert lines[-1]["error"] is None
    sampler(logger).sample(net, ["x"])
    assert len(path.read_text().splitlines()) == len(lines) + 6  # appended


def test_trace_logger_notes_the_error_and_closes(tmp_path, net):
    class Stops(Callback):
        def on_step(self, step):
            raise KeyboardInterrupt

    path = tmp_path / "trace.jsonl"
    logger = TraceLogger(path)
    with pytest.raises(KeyboardInterrupt):
        sampler(logger, Stops()).sample(net, PROMPTS)
    assert json.loads(path.read_text().splitlines()[-1]) == {
        "event": "run_end",
        "error": "KeyboardInterrupt()",
    }
    assert logger._file is None


def test_picture_writer_tries_its_folder_before_the_run(net, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write the folder of pictures"):
        sampler(PictureWriter(tmp_path / "file/gifs", print)).sample(net, PROMPTS)
    assert net.calls == 0


def test_picture_writer_gets_every_sample(net, tmp_path):
    written = []
    writer = PictureWriter(tmp_path / "p", lambda sample, path: written.append((sample, path.name)))
    done = sampler(writer).sample(net, ["a red/circle!", "", "c" * 99], seed=8)
    assert [name for _, name in written] == [
        "000008-a-red-circle-",
        "000009-empty",
        "000010-" + "c" * 60,
    ]
    for (sample, _), expected in zip(written, done.samples, strict=True):
        assert torch.equal(sample, expected)
    assert (tmp_path / "p").is_dir()


def test_progress_bar_counts_steps_and_calls(net, reuse_on):
    screen = io.StringIO()
    bar = ProgressBar(Console(file=screen, force_terminal=False, width=160))
    sampler(bar, policies=[reuse_on(steps=(1,))]).sample(net, PROMPTS, title="drawing")
    assert "drawing" in screen.getvalue()
    assert "6/6" in screen.getvalue()
    assert "8 network calls" in screen.getvalue()
    assert not bar._progress.live.is_started


def test_progress_bar_is_stopped_by_an_error(net):
    class Stops(Callback):
        def on_step(self, step):
            raise RuntimeError("stop")

    bar = ProgressBar(Console(file=io.StringIO(), width=160))
    with pytest.raises(RuntimeError, match="stop"):
        sampler(bar, Stops()).sample(net, PROMPTS)
    assert not bar._progress.live.is_started
