"""What a token costs and how much of a GPU's peak that is."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from tinybert_dist.distill.layer_map import build_layer_map
from tinybert_dist.distill.teacher import Teacher
from tinybert_dist.training.utilisation import PEAKS, peak_flops, training_flops_per_token

SIZES = {"vocab_size": 60, "num_attention_heads": 4, "intermediate_size": 80}


@pytest.mark.parametrize(
    ("device", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10", "A10"),
    ],
)
def test_gpus_are_known_by_the_name_cuda_gives(device, known):
    assert peak_flops(device) == PEAKS[known]


@pytest.mark.parametrize("device", ["NVIDIA A10G", "Tesla T4", "NVIDIA GeForce RTX 4090", "AMD MI300X"])
def test_what_is_not_known_is_not_guessed(device):
    assert peak_flops(device) is None


def test_a_token_costs_what_torch_counts_of_teacher_forward_and_student_forward_and_backward():
    config = BertConfig(**SIZES, hidden_size=48, num_hidden_layers=4)
    small = BertConfig(**SIZES, hidden_size=24, num_hidden_layers=2)
    teacher = BertModel(config, add_pooling_layer=False)
    student = BertModel(small, add_pooling_layer=False)
    for model in (teacher, student):
        model.set_attn_implementation("eager")
        model.eval()
    ids = torch.arange(5, 37)[None]
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            # the map looks at layers 1 and 2: those above are not computed
            hidden = teacher(ids, output_hidden_states=True).hidden_states
        forward = counter.get_total_flops()
        student(ids).last_hidden_state.sum().backward()
    shorter = forward * 2 // 4
    # the first layer's input needs no gradient in the embeddings' look-up, but its products do
    counted = shorter + counter.get_total_flops() - forward
    assert len(hidden) == 5
    targets = Teacher(teacher, build_layer_map("bottom", 2, 4))
    assert training_flops_per_token(small, targets, 32) * 32 == counted
