import copy
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    pipeline,
)

from tinybert_dist import model_save, models
from tinybert_dist.config import UserError

FIXTURE = Path(__file__).parent / "fixtures" / "reference"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CARD = models.model_card(title="t", stage="task_distill")


@pytest.fixture(scope="module")
def reference():
    with np.load(FIXTURE / "reference_float64.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    return arrays, json.loads((FIXTURE / "reference.json").read_text())


def weights_of(reference, part):
    return {
        name.removeprefix(f"{part}/"): t for name, t in reference[0].items() if name.startswith(f"{part}/")
    }


def write_reference_folder(folder, state, config, name="pytorch_model.bin"):
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / name)
    (folder / "config.json").write_text(
        json.dumps(config)
    )  # as theirs: no model_type, num_labels, pad_token_id
    words = [f"w{i}" for i in range(config["vocab_size"] - len(SPECIAL))]
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + words) + "\n")
    return folder


@pytest.fixture
def student_folder(reference, tmp_path):
    state = weights_of(reference, "student_cls")
    return write_reference_folder(tmp_path / "student", state, reference[1]["student_config"])


@pytest.fixture
def general_folder(reference, tmp_path):
    state = weights_of(reference, "student_pre")
    return write_reference_folder(tmp_path / "general", state, reference[1]["student_config"])


def logits_of(model, reference):
    inputs = {key: reference[0][f"in/{key}"] for key in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        return model(**inputs).logits


def close(one, other):
    return torch.allclose(one, other, rtol=1e-10, atol=1e-10)


def tiny_tokenizer(tmp_path, words=("good", "bad", "a")):
    folder = tmp_path / "vocabulary"
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *words]) + "\n")
    return models.load_tokenizer(folder)


def tiny_classifier(labels=("bad", "good")):
    config = BertConfig(
        vocab_size=8, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, id2label=dict(enumerate(labels)),
        label2id={n: i for i, n in enumerate(labels)}, problem_type="single_label_classification",
    )  # fmt: skip
    torch.manual_seed(0)
    return BertForSequenceClassification(config).eval()


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


# --- hostile and damaged folders ----------------------------------------------------------------------------


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "step_5_pytorch_model.bin"])
def test_planted_pickle_is_not_executed(student_folder, tmp_path, name, zipped):
    target, proof = tmp_path / "executed", tmp_path / "proof"
    (student_folder / "pytorch_model.bin").unlink()
    if zipped:
        torch.save({"bert.x": Payload(target)}, student_folder / name)
    else:
        (student_folder / name).write_bytes(pickle.dumps(Payload(target), protocol=2))
    pickle.loads(pickle.dumps(Payload(proof)))  # noqa: S301 - the payload does fire when it is executed
    assert proof.is_dir()
    for load in (models.load_encoder, models.load_classifier, models.load_masked_lm, models.load_projections):
        with pytest.raises(UserError, match=rf"{name}: holds more than tensors.*model.safetensors"):
            load(student_folder)
    assert not target.exists()


