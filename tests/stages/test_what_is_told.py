"""What a person reads before and after a run."""

import re
import shlex
import subprocess
import sys

import pytest
import wandb_files
from stage_runs import finetune, general, own_task, rows, task

from tinybert_dist.model_flops import forward_flops_per_token
from tinybert_dist.models import load_config
from tinybert_dist.training.progress import readable_count


def facts(output):
    """The two columns, by name; later ones win."""
    return dict(re.findall(r"^  ([a-z][a-z- ]*?) {2,}(\S.*)$", output, re.MULTILINE))


@pytest.fixture
def task_with_a_bad_row(tmp_path, workspace):
    lines = (workspace / "task" / "train.tsv").read_text().splitlines()[1:41]
    return own_task(tmp_path / "task", [*lines, "a text\tperhaps"], dev=lines[:20])


def test_sizes_and_cost_before_a_run(workspace, tmp_path, capsys):
    general(workspace, tmp_path / "run", gradient_accumulation_steps=2, save_step=7, dry_run=True)
    told = facts(capsys.readouterr().out)
    assert told["learns"] == "layers 1:2,2:4 (student:teacher)"
    assert told["each process"] == "2+ micro-batches of a step (--gradient_accumulation_steps 2)"
    assert told["steps between"] == "logs 1, checkpoints 7"  # nothing to evaluate
    num_rows, num_tokens = (int(x.replace(",", "")) for x in re.findall(r"[\d,]+", told["training rows"]))
    teacher, student = load_config(workspace / "teacher"), load_config(workspace / "student.json")
    length = num_tokens / num_rows
    cost = forward_flops_per_token(teacher, length) + 3 * forward_flops_per_token(student, length)
    assert told["computation"].startswith(f"{readable_count(cost)} FLOPs a real token")


def test_where_everything_is_after_a_run(workspace, tmp_path, capsys, task_with_a_bad_row):
    folder = tmp_path / "run"
    options = {"data_dir": task_with_a_bad_row, "labels": ["no", "yes"], "on_bad_record": "skip"}
    outcome = finetune(workspace, folder, max_steps=4, eval_step=2, wandb_mode="offline", **options)
    output = capsys.readouterr().out
    told = facts(output[output.index("finetune_teacher: finished at step 4") :])
    best = outcome["result"]
    assert told["model"] == str(folder) and told["metrics"] == str(folder / "metrics.jsonl")
    assert told["best score"] == f"{best['score']:.4f} at step {best['step']}"
    assert told["seen"] == f"{readable_count(rows(folder)[-1]['data/tokens_seen'])} real tokens in 4 steps"
    assert "1 bad records passed over" in told["bad records"] and "perhaps" not in told["bad records"]
    assert told["go on"].startswith(f"tinybert-dist task_distill --teacher_model {folder} ")
    place, command = re.fullmatch(r"(\S+); upload: \((.*)\)", told["wandb"]).groups()
    assert len(wandb_files.run_files(folder)) == 1 and wandb_files.run_files(folder)[0].is_relative_to(place)
    change, sync = command.split(" && ")
    assert shlex.split(sync)[:2] == ["wandb", "sync"] and change == f"cd {folder}"
    dry_run = f"{change} && {sys.executable} -m wandb sync --dry-run"
    dry = subprocess.run(dry_run, shell=True, capture_output=True, text=True, check=True)
    assert wandb_files.run_files(folder)[0].name in dry.stdout + dry.stderr


def test_how_to_go_on_after_a_stop(workspace, tmp_path, capsys):
    general(workspace, tmp_path / "run", max_steps=9, max_seconds=1e-6)
    told = facts(capsys.readouterr().out)
    assert told["checkpoints"] == str(tmp_path / "run" / "checkpoints") and "model" not in told
    assert told["go on"] == "the same command" and "wandb" not in told and "best score" not in told
    general(workspace, tmp_path / "run", max_steps=9)
    told = facts(capsys.readouterr().out)
    assert re.fullmatch(r"\S+ since step 1", told["took"])
    general(workspace, tmp_path / "undisturbed", max_steps=9)
    seen = {
        name: [row["data/tokens_seen"] for row in rows(tmp_path / name)] for name in ("run", "undisturbed")
    }
    assert seen["run"] == seen["undisturbed"] and len(seen["run"]) == 9


def test_step_2_leads_to_the_evaluation(workspace, tmp_path, general_student, capsys):
    task(workspace, tmp_path / "run", student_model=general_student, pred_distill=True)
    told = facts(capsys.readouterr().out)
    assert told["go on"] == f"tinybert-dist evaluate --model {tmp_path / 'run'} --data_dir ..."
