"""Losses and gradients against numbers computed by the original implementation, in float64."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from tinybert_dist.data.batches import Collator
from tinybert_dist.data.tokens import Sample, Samples
from tinybert_dist.distill.layer_map import build_layer_map
from tinybert_dist.distill.modules import Distiller, DistillWeights
from tinybert_dist.distill.teacher import Teacher

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "reference"
FACTS = json.loads((FOLDER / "reference.json").read_text())
LOSSES = FACTS["losses"]["f64"]
TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def numbers():
    return dict(np.load(FOLDER / "reference_float64.npz"))


def weights(numbers, prefix):
    return {n.removeprefix(prefix): torch.from_numpy(v) for n, v in numbers.items() if n.startswith(prefix)}


def model(numbers, which, config_key):
    config = BertConfig(**FACTS[config_key], num_labels=FACTS["num_labels"])
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    built = BertForSequenceClassification(config).double()
    missing, _ = built.load_state_dict(weights(numbers, which), strict=False)
    assert all(name.startswith(("classifier", "bert.pooler")) for name in missing)
    built.dropout = torch.nn.ReLU()  # the original's head
    return built


def samples(numbers):
    ids, mask, segments = (numbers[f"in/{n}"] for n in ("input_ids", "attention_mask", "token_type_ids"))
    out = []
    for row, length in enumerate(mask.sum(1)):
        first_b = int(segments[row].argmax()) if segments[row].any() else int(length)
        out.append(Sample(row, ids[row, :length].astype(np.int64), first_b, 0.0))
    return Samples.of(out)


def distil(numbers, student, student_weights, layout, loss_weights, temperature=1.0):
    teacher_model, student_model = (
        model(numbers, "teacher/", "teacher_config"),
        model(numbers, student, "student_config"),
    )
    layer_map = build_layer_map("uniform", 2, 4)
    batch = Collator(layout, 0, 12)(samples(numbers))
    distiller = Distiller(
        student_model,
        teacher_model.config,
        layer_map,
        loss_weights,
        temperature=temperature,
        reference_averaging=layout == "fixed",
    ).double()
    for projection in distiller.projections:
        projection.weight.data.copy_(student_weights["fit_dense.weight"])
        projection.bias.data.copy_(student_weights["fit_dense.bias"])
    distiller.eval()
    signals = Teacher(teacher_model, layer_map, with_logits=bool(loss_weights.prediction))(batch)
    sums, counts = distiller(batch, signals), distiller.counts(batch)
    losses = {}
    for term, value in sums.items():
        group = term.split("/")[0]
        losses[group] = losses.get(group, 0) + value / counts[group]
    sum(losses.values()).backward()
    return {k: v.item() for k, v in losses.items()}, distiller


def worst_gradient_error(numbers, distiller, prefix):
    """Largest error relative to the largest gradient; parameters without one in the original have none."""
    expected = weights(numbers, prefix)
    scale = max(float(g.abs().max()) for g in expected.values())
    errors = []
    for name, gradient in expected.items():
        if name.startswith("cls."):
            continue  # the original ties its unused MLM head to the embeddings
        own = (
            distiller.projections[0].get_parameter(name.removeprefix("fit_dense."))
            if name.startswith("fit_dense")
            else distiller.model.get_parameter(name)
        )
        assert own.grad is not None, name
        errors.append(float((own.grad - gradient).abs().max()) / scale)
    assert len(errors) > 30
    reached = {n for n, p in distiller.model.named_parameters() if p.grad is not None}
    assert reached <= set(expected), reached - set(expected)
    return max(errors)


def test_task_step_1_equals_the_original(numbers):
    losses, distiller = distil(
        numbers, "student_cls/", weights(numbers, "student_cls/"), "fixed", DistillWeights()
    )
    assert losses["attention"] == pytest.approx(LOSSES["att_loss"], rel=TOLERANCE)
    assert losses["hidden"] == pytest.approx(LOSSES["rep_loss"], rel=TOLERANCE)
    assert worst_gradient_error(numbers, distiller, "task/grad_step1/") < TOLERANCE


def test_general_distillation_equals_the_original(numbers):
    losses, distiller = distil(
        numbers, "student_pre/", weights(numbers, "student_pre/"), "fixed", DistillWeights()
    )
    assert losses["attention"] == pytest.approx(LOSSES["general_att_loss"], rel=TOLERANCE)
    assert losses["hidden"] == pytest.approx(LOSSES["general_rep_loss"], rel=TOLERANCE)
    assert worst_gradient_error(numbers, distiller, "general/grad/") < TOLERANCE


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_task_step_2_equals_the_original(numbers, temperature):
    only_prediction = DistillWeights(attention=0, hidden=0, embedding=0, prediction=1)
    student_weights = weights(numbers, "student_cls/")
    losses, distiller = distil(
        numbers, "student_cls/", student_weights, "fixed", only_prediction, temperature
    )
    name = f"T{temperature:.0f}"
    assert losses["prediction"] == pytest.approx(LOSSES[f"cls_loss_{name}"], rel=TOLERANCE)
    assert worst_gradient_error(numbers, distiller, f"task/grad_step2_{name}/") < TOLERANCE


def test_packed_rows_equal_padded_rows(numbers):
    """The default averages over real tokens: the layout must not change loss or gradient."""
    student_weights = weights(numbers, "student_cls/")
    all_losses = DistillWeights(prediction=1.0)
    packed, by_packed = distil(numbers, "student_cls/", student_weights, "packed", all_losses)
    padded, by_padded = distil(numbers, "student_cls/", student_weights, "padded", all_losses)
    assert packed == pytest.approx(padded, rel=TOLERANCE)
    for (name, one), (_, other) in zip(
        by_packed.named_parameters(), by_padded.named_parameters(), strict=True
    ):
        assert torch.allclose(one.grad, other.grad, rtol=0, atol=1e-12), name


def test_default_averages_do_not_count_padding(numbers):
    """Weakening check: with padding counted the numbers are others, so the two averages are really two."""
    student_weights = weights(numbers, "student_cls/")
    packed, _ = distil(numbers, "student_cls/", student_weights, "packed", DistillWeights())
    assert abs(packed["attention"] / LOSSES["att_loss"] - 1) > 0.1
