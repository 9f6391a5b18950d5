"""Two jobs on one folder: the second is refused; without locks, the newer attempt owns the folder."""

import os
import signal
import subprocess
import sys
import time

import pytest
from jobs import TWO_PROCESSES, outcome

from tinybert_dist.config import UserError
from tinybert_dist.files import read_json, sha256_of
from tinybert_dist.training.attempt import Attempt, Superseded


def digests(folder):
    """What an older attempt must not touch."""
    files = [folder / "outcome.json", folder / "attempt.json", *folder.glob("checkpoints/*/*")]
    return {path: sha256_of(path) for path in files}


@pytest.mark.dist
def test_the_second_job_is_refused_and_the_first_goes_on(start):
    first = start().wait_for_checkpoint()
    token = read_json(first.folder / "attempt.json")
    second = start()
    output, _ = second.process.communicate(timeout=90)
    assert second.process.returncode != 0 and "is in use by another job" in output, output[-2000:]
    assert "give another --output_dir" in output
    assert read_json(first.folder / "attempt.json") == token and outcome(first.folder)["outcome"] == "running"
    before = max(first.folder.glob("checkpoints/step-*"))
    first.wait_for(lambda: max(first.folder.glob("checkpoints/step-*")) > before)
    first.process.send_signal(signal.SIGTERM)
    _, output = first.end()
    assert outcome(first.folder)["outcome"] == "interrupted" and TWO_PROCESSES in output


@pytest.mark.slow
@pytest.mark.dist
def test_without_locks_an_older_attempt_that_still_lives_commits_nothing(start):
    old = start("no_locks 0 0").wait_for_checkpoint()
    for process in old.family:
        process.suspend()
    new = start("no_locks 0 0", max_seconds=0.1)
    output, _ = new.process.communicate(timeout=90)
    assert TWO_PROCESSES in output and outcome(new.folder)["outcome"] == "interrupted"
    before = digests(new.folder)
    for process in old.family:
        process.resume()
    _, output = old.end()
    assert old.process.returncode != 0 and "a newer attempt has taken over" in output, output[-3000:]
    assert digests(new.folder) == before


HOLD = (
    "import sys, time; from pathlib import Path; from tinybert_dist.training.attempt import Attempt; "
    "Attempt(Path(sys.argv[1])).lock(); print('held', flush=True); time.sleep(float(sys.argv[2]))"
)


def test_a_job_waits_for_one_that_is_about_to_end(tmp_path, capsys):
    command = [sys.executable, "-c", HOLD, str(tmp_path), "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        attempt, since = Attempt(tmp_path), time.monotonic()
        attempt.lock()
        assert time.monotonic() - since > 1 and "waiting" in capsys.readouterr().out
        attempt.release()


def test_the_lock_of_a_killed_job_is_free_at_once(tmp_path, capsys):
    command = [sys.executable, "-c", HOLD, str(tmp_path), "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    Attempt(tmp_path).lock()
    assert "waiting" not in capsys.readouterr().out


HOLD_AS_NEWEST = HOLD.replace("lock(); ", "lock(); Attempt(Path(sys.argv[1])).take_over(); ")


@pytest.mark.parametrize(("job", "start", "may"), [("7", "1", True), ("7", "0", False), ("8", "1", False)])
def test_a_job_that_slurm_starts_again_goes_past_its_earlier_start(tmp_path, monkeypatch, job, start, may):
    """It may still run on a node that is cut off; another job is refused."""
    monkeypatch.setattr("tinybert_dist.training.attempt.WAIT_S", 0.5)
    command = [sys.executable, "-c", HOLD_AS_NEWEST, str(tmp_path), "60"]
    environment = os.environ | {"SLURM_JOB_ID": "7"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout.readline() == "held\n"
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", start)
        attempt = Attempt(tmp_path)
        if may:
            attempt.lock()
        else:
            with pytest.raises(UserError, match="in use by another job"):
                attempt.lock()
        holder.kill()


def test_the_newest_attempt_owns_the_folder(tmp_path):
    old, new = Attempt(tmp_path), Attempt(tmp_path)
    old.token = old.take_over()
    old.require_ours()
    new.token = new.take_over()
    new.require_ours()
    with pytest.raises(Superseded, match="newer attempt"):
        old.require_ours()
