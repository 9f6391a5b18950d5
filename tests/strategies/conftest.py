import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tinybert_dist.stages import general_distill

# configuration file and what the program calls it, with 2 processes
STRATEGIES = {
    "cpu_2_processes": "DDP",
    "fsdp2": "FSDP2",
    "deepspeed_zero1": "DeepSpeed ZeRO-1",
    "deepspeed_zero2": "DeepSpeed ZeRO-2",
    "deepspeed_zero3": "DeepSpeed ZeRO-3",
}


def flags(options):
    """--name value ... of a dict."""
    return [str(x) for name, value in options.items() for x in (f"--{name}", value)]


@pytest.fixture(scope="session")
def several_runs(launch, tmp_path_factory):
    """several_runs(config, num_processes, [(stage, options), ...]): one launch that runs them all."""

    def run(config, num_processes, runs, **keywords):
        path = tmp_path_factory.mktemp("runs") / "runs.json"
        path.write_text(json.dumps([[stage, flags(options)] for stage, options in runs]))
        script = Path(__file__).with_name("several_runs.py")
        return launch(script, path, config=config, num_processes=num_processes, **keywords)

    return run


@pytest.fixture(scope="session")
def stages(workspace):
    """Options of the stages on the small workspace; no dropout: another split would draw differently."""
    student = json.loads((workspace / "student.json").read_text())
    student |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (workspace / "no_dropout.json").write_text(json.dumps(student))
    common = {
        "teacher_model": workspace / "teacher",
        "student_model": workspace / "no_dropout.json",
        "max_seq_length": 32,
        "train_batch_size": 12,
        "max_steps": 20,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "wandb_mode": "disabled",
    }
    general = common | {"train_file_path": workspace / "corpus.txt"}
    student = workspace / "student_without_dropout"
    general_distill.main(flags(general | {"output_dir": student, "max_steps": 2}))
    return {
        "general_distill": general,
        "task_distill": common | {"data_dir": workspace / "task", "student_model": student},
    }


def metrics(folder):
    """metrics.jsonl, one dict a line."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def loss_difference(folder, reference):
    """Largest relative difference of any loss term in any step."""
    ours, theirs = metrics(folder), metrics(reference)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    terms = [key for key in theirs[0] if key.startswith("loss/")]
    return max(abs(a[t] - b[t]) / abs(b[t]) for a, b in zip(ours, theirs, strict=True) for t in terms)


def gradients(folder):
    """Gradients of the first step by parameter, from Adam's first moment after it: 0.1 times the gradient."""
    moments = load_file(Path(folder) / "checkpoints" / "step-00000001" / "optimizer.safetensors")
    return {
        name.removeprefix("exp_avg."): 10 * m.double() for name, m in moments.items() if "exp_avg." in name
    }


def gradient_difference(folder, reference):
    """Largest over the parameters of |difference| / |gradient|."""
    ours, theirs = gradients(folder), gradients(reference)
    assert ours.keys() == theirs.keys()
    return max(float(torch.dist(ours[n], theirs[n]) / theirs[n].norm()) for n in theirs)
