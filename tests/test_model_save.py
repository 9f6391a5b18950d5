"""Saved model folders: they reload whole, hold nothing of the machine, and survive a crash."""

import copy
import json
import os

import pytest
import torch
from model_folders import CARD, assert_reloads, tiny_classifier, tiny_tokenizer
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    pipeline,
)

from tinybert_dist import model_save, models
from tinybert_dist.config import UserError


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


def test_saved_weights_equal_the_state(general_folder, tmp_path):
    encoder = models.load_encoder(general_folder)
    gathered = {name: tensor + 1 for name, tensor in encoder.state_dict().items()}
    models.save_model(
        encoder, models.load_tokenizer(general_folder), tmp_path / "g", card=CARD, state_dict=gathered
    )
    saved = load_file(tmp_path / "g" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in gathered.items())


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
