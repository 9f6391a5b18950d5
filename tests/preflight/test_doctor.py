"""The doctor: no false alarm on good configurations and recipes, steps seen together, its command line."""

import functools
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from seeded import MAX_SECONDS, complaints, findings_of, to_argv
from transformers import BertConfig, BertForMaskedLM

from tinybert_dist import cli
from tinybert_dist.models import load_tokenizer
from tinybert_dist.pipeline.recipe import read_recipe
from tinybert_dist.stages import collect_docs, doctor

RECIPES = Path(__file__).resolve().parents[2] / "launch" / "recipes"
STAGES = ["prepare_corpus", "general_distill", "finetune_teacher", "augment", "task_distill", "evaluate"]


def listed(parts):
    return "\n".join(f"{part.name}: {f.severity} {f.check}: {f}" for part in parts for f in part.findings)


@pytest.mark.parametrize("stage", STAGES)
def test_good_options_raise_no_alarm(good, stage):
    findings = findings_of(stage, good(stage), is_launched=True)
    assert not complaints(findings), listed([doctor.Part(stage, findings, 0)])
    # and it was looked at: nothing waits, nothing is left out
    assert {"later"}.isdisjoint(f.severity for f in findings)
    assert len(findings) >= 4


def test_step_2_raises_no_alarm(good):
    assert not complaints(findings_of("task_distill", good("task_distill") | {"pred_distill": True}))


def test_the_reference_folders_raise_no_alarm(good, general_folder, tmp_path):
    """Pickled weights, no model_type, projections among the weights, a vocabulary file only."""
    options = good("evaluate") | {"model": general_folder, "max_seq_length": 16}
    findings = complaints(findings_of("evaluate", options))
    assert [f.check for f in findings if "no trained classification head" in str(f)] == ["labels"]
    assert {f.check for f in findings} <= {"labels", "texts"}, (
        findings
    )  # its made-up vocabulary knows no word


@pytest.fixture(scope="session")
def pretrained(shared_data, tmp_path_factory):
    """pretrained(name): a small model, untrained, with the vocabulary of the real one of that name."""

    def make(name):
        folder = tmp_path_factory.mktemp("pretrained") / name
        tokenizer = load_tokenizer(shared_data / "vocab" / name)
        tokenizer.save_pretrained(folder)
        sizes = {"hidden_size": 48, "num_hidden_layers": 6, "intermediate_size": 48}
        BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
        return folder

    return functools.cache(make)


def inputs_of(recipe, shared_data, pretrained):
    """What a user would have beside a recipe, as `--set` takes it."""
    if recipe == "quickstart":
        return {}
    if recipe == "chinese":
        data = shared_data / "zh" / "dialogue"
        return {"data": data, "corpus": data / "train.txt", "pretrained": pretrained("bert-base-chinese")}
    return {
        "glue": shared_data / "glue",
        "glove": next((shared_data / "glove").iterdir()),
        "corpus": shared_data / "corpus" / "en",
        "pretrained": pretrained("bert-base-uncased"),
    }


@pytest.mark.parametrize("recipe", sorted(file.stem for file in RECIPES.glob("*.yaml")))
def test_shipped_recipes_raise_no_alarm_before_they_run(recipe, shared_data, pretrained, tmp_path):
    values = inputs_of(recipe, shared_data, pretrained) | {"output_dir": tmp_path / "runs"}
    if "glue" in recipe:
        values["common"] = tmp_path / "common"
    overrides = [f"{name}={value}" for name, value in values.items()]
    parts = doctor.examine_steps(read_recipe(RECIPES / f"{recipe}.yaml", overrides).steps)
    # they are for machines with more cores than those of tests
    found = [f for part in parts for f in complaints(part.findings) if f.check != "workers"]
    assert not found, listed(parts)
    assert sum(part.seconds for part in parts) < MAX_SECONDS


@pytest.mark.slow
def test_quickstart_raises_no_alarm_once_its_data_are_there(tmp_path):
    """Everything is looked at then: texts, labels, vocabulary, widths."""
    recipe = read_recipe(RECIPES / "quickstart.yaml", [f"output_dir={tmp_path / 'runs'}"])
    collect_docs.main(recipe.steps[0].argv)
    parts = doctor.examine_steps(recipe.steps)
    assert all(not complaints(part.findings) for part in parts), listed(parts)
    step_1 = next(part for part in parts if part.name.startswith("step_1"))
    seen = {f.check for f in step_1.findings if f.severity == "ok"}
    assert {"teacher", "student", "tokenizer", "layers and heads", "labels", "schedule"} <= seen, listed(
        parts
    )


def recipe_of(tmp_path, *steps):
    stages = [
        {
            "name": name,
            "stage": stage,
            "args": {k: v if isinstance(v, (list, bool)) else str(v) for k, v in args.items()},
        }
        for name, stage, args in steps
    ]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "test", "stages": stages}))
    return tmp_path / "recipe.yaml"


