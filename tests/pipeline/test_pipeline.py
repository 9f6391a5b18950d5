import json
import sys
from pathlib import Path

import pytest
from recipe_files import write_recipe

from tinybert_dist import cli
from tinybert_dist.config import UserError
from tinybert_dist.pipeline.processes import reset_process
from tinybert_dist.pipeline.recipe import Recipe, Step, read_recipe
from tinybert_dist.pipeline.run import command_of, run
from tinybert_dist.stages import pipeline

RECIPES = Path(__file__).resolve().parents[2] / "launch" / "recipes"
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


def test_runs_in_order_and_a_second_time_finds_everything_finished(tmp_path, capsys):
    stages = [
        {"name": "first", "stage": "collect_docs", "args": COLLECT},
        {"name": "again", "stage": "collect_docs", "args": COLLECT},
    ]
    path = write_recipe(tmp_path, data=str(tmp_path / "data"), stages=stages)
    pipeline.main([str(path), "--dry_run"])
    assert not (tmp_path / "data").exists()
    assert "-m tinybert_dist.stages.collect_docs" in capsys.readouterr().out
    pipeline.main([str(path)])
    output = capsys.readouterr().out
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["labels"] == ["networkx", "pandas"]
    places = [
        output.index(text) for text in ("1 of 2: first", "wrote", "2 of 2: again", "up to date", "finished")
    ]
    assert places == sorted(places)
    seconds = run(read_recipe(path))
    assert list(seconds) == ["first", "again"]
    assert capsys.readouterr().out.count("up to date") == 2


def test_a_failing_stage_stops_the_pipeline(tmp_path, capsys):
    stages = [
        {"name": "bad", "stage": "collect_docs", "args": {**COLLECT, "num_labelled": 0}},
        {"name": "never", "stage": "collect_docs", "args": COLLECT},
    ]
    path = write_recipe(tmp_path, data=str(tmp_path / "data"), stages=stages)
    with pytest.raises(SystemExit) as stop:
        pipeline.main([str(path)])
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert "--num_labelled 0" in errors and "stage bad failed with exit code 2" in errors
    assert not (tmp_path / "data").exists()


def test_a_misspelt_option_is_found_before_the_first_stage_starts(tmp_path, capsys):
    bad = {"name": "bad", "stage": "evaluate", "args": {"output_dir": "x", "modle": "m", "data_dir": "d"}}
    stages = [{"name": "first", "stage": "collect_docs", "args": COLLECT}, bad]
    path = write_recipe(tmp_path, data=str(tmp_path / "data"), stages=stages)
    with pytest.raises(SystemExit) as stop:
        pipeline.main([str(path)])
    assert stop.value.code == 2 and not (tmp_path / "data").exists()
    assert "stage bad cannot take these options" in capsys.readouterr().err


def test_the_launcher_starts_training_stages_only(tmp_path, capfd):
    data = Step("data", "collect_docs", ["--output_dir", str(tmp_path), "--dry_run"])
    train = Step("train", "task_distill", ["--flag"])
    launcher = [sys.executable, "-c", "import sys; print('launched', sys.argv[1:]); sys.exit(3)"]
    assert command_of(data, launcher)[:2] == ["python", "-m"]
    with pytest.raises(SystemExit) as stop:
        run(Recipe("r", [data, train]), launcher)
    assert stop.value.code == 3
    output = capfd.readouterr().out
    assert "would read" in output
    assert "launched ['-m', 'tinybert_dist.stages.task_distill', '--flag']" in output
    with pytest.raises(UserError, match="no_such_program"):
        run(Recipe("r", [train]), ["no_such_program"])


@pytest.mark.parametrize("folder", [".", "pretrained"])
def test_an_interrupted_stage_is_not_taken_for_a_finished_one(tmp_path, capfd, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    file = str(tmp_path / folder / "outcome.json")
    outcome = f"import json; json.dump({{'outcome': 'interrupted'}}, open({file!r}, 'w'))"
    train = Step("train", "task_distill", ["--output_dir", str(tmp_path)])
    never = Step("never", "collect_docs", ["--output_dir", str(tmp_path / "never"), "--num_labelled", "0"])
    seconds = run(Recipe("r", [train, never]), [sys.executable, "-c", outcome])
    assert list(seconds) == ["train"]
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


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_name_known_stages_options_and_files(path):
    import importlib

    recipe = read_recipe(path)
    for step in recipe.steps:
        assert step.stage in cli.stage_names()
        module = importlib.import_module(f"tinybert_dist.stages.{step.stage}")
        with pytest.raises(SystemExit) as stop:
            module.main([*step.argv, "--print_config"])
        assert stop.value.code == 0, f"{path.name}: {step.name}"
        for value in step.argv:
            assert not value.startswith(str(RECIPES)) or Path(value).is_file(), value
