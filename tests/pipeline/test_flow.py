import dataclasses
import re

import pytest
from command_lines import flags, general_distillation

from tinybert_dist import cli
from tinybert_dist.config import UserError
from tinybert_dist.pipeline.flow import NAMES_INPUT, Input, below_output, config_class, declare, output_below
from tinybert_dist.pipeline.plan import make_plan
from tinybert_dist.pipeline.recipe import COMMANDS, Recipe, Step
from tinybert_dist.pipeline.show import tree


@pytest.mark.parametrize(
    ("path", "output", "place"),
    [
        ("/r/teacher", "/r/teacher", "."),
        ("/r/teacher/pretrained", "/r/teacher", "pretrained"),
        ("/r/teacher2", "/r/teacher", None),
        ("/r", "/r/teacher", None),
        ("/r/data/train_aug.tsv", "/r/data/train_aug*", "train_aug.tsv"),
        ("/r/data/train.tsv", "/r/data/train_aug*", None),
        ("/r/corpus/*.txt", "/r/corpus", "."),
        ("/r/corpus/*.txt", "/r/corpus/a.txt", None),
    ],
)
def test_what_lies_in_an_output_is_found(path, output, place):
    assert below_output(path, output) == place


@pytest.mark.parametrize(
    ("output", "read", "place"),
    [
        ("/r/data/train_aug*", Input("data_dir", "/r/data"), "train_aug*"),
        ("/r/data/train_aug*", Input("data_dir", "/r/data", (), ("train_aug*",)), None),
        ("/r/data/sub/train_aug*", Input("data_dir", "/r/data", (), ("train_aug*",)), None),
        ("/r/texts/a", Input("train_file_path", "/r/texts"), "a"),
        ("/r/model/eval", Input("teacher_model", "/r/model", ("config.json",)), None),
        ("/r/model/config.json", Input("teacher_model", "/r/model", ("config.json",)), "config.json"),
        ("/r/other", Input("teacher_model", "/r/model"), None),
    ],
)
def test_an_output_inside_a_folder_that_is_read_is_found(output, read, place):
    assert output_below(output, read) == place


def test_options_that_read_files_are_told_by_their_names():
    """A stage's new option with a folder, file or model must count by its content, not by its name."""
    for stage in set(cli.stage_names()) - COMMANDS:
        for field in dataclasses.fields(config_class(stage)):
            text = str(field.metadata.get("help", ""))
            is_path = re.search("hub name|folder (with|of|or)|file of", text)
            if is_path and field.name != "output_dir" and "choices" not in field.metadata:
                assert NAMES_INPUT.fullmatch(field.name), f"{stage} --{field.name}: {text}"


@pytest.mark.parametrize(
    ("options", "output"),
    [
        ({"data_path": "d/texts.csv"}, "d/texts_aug*"),
        ({"data_path": "d/texts.csv.gz"}, "d/texts_aug*"),
        ({"data_path": "d/texts.txt", "output_dir": "o"}, "o/texts_aug*"),
        ({"data_path": "d"}, "d/train_aug*"),
        ({"glue_dir": "glue", "task_name": "SST-2"}, "glue/SST-2/train_aug*"),
        ({"glue_dir": "glue/SST-2", "task_name": "SST-2"}, "glue/SST-2/train_aug*"),
    ],
)
def test_augmented_files_lie_where_the_stage_writes_them(tmp_path, monkeypatch, options, output):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    step = Step("augment", "augment", flags({"pretrained_bert_model": "m", **options}))
    assert declare(step).outputs == [str(tmp_path / output)]


def test_texts_made_by_steps_side_by_side_are_read_together(tmp_path, workspace):
    def corpus(name):
        argv = ["--train_file_path", str(workspace / "corpus.txt"), "--tokenizer", str(workspace / "vocab")]
        return Step(name, "prepare_corpus", [*argv, "--output_dir", str(tmp_path / "texts" / name)])

    general = Step(
        "general",
        "general_distill",
        general_distillation(workspace, tmp_path / "student", train_file_path=tmp_path / "texts"),
    )
    plan = make_plan(Recipe("r", [corpus("a"), corpus("b"), general]))
    assert plan.steps[-1].reads == ["a", "b"]
    with pytest.raises(UserError, match=r"step general reads what step b writes .* stands below it"):
        make_plan(Recipe("r", [corpus("a"), general, corpus("b")]))
    with pytest.raises(UserError, match="steps a and again both write"):
        make_plan(Recipe("r", [corpus("a"), dataclasses.replace(corpus("a"), name="again")]))


def test_a_step_inside_anothers_folder_keeps_its_record_outside(tmp_path, workspace):
    """A training stage refuses a folder in which something lies already."""
    outer = Step("outer", "general_distill", general_distillation(workspace, tmp_path / "outer"))
    argv = ["--model", "google/elsewhere", "--data_dir", str(workspace / "task")]
    inner = Step("inner", "evaluate", [*argv, "--output_dir", str(tmp_path / "outer" / "eval")])
    plan = make_plan(Recipe("r", [outer, inner]))
    assert plan.steps[1].reads == ["outer"]
    for planned in plan.steps:
        planned.outputs.start(planned.record)
    assert {path.name for path in tmp_path.iterdir()} == {
        ".outer.step.json.submitted",
        ".outer.eval.step.json.submitted",
    }


def test_names_of_the_hub_count_as_names_and_no_folder_is_written_down(tmp_path, workspace):
    def parts_of(model):
        argv = general_distillation(workspace, tmp_path / "out", teacher_model=model)
        return make_plan(Recipe("r", [Step("s", "general_distill", argv)])).steps[0].record.parts

    assert parts_of("google-bert/bert-base-uncased")["--teacher_model"] == "google-bert/bert-base-uncased"
    assert parts_of("/home/somebody/bert")["--teacher_model"] == "bert"
    assert "--teacher_model config.json" in parts_of(workspace / "teacher")


def test_the_tree_shows_each_step_once_under_the_deepest_it_reads():
    reads = {"data": [], "teacher": ["data"], "general": ["data", "teacher"], "augment": ["data"], "last": []}
    reads |= {"student": ["teacher", "general", "augment"]}
    assert list(tree(reads)) == [
        ("", "data", []),
        ("|- ", "teacher", []),
        ("|  `- ", "general", []),
        ("|     `- ", "student", ["augment"]),
        ("`- ", "augment", []),
        ("", "last", []),
    ]
