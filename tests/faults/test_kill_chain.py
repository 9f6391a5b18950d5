"""Two processes killed again and again, out of disk, with damaged checkpoints: the same bits in the end."""

import contextlib
import json
import os
import random
import shutil
import signal
import time

import psutil
import pytest
from command_lines import general_distillation

from tinybert_dist.files import read_json, sha256_of

pytestmark = pytest.mark.dist
STEPS = 120
TWO_PROCESSES = "2 on cpu"
OPTIONS = {
    "max_seq_len": 32,
    "train_batch_size": 8,
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "save_step": 1,
    "keep_checkpoints": 3,
    "logging_steps": 1,
    "wandb_mode": "disabled",
}


def arguments(workspace, output_dir, **changes):
    return general_distillation(workspace, output_dir, **OPTIONS | changes)


@pytest.fixture(scope="module")
def undisturbed(workspace, launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert TWO_PROCESSES in launch("general_distill", *arguments(workspace, folder)).stdout
    assert read_json(folder / "config.json")["hidden_dropout_prob"] > 0
    return folder


def check_same(folder, undisturbed):
    assert sha256_of(folder / "model.safetensors") == sha256_of(undisturbed / "model.safetensors")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert read_json(folder / "outcome.json")["outcome"] == "finished"


def steps_of(folder):
    return sorted(int(p.name[5:]) for p in (folder / "checkpoints").glob("step-*"))


def newest(folder):
    return max(steps_of(folder), default=0)


def unfinished(folder):
    return list((folder / "checkpoints").glob(".step-*.tmp"))


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.0005)


def family_of(process):
    # the launcher starts its workers in sessions of their own: killing it alone would leave them training
    return [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]


def each(family, action):
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            getattr(member, action)()


def stop_inside_a_save(process, folder):
    """Returns when every process stands still and a checkpoint is half written."""
    while True:
        wait_for(lambda: unfinished(folder), process)
        family = family_of(process)
        each(family, "suspend")
        time.sleep(0.02)
        if unfinished(folder):
            return
        each(family, "resume")


def kill(process):
    family = family_of(process)
    each(family, "kill")
    process.communicate()
    assert process.returncode == -signal.SIGKILL and len(family) >= 3  # the fault fired
    psutil.wait_procs(family, timeout=10)


def run_a_chain(workspace, launch, folder, num_kills, draw):
    """Kills at random moments after some progress, one of them inside a save; returns the steps reached."""
    inside_save, reached = draw.randrange(num_kills), []
    for number in range(num_kills):
        before = newest(folder)
        process = launch("general_distill", *arguments(workspace, folder), wait=False)
        wait_for(lambda before=before: newest(folder) > before, process)
        if number == inside_save:
            stop_inside_a_save(process, folder)
        else:
            time.sleep(draw.uniform(0, 0.3))
        assert not (folder / "model.safetensors").exists(), "the run had ended before it was killed"
        kill(process)
        if number == inside_save:
            assert unfinished(folder)
        reached.append(newest(folder))
    return reached


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_killed_twice_and_its_newest_checkpoint_damaged(workspace, launch, undisturbed, tmp_path):
    folder = tmp_path / "run"
    reached = run_a_chain(workspace, launch, folder, 2, random.Random(time.time_ns()))
    *_, older, last = steps_of(folder)
    flip(folder / "checkpoints" / f"step-{last:08d}" / "optimizer.safetensors")
    result = launch("general_distill", *arguments(workspace, folder))
    assert TWO_PROCESSES in result.stdout, reached
    assert f"step-{last:08d} is damaged (optimizer.safetensors does not match" in result.stdout
    assert f"resuming {folder} from step {older}\n" in result.stdout
    check_same(folder, undisturbed)
    assert not unfinished(folder) and steps_of(folder) == [STEPS - 2, STEPS - 1, STEPS]


@pytest.mark.slow
def test_killed_six_times(workspace, launch, undisturbed, tmp_path):
    folder, seed = tmp_path / "run", time.time_ns()
    reached = run_a_chain(workspace, launch, folder, 6, random.Random(seed))
    result = launch("general_distill", *arguments(workspace, folder))
    assert TWO_PROCESSES in result.stdout
    assert f"resuming {folder} from step {reached[-1]}\n" in result.stdout, (reached, seed)
    check_same(folder, undisturbed)


@pytest.mark.slow
def test_with_all_checkpoints_damaged_it_stops_and_deletes_nothing(workspace, launch, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    (folder / "outcome.json").unlink()
    for step in steps_of(folder):
        flip(folder / "checkpoints" / f"step-{step:08d}" / "model.safetensors")
    before = {p: sha256_of(p) for p in (folder / "checkpoints").rglob("*") if p.is_file()}
    result = launch("general_distill", *arguments(workspace, folder), check=False)
    assert result.returncode != 0
    assert result.stdout.count("3 checkpoints and none is whole") >= 2, result.stdout  # both processes
    for step in steps_of(folder):
        assert f"step-{step:08d} is damaged (model.safetensors does not match its sha256)" in result.stdout
    assert {p: sha256_of(p) for p in (folder / "checkpoints").rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_a_disk_that_fills_up(workspace, launch, undisturbed, small_disk):
    folder = small_disk("6m") / "run"
    options = arguments(workspace, folder, keep_checkpoints=STEPS)
    result = launch("general_distill", *options, check=False)
    assert result.returncode != 0 and TWO_PROCESSES in result.stdout
    reached = newest(folder)
    assert 2 < reached < STEPS
    failed = f"failed: {folder}/checkpoints/step-{reached + 1:08d} could not be saved"
    assert result.stdout.count(failed) == 2, result.stdout[-3000:]  # both processes say why
    assert "No space left on device" in result.stdout and "the same command resumes" in result.stdout
    assert not unfinished(folder)
    outcome = read_json(folder / "outcome.json")
    assert outcome["outcome"] == "failed" and outcome["resumable"]
    assert outcome["step"] == reached + 1 and "No space left" in outcome["reason"]
    small_disk("200m")
    result = launch("general_distill", *options)
    assert f"resuming {folder} from step {reached}\n" in result.stdout
    check_same(folder, undisturbed)
    assert len(os.listdir(folder / "checkpoints")) == STEPS
