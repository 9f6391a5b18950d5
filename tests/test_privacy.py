"""What a run writes, prints and uploads holds no secret and nothing of the machine."""

import os
import subprocess
import sys

import pytest
import yaml

from tinybert_dist.stages import general_distill, pipeline

SECRETS = {
    "WANDB_API_KEY": "canarywandb0123456789abcdef0123456789abc",
    "HF_TOKEN": "hf_canaryhubtoken",
    "AWS_SECRET_ACCESS_KEY": "canaryawssecret",
}
MACHINE = {"LOGNAME": "canaryuser", "USER": "canaryuser"}
HOST = "canaryhost"
IN_URLS = ["canarypassword", "canaryquery"]
QUICK = {"length_tokens": [8], "batch_size": [1], "repeats": 1}
URL = "https://someone:canarypassword@host.example/group?token=canaryquery"


def run_stage(stage, *arguments, cwd):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | SECRETS | MACHINE
    command = [sys.executable, "-m", f"tinybert_dist.stages.{stage}", *map(str, arguments)]
    as_host = ["unshare", "--uts", "sh", "-c", f'hostname {HOST} && exec "$@"', "sh"]
    if subprocess.run([*as_host, "true"], capture_output=True, check=False).returncode == 0:
        command = as_host + command  # needs the right to do so
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def hits(folder, words):
    """(file, word) for every word in the name, the target or the bytes of a file under a folder."""
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        link = os.readlink(path) if path.is_symlink() else ""
        text = content + str(path.relative_to(folder)).encode() + link.encode()
        found += [(str(path.relative_to(folder)), word) for word in words if word.encode() in text]
    return found


def test_nothing_written_holds_a_secret_or_the_machine(workspace, tmp_path):
    """Every kind of stage in one process; all paths are given relative to a folder of a telling name."""
    home = tmp_path / "canaryplace"
    home.mkdir()
    for name in ("corpus.txt", "teacher", "student.json", "task"):
        (home / name).symlink_to(workspace / name)
    tracking = {"run_group": URL, "wandb_mode": "offline"}
    training = tracking | {"max_seq_length": 32, "max_steps": 2}
    teachers = {"teacher_model": "teacher", "data_dir": "task"}
    distil = teachers | {"teacher_model": "run/finetune_teacher", "student_model": "run/general_distill"}
    general = {"train_file_path": "corpus.txt", "teacher_model": "teacher", "student_model": "student.json"}
    stages = {
        "general_distill": general | training,
        "finetune_teacher": teachers | training,
        "task_distill": distil | training | {"pred_distill": True},
        "evaluate": tracking | {"model": "run/task_distill", "data_dir": "task", "max_seq_length": 32},
        "prepare_corpus": tracking | {"train_file_path": "corpus.txt", "teacher_model": "teacher"},
        "export": tracking | QUICK | {"model": "run/task_distill", "data_dir": "task"},
        "report": tracking
        | QUICK
        | {
            "teacher_model": "run/finetune_teacher",
            "student_model": "run/task_distill",
            "export_folder": "run/export",
            "run_folders": ["step 2=run/task_distill"],
        },
    }
    recipe = [
        {"name": stage, "stage": stage, "args": options | {"output_dir": f"run/{stage}"}}
        for stage, options in stages.items()
    ]
    (home / "recipe.yaml").write_text(yaml.safe_dump({"name": "all", "stages": recipe}))
    result = run_stage("pipeline", "recipe.yaml", cwd=home)
    assert result.returncode == 0, result.stderr
    assert len(list((home / "run").rglob("*.wandb"))) == len(stages)
    assert {path.name for path in (home / "run").glob("[!.]*")} == set(stages)
    assert len([path for path in (home / "run").rglob("*") if path.is_file()]) > 50
    words = [*SECRETS.values(), *MACHINE.values(), HOST, *IN_URLS, "canaryplace", str(workspace)]
    assert hits(home / "run", words) == []
    assert [word for word in words if word in result.stdout + result.stderr] == []


def test_messages_and_printed_commands_hold_no_secret(workspace, tmp_path, capsys):
    argv = [
        "--teacher_model",
        URL,
        "--student_model",
        "tinybert-4l-312",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    with pytest.raises(SystemExit):
        general_distill.main([*argv, "--train_file_path", str(workspace / "corpus.txt")])
    (tmp_path / "recipe.yaml").write_text(
        f"stages: [{{name: x, stage: general_distill, args: {{run_group: '{URL}', teacher_model: x, "
        "student_model: x, train_file_path: x, output_dir: x}}]\n"
    )
    pipeline.main([str(tmp_path / "recipe.yaml"), "--dry_run"])
    captured = capsys.readouterr()
    assert "host.example" in captured.err and "host.example" in captured.out
    assert not [secret for secret in IN_URLS if secret in captured.err + captured.out]


def test_who_may_read_the_config_may_read_the_weights(workspace):
    modes = {file.stat().st_mode for file in (workspace / "teacher").iterdir()}
    assert len(modes) == 1
