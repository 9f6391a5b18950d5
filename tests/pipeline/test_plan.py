"""What runs again after which change: on a copy of the shipped GLUE recipe that has run to its end."""

import json
import os
import re
import shutil
import time

import pytest

from tinybert_dist.files import read_json, sha256_of
from tinybert_dist.stages import task_distill
from tinybert_dist.training import attempt

TASK = {"teacher", "evaluate_teacher", "step_1", "step_2", "evaluate_student", "export", "report"}
STEPS = TASK | {"corpus", "general", "augment"}
BELOW_STEP_1 = {"step_1", "step_2", "evaluate_student", "export", "report"}


def actions(printed):
    """What becomes of each step, of a plan that was printed."""
    words = "unchanged|in the queue|resume|run"
    rows = (re.match(rf"  [ |`-]*(\w+) +({words})( |$)", line) for line in printed.splitlines())
    return {row[1]: row[2] for row in rows if row}


def due(printed):
    found = actions(printed)
    assert set(found) == STEPS
    return {name for name, action in found.items() if action != "unchanged"}


def all_files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_everything_runs_once_and_in_order(finished):
    order = re.findall(r"==== tinybert4-SST-2: \d+ of 10: (\w+)", finished.printed)
    assert set(order) == STEPS and len(order) == 10
    assert order.index("general") < order.index("step_1") < order.index("step_2") < order.index("report")
    results = read_json(finished.folder / "runs" / "SST-2" / "report.json")
    assert results["runs"] == [
        "teacher", "general distillation", "task distillation, step 1", "task distillation, step 2"
    ]  # fmt: skip


def test_a_second_run_starts_nothing_wherever_the_folder_is(mine):
    before = all_files(mine.folder)
    printed = mine.pipeline()
    assert due(printed) == set() and "0 of 10 steps to run" in printed
    assert all_files(mine.folder) == before


def test_a_dry_run_changes_nothing_and_says_what_and_why(mine):
    before = all_files(mine.folder)
    printed = mine.pipeline("--dry_run", teacher_learning_rate="3e-5")
    assert due(printed) == TASK
    assert "--learning_rate: 2e-05 -> 3e-05" in printed and "after teacher" in printed
    assert "-m tinybert_dist.stages.finetune_teacher --teacher_model" in printed
    assert "stages.general_distill" not in printed
    assert all_files(mine.folder) == before


def test_only_descendants_of_a_change_run_again_and_nothing_is_lost(mine):
    runs = mine.folder / "runs"
    old = sha256_of(runs / "SST-2" / "student" / "model.safetensors")
    general = all_files(runs / "general")
    printed = mine.pipeline(lines=[("learning_rate: 5e-5", "learning_rate: 4e-3")])
    assert due(printed) == BELOW_STEP_1
    assert sha256_of(runs / "SST-2" / "student.before-1" / "model.safetensors") == old
    assert sha256_of(runs / "SST-2" / "student" / "model.safetensors") != old
    assert (runs / "SST-2" / "report.md.before-1").is_file()
    assert f"{os.path.relpath(runs / 'SST-2' / 'student')} -> " in printed
    assert all_files(runs / "general") == general
    assert due(mine.pipeline("--dry_run")) == BELOW_STEP_1  # back to what was: it is what it was no more


def test_data_count_by_what_they_hold(mine):
    train = mine.folder / "glue" / "SST-2" / "train.tsv"
    os.utime(train)
    assert due(mine.pipeline("--dry_run")) == set()
    train.write_text(train.read_text().replace("1\n", "0\n", 1))
    printed = mine.pipeline("--dry_run")
    assert due(printed) == TASK | {"augment"}
    assert "--data_dir train.tsv: another content" in printed
    (mine.folder / "glue" / "SST-2" / "dev.tsv").unlink()
    assert "--data_dir dev.tsv: gone" in mine.pipeline("--dry_run")


def test_a_model_counts_by_its_files_and_not_by_what_lies_beside_them(mine, pretrained):
    model = mine.folder / "model"
    shutil.copytree(pretrained, model)
    assert due(mine.pipeline("--dry_run", pretrained=model)) == set()
    (model / "README.md").write_text("a card")
    (model / "wandb").mkdir()
    assert due(mine.pipeline("--dry_run", pretrained=model)) == set()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    assert due(mine.pipeline("--dry_run", pretrained=model)) == STEPS


def test_how_a_step_is_run_is_no_change(mine):
    lines = [("num_workers: 2", "num_workers: 1"), ("save_step: 2000", "logging_steps: 7")]
    assert due(mine.pipeline("--dry_run", lines=lines)) == set()


def test_an_option_given_its_default_is_no_change(mine):
    assert due(mine.pipeline("--dry_run", lines=[("learning_rate: 5e-5", "learning_rate: 0.00005")])) == set()
    assert due(mine.pipeline("--dry_run", lines=[("p: 0.4", "segmenter: auto")])) == set()
    # so that one which newer code adds is none, either
    parts = read_json(mine.folder / "runs" / ".general.step.json")["parts"]
    assert {name for name in parts if name in {"--seed", "--layer_map", "--learning_rate"}} == {
        "--learning_rate"
    }


def test_what_is_updated_in_place_is_not_taken_for_what_it_was(mine):
    corpus = mine.folder / "corpus.txt"
    good = corpus.read_bytes()
    corpus.write_bytes(good + b"\xff\n")
    with pytest.raises(SystemExit):
        mine.pipeline("--only", "corpus")
    corpus.write_bytes(good)
    assert due(mine.pipeline("--dry_run")) == {"corpus"}
    mine.pipeline("--only", "corpus")
    assert due(mine.pipeline("--dry_run")) == set()
    assert not list(mine.folder.rglob("*.before-*"))


