"""A teacher divided over the processes: the same numbers, less memory on each."""

from pathlib import Path

import pytest
import torch
from campaign import SHARDINGS, loss_difference
from command_lines import flags
from transformers import BertConfig, BertModel

from tinybert_dist.files import read_json
from tinybert_dist.models import load_tokenizer, save_model

pytestmark = pytest.mark.dist
TOLERANCE = 1e-6


@pytest.mark.parametrize("config", SHARDINGS)
def test_losses_of_the_plain_teacher(campaign, config, capsys):
    plain = campaign("cpu_2_processes").folder
    references = {
        "general": plain / "equality" / "general_distill_1",
        "layers": plain / "equality" / "task_distill_1",
        "predictions": plain / "losses" / "predictions",
    }
    for name, reference in references.items():
        run = campaign(config).folder / "teacher" / name
        assert f"teacher_sharding: {SHARDINGS[config]}" in (run / "config.yaml").read_text()
        difference = loss_difference(run, reference)
        with capsys.disabled():
            print(f"\n{config:31} teacher {SHARDINGS[config]}  {name:11}  losses {difference:.1e}", end="")
        assert difference <= TOLERANCE
        if name == "predictions":
            scores = [read_json(folder / "eval_results.json")["score"] for folder in (run, reference)]
            assert scores[0] == scores[1]


@pytest.fixture(scope="module")
def large_teacher(workspace, tmp_path_factory):
    """Many small layers, 326 MiB: those gathered at a moment are few beside those at rest."""
    folder = tmp_path_factory.mktemp("large") / "teacher"
    tokenizer = load_tokenizer(workspace / "vocab")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        num_hidden_layers=48,
        num_attention_heads=6,
        intermediate_size=1536,
        max_position_embeddings=64,
    )
    save_model(BertModel(config), tokenizer, folder, card="random\n")
    return folder


def peak_memory(launch, workspace, teacher, folder, config, sharding):
    options = {
        "train_file_path": workspace / "corpus.txt",
        "teacher_model": teacher,
        "student_model": workspace / "student.json",
        "max_seq_length": 32,
        "train_batch_size": 4,
        "max_steps": 4,
        "logging_steps": 1,
        "save_step": 100,
        "wandb_mode": "disabled",
        "teacher_sharding": sharding,
    }
    script = Path(__file__).with_name("peak_memory.py")
    launch(script, folder, *flags(options), config=config, num_processes=2)
    return [int(path.read_text()) for path in sorted(folder.glob("peak_*.txt"))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "sharding"),
    [("cpu_2_processes", "fsdp2"), ("deepspeed_zero2_sharded_teacher", "zero3")],
)
def test_each_process_holds_its_share(
    launch, workspace, large_teacher, tmp_path, capsys, monkeypatch, config, sharding
):
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(name, "65536")  # else glibc keeps what was freed, and that is measured
    size = sum(f.stat().st_size for f in large_teacher.glob("*.safetensors"))
    plain, shared = (
        peak_memory(launch, workspace, large_teacher, tmp_path / how, config, how)
        for how in ("none", sharding)
    )
    with capsys.disabled():
        for how, values in (("whole", plain), (sharding, shared)):
            mib = ", ".join(f"{v / 2**20:.0f}" for v in values)
            print(f"\nteacher of {size / 2**20:.0f} MiB, {how}: {mib} MiB on the two processes", end="")
    for before, after in zip(plain, shared, strict=True):
        assert before - after > 0.35 * size  # a half, less the layers gathered at the moment
