"""Mistakes in data, models and options that general distillation names."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from stage_runs import flags, general, weights

from tinybert_dist.config import UserError
from tinybert_dist.files import read_json
from tinybert_dist.stages import prepare_corpus
from tinybert_dist.training.health import TrainingFailed
from tinybert_dist.training.loop import TrainingLoop


def test_sequences_longer_than_the_position_table(workspace, tmp_path):
    with pytest.raises(UserError, match=r"--max_seq_length 65 is over the 64 positions of .*give at most"):
        general(workspace, tmp_path / "run", max_seq_len=65)


def test_student_deeper_than_its_teacher(workspace, tmp_path):
    config = json.loads((workspace / "student.json").read_text())
    (tmp_path / "deep.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(UserError, match=r"--layer_map: .*no deeper than its teacher, got 5 > 4.*explicit"):
        general(workspace, tmp_path / "run", student_model=tmp_path / "deep.json")


def test_unreadable_layer_map(workspace, tmp_path):
    with pytest.raises(UserError, match=r"--layer_map: .*'middle'.*use uniform, top, bottom"):
        general(workspace, tmp_path / "run", layer_map="middle")


def test_all_losses_off(workspace, tmp_path):
    with pytest.raises(UserError, match="all losses are switched off"):
        general(workspace, tmp_path / "run", attention_weight=0, hidden_weight=0, embedding_weight=0)


def test_vocabulary_of_another_model(workspace, general_student, tmp_path):
    student = tmp_path / "student"
    shutil.copytree(general_student, student, ignore=shutil.ignore_patterns("checkpoints", "tokenizer.json"))
    pieces = (workspace / "vocab" / "vocab.txt").read_text().splitlines()
    pieces[10], pieces[11] = pieces[11], pieces[10]
    (student / "vocab.txt").write_text("\n".join(pieces) + "\n")
    with pytest.raises(UserError, match=r"vocabularies differ: student .*student has 5\d\d entries"):
        general(workspace, tmp_path / "run", student_model=student)


def test_embedding_table_smaller_than_the_vocabulary(workspace, general_student, tmp_path):
    """A folder without a tokenizer of its own speaks the teacher's, and needs a row for every id."""
    student = tmp_path / "student"
    student.mkdir()
    state = weights(general_student)
    state["embeddings.word_embeddings.weight"] = state["embeddings.word_embeddings.weight"][:300].clone()
    save_file(state, student / "model.safetensors")
    config = read_json(general_student / "config.json")
    (student / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    with pytest.raises(UserError, match=r"has 300 embeddings, the tokenizer a vocabulary of 5\d\d entries"):
        general(workspace, tmp_path / "run", student_model=student)


def test_corpus_prepared_with_another_tokenizer(workspace, reference_folders, tmp_path):
    tokens = tmp_path / "tokens"
    prepare_corpus.main(
        flags(
            {
                "train_file_path": workspace / "corpus.txt",
                "output_dir": tokens,
                "tokenizer": reference_folders / "teacher",
                "max_seq_length": 32,
            }
        )
    )
    with pytest.raises(UserError, match=r"tokens was prepared with another tokenizer .*run prepare_corpus"):
        general(workspace, tmp_path / "run", train_file_path=tokens)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "corpus"), ("", "no text|empty|no sequences"), ("\n \n\t\n", "no text|empty|no sequences")],
    ids=["no file", "empty file", "blank lines"],
)
def test_corpus_folder_without_text(workspace, tmp_path, content, message):
    (tmp_path / "corpus").mkdir()
    if content is not None:
        (tmp_path / "corpus" / "a.txt").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        general(workspace, tmp_path / "run", train_file_path=tmp_path / "corpus")
    assert str(tmp_path) in str(error.value)


def test_missing_teacher(workspace, tmp_path):
    with pytest.raises(UserError, match=r"none: no such model folder. Give a folder with config\.json"):
        general(workspace, tmp_path / "run", teacher_model=tmp_path / "none")


def test_a_strangers_folder_stays_as_it_was(workspace, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(UserError, match="not empty"):
        general(workspace, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def poisoned(folder, source, name):
    """A copy of a model folder with one NaN in tensor `name`."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("checkpoints"))
    state = weights(folder)
    state[name].view(-1)[0] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("layout", ["auto", "packed"])
def test_nan_in_the_teacher_stops_before_the_weights_move(
    workspace, tmp_path, monkeypatch, layout, general_student
):
    teacher = poisoned(
        tmp_path / "teacher", workspace / "teacher", "bert.encoder.layer.3.attention.self.key.weight"
    )
    seen = []
    original = TrainingLoop.__init__

    def record(self, *arguments):
        original(self, *arguments)
        seen.append((self.job.module, {n: p.detach().clone() for n, p in self.job.module.named_parameters()}))

    monkeypatch.setattr(TrainingLoop, "__init__", record)
    with pytest.raises(TrainingFailed, match=r"step 1: .*not finite \(attention/layer_2\)"):
        general(workspace, tmp_path / "run", teacher_model=teacher, hidden_weight=0, layout=layout)
    module, before = seen[0]
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    outcome = read_json(tmp_path / "run" / "outcome.json")
    assert outcome["outcome"] == "failed" and "attention/layer_2" in outcome["reason"]
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))
