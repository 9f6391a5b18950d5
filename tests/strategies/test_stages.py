"""What the equality tests leave out: the other losses, evaluation, bfloat16, three processes."""

import pytest
from conftest import STRATEGIES, loss_difference, metrics

from tinybert_dist.files import read_json

pytestmark = pytest.mark.dist
SHARDED = [config for config in STRATEGIES if config != "cpu_2_processes"]
# name: stage, changes, tolerance of the losses
RUNS = {
    "scores_alone": ("general_distill", {"hidden_weight": 0, "embedding_weight": 0}, 1e-6),
    "projections": ("general_distill", {"per_layer_projections": True}, 1e-6),
    "bfloat16": ("general_distill", {"mixed_precision": "bf16"}, 1e-3),
    "predictions": ("task_distill", {"pred_distill": True, "eval_step": 5}, 1e-6),
    "labels": ("finetune_teacher", {"eval_step": 5}, 1e-6),
}


def runs(stages, folder):
    for name, (stage, changes, _) in RUNS.items():
        options = stages.get(stage, stages["task_distill"]) | changes | {"output_dir": folder / name}
        if stage == "finetune_teacher":
            options["teacher_model"] = options.pop("student_model")
        yield stage, options


@pytest.fixture(scope="module")
def plain(several_runs, stages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    several_runs("cpu_2_processes", 2, list(runs(stages, folder)))
    return folder


@pytest.mark.parametrize("config", SHARDED)
def test_every_loss_and_its_evaluation(several_runs, stages, plain, tmp_path, config, capsys):
    result = several_runs(config, 2, list(runs(stages, tmp_path)))
    assert result.stdout.count(f"2 on cpu, {STRATEGIES[config]}") == len(RUNS)
    assert result.stdout.count("bf16 mixed precision") == 1
    for name, (_, changes, tolerance) in RUNS.items():
        difference = loss_difference(tmp_path / name, plain / name)
        with capsys.disabled():
            print(f"\n{STRATEGIES[config]:17} {name:12} losses {difference:.1e}", end="")
        assert difference <= tolerance
        if "eval_step" in changes:
            ours, theirs = (read_json(f / name / "eval_results.json") for f in (tmp_path, plain))
            assert ours["step"] == theirs["step"] and ours["score"] == theirs["score"]
            scores = [[row.get("eval/score") for row in metrics(f / name)] for f in (tmp_path, plain)]
            assert scores[0] == scores[1] and len([s for s in scores[0] if s is not None]) == 4


@pytest.mark.parametrize("config", ["fsdp2", "deepspeed_zero3"])
def test_three_processes_divide_nothing_evenly(several_runs, stages, tmp_path, config):
    """Sizes that three does not divide: shards are padded, saved whole and resumed."""
    common = stages["general_distill"] | {"max_steps": 4, "save_step": 2}
    options = common | {"output_dir": tmp_path / "run"}
    result = several_runs(config, 3, [("general_distill", options)])
    assert f"3 on cpu, {STRATEGIES[config]}" in result.stdout
    expected = metrics(tmp_path / "run")
    from test_resume_matrix import stopped_at

    resumed = stopped_at(2, tmp_path / "run", tmp_path / "resumed")
    result = several_runs(config, 3, [("general_distill", common | {"output_dir": resumed})])
    assert "from step 2" in result.stdout
    for ours, theirs in zip(metrics(resumed)[-4:], expected, strict=True):
        assert ours["loss/total"] == pytest.approx(theirs["loss/total"], rel=1e-7), ours["step"]
