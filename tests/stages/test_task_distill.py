"""Task distillation as a user meets it: folders in and out, switches."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stage_runs import copy_model, edit_config, finetune, losses, own_task, predictions, rows, task, weights
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tinybert_dist.config import UserError
from tinybert_dist.files import read_json, sha256_of
from tinybert_dist.models import load_classifier

# --- what comes out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["step_1", "step_2"])
def test_the_folder_is_a_whole_transformers_model(request, step, workspace):
    folder = request.getfixturevalue(step)
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.config.id2label == {0: "no", 1: "yes"} and model.config.label2id == {"no": 0, "yes": 1}
    assert model.config.problem_type == "single_label_classification"
    answer = pipeline("text-classification", model=str(folder))("Is this the value?")
    assert answer[0]["label"] in {"no", "yes"}
    card = (folder / "README.md").read_text()
    assert str(workspace) not in card and "/tmp" not in card and "AutoModelForSequenceClassification" in card
    names = {path.name for path in folder.iterdir()}
    assert {
        *("config.json", "model.safetensors", "tokenizer.json", "README.md", "metrics.jsonl"),
        *("config.yaml", "outcome.json", "checkpoints"),
    } <= names


def test_step_1_scores_nothing_because_its_head_is_not_trained(step_1, general_student):
    names = {path.name for path in step_1.iterdir()}
    assert "projections.safetensors" in names
    assert not names & {"eval_results.json", "eval_results.txt", "predictions.tsv"}
    assert {name.split("/")[1] for name in losses(step_1)[0]} == {"total", "attention", "hidden"}
    assert not any(name.startswith("eval/") for row in rows(step_1) for name in row)


def test_step_2_trains_the_predictions_alone_and_says_what_they_score(step_2):
    assert set(losses(step_2)[0]) == {"loss/total", "loss/prediction"}
    results = read_json(step_2 / "eval_results.json")
    assert results["task"] == "task" and results["selection_metric"] == "accuracy"
    assert results["score"] == results["splits"]["dev"]["accuracy"]
    assert results["splits"]["dev"]["num_examples"] == 60
    lines = dict(line.split(" = ") for line in (step_2 / "eval_results.txt").read_text().splitlines())
    assert float(lines["score"]) == float(lines["dev/accuracy"]) == results["score"]
    assert int(lines["step"]) == results["step"]
    right = [row["label"] == row["prediction"] for row in predictions(step_2)]
    assert sum(right) / len(right) == pytest.approx(results["score"])


def test_predictions_are_those_of_the_saved_model(step_2):
    """transformers alone, one sentence at a time, against the packed evaluation."""
    model = AutoModelForSequenceClassification.from_pretrained(step_2).eval()
    tokenizer = AutoTokenizer.from_pretrained(step_2)
    for row in predictions(step_2)[:8]:
        inputs = tokenizer(row["text"], return_tensors="pt", truncation=True, max_length=32)
        with torch.no_grad():
            probability = model(**inputs).logits.softmax(-1)[0, 1]
        assert float(row["p(yes)"]) == pytest.approx(float(probability), abs=2e-6)


def test_step_1_leaves_pooler_and_head_as_they_were(workspace, general_student, tmp_path):
    task(workspace, tmp_path / "run", student_model=general_student, max_steps=3, weight_decay=0.5)
    saved, start = weights(tmp_path / "run"), weights(general_student)
    assert torch.equal(saved["bert.pooler.dense.weight"], start["pooler.dense.weight"])
    moved = "encoder.layer.0.output.dense.weight"
    assert not torch.equal(saved[f"bert.{moved}"], start[moved])


def test_two_runs_give_the_same_bits(workspace, step_1, step_2, tmp_path):
    task(workspace, tmp_path / "again", student_model=step_1, pred_distill=True, max_steps=4, eval_step=2)
    assert sha256_of(tmp_path / "again" / "model.safetensors") == sha256_of(step_2 / "model.safetensors")


# --- switches -----------------------------------------------------------------------------------------------


def test_options_of_the_other_step_are_named(workspace, step_1, tmp_path, caplog):
    options = {"student_model": step_1, "pred_distill": True, "attention_weight": 0.5, "dry_run": True}
    task(workspace, tmp_path / "run", temperature=2.0, **options)
    named = [record.message for record in caplog.records if "no effect" in record.message]
    assert named == ["--attention_weight has no effect: this step learns predictions"]


def test_temperature(workspace, step_1, strong_teacher, tmp_path):
    options = {"student_model": step_1, "teacher_model": strong_teacher, "pred_distill": True, "max_steps": 1}
    for temperature in (1, 4):
        task(workspace, tmp_path / str(temperature), temperature=temperature, **options)
    one, four = (losses(tmp_path / t)[0]["loss/prediction"] for t in ("1", "4"))
    # two classes at a high temperature: both sides near even, the cross-entropy near log 2
    assert abs(four - np.log(2)) < 0.02 and one != pytest.approx(four, rel=1e-3)
    with pytest.raises(UserError, match=r"--temperature 0\.0: must be greater than 0"):
        task(workspace, tmp_path / "zero", temperature=0, **options)


def test_reference_averaging_divides_the_prediction_loss_by_the_classes(workspace, general_student, tmp_path):
    options = {"student_model": general_student, "pred_distill": True, "max_steps": 1}
    quiet = edit_config(
        copy_model(general_student, tmp_path / "quiet"),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    options["student_model"] = quiet
    task(workspace, tmp_path / "ours", **options)
    task(workspace, tmp_path / "theirs", reference_averaging=True, **options)
    ours, theirs = (losses(tmp_path / name)[0]["loss/prediction"] for name in ("ours", "theirs"))
    assert theirs == pytest.approx(ours / 2, rel=1e-5)


@pytest.mark.parametrize("pred_distill", [None, True], ids=["step 1", "step 2"])
@pytest.mark.parametrize(
    "changes", [{"layout": "padded"}, {"gradient_accumulation_steps": 4}, {"micro_batch_tokens": 40}], ids=str
)
def test_how_a_step_is_computed_does_not_change_it(
    workspace, general_student, tmp_path, changes, pred_distill
):
    student = edit_config(
        copy_model(general_student, tmp_path / "quiet"),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    options = {"student_model": student, "pred_distill": pred_distill, "max_steps": 3}
    task(workspace, tmp_path / "one", **options)
    task(workspace, tmp_path / "two", **options, **changes)
    for ours, theirs in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_unlabelled_rows_are_learned_from(workspace, general_student, sentences, tmp_path, teacher_rows):
    (tmp_path / "more.txt").write_text("\n".join(sentences[300:340]) + "\n")
    options = {"student_model": general_student, "unlabelled_file_path": tmp_path / "more.txt"}
    options |= {"max_steps": None, "num_train_epochs": 1, "train_batch_size": 50}
    outcome = task(workspace, tmp_path / "one", **options)
    assert outcome["step"] == 4  # 200 rows, not 160
    assert set(teacher_rows) == set(range(200))
    teacher_rows.clear()
    outcome = task(workspace, tmp_path / "two", pred_distill=True, **options)
    kept = np.load(tmp_path / "two" / "teacher_logits" / "logits-00000.npy")
    assert kept.shape == (200, 2) and outcome["step"] == 4 and sorted(teacher_rows) == list(range(200))


def test_augmented_rows_replace_the_train_file(workspace, general_student, tmp_path):
    data = tmp_path / "task"
    shutil.copytree(workspace / "task", data)
    with pytest.raises(UserError, match=r"--aug_train: .* holds no train_aug file. Run the augment stage"):
        task(workspace, tmp_path / "no", data_dir=data, student_model=general_student, aug_train=True)
    lines = (data / "train.tsv").read_text().splitlines()
    (data / "train_aug.tsv").write_text("\n".join([*lines, *lines[1:]]) + "\n")
    options = {"max_steps": None, "num_train_epochs": 1, "train_batch_size": 160}
    outcome = task(
        workspace, tmp_path / "run", data_dir=data, student_model=general_student, aug_train=True, **options
    )
    assert outcome["step"] == 2


def test_regression_learns_the_teachers_values(workspace, general_student, sentences, tmp_path):
    """STS-B-like pairs; the gold scores are far from the teacher's, which is what counts."""
    pairs = [f"{a}\t{b}\t{len(a) / 40:.2f}" for a, b in zip(sentences[:64], sentences[64:128], strict=True)]
    data = own_task(tmp_path / "task", pairs, header="sentence1\tsentence2\tscore")
    options = {"data_dir": data, "task_mode": "regression", "label_column": "score"}
    outcome = finetune(workspace, tmp_path / "teacher", replace_head=True, **options)
    assert {"dev/pearson", "dev/spearman", "dev/pearson_spearman"} <= set(outcome["result"])
    assert outcome["result"]["score"] == outcome["result"]["dev/pearson_spearman"]
    teacher = tmp_path / "teacher"
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    assert model.config.problem_type == "regression" and model.config.num_labels == 1
    state = weights(teacher)
    state["classifier.weight"] *= 20
    state["classifier.bias"] -= 10
    save_file(state, teacher / "model.safetensors", metadata={"format": "pt"})
    options |= {"teacher_model": teacher, "pred_distill": True, "student_model": general_student}
    outcome = task(
        workspace, tmp_path / "run", max_steps=60, learning_rate=2e-2, train_batch_size=16, **options
    )
    assert {"dev/pearson", "dev/spearman"} <= set(outcome["result"])
    assert losses(tmp_path / "run")[0]["loss/prediction"] > 50
    said = np.array([float(row["prediction"]) for row in predictions(tmp_path / "run")])
    assert said.mean() < -2, "the teacher says about -10, the labels are above 0"
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_a_step_with_fewer_rows_than_micro_batches(workspace, general_student, tmp_path):
    """The last step of each epoch holds one row, cut into four micro-batches of which three are empty."""
    student = edit_config(
        copy_model(general_student, tmp_path / "quiet"),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    data = own_task(tmp_path / "task", (workspace / "task" / "train.tsv").read_text().splitlines()[1:10])
    options = {"data_dir": data, "student_model": student, "max_steps": None, "num_train_epochs": 2}
    task(workspace, tmp_path / "one", **options)
    task(workspace, tmp_path / "four", gradient_accumulation_steps=4, **options)
    assert len(losses(tmp_path / "four")) == 4
    for ours, theirs in zip(losses(tmp_path / "four"), losses(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_clipping_can_be_switched_off(workspace, general_student, tmp_path):
    task(workspace, tmp_path / "clipped", student_model=general_student, max_grad_norm=1e-3)
    task(workspace, tmp_path / "free", student_model=general_student, max_grad_norm=0)
    for name in ("clipped", "free"):
        row = rows(tmp_path / name)[0]
        assert 0.1 < row["grad_norm"] < 100, "the norm before clipping"
    assert losses(tmp_path / "clipped")[0] == losses(tmp_path / "free")[0]
    assert losses(tmp_path / "clipped")[1] != losses(tmp_path / "free")[1]


# --- the reference's folders --------------------------------------------------------------------------------


def test_reference_folders(reference_folders, tmp_path, monkeypatch):
    """relu-head teacher, student continued with its fit_dense, vocab.txt only, no label names."""
    options = {"teacher_model": reference_folders / "teacher", "data_dir": reference_folders / "task"}
    options |= {"student_model": reference_folders / "student", "labels": ["short", "middle", "long"]}
    options |= {"max_seq_length": 24, "learning_rate": 1e-9, "max_steps": 1}
    task(reference_folders, tmp_path / "one", **options)
    start = torch.load(reference_folders / "student" / "pytorch_model.bin", weights_only=True)
    projections = load_file(tmp_path / "one" / "projections.safetensors")
    for name in ("fit_dense.weight", "fit_dense.bias"):
        assert torch.allclose(projections[name], start[name], atol=1e-6)
    assert torch.allclose(weights(tmp_path / "one")["classifier.weight"], start["classifier.weight"])
    model, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "one", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert list(model.config.id2label.values()) == ["short", "middle", "long"]

    # the kept logits are those of the relu head, unless the plain head is asked for
    task(reference_folders, tmp_path / "two", pred_distill=True, **options)
    task(reference_folders, tmp_path / "plain", pred_distill=True, classifier_head="transformers", **options)
    teacher = load_classifier(reference_folders / "teacher").eval()
    assert isinstance(teacher.dropout, torch.nn.ReLU)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "two")
    text = (reference_folders / "task" / "train.tsv").read_text().splitlines()[1].split("\t")[0]
    with torch.no_grad():
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=24)
        expected = teacher(**inputs).logits[0]
    kept = [
        torch.from_numpy(np.load(tmp_path / name / "teacher_logits" / "logits-00000.npy"))
        for name in ("two", "plain")
    ]
    assert torch.allclose(kept[0][0], expected, atol=1e-5)
    assert not torch.allclose(kept[1][0], expected, atol=1e-3)
    assert (tmp_path / "two" / "eval_results.json").exists()
