"""What the watchdog makes of heartbeats, and which record of a failure stands. Real hangs: tests/faults."""

import json
import os
import time

import pytest

from tinybert_dist.config import UserError
from tinybert_dist.files import read_json
from tinybert_dist.training import watchdog
from tinybert_dist.training.health import TrainingFailed
from tinybert_dist.training.heartbeat import WAITS, Progress, beat, progress
from tinybert_dist.training.options import TrainingOptions
from tinybert_dist.training.run_folder import Failure, RunFolder
from tinybert_dist.training.watchdog import Watchdog

LIMIT_S = 0.2
GATHERS = "forward "  # a collective inside the forward: weights that are divided


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run", "stage", TrainingOptions(output_dir=str(tmp_path / "run")), {})
    folder.attempt.token = folder.claim()
    folder.end("running", 0)
    folder.heartbeats.mkdir()
    vars(progress).update(vars(Progress()))
    yield folder
    folder.attempt.release()


@pytest.fixture
def judge(folder):
    """judge({0: ("fetch", 5, 1), 1: ...}): the verdict when nothing moves for longer than the limit."""

    def judge(phases, num_steps=9):
        dog = Watchdog(folder, 0, len(phases), LIMIT_S)
        now = time.monotonic()
        dog._seen = {rank: watchdog.Seen({}, now, now) for rank in phases}
        for ticks in (1, 2):  # alive, and not moving
            for rank, (phase, step, events) in phases.items():
                last = {"attempt": folder.attempt.token, "pid": os.getpid(), "ticks": ticks, "phase": phase}
                waits = phase in WAITS or phase == GATHERS
                last |= {"step": step, "events": events, "num_steps": num_steps, "waits": waits}
                dog._path(rank, "json").write_text(json.dumps(last))
            dog._look()
            assert dog._stalled() is None or ticks == 2
            time.sleep(LIMIT_S * 1.5)
        return dog._stalled()

    return judge


@pytest.mark.parametrize(
    ("phases", "culprit"),
    [
        ({0: ("reduce", 5, 2), 1: ("fetch", 5, 1)}, 1),
        ({0: ("save", 5, 1), 1: ("wait", 5, 2)}, 0),
        (
            {0: ("evaluate", 5, 30), 1: ("reduce", 5, 29)},
            0,
        ),  # a batch more than the other, and not through it
        ({0: ("reduce", 6, 2), 1: ("reduce", 5, 7)}, 1),  # collectives that do not match: the one behind
        ({0: ("backward", 5, 5), 1: ("forward", 5, 4), 2: ("backward", 5, 5)}, 1),
        ({0: (GATHERS, 5, 4), 1: ("forward", 5, 4)}, 1),
    ],
)
def test_the_culprit_is_the_one_the_others_wait_for(judge, phases, culprit):
    failure = judge(phases)
    assert failure.process == culprit and failure.resumable
    phase, step, _ = phases[culprit]
    assert f"process {culprit} hangs in phase {phase} of step {step}" in failure.reason


def test_loading_and_compiling_before_the_first_step_has_time(judge):
    assert judge({0: ("start", 0, 0), 1: ("fetch", 1, 1)}, num_steps=1) is None


def test_a_finished_process_is_not_missed(judge):
    assert judge({0: ("done", 5, 2), 1: ("done", 5, 1)}) is None


def test_who_waits_for_a_process_at_work_is_well(folder):
    dog = Watchdog(folder, 0, 2, LIMIT_S)
    now = time.monotonic()
    at_work = {"step": 5, "num_steps": 5, "ticks": 1, "phase": "evaluate", "events": 7}
    waiting = at_work | {"phase": "reduce", "waits": True}
    dog._seen = {0: watchdog.Seen(waiting, now, now - 9), 1: watchdog.Seen(at_work, now, now)}
    assert dog._stalled() is None


def test_a_machine_that_vanishes_is_named_unless_all_seem_to(folder, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    dog = Watchdog(folder, 0, 3, LIMIT_S)
    now = time.monotonic()
    beating = {"step": 5, "num_steps": 5, "ticks": 1, "phase": "forward", "events": 7}
    long_ago = now - watchdog.GONE_S - 1
    dog._seen = {rank: watchdog.Seen(beating, now, now) for rank in range(3)}
    assert dog._gone() is None
    dog._seen[2] = watchdog.Seen(beating, long_ago, long_ago)
    assert dog._gone().process == 2 and "silent for 61 s" in dog._gone().reason
    dog._seen[1] = watchdog.Seen(beating, long_ago, long_ago)
    assert dog._gone() is None  # the file system stalls, or this machine is cut off


def test_a_beat_costs_nothing():
    since = time.perf_counter()
    for _ in range(10_000):
        beat("forward")
    assert (time.perf_counter() - since) / 10_000 < 20e-6


def test_heartbeats_of_a_run_say_what_it_does_and_leave_no_empty_files(folder):
    with Watchdog(folder, 0, 1, limit_s=1):
        beat("fetch", 7)
        time.sleep(0.6)
        first = read_json(folder.heartbeats / "rank-00000.json")
        time.sleep(0.6)
        second = read_json(folder.heartbeats / "rank-00000.json")
    assert (first["step"], first["phase"], first["events"], first["pid"]) == (7, "fetch", 1, os.getpid())
    assert second["ticks"] > first["ticks"] and second["alive_at"] > first["alive_at"]
    assert read_json(folder.heartbeats / "rank-00000.json")["phase"] == "done"
    assert [path.name for path in folder.heartbeats.iterdir()] == ["rank-00000.json"]


def test_the_first_failure_stands(folder):
    """A connection that closed later never hides why it closed."""
    folder.fail(Failure(1, "the cause"), 5)
    folder.fail(Failure(0, "Connection closed by peer", False), 5)
    record = read_json(folder.path / "outcome.json")
    assert (record["outcome"], record["first_failing_process"], record["reason"]) == (
        "failed",
        1,
        "the cause",
    )
    assert record["resumable"] and record["step"] == 5
    assert folder.failure() == Failure(1, "the cause")


def test_an_older_attempt_records_nothing(folder, capsys):
    folder.attempt.take_over()  # another job's
    folder.fail(Failure(1, "of the older"), 5)
    assert read_json(folder.path / "outcome.json")["outcome"] == "running"
    assert "newer attempt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (UserError("a.txt:7: wrong"), Failure(0, "a.txt:7: wrong", False)),
        (TrainingFailed("NaN", process=1, resumable=False), Failure(1, "NaN", False)),
        (OSError(5, "I/O error"), Failure(0, "OSError: [Errno 5] I/O error", True)),
        (RuntimeError("out of memory"), Failure(0, "RuntimeError: out of memory", True)),
    ],
)
def test_what_is_recorded_of_an_error(folder, error, failure):
    assert Watchdog(folder, 0, 1, LIMIT_S).cause_of(error) == failure
