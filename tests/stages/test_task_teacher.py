"""What the teacher of task distillation says, in whose label order, and what it costs."""

import shutil

import numpy as np
import pytest
from safetensors.torch import save_file
from stage_runs import copy_model, edit_config, losses, own_task, predictions, score, task, weights

from tinybert_dist.config import UserError
from tinybert_dist.files import read_json
from tinybert_dist.training import targets


def test_step_2_learns_the_teacher_and_not_the_labels(workspace, step_1, strong_teacher, tmp_path):
    """Every label is wrong by the teacher's lights; the student agrees with the teacher all the same."""
    score(workspace, tmp_path / "teacher", student_model=strong_teacher)
    said = predictions(tmp_path / "teacher")
    assert 0.2 < np.mean([row["prediction"] == "yes" for row in said]) < 0.8, "a teacher with two opinions"
    opposite = {"yes": "no", "no": "yes"}
    wrong = [f"{row['text']}\t{opposite[row['prediction']]}" for row in said]
    data = own_task(tmp_path / "task", wrong)
    options = {"student_model": step_1, "data_dir": data, "teacher_model": strong_teacher, "max_steps": 60}
    options |= {"learning_rate": 5e-3, "eval_step": 1000}
    task(workspace, tmp_path / "run", pred_distill=True, train_batch_size=16, **options)
    agree = [
        a["prediction"] == b["prediction"] for a, b in zip(predictions(tmp_path / "run"), said, strict=True)
    ]
    assert np.mean(agree) > 0.9
    assert read_json(tmp_path / "run" / "eval_results.json")["score"] < 0.1


