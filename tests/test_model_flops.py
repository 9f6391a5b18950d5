import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
)

from tinybert_dist.model_flops import classifier_flops, forward_flops_per_token, head_flops

SIZES = {
    "vocab_size": 60,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "num_labels": 3,
}


def counted(model, length, batch_size=1):
    # eager attention: the counter has no formula for some fused kernels
    ids = torch.randint(5, 60, (batch_size, length), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(**SIZES),
        RobertaConfig(**SIZES, max_position_embeddings=80),
        ElectraConfig(**SIZES, embedding_size=16),
        AlbertConfig(**SIZES, embedding_size=16),
        AlbertConfig(**SIZES, embedding_size=48, num_hidden_groups=3, inner_group_num=2),
        DistilBertConfig(vocab_size=60, dim=48, n_layers=3, n_heads=4, hidden_dim=80, num_labels=3),
    ],
    ids=["bert", "roberta", "electra", "albert", "albert, layers in groups", "distilbert"],
)
@pytest.mark.parametrize("length", [7, 64])
def test_the_closed_form_is_what_torch_counts(config, length):
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    assert counted(model, length) == classifier_flops(config, length)
    assert counted(model, length, batch_size=3) == 3 * classifier_flops(config, length)


def test_a_teacher_that_stops_early_costs_what_a_shorter_model_costs():
    config, short = BertConfig(**SIZES), BertConfig(**SIZES | {"num_hidden_layers": 2})
    assert forward_flops_per_token(config, 32, num_layers=2) == forward_flops_per_token(short, 32)
    # by hand, for 1 token of a text of 32: 2 layers of 4 products 48 x 48, 2 of 48 x 80, 2 of 32 x 48
    assert forward_flops_per_token(short, 32) == 2 * 2 * (4 * 48 * 48 + 2 * 48 * 80 + 2 * 32 * 48)
    assert head_flops(config) == 2 * 48 * (48 + 3)
