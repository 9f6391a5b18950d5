"""A good configuration of every stage, and an account of the mistakes that were seeded into them."""

import json
import shutil
import time

import pytest
import torch
from seeded import MAX_SECONDS, complaints, findings_of
from tiny_masked_lm import save_masked_lm
from transformers import BertConfig, BertModel

from tinybert_dist.models import load_tokenizer, save_model

TABLE = []


def pytest_sessionfinish(session):
    """The table of what was seeded and caught; shown under -s."""
    if TABLE and session.config.option.capture == "no":
        print(f"\n{'mistake':<52} {'caught by':<17} {'as':<8} seconds")
        for name, check, severity, seconds in TABLE:
            print(f"{name:<52} {check:<17} {severity:<8} {seconds:.2f}")


@pytest.fixture
def catches(request):
    """catches(stage, options, message): the mistake is found in time, and the message holds the regex."""
    import re

    def run(stage, options, message, severity="error", is_launched=False):
        started_at = time.monotonic()
        findings = findings_of(stage, options, is_launched)
        seconds = time.monotonic() - started_at
        found = [f for f in complaints(findings) if re.search(message, str(f))]
        assert found, "\n".join(f"{f.severity} {f.check}: {f}" for f in findings)
        assert found[0].severity == severity and found[0].remedy, found[0]
        assert seconds < MAX_SECONDS
        name = request.node.callspec.id if hasattr(request.node, "callspec") else ""
        name = f"{request.node.originalname.removeprefix('test_')} {name}".replace("_", " ").strip()
        TABLE.append((name, found[0].check, found[0].severity, seconds))
        return found[0]

    return run


@pytest.fixture(scope="session")
def general_student(workspace, tmp_path_factory):
    """A folder as general distillation leaves it: encoder, the teacher's tokenizer, projections."""
    folder = tmp_path_factory.mktemp("general") / "student"
    values = json.loads((workspace / "student.json").read_text())
    tokenizer = load_tokenizer(workspace / "teacher")
    config = BertConfig(**values | {"vocab_size": len(tokenizer)})
    projections = {"fit_dense.weight": torch.zeros(48, 24), "fit_dense.bias": torch.zeros(48)}
    save_model(BertModel(config), tokenizer, folder, card="a student\n", projections=projections)
    return folder


@pytest.fixture(scope="session")
def masked_lm(tmp_path_factory):
    return save_masked_lm(tmp_path_factory.mktemp("masked_lm") / "model")


@pytest.fixture
def good(workspace, general_student, masked_lm, tmp_path):
    """good(stage): options that every check should be silent about; the caller spoils them."""
    data = tmp_path / "task"
    shutil.copytree(workspace / "task", data)
    (tmp_path / "review.txt").write_text("the movie was great\tyes\nnot a bad film\tno\n" * 20)
    training = {"output_dir": tmp_path / "run", "wandb_mode": "offline", "train_batch_size": 8}
    task = {"data_dir": data, "max_seq_length": 64}
    stages = {
        "prepare_corpus": {
            "train_file_path": workspace / "corpus.txt",
            "teacher_model": workspace / "teacher",
            "output_dir": tmp_path / "tokens",
        },
        "general_distill": training
        | {
            "train_file_path": workspace / "corpus.txt",
            "teacher_model": workspace / "teacher",
            "student_model": workspace / "student.json",
            "max_seq_length": 64,
            "max_steps": 100,
        },
        "finetune_teacher": training | task | {"teacher_model": workspace / "teacher"},
        "augment": {"pretrained_bert_model": masked_lm, "data_path": tmp_path / "review.txt"},
        "task_distill": training
        | task
        | {"teacher_model": workspace / "teacher", "student_model": general_student},
        "evaluate": task | {"model": workspace / "teacher", "output_dir": tmp_path / "eval"},
    }
    return lambda stage: dict(stages[stage])
