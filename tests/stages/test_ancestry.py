"""What an exported student's card says of the runs behind it."""

import shutil

import pytest
from stage_runs import flags

from tinybert_dist.ancestry import ancestry
from tinybert_dist.config import parse
from tinybert_dist.files import read_json
from tinybert_dist.stages import export


def test_the_chain_from_student_to_teacher_with_data_steps_and_scores(
    workspace, general_student, step_1, step_2
):
    rows = ancestry(step_2)
    assert [row["made by"] for row in rows] == [
        "task distillation, step 2",
        "task distillation, step 1",
        "general distillation",
        None,  # the teacher, which no run here has made
    ]
    student, first, general, teacher = rows
    assert student["student_model"] == first["model"] and first["student_model"] == general["model"]
    assert {row["teacher_model"] for row in rows[:3]} == {"teacher"} == {teacher["model"]}
    for row, folder in zip(rows, (step_2, step_1, general_student), strict=False):
        identity = read_json(folder / "run.json")["identity"]
        source = "train_file_path" if row is general else "data_dir"
        name = "corpus.txt" if row is general else "task"
        assert row["data"] == f"{name} ({identity[source]})"
        assert row["steps"] == read_json(folder / "outcome.json")["step"]
        assert (row["batch"], float(row["learning rate"])) == ("8", 1e-3)
    score = read_json(step_2 / "eval_results.json")["score"]
    assert student["score"] == f"accuracy {score:.4f} (dev)" and first["score"] is None
    assert len({row["weights"] for row in rows}) == 4


def test_a_folder_that_changed_since_is_known_by_its_record_alone(step_1, step_2, tmp_path):
    moved = tmp_path / "step_2"
    shutil.copytree(step_2, moved)
    options = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(options.replace(str(step_1), str(moved)))  # other weights stand there
    first = ancestry(moved)[1]
    assert (
        first["made by"] == "task distillation, step 1" and first["weights"] == ancestry(step_1)[0]["weights"]
    )
    assert first["data"] is first["steps"] is first["learning rate"] is None


def test_somebody_elses_model_is_its_name(workspace):
    (row,) = ancestry(workspace / "teacher")
    assert row["model"] == "teacher" and row["weights"]
    assert {name for name, value in row.items() if value is not None} == {"model", "weights"}
    assert [row["model"] for row in ancestry("bert-base-uncased")] == ["bert-base-uncased"]


def test_the_exported_card_has_teacher_general_student_data_and_settings(workspace, step_2, tmp_path):
    options = {"model": step_2, "output_dir": tmp_path / "served", "formats": "transformers"}
    options |= {"length_tokens": 8, "batch_size": 1, "repeats": 3, "wandb_mode": "disabled"}
    record = export.run(parse(export.ExportConfig, flags(options)))
    assert record["max_length"] == 32, "as the student was trained"
    card = (tmp_path / "served" / "README.md").read_text()
    assert "The method is TinyBERT" in card and "| Teacher | teacher |" in card
    for row in ancestry(step_2):
        line = next(line for line in card.splitlines() if line.startswith(f"| {row['model']} |"))
        assert all(str(row[name]) in line for name in ("data", "made by", "weights") if row[name])
    assert "| learning_rate | 0.001 |" in card and "| pred_distill | true |" in card
    score = read_json(step_2 / "eval_results.json")["splits"]["dev"]["accuracy"]
    assert f"| dev accuracy | {score:.4f} |" in card
    lineage = read_json(tmp_path / "served" / "lineage.json")
    assert lineage["made_from"]["student_model"] == read_json(step_2 / "lineage.json")
    assert not [place for place in (str(workspace), str(step_2), str(tmp_path)) if place in card]


@pytest.mark.parametrize("damage", ["", "{", "[]"])
def test_a_damaged_lineage_does_not_stop_an_export(step_2, tmp_path, damage):
    copy = tmp_path / "copy"
    shutil.copytree(step_2, copy)
    (copy / "lineage.json").write_text(damage)
    (row,) = ancestry(copy)
    assert row["model"] == "copy" and row["steps"] == 4
