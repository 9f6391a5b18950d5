"""Models loaded from folders: the original code's numbers, heads, labels, reports of what is missing."""

import copy

import pytest
import torch
from model_folders import (
    CARD,
    assert_reloads,
    tiny_classifier,
    tiny_tokenizer,
    weights_of,
    write_reference_folder,
)
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from tinybert_dist import models
from tinybert_dist.config import UserError


def logits_of(model, reference):
    inputs = {key: reference[0][f"in/{key}"] for key in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        return model(**inputs).logits


def close(one, other):
    return torch.allclose(one, other, rtol=1e-10, atol=1e-10)


# --- the reference's folders --------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "model_name"), [("student_cls", "student"), ("teacher", "teacher")])
def test_reference_task_checkpoint_scores_as_the_reference(reference, tmp_path, part, model_name):
    config = reference[1][f"{model_name}_config"]
    folder = write_reference_folder(tmp_path / part, weights_of(reference, part), config)
    model = models.load_classifier(folder, dtype=torch.float64)
    assert models.has_reference_head(model)
    assert model.config.num_labels == 3
    assert close(logits_of(model, reference), reference[0][f"task/{model_name}_logits"])
    assert model.load_report.missing == () and model.load_report.unexpected == ()
    assert model.load_report.ignored == ("fit_dense.bias", "fit_dense.weight")


def test_transformers_head_on_request_scores_without_relu(reference, student_folder):
    expected = reference[0]["task/student_logits"]
    plain = models.load_classifier(student_folder, dtype=torch.float64, classifier_head="transformers")
    assert not close(logits_of(plain, reference), expected)
    relu = models.load_classifier(student_folder, dtype=torch.float64)
    converted = models.as_transformers_head(relu)
    assert not models.has_reference_head(converted)
    assert close(logits_of(converted, reference), logits_of(plain, reference))
    assert converted.dropout.p == 0.1


def test_classifier_head_value_is_checked(student_folder):
    with pytest.raises(UserError, match=r"classifier_head 'relu': allowed are auto"):
        models.load_classifier(student_folder, classifier_head="relu")


def test_encoder_hidden_states_equal_the_reference(reference, student_folder):
    model = models.load_encoder(student_folder, dtype=torch.float64)
    inputs = {key: reference[0][f"in/{key}"] for key in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    mask = inputs["attention_mask"].bool()
    for i, hidden in enumerate(out.hidden_states):
        assert close(hidden[mask], reference[0][f"task/student_reps_raw/{i}"][mask])
    assert close(out.pooler_output, reference[0]["task/student_pooled"])
    assert model.load_report.ignored == (
        "classifier.bias",
        "classifier.weight",
        "fit_dense.bias",
        "fit_dense.weight",
    )


def test_gamma_beta_names_and_wrapper_prefix(reference, tmp_path):
    old = {}
    for name, tensor in weights_of(reference, "student_cls").items():
        gamma = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old["module." + gamma.replace("LayerNorm.bias", "LayerNorm.beta")] = tensor
    folder = write_reference_folder(tmp_path / "old", old, reference[1]["student_config"])
    model = models.load_classifier(folder, dtype=torch.float64)
    assert close(logits_of(model, reference), reference[0]["task/student_logits"])
    tokenizer = models.load_tokenizer(folder)
    models.save_model(models.as_transformers_head(model), tokenizer, tmp_path / "new", card=CARD)
    assert_reloads(tmp_path / "new", AutoModelForSequenceClassification, model)
    assert set(load_file(tmp_path / "new" / "model.safetensors")) == set(model.state_dict())


def test_general_checkpoint_gives_encoder_masked_lm_and_new_head(reference, general_folder):
    state = weights_of(reference, "student_pre")
    encoder = models.load_encoder(general_folder)
    assert encoder.dtype == torch.float32 and encoder.pooler is not None
    assert encoder.load_report.missing == () and encoder.load_report.unexpected == ()
    masked = models.load_masked_lm(general_folder, dtype=torch.float64)
    assert torch.equal(masked.cls.predictions.bias, state["cls.predictions.bias"])
    assert masked.load_report.missing == () and masked.load_report.unexpected == ()
    classifier = models.load_classifier(general_folder, labels=("no", "yes"), seed=3)
    assert classifier.load_report.missing == ("classifier.bias", "classifier.weight")
    assert "newly initialised: classifier.bias, classifier.weight" in str(classifier.load_report)
    assert not models.has_reference_head(classifier)
    assert classifier.config.id2label == {0: "no", 1: "yes"}
    again = models.load_classifier(general_folder, labels=("no", "yes"), seed=3)
    other = models.load_classifier(general_folder, labels=("no", "yes"), seed=4)
    assert torch.equal(again.classifier.weight, classifier.classifier.weight)
    assert not torch.equal(other.classifier.weight, classifier.classifier.weight)


def test_loading_leaves_the_random_state_alone(general_folder):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    models.load_classifier(general_folder, labels=("no", "yes"))
    assert torch.equal(torch.rand(3), expected)


def test_projections_shared_and_per_layer(reference, tmp_path):
    state = weights_of(reference, "student_cls")
    weight, bias = state.pop("fit_dense.weight"), state.pop("fit_dense.bias")
    for i in range(3):
        state[f"fit_denses.{i}.weight"], state[f"fit_denses.{i}.bias"] = weight + i, bias
    folder = write_reference_folder(tmp_path / "v2", state, reference[1]["student_config"])
    projections = models.load_projections(folder)
    assert sorted(projections) == [f"fit_denses.{i}.{part}" for i in range(3) for part in ("bias", "weight")]
    assert torch.equal(projections["fit_denses.2.weight"], weight + 2)
    assert models.has_reference_head(models.load_classifier(folder))
    shared = write_reference_folder(
        tmp_path / "v1", {"fit_dense.weight": weight, "fit_dense.bias": bias}, reference[1]["student_config"]
    )
    assert sorted(models.load_projections(shared)) == ["fit_dense.bias", "fit_dense.weight"]


def test_step_files_highest_number_wins_and_a_file_can_be_named(reference, tmp_path):
    state = weights_of(reference, "student_pre")
    for step in (500, 1000, 90):
        marked = {**state, "bert.pooler.dense.bias": torch.full((32,), float(step), dtype=torch.float64)}
        folder = write_reference_folder(
            tmp_path / "steps", marked, reference[1]["student_config"], name=f"step_{step}_pytorch_model.bin"
        )
    encoder = models.load_encoder(folder)
    assert encoder.pooler.dense.bias[0] == 1000
    assert encoder.load_report.source.endswith("step_1000_pytorch_model.bin")
    assert models.load_encoder(folder / "step_90_pytorch_model.bin").pooler.dense.bias[0] == 90
    torch.save(state, folder / "pytorch_model.bin")
    assert models.load_encoder(folder).load_report.source.endswith("/pytorch_model.bin")


def test_missing_backbone_key_is_an_error_that_names_it(reference, tmp_path):
    state = weights_of(reference, "student_cls")
    del state["bert.encoder.layer.1.output.dense.bias"]
    folder = write_reference_folder(tmp_path / "broken", state, reference[1]["student_config"])
    for load in (models.load_encoder, models.load_masked_lm, models.load_classifier):
        with pytest.raises(
            UserError, match=r"pytorch_model.bin: no weights for 1 backbone keys: .*1.output.dense.bias"
        ):
            load(folder)


def test_weights_of_another_architecture_are_an_error(reference, tmp_path):
    state = {name.replace("bert.", "other."): t for name, t in weights_of(reference, "student_cls").items()}
    folder = write_reference_folder(tmp_path / "other", state, reference[1]["student_config"])
    with pytest.raises(UserError, match="backbone keys"):
        models.load_classifier(folder)


def test_config_of_another_size_is_an_error_with_both_shapes(reference, tmp_path):
    config = {**reference[1]["student_config"], "intermediate_size": 100}
    folder = write_reference_folder(tmp_path / "size", weights_of(reference, "student_cls"), config)
    with pytest.raises(UserError, match=r"shapes differ .*\(120,\), config \(100,\)"):
        models.load_encoder(folder)


def test_unexpected_keys_are_reported(reference, tmp_path):
    state = {**weights_of(reference, "student_cls"), "bert.encoder.layer.2.mystery": torch.ones(1)}
    folder = write_reference_folder(tmp_path / "more", state, reference[1]["student_config"])
    report = models.load_classifier(folder).load_report
    assert report.unexpected == ("bert.encoder.layer.2.mystery",)
    assert "UNEXPECTED: bert.encoder.layer.2.mystery" in str(report)


def test_missing_pooler_is_drawn_from_the_seed(reference, tmp_path):
    state = {name: t for name, t in weights_of(reference, "student_pre").items() if "pooler" not in name}
    folder = write_reference_folder(tmp_path / "nopool", state, reference[1]["student_config"])
    one, same, other = (models.load_encoder(folder, seed=seed) for seed in (1, 1, 2))
    assert one.load_report.missing == ("pooler.dense.bias", "pooler.dense.weight")
    assert torch.equal(one.pooler.dense.weight, same.pooler.dense.weight)
    assert not torch.equal(one.pooler.dense.weight, other.pooler.dense.weight)


# --- labels -------------------------------------------------------------------------------------------------


def test_trained_head_keeps_its_names_and_order(tmp_path):
    models.save_model(tiny_classifier(("bad", "good")), tiny_tokenizer(tmp_path), tmp_path / "m", card=CARD)
    model = models.load_classifier(tmp_path / "m", labels=("good", "bad"))
    assert models.label_names(model.config) == ("bad", "good")
    with pytest.raises(UserError, match="its labels are bad, good, the task's are no, yes"):
        models.load_classifier(tmp_path / "m", labels=("no", "yes"))
    with pytest.raises(UserError, match="2 outputs, the task needs 3"):
        models.load_classifier(tmp_path / "m", labels=("a", "b", "c"))
    new = models.load_classifier(tmp_path / "m", labels=("a", "b", "c"), replace_head=True)
    assert models.label_names(new.config) == ("a", "b", "c") and new.classifier.out_features == 3


def test_placeholder_labels_take_the_tasks_names(student_folder):
    assert models.label_names(models.load_config(student_folder)) is None
    model = models.load_classifier(student_folder, labels=("x", "y", "z"))
    assert models.label_names(model.config) == ("x", "y", "z")


def test_regression_has_one_output(general_folder):
    model = models.load_classifier(general_folder, problem_type="regression")
    assert model.config.num_labels == 1 and model.classifier.out_features == 1
    assert model.config.problem_type == "regression"


# --- small things -------------------------------------------------------------------------------------------


def test_fingerprint_sees_every_weight():
    model = nn.Linear(2, 2)
    before = models.weights_fingerprint(model)
    assert len(before) == 16 and before == models.weights_fingerprint(copy.deepcopy(model))
    with torch.no_grad():
        model.bias[1] += 1e-6
    assert models.weights_fingerprint(model) != before
    assert models.weights_fingerprint(model.bfloat16())


def test_loading_is_whole_after_zero3_is_configured(general_folder):
    from transformers.integrations import deepspeed

    expected = models.weights_fingerprint(models.load_encoder(general_folder))
    holder = type("Zero3", (), {"is_zero3": lambda self: True, "config": {}})()
    deepspeed.set_hf_deepspeed_config(holder)
    try:
        assert deepspeed.is_deepspeed_zero3_enabled()
        assert models.weights_fingerprint(models.load_encoder(general_folder)) == expected
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()
