"""`wandb sync` of what runs leave, to a server on this machine."""

import re
import shutil

import wandb_files
from command_lines import flags, general_distillation

from tinybert_dist.config import parse
from tinybert_dist.files import read_json
from tinybert_dist.stages import general_distill, task_distill
from tinybert_dist.training.tracking import Tracker, TrackingOptions


def test_one_command_brings_a_pipeline_with_its_lineage(chain, chain_files, server, sync):
    sync(chain / "runs")
    ids = {name: wandb_files.runs(path)[0].run_id for name, path in chain_files.items()}
    assert set(server.runs) == set(ids.values())
    assert {run["groupName"] for run in server.runs.values()} == {"night"}
    assert server.runs[ids["general"]]["jobType"] == "general_distill"
    assert [row["step"] for row in server.history[ids["general"]]] == [1, 2, 3, 4]
    models = {
        name: server.artifact(f"{stage}-{name}")
        for name, stage in (
            ("teacher", "finetune_teacher"),
            ("general", "general_distill"),
            ("step_1", "task_distill_intermediate"),
            ("student", "task_distill_prediction"),
        )
    }
    assert {name: server.used[ids[name]] for name in ("step_1", "student", "eval")} == {
        "step_1": {models["teacher"], models["general"]},
        "student": {models["teacher"], models["step_1"]},
        "eval": {models["student"]},
    }
    for name, model in models.items():
        assert ids[name] in server.artifacts[model]["makers"]
        assert {
            f"{model}/{file}" for file in ("model.safetensors", "config.json", "lineage.json")
        } <= server.files
    assert any(re.search("table/augmentations", file) for file in server.files)
    assert any(re.search("images/report", file) for file in server.files)
    sent = b"\n".join(server.received)
    assert str(chain).encode() not in sent


def test_the_parts_of_a_resumed_run_arrive_in_order(workspace, tmp_path, server, sync):
    folder = tmp_path / "run"
    options = {"max_seq_len": 32, "train_batch_size": 8, "max_steps": 3, "logging_steps": 1}
    options |= {"wandb_mode": "offline", "max_seconds": 1e-6}
    argv = general_distillation(workspace, folder, **options)
    config = parse(general_distill.GeneralDistillConfig, argv)
    outcomes = [general_distill.run(config)["outcome"] for _ in range(3)]
    assert outcomes == ["interrupted", "interrupted", "finished"]
    parts = sorted(folder.glob("wandb/offline-run-*"))
    assert len(parts) == 3
    (run_id,) = {wandb_files.runs(file)[0].run_id for file in wandb_files.run_files(folder)}
    sync(folder)
    assert set(server.runs) == {run_id}
    assert [row["step"] for row in server.history[run_id]] == [1, 2, 3]


def test_an_online_run_sends_the_same(workspace, chain, server, online, tmp_path):
    folder = tmp_path / "run"
    argv = flags(
        {
            "teacher_model": chain / "runs/teacher", "student_model": chain / "runs/general",
            "data_dir": workspace / "task", "output_dir": folder, "max_seq_length": 32, "max_steps": 2,
            "logging_steps": 1, "wandb_mode": "online", "pred_distill": "true",
        }
    )  # fmt: skip
    assert task_distill.main(argv)["outcome"] == "finished"
    (run_id,) = server.runs
    assert [row["step"] for row in server.history[run_id]] == [1, 2]
    assert {key.partition(":")[0] for key in server.used[run_id]} == {
        "finetune_teacher-teacher",
        "general_distill-general",
    }
    made = server.artifact("task_distill_prediction-run")
    assert f"{made}/model.safetensors" in server.files
    assert any(re.search("table/predictions", file) for file in server.files)
    sent = b"\n".join(server.received)
    assert str(tmp_path).encode() not in sent and str(chain).encode() not in sent
    assert not list((folder / "wandb").glob("offline-run-*"))


def test_a_server_that_refuses_costs_tables_and_no_run(chain, server, online, tmp_path, caplog):
    (tmp_path / "run").mkdir()
    for file in ("model.safetensors", "config.json"):
        shutil.copy(chain / "runs/general" / file, tmp_path / "run")
    server.refuses = {"ArtifactType", "Viewer"}
    with Tracker(TrackingOptions(wandb_mode="online"), "evaluate", tmp_path / "run", True, {}) as tracker:
        tracker.log_table("predictions", ["text"], [["x"]])
        tracker.log_model(tmp_path / "run")
    assert "the table predictions did not get into wandb" in caplog.text
    assert read_json(tmp_path / "run/lineage.json")["stage"] == "evaluate"
