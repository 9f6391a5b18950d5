"""A sweep: an array of runs, and the table that waits for all of them."""

import json
import shlex
import subprocess
import time

import pytest
from cluster import ROOT
from command_lines import flags
from slurm_jobs import CPU, outcome

from tinybert_dist.config import parse
from tinybert_dist.stages.task_distill import TaskDistillConfig

SCRIPTS = ROOT / "launch" / "slurm"
RATES = {"slow": 1e-6, "quick": 3e-3}


def line(workspace, task, run, **changes):
    options = {
        "teacher_model": workspace / "teacher",
        "data_dir": workspace / "task",
        "task_name": task,
        "output_dir": run,
        "max_seq_length": 32,
        "max_steps": 30,
        "train_batch_size": 16,
        "wandb_mode": "disabled",
    } | changes
    return shlex.join(["finetune_teacher", *flags(options)]) + "\n"


@pytest.mark.slurm
def test_an_array_of_runs_and_the_best_of_each_task(slurm, shared_workspace, folder):
    runs = folder / "runs with a space"
    lines = [
        line(shared_workspace, task, runs / f"{task}-{name}", learning_rate=rate)
        for task in ("tone", "topic")
        for name, rate in RATES.items()
    ]
    tasks_file = folder / "sweep.txt"
    tasks_file.write_text("".join(lines))
    options = ("--cpus-per-task=2", "--time=10", "--signal=B:USR1@60")
    told = slurm.run("sh", SCRIPTS / "sweep.sh", tasks_file, *options, cwd=folder, env=CPU | {"AT_ONCE": "2"})
    array, table = told.split("array ")[1].split(":")[0], told.split("table ")[1].split(":")[0]
    facts = slurm.wait(table, 300)
    logs = "".join(path.read_text() for path in folder.glob("*.out"))
    assert facts["JobState"] == "COMPLETED", logs
    assert len(list(folder.glob(f"sweep-{array}_*.out"))) == 4
    scores = {path.name: outcome(path)["result"]["score"] for path in runs.iterdir()}
    assert len(scores) == 4 and scores["tone-quick"] > scores["tone-slow"]
    text = (folder / "sweep.txt.md").read_text()
    for task in ("tone", "topic"):
        assert f"| {task} | accuracy | {scores[f'{task}-quick']:.4f} | learning_rate 0.003 | 2 of 2 |" in text
    assert text in logs


@pytest.mark.slurm
def test_a_signalled_task_of_an_array_goes_back_alone(slurm, shared_workspace, folder):
    """scontrol requeue with the plain id of the last task would start all of them again."""
    long = {"max_steps": 20_000, "save_step": 20}
    lines = [line(shared_workspace, "tone", folder / f"run{i}", **long) for i in range(2)]
    tasks_file = folder / "sweep.txt"
    tasks_file.write_text("".join(lines))
    options = ("--cpus-per-task=2", "--time=10", "--signal=B:USR1@60")
    told = slurm.run("sh", SCRIPTS / "sweep.sh", tasks_file, *options, cwd=folder, env=CPU)
    array = told.split("array ")[1].split(":")[0]
    logs = [folder / f"sweep-{array}_{i}.out" for i in range(2)]
    wait_for(lambda: all(list((folder / f"run{i}").glob("checkpoints/step-*[0-9]")) for i in range(2)))
    slurm.run("scancel", "--batch", "--signal=USR1", f"{array}_1")
    wait_for(lambda: "back into the queue" in logs[1].read_text())
    wait_for(lambda: f"job {array}_1.1: finetune_teacher" in logs[1].read_text())
    (folder / "run0" / "STOP").touch()
    (folder / "run1" / "STOP").touch()
    states = [slurm.wait(f"{array}_{i}") for i in range(2)]
    assert [state["Restarts"] for state in states] == ["0", "1"]
    # not all are finished: no table
    table = told.split("table ")[1].split(":")[0]
    assert slurm.wait(table)["JobState"] == "CANCELLED"


def wait_for(condition, timeout_s=120):
    """Until it holds."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.1)


def test_the_table_tells_what_is_missing(tmp_path):
    """Any time, without Slurm."""
    for name, score in (("a", 0.7), ("b", 0.9)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "outcome.json").write_text(json.dumps({"outcome": "finished"}))
        results = {"task": "MRPC", "selection_metric": "f1", "score": score}
        (tmp_path / name / "eval_results.json").write_text(json.dumps(results))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "outcome.json").write_text(json.dumps({"outcome": "failed"}))
    rates = {"a": "1e-5", "b": "2e-5", "c": "3e-5", "d": "4e-5"}
    tasks_file = tmp_path / "sweep.txt"
    flags_of = "task_distill --learning_rate {} --pred_distill --output_dir={} --task_name MRPC\n"
    tasks_file.write_text("".join(flags_of.format(rate, tmp_path / name) for name, rate in rates.items()))
    command = ["python3", SCRIPTS / "sweep_table.py", tasks_file]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "| MRPC | f1 | 0.9000 | learning_rate 2e-5 | 2 of 4 |" in result.stdout
    assert "/c: failed" in result.stdout and "/d: not begun" in result.stdout
    assert json.loads((tmp_path / "sweep.txt.json").read_text())["best"][0]["score"] == 0.9


def test_glue_has_six_runs_a_task_that_the_stage_accepts(tmp_path):
    command = ["sh", SCRIPTS / "glue_sweep.sh", "--wandb_mode", "offline"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 48 and len({line.split("--output_dir ")[1] for line in lines}) == 48
    for text in lines:
        stage, *argv = shlex.split(text)
        config = parse(TaskDistillConfig, argv)
        assert stage == "task_distill" and config.pred_distill and config.wandb_mode == "offline"
