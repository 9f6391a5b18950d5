"""Whose folder it is, what a second export does, and what a failing one leaves."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
import torch
import wandb_files
from export_runs import content, run_evaluate, run_export, with_head

from tinybert_dist.config import UserError
from tinybert_dist.export.folder import replacing
from tinybert_dist.files import read_json, write_json
from tinybert_dist.models import load_classifier
from tinybert_dist.report import measure
from tinybert_dist.stages import export

PLAIN = {"data_dir": None, "formats": ["transformers"]}


def modified(folder):
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_unchanged_inputs_are_not_exported_again_and_changed_ones_are(workspace, tmp_path, capsys):
    out, model = tmp_path / "out", tmp_path / "model"
    shutil.copytree(workspace / "teacher", model)
    first = run_export(workspace, out, model=model, **PLAIN)
    before = modified(out)
    capsys.readouterr()
    assert run_export(workspace, out, model=model, **PLAIN) == first
    assert "up to date" in capsys.readouterr().out and modified(out) == before
    shutil.rmtree(model)
    with_head(workspace / "teacher", model, torch.ones(2, 48), torch.zeros(2))
    second = run_export(workspace, out, model=model, **PLAIN)
    assert second["key"] != first["key"] and read_json(out / "export.json") == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_a_failing_export_leaves_the_old_folder_as_it_was(workspace, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run_export(workspace, out, **PLAIN)
    before = content(out)
    calls = []

    def no_space(path, value):
        calls.append(path.name)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_json", no_space)
    with pytest.raises(OSError, match="No space left"):
        run_export(workspace, out, max_seq_length=16, **PLAIN)
    assert calls == ["export.json"]
    assert content(out) == before and [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(OSError, match="No space left"):
        run_export(workspace, tmp_path / "new", **PLAIN)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_crash_between_two_renames_is_put_right(tmp_path):
    out = tmp_path / "out"
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / "export.json").write_text("{}")
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").write_text("x")
    with pytest.raises(KeyError), replacing(out) as folder:
        assert list(folder.iterdir()) == []
        raise KeyError
    assert (out / "export.json").read_text() == "{}" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_reader_between_the_two_renames_is_told(workspace, tmp_path, monkeypatch):
    """Of an export that is killed there: the folder is away, and nobody takes its name for one of the hub."""
    monkeypatch.chdir(tmp_path)
    run_export(workspace, tmp_path / "runs/served", **PLAIN)
    rename = Path.rename

    def killed(self, target):
        if self.name == ".served.partial":
            os._exit(9)
        return rename(self, target)

    if (child := os.fork()) == 0:
        monkeypatch.setattr(Path, "rename", killed)
        with replacing(Path("runs/served")) as folder:
            (folder / "new").write_text("x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert sorted(path.name for path in Path("runs").iterdir()) == [".served.partial", ".served.replaced"]
    told = "served: an export was killed while it replaced this folder. Run the same export again"
    with pytest.raises(UserError, match=told):
        run_evaluate(workspace, tmp_path / "eval", model="runs/served")
    with pytest.raises(UserError, match=told):
        run_export(workspace, tmp_path / "other", **PLAIN | {"model": "runs/served"})
    for read in (load_classifier, measure.read_export, measure.read_evaluation):
        with pytest.raises(UserError, match=told):
            read("runs/served")
    run_export(workspace, tmp_path / "runs/served", **PLAIN)
    assert [path.name for path in Path("runs").iterdir()] == ["served"]
    load_classifier("runs/served")


def test_a_strangers_folder_is_refused(workspace, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and no export made it"):
        run_export(workspace, out, **PLAIN)
    with pytest.raises(UserError, match="is the model's own folder"):
        run_export(workspace, workspace / "teacher", **PLAIN)
    with pytest.raises(UserError, match="is a file"):
        run_export(workspace, out / "thesis.txt", **PLAIN)
    assert content(out) == {"thesis.txt": b"years of work"}


def test_a_dry_run_writes_nothing(workspace, tmp_path, capsys):
    assert run_export(workspace, tmp_path / "out", dry_run=True) == {}
    assert "would write 105,554 parameters as transformers, onnx, int8" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_wandb_has_one_run_that_a_second_export_continues(workspace, tmp_path):
    out = tmp_path / "out"
    for length in (32, 16):
        options = PLAIN | {"data_dir": workspace / "task", "wandb_mode": "offline", "max_seq_length": length}
        run_export(workspace, out, run_group="all", **options)
    files = wandb_files.run_files(out)
    assert len(files) == 2, "the runs of the first export are kept"
    (run,) = {(r.run_id, r.job_type, r.run_group) for file in files for r in wandb_files.runs(file)}
    assert run[1:] == ("export", "all")
    record = read_json(out / "export.json")
    assert wandb_files.summary(files[-1])["transformers/score"] == record["formats"]["transformers"]["score"]
    rows = [row for row in wandb_files.history(files[-1]) if "formats/nrows" in row]
    assert [(row["formats/_type"], row["formats/nrows"]) for row in rows] == [("table-file", 1)]
    lineage = read_json(out / "lineage.json")
    assert lineage["stage"] == "export" and lineage["made_from"]["student_model"]["name"] == "teacher"


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"formats": ["onnx", "tflite"]}, "--formats tflite: allowed are transformers, onnx, int8"),
        ({"max_seq_length": 65}, "--max_seq_length 65 is over the 64 positions of .*give at most that"),
        ({"length_tokens": [100]}, "--length_tokens 100: the models have 64 positions"),
        ({"batch_size": [0]}, "--batch_size 0"),
        ({"eval_batch_size": 0}, "--eval_batch_size 0"),
        ({"model": "no/such/model"}, "no/such/model: no such model folder"),
        ({"data_dir": "none"}, "--data_dir none: no such folder"),
        ({"splits": ["test"]}, "test file is missing|test.* is missing"),
    ],
    ids=str,
)
def test_mistakes_name_the_value(workspace, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run_export(workspace, tmp_path / "out", **changes)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_without_a_head_is_refused(general_folder, workspace, tmp_path):
    with pytest.raises(UserError, match="no trained classification head"):
        run_export(workspace, tmp_path / "out", model=general_folder, **PLAIN)


def test_the_relu_head_is_refused_and_can_be_left_out(student_folder, workspace, tmp_path):
    state = torch.load(student_folder / "pytorch_model.bin", weights_only=True)
    assert any(name.startswith("fit_dense") for name in state)
    options = {"model": student_folder, "data_dir": None, "max_seq_length": 16, "length_tokens": [8]}
    with pytest.raises(UserError, match=r"relu head.*--classifier_head transformers"):
        run_export(workspace, tmp_path / "out", **options)
    record = run_export(workspace, tmp_path / "out", classifier_head="transformers", **options)
    assert record["formats"]["onnx"]["largest_logit_difference"] < 1e-5


def test_a_missing_package_names_the_extra(workspace, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(UserError, match=r"onnxscript missing: pip install 'tinybert_dist\[export\]'"):
        run_export(workspace, tmp_path / "out", data_dir=None)
    assert run_export(workspace, tmp_path / "out", **PLAIN)["formats"].keys() == {"transformers"}


def test_a_record_that_is_not_ours_is_a_strangers(workspace, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_json(out / "export.json", {"exported": "by somebody else"})
    record = run_export(workspace, out, **PLAIN)
    assert read_json(out / "export.json") == record
