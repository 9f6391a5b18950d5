"""General distillation as a user meets it: folders in and out, switches of the method, mistakes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from stage_runs import flags, general, losses, rows
from transformers import AutoModel, AutoTokenizer

from tinybert_dist.config import UserError
from tinybert_dist.distill.modules import Distiller
from tinybert_dist.files import read_json, sha256_of
from tinybert_dist.stages import general_distill, prepare_corpus
from tinybert_dist.training.health import TrainingFailed
from tinybert_dist.training.loop import TrainingLoop


def weights(folder):
    return load_file(folder / "model.safetensors")


def close(one, other, rel=1e-5):
    assert len(one) == len(other) > 0
    for ours, theirs in zip(one, other, strict=True):
        assert ours == pytest.approx(theirs, rel=rel)


@pytest.fixture
def trained_names(monkeypatch):
    """Names of the parameters each run trained."""
    names = []
    original = TrainingLoop.__init__

    def record(self, *arguments):
        original(self, *arguments)
        names.append([n for n, p in self.job.module.named_parameters() if p.requires_grad])

    monkeypatch.setattr(TrainingLoop, "__init__", record)
    return names


# --- what comes out -----------------------------------------------------------------------------------------


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


def test_training_moves_encoder_and_projection_but_no_head(workspace, tmp_path, trained_names):
    general(workspace, tmp_path / "run", max_steps=1)
    names = trained_names[0]
    assert any(name.startswith("projections.0") for name in names)
    assert any("encoder.layer.1.output" in name for name in names)
    assert not any("pooler" in name for name in names)


# --- switches of the method ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer_map", "pairs"),
    [
        ("uniform", "1:2,2:4"),
        ("top", "1:3,2:4"),
        ("bottom", "1:1,2:2"),
        ("1,3", "1:1,2:3"),
        ("2:3:0.5,1:4", "2:3:0.5,1:4"),
    ],
)
def test_layer_maps(workspace, tmp_path, capsys, layer_map, pairs):
    general(workspace, tmp_path / "run", layer_map=layer_map, max_steps=1)
    assert f"layers {pairs} (student:teacher)" in capsys.readouterr().out


def test_a_named_size_is_made_to_fit_the_teacher(workspace, tmp_path, capsys):
    """12 heads of 26 against the teacher's 4 of 12, its vocabulary and its positions."""
    options = {"student_model": "tinybert-4l-312", "dry_run": True}
    assert general(workspace, tmp_path / "run", **options) == {"outcome": "dry_run"}
    output = capsys.readouterr().out
    assert "layers 1:1,2:2,3:3,4:4" in output and "tinybert-4l-312: 4," in output  # 4.9 M: 500 word pieces


def test_weight_of_a_pair_scales_its_share_of_the_loss(workspace, tmp_path, plain_student):
    general(workspace, tmp_path / "run", layer_map="1:2:0.5,2:4", max_steps=1, student_model=plain_student)
    row = rows(tmp_path / "run")[0]
    layers = [row[f"loss/{part}/layer_{i}"] for part in ("attention", "hidden") for i in (1, 2)]
    expected = row["loss/hidden/embeddings"] + sum(w * x for w, x in zip((0.5, 1) * 2, layers, strict=True))
    assert row["loss/total"] == pytest.approx(expected, rel=1e-6)


def test_hidden_only(workspace, tmp_path):
    general(workspace, tmp_path / "run", attention_weight=0)
    terms = {name for name in losses(tmp_path / "run")[0]}
    assert terms == {"loss/total", "loss/hidden", "loss/hidden/embeddings"} | {
        f"loss/hidden/layer_{i}" for i in (1, 2)
    }


def test_attention_only_freezes_what_it_cannot_reach(workspace, tmp_path, trained_names, capsys):
    general(workspace, tmp_path / "run", hidden_weight=0, embedding_weight=0, max_steps=3, weight_decay=0.5)
    assert "tensors frozen" in capsys.readouterr().out
    assert set(losses(tmp_path / "run")[0]) == {"loss/total", "loss/attention"} | {
        f"loss/attention/layer_{i}" for i in (1, 2)
    }
    names = trained_names[0]
    assert "model.encoder.layer.1.attention.self.query.weight" in names
    # the last layer's values, output and feed-forward come after its scores
    beyond = [n for n in names if "layer.1." in n and not any(x in n for x in ("self.query", "self.key"))]
    assert beyond == []
    assert not (tmp_path / "run" / "projections.safetensors").exists()
    general(workspace, tmp_path / "start", hidden_weight=0, embedding_weight=0, max_steps=1)
    last = "encoder.layer.1.output.dense.weight"
    assert torch.equal(weights(tmp_path / "run")[last], weights(tmp_path / "start")[last])


