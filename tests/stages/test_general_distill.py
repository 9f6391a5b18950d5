"""General distillation as a user meets it: the folders that go in and come out."""

import json

import pytest
import torch
from safetensors.torch import load_file
from stage_runs import flags, general, weights
from transformers import AutoModel, AutoTokenizer

from tinybert_dist.config import UserError
from tinybert_dist.files import sha256_of
from tinybert_dist.stages import general_distill, prepare_corpus


def test_the_folder_is_a_whole_transformers_model(general_student, workspace):
    model, info = AutoModel.from_pretrained(general_student, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.config.hidden_size == 24 and model.config.num_hidden_layers == 2
    tokenizer = AutoTokenizer.from_pretrained(general_student)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(workspace / "teacher").get_vocab()
    with torch.no_grad():
        assert model(**tokenizer("the value", return_tensors="pt")).last_hidden_state.isfinite().all()
    names = {path.name for path in general_student.iterdir()}
    assert {"config.yaml", "run.json", "outcome.json", "metrics.jsonl", "README.md", "checkpoints"} <= names
    projections = load_file(general_student / "projections.safetensors")
    assert {name: tuple(t.shape) for name, t in projections.items()} == {
        "fit_dense.weight": (48, 24),
        "fit_dense.bias": (48,),
    }


def test_the_card_travels(general_student, workspace):
    card = (general_student / "README.md").read_text()
    assert "AutoModel" in card and "teacher" in card
    assert str(workspace) not in card and "/tmp" not in card


def test_reference_folders_as_teacher_and_student(reference_folders, tmp_path):
    """step_N files only, vocab.txt only, no model_type, fit_dense among the weights."""
    options = {"train_file_path": reference_folders / "corpus.txt", "max_seq_len": 24, "learning_rate": 1e-9}
    options |= {"teacher_model": reference_folders / "teacher", "max_steps": 1}
    general(reference_folders, tmp_path / "run", student_model=reference_folders / "general", **options)
    start = torch.load(reference_folders / "general" / "step_20_pytorch_model.bin", weights_only=True)
    saved, name = weights(tmp_path / "run"), "encoder.layer.1.output.dense.weight"
    assert torch.allclose(saved[name], start[f"bert.{name}"], atol=1e-6)
    projections = load_file(tmp_path / "run" / "projections.safetensors")
    assert torch.allclose(projections["fit_dense.weight"], start["fit_dense.weight"], atol=1e-6)
    _, info = AutoModel.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_one_step_file_by_its_path(reference_folders, tmp_path):
    """An older step of the original's general run can be chosen; its projection comes with it."""
    file = reference_folders / "general" / "step_3_pytorch_model.bin"
    options = {"train_file_path": reference_folders / "corpus.txt", "max_seq_len": 24, "learning_rate": 1e-9}
    options |= {"teacher_model": reference_folders / "teacher", "max_steps": 1, "student_model": file}
    general(reference_folders, tmp_path / "run", **options)
    start = torch.load(file, weights_only=True)
    projections = load_file(tmp_path / "run" / "projections.safetensors")
    assert torch.allclose(projections["fit_dense.weight"], start["fit_dense.weight"], atol=1e-6)


def test_prepared_corpus_gives_the_same_run_as_its_text(workspace, tmp_path):
    tokens = tmp_path / "tokens"
    prepare_corpus.main(
        flags(
            {
                "train_file_path": workspace / "corpus.txt",
                "output_dir": tokens,
                "tokenizer": workspace / "teacher",
                "max_seq_length": 32,
            }
        )
    )
    general(workspace, tmp_path / "one", train_file_path=tokens)
    general(workspace, tmp_path / "two")
    assert sha256_of(tmp_path / "one" / "model.safetensors") == sha256_of(
        tmp_path / "two" / "model.safetensors"
    )
    with pytest.raises(UserError, match=r"holds sequences of \d+ tokens; give --max_seq_length"):
        general(workspace, tmp_path / "short", train_file_path=tokens, max_seq_len=16)


def test_a_student_can_start_from_chosen_teacher_layers(workspace, tmp_path):
    """Layers 2 and 4 of the teacher, and its embeddings; one update at a tiny rate hardly moves them."""
    config = json.loads((workspace / "teacher" / "config.json").read_text()) | {"num_hidden_layers": 2}
    (tmp_path / "half.json").write_text(json.dumps(config))
    half = {"student_model": tmp_path / "half.json", "max_steps": 1, "learning_rate": 1e-8}
    argv = [*flags({"output_dir": tmp_path / "run", **half}), "--init_from_teacher_layers", "2", "4"]
    options = {"train_file_path": workspace / "corpus.txt", "teacher_model": workspace / "teacher"}
    options |= {"max_seq_len": 32, "wandb_mode": "disabled"}
    general_distill.main([*flags(options), *argv])
    name = "encoder.layer.{}.attention.self.query.weight"
    ours, theirs = weights(tmp_path / "run"), weights(workspace / "teacher")
    for mine, its in ((0, 1), (1, 3)):
        assert torch.allclose(ours[name.format(mine)], theirs["bert." + name.format(its)], atol=1e-6)
    with pytest.raises(SystemExit):  # a student with weights of its own
        again = [*flags({"output_dir": tmp_path / "other", "student_model": tmp_path / "run"}), *argv[-3:]]
        general_distill.main([*flags(options), *again])