def test_planted_remote_code_is_not_loaded(student_folder, tmp_path):
    target = tmp_path / "executed"
    config = json.loads((student_folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (student_folder / "config.json").write_text(json.dumps(config))
    (student_folder / "evil.py").write_text(f"import os; os.mkdir({str(target)!r})\n")
    (student_folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Tokenizer"})
    )
    model = models.load_encoder(student_folder)
    tokenizer = models.load_tokenizer(student_folder)
    (student_folder / "vocab.txt").unlink()
    with pytest.raises(UserError, match="no usable tokenizer"):
        models.load_tokenizer(student_folder)
    models.save_model(model, tokenizer, tmp_path / "out", card=CARD)
    assert not target.exists()
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()


def test_damaged_files_are_named(student_folder):
    (student_folder / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(UserError, match=r"model.safetensors: damaged"):
        models.load_encoder(student_folder)
    (student_folder / "model.safetensors").unlink()
    whole = (student_folder / "pytorch_model.bin").read_bytes()
    (student_folder / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"pytorch_model.bin: .*damaged"):
        models.load_encoder(student_folder)
    (student_folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"no weights\. Expected"):
        models.load_encoder(student_folder)


def test_weight_index_cannot_leave_its_folder(student_folder, tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
    (student_folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "../outside.safetensors"}}'
    )
    with pytest.raises(UserError, match=r"'\.\./outside.safetensors', which is not a file in this folder"):
        models.load_encoder(student_folder)


def test_bad_configs_are_named(student_folder):
    file = student_folder / "config.json"
    good = json.loads(file.read_text())
    for text, problem in (
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        (json.dumps({"hidden_size": 3}), "no num_hidden_layers, num_attention_heads"),
        (json.dumps({**good, "architectures": ["RobertaModel"]}), "Add its model_type"),
        (json.dumps({**good, "model_type": "nonsense"}), "nonsense"),
        (json.dumps({**good, "hidden_size": "wide"}), "hidden_size"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=problem) as caught:
            models.load_config(student_folder)
        assert "config.json" in str(caught.value)
    file.unlink()
    with pytest.raises(UserError, match=r"config.json: No such file"):
        models.load_config(student_folder)


def test_missing_folder_and_unreachable_hub_name(tmp_path):
    with pytest.raises(UserError, match="no such model folder"):
        models.load_encoder(tmp_path / "nothing")
    with pytest.raises(UserError, match="not a local folder, and not to be had from the model hub"):
        models.load_encoder("nobody/no-such-model")


def test_old_config_gets_defaults(student_folder):
    config = models.load_config(student_folder, type_vocab_size=3)
    assert (config.model_type, config.pad_token_id, config.layer_norm_eps) == ("bert", 0, 1e-12)
    assert config.type_vocab_size == 3


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


# --- saving -------------------------------------------------------------------------------------------------


def assert_reloads(folder, auto_class, original):
    model, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert models.weights_fingerprint(model) == models.weights_fingerprint(original)
    return model


def test_round_trip_classifier_and_pipeline(tmp_path):
    model = tiny_classifier()
    model.config._name_or_path = str(tmp_path / "secret")
    model.set_attn_implementation("eager")
    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer(["good"], truncation=True, max_length=4, padding="max_length")
    folder = tmp_path / "out"
    models.save_model(model, tokenizer, folder, card=CARD, projections={"fit_dense.weight": torch.ones(2, 2)})
    assert_reloads(folder, AutoModelForSequenceClassification, model)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "bert" and config["id2label"] == {"0": "bad", "1": "good"}
    assert config["label2id"] == {"bad": 0, "good": 1}
    assert config["problem_type"] == "single_label_classification"
    for file in folder.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    assert "attn" not in (folder / "config.json").read_text()
    assert json.loads((folder / "tokenizer.json").read_text())["truncation"] is None
    assert AutoTokenizer.from_pretrained(folder).model_max_length == tokenizer.model_max_length
    assert (folder / "README.md").read_text() == CARD
    assert sorted(f.name for f in folder.iterdir() if f.name.startswith(".")) == []
    scored = pipeline("text-classification", model=str(folder), device="cpu")("a Good")[0]
    with torch.no_grad():
        logits = model(**tokenizer("a good", return_tensors="pt")).logits.softmax(-1)[0]
    assert scored["label"] == ("bad", "good")[int(logits.argmax())]
    assert scored["score"] == pytest.approx(float(logits.max()), abs=1e-6)


def test_round_trip_reference_encoder_and_masked_lm(general_folder, tmp_path):
    tokenizer = models.load_tokenizer(general_folder)
    encoder = models.load_encoder(general_folder)
    projections = models.load_projections(general_folder)
    models.save_model(encoder, tokenizer, tmp_path / "e", card=CARD, projections=projections)
    assert_reloads(tmp_path / "e", AutoModel, encoder)
    again = models.load_projections(tmp_path / "e")
    assert all(torch.equal(again[name], projections[name]) for name in projections)
    assert models.load_encoder(tmp_path / "e").load_report.missing == ()
    masked = models.load_masked_lm(general_folder)
    models.save_model(masked, tokenizer, tmp_path / "m", card=CARD)
    assert_reloads(tmp_path / "m", AutoModelForMaskedLM, masked)
    assert models.load_projections(tmp_path / "m") is None


@pytest.mark.parametrize(
    "model_class,config",
    [
        (RobertaForSequenceClassification, RobertaConfig(max_position_embeddings=18, type_vocab_size=1)),
        (ElectraForSequenceClassification, ElectraConfig(embedding_size=8, max_position_embeddings=16)),
    ],
)
def test_round_trip_other_encoders(model_class, config, tmp_path):
    config = copy.deepcopy(config)
    config.vocab_size, config.hidden_size, config.num_hidden_layers = 8, 12, 2
    config.num_attention_heads, config.intermediate_size, config.num_labels = 2, 16, 3
    model = model_class(config)
    models.save_model(model, tiny_tokenizer(tmp_path), tmp_path / "out", card=CARD)
    assert_reloads(tmp_path / "out", AutoModelForSequenceClassification, model)
    ours = models.load_classifier(tmp_path / "out")
    assert ours.load_report.missing == () and ours.load_report.unexpected == ()
    assert models.weights_fingerprint(ours) == models.weights_fingerprint(model)
    encoder = models.load_encoder(tmp_path / "out")
    assert encoder.load_report.unexpected == ()
    student = models.new_student("tinybert-4l-312", teacher_config=model.config, seed=1)
    assert student.config.model_type == config.model_type
    assert student.get_input_embeddings().weight.shape == (8, 312)


def test_relu_head_is_refused(student_folder, tmp_path):
    model = models.load_classifier(student_folder)
    tokenizer = models.load_tokenizer(student_folder)
    with pytest.raises(UserError, match="relu head"):
        models.save_model(model, tokenizer, tmp_path / "out", card=CARD)
    assert not (tmp_path / "out").exists()
    models.save_model(models.as_transformers_head(model), tokenizer, tmp_path / "out", card=CARD)
    assert_reloads(tmp_path / "out", AutoModelForSequenceClassification, model)


def test_save_leaves_other_files_and_drops_stale_projections(tmp_path):
    folder, tokenizer = tmp_path / "out", tiny_tokenizer(tmp_path)
    models.save_model(
        tiny_classifier(), tokenizer, folder, card=CARD, projections={"fit_dense.bias": torch.ones(2)}
    )
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "checkpoints").mkdir()
    models.save_model(tiny_classifier(("c", "d")), tokenizer, folder, card="new card")
    names = {file.name for file in folder.iterdir()}
    assert {"metrics.jsonl", "checkpoints"} <= names
    assert "projections.safetensors" not in names
    assert (folder / "README.md").read_text() == "new card"


class Crash(BaseException):
    pass


def test_crash_at_every_file_operation_of_a_save(tmp_path, monkeypatch):
    """Old and new differ in labels and in one weight: whatever loads must be wholly one of them."""
    tokenizer = tiny_tokenizer(tmp_path)
    old, new = tiny_classifier(("a", "b")), tiny_classifier(("c", "d"))
    with torch.no_grad():
        old.classifier.bias.fill_(1.0)
        new.classifier.bias.fill_(2.0)
    outcomes = set()
    crash_at = 0
    while True:
        folder = tmp_path / f"run{crash_at}"
        models.save_model(old, tokenizer, folder, card="old")
        calls = {"count": 0}

        def counted(original, calls=calls, crash_at=crash_at):
            def operation(*args, **kwargs):
                if calls["count"] == crash_at:
                    raise Crash
                calls["count"] += 1
                return original(*args, **kwargs)

            return operation

        crashed = False
        with monkeypatch.context() as patch:
            for name in ("replace", "rename", "unlink", "link", "fsync", "mkdir"):
                patch.setattr(os, name, counted(getattr(os, name)))
            patch.setattr(model_save.shutil, "rmtree", counted(model_save.shutil.rmtree))
            try:
                models.save_model(new, tokenizer, folder, card="new")
            except Crash:
                crashed = True
        if not crashed:
            break
        model = models.load_classifier(folder)
        state = (models.label_names(model.config), float(model.classifier.bias[0].detach()))
        assert state in {(("a", "b"), 1.0), (("c", "d"), 2.0)}
        if (folder / "config.json").exists():  # plain transformers sees one model as well
            plain = AutoModelForSequenceClassification.from_pretrained(folder)
            assert (models.label_names(plain.config), float(plain.classifier.bias[0].detach())) in {
                (("a", "b"), 1.0),
                (("c", "d"), 2.0),
            }
        outcomes.add(state[1])
        models.save_model(old, tokenizer, folder, card="third")  # and the folder is usable again
        assert (
            float(AutoModelForSequenceClassification.from_pretrained(folder).classifier.bias[0].detach())
            == 1.0
        )
        assert not [file for file in folder.iterdir() if file.name.startswith(".incoming")]
        crash_at += 1
    assert crash_at > 15 and outcomes == {1.0, 2.0}


# --- students -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "millions"), [("tinybert-4l-312", 14.35), ("tinybert-6l-768", 66.96)])
def test_named_students_have_the_published_sizes(name, millions):
    teacher_config = BertConfig()
    assert models.is_named_student(name)
    student = models.new_student(name, teacher_config=teacher_config, seed=1)
    assert round(models.count_parameters(student) / 1e6, 2) == millions
    weight = student.encoder.layer[0].attention.self.query.weight
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert torch.equal(student.encoder.layer[0].output.LayerNorm.weight, torch.ones(weight.shape[0]))


def test_new_student_from_config_takes_the_teachers_vocabulary(reference, tmp_path):
    teacher_config = BertConfig(**{**reference[1]["teacher_config"], "pad_token_id": 5, "type_vocab_size": 1})
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**reference[1]["student_config"], "vocab_size": 77}))
    one, same, other = (models.new_student(file, teacher_config=teacher_config, seed=s) for s in (1, 1, 2))
    assert (one.config.vocab_size, one.config.pad_token_id, one.config.type_vocab_size) == (200, 5, 1)
    assert models.weights_fingerprint(one) == models.weights_fingerprint(same)
    assert models.weights_fingerprint(one) != models.weights_fingerprint(other)
    assert not models.is_named_student(str(file))
    with pytest.raises(UserError, match="give one of tinybert-4l-312, tinybert-6l-768"):
        models.new_student("tinybert-5l", teacher_config=teacher_config, seed=1)
    file.write_text(json.dumps({**reference[1]["student_config"], "num_attention_heads": 5}))
    with pytest.raises(UserError, match="hidden_size 32 is no multiple of 5 heads"):
        models.new_student(file, teacher_config=teacher_config, seed=1)


