"""Task distillation as a user meets it: folders in and out, whose labels, the teacher's cost, mistakes."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stage_runs import finetune, general, losses, predictions, rows, score, task
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tinybert_dist.config import UserError
from tinybert_dist.distill.capture import encode
from tinybert_dist.files import read_json, sha256_of
from tinybert_dist.models import load_classifier
from tinybert_dist.training import evaluation
from tinybert_dist.training.health import TrainingFailed


def weights(folder):
    return load_file(folder / "model.safetensors")


def copy_model(source, folder):
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("checkpoints", "run.json", "outcome.json"))
    return folder


def edit_config(folder, **changes):
    config = read_json(folder / "config.json") | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def own_task(folder, rows, header="sentence\tlabel", dev=None):
    """A task folder of one's own: the same rows as train and dev unless `dev` is given."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows), ("dev", rows if dev is None else dev)):
        (folder / f"{name}.tsv").write_text("\n".join([header, *part]) + "\n")
    return folder


@pytest.fixture(scope="module")
def strong_teacher(workspace, tmp_path_factory):
    """A fine-tuned teacher: its predictions are far from even, and of both classes."""
    folder = tmp_path_factory.mktemp("strong") / "teacher"
    finetune(workspace, folder, max_steps=60, learning_rate=2e-3, train_batch_size=32, eval_step=1000)
    return folder


@pytest.fixture(scope="module")
def step_1(workspace, general_student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("step_1") / "run"
    assert task(workspace, folder, student_model=general_student)["outcome"] == "finished"
    return folder


@pytest.fixture(scope="module")
def step_2(workspace, step_1, tmp_path_factory):
    folder = tmp_path_factory.mktemp("step_2") / "run"
    outcome = task(workspace, folder, student_model=step_1, pred_distill=True, max_steps=4, eval_step=2)
    assert outcome["outcome"] == "finished"
    return folder


@pytest.fixture
def teacher_rows(monkeypatch, workspace):
    """Rows the prediction pass of a teacher (48 wide) computed, in order."""
    seen = []

    def count(model, batch, *arguments):
        if model.config.hidden_size == 48:
            seen.extend(batch.rows_B.tolist())
        return encode(model, batch, *arguments)

    monkeypatch.setattr(evaluation, "encode", count)
    monkeypatch.setattr("tinybert_dist.distill.teacher.encode", count)
    assert seen == []
    return seen


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


# --- the teacher --------------------------------------------------------------------------------------------


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
    assert (tmp_path / "run" / "teacher_logits" / "teacher_logits.safetensors").exists()


@pytest.mark.parametrize("name", ["teacher_logits.safetensors", "teacher_logits.json"])
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
    kept = load_file(tmp_path / "two" / "teacher_logits" / "teacher_logits.safetensors")["logits"]
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
        load_file(tmp_path / name / "teacher_logits" / "teacher_logits.safetensors")["logits"]
        for name in ("two", "plain")
    ]
    assert torch.allclose(kept[0][0], expected, atol=1e-5)
    assert not torch.allclose(kept[1][0], expected, atol=1e-3)
    assert (tmp_path / "two" / "eval_results.json").exists()


# --- mistakes -----------------------------------------------------------------------------------------------


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


def test_two_runs_give_the_same_bits(workspace, step_1, step_2, tmp_path):
    task(workspace, tmp_path / "again", student_model=step_1, pred_distill=True, max_steps=4, eval_step=2)
    assert sha256_of(tmp_path / "again" / "model.safetensors") == sha256_of(step_2 / "model.safetensors")
