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
