"""Runs of the four training and evaluation stages in this process, as a command line would start them."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file

from tinybert_dist.config import parse
from tinybert_dist.files import read_json
from tinybert_dist.stages import evaluate, finetune_teacher, general_distill, task_distill


def flags(options):
    """--name value ... of a dict; a list: several values, True: a bare switch, None: left out."""
    argv = []
    for name, value in options.items():
        if value is None:
            continue
        values = [] if value is True else value if isinstance(value, list) else [value]
        argv += [f"--{name}", *map(str, values)]
    return argv


def general(workspace, output_dir, **changes):
    options = {
        "train_file_path": workspace / "corpus.txt",
        "teacher_model": workspace / "teacher",
        "student_model": workspace / "student.json",
        "output_dir": output_dir,
        "max_seq_len": 32,
        "train_batch_size": 8,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "wandb_mode": "disabled",
    } | changes
    return general_distill.run(parse(general_distill.GeneralDistillConfig, flags(options)))


def task(workspace, output_dir, **changes):
    options = {
        "teacher_model": workspace / "teacher",
        "data_dir": workspace / "task",
        "output_dir": output_dir,
        "max_seq_length": 32,
        "max_steps": 2,
        "train_batch_size": 8,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "wandb_mode": "disabled",
    } | changes
    return task_distill.run(parse(task_distill.TaskDistillConfig, flags(options)))


def finetune(workspace, output_dir, **changes):
    options = {
        "teacher_model": workspace / "teacher",
        "data_dir": workspace / "task",
        "output_dir": output_dir,
        "max_seq_length": 32,
        "max_steps": 2,
        "train_batch_size": 8,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "wandb_mode": "disabled",
    } | changes
    return finetune_teacher.run(parse(finetune_teacher.FinetuneTeacherConfig, flags(options)))


def score(workspace, output_dir, **changes):
    options = {"data_dir": workspace / "task", "output_dir": output_dir, "max_seq_length": 32} | changes
    return evaluate.run(parse(evaluate.EvaluateConfig, flags(options)))


def rows(folder):
    """metrics.jsonl, one dict a line."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    """The loss terms of every logged step."""
    return [{k: v for k, v in row.items() if k.startswith("loss/")} for row in rows(folder)]


def predictions(folder):
    """predictions.tsv as dicts by column."""
    header, *lines = (Path(folder) / "predictions.tsv").read_text().splitlines()
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


def weights(folder):
    """The saved tensors of a model folder."""
    return load_file(folder / "model.safetensors")


def copy_model(source, folder):
    """A model folder that is no run."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("checkpoints", "run.json", "outcome.json"))
    return folder


def edit_config(folder, **changes):
    """config.json of a model folder with other values."""
    config = read_json(folder / "config.json") | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def own_task(folder, rows, header="sentence\tlabel", dev=None):
    """A task folder of one's own: the same rows as train and dev unless `dev` is given."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows), ("dev", rows if dev is None else dev)):
        (folder / f"{name}.tsv").write_text("\n".join([header, *part]) + "\n")
    return folder
