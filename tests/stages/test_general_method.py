"""The switches of general distillation's method: layers, losses, projections, heads, layouts."""

import json

import pytest
import torch
from safetensors.torch import load_file
from stage_runs import general, losses, rows, weights

from tinybert_dist.config import UserError
from tinybert_dist.distill.modules import Distiller
from tinybert_dist.training.loop import TrainingLoop


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


def close(one, other, rel=1e-5):
    assert len(one) == len(other) > 0
    for ours, theirs in zip(one, other, strict=True):
        assert ours == pytest.approx(theirs, rel=rel)


def test_training_moves_encoder_and_projection_but_no_head(workspace, tmp_path, trained_names):
    general(workspace, tmp_path / "run", max_steps=1)
    names = trained_names[0]
    assert any(name.startswith("projections.0") for name in names)
    assert any("encoder.layer.1.output" in name for name in names)
    assert not any("pooler" in name for name in names)


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