@pytest.fixture
def chain(good, tmp_path):
    """Teacher, general student, step 1 and step 2, none of which has run."""
    folders = {name: tmp_path / name for name in ("teacher", "general", "step_1", "step_2")}
    teacher = good("finetune_teacher") | {"output_dir": folders["teacher"]}
    general = good("general_distill") | {"output_dir": folders["general"]}
    models = {"teacher_model": folders["teacher"], "student_model": folders["general"]}
    step_1 = good("task_distill") | models | {"output_dir": folders["step_1"]}
    step_2 = step_1 | {
        "student_model": folders["step_1"],
        "output_dir": folders["step_2"],
        "pred_distill": True,
    }
    return {
        "teacher": ("finetune_teacher", teacher),
        "general": ("general_distill", general),
        "step_1": ("task_distill", step_1),
        "step_2": ("task_distill", step_2),
    }


def examined(tmp_path, chain):
    steps = [(name, stage, args) for name, (stage, args) in chain.items()]
    return doctor.examine([str(recipe_of(tmp_path, *steps))])


def test_what_earlier_steps_will_write_is_not_missing(chain, tmp_path):
    parts = examined(tmp_path, chain)
    assert [part.name.partition(":")[0] for part in parts] == list(chain)
    assert not complaints(f for part in parts for f in part.findings), listed(parts)
    # models that do not exist yet are compared all the same
    facts = {f.check: str(f) for f in parts[2].findings if f.severity == "ok"}
    assert facts["layers and heads"] == "layers 1:2,2:4 (student:teacher), 4 heads compared"
    assert facts["labels"] == "classification: no, yes"


def test_labels_of_a_teacher_that_is_still_to_be_trained(chain, tmp_path):
    data = tmp_path / "other"
    data.mkdir()
    for name in ("train", "dev"):
        rows = [f"some text number {i}\t{('good', 'bad')[i % 2]}" for i in range(100)]
        (data / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    chain["step_1"][1]["data_dir"] = data
    found = complaints(examined(tmp_path, chain)[2].findings)
    assert any("labels are no, yes, the task's are bad, good" in str(f) for f in found), found


def test_student_distilled_from_a_teacher_with_another_vocabulary(chain, masked_lm, tmp_path):
    chain["general"][1]["teacher_model"] = masked_lm
    found = complaints(examined(tmp_path, chain)[2].findings)
    assert any("vocabularies differ" in str(f) and f.severity == "error" for f in found), found


def test_a_mistake_is_told_by_its_own_step_alone(chain, tmp_path):
    chain["teacher"][1]["teacher_model"] = tmp_path / "none"
    parts = examined(tmp_path, chain)
    assert [bool(complaints(part.findings)) for part in parts] == [True, False, False, False], listed(parts)
    assert any("known once the step teacher is put right" in str(f) for f in parts[2].findings)


def test_a_mistyped_option_of_a_late_step(chain, tmp_path):
    chain["step_2"][1]["learning_rat"] = "1e-4"
    *_, last = examined(tmp_path, chain)
    assert [(f.check, f.severity) for f in last.findings] == [("options", "error")]
    assert "Did you mean --learning_rate?" in str(last.findings[0])


def test_augmented_data_of_an_earlier_step(chain, good, masked_lm, tmp_path):
    augment = {"pretrained_bert_model": masked_lm, "data_path": chain["step_1"][1]["data_dir"] / "train.tsv"}
    chain["step_1"][1]["aug_train"] = True
    found = complaints(examined(tmp_path, chain)[2].findings)
    assert any("--aug_train" in str(f) for f in found), found
    parts = examined(tmp_path, {"augment": ("augment", augment), **chain})
    assert not [f for f in complaints(parts[3].findings) if f.severity == "error"], listed(parts)


def doctor_process(*arguments):
    """(exit code, output, CPU seconds of the whole process, imports included)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "tinybert_dist.cli", "doctor", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result, seconds


@pytest.mark.parametrize("target", ["machine", "stage", "recipe"])
def test_command_line_is_quick_and_its_exit_code_tells(good, chain, tmp_path, target):
    good_options = good("task_distill")
    wrong = good_options | {"layer_map": "2,9"}
    chain["step_1"][1]["layer_map"] = "2,9"
    recipe = recipe_of(tmp_path, *((name, *rest) for name, rest in chain.items()))
    arguments = {"machine": [], "stage": ["task-distill", *to_argv(wrong)], "recipe": [recipe]}[target]
    result, seconds = doctor_process(*arguments)
    assert seconds < MAX_SECONDS, f"{seconds:.1f} CPU seconds"
    if target == "machine":
        assert result.returncode == 0, result.stdout + result.stderr
        assert "packages" in result.stdout and "0 errors" in result.stdout
    else:
        assert result.returncode == 2, result.stdout + result.stderr
        assert "2:9" in result.stdout and "doctor: 1 errors, 0 warnings" in result.stdout
    print(f"\ndoctor {target}: {seconds:.1f} CPU seconds, process start included")


def test_json_for_scripts(good, capsys):
    options = good("task_distill") | {"learning_rate": 5}
    cli.main(["doctor", "task_distill", *to_argv(options), "--json"])
    (part,) = json.loads(capsys.readouterr().out)
    (found,) = [f for f in part["findings"] if f["severity"] == "warning"]
    assert found["check"] == "schedule" and "--learning_rate 5" in found["problem"] and found["remedy"]


def test_a_target_that_is_none(capsys):
    with pytest.raises(SystemExit) as stop:
        doctor.main(["task_distil"])
    assert stop.value.code == 2
    assert "neither a stage nor a recipe. Did you mean task_distill?" in capsys.readouterr().err
