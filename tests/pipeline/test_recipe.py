import pytest
from recipe_files import write_recipe

from tinybert_dist.config import UserError
from tinybert_dist.pipeline.recipe import read_recipe


def test_variables_lists_and_switches_become_a_command_line(tmp_path):
    args = {
        "output_dir": "${data}/x",
        "packages": ["a", "${name_of_b}"],
        "flag": True,
        "lr": 1e-3,
        "unset": None,
    }
    path = write_recipe(
        tmp_path,
        name="n",
        output_dir="runs",
        data="${output_dir}/data",
        name_of_b="b",
        stages=[{"name": "one", "stage": "collect_docs", "args": {**args, "here": "${recipe_dir}/x.json"}}],
    )
    recipe = read_recipe(path, ["output_dir=/scratch=1", "name_of_b=c"])
    assert recipe.name == "n"
    assert recipe.steps[0].argv == [
        *["--output_dir", "/scratch=1/data/x", "--packages", "a", "c", "--flag", "true", "--lr", "0.001"],
        *["--here", f"{tmp_path}/x.json"],
    ]


def test_words_of_a_recipe_stay_as_they_are_written(tmp_path):
    """YAML 1.1 would hand the stage the labels False and True, and the layer map 63."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "stages:\n- name: one\n  stage: task_distill\n  args: {labels: [no, yes], layer_map: 1:3, seed: 7}\n"
    )
    argv = read_recipe(path, []).steps[0].argv
    assert argv == ["--labels", "no", "yes", "--layer_map", "1:3", "--seed", "7"]


STAGE = {"name": "one", "stage": "collect_docs", "args": {"output_dir": "x"}}


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        ({"name": "n"}, [], "`stages` must be a list"),
        ({"stages": [{"name": "one"}]}, [], r"stages\[0\]: expected the keys"),
        ({"stages": [{**STAGE, "stage": "colect_docs"}]}, [], "Did you mean collect_docs"),
        ({"stages": [{**STAGE, "stage": "pipeline"}]}, [], "no stage 'pipeline'"),
        ({"stages": [{**STAGE, "arg": {}}]}, [], r"unknown key 'arg'. Did you mean args"),
        ({"stages": [{**STAGE, "args": ["--x"]}]}, [], "args must be"),
        ({"stages": [STAGE, STAGE]}, [], "'one' is used twice"),
        (
            {"output_dir": "x", "stages": [{**STAGE, "args": {"a": "${outputdir}"}}]},
            [],
            "Did you mean output_dir",
        ),
        ({"a": "${b}", "b": "${a}", "stages": [STAGE]}, [], "in a circle"),
        ({"output_dir": "x", "stages": [STAGE]}, ["outputdir=y"], "Did you mean output_dir"),
        ({"output_dir": "x", "stages": [STAGE]}, ["output_dir"], "write key=value"),
    ],
)
def test_mistakes_name_the_place_and_the_remedy(tmp_path, content, overrides, message):
    with pytest.raises(UserError, match=message):
        read_recipe(write_recipe(tmp_path, **content), overrides)


def test_a_variable_alone_may_be_a_list_or_nothing(tmp_path):
    args = {"output_dir": "x", "packages": "${packages}", "num_labelled": "${few}", "min_words": "${few}"}
    stages = [{"name": "one", "stage": "collect_docs", "args": args}]
    path = write_recipe(tmp_path, packages=["a", "b"], few=None, stages=stages)
    assert read_recipe(path).steps[0].argv == ["--output_dir", "x", "--packages", "a", "b"]
    argv = read_recipe(path, ["packages=[c]", "few=7"]).steps[0].argv
    assert argv == ["--output_dir", "x", "--packages", "c", "--num_labelled", "7", "--min_words", "7"]
    assert read_recipe(path, ["packages="]).steps[0].argv == ["--output_dir", "x"]


def test_cases_set_the_variables_that_follow_from_another(tmp_path):
    cases = {"task": {"CoLA": {"epochs": 50, "length": 64}, "RTE": {"epochs": 20, "length": 128}}}
    args = {"output_dir": "${task}", "num_labelled": "${epochs}", "min_words": "${length}"}
    path = write_recipe(
        tmp_path,
        name="n-${task}",
        task="RTE",
        cases=cases,
        stages=[{"name": "one", "stage": "collect_docs", "args": args}],
    )
    assert read_recipe(path).steps[0].argv == "--output_dir RTE --num_labelled 20 --min_words 128".split()
    recipe = read_recipe(path, ["task=CoLA", "length=99"])
    assert recipe.name == "n-CoLA"
    assert recipe.steps[0].argv == "--output_dir CoLA --num_labelled 50 --min_words 99".split()
    with pytest.raises(UserError, match=r"task COLA: no such case. Did you mean CoLA"):
        read_recipe(path, ["task=COLA"])


def test_a_recipe_may_change_another(tmp_path):
    write_recipe(tmp_path, size="4", output_dir="four", slurm={"nodes": 1}, stages=[STAGE]).rename(
        tmp_path / "four.yaml"
    )
    path = write_recipe(tmp_path, base="four.yaml", name="six", output_dir="six")
    recipe = read_recipe(path)
    assert (recipe.name, recipe.output_dir) == ("six", "six")
    assert recipe.steps[0].stage == "collect_docs" and recipe.steps[0].slurm == {"nodes": "1", "env": {}}
    with pytest.raises(UserError, match=r"none\.yaml: No such file"):
        read_recipe(write_recipe(tmp_path, base="none.yaml"))


def test_resources_of_a_step_win_over_those_of_all(tmp_path):
    slurm = {"nodes": 1, "time": "20:00:00", "env": {"A": "1"}}
    own = {
        **STAGE,
        "name": "two",
        "args": {"output_dir": "y"},
        "slurm": {"nodes": "${n}", "env": {"B": "${n}"}},
    }
    path = write_recipe(tmp_path, n=2, slurm=slurm, stages=[STAGE, own])
    one, two = read_recipe(path).steps
    assert one.slurm == {"nodes": "1", "time": "20:00:00", "env": {"A": "1"}}
    assert two.slurm == {"nodes": "2", "time": "20:00:00", "env": {"A": "1", "B": "2"}}