def test_student_cut_from_teacher_layers(reference, tmp_path):
    teacher = models.load_classifier(
        write_reference_folder(
            tmp_path / "t", weights_of(reference, "teacher"), reference[1]["teacher_config"]
        )
    )
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**reference[1]["teacher_config"], "num_hidden_layers": 2}))
    make = {"teacher_config": teacher.config, "seed": 1, "teacher": teacher}
    student = models.new_student(file, init_from_teacher_layers=[2, 4], **make)
    for mine, theirs in ((0, 1), (1, 3)):
        for name, tensor in student.encoder.layer[mine].state_dict().items():
            assert torch.equal(tensor, teacher.bert.encoder.layer[theirs].state_dict()[name])
    assert torch.equal(
        student.embeddings.word_embeddings.weight, teacher.bert.embeddings.word_embeddings.weight
    )
    assert student.encoder.layer[0].output.dense.weight.data_ptr() != (
        teacher.bert.encoder.layer[1].output.dense.weight.data_ptr()
    )
    for layers in ([1], [1, 5], [0, 2]):
        with pytest.raises(UserError, match="give 2 layers, from 1 to 4"):
            models.new_student(file, init_from_teacher_layers=layers, **make)
    file.write_text(json.dumps(reference[1]["student_config"]))
    with pytest.raises(UserError, match="hidden_size is 32 here and 64 in the teacher"):
        models.new_student(file, init_from_teacher_layers=[1, 3], **make)


