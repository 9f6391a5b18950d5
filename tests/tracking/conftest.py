"""A pipeline of every tracked kind of stage, once, with wandb offline."""

import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import wandb_files
import yaml
from tiny_masked_lm import CHINESE, save_masked_lm
from wandb_server import WandbServer

from tinybert_dist.stages import pipeline
from tinybert_dist.training.tracking import Tracker, TrackingOptions


@pytest.fixture(scope="session")
def chain(workspace, tmp_path_factory) -> Path:
    """The folder of a pipeline whose steps wrote into runs/<name>; the report's picture is logged by hand."""
    home = tmp_path_factory.mktemp("chain")
    model = save_masked_lm(home / "masked_lm")
    (home / "lines.txt").write_text(
        "the movie was great\na very boring film\n" + "".join(CHINESE[:6]) + "\n", encoding="utf-8"
    )
    tracking = {"wandb_mode": "offline", "run_group": "night"}
    common = tracking | {"max_seq_length": 32}
    training = common | {"train_batch_size": 8, "logging_steps": 1, "max_steps": 4}
    training["eval_step"] = 2
    teacher, task = home / "runs/teacher", workspace / "task"
    stages = {
        "tokens": ("prepare_corpus", {
            "train_file_path": workspace / "corpus.txt", "teacher_model": workspace / "teacher",
        }),
        "teacher": ("finetune_teacher", {"teacher_model": workspace / "teacher", "data_dir": task}),
        "general": ("general_distill", {
            "train_file_path": workspace / "corpus.txt", "teacher_model": workspace / "teacher",
            "student_model": workspace / "student.json", "streaming": True,
        }),
        "step_1": ("task_distill", {"student_model": home / "runs/general"}),
        "student": ("task_distill", {"student_model": home / "runs/step_1", "pred_distill": True}),
        "eval": ("evaluate", {"model": home / "runs/student", "data_dir": task, "splits": ["dev"]}),
        "augmented": ("augment", {
            "pretrained_bert_model": model, "data_path": home / "lines.txt", "unlabelled": True, "p": 0.9,
        }),
    }  # fmt: skip
    steps = []
    for name, (stage, options) in stages.items():
        if stage == "task_distill":
            options |= {"teacher_model": teacher, "data_dir": task}
        arguments = (
            (common if stage in {"prepare_corpus", "evaluate", "augment"} else training)
            | options
            | {"output_dir": home / "runs" / name}
        )
        arguments = {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()}
        steps.append({"name": name, "stage": stage, "args": arguments})
    (home / "recipe.yaml").write_text(yaml.safe_dump({"name": "all", "stages": steps}))
    pipeline.main([str(home / "recipe.yaml")])
    plt.figure(figsize=(1, 1)).savefig(home / "report.png")
    with Tracker(TrackingOptions(**tracking), "report", home / "runs/report", True, {}) as tracker:
        tracker.log_image(home / "report.png")
    return home


@pytest.fixture(scope="session")
def chain_files(chain) -> dict[str, Path]:
    """The offline file of each step by name; there is one of each."""
    files = {folder.name: wandb_files.run_files(folder) for folder in (chain / "runs").glob("[!.]*")}
    assert {name: len(found) for name, found in files.items()} == dict.fromkeys(files, 1)
    return {name: found[0] for name, found in files.items()}


@pytest.fixture
def server():
    """A wandb server of one's own; see wandb_server."""
    with WandbServer() as running:
        yield running


@pytest.fixture
def online(server, monkeypatch, tmp_path):
    """wandb as it is with a key, and that server."""
    monkeypatch.delenv("WANDB_MODE")
    for name, value in server.environment(tmp_path).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def sync(online):
    """sync(folder): the documented command, to that server."""

    def run(folder: Path) -> None:
        wandb = f"{sys.executable} -m wandb"
        command = f"find {folder} -type d -name wandb -execdir {wandb} sync --yes ';'"
        result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode == 0, result.stdout + result.stderr

    return run
