"""Mistakes in data and models that task distillation names."""

import json
import shutil

import pytest
from safetensors.torch import save_file
from stage_runs import (
    copy_model,
    edit_config,
    general,
    own_task,
    task,
    weights,
)

from tinybert_dist.config import UserError
from tinybert_dist.files import read_json
from tinybert_dist.training.health import TrainingFailed


@pytest.mark.parametrize("pred_distill", [None, True], ids=["step 1", "step 2"])
def test_a_teacher_without_a_head_teaches_no_task(workspace, general_student, tmp_path, pred_distill):
    encoder = edit_config(copy_model(general_student, tmp_path / "encoder"))
    options = {"teacher_model": encoder, "student_model": general_student, "pred_distill": pred_distill}
    with pytest.raises(UserError, match=r"encoder has no trained classification head.*finetune_teacher"):
        task(workspace, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_label_names_of_teacher_and_data_differ(workspace, general_student, tmp_path):
    teacher = edit_config(
        copy_model(workspace / "teacher", tmp_path / "teacher"),
        id2label={"0": "negative", "1": "positive"},
        label2id={"negative": 0, "positive": 1},
    )
    with pytest.raises(
        UserError, match=r"its labels are negative, positive, the task's are no, yes.*id2label"
    ):
        task(workspace, tmp_path / "run", teacher_model=teacher, student_model=general_student)


def test_number_of_classes_of_teacher_and_data_differ(workspace, general_student, tmp_path):
    lines = ["one two\ta", "two three\tb", "three four\tc"] * 4
    data = own_task(tmp_path / "task", lines)
    with pytest.raises(UserError, match=r"teacher.*classifier has 2 outputs, the task needs 3"):
        task(workspace, tmp_path / "run", data_dir=data, student_model=general_student)


def test_label_outside_the_set_names_file_and_line(workspace, general_student, tmp_path, capsys):
    data = tmp_path / "task"
    shutil.copytree(workspace / "task", data)
    with (data / "dev.tsv").open("a") as file:
        file.write("one more sentence\tperhaps\n")
    options = {"data_dir": data, "student_model": general_student}
    with pytest.raises(
        UserError, match=r"dev\.tsv:62: label 'perhaps' .*Allowed: no, yes.*on_bad_record skip"
    ):
        task(workspace, tmp_path / "run", **options)
    capsys.readouterr()
    task(workspace, tmp_path / "skip", on_bad_record="skip", **options)
    summary = [x for x in capsys.readouterr().out.splitlines() if x.startswith("1 bad records passed over")]
    assert len(summary) == 1 and "dev.tsv:62" in summary[0]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("", r"train\.tsv"),
        ("sentence\tlabel\n", r"train\.tsv"),
        ("sentence\tlabel\na b\tyes\nc d\tyes\n", r"1 label"),
    ],
    ids=["no byte", "header only", "one class"],
)
def test_train_files_nothing_can_be_learned_from(workspace, general_student, tmp_path, train, message):
    data = tmp_path / "task"
    shutil.copytree(workspace / "task", data)
    (data / "train.tsv").write_text(train)
    with pytest.raises(UserError, match=message):
        task(workspace, tmp_path / "run", data_dir=data, student_model=general_student)


def test_missing_folder_file_and_column(workspace, general_student, tmp_path):
    options = {"student_model": general_student}
    with pytest.raises(UserError, match=r"--data_dir .*none: no such folder"):
        task(workspace, tmp_path / "run", data_dir=tmp_path / "none", **options)
    data = tmp_path / "task"
    shutil.copytree(workspace / "task", data)
    with pytest.raises(UserError, match=r"--label_column gold: .*no such column. It has: sentence, label"):
        task(workspace, tmp_path / "run", data_dir=data, label_column="gold", **options)
    (data / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"dev.* is missing. It holds: train\.tsv"):
        task(workspace, tmp_path / "run", data_dir=data, **options)
    with pytest.raises(UserError, match=r"SST2x|task"):
        task(workspace, tmp_path / "run", data_dir=tmp_path, task_name="SST2x", **options)


def test_sequences_longer_than_the_position_table(workspace, general_student, tmp_path):
    with pytest.raises(UserError, match="--max_seq_length 128 is over the 64 positions"):
        task(workspace, tmp_path / "run", student_model=general_student, max_seq_length=128)


def test_vocabularies_differ(workspace, reference_folders, tmp_path):
    with pytest.raises(UserError, match=r"vocabularies differ: student .*student has 200 entries, teacher"):
        task(workspace, tmp_path / "run", student_model=reference_folders / "student")


def test_student_deeper_than_its_teacher(workspace, strong_teacher, tmp_path):
    config = json.loads((workspace / "student.json").read_text())
    (tmp_path / "deep.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    options = {"student_model": tmp_path / "deep.json", "layer_map": "1,2,3,4,4", "max_steps": 1}
    general(workspace, tmp_path / "deep", **options)
    with pytest.raises(UserError, match=r"--layer_map: .*got 5 > 4.*explicit pairs"):
        task(workspace, tmp_path / "run", student_model=tmp_path / "deep")


def test_nan_in_the_teachers_head_stops_step_2(workspace, step_1, tmp_path):
    teacher = copy_model(workspace / "teacher", tmp_path / "teacher")
    state = weights(teacher)
    state["classifier.bias"][0] = float("nan")
    save_file(state, teacher / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingFailed, match=r"step 1: .*not finite \(prediction\)"):
        task(workspace, tmp_path / "run", teacher_model=teacher, student_model=step_1, pred_distill=True)
    assert read_json(tmp_path / "run" / "outcome.json")["outcome"] == "failed"
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_training_without_a_teacher_is_refused(workspace, step_1, tmp_path):
    with pytest.raises(UserError, match="needs --teacher_model"):
        task(workspace, tmp_path / "run", teacher_model=None, student_model=step_1)


def test_the_folder_of_another_stage_is_left_as_it_is(workspace, general_student, tmp_path):
    """Refused before anything is prepared in it: its own tokens are those of another kind."""
    folder = tmp_path / "general"
    shutil.copytree(general_student, folder)
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    with pytest.raises(
        UserError, match=r"holds another run \(stage: 'general_distill' there, 'task_distill_int"
    ):
        task(workspace, folder, student_model=general_student)
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before