# --- tokenizers ---------------------------------------------------------------------------------------------

SENTENCE = "Hello \u00c9cole WORLD, unaffable \u6211\u7231 BERT!"


@pytest.mark.parametrize(
    ("name", "lower"), [("bert-base-uncased", True), ("bert-base-cased", False), ("bert-base-chinese", True)]
)
def test_vocab_only_folder_tokenises_as_wordpiece_should(shared_data, tmp_path, name, lower):
    from tokenizers import BertWordPieceTokenizer

    vocab = shared_data / "vocab" / name / "vocab.txt"
    (tmp_path / "vocab.txt").write_bytes(vocab.read_bytes())
    tokenizer = models.load_tokenizer(tmp_path)
    independent = BertWordPieceTokenizer(str(vocab), lowercase=lower, strip_accents=lower)
    expected = independent.encode(SENTENCE, "second One")
    encoded = tokenizer(SENTENCE, "second One")
    assert encoded["input_ids"] == expected.ids and encoded["token_type_ids"] == expected.type_ids
    assert models.lowers(tokenizer) is lower
    assert len(tokenizer) == vocab.read_bytes().count(b"\n")
    other = models.load_tokenizer(tmp_path, do_lower_case=not lower)
    assert models.lowers(other) is not lower
    if name != "bert-base-chinese":
        assert other(SENTENCE)["input_ids"] != tokenizer(SENTENCE)["input_ids"]


