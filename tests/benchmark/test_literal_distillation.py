"""The literal reading that speed is measured against computes what the original and what we compute."""

import copy

import numpy as np
import pytest
import torch
from literal_distillation import LiteralDistillation, evaluate, features
from model_folders import weights_of
from stage_steps import Steps, job_of
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from tinybert_dist.data.batches import Collator
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.distill.capture import uses_capture
from tinybert_dist.models import load_classifier, load_tokenizer
from tinybert_dist.stages import general_distill
from tinybert_dist.training.evaluation import predict
from tinybert_dist.training.strategy import start_accelerator

TOLERANCE = 1e-10


def original_model(reference, name, config):
    config = BertConfig(**reference[1][config], num_labels=reference[1]["num_labels"])
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    model = BertForSequenceClassification(config).double()
    model.load_state_dict(weights_of(reference, name), strict=False)
    return model


@pytest.fixture
def literal(reference):
    """Teacher and task student with the weights the original was run with, without dropout, in float64."""
    facts = reference[1]
    projection = nn.Linear(facts["student_config"]["hidden_size"], facts["fit_size"]).double()
    state = weights_of(reference, "student_cls")
    projection.load_state_dict({name: state[f"fit_dense.{name}"] for name in ("weight", "bias")})
    models = (
        original_model(reference, "teacher", "teacher_config"),
        original_model(reference, "student_cls", "student_config"),
    )
    return LiteralDistillation(*models, projection, learning_rate=facts["bertadam"]["lr"])


@pytest.fixture
def batch(reference):
    names = ("input_ids", "attention_mask", "token_type_ids", "label_ids")
    return [reference[0][f"in/{name}"] for name in names]


def test_step_1_and_the_optimizer_move_as_the_original(reference, literal, batch):
    told = [literal.step_1(batch) for _ in range(3)]
    losses = reference[1]["losses"]["f64"]
    assert told[0] == pytest.approx([losses["att_loss"], losses["rep_loss"]], rel=TOLERANCE)
    assert [sum(parts) for parts in told] == pytest.approx(losses["bertadam_none_losses"], rel=TOLERANCE)
    after, moved = weights_of(reference, "bertadam3_none"), 0
    before = weights_of(reference, "student_cls")
    own = {f"fit_dense.{n}": p for n, p in literal.projection.named_parameters()}
    for name, expected in after.items():
        parameter = own[name] if name in own else literal.student.get_parameter(name)
        assert torch.allclose(parameter, expected, rtol=0, atol=1e-9), name
        moved += not torch.allclose(before[name], expected, rtol=0, atol=1e-6)
    assert moved > 30


def test_step_2_tells_the_original_loss(reference, literal, batch):
    assert literal.step_2(batch) == pytest.approx(
        [reference[1]["losses"]["f64"]["cls_loss_T1"]], rel=TOLERANCE
    )


@pytest.mark.parametrize("parts", [1, 2])
def test_general_distillation_is_ours_with_the_original_averages(workspace, tmp_path, parts):
    """The same rows, weights and step, through the product's own loop and command line."""
    job = job_of(
        general_distill,
        train_file_path=workspace / "corpus.txt",
        teacher_model=workspace / "teacher",
        student_model=workspace / "student.json",
        output_dir=tmp_path / "run",
        max_seq_length=48,
        train_batch_size=8,
        gradient_accumulation_steps=parts,
        max_steps=4,
        reference_averaging=True,
    )
    steps = Steps(job)
    models = job.targets.model, job.module.model, job.module.projections[0]
    literal = LiteralDistillation(*map(copy.deepcopy, models))
    for model in (literal.teacher, literal.student, job.module):
        for module in model.modules():
            module.p = 0.0
    share = next(steps)
    rows = [batch.rows_B.tolist() for _, batch in share.micro_batches]
    assert len(rows) == parts and sum(map(len, rows)) == 8
    padded = features(job.dataset, np.concatenate(rows), 48)
    attention, hidden = literal.general_step([padded[:]])
    ours = steps.window.losses
    assert ours["loss/attention"] == pytest.approx(attention, rel=1e-5)
    assert ours["loss/hidden"] == pytest.approx(hidden, rel=1e-5)


def test_evaluation_gives_our_logits(workspace, sentences):
    tokenizer = load_tokenizer(workspace / "vocab")
    ids = [tokenizer(text, truncation=True, max_length=40)["input_ids"] for text in sentences[:30]]
    dataset = TokenDataset.from_rows(ids, [len(row) for row in ids], [0.0] * len(ids))
    model = uses_capture(load_classifier(workspace / "teacher", classifier_head="reference")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)  # else all rows have nearly the same logits
    ours = predict(model, dataset, Collator("packed", 0, 40), start_accelerator("no"), 256)
    theirs = evaluate(model, features(dataset, range(len(ids)), 40), 8)
    assert theirs.std(axis=0).min() > 0.02
    assert np.abs(ours - theirs).max() < 1e-5