def test_newer_code_of_a_stage_runs_it_again(mine, monkeypatch):
    monkeypatch.setattr(task_distill, "VERSION", 2, raising=False)
    printed = mine.pipeline("--dry_run")
    assert due(printed) == BELOW_STEP_1
    assert "version of the code: 1 -> 2" in printed


def test_what_is_gone_or_not_whole_is_made_again(mine):
    shutil.rmtree(mine.folder / "common" / "corpus")
    (mine.folder / "runs" / "SST-2" / "step_1" / "model.safetensors").unlink()
    printed = mine.pipeline("--dry_run")
    assert due(printed) == {"corpus", "step_1"}
    assert "corpus is not there" in printed and "step_1: the weights are gone" in printed


def test_a_step_that_was_interrupted_goes_on_in_its_folder(mine):
    lines = [
        (
            "save_step: 2000\n      num_workers: 2\n      seed: ${seed}\n",
            "max_seconds: 0.001\n      seed: ${seed}\n",
        )
    ]
    printed = mine.pipeline("--only", "corpus", "--only", "general", lines=lines, general_epochs=3)
    assert "stage general was interrupted" in printed
    general = mine.folder / "runs" / "general"
    assert read_json(general / "outcome.json")["outcome"] == "interrupted"
    plan = mine.pipeline("--dry_run", general_epochs=3)
    assert actions(plan)["general"] == "resume" and "interrupted" in plan
    assert actions(plan)["step_1"] == "run" and actions(plan)["teacher"] == "unchanged"
    mine.pipeline("--only", "general", general_epochs=3)
    outcome = read_json(general / "outcome.json")
    assert (outcome["outcome"], outcome["step"]) == ("finished", 9)
    steps = [json.loads(line)["step"] for line in (general / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))  # gone on, not begun again
    assert len(list(general.parent.glob("general.before-*"))) == 1


def test_a_failed_step_leaves_no_finished_record(mine, capsys):
    train = mine.folder / "glue" / "SST-2" / "train.tsv"
    good = train.read_text()
    train.write_text(good + "a row without label\n")
    with pytest.raises(SystemExit) as stop:
        mine.pipeline()
    assert stop.value.code == 2
    assert "stage teacher failed with exit code 2" in capsys.readouterr().err
    assert due(mine.pipeline("--dry_run")) == TASK | {"augment"}
    assert not (mine.folder / "common" / "SST-2" / ".teacher.step.json").exists()
    train.write_text(good)  # then what came before is whole again, but for what was set aside
    assert due(mine.pipeline("--dry_run")) == {"teacher"}


@pytest.mark.slow
def test_outputs_without_a_record_are_left_to_their_stage(mine):
    for record in mine.folder.rglob(".*.step.json"):
        record.unlink()
    weights = {path: sha256_of(path) for path in mine.folder.rglob("model.safetensors")}
    printed = mine.pipeline("--dry_run")
    assert due(printed) == STEPS and "the stage looks whether they are its own" in printed
    mine.pipeline()
    assert due(mine.pipeline("--dry_run")) == set()
    assert {path: sha256_of(path) for path in mine.folder.rglob("model.safetensors")} == weights
    assert not list(mine.folder.rglob("*.before-*"))
    # of other options they are another run, which the stage refuses with both values
    (mine.folder / "common" / "SST-2" / ".teacher.step.json").unlink()
    with pytest.raises(SystemExit):
        mine.pipeline(teacher_learning_rate="3e-5")


def test_outputs_without_a_record_below_a_change_are_set_aside(mine):
    (mine.folder / "runs" / "SST-2" / ".step_1.step.json").unlink()
    printed = mine.pipeline("--dry_run", teacher_learning_rate="3e-5")
    assert "its inputs are made anew" in printed and "step_1 -> .before-N" in printed


def test_a_job_at_work_in_a_folder_keeps_it(mine, monkeypatch, capsys):
    monkeypatch.setattr(attempt, "WAIT_S", 0.1)
    folder = mine.folder / "runs" / "general"
    pid = os.fork()  # the lock is of a process
    if not pid:
        attempt.Attempt(folder).lock()
        (folder / "locked").touch()
        time.sleep(60)
        os._exit(0)
    try:
        while not (folder / "locked").exists():
            pass
        with pytest.raises(SystemExit):
            mine.pipeline(general_epochs=3)
        assert "in use by another job" in capsys.readouterr().err
        assert folder.is_dir() and not folder.with_name("general.before-1").exists()
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_a_part_of_the_steps(mine, capsys):
    printed = mine.pipeline("--dry_run", "--only", "evaluate_student", "--only", "report")
    assert set(actions(printed)) == {"evaluate_student", "report"}
    printed = mine.pipeline("--dry_run", "--from", "step_2")
    assert set(actions(printed)) == {"step_2", "evaluate_teacher", "evaluate_student", "export", "report"}
    for arguments, message in (
        (["--only", "step_2"], "step step_2 reads what step step_1 writes, which has to run first"),
        (["--only", "setp_2"], "there is no step 'setp_2'. Did you mean step_2?"),
    ):
        with pytest.raises(SystemExit):
            mine.pipeline(*arguments, lines=[("learning_rate: 5e-5", "learning_rate: 4e-5")])
        assert message in capsys.readouterr().err


def test_records_name_no_folder_of_the_machine(finished):
    records = list(finished.folder.rglob(".*.step.json"))
    assert len(records) == 10
    for record in records:
        assert str(finished.folder) not in record.read_text() and "/tmp" not in record.read_text()
    assert not list(finished.folder.rglob("*.submitted"))