def test_one_projection_for_each_pair(workspace, tmp_path):
    general(workspace, tmp_path / "run", per_layer_projections=True)
    saved = load_file(tmp_path / "run" / "projections.safetensors")
    assert sorted(saved) == [f"fit_denses.{i}.{part}" for i in range(3) for part in ("bias", "weight")]
    assert not torch.equal(saved["fit_denses.0.weight"], saved["fit_denses.1.weight"])
    # and they are continued from: with a step this small they stay where they were
    general(
        workspace, tmp_path / "next", student_model=tmp_path / "run", per_layer_projections=True,
        learning_rate=1e-9,
    )  # fmt: skip
    again = load_file(tmp_path / "next" / "projections.safetensors")
    assert all(torch.allclose(again[name], saved[name], atol=1e-6) for name in saved)


def test_one_projection_for_each_pair_of_a_partial_map(workspace, tmp_path):
    general(workspace, tmp_path / "run", per_layer_projections=True, layer_map="2:4")
    saved = load_file(tmp_path / "run" / "projections.safetensors")
    assert {"fit_denses.0.weight", "fit_denses.2.weight"} <= set(saved)


@pytest.mark.parametrize(("asked", "used"), [(None, 2), (1, 1), (8, 8)])
def test_unequal_heads(workspace, tmp_path, monkeypatch, asked, used):
    config = json.loads((workspace / "student.json").read_text())
    (tmp_path / "two_heads.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    made = []
    original = Distiller.__init__
    monkeypatch.setattr(
        Distiller, "__init__", lambda self, *a, **k: (original(self, *a, **k), made.append(self))[0]
    )
    general(workspace, tmp_path / "run", student_model=tmp_path / "two_heads.json", num_relation_heads=asked)
    assert made[0].num_relation_heads == used
    assert losses(tmp_path / "run")[0]["loss/attention"] > 0


def test_relation_heads_that_do_not_divide_the_widths(workspace, tmp_path):
    with pytest.raises(
        UserError, match=r"--num_relation_heads: 5 relation heads must divide both.*24 and 48"
    ):
        general(workspace, tmp_path / "run", num_relation_heads=5)


@pytest.fixture(scope="module")
def packed(workspace, plain_student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "run"
    general(workspace, folder, student_model=plain_student, max_steps=3)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": "padded"},
        {"layout": "fixed"},
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 4},
        {"micro_batch_tokens": 40},
        {"num_workers": 1},
    ],
    ids=str,
)
def test_how_a_step_is_computed_does_not_change_it(workspace, plain_student, packed, tmp_path, changes):
    general(workspace, tmp_path / "run", student_model=plain_student, max_steps=3, **changes)
    close(losses(tmp_path / "run"), losses(packed))
    norms = [[{"norm": row["grad_norm"]} for row in rows(folder)] for folder in (tmp_path / "run", packed)]
    close(*norms, rel=1e-4)
    padding = rows(tmp_path / "run")[0]["throughput/padding_pct"]
    assert (padding > 0) == (changes.get("layout") in {"padded", "fixed"})


def test_reference_averaging_counts_padding(workspace, plain_student, packed, tmp_path):
    options = {"student_model": plain_student, "max_steps": 1, "mode": "line"}
    general(workspace, tmp_path / "ours", **options)
    general(workspace, tmp_path / "theirs", reference_averaging=True, **options)
    ours, theirs = losses(tmp_path / "ours")[0], losses(tmp_path / "theirs")[0]
    assert rows(tmp_path / "theirs")[0]["throughput/padding_pct"] > 5
    # pad keys count as zeros; pad positions are hidden states like any other, so those means change little
    assert theirs["loss/attention"] < 0.95 * ours["loss/attention"]
    assert all(theirs[name] != pytest.approx(ours[name], rel=1e-5) for name in ours)
    with pytest.raises(UserError, match="--reference_averaging counts padding and needs --layout fixed"):
        general(workspace, tmp_path / "no", reference_averaging=True, layout="packed", **options)


# --- the reference's folders --------------------------------------------------------------------------------


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


# --- mistakes -----------------------------------------------------------------------------------------------


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
