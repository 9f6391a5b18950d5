"""The recipes of launch/recipes: their options, files and what reads from what; the Chinese one runs."""

import importlib
from pathlib import Path

import pytest
from recipe_files import RECIPES
from tiny_masked_lm import CHINESE, save_masked_lm

from tinybert_dist.data.glue import GLUE
from tinybert_dist.files import read_json
from tinybert_dist.pipeline.plan import make_plan
from tinybert_dist.pipeline.recipe import read_recipe
from tinybert_dist.pipeline.slurm import requested
from tinybert_dist.stages import pipeline

ALL = sorted(RECIPES.glob("*.yaml"))
GLUE_TASKS = ["CoLA", "SST-2", "MRPC", "STS-B", "RTE", "QQP", "MNLI", "QNLI"]
TO_STUDENT = {
    "step_1": {"general", "teacher", "augment"},
    "step_2": {"step_1", "teacher", "augment"},
    "evaluate_teacher": {"teacher"},
    "evaluate_student": {"step_2"},
    "export": {"step_2"},
}
READS = {
    "quickstart": {
        "data": set(),
        "teacher": {"data"},
        "general": {"data", "teacher"},
        "augment": {"data", "teacher"},
        "label_only": {"data"},
        "evaluate_label_only": {"data", "label_only"},
        "report": {
            *{"teacher", "general", "step_1", "step_2", "label_only"},
            *{"evaluate_teacher", "evaluate_student", "evaluate_label_only", "export"},
        },
        **{name: reads | {"data"} for name, reads in TO_STUDENT.items()},
    },
    "chinese": {
        "general": set(),
        "teacher": set(),
        "augment": set(),
        "report": {
            *{"teacher", "general", "step_1", "step_2", "evaluate_teacher", "evaluate_student", "export"}
        },
        **TO_STUDENT,
    },
}
READS["tinybert4_glue"] = {**READS["chinese"], "corpus": set(), "general": {"corpus"}}
READS["tinybert6_glue"] = READS["tinybert4_glue"]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_options_and_files_are_there_and_steps_read_what_they_should(path, tmp_path, monkeypatch):
    recipe = read_recipe(path, [f"output_dir={tmp_path}/runs"])
    for step in recipe.steps:
        for value in step.argv:
            assert not value.startswith(str(RECIPES)) or Path(value).is_file(), value
        requested(step)
    monkeypatch.chdir(tmp_path)
    plan = make_plan(recipe)
    assert {planned.step.name: set(planned.reads) for planned in plan.steps} == READS[path.stem]
    assert all(planned.decision.reasons == ["not run yet"] for planned in plan.steps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_dry_run_prints_a_command_for_every_step(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, program in ((["--slurm"], "sbatch --parsable"), ([], "python -m tinybert_dist.stages.")):
        pipeline.main([str(path), "--dry_run", *arguments])
        printed = capsys.readouterr().out
        assert printed.count(program) == len(READS[path.stem])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [4, 6])
@pytest.mark.parametrize("task", GLUE_TASKS)
def test_glue_with_the_papers_settings(size, task):
    recipe = read_recipe(RECIPES / f"tinybert{size}_glue.yaml", [f"task={task}"])
    options = {step.name: dict(zip(step.argv, step.argv[1:], strict=False)) for step in recipe.steps}
    single = task in {"CoLA", "SST-2"}
    general, step_1, step_2 = (options[name] for name in ("general", "step_1", "step_2"))
    assert general["--student_model"] == {4: "tinybert-4l-312", 6: "tinybert-6l-768"}[size]
    assert [general[f"--{o}"] for o in ("train_batch_size", "learning_rate", "num_train_epochs")] == [
        "256", "1e-4", "3"
    ]  # fmt: skip
    assert general["--max_seq_length"] == "128"
    epochs = {"CoLA": "50", "MNLI": "10", "QQP": "10", "QNLI": "10"}.get(task, "20")
    assert [step_1[f"--{o}"] for o in ("num_train_epochs", "train_batch_size", "learning_rate")] == [
        epochs, "32", "5e-5"
    ]  # fmt: skip
    assert (step_2["--num_train_epochs"], step_2["--learning_rate"]) == ("3", "3e-5")
    for name in ("teacher", "step_1", "step_2", "evaluate_student"):
        assert options[name]["--max_seq_length"] == ("64" if single else "128")
        assert options[name]["--task_name"] == task
    assert [options["augment"][f"--{o}"] for o in ("M", "N", "p")] == ["15", "20", "0.4"]
    assert recipe.name == f"tinybert{size}-{task}"


def test_glue_recipes_know_the_tasks_of_the_paper():
    assert set(GLUE_TASKS) == set(GLUE) - {"WNLI"}


def test_both_sizes_share_corpus_and_teacher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plans = [make_plan(read_recipe(RECIPES / f"tinybert{size}_glue.yaml")) for size in (4, 6)]
    shared = {"corpus", "teacher", "augment", "evaluate_teacher"}
    for four, six in zip(*(plan.steps for plan in plans), strict=True):
        is_same = four.outputs.record == six.outputs.record and four.record == six.record
        assert is_same == (four.step.name in shared), four.step.name


def test_the_chinese_recipe_runs_scaled_down(tmp_path, monkeypatch):
    importlib.import_module("jieba")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    words = CHINESE
    texts = ["".join(words[i % len(words)] for i in range(n, n + 9)) for n in range(40)]
    (tmp_path / "corpus.txt").write_text("\n".join(texts * 3) + "\n", encoding="utf-8")
    (tmp_path / "dialogue").mkdir()
    for split, part in (("train", texts[:24]), ("eval", texts[24:])):
        rows = [f"{text}\t{n % 2}" for n, text in enumerate(part)] + ["a malformed\trow\twith\tfields"]
        (tmp_path / "dialogue" / f"{split}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    student = '{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, '
    (tmp_path / "student.json").write_text(
        student + '"intermediate_size": 32, "max_position_embeddings": 128}'
    )
    settings = {
        "output_dir": tmp_path / "runs",
        "corpus": tmp_path / "corpus.txt",
        "data": tmp_path / "dialogue",
        "pretrained": save_masked_lm(tmp_path / "bert"),
        "student": tmp_path / "student.json",
        "max_seq_length": 32,
        "general_epochs": 1,
        "teacher_epochs": 1,
        "draws": 2,
        "step_1_epochs": 0.5,
        "step_2_epochs": 0.5,
    }
    overrides = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    pipeline.main([str(RECIPES / "chinese.yaml"), *overrides])
    augmented = (tmp_path / "dialogue" / "train_aug.txt").read_text(encoding="utf-8").splitlines()
    assert len(augmented) > 24 and all(len(row.split("\t")) == 2 for row in augmented)
    assert read_json(tmp_path / "runs" / "eval" / "student" / "eval_results.json")["step"] == 0
    assert (tmp_path / "runs" / "report.md").is_file()
