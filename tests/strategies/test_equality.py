"""The same job gives the same losses and gradients under every strategy, rank count and accumulation."""

import pytest
import torch
from campaign import (
    ACCUMULATIONS,
    LOSSES,
    STRATEGIES,
    WITH_LOSSES,
    WITH_PRETRAINING,
    loss_difference,
    metrics,
    norm_difference,
)
from safetensors.torch import load_file

from tinybert_dist.files import read_json

pytestmark = pytest.mark.dist
LOSS_TOLERANCE = 1e-5  # 20 steps, every term
GRADIENT_TOLERANCE = 1e-6  # the first step, every parameter
BFLOAT16_TOLERANCE = 1e-3
WEIGHT_TOLERANCE = 1e-6  # after 20 steps
CASES = [
    ("cpu", 1),
    *((config, 2) for config in STRATEGIES if config != "deepspeed_zero1"),
    # what it divides is a part of what ZeRO-2 does
    pytest.param("deepspeed_zero1", 2, marks=pytest.mark.slow),
    # alone, a strategy divides nothing; the launches take a minute
    *(pytest.param(c, 1, marks=pytest.mark.slow) for c in STRATEGIES if c != "cpu_2_processes"),
]


def gradients(folder):
    """Gradients of the first step by parameter, from Adam's first moment after it: 0.1 times the gradient."""
    moments = load_file(folder / "checkpoints" / "step-00000001" / "optimizer.safetensors")
    return {
        name.removeprefix("exp_avg."): 10 * m.double() for name, m in moments.items() if "exp_avg." in name
    }


def gradient_difference(folder, reference):
    """Largest over the parameters of |difference| / |gradient|."""
    ours, theirs = gradients(folder), gradients(reference)
    assert ours.keys() == theirs.keys()
    return max(float(torch.dist(ours[n], theirs[n]) / theirs[n].norm()) for n in theirs)


def weight_difference(folder, reference):
    """Largest of all weights."""
    ours, theirs = (load_file(f / "model.safetensors") for f in (folder, reference))
    assert ours.keys() == theirs.keys()
    return max(float((ours[n] - theirs[n]).abs().max()) for n in theirs)


def key_biases(folder):
    """Of every layer; softmax does not see them, so their gradient is noise, which Adam would amplify."""
    weights = load_file(folder / "model.safetensors")
    return {name.removeprefix("bert."): w for name, w in weights.items() if name.endswith("key.bias")}


@pytest.mark.parametrize(("config", "num_processes"), CASES)
def test_equal_to_one_process(campaign, config, num_processes, capsys):
    ours, reference = campaign(config, num_processes), campaign("cpu", 1)
    name = STRATEGIES.get(config, "one process")
    assert ours.stdout.count(f"{num_processes} on cpu, {name}") >= ours.num_runs
    for stage in ("general_distill", "task_distill"):
        for accumulation in ACCUMULATIONS:
            equality, first_step = (
                [ours.folder / kind / f"{stage}_{accumulation}", reference.folder / kind / f"{stage}_1"]
                for kind in ("equality", "first_step")
            )
            losses, norm = loss_difference(*equality), norm_difference(*equality)
            gradient = gradient_difference(*first_step)
            with capsys.disabled():
                print(
                    f"\n{name:17} ranks {num_processes}  accumulation {accumulation}  {stage:15}  "
                    f"losses {losses:.1e}  gradients {gradient:.1e}  norm {norm:.1e}",
                    end="",
                )
            assert max(losses, norm) <= LOSS_TOLERANCE
            assert gradient <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("config", WITH_LOSSES[1:])
def test_every_loss_and_its_evaluation(campaign, stages, config, capsys):
    ours, plain = campaign(config).folder / "losses", campaign("cpu_2_processes").folder / "losses"
    assert campaign(config).stdout.count("bf16 mixed precision") == 1
    for name, (_, changes) in LOSSES.items():
        difference = loss_difference(ours / name, plain / name)
        with capsys.disabled():
            print(f"\n{STRATEGIES[config]:17} {name:12} losses {difference:.1e}", end="")
        assert difference <= (BFLOAT16_TOLERANCE if name == "bfloat16" else LOSS_TOLERANCE)
        if name not in {"bfloat16", "noise"}:
            assert weight_difference(ours / name, plain / name) <= WEIGHT_TOLERANCE
        if name == "noise":  # no scores in the loss: as the student brought them
            before = key_biases(stages["task_distill"]["student_model"])
            after = key_biases(ours / name)
            assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
        if "eval_step" in changes and name != "noise":
            results = [read_json(folder / name / "eval_results.json") for folder in (ours, plain)]
            assert results[0]["step"] == results[1]["step"] and results[0]["score"] == results[1]["score"]
            scores = [[row.get("eval/score") for row in metrics(folder / name)] for folder in (ours, plain)]
            assert scores[0] == scores[1] and len([s for s in scores[0] if s is not None]) == 4


@pytest.mark.parametrize("config", WITH_PRETRAINING[1:])
def test_two_trainings_in_one_process(campaign, config):
    """Pretraining and fine-tuning: the second starts without the first's optimizer."""
    ours, plain = campaign(config).folder / "pretrained", campaign("cpu_2_processes").folder / "pretrained"
    assert loss_difference(ours / "pretrained", plain / "pretrained") <= LOSS_TOLERANCE
    assert loss_difference(ours, plain) <= LOSS_TOLERANCE
    assert weight_difference(ours, plain) <= WEIGHT_TOLERANCE