def test_labels_are_mapped_by_name(workspace, step_1, strong_teacher, tmp_path):
    """The same teacher with its classes in the other order teaches, and scores, exactly the same."""
    reverse = copy_model(strong_teacher, tmp_path / "reverse")
    state = weights(reverse)
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name].flip(0).contiguous()
    save_file(state, reverse / "model.safetensors", metadata={"format": "pt"})
    edit_config(reverse, id2label={"0": "yes", "1": "no"}, label2id={"yes": 0, "no": 1})
    for name, teacher in (("one", strong_teacher), ("two", reverse)):
        options = {"student_model": step_1, "teacher_model": teacher, "pred_distill": True}
        task(workspace, tmp_path / name, **options)
        score(workspace, tmp_path / f"score_{name}", student_model=teacher)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert (tmp_path / "one" / "predictions.tsv").read_bytes() == (
        tmp_path / "two" / "predictions.tsv"
    ).read_bytes()
    assert predictions(tmp_path / "score_one") == predictions(tmp_path / "score_two")
    # a student with its classes in the other order keeps them, and is taught by name too
    student = edit_config(
        copy_model(step_1, tmp_path / "student"),
        id2label={"0": "yes", "1": "no"},
        label2id={"yes": 0, "no": 1},
    )
    state = weights(student)
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name].flip(0).contiguous()
    save_file(state, student / "model.safetensors", metadata={"format": "pt"})
    options = {"student_model": student, "teacher_model": reverse, "pred_distill": True}
    task(workspace, tmp_path / "three", **options)
    for ours, theirs in zip(losses(tmp_path / "three"), losses(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert read_json(tmp_path / "three" / "config.json")["id2label"] == {"0": "yes", "1": "no"}
    ours, theirs = predictions(tmp_path / "three"), predictions(tmp_path / "one")
    assert [row["prediction"] for row in ours] == [row["prediction"] for row in theirs]


def test_the_teacher_runs_once_for_every_row_however_many_epochs(
    workspace, step_1, tmp_path, teacher_rows, monkeypatch
):
    options = {"student_model": step_1, "pred_distill": True, "max_steps": None, "num_train_epochs": 3}
    options |= {"train_batch_size": 40, "save_step": 2}
    outcome = task(workspace, tmp_path / "run", max_seconds=1e-6, **options)
    assert outcome["outcome"] == "interrupted"
    assert sorted(teacher_rows) == list(range(160))
    outcome = task(workspace, tmp_path / "run", **options)
    assert outcome["step"] == 12
    assert len(teacher_rows) == 160
    assert (tmp_path / "run" / "teacher_logits" / "logits-00000.npy").exists()


@pytest.mark.parametrize("name", ["logits-00000.npy", "logits.json"])
def test_damaged_kept_logits_are_computed_anew(workspace, step_1, step_2, tmp_path, teacher_rows, name):
    options = {"student_model": step_1, "pred_distill": True, "max_steps": 4, "eval_step": 2}
    task(workspace, tmp_path / "run", max_seconds=1e-6, **options)
    path = tmp_path / "run" / "teacher_logits" / name
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    task(workspace, tmp_path / "run", **options)
    assert sorted(teacher_rows) == sorted([*range(160)] * 2)
    assert losses(tmp_path / "run") == losses(step_2)


def test_logits_are_kept_block_by_block(
    workspace, step_1, strong_teacher, tmp_path, teacher_rows, monkeypatch
):
    """A first pass that dies in its second block of three, then a damaged block: only those run again."""
    options = {"student_model": step_1, "teacher_model": strong_teacher, "pred_distill": True}
    options |= {"max_steps": 4, "eval_step": 2, "eval_batch_size": 4}  # several micro-batches a block
    task(workspace, tmp_path / "one_block", **options)
    teacher_rows.clear()
    monkeypatch.setattr(targets, "BLOCK_ROWS", 64)
    with monkeypatch.context() as patch:
        whole = targets.logits_of

        def die_in_the_second_block(*arguments):
            if arguments[-1].start == 64:
                raise OSError("no space left")
            return whole(*arguments)

        patch.setattr(targets, "logits_of", die_in_the_second_block)
        with pytest.raises(OSError, match="no space left"):
            task(workspace, tmp_path / "run", **options)
    assert sorted(teacher_rows) == list(range(64))
    teacher_rows.clear()
    task(workspace, tmp_path / "run", max_seconds=1e-6, **options)
    assert sorted(teacher_rows) == list(range(64, 160))
    kept = tmp_path / "run" / "teacher_logits"
    content = bytearray((kept / "logits-00001.npy").read_bytes())
    content[-1] ^= 1
    (kept / "logits-00001.npy").write_bytes(content)
    teacher_rows.clear()
    task(workspace, tmp_path / "run", **options)
    assert sorted(teacher_rows) == list(range(64, 128))
    blocks = [np.load(file) for file in sorted(kept.glob("*.npy"))]
    assert [len(block) for block in blocks] == [64, 64, 32]
    assert all(block.dtype == np.float32 and block.flags.c_contiguous for block in blocks)
    for ours, theirs in zip(losses(tmp_path / "run"), losses(tmp_path / "one_block"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_kept_logits_of_another_label_order_are_not_used(workspace, step_1, tmp_path, teacher_rows):
    """Our own message asks to correct id2label: logits kept in the wrong order must not survive it."""
    teacher = copy_model(workspace / "teacher", tmp_path / "teacher")
    options = {"student_model": step_1, "teacher_model": teacher, "pred_distill": True}
    task(workspace, tmp_path / "run", **options)
    edit_config(teacher, id2label={"0": "yes", "1": "no"}, label2id={"yes": 0, "no": 1})
    with pytest.raises(UserError, match="label_order"):
        task(workspace, tmp_path / "run", **options)
    for path in (tmp_path / "run").iterdir():
        if path.name != "teacher_logits":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    task(workspace, tmp_path / "run", **options)
    task(workspace, tmp_path / "fresh", **options)
    assert losses(tmp_path / "run") == losses(tmp_path / "fresh")


def test_a_finished_or_foreign_folder_costs_no_teacher_forward(workspace, step_1, step_2, teacher_rows):
    options = {"student_model": step_1, "pred_distill": True}
    assert task(workspace, step_2, max_steps=4, eval_step=2, **options)["outcome"] == "finished"
    with pytest.raises(UserError, match="holds another run"):
        task(workspace, step_1, **options)
    assert teacher_rows == [] and not (step_1 / "teacher_logits").exists()
