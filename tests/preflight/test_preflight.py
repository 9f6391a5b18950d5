"""Every stage runs its preflight first: before weights are read, once, and on all processes alike."""

import importlib
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from command_lines import general_distillation
from seeded import findings_of, to_argv

from tinybert_dist.config import UserError, parse
from tinybert_dist.pipeline.flow import config_class
from tinybert_dist.preflight.checks import preflight
from tinybert_dist.training.run_folder import RunFolder

STAGES = ["prepare_corpus", "general_distill", "finetune_teacher", "augment", "task_distill", "evaluate"]


def refuse_to_read(*arguments, **options):
    raise AssertionError("weights were read")


@pytest.mark.parametrize("stage", [*STAGES, "report"])
def test_a_stage_stops_before_it_reads_weights(stage, good, workspace, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tinybert_dist.model_files.load_file", refuse_to_read)
    (tmp_path / "file").write_text("not a folder")
    models = {"teacher_model": workspace / "teacher", "student_model": workspace / "teacher"}
    options = models if stage == "report" else good(stage)
    options |= {"output_dir": tmp_path / "file" / "run"}
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"tinybert_dist.stages.{stage}").main(to_argv(options))
    assert stop.value.code == 2
    assert "file is a file. Give another folder" in capsys.readouterr().err


@pytest.mark.parametrize("stage", STAGES)
def test_a_healthy_stage_prints_nothing(stage, good, capsys):
    preflight(stage, parse(config_class(stage), to_argv(good(stage))))
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_the_first_rows_are_read_once(good):
    """By three checks; of a task whose labels are given, else they are counted before."""
    options = good("task_distill") | {"labels": ["no", "yes"]}
    opened = Counter()
    watching = True

    def watch(event, arguments):
        if watching and event == "open" and str(arguments[0]).endswith(".tsv"):
            opened[Path(str(arguments[0])).name] += 1

    sys.addaudithook(watch)  # for ever
    findings = findings_of("task_distill", options)
    watching = False
    assert {"task data", "texts", "schedule"} <= {finding.check for finding in findings}
    # once more for the names of the columns
    assert opened == {"train.tsv": 2, "dev.tsv": 1}


def test_a_finished_run_is_left_alone(good, monkeypatch, tmp_path):
    """Though its teacher is gone and there is no API key: nothing of it would be used."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    shutil.copytree(good("general_distill")["teacher_model"], tmp_path / "teacher")
    changes = {"teacher_model": tmp_path / "teacher", "wandb_mode": "online"}
    config = parse(config_class("general_distill"), to_argv(good("general_distill") | changes))
    folder = RunFolder(config.output_dir, "general_distill", config, {})
    folder.attempt.token = folder.claim()
    folder.end("interrupted", 1)
    shutil.rmtree(tmp_path / "teacher")
    with pytest.raises(UserError, match="2 mistakes"):
        preflight("general_distill", config)
    folder.end("finished", 2)
    folder.attempt.release()
    preflight("general_distill", config)
    config.learning_rate = 1e-3
    with pytest.raises(UserError, match="holds another run"):
        preflight("general_distill", config)


@pytest.mark.dist
def test_all_processes_end_on_a_mistake_of_the_first(workspace, tmp_path, launch):
    arguments = general_distillation(workspace, tmp_path / "run", layer_map="2,9", wandb_mode="disabled")
    result = launch("general_distill", *arguments, check=False, timeout_s=120)
    assert result.returncode != 0
    assert "pair 2:9" in result.stdout
    assert not (tmp_path / "run").exists()
