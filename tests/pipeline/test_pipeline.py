import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from command_lines import general_distillation
from recipe_files import write_recipe

from tinybert_dist.config import UserError
from tinybert_dist.files import read_json
from tinybert_dist.pipeline.plan import make_plan
from tinybert_dist.pipeline.processes import reset_process
from tinybert_dist.pipeline.recipe import Recipe, Step, read_recipe
from tinybert_dist.pipeline.run import LAUNCHED_STAGES, command_of, run
from tinybert_dist.stages import collect_docs, pipeline

ROOT = Path(__file__).resolve().parents[2]
COLLECT = {"packages": ["pandas", "networkx"], "max_files_per_package": 60, "max_texts_per_class": 200}
COLLECT |= {"vocab_size": 600, "num_workers": 1, "output_dir": "${data}"}


def test_missing_and_broken_files_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        pipeline.main([str(tmp_path / "none.yaml")])
    assert stop.value.code == 2
    assert "none.yaml: No such file" in capsys.readouterr().err
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"broken\.yaml is not valid YAML"):
        read_recipe(tmp_path / "broken.yaml")


def test_a_failing_stage_stops_the_pipeline(tmp_path, capsys):
    never = {**COLLECT, "output_dir": "${data}_2"}
    stages = [
        {"name": "bad", "stage": "collect_docs", "args": {**COLLECT, "num_labelled": 0}},
        {"name": "never", "stage": "collect_docs", "args": never},
    ]
    path = write_recipe(tmp_path, data=str(tmp_path / "data"), stages=stages)
    with pytest.raises(SystemExit) as stop:
        pipeline.main([str(path)])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert "--num_labelled 0" in printed.err and "stage bad failed with exit code 2" in printed.err
    assert "2 of 2: never" not in printed.out
    assert not (tmp_path / "data").exists() and not (tmp_path / "data_2").exists()


def test_documentation_is_collected_again_when_the_packages_are_others(tmp_path, capsys, monkeypatch):
    stages = [{"name": "data", "stage": "collect_docs", "args": COLLECT}]
    path = write_recipe(tmp_path, data=str(tmp_path / "data"), stages=stages)
    pipeline.main([str(path)])
    assert read_json(tmp_path / "data" / "manifest.json")["labels"] == ["networkx", "pandas"]
    pipeline.main([str(path)])
    assert "0 of 1 steps to run" in capsys.readouterr().out
    monkeypatch.setitem(collect_docs.DISTRIBUTIONS, "pandas", "numpy")  # whose version is another one
    pipeline.main([str(path), "--dry_run"])
    assert f"package pandas: {version('pandas')} -> {version('numpy')}" in capsys.readouterr().out


def test_a_misspelt_option_is_found_before_the_first_stage_starts(tmp_path, capsys):
    bad = {"name": "bad", "stage": "evaluate", "args": {"output_dir": "x", "modle": "m", "data_dir": "d"}}
    stages = [{"name": "first", "stage": "collect_docs", "args": COLLECT}, bad]
    path = write_recipe(tmp_path, data=str(tmp_path / "data"), stages=stages)
    with pytest.raises(SystemExit) as stop:
        pipeline.main([str(path)])
    assert stop.value.code == 2 and not (tmp_path / "data").exists()
    assert "stage bad cannot take these options" in capsys.readouterr().err


def test_the_launcher_starts_the_stages_that_work_on_several_processes(workspace, tmp_path, capfd):
    data = Step("data", "collect_docs", ["--output_dir", str(tmp_path / "data"), "--dry_run"])
    train = Step("train", "general_distill", general_distillation(workspace, tmp_path / "student"))
    launcher = [sys.executable, "-c", "import sys; print('launched', sys.argv[1:4]); sys.exit(3)"]
    assert command_of(data, launcher)[:2] == ["python", "-m"]
    with pytest.raises(SystemExit) as stop:
        run(make_plan(Recipe("r", [data])), launcher)
    assert stop.value.code == 1
    printed = capfd.readouterr()
    assert "would read" in printed.out and "stage data ended, but" in printed.err  # nothing was written
    with pytest.raises(SystemExit) as stop:
        run(make_plan(Recipe("r", [train])), launcher)
    assert stop.value.code == 3
    output = capfd.readouterr().out
    assert "launched ['-m', 'tinybert_dist.stages.general_distill', '--train_file_path']" in output
    with pytest.raises(UserError, match="no_such_program"):
        run(make_plan(Recipe("r", [train])), ["no_such_program"])


def test_a_launcher_and_a_job_start_the_same_stages_on_several_processes():
    script = ROOT / "launch" / "slurm" / "stage.sbatch"
    cases = re.findall(r"^([a-z_ |]+)\) START=(?:launcher|share)\b", script.read_text(), re.M)
    assert {stage.strip() for case in cases for stage in case.split("|")} == LAUNCHED_STAGES


@pytest.mark.parametrize("folder", [".", "pretrained"])
def test_an_interrupted_stage_is_not_taken_for_a_finished_one(workspace, tmp_path, capfd, folder):
    out = tmp_path / "out"
    write_outcome = (
        "import json, pathlib, sys; "
        f"folder = pathlib.Path({str(out / folder)!r}); folder.mkdir(parents=True, exist_ok=True); "
        "json.dump({'outcome': 'interrupted'}, open(folder / 'outcome.json', 'w'))"
    )
    train = Step("train", "general_distill", general_distillation(workspace, out))
    never = Step("never", "collect_docs", ["--output_dir", str(tmp_path / "never"), "--num_labelled", "0"])
    plan = make_plan(Recipe("r", [train, never]))
    assert list(run(plan, [sys.executable, "-c", write_outcome])) == ["train"]
    assert "train was interrupted" in capfd.readouterr().out
    assert [p.decision.action for p in make_plan(Recipe("r", [train, never])).steps] == ["resume", "run"]


def test_signals_that_come_before_the_end_are_an_interruption(workspace, tmp_path, capfd):
    ask = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    train = Step("train", "general_distill", general_distillation(workspace, tmp_path / "out"))
    assert list(run(make_plan(Recipe("r", [train])), [sys.executable, "-c", ask])) == ["train"]
    assert "train was interrupted" in capfd.readouterr().out


def test_stages_start_without_the_state_of_the_one_before():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    Accelerator(cpu=True, gradient_accumulation_steps=3)
    reset_process()
    assert (
        not AcceleratorState._shared_state
        and not PartialState._shared_state
        and not GradientState._shared_state
    )
