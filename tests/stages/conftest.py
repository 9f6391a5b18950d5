import json
import string
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "reference"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="session")
def plain_student(workspace):
    """A student config without dropout: two runs of other layouts draw nothing different."""
    config = json.loads((workspace / "student.json").read_text())
    path = workspace / "student_without_dropout.json"
    path.write_text(json.dumps(config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    return path


@pytest.fixture(scope="session")
def general_student(workspace):
    """The finished folder of a short general distillation."""
    from stage_runs import general

    folder = workspace / "general_student"
    assert general(workspace, folder)["outcome"] == "finished"
    return folder


@pytest.fixture(scope="session")
def reference_folders(tmp_path_factory, sentences):
    """Folders as the original code leaves them: teacher/ and student/ of a task with 3 classes, general/ with
    step_N files only, task/ with data whose text the made-up vocabulary of 200 entries covers."""
    folder = tmp_path_factory.mktemp("reference")
    facts = json.loads((FIXTURE / "reference.json").read_text())
    with np.load(FIXTURE / "reference_float64.npz") as file:
        arrays = {name: torch.from_numpy(file[name]).float() for name in file.files if "/" in name}
    words = Counter(w for s in sentences for w in s.lower().split() if w.isalpha() and len(w) > 1)
    pieces = [*SPECIAL, *string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase)]
    pieces += [word for word, _ in words.most_common(200 - len(pieces))]
    names = {
        "teacher": ("teacher", "pytorch_model.bin"),
        "student": ("student_cls", "pytorch_model.bin"),
        "general": ("student_pre", "step_20_pytorch_model.bin"),
    }
    for name, (part, weights) in names.items():
        (folder / name).mkdir()
        state = {k.removeprefix(f"{part}/"): v for k, v in arrays.items() if k.startswith(f"{part}/")}
        torch.save(state, folder / name / weights)
        config = facts["teacher_config" if part == "teacher" else "student_config"]
        assert "model_type" not in config and "num_labels" not in config
        (folder / name / "config.json").write_text(json.dumps(config))
        (folder / name / "vocab.txt").write_text("\n".join(pieces) + "\n")
    # an older save of the same run: the newest counts
    old = {k: v + 1 for k, v in state.items()}
    torch.save(old, folder / "general" / "step_3_pytorch_model.bin")
    (folder / "task").mkdir()
    for name, part in (("train", sentences[:48]), ("dev", sentences[48:72])):
        lines = [f"{s}\t{('short', 'middle', 'long')[min(len(s) // 60, 2)]}" for s in part]
        (folder / "task" / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    (folder / "corpus.txt").write_text("\n".join(sentences[:80]) + "\n")
    return folder


@pytest.fixture(scope="session")
def strong_teacher(workspace, tmp_path_factory):
    """A fine-tuned teacher: its predictions are far from even, and of both classes."""
    from stage_runs import finetune

    folder = tmp_path_factory.mktemp("strong") / "teacher"
    finetune(workspace, folder, max_steps=60, learning_rate=2e-3, train_batch_size=32, eval_step=1000)
    return folder


@pytest.fixture(scope="session")
def step_1(workspace, general_student, tmp_path_factory):
    """The finished folder of task distillation's step 1."""
    from stage_runs import task

    folder = tmp_path_factory.mktemp("step_1") / "run"
    assert task(workspace, folder, student_model=general_student)["outcome"] == "finished"
    return folder


@pytest.fixture(scope="session")
def step_2(workspace, step_1, tmp_path_factory):
    """The finished folder of step 2."""
    from stage_runs import task

    folder = tmp_path_factory.mktemp("step_2") / "run"
    outcome = task(workspace, folder, student_model=step_1, pred_distill=True, max_steps=4, eval_step=2)
    assert outcome["outcome"] == "finished"
    return folder


@pytest.fixture
def teacher_rows(monkeypatch, workspace):
    """Rows the prediction pass of a teacher (48 wide) computed, in order."""
    from tinybert_dist.distill.capture import encode
    from tinybert_dist.training import evaluation

    seen = []

    def count(model, batch, *arguments):
        if model.config.hidden_size == 48:
            seen.extend(batch.rows_B.tolist())
        return encode(model, batch, *arguments)

    monkeypatch.setattr(evaluation, "encode", count)
    monkeypatch.setattr("tinybert_dist.distill.teacher.encode", count)
    assert seen == []
    return seen