def test_contradicting_lower_case_flag(tmp_path):
    folder = tmp_path / "t"
    tiny_tokenizer(tmp_path).save_pretrained(folder)
    assert models.lowers(models.load_tokenizer(folder, do_lower_case=True))
    with pytest.raises(
        UserError, match="do_lower_case is False on the command line, but this tokenizer lower-cases"
    ):
        models.load_tokenizer(folder, do_lower_case=False)
    vocabulary = tmp_path / "vocabulary"
    (vocabulary / "tokenizer_config.json").write_text('{"do_lower_case": false, "model_max_length": 77}')
    assert not models.lowers(models.load_tokenizer(vocabulary))
    assert models.load_tokenizer(vocabulary).model_max_length == 77
    with pytest.raises(UserError, match="keeps capitals"):
        models.load_tokenizer(vocabulary, do_lower_case=True)


def test_model_max_length_comes_from_the_positions(student_folder):
    assert models.load_tokenizer(student_folder).model_max_length == 32
    assert models.load_tokenizer(student_folder, max_length=20).model_max_length == 20


def test_bad_vocabularies_are_named(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\nword\n")
    with pytest.raises(UserError, match=r"vocab.txt: no \[SEP\], \[MASK\]"):
        models.load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(UserError, match="not UTF-8 at byte 6"):
        models.load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(UserError, match="no usable tokenizer"):
        models.load_tokenizer(tmp_path)


# --- small things -------------------------------------------------------------------------------------------


def test_fingerprint_sees_every_weight():
    model = nn.Linear(2, 2)
    before = models.weights_fingerprint(model)
    assert len(before) == 16 and before == models.weights_fingerprint(copy.deepcopy(model))
    with torch.no_grad():
        model.bias[1] += 1e-6
    assert models.weights_fingerprint(model) != before
    assert models.weights_fingerprint(model.bfloat16())


def test_card_has_facts_and_no_machine_path(tmp_path):
    card = models.model_card(
        title="SST-2 student", stage="task_distill", base_model="org/tinybert",
        teacher=str(tmp_path / "my-teacher"),
        language="en", task="SST-2", sizes={"parameters": 14350000}, metrics={"accuracy": 0.91234},
        settings={"learning_rate": 3e-5, "data_dir": str(tmp_path)},
    )  # fmt: skip
    import yaml

    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "org/tinybert" and front["library_name"] == "transformers"
    assert front["language"] == "en"
    for text in ("1909.10351", "| parameters | 14,350,000 |", "| accuracy | 0.9123 |", "my-teacher", "3e-05"):
        assert text in card
    assert str(tmp_path.parent) not in card


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


def test_saved_weights_equal_the_state(general_folder, tmp_path):
    encoder = models.load_encoder(general_folder)
    gathered = {name: tensor + 1 for name, tensor in encoder.state_dict().items()}
    models.save_model(
        encoder, models.load_tokenizer(general_folder), tmp_path / "g", card=CARD, state_dict=gathered
    )
    saved = load_file(tmp_path / "g" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in gathered.items())
