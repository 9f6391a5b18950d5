"""What is asked of sbatch; tests/slurm submits."""

import pytest
from recipe_files import write_recipe

from tinybert_dist.config import UserError
from tinybert_dist.pipeline.plan import make_plan
from tinybert_dist.pipeline.recipe import Step, read_recipe
from tinybert_dist.pipeline.slurm import logs_of, requested, sbatch_command
from tinybert_dist.stages import pipeline

STAGE = {"name": "data", "stage": "collect_docs", "args": {"output_dir": "${output_dir}/data"}}


def test_options_of_sbatch_are_written_as_a_recipe_writes_them():
    slurm = {"gpus_per_node": "8", "nodes": "2", "time": "20:00:00", "exclusive": "true", "requeue": "false"}
    step = Step("s", "report", [], {**slurm, "partition": None, "env": {"PROCESSES_PER_NODE": 4}})
    options, environment = requested(step)
    assert options == {"gpus-per-node": "8", "nodes": "2", "time": "20:00:00", "exclusive": True}
    assert environment == {"PROCESSES_PER_NODE": "4"}


@pytest.mark.parametrize(
    ("slurm", "message"),
    [
        (
            {"gpu_per_node": 8},
            r"step s: slurm: no option 'gpu_per_node' may be set. Did you mean gpus-per-node",
        ),
        ({"dependency": "afterok:1"}, "no option 'dependency' may be set"),
        ({"array": "0-3"}, "no option 'array' may be set"),
        ({"env": "A=1"}, "step s: slurm: env must be"),
    ],
)
def test_other_options_are_refused_by_name(slurm, message):
    with pytest.raises(UserError, match=message):
        requested(Step("s", "report", [], slurm))


def test_the_line_that_submits_a_step(tmp_path):
    path = write_recipe(
        tmp_path, name="n", output_dir=str(tmp_path / "runs"), slurm={"nodes": 2}, stages=[STAGE]
    )
    plan = make_plan(read_recipe(path))
    command = sbatch_command(plan, plan.steps[0].step, ["7", "8"])
    assert command[:4] == ["sbatch", "--parsable", "--job-name=n.data", "--export=ALL"]
    assert command[4:8] == [
        "--nodes=2",
        f"--output={tmp_path}/runs/logs/%x-%j.out",
        "--dependency=afterok:7:8",
        "--kill-on-invalid-dep=yes",
    ]
    assert command[8].endswith("launch/slurm/stage.sbatch")
    assert command[9:] == ["collect_docs", "--output_dir", f"{tmp_path}/runs/data"]
    assert not any("dependency" in word for word in sbatch_command(plan, plan.steps[0].step))


def test_logs_do_not_lie_in_a_folder_that_a_stage_may_refuse(tmp_path):
    stage = {**STAGE, "args": {"output_dir": "${output_dir}"}}
    path = write_recipe(tmp_path, output_dir=str(tmp_path / "runs"), stages=[stage])
    assert logs_of(make_plan(read_recipe(path))) == tmp_path / "runs.logs"


def test_without_slurm_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    path = write_recipe(tmp_path, output_dir=str(tmp_path / "runs"), stages=[STAGE])
    for arguments, message in (
        (["--slurm"], "--slurm: there is no squeue here"),
        (["--slurm", "--launcher", "accelerate launch"], "--slurm and --launcher"),
    ):
        with pytest.raises(SystemExit) as stop:
            pipeline.main([str(path), *arguments])
        assert stop.value.code == 2 and message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]
    pipeline.main([str(path), "--slurm", "--dry_run"])
    assert "sbatch --parsable" in capsys.readouterr().out
