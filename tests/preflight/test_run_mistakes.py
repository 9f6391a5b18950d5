"""Seeded mistakes in folders, schedules, launches and environments."""

import json
import os
import socket

import pytest
from command_lines import general_distillation
from seeded import complaints, findings_of, to_argv

from tinybert_dist.config import UserError, parse
from tinybert_dist.pipeline.flow import config_class
from tinybert_dist.preflight import launch_checks
from tinybert_dist.preflight.checks import preflight
from tinybert_dist.preflight.environment import check_environment
from tinybert_dist.preflight.machine import cores
from tinybert_dist.training.run_folder import RunFolder


def test_output_below_a_file(good, catches, workspace):
    options = good("general_distill") | {"output_dir": workspace / "corpus.txt" / "run"}
    catches("general_distill", options, r"--output_dir .*corpus\.txt is a file.*another folder")


def test_folder_of_somebody_else(good, catches, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    options = good("general_distill") | {"output_dir": tmp_path}
    catches("general_distill", options, r"not empty and no run of this program made it.*empty folder")


def test_folder_of_another_run(good, catches):
    options = good("general_distill")
    config = parse(config_class("general_distill"), to_argv(options))
    folder = RunFolder(options["output_dir"], "general_distill", config, {"teacher_model": "0123"})
    folder.claim()
    folder.attempt.release()
    changed = options | {"learning_rate": 3e-4}
    catches("general_distill", changed, r"another run \(learning_rate: 5e-05 there, 0.0003 now\).*resume")


def test_disk_too_small(good, catches, workspace, tmp_path):
    huge = json.loads((workspace / "student.json").read_text()) | {
        "hidden_size": 48,
        "num_hidden_layers": 1,
        "intermediate_size": 10**12,
    }
    (tmp_path / "huge.json").write_text(json.dumps(huge))
    options = good("general_distill") | {"student_model": tmp_path / "huge.json"}
    catches("general_distill", options, r"free on its disk, about .* needed \(.*checkpoints .*Make room")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 5}, r"--learning_rate 5: the loss would diverge.*1e-5 to 1e-3"),
        ({"learning_rate": 1e-12}, r"--learning_rate 1e-12: nothing would be learned"),
        ({"warmup_proportion": 0.9}, r"--warmup_proportion 0.9: .*90 % of the run.*usual is 0.1"),
        (
            {"max_steps": 100, "eval_step": 500},
            r"--eval_step 500 is more than the 100 .*steps.*smaller",
        ),
        (
            {"max_steps": 100, "save_step": 500},
            r"--save_step 500 is more than the 100 .*steps.*smaller",
        ),
        ({"train_batch_size": 256}, r"3 optimizer steps in all: 160 examples.*smaller --train_batch_size"),
        ({"num_train_epochs": 0.01}, r"1 optimizer steps in all.*more --num_train_epochs"),
    ],
    ids=["rate high", "rate low", "warm-up", "evaluation", "saves", "batch", "epochs"],
)
def test_schedule(good, catches, changes, message):
    catches("task_distill", good("task_distill") | changes, message, "warning")


def test_more_processes_than_examples_of_a_step(good, catches, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "16")
    options = good("task_distill")
    catches("task_distill", options, r"--train_batch_size 8 is divided into 16 .*fewer processes", "warning")


def test_tasks_of_srun_without_a_launcher(good, catches, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    options = good("task_distill")
    catches("task_distill", options, r"4 tasks that do not know.*one launcher per machine", is_launched=True)


def test_one_launch_per_task_of_srun(good, catches, monkeypatch):
    values = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    options = good("task_distill")
    catches("task_distill", options, r"2 runs in the same folder.*--num_machines", is_launched=True)


def test_launch_over_two_machines_is_no_mistake(good, monkeypatch):
    values = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    options = good("task_distill") | {"train_batch_size": 32, "max_steps": 100}
    preflight("task_distill", parse(config_class("task_distill"), to_argv(options)))


def test_more_workers_than_cores(good, catches):
    options = good("task_distill") | {"num_workers": cores() + 1}
    catches("task_distill", options, r"--num_workers \d+ makes .*Give at most", "warning")


def test_precision_the_machine_emulates(good, catches, monkeypatch):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    options = good("task_distill") | {"mixed_precision": "bf16"}
    catches("task_distill", options, r"--mixed_precision bf16: .*emulates.*auto or no", "warning")


def test_wandb_without_a_key(good, catches, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    options = good("task_distill") | {"wandb_mode": "online"}
    catches("task_distill", options, r"no API key.*WANDB_API_KEY.*--wandb_mode offline")


def test_wandb_without_a_key_in_this_shell(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_MODE", "online")
    (found,) = complaints(check_environment())
    assert found.check == "wandb" and "no API key" in found.problem and "WANDB_MODE=offline" in found.remedy


def test_little_shared_memory(good, catches, monkeypatch):
    options = good("task_distill") | {"num_workers": 1}
    assert not complaints(findings_of("task_distill", options))
    monkeypatch.setattr(launch_checks, "SMALL_SHM_BYTES", 1 << 60)
    catches("task_distill", options, r"/dev/shm holds \d+ MiB.*--shm-size 1g.*--num_workers 0", "warning")
    assert not complaints(findings_of("task_distill", options | {"num_workers": 0}))
    assert any("--shm-size" in found.remedy for found in complaints(check_environment()))


def test_processes_of_a_shell_without_a_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert any("unset WORLD_SIZE" in str(f) for f in complaints(check_environment()))


def test_port_that_is_taken(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        assert any(f"MASTER_PORT={port} is taken" in str(f) for f in complaints(check_environment()))
    assert not complaints(check_environment())


def test_errors_end_a_stage_and_warnings_do_not(good, capsys):
    options = good("task_distill") | {"learning_rate": 5, "max_steps": 100}
    preflight("task_distill", parse(config_class("task_distill"), to_argv(options)))
    assert "warning: schedule: --learning_rate 5" in capsys.readouterr().err
    options |= {"layer_map": "1,9", "data_dir": options["data_dir"] / "none"}
    with pytest.raises(UserError, match=r"^2 mistakes:\n  - --layer_map: (.|\n)*  - --data_dir "):
        preflight("task_distill", parse(config_class("task_distill"), to_argv(options)))
    assert not options["output_dir"].exists()


def test_nothing_is_changed_on_disk(good, tmp_path):
    options = good("task_distill") | {"max_steps": 100}
    before = sorted(os.walk(tmp_path))
    preflight("task_distill", parse(config_class("task_distill"), to_argv(options)))
    assert sorted(os.walk(tmp_path)) == before


@pytest.mark.dist
def test_a_launch_of_two_that_starts_one(workspace, tmp_path, launch):
    """accelerate's own answer to "multi-CPU" without mpirun: one process, and no word about it."""
    config = tmp_path / "multi_cpu.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\n"
        "num_machines: 1\nnum_processes: 2\nmachine_rank: 0\nmixed_precision: 'no'\n"
    )
    arguments = general_distillation(workspace, tmp_path / "run", max_steps=2, wandb_mode="disabled")
    result = launch(
        "general_distill", *arguments, check=False, launcher=("--config_file", str(config)), num_processes=2
    )
    assert result.returncode != 0
    assert "was to start 2 processes" in result.stdout and "MULTI_CPU" in result.stdout
    assert not (tmp_path / "run").exists()
