"""The same numbers on a GPU: float32 as on the CPU, bf16 near to it, every way through the attention loss."""

import json
from dataclasses import replace

import pytest
import torch
from benchmark_runs import arguments, options

from tinybert_dist.benchmark.subject import Subject
from tinybert_dist.files import read_json
from tinybert_dist.stages import benchmark
from tinybert_dist.training.strategy import RunAccelerator, autocast, start_accelerator

GPU = torch.device("cuda")
CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
TEACHER = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
TEACHER |= {"model_type": "bert", "vocab_size": 3000, "max_position_embeddings": 384}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SHORT, LONG = 48, 384  # heads of 32 + 64: score matrices for up to 168 tokens, none for more


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Configs of a teacher and a student that read 384 tokens, as options."""
    folder = tmp_path_factory.mktemp("configs")
    student = TEACHER | {"hidden_size": 128, "num_hidden_layers": 2}
    for name, config in (("teacher", TEACHER), ("student", student)):
        (folder / f"{name}.json").write_text(json.dumps(config | NO_DROPOUT))
    return {"teacher_model": folder / "teacher.json", "student_model": folder / "student.json"}


@pytest.fixture(params=[SHORT, LONG], ids=["score matrices", "no score matrices"])
def subject(request, workspace, models):
    """Rows that are filled up to as many tokens."""
    return Subject(options(workspace, mode="pairs", max_seq_length=request.param, **models), on(GPU))


def on(device, precision="no"):
    accelerator = start_accelerator("no")
    accelerator.precision = precision
    assert isinstance(accelerator, RunAccelerator) and accelerator.device.type == device.type
    return accelerator


def losses_and_gradients(subject, device, precision="no", layout="packed"):
    """Of general distillation on 16 rows: sums by term, and all gradients as one vector."""
    subject.accelerator.precision = precision
    collate = replace(subject.collate, layout=layout)
    batch = collate(subject.text.fetch(range(16))).to(device)
    job = subject.job("general")
    module, teacher = job.module.to(device), job.targets.to(device)
    if device == CPU:
        sums = module(batch, teacher(batch))
    else:
        with autocast(subject.accelerator):
            sums = module(batch, teacher(batch))
    torch.stack(list(sums.values())).sum().backward()
    gradients = [p.grad.float().flatten().cpu() for p in module.parameters() if p.grad is not None]
    return {name: value.item() for name, value in sums.items()}, torch.cat(gradients)


def cosine(gradients, others):
    return float(torch.nn.functional.cosine_similarity(gradients.double(), others.double(), dim=0))


def test_float32_is_what_the_cpu_computes(subject):
    losses, gradients = losses_and_gradients(subject, GPU)
    expected, expected_gradients = losses_and_gradients(subject, CPU)
    assert any(name.startswith("attention/") for name in losses)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert cosine(gradients, expected_gradients) > 0.99999


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("layout", ["padded", "fixed"])
def test_packed_rows_give_the_losses_of_padded_ones(subject, layout, precision):
    losses, gradients = losses_and_gradients(subject, GPU, precision)
    padded, padded_gradients = losses_and_gradients(subject, GPU, precision, layout)
    assert losses == pytest.approx(padded, rel=1e-4 if precision == "no" else 3e-2)
    assert cosine(gradients, padded_gradients) > (0.99999 if precision == "no" else 0.99)


def test_bf16_is_near_to_float32(subject):
    losses, gradients = losses_and_gradients(subject, GPU, "bf16")
    expected, expected_gradients = losses_and_gradients(subject, GPU)
    assert losses != expected  # or it was float32 again
    assert losses == pytest.approx(expected, rel=3e-2)
    assert cosine(gradients, expected_gradients) > 0.99


def test_the_benchmark_runs_there(workspace, models, tmp_path):
    file = tmp_path / "figures.json"
    sizes = {"mixed_precision": "bf16", "max_seq_length": LONG, "mode": "pairs", "sweep_tokens": [1024, 2048]}
    benchmark.main(arguments(workspace, json=file, measure_s=0.5, train_batch_size=64, **models | sizes))
    result = read_json(file)
    assert result["precision"] == "bf16" and {"no", "bf16"} == result["matrix_products"].keys()
    assert result["matrix_products"]["bf16"]["best"] > result["matrix_products"]["no"]["best"]
    for entry in result["measured"].values():
        assert entry["tokens_per_s"] > 0 and 0 < entry["share_of_floor"] < 1
        assert 1 << 20 < entry["memory_bytes"] < torch.cuda.get_device_properties(0).total_memory
    assert len(result["sweep"]["sizes"]) == 3
