"""The parts of a job one by one, in one process."""

from __future__ import annotations

import errno
import io
import json
import os
from collections import Counter

import pytest
import torch
from rich.console import Console

from erta_framework import CFG, FlowEuler, NoGuidance, Sampler
from erta_framework.config import build_run, load_config
from erta_framework.errors import ConfigError, InputError
from erta_framework.jobs import FabricConfig, JobConfig, is_launched
from erta_framework.testing import AffineFlow
from erta_integrations.fabric.jobs import (
    Claim,
    Claims,
    Item,
    ProgressWatch,
    SamplerSource,
    Store,
    Tally,
    Worker,
    WorkerLog,
    _store,
    load_items,
    open_folder,
    show_progress,
    write_manifest,
)
from erta_integrations.fabric.jobs._prompts import hash_items

CPU = torch.device("cpu")
LINES = """{"prompt": "one"}

{"prompt": "two", "seed": 99, "steps": 3}
{"prompt": "three", "guidance": {"cfg": {"scale": 1.5}}}
"""


def source(**options) -> SamplerSource:
    options = {"num_steps": 4, "accelerator": "cpu", **options}
    return SamplerSource(Sampler(**options), AffineFlow(), CPU)


# ---------------------------------------------------------------------------------- prompts
def test_requests_have_their_own_seed_and_settings(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(LINES)
    items = load_items(path, 10, source().known, source().check)
    assert items == (
        Item(0, "one", 10),
        Item(1, "two", 99, {"steps": 3}),
        Item(2, "three", 12, {"guidance": {"cfg": {"scale": 1.5}}}),
    )


def test_a_text_file_has_one_prompt_a_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text('first\n\n {"prompt": "no object here"} \n')
    items = load_items(path, 0, ())
    assert [(i.prompt, i.seed) for i in items] == [
        ("first", 0),
        ('{"prompt": "no object here"}', 1),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "x", "stepz": 3}', r"prompts.jsonl line 2: unknown key 'stepz'; did you"),
        ('{"prompt": "x", "first": 3}', r"line 2: unknown key 'first'"),
        ('{"prompt": "x", "steps": "many"}', r"line 2: request.steps is 'many' of type str"),
        ('{"prompt": "x", "steps": 0}', r"line 2: num_steps is 0, it must be at least 1"),
        ('{"prompt": "x", "guidance": {"cfg": {"scael": 1}}}', r"line 2: .*'scael'.*'scale'"),
        ('{"prompt": "x", "guidance": {"cgf": {}}}', r"line 2: unknown guidance 'cgf'.*'cfg'"),
        ('{"prompt": "x", "policies": {"a": 1}}', r"line 2: policies is .*it is a list"),
        ('{"prompt": "x", "seed": true}', r"line 2: seed is True"),
        ('{"prompt": "x", "seed": 18446744073709551616}', r"line 2: seed is 18446744073709551616"),
        ('{"prompt": 3}', r"line 2: prompt is 3; it must be a string"),
        ('{"seed": 3}', r"line 2: prompt is None"),
        ('["x"]', r"line 2 is '\[\"x\"\]'; write an object"),
        ('{"prompt": "x"', r"line 2: .*write an object"),
        ('{"prompt": "x", "prompt": "y"}', r"line 2: the key 'prompt' is there twice"),
        ('{"prompt": "x", "guidance": NaN}', r"line 2: NaN is no number of JSON"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named_before_anything_is_sampled(tmp_path, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        load_items(path, 0, source().known, source().check)


def test_a_scale_needs_guidance():
    with pytest.raises(ConfigError, match=r"guidance is 2.0, a scale, but .*NoGuidance"):
        source(guidance=NoGuidance()).check({"guidance": 2.0})


def test_no_prompts(tmp_path):
    with pytest.raises(InputError, match="cannot read the prompts"):
        load_items(tmp_path / "no.jsonl", 0, ())
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(InputError, match="holds no prompts"):
        load_items(tmp_path / "empty.jsonl", 0, ())
    with pytest.raises(InputError, match="the prompt is 3"):
        load_items(["a", 3], 0, ())  # type: ignore[list-item]


def test_the_digest_sees_prompts_seeds_and_settings():
    a, b = Item(0, "a", 0), Item(1, "b", 1)
    base = hash_items([a, b])
    changed = (Item(1, "c", 1), Item(1, "b", 2), Item(1, "b", 1, {"steps": 2}))
    others = [[a], *([a, other] for other in changed)]
    assert len({base, *map(hash_items, others)}) == 5
    assert hash_items([a, b]) == base


# ----------------------------------------------------------------------------------- source
def test_overrides_give_what_a_sampler_with_them_gives():
    item = Item(
        0, "a cat", 5, {"steps": 7, "guidance": 1.25, "policies": [{"skip_policy": {"every": 2}}]}
    )
    (made,) = source().sample([item])
    from erta_policies.ertacache import SkipPolicy

    sampler = Sampler(
        [SkipPolicy(every=2)], num_steps=7, guidance=CFG(scale=1.25), accelerator="cpu"
    )
    expected = sampler.sample(AffineFlow(), ["a cat"], seeds=[5])
    assert torch.equal(made.tensors["sample"], expected.samples[0])
    trace = made.facts["trace"]
    assert (trace["num_steps"], trace["network_calls"], trace["branch_calls"]) == (7, 8, 14)
    assert made.facts["settings"]["guidance"] == repr(CFG(scale=1.25))
    assert made.facts["seed"] == 5


def test_requests_without_overrides_use_the_sampler_as_it_is():
    sigmas = (1.0, 0.7, 0.2)
    given = source(sigmas=sigmas, solver=FlowEuler(shift=2.0))
    (made,) = given.sample([Item(0, "a", 1, {"guidance": 2.0})])
    expected = Sampler(
        sigmas=sigmas, solver=FlowEuler(shift=2.0), guidance=CFG(scale=2.0), accelerator="cpu"
    ).sample(AffineFlow(), ["a"], seeds=[1])
    assert torch.equal(made.tensors["sample"], expected.samples[0])


def test_the_job_decides_what_is_a_batch():
    items = [Item(k, f"prompt {k}", k) for k in range(3)]
    made = source(batch_size=1).sample(items)
    expected = Sampler(num_steps=4, accelerator="cpu").sample(
        AffineFlow(), [item.prompt for item in items]
    )
    assert [each.facts["settings"]["batch_size"] for each in made] == [3, 3, 3]
    assert torch.equal(torch.stack([m.tensors["sample"] for m in made]), expected.samples)
    assert [each.facts["trace"]["network_calls"] for each in made] == [8, 8, 8]


def test_a_profile_is_known_by_its_digest(tmp_path):
    from erta_policies.ertacache import ERTACache, ResidualProfiler

    sampler = Sampler(num_steps=4, accelerator="cpu")
    profile = sampler.calibrate(AffineFlow(), ["a", "b"], profiler=ResidualProfiler())
    paths = [profile.save(tmp_path / name) for name in ("one.st", "two.st")]
    identities = [
        source(policies=[ERTACache(profile=given, calls=2)]).identity()
        for given in (profile, *paths)
    ]
    assert identities[0] == identities[1] == identities[2]
    assert profile.digest in json.dumps(identities[0])
    other = sampler.calibrate(AffineFlow(), ["c"], profiler=ResidualProfiler())
    assert source(policies=[ERTACache(profile=other, calls=2)]).identity() != identities[0]


# ------------------------------------------------------------------------------------ store
def test_a_sample_and_its_facts_are_one_file(tmp_path):
    store = Store(tmp_path)
    facts = {"prompt": "a", "seed": 3, "nested": {"b": [1, 2]}}
    path = store.write(300, 0, {"sample": torch.arange(6.0).reshape(2, 3).T}, facts)
    assert path == tmp_path / "samples/00001/0000300.safetensors"
    assert torch.equal(store.load(300)["sample"], torch.arange(6.0).reshape(2, 3).T)
    assert store.facts(300) == facts
    assert store.committed(1) == {300}
    assert store.committed(0) == set()
    first = path.read_bytes()
    store.write(
        300, 1, {"sample": torch.arange(6.0).reshape(2, 3).T}, dict(reversed(facts.items()))
    )
    assert path.read_bytes() == first


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, call):
    store = Store(tmp_path)
    store.write(0, 0, {"sample": torch.zeros(2)}, {})

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "write":
        real = os.fdopen

        def opened(*arguments, **options):
            file = real(*arguments, **options)
            file.write(b"half")
            file.close()
            return full()

        monkeypatch.setattr(os, "fdopen", opened)
    else:
        monkeypatch.setattr(_store.os, call, full)
    with pytest.raises(OSError, match="No space left"):
        store.write(1, 0, {"sample": torch.ones(2)}, {})
    monkeypatch.undo()
    assert os.listdir(tmp_path / "samples/00000") == ["0000000.safetensors"]


def test_a_successor_takes_the_remains_away(tmp_path):
    store = Store(tmp_path)
    torn = store.partial(4, 0)
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"torn")
    assert not store.has(4)
    store.write(4, 1, {"sample": torch.zeros(1)}, {})
    assert os.listdir(torn.parent) == ["0000004.safetensors"]


def test_what_is_no_sample_is_said(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(InputError, match="is no sample of a job"):
        store.facts(0)
    store.path(0).parent.mkdir(parents=True)
    store.path(0).write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"0000000\.safetensors is not readable"):
        store.load(0)


def test_another_job_in_the_folder_is_refused_with_both_values(tmp_path):
    assert (
        open_folder(tmp_path / "job", {"steps": 3, "model": {"class": "A", "weights": "x"}}, False)
        is False
    )
    with pytest.raises(InputError, match="holds a job already; give --resume"):
        open_folder(tmp_path / "job", {"steps": 3}, False)
    assert (
        open_folder(tmp_path / "job", {"steps": 3, "model": {"class": "A", "weights": "x"}}, True)
        is True
    )
    with pytest.raises(InputError) as caught:
        open_folder(tmp_path / "job", {"steps": 4, "model": {"class": "A", "weights": "y"}}, True)
    assert "steps: folder 3 / run 4" in str(caught.value)
    assert "model.weights: folder 'x' / run 'y'" in str(caught.value)
    assert "class" not in str(caught.value)
    assert os.listdir(tmp_path / "job") == ["job.json"]


# ----------------------------------------------------------------------------------- claims
class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def fleet(folder, count, ranks, clock=None, lease=60.0, host="elsewhere"):
    store = Store(folder)
    made = []
    for rank in range(ranks):
        worker = Worker(folder, lease=lease, host=f"{host} {rank}", clock=clock)
        made.append(Claims(folder, count, worker, (rank, ranks), committed=store.committed))
    return made


def commit(folder, claim):
    Store(folder).write(claim.index, claim.generation, {"sample": torch.zeros(1)}, {})


@pytest.mark.parametrize(("count", "ranks"), [(1, 3), (7, 3), (600, 4), (40, 64)])
def test_every_sample_is_claimed_once(tmp_path, count, ranks):
    workers = fleet(tmp_path, count, ranks)
    taken: list[int] = []
    while workers:
        for claims in list(workers):
            claim = claims.claim()
            if claim is None:
                workers.remove(claims)
            else:
                assert claim.generation == 0
                taken.append(claim.index)
    assert sorted(taken) == list(range(count))


@pytest.fixture
def asked(monkeypatch) -> Counter[str]:
    """How often `os.symlink` and `os.listdir` were called."""
    counts: Counter[str] = Counter()

    def counting(name):
        real = getattr(os, name)

        def counted(*arguments):
            counts[name] += 1
            return real(*arguments)

        monkeypatch.setattr(os, name, counted)

    counting("symlink")
    counting("listdir")
    return counts


def test_a_rank_begins_with_its_own_part_and_reads_no_folder_for_it(tmp_path, asked):
    claims = fleet(tmp_path, 1000, 4)[2]
    assert [claims.claim().index for _ in range(250)] == list(range(500, 750))
    assert asked["listdir"] == 0
    assert asked["symlink"] == 250 + 2  # once a shard, its folder is not there yet
    rest = [claims.claim().index for _ in range(750)]
    assert sorted(rest) == [*range(500), *range(750, 1000)]
    # one folder a sample, and each of the 4 shards once more where it has no more
    assert asked["listdir"] <= 750 + 4
    assert asked["symlink"] <= 1000 + 4


@pytest.mark.parametrize(("thorough", "looks"), [(False, 4), (True, 10)])
def test_a_rank_that_leaves_looks_at_few_folders(tmp_path, asked, thorough, looks):
    first, last = fleet(tmp_path, 2560, 2)
    while first.claim() is not None:
        pass
    missing = Store(tmp_path).committed
    late = Claims(tmp_path, 2560, last.worker, (1, 2), committed=missing, thorough=thorough)
    assert late.claim() is None  # reads the claims of each shard once, and never again
    asked.clear()
    assert late.claim() is None
    assert late.held == looks * 256
    assert asked["listdir"] == looks + min(10, looks + 1)  # claims, and outputs
    whole = Claims(
        tmp_path, 2560, last.worker, (1, 2), committed=lambda shard: range(2560), thorough=True
    )
    assert whole.claim() is None
    asked.clear()
    assert whole.claim() is None  # a shard that is done is not read again
    assert asked["listdir"] == 0


def test_a_slow_rank_keeps_one_sample(tmp_path):
    slow, fast = fleet(tmp_path, 100, 2)
    first = slow.claim()
    taken = [fast.claim() for _ in range(99)]
    assert fast.claim() is None
    assert slow.claim() is None
    assert sorted(c.index for c in [first, *taken]) == list(range(100))


def test_a_dead_worker_is_taken_over_once_and_after_its_lease(tmp_path):
    clock = Clock()
    dead, one, two = fleet(tmp_path, 3, 3, clock)
    lost = dead.claim()
    for claims in (one, two):
        while (claim := claims.claim()) is not None:
            commit(tmp_path, claim)
    clock.now += 59
    one.worker.beat()
    two.worker.beat()
    assert one.claim() is None
    assert one.held == 1
    clock.now += 2
    again = one.claim()
    assert again == Claim(lost.index, 1)
    assert not dead.holds(lost)
    assert one.holds(again)
    assert two.claim() is None
    assert two.held == 1
    commit(tmp_path, again)
    assert two.claim() is None
    assert two.held == 0


def test_a_worker_that_left_is_taken_over_at_once(tmp_path):
    gone, here = fleet(tmp_path, 2, 2)
    lost = gone.claim()
    gone.worker.close()
    commit(tmp_path, here.claim())
    assert here.claim() == Claim(lost.index, 1)


def test_what_another_was_quicker_to_take_over_is_held(tmp_path, monkeypatch):
    gone, slow, quick = fleet(tmp_path, 3, 3)
    lost = [gone.claim(), gone.claim(), gone.claim()]
    gone.worker.close()
    look, taken = slow._find_abandoned, []

    def look_and_wait():
        found = look()
        taken.extend(quick.claim() for _ in lost if len(taken) < 3)
        return found

    monkeypatch.setattr(slow, "_find_abandoned", look_and_wait)
    assert slow.claim() is None
    assert {claim.generation for claim in taken} == {1}
    assert slow.held == 3


def test_a_claim_whose_answer_was_lost_is_ours(tmp_path, monkeypatch):
    (claims,) = fleet(tmp_path, 1, 1)
    real = os.symlink

    def repeated(*arguments):
        real(*arguments)
        real(*arguments)  # NFS sends a request again whose answer was lost

    monkeypatch.setattr(os, "symlink", repeated)
    claims.folder.joinpath("00000").mkdir(parents=True)
    assert claims.claim() == Claim(0, 0)
    assert claims.claim() is None


def test_a_claim_that_nobody_signed_is_free_after_the_lease(tmp_path):
    (claims,) = fleet(tmp_path, 1, 1, lease=60.0)
    path = tmp_path / "claims/00000/0000000.0"
    path.parent.mkdir(parents=True)
    path.touch()
    assert claims.claim() is None
    os.utime(path, (0, 0))
    assert claims.claim() == Claim(0, 1)


def test_claims_without_links(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refused)
    clock = Clock()
    one, two = fleet(tmp_path, 3, 2, clock)
    assert [one.claim(), two.claim(), one.claim(), two.claim()] == [
        Claim(0, 0), Claim(1, 0), Claim(2, 0), None,
    ]  # fmt: skip
    commit(tmp_path, Claim(1, 0))
    assert two.claim() is None
    assert two.held == 2
    one.worker.close()
    taken = {two.claim(), two.claim()}
    assert taken == {Claim(0, 1), Claim(2, 1)}
    assert not one.holds(Claim(0, 0))


def test_failures_are_tried_again_by_those_who_come_later_and_only_once(tmp_path):
    clock = Clock()
    first, second = fleet(tmp_path, 1, 2, clock)
    claim = second.claim()
    second.fail(claim, "it broke")
    assert first.claim() is None
    assert second.claim() is None
    assert first.held == 0
    clock.now += 1
    later, latest = fleet(tmp_path, 1, 2, clock)
    clock.now += 1
    again = later.claim()
    assert again == Claim(0, 1)
    later.fail(again, "it broke again")
    assert latest.claim() is None
    assert latest.held == 0


def test_a_process_that_is_gone_is_dead_without_waiting(tmp_path):
    worker, other = Worker(tmp_path), Worker(tmp_path)
    assert worker.is_alive(other.name)
    facts = json.loads(other.path.read_text())
    ended = os.fork()
    if ended == 0:
        os._exit(0)
    os.waitpid(ended, 0)
    other.path.write_text(json.dumps({**facts, "pid": ended}))
    assert not Worker(tmp_path).is_alive(other.name)
    # the same number, but of another process
    other.path.write_text(json.dumps({**facts, "started": "1"}))
    assert not Worker(tmp_path).is_alive(other.name)
    other.path.write_text(json.dumps({**facts, "host": "elsewhere", "pid": ended}))
    assert Worker(tmp_path).is_alive(other.name)


def test_a_rank_that_cannot_be(tmp_path):
    with Worker(tmp_path) as worker, pytest.raises(InputError, match="rank 2 of 2 ranks"):
        Claims(tmp_path, 5, worker, (2, 2), committed=lambda shard: ())


# --------------------------------------------------------------------------------- manifest
def items_of(count):
    return [Item(k, f"prompt {k}", k) for k in range(count)]


def test_the_manifest_is_made_of_the_files_where_lines_are_lost(tmp_path):
    store = Store(tmp_path)
    facts = {"trace": {"network_calls": 5, "branch_calls": 10}}
    for index in (0, 2):
        store.write(index, 0, {"sample": torch.zeros(1)}, facts)
    with WorkerLog(tmp_path, "me") as log:
        log.write({"event": "done", "index": 0, "prompt": "prompt 0", "seed": 0, "seconds": 1.5})
        log.write({"event": "failed", "index": 1, "error": "no"})
        log.write(
            {"event": "done", "index": 3, "prompt": "prompt 3", "seed": 3}
        )  # its file is not there
    with log.path.open("ab") as file:
        file.write(b'{"event": "done", "ind')
    tally = Tally(tmp_path)
    lines = [
        json.loads(x)
        for x in write_manifest(tmp_path, items_of(5), store, tally).read_text().splitlines()
    ]
    assert [(x["index"], x["event"]) for x in lines] == [
        (0, "done"), (1, "failed"), (2, "done"), (3, "missing"), (4, "missing"),
    ]  # fmt: skip
    assert lines[0]["seconds"] == 1.5
    assert lines[1]["error"] == "no"
    assert (lines[2]["network_calls"], lines[2]["branch_calls"]) == (5, 10)


def test_a_line_that_a_full_disk_cut_off_spoils_no_other(tmp_path):
    with WorkerLog(tmp_path, "me") as log:
        log.write({"event": "failed", "index": 0, "error": "a"})
        file, calls = log._file, []

        class Full:
            def write(self, data):
                calls.append(data)
                if len(calls) == 1:
                    return file.write(data[: len(data) // 2])
                return file.write(data)

            def close(self):
                file.close()

        log._file = Full()
        log.write({"event": "failed", "index": 1, "error": "b"})
        log.write({"event": "failed", "index": 2, "error": "c"})
        log.write({"event": "failed", "index": 3, "error": "d"})
    tally = Tally(tmp_path)
    assert [record["index"] for record in tally.read()] == [0, 2, 3]
    assert tally.read() == []


def test_progress_is_of_all_workers_and_its_rate_of_this_run(tmp_path):
    clock = Clock()
    with WorkerLog(tmp_path, "a") as one, WorkerLog(tmp_path, "b") as two:
        one.write({"event": "done", "index": 0, "network_calls": 10, "branch_calls": 20})
        watch = ProgressWatch(
            Tally(tmp_path), total=8, committed=2, clock=clock
        )  # one line was lost
        state, _ = watch.look()
        assert (state.done, state.rate, state.eta_seconds) == (2, None, None)
        clock.now += 4
        one.write({"event": "done", "index": 1, "network_calls": 5, "branch_calls": 20})
        two.write({"event": "done", "index": 2, "network_calls": 15, "branch_calls": 20})
        two.write({"event": "failed", "index": 3, "error": "x"})
        state, fresh = watch.look()
    assert (state.total, state.done, state.failed) == (8, 4, 1)
    assert (state.rate, state.eta_seconds) == (0.5, 6.0)
    assert (state.network_calls, state.speedup) == (10.0, 2.0)
    assert len(fresh) == 3


@pytest.mark.parametrize("json_lines", [True, False])
def test_what_the_reporter_prints(tmp_path, json_lines):
    out = Console(file=io.StringIO(), width=160)
    with WorkerLog(tmp_path, "a") as log:
        log.write({"event": "done", "index": 0, "network_calls": 10, "branch_calls": 20})
        watch = ProgressWatch(Tally(tmp_path), total=3, committed=1)
        with show_progress(watch, json_lines=json_lines, console=out, every=60):
            log.write({"event": "done", "index": 2, "network_calls": 10, "branch_calls": 20})
            log.write({"event": "failed", "index": 1, "error": "x"})
    text = out.file.getvalue()
    if not json_lines:
        assert "2/3" in text
        assert "1 failed" in text
        assert "10.0 network calls a sample, 2.00x" in text
        return
    records = [json.loads(line) for line in text.splitlines()]
    assert [r["event"] for r in records] == ["progress", "done", "failed", "progress"]
    assert records[-1]["done"] == 2
    assert records[-1]["failed"] == 1


# ----------------------------------------------------------------------------- configuration
def test_the_sections_of_a_configuration():
    config = load_config(
        None, ["fabric.devices=2", "fabric.strategy=ddp", "job.batch_size=4", "job.lease=5"]
    )
    assert config.fabric == FabricConfig(devices=2, strategy="ddp")
    assert config.job == JobConfig(batch_size=4, lease=5.0)
    assert load_config(None, ["fabric.devices=auto"]).fabric.devices == "auto"
    assert build_run({}).fabric == FabricConfig()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fabric.device=2", "fabric: unknown key 'device'; did you mean 'devices'"),
        ("fabric=2", "fabric is 2; write fabric.option=value"),
        ("job.batch_size=0", "job.batch_size is 0, it must be at least 1"),
        ("job.lease=-1", "job.lease is -1.0 seconds, it must be above 0"),
        ("fabric.num_nodes=many", "fabric.num_nodes is 'many' of type str"),
    ],
)
def test_wrong_sections(override, message):
    with pytest.raises((ConfigError, InputError), match=message):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, False),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"}, False),
    ],
)
def test_a_launcher_outside_is_seen(monkeypatch, environment, expected):
    for name in (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "SLURM_PROCID",
        "SLURM_NTASKS",
        "SLURM_JOB_NAME",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_launched() is expected
