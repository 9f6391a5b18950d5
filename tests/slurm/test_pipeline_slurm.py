"""A recipe as dependent jobs of a real Slurm, submitted with the shipped job script."""

import re
import sys

import pytest
import yaml
from cluster import ROOT
from slurm_jobs import outcome

from tinybert_dist.files import read_json, sha256_of

pytestmark = pytest.mark.slurm
TRAINING = {"max_steps": "${steps}", "train_batch_size": 8, "logging_steps": 1, "wandb_mode": "disabled"}
TASK = {"data_dir": "${workspace}/task", "max_seq_length": 32}
ALL = {"general", "teacher", "step_1", "evaluate"}


def recipe(folder, workspace, **slurm):
    """general (two nodes) and teacher side by side, step_1 of both, evaluate of the teacher."""
    content = {
        "name": "small",
        "output_dir": "runs",
        "workspace": str(workspace),
        "corpus": "${workspace}/corpus.txt",
        "steps": 2,
        "learning_rate": "1e-3",
        "slurm": {
            "gpus_per_node": 1,
            "cpus_per_task": 2,
            "time": "10",
            "signal": "B:USR1@60",
            "env": {"ACCELERATE_CONFIG": "accelerate_configs/cpu_2_processes.yaml"},
            **slurm,
        },
        "stages": [
            {
                "name": "general",
                "stage": "general_distill",
                "args": {
                    "train_file_path": "${corpus}",
                    "teacher_model": "${workspace}/teacher",
                    "student_model": "${workspace}/student.json",
                    "max_seq_len": 32,
                    "output_dir": "${output_dir}/general",
                    **TRAINING,
                },
                "slurm": {"nodes": 2},
            },
            {
                "name": "teacher",
                "stage": "finetune_teacher",
                "args": {
                    "teacher_model": "${workspace}/teacher",
                    "output_dir": "${output_dir}/teacher",
                    **TASK,
                    **TRAINING,
                },
            },
            {
                "name": "step_1",
                "stage": "task_distill",
                "args": {
                    "teacher_model": "${output_dir}/teacher",
                    "student_model": "${output_dir}/general",
                    "learning_rate": "${learning_rate}",
                    "output_dir": "${output_dir}/step_1",
                    **TASK,
                    **TRAINING,
                },
            },
            {
                "name": "evaluate",
                "stage": "evaluate",
                "args": {"model": "${output_dir}/teacher", "output_dir": "${output_dir}/eval", **TASK},
            },
        ],
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def pipeline(slurm, folder):
    """pipeline(recipe, *arguments): the command on the login node; its exit code and what it prints."""

    def run(path, *arguments):
        command = [sys.executable, "-m", "tinybert_dist.stages.pipeline", path, "--slurm", *arguments]
        script = '"$@" 2>&1; echo "exit code $?"'
        env = {"PYTHONPATH": str(ROOT)}
        printed = slurm.run("bash", "-c", script, "-", *command, cwd=folder, env=env, timeout_s=300)
        return int(printed.rsplit(" ", 1)[1]), printed

    yield run
    slurm.run("scancel", "--user=root")


def jobs_of(printed):
    """(job id, ids it waits for) by step, of the tree that was printed."""
    rows = re.findall(r"^(\d+) +[ |`-]*(\w+)(?: +after ([\d, ]+))?$", printed, re.M)
    return {step: (job, re.findall(r"\d+", after)) for job, step, after in rows}


def states(slurm, jobs):
    return {step: slurm.wait(job)["JobState"] for step, (job, _) in jobs.items()}


def test_jobs_run_as_a_tree_and_again_only_below_a_change(slurm, shared_workspace, folder, pipeline):
    path = recipe(folder, shared_workspace)
    code, printed = pipeline(path)
    jobs = jobs_of(printed)
    assert code == 0 and set(jobs) == ALL, printed
    assert {step: set(after) for step, (_, after) in jobs.items()} == {
        "general": set(),
        "teacher": set(),
        "step_1": {jobs["general"][0], jobs["teacher"][0]},
        "evaluate": {jobs["teacher"][0]},
    }
    # while they wait and run (on a slow machine the first have ended by now), nothing is submitted twice
    code, printed = pipeline(path)
    assert code == 0 and "0 of 4 steps to run" in printed and "in the queue" in printed, printed
    assert jobs_of(printed) == {}
    assert states(slurm, jobs) == dict.fromkeys(ALL, "COMPLETED")
    runs = folder / "runs"
    log = (runs / "logs" / f"small.general-{jobs['general'][0]}.out").read_text()
    assert "2 on cpu, DDP" in log and "node2: node 1 of 2" in log
    assert all(outcome(runs / name)["outcome"] == "finished" for name in ("general", "teacher", "step_1"))
    assert read_json(runs / "eval" / "eval_results.json")["step"] == 0
    assert len(list(runs.glob(".*.step.json"))) == 4 and not list(runs.glob(".*.submitted"))
    assert "run_group: small" in (runs / "general" / "config.yaml").read_text()

    code, printed = pipeline(path)
    assert code == 0 and "0 of 4 steps to run" in printed and jobs_of(printed) == {}
    assert slurm.run("squeue", "--noheader") == ""

    old = sha256_of(runs / "step_1" / "model.safetensors")
    code, printed = pipeline(path, "--set", "learning_rate=4e-3")
    assert code == 0 and "--learning_rate: 0.001 -> 0.004" in printed
    jobs = jobs_of(printed)
    assert set(jobs) == {"step_1"} and states(slurm, jobs) == {"step_1": "COMPLETED"}
    assert sha256_of(runs / "step_1.before-1" / "model.safetensors") == old
    assert sha256_of(runs / "step_1" / "model.safetensors") != old


def test_a_step_that_fails_cancels_what_depends_on_it(slurm, shared_workspace, folder, pipeline):
    path = recipe(folder, shared_workspace)
    code, printed = pipeline(path, "--set", "corpus=nowhere.txt")
    jobs = jobs_of(printed)
    assert code == 0 and set(jobs) == ALL, printed
    ends = {"general": "FAILED", "step_1": "CANCELLED", "teacher": "COMPLETED", "evaluate": "COMPLETED"}
    assert states(slurm, jobs) == ends
    code, printed = pipeline(path)
    jobs = jobs_of(printed)
    assert code == 0 and set(jobs) == {"general", "step_1"}, printed
    assert states(slurm, jobs) == dict.fromkeys(jobs, "COMPLETED")


def test_a_submission_that_fails_half_way_leaves_nothing_behind(slurm, shared_workspace, folder, pipeline):
    path = recipe(folder, shared_workspace, hold=True)
    content = yaml.safe_load(path.read_text())
    content["stages"][2]["slurm"] = {"partition": "nowhere"}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    # what an earlier run with other inputs has left comes back to its place
    step_1 = folder / "runs" / "step_1"
    step_1.mkdir(parents=True)
    (step_1 / "kept").touch()
    (folder / "runs" / ".step_1.step.json").write_text('{"fingerprint": "f", "parts": {}, "files": {}}')
    before = sorted(file for file in (folder / "runs").rglob("*"))
    code, printed = pipeline(path)
    assert code == 2 and "step step_1 was not submitted" in printed and "partition" in printed, printed
    cancelled = re.search(r"cancelled what was submitted already: (\d+), (\d+)", printed)
    assert cancelled and jobs_of(printed) == {}
    assert [slurm.job(job)["JobState"] for job in cancelled.groups()] == ["CANCELLED", "CANCELLED"]
    assert sorted(file for file in (folder / "runs").rglob("*") if file.name != "logs") == before


def test_jobs_of_other_inputs_are_not_overtaken(slurm, shared_workspace, folder, pipeline):
    path = recipe(folder, shared_workspace, hold=True)
    jobs = jobs_of(pipeline(path)[1])
    code, printed = pipeline(path, "--set", "learning_rate=4e-3")
    job = jobs["step_1"][0]
    assert code == 2 and f"step step_1: job {job}, submitted with other inputs, waits or runs" in printed
    slurm.run("scancel", job)
    code, printed = pipeline(path, "--set", "learning_rate=4e-3")
    again = jobs_of(printed)
    assert code == 0 and set(again) == {"step_1"}, printed
    assert set(again["step_1"][1]) == {jobs["general"][0], jobs["teacher"][0]}
