"""Report cards of models whose configs name their sizes differently."""

import pytest
import torch
from report_folders import config_for, write_evaluation
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSequenceClassification

from tinybert_dist.files import read_json
from tinybert_dist.stages import report

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
FAMILIES = {
    "roberta": SIZES | {"max_position_embeddings": 41, "type_vocab_size": 1},
    "electra": SIZES | {"embedding_size": 16},
    "albert": SIZES | {"embedding_size": 16},
    "distilbert": {"dim": 32, "n_heads": 4, "hidden_dim": 48},
}
LENGTHS = (8, 16)


def write_model(folder, family, num_layers):
    layers = {"n_layers" if family == "distilbert" else "num_hidden_layers": num_layers}
    options = {"vocab_size": 200, "max_position_embeddings": 40, "num_labels": 3, "pad_token_id": 0}
    config = AutoConfig.for_model(family, **options | layers | FAMILIES[family])
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_and_student_of_any_family_are_described(tmp_path, family):
    models = {role: write_model(tmp_path / role, family, n) for role, n in (("teacher", 3), ("student", 1))}
    for role, score in (("teacher", 0.8), ("student", 0.76)):
        write_evaluation(tmp_path / role, score)
    result = report.run(config_for(tmp_path, label_only_model=[], run_folders=[]))
    assert read_json(tmp_path / "report" / "report.json") == result
    for role, model in models.items():
        entry = result[role]
        model.set_attn_implementation("eager")  # the counter has no formula for some fused kernels
        for length in LENGTHS:
            ids = torch.arange(5, 5 + length)[None]
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
            assert entry["flops_per_text"][str(length)] == counter.get_total_flops()
        embeddings = sum(p.numel() for p in model.base_model.embeddings.parameters())
        assert entry["parameters"] == model.num_parameters()
        assert entry["encoder_parameters"] == model.num_parameters() - embeddings
        assert (entry["hidden_size"], entry["heads"], entry["vocab_size"]) == (32, 4, 200)
    assert (result["teacher"]["layers"], result["student"]["layers"]) == (3, 1)
    assert "| layers x width, heads | 3 x 32, 4 | 1 x 32, 4 |" in (tmp_path / "report/report.md").read_text()
